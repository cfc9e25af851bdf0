//! Numbers of the HTTP data path. Each worker writes its own, without locks and without a cache line that another writes;
//! who reads them adds them up.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Workers beyond these share a place.
const PLACES: usize = 32;

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// From now on this thread writes what is this worker's.
pub fn work_as(worker: usize) {
    PLACE.set(worker % PLACES);
}

/// One `T` for each worker that ever asks for its own. Clones are the same numbers, and all are equal: numbers are no part
/// of a configuration. As long as nobody asks, it costs a few bytes.
pub struct PerWorker<T>(Arc<OnceLock<Box<Places<T>>>>);

type Places<T> = [OnceLock<Box<Apart<T>>>; PLACES];

/// On cache lines of its own; two of them, as they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl<T: Default> PerWorker<T> {
    /// This thread's.
    pub fn mine(&self) -> &T {
        let places = self
            .0
            .get_or_init(|| Box::new([const { OnceLock::new() }; PLACES]));
        &places[PLACE.get()].get_or_init(Box::default).0
    }
}

impl<T> PerWorker<T> {
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let places = self.0.get().into_iter().flat_map(|places| places.iter());
        places.filter_map(|place| place.get().map(|apart| &apart.0))
    }

    /// Over all workers.
    pub fn sum(&self, count: impl Fn(&T) -> &Count) -> u64 {
        // Ups and downs of a gauge may be on different workers.
        self.all()
            .fold(0, |sum, one| sum.wrapping_add(count(one).get()))
    }
}

impl<T> Default for PerWorker<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for PerWorker<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> PartialEq for PerWorker<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> fmt::Debug for PerWorker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerWorker")
    }
}

/// A number that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn add(&self, more: u64) {
        // Cheaper than an atomic addition: there is no other writer.
        self.0.store(self.get().wrapping_add(more), Relaxed);
    }

    pub fn increase(&self) {
        self.add(1);
    }

    pub fn decrease(&self) {
        self.add(u64::MAX);
    }
}

/// How many values were at most as large as each bound.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    /// Between two bounds each.
    counts: [Count; N],
    larger: Count,
    pub sum: Count,
}

/// Milliseconds; Envoy's.
pub const MILLIS: [u64; 18] = [
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000,
    1_800_000, 3_600_000,
];
/// Bytes.
pub const BYTES: [u64; 6] = [1 << 10, 10 << 10, 100 << 10, 1 << 20, 10 << 20, 100 << 20];

impl<const N: usize> Histogram<N> {
    pub fn note(&self, value: u64, bounds: &[u64; N]) {
        let at = bounds.partition_point(|bound| *bound < value);
        self.counts.get(at).unwrap_or(&self.larger).increase();
        self.sum.add(value);
    }
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            counts: [const { Count(AtomicU64::new(0)) }; N],
            larger: Count::default(),
            sum: Count::default(),
        }
    }
}

/// A histogram of all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Bounds, and how many were at most as large.
    pub buckets: Vec<(u64, u64)>,
    pub count: u64,
    pub sum: u64,
}

impl Distribution {
    pub fn of<'a, const N: usize>(
        all: impl Iterator<Item = &'a Histogram<N>> + Clone,
        bounds: &[u64; N],
    ) -> Self {
        let mut count = 0;
        let buckets = bounds.iter().enumerate().map(|(at, bound)| {
            count += all.clone().map(|one| one.counts[at].get()).sum::<u64>();
            (*bound, count)
        });
        let buckets = buckets.collect();
        Self {
            buckets,
            count: count + all.clone().map(|one| one.larger.get()).sum::<u64>(),
            sum: all.map(|one| one.sum.get()).sum(),
        }
    }

    /// The value that so many in a hundred do not exceed, as far as the bounds tell.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let wanted = self.count as f64 * percent / 100.0;
        let (mut below, mut from) = (0, 0);
        for (bound, count) in &self.buckets {
            if *count as f64 >= wanted && *count > below {
                let part = (wanted - below as f64) / (*count - below) as f64;
                return Some(from as f64 + part.clamp(0.0, 1.0) * (*bound - from) as f64);
            }
            (below, from) = (*count, *bound);
        }
        Some(from as f64)
    }
}

