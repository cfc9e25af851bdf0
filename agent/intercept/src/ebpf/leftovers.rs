//! Sockets that were accelerated and close after their workload was withdrawn: the hooks that would have removed what the
//! maps have of them are gone. The kernel takes a closed socket out of the socket hash by itself, and by that it is known.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData, SockHash};
use shunt_ebpf_common::maps::{Handoff, SocketCookie};

use super::object::Object;
use crate::InterceptError;

/// Between two looks. An entry is removed that was found without its socket in two in a row: a new one is written before
/// its socket is in the hash, and a socket that its program has closed has left the hash and may yet have bytes to send,
/// after which its own hooks tell of its end. The kernel gives up on those after some minutes.
const LOOK: Duration = Duration::from_secs(600);

pub(super) struct Leftovers {
    queues: HashMap<MapData, SocketCookie, u64>,
    suspects: HashSet<SocketCookie>,
    /// `None`: nobody was withdrawn yet, so hooks tell of every end.
    next: Option<Instant>,
}

/// What is looked at besides.
pub(super) struct Others<'a> {
    pub(super) sockets: &'a SockHash<MapData, SocketCookie>,
    pub(super) peers: &'a mut HashMap<MapData, SocketCookie, SocketCookie>,
    pub(super) handoffs: &'a mut HashMap<MapData, SocketCookie, Handoff>,
}

impl Leftovers {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            queues: object.map("SHUNT_QUEUES")?,
            suspects: HashSet::new(),
            next: None,
        })
    }

    /// A workload was withdrawn, and its connections go on.
    pub(super) fn released(&mut self) {
        self.next.get_or_insert_with(|| Instant::now() + LOOK);
    }

    pub(super) fn sweep(&mut self, others: Others<'_>) {
        if self.next.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.next = Some(Instant::now() + LOOK);
        let Others {
            sockets,
            peers,
            handoffs,
        } = others;
        // Half of them would make the others look gone.
        let Ok(alive) = sockets.keys().collect::<Result<HashSet<SocketCookie>, _>>() else {
            return;
        };
        let direct = handoffs.iter().filter_map(Result::ok);
        // The agent's flows are told of by the data plane, which removes them.
        let direct = direct.filter(|(_, handoff)| handoff.flags & Handoff::DIRECT != 0);
        let known = self.queues.keys().filter_map(Result::ok);
        let known = known.chain(direct.map(|(cookie, _)| cookie));
        let gone: HashSet<SocketCookie> = known.filter(|cookie| !alive.contains(cookie)).collect();
        let (twice, once) = gone
            .into_iter()
            .partition(|cookie| self.suspects.contains(cookie));
        self.suspects = once;
        let twice: HashSet<SocketCookie> = twice;
        for cookie in twice {
            // An end has an entry in some of them.
            let _ = self.queues.remove(&cookie);
            let _ = peers.remove(&cookie);
            let _ = handoffs.remove(&cookie);
        }
    }
}
