//! What systemd keeps of this supervisor for the next one, should it be killed (`FDSTORE=` of sd_notify(3)): listening
//! sockets, and where their connections were going. See docs/adr/0041.
//!
//! ```text
//! enrolled -> kept --- withdrawn, or the agent ends in order ---> forgotten
//!               '--- killed: nobody is steered there soon; who has come waits ---> the next start takes them
//!                      of a workload: who waits is served, then they are closed; it listens on others
//!                      of the node:   it listens on them
//!                      of nobody, or the start fails: closed
//! ```

mod names;

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shunt_core::flow::Direction;
use shunt_core::sockets::{ListenerSpec, Steering};
use shunt_core::workload::{Mode, WorkloadName, WorkloadSpec};
use shunt_intercept::inherited::inherit;
use shunt_intercept::netns::{Netns, netns_cookie};
use shunt_intercept::return_path::{self, Watched};
use shunt_intercept::{Enrolment, InterceptError, Listener};
use socket2::SockRef;

pub(super) use self::names::Kept;
use self::names::hash;
use super::Supervisor;
use super::drift::Health;
use super::enrolment::{Serving, claim, flows, hold, needs_proxy};

/// Of sd_listen_fds(3).
const FIRST: i32 = 3;
/// Of the environment. They say nothing to whoever comes after in the same process.
pub(super) const LISTEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A listening socket that nobody accepts from. Whoever waits there is reset when it is dropped, though others have the
/// same socket.
#[derive(Debug)]
struct Unattended(Option<OwnedFd>);

impl Unattended {
    fn attend(mut self) -> Option<OwnedFd> {
        self.0.take()
    }