/// Requests by the first digit of their status, from 1 to 5; one that was never answered is in none.
#[derive(Debug, Default)]
pub struct Classes([Count; 5]);

impl Classes {
    pub fn of(&self, class: u16) -> &Count {
        &self.0[usize::from(class.clamp(1, 5)) - 1]
    }

    pub fn answered(&self, status: u16) {
        self.of(status / 100).increase();
    }
}

/// Of connection managers that have one `stat_prefix`, named as Envoy names them.
#[derive(Debug, Default)]
pub struct ManagerCounts {
    pub cx_total: Count,
    pub cx_active: Count,
    pub rx_bytes: Count,
    pub tx_bytes: Count,
    pub rq_total: Count,
    pub rq_active: Count,
    pub rq: Classes,
    /// The client went away first.
    pub rq_rx_reset: Count,
    pub rq_timeout: Count,
    /// Requests that were let go on as another protocol, or to be a tunnel.
    pub upgrades_total: Count,
    pub upgrades_active: Count,
    /// Such requests that no route let.
    pub upgrades_refused: Count,
    pub rq_time: Histogram<18>,
}

/// Of a cluster.
#[derive(Debug, Default)]
pub struct ClusterCounts {
    pub cx_total: Count,
    pub cx_active: Count,
    pub cx_connect_fail: Count,
    pub cx_connect_timeout: Count,
    pub cx_none_healthy: Count,
    pub rq_total: Count,
    pub rq_active: Count,
    pub rq: Classes,
    pub rq_timeout: Count,
    /// Refused by one of the cluster's limits.
    pub rq_pending_overflow: Count,
    pub rq_rx_reset: Count,
    pub rq_time: Histogram<18>,
}

/// Of a listener's requests.
#[derive(Debug, Default)]
pub struct ListenerCounts {
    pub response_bytes: Histogram<6>,
}

impl ClusterCounts {
    /// A response's head came after so long.
    pub fn answered(&self, status: u16, after: Duration) {
        self.rq.answered(status);
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.rq_time.note(millis, &MILLIS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_write_their_own_and_are_added_up() {
        let counts = PerWorker::<ManagerCounts>::default();
        let threads = (1..=3).map(|worker| {
            let counts = counts.clone();
            std::thread::spawn(move || {
                work_as(worker);
                for _ in 0..1000 {
                    counts.mine().rq_total.increase();
                }
                counts.mine().rq.answered(204);
                counts.mine().rq_active.decrease();
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("no panic");
        }
        for _ in 0..4 {
            counts.mine().rq_active.increase();
        }
        assert_eq!(counts.sum(|one| &one.rq_total), 3000);
        assert_eq!(counts.sum(|one| one.rq.of(2)), 3);
        assert_eq!(counts.sum(|one| &one.rq_active), 1);
        assert_eq!(counts.all().count(), 4);
    }

    #[test]
    fn a_distribution_says_what_most_took() {
        let histogram = Histogram::<18>::default();
        for value in [0, 1, 2, 3, 4, 5, 20, 20, 20, 9_999_999] {
            histogram.note(value, &MILLIS);
        }
        let found = Distribution::of(std::iter::once(&histogram), &MILLIS);
        assert_eq!(found.buckets[..4], [(1, 2), (5, 6), (10, 6), (25, 9)]);
        assert_eq!(found.count, 10);
        assert_eq!(found.percentile(20.0), Some(1.0));
        assert_eq!(found.percentile(60.0), Some(5.0));
        assert_eq!(found.percentile(90.0), Some(25.0));
        assert_eq!(found.percentile(100.0), Some(3_600_000.0));
    }
}
