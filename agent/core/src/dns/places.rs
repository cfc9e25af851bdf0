//! Who waits for which resolver: one that does not answer must not keep others from being asked.
//!
//! ```text
//! a resolver's first 8 ─► its own places ─► always, of as many as 16 resolvers
//! more                 ─► 256 places that all resolvers share ─► full: dropped
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

/// Places of a workload that all of its resolvers share.
const SHARED: u64 = 256;
/// Places that a resolver has for itself.
const OWN: u64 = 8;
/// Those whose resolver is not known yet: it is asked for at once, by as many as are read in one go.
const UNKNOWN: u64 = 64;
/// Places of all kinds: who asks more than 16 resolvers at the same time shares them.
const ALL: u64 = SHARED + UNKNOWN + 16 * OWN;

/// The places of one workload's queries that wait; a long query has several.
#[derive(Debug, Default)]
pub struct Places(Mutex<HashMap<Option<SocketAddr>, u64>>);

/// Whose places were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The resolver's own.
    Own,
    Shared,
}

impl Places {
    /// Takes `count` places for a query to this resolver; `None`: it is not known yet. `None`: there are no more.
    pub fn take(&self, resolver: Option<SocketAddr>, count: u64) -> Option<Taken> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.get(&resolver).copied().unwrap_or(0) + count;
        let whole: u64 = all.values().sum();
        if whole + count > ALL {
            return None;
        }
        let own = taken <= own(resolver);
        if !own {
            let over =
                |(of, taken): (&Option<SocketAddr>, &u64)| taken.saturating_sub(self::own(*of));
            let others = all.iter().filter(|(of, _)| **of != resolver);
            let shared = others.map(over).sum::<u64>() + over((&resolver, &taken));
            if shared > SHARED {
                return None;
            }
        }
        all.insert(resolver, taken);
        Some(if own { Taken::Own } else { Taken::Shared })
    }

    /// Gives them back.
    pub fn leave(&self, resolver: Option<SocketAddr>, count: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = all.get_mut(&resolver) {
            *taken = taken.saturating_sub(count);
            if *taken == 0 {
                all.remove(&resolver);
            }
        }
    }

    /// How many are taken.
    pub fn taken(&self) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().sum()
    }
}

fn own(resolver: Option<SocketAddr>) -> u64 {
    resolver.map_or(UNKNOWN, |_| OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(host: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([192, 0, 2, host], 53)))
    }

    #[test]
    fn a_silent_resolver_leaves_others_their_own_places() {
        let places = Places::default();
        let many = (0..1000).filter(|_| places.take(resolver(1), 1).is_some());
        assert_eq!(many.count() as u64, SHARED + OWN);
        let others = (0..20).filter(|_| places.take(resolver(2), 1) == Some(Taken::Own));
        assert_eq!(others.count() as u64, OWN);
        assert_eq!(places.take(None, 1), Some(Taken::Own));
        // One that has answered makes room for anybody.
        places.leave(resolver(1), 1);
        assert_eq!(places.take(resolver(2), 1), Some(Taken::Shared));
        assert_eq!(places.take(resolver(2), 1), None);
    }

    #[test]
    fn there_is_an_end_to_all_places() {
        let places = Places::default();
        let taken: u64 = (0..=255)
            .map(|host| {
                (0..10)
                    .filter(|_| places.take(resolver(host), 1).is_some())
                    .count() as u64
            })
            .sum();
        assert_eq!((taken, places.taken()), (ALL, ALL));
        for host in 0..=255 {
            places.leave(resolver(host), 10);
        }
        assert_eq!(places.taken(), 0);
        // A long query needs all of its places at once.
        assert_eq!(places.take(resolver(1), SHARED + OWN + 1), None);
        assert_eq!(places.take(resolver(1), OWN + 1), Some(Taken::Shared));
    }
}
