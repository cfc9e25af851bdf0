//! Recognising our own flow when it comes back to us in the destination's namespace.
//!
//! In iptables mode a same-node connection of the agent is redirected to the agent's own inbound listener. Both ends
//! of that crossing are in this process; the tuple proves it. Then the crossing is dropped, before any byte was read,
//! and the outbound task delivers straight into the destination's namespace.
//!
//! ```text
//!   outbound task                                   inbound task (accepted, perhaps on another worker)
//!   intend(dst)     a crossing to dst may come  ->  no intent for dst: an ordinary connection, at once
//!   connect()
//!   cross(tuple)    leaves its tuple            ->  finds the tuple: tells the outbound task who it is, and ends
//!      or finds the note of the inbound task   <-   came first: leaves a note and waits
//!   matched: drop the crossing, deliver             matched: end, nothing to log; its count as a flow of the
//!                                                   destination goes over to the outbound task
//!   nobody came in time: go on with the crossing    nobody took the note: an ordinary connection
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::worker::Counted;

/// How long a connected crossing waits to be recognised. Reached only when the destination's rules are not what the
/// agent believes: somebody else flushed them.
const CROSSING: Duration = Duration::from_millis(200);
/// How long an accepted connection waits for the tuple of a crossing which is just being made.
const ARRIVAL: Duration = Duration::from_millis(100);

/// One connection as both ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// Where the two tasks meet; shared by all workers, touched once per such connection.
#[derive(Debug, Default)]
pub struct Rendezvous {
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// Crossings to a destination whose tuple is not known yet.
    intents: HashMap<SocketAddr, usize>,
    notes: HashMap<Tuple, Note>,
}

#[derive(Debug)]
enum Note {
    /// Left by an outbound task; wants to know where it arrived.
    Crossing(oneshot::Sender<Counted>),
    /// Left by an inbound task, counted as a flow of its workload; wants to know that it was taken.
    Arrived(Counted, oneshot::Sender<()>),
}

/// An outbound task is about to connect.
#[derive(Debug)]
pub(crate) struct Intent<'a> {
    meeting: &'a Rendezvous,
    destination: SocketAddr,
}

/// An outbound task's own note.
#[derive(Debug)]
pub(crate) struct Crossing<'a> {
    meeting: &'a Rendezvous,
    tuple: Tuple,
    answer: oneshot::Receiver<Counted>,
}

impl Rendezvous {
    pub(crate) fn intend(&self, destination: SocketAddr) -> Intent<'_> {
        *self.lock().intents.entry(destination).or_default() += 1;
        Intent {
            meeting: self,
            destination,
        }
    }

    /// Is this accepted connection a crossing of ours? If so, its outbound task knows by now, and holds `counted`: at
    /// no moment does the destination look as if no flow needed it.
    pub(crate) async fn arrive(&self, tuple: Tuple, counted: Counted) -> bool {
        let taken = {
            let mut places = self.lock();
            match places.notes.remove(&tuple) {
                Some(Note::Crossing(tell)) => return tell.send(counted).is_ok(),
                // The same tuple twice: the older one is dead.
                Some(Note::Arrived(..)) | None => {}
            }
            if !places.intents.contains_key(&tuple.destination) {
                return false;
            }
            let (tell, taken) = oneshot::channel();
            places.notes.insert(tuple, Note::Arrived(counted, tell));
            taken
        };
        let arrival = Arrival {
            meeting: self,
            tuple,
        };
        let matched = timeout(ARRIVAL, taken).await;
        drop(arrival);
        matches!(matched, Ok(Ok(())))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // No code that holds the lock can panic half way through a change.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the inbound task's note away again.
struct Arrival<'a> {
    meeting: &'a Rendezvous,
    tuple: Tuple,
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let mut places = self.meeting.lock();
        if matches!(places.notes.get(&self.tuple), Some(Note::Arrived(..))) {
            places.notes.remove(&self.tuple);
        }
    }
}

impl<'a> Intent<'a> {
    /// The connection has begun, its tuple is known.
    pub(crate) fn cross(self, source: SocketAddr) -> Crossing<'a> {
        let tuple = Tuple {
            source,
            destination: self.destination,
        };
        let (tell, answer) = oneshot::channel();
        let mut places = self.meeting.lock();
        let tell = match places.notes.remove(&tuple) {
            // Not taken when the inbound task has just given up: then this goes on as an ordinary connection.
            Some(Note::Arrived(counted, taken)) => {
                if taken.send(()).is_ok() {
                    let _ = tell.send(counted);
                    None
                } else {
                    Some(tell)
                }
            }
            Some(Note::Crossing(_)) | None => Some(tell),
        };
        if let Some(tell) = tell {
            places.notes.insert(tuple, Note::Crossing(tell));
        }
        drop(places);
        Crossing {
            meeting: self.meeting,
            tuple,
            answer,
        }
    }
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        let mut places = self.meeting.lock();
        if let Some(count) = places.intents.get_mut(&self.destination) {
            *count -= 1;
            if *count == 0 {
                places.intents.remove(&self.destination);
            }
        }
    }
}

impl Crossing<'_> {
    /// Called once connected: a flow of the workload in whose namespace it arrived at our own listener.
    pub(crate) async fn arrived(mut self) -> Option<Counted> {
        match timeout(CROSSING, &mut self.answer).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                self.withdraw();
                // Somebody may have come between the end of the wait and the withdrawal.
                self.answer.try_recv().ok()
            }
        }
    }

    /// As [`Crossing::arrived`], without waiting: the far end may have met us and hung up before we saw it connected.
    pub(crate) fn has_arrived(&mut self) -> Option<Counted> {
        self.answer.try_recv().ok()
    }

    fn withdraw(&self) {
        let mut places = self.meeting.lock();
        if matches!(places.notes.get(&self.tuple), Some(Note::Crossing(_))) {
            places.notes.remove(&self.tuple);
        }
    }
}

impl Drop for Crossing<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests;