    fn has_somebody(&self) -> bool {
        let Some(fd) = &self.0 else { return false };
        let mut asked = [PollFd::new(fd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut asked, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        if let Some(fd) = &self.0 {
            listen_no_more(fd);
        }
    }
}

/// Also where others have the same socket.
pub(super) fn listen_no_more(fd: &OwnedFd) {
    if let Err(error) = SockRef::from(fd).shutdown(Shutdown::Both) {
        tracing::debug!(%error, "a socket does not listen any more already");
    }
}

/// Where somebody may wait: one socket for each worker that there was.
#[derive(Debug)]
struct Queue {
    kept: Kept,
    /// The namespace's cookie.
    netns: u64,
    addr: SocketAddr,
    sockets: Vec<Unattended>,
}

impl Queue {
    fn has_somebody(&self) -> bool {
        self.sockets.iter().any(Unattended::has_somebody)
    }
}

/// What this process was started with. What nobody takes out of it is closed when it is dropped.
#[derive(Debug, Default)]
pub struct Stored {
    queues: Vec<Queue>,
    flows: Vec<UnixDatagram>,
    destinations: Option<OwnedFd>,
    names: BTreeMap<String, usize>,
}

impl Stored {
    /// Takes what systemd hands over, if this process was started by it. Once.
    pub fn take() -> Self {
        let mut stored = Self::default();
        let [process, count, names] = LISTEN.map(|name| std::env::var(name).unwrap_or_default());
        if process.parse() != Ok(std::process::id()) {
            return stored;
        }
        let count: usize = count.parse().unwrap_or(0);
        for (number, name) in (FIRST..).zip(names.split(':')).take(count) {
            if let Ok(fd) = inherit(number) {
                stored.add(name, fd);
            }
        }
        stored
    }

    fn add(&mut self, name: &str, fd: OwnedFd) {
        *self.names.entry(name.to_owned()).or_default() += 1;
        match Kept::parse(name) {
            Some(Kept::Destinations) => self.destinations = Some(fd),
            Some(Kept::Flows(_)) => self.flows.push(fd.into()),
            Some(kept) => self.add_socket(kept, fd),
            None => {}
        }
    }

    /// Its place is what the kernel says; who it was for, its name.
    fn add_socket(&mut self, kept: Kept, fd: OwnedFd) {
        let socket = SockRef::from(&fd);
        let listens = socket.is_listener().unwrap_or(false);
        let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket());
        let (true, Some(addr), Ok(netns)) = (listens, addr, netns_cookie(fd.as_fd())) else {
            return;
        };
        let is_same =
            |queue: &&mut Queue| (queue.kept, queue.netns, queue.addr) == (kept, netns, addr);
        let socket = Unattended(Some(fd));
        match self.queues.iter_mut().find(is_same) {
            Some(queue) => queue.sockets.push(socket),
            None => self.queues.push(Queue {
                kept,
                netns,
                addr,
                sockets: vec![socket],
            }),
        }
    }

    /// The queues of which this is true, where there is a socket for each worker. Others of which it is true are closed.
    fn take_those(&mut self, workers: usize, is_it: impl Fn(&Queue) -> bool) -> Vec<Queue> {
        let all = std::mem::take(&mut self.queues).into_iter();
        let (found, others): (Vec<Queue>, Vec<Queue>) = all.partition(is_it);
        self.queues = others;
        let whole = |queue: &Queue| queue.sockets.len() == workers;
        found.into_iter().filter(whole).collect()
    }

    /// The node's own.
    pub(super) fn take_node(
        &mut self,
        netns: &Netns,
        workers: usize,
    ) -> impl Iterator<Item = (SocketAddr, Vec<OwnedFd>)> + use<> {
        let found = self.take_those(workers, |queue| {
            queue.kept == Kept::node(queue.addr) && queue.netns == netns.cookie()
        });
        found
            .into_iter()
            .map(|queue| (queue.addr, attend(queue.sockets)))
    }

    /// Does somebody wait in one of this workload's listeners?
    pub(super) fn is_awaited_by(&self, name: &WorkloadName) -> bool {
        let hash = hash(name);
        let is_of =
            |queue: &&Queue| matches!(queue.kept, Kept::Listeners(_, _, known) if known == hash);
        self.queues.iter().filter(is_of).any(Queue::has_somebody)
    }

    /// The names of what says that flows of the dead agent's need its rules.
    pub(super) fn flows(&self) -> Vec<String> {
        let name = |flows: &UnixDatagram| {
            let addr = flows.local_addr().ok()?;
            let name = addr.as_abstract_name()?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        self.flows.iter().filter_map(name).collect()
    }

    pub(super) fn take_destinations(&mut self) -> Option<OwnedFd> {
        self.destinations.take()
    }

    /// Those of a workload in which somebody waits. The others are closed.
    fn take_of(
        &mut self,
        name: &WorkloadName,
        netns: &Netns,
        mode: Mode,
        workers: usize,
    ) -> Vec<Queue> {
        let hash = hash(name);
        let mut found = self.take_those(workers, |queue| {
            matches!(queue.kept, Kept::Listeners(of, _, known) if of == mode && known == hash)
                && queue.netns == netns.cookie()
        });
        found.retain(Queue::has_somebody);
        found
    }
}

fn attend(sockets: Vec<Unattended>) -> Vec<OwnedFd> {
    sockets.into_iter().filter_map(Unattended::attend).collect()
}

impl Supervisor {
    /// Has the listeners of one who is served now kept for the next start.
    pub(super) fn store(&mut self, serving: &Serving) {
        let of = hash(&serving.enrolment.spec.name);
        for kept in Kept::of_workload(of) {
            let is_it = |listener: &&Listener| {
                kept == Kept::Listeners(serving.mode, listener.spec.direction, of)
            };
            let listeners = serving.enrolment.listeners.iter().filter(is_it);
            let sockets: Vec<&OwnedFd> = listeners.flat_map(|listener| &listener.sockets).collect();
            if !sockets.is_empty() {
                self.manager.keep(&kept.to_string(), sockets);
            }
        }
        if let (Mode::Iptables, Some(flows)) = (serving.mode, &serving.flows)
            && let Ok(flows) = flows.try_clone()
        {
            let flows = OwnedFd::from(flows);
            self.manager.keep(&Kept::Flows(of).to_string(), [&flows]);
        }
        let name = Kept::Destinations.to_string();
        if serving.mode == Mode::Ebpf && !self.manager.keeps(&name) {
            self.manager.forget(&name);
            let maps = self.backends.destinations();
            self.manager.keep(&name, maps.first());
        }
    }

    /// He is not served any more.
    pub(super) fn store_no_more(&mut self, serving: &Serving) {
        for kept in Kept::of_workload(hash(&serving.enrolment.spec.name)) {
            self.manager.forget(&kept.to_string());
        }
    }

    /// The node's own listeners, those of the bootstrap.
    pub(super) fn store_node(&mut self) {
        for (addr, sockets) in self.served.sockets() {
            let name = Kept::node(*addr).to_string();
            if !self.manager.keeps(&name) {
                self.manager.keep(&name, sockets);
            }
        }
    }

    /// At an end in order: of workloads nothing is kept. The node's listeners are: where this is a restart, who comes
    /// meanwhile waits for the next agent; and where it is not, systemd forgets them.
    pub(super) fn store_only_node(&mut self) {
        for name in self.manager.kept().keys() {
            if !matches!(Kept::parse(name), Some(Kept::Node(_))) {
                self.manager.forget(name);
            }
        }
    }

    /// Whoever has come to workloads while no agent ran is served before anybody else.
    pub(super) fn serve_who_waited(&mut self, mut stored: Stored) {
        let specs = self.workloads.values().map(|known| known.spec.clone());
        let specs: Vec<WorkloadSpec> = specs.filter(|_| !stored.queues.is_empty()).collect();
        for spec in specs {
            let Ok(netns) = self.open_netns(&spec) else {
                continue;
            };
            for mode in [Mode::Ebpf, Mode::Iptables] {
                let queues = stored.take_of(&spec.name, &netns, mode, self.config.concurrency);
                if queues.is_empty() {
                    continue;
                }
                if let Err(error) = self.serve_queues(&spec, Arc::clone(&netns), mode, queues) {
                    let error = error.chain();
                    tracing::warn!(workload = %spec.name, error, "who has come while no agent ran is reset");
                }
            }
        }
        self.manager.recall(std::mem::take(&mut stored.names));
        self.store_node();
        self.manager.forget_recalled();
    }

    fn serve_queues(
        &mut self,
        spec: &WorkloadSpec,
        netns: Arc<Netns>,
        mode: Mode,
        queues: Vec<Queue>,
    ) -> Result<(), InterceptError> {
        let workload = self.next_id();
        let claim = hold(&netns, &claim(spec))?;
        let flows = hold(&netns, &flows(workload))?;
        let listeners = queues.into_iter().filter_map(|queue| {
            let Kept::Listeners(_, direction, _) = queue.kept else {
                return None;
            };
            let spec = ListenerSpec {
                workload,
                direction,
                steering: steering(mode, direction),
                addr: queue.addr,
            };
            let sockets = attend(queue.sockets);
            Some(Listener { spec, sockets })
        });
        let mark = self.config.delivery_mark();
        let path =
            || return_path::ensure(&netns, mark, mode).and_then(|()| Watched::open(&netns, mark));
        let return_path = (!spec.shares_netns()).then(path).and_then(Result::ok);
        let serving = Serving {
            return_path,
            enrolment: Enrolment {
                id: workload,
                spec: spec.clone(),
                addresses: netns.addresses()?,
                listeners: listeners.collect(),
                netns,
                dns: Vec::new(),
                needs_proxy: needs_proxy(&self.config),
                captured: Arc::clone(&self.served.captured),
            },
            ears: None,
            mode,
            mode_reason: String::new(),
            health: Health::new(),
            claim: Some(claim),
            flows: Some(flows),
        };
        tracing::info!(workload = %spec.name, "who has come while no agent ran is served now");
        self.introduce(&serving);
        self.leave_released(serving);
        Ok(())
    }
}

/// How connections come to a listener.
pub(super) fn steering(mode: Mode, direction: Direction) -> Steering {
    match (mode, direction) {
        (Mode::Ebpf, Direction::Outbound) => Steering::ConnectHook,
        (Mode::Ebpf, Direction::Inbound) => Steering::SkLookup,
        (Mode::Iptables, _) => Steering::Redirect,
    }
}
