//! The user-space half of `LISTENING`. The hooks count listeners that come and go in an enrolled cgroup; looking at
//! the sockets there are adds those from before the enrolment or from other cgroups, and mends what counting missed.

use std::collections::{BTreeMap, HashMap, VecDeque};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use shunt_core::workload::WorkloadId;
use shunt_ebpf_common::maps::ListeningPort;

use super::object::{NOEXIST, exists};
use crate::InterceptError;
use crate::listening::ListeningSockets;
use crate::netns::Netns;

/// Namespaces looked at in one go, some 100 us each: the kernel goes through the listeners of all. The hooks count; looking is for what they cannot see, and its cost
/// must not grow with the number of workloads.
const AT_ONCE: usize = 2;

/// Listeners per port.
type Ports = BTreeMap<u16, u32>;

pub(super) struct ListeningPorts {
    map: BpfHashMap<MapData, ListeningPort, u32>,
    namespaces: HashMap<WorkloadId, Namespace>,
    /// Whose turn it is, first.
    turns: VecDeque<WorkloadId>,
}

struct Namespace {
    sockets: ListeningSockets,
    /// What was wrong at the last look.
    wrong: Vec<Wrong>,
}

/// A port whose count in the map is not what the sockets say. A look may be older than a fresh change, so this is
/// mended only when the next look finds the very same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrong {
    port: u16,
    counted: u32,
    seen: u32,
}

impl ListeningPorts {
    pub(super) fn new(map: BpfHashMap<MapData, ListeningPort, u32>) -> Self {
        Self {
            map,
            namespaces: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, id: WorkloadId, netns: &Netns) -> Result<(), InterceptError> {
        let namespace = Namespace {
            sockets: ListeningSockets::open(netns)?,
            wrong: Vec::new(),
        };
        self.namespaces.insert(id, namespace);
        self.turns.push_back(id);
        // The hooks count nothing before they are there.
        self.look(id, &Ports::new());
        Ok(())
    }

    pub(super) fn remove(&mut self, id: WorkloadId) {
        self.namespaces.remove(&id);
        self.turns.retain(|turn| *turn != id);
        for port in self.counted().remove(&id).unwrap_or_default().into_keys() {
            let _ = self.map.remove(&key(id, port));
        }
    }

    /// What the map says of a port; `None`: nobody listens.
    pub(super) fn count(&self, key: &ListeningPort) -> Result<Option<u32>, MapError> {
        match self.map.get(key, 0) {
            Ok(count) => Ok(Some(count)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at the sockets of the workloads whose turn it is.
    pub(super) fn look_at_some(&mut self) {
        let mut counted = self.counted();
        for _ in 0..AT_ONCE.min(self.turns.len()) {
            self.turns.rotate_left(1);
            if let Some(&id) = self.turns.back() {
                self.look(id, &counted.remove(&id).unwrap_or_default());
            }
        }
        // A listener that opened while its workload was released.
        counted.retain(|id, _| !self.namespaces.contains_key(id));
        for (id, ports) in counted {
            for port in ports.into_keys() {
                let _ = self.map.remove(&key(id, port));
            }
        }
    }

    /// The whole map, by workload: one pass however many there are.
    fn counted(&self) -> HashMap<WorkloadId, Ports> {
        let mut counted: HashMap<WorkloadId, Ports> = HashMap::new();
        for (key, listeners) in self.map.iter().flatten() {
            let port = u16::try_from(key.port).unwrap_or_default();
            let ports = counted.entry(WorkloadId(key.workload)).or_default();
            ports.insert(port, listeners);
        }
        counted
    }

    fn look(&mut self, id: WorkloadId, counted: &Ports) {
        let Some(namespace) = self.namespaces.get_mut(&id) else {
            return;
        };
        let seen = match namespace.sockets.ports() {
            Ok(seen) => seen,
            Err(error) => {
                let error = error.chain();
                tracing::debug!(workload = id.0, error, "cannot look at listening sockets");
                return;
            }
        };
        for (&port, listeners) in seen.iter().filter(|(port, _)| !counted.contains_key(port)) {
            // Only when still absent: the hook may have counted it meanwhile.
            match self.map.insert(key(id, port), listeners, NOEXIST) {
                Ok(()) => {}
                Err(error) if exists(&error) => {}
                Err(error) => {
                    tracing::error!(workload = id.0, port, %error, "inbound connections to this port are not captured");
                }
            }
        }
        let wrong = compare(counted, &seen);
        for wrong in wrong.iter().filter(|wrong| namespace.wrong.contains(wrong)) {
            let key = key(id, wrong.port);
            let _ = if wrong.seen == 0 {
                self.map.remove(&key)
            } else {
                self.map.insert(key, wrong.seen, 0)
            };
        }
        namespace.wrong = wrong;
    }
}

fn compare(counted: &Ports, seen: &Ports) -> Vec<Wrong> {
    counted
        .iter()
        .map(|(&port, &counted)| Wrong {
            port,
            counted,
            seen: seen.get(&port).copied().unwrap_or(0),
        })
        .filter(|port| port.counted != port.seen)
        .collect()
}

fn key(id: WorkloadId, port: u16) -> ListeningPort {
    ListeningPort {
        workload: id.0,
        port: u32::from(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_the_map_can_be_wrong() {
        let counted = Ports::from([(80, 2), (81, 1), (82, 1)]);
        let seen = Ports::from([(80, 1), (82, 1), (83, 1)]);
        let wrong = |port, counted, seen| Wrong {
            port,
            counted,
            seen,
        };
        assert_eq!(compare(&counted, &seen), [wrong(80, 2, 1), wrong(81, 1, 0)]);
    }
}
