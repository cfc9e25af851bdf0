//! Steers connections of enrolled workloads into the agent, and knows where they were going.
//!
//! Everything here that changes the host runs in the supervisor. The data plane uses only [`original_dst`].
//!
//! | module | what |
//! |---|---|
//! | [`netns`] | enter a network namespace, make sockets there, read its addresses |
//! | [`ebpf`] | connect hooks, `sk_lookup` and their maps |
//! | [`iptables`] | REDIRECT rules behind a dead-man switch |
//! | [`return_path`] | lets answers to a borrowed source address come back to the agent |
//! | [`drift`], [`watch`] | what others did to any of these, and what the kernel announces of it |
//! | [`foreign`] | who else works at the same places |
//! | [`strays`] | processes that the hooks do not see |
//! | [`memory`] | giving back what is freed |
//! | [`original_dst`] | where an accepted connection was going |

mod btf;
pub mod cgroup;
pub mod drift;
pub mod ebpf;
mod explain;
pub mod foreign;
pub mod inherited;
pub mod iptables;
mod listening;
mod local;
pub mod memory;
mod netlink;
pub mod netns;
pub mod original_dst;
pub mod return_path;
pub mod scheduling;
pub mod strays;
pub mod watch;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::flow::Direction;
use shunt_core::listener::Captured;
use shunt_core::sockets::{DnsListenerSpec, Family, ListenerSpec};
use shunt_core::workload::{Mode, WorkloadId, WorkloadSpec};
use thiserror::Error;

use crate::drift::{Drift, Look};
use crate::netns::Netns;

/// One way of steering. All methods are called from the supervisor's one thread, and none blocks for long.
pub trait Backend {
    fn mode(&self) -> Mode;

    /// Starts steering; the listeners are open already. Installing twice is installing once.
    ///
    /// # Errors
    /// Nothing stays installed.
    fn install(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError>;

    /// Brings policy, addresses and whatever else changed into force for new connections.
    ///
    /// # Errors
    /// What was in force stays in force.
    fn update(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError>;

    /// New connections go directly from now on; those under way are not touched. Also for a workload whose
    /// namespace or cgroup is gone, or which was never installed.
    ///
    /// # Errors
    /// Something of ours may be left in the namespace.
    fn release(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError>;

    /// The last flow of a released workload has ended: nothing of it, nor of an earlier enrolment of its namespace, is
    /// needed any more.
    ///
    /// # Errors
    /// Something of ours may be left in the namespace.
    fn finish(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError>;

    /// What of an installed workload is not in the kernel as it was put there. Changes nothing.
    ///
    /// # Errors
    /// It cannot be told.
    fn inspect(&mut self, enrolment: &Enrolment, look: Look) -> Result<Vec<Drift>, InterceptError>;

    /// Puts back what [`Backend::inspect`] misses, and nothing else. Flows under way are not touched.
    ///
    /// # Errors
    /// Something is still missing.
    fn repair(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError>;

    /// How an installed workload is steered, for people: by which variant, where attached.
    fn describe(&self, enrolment: &Enrolment) -> String;

    /// What an installed workload has to do without on this host, and why, for people.
    fn shortcoming(&self, _enrolment: &Enrolment) -> Option<String> {
        None
    }

    /// Whom a query was for that was led from `client` to `listener` in this namespace.
    ///
    /// # Errors
    /// Nobody knows, or the data plane knows by itself.
    fn resolver(
        &mut self,
        _netns: &Arc<Netns>,
        _listener: SocketAddr,
        _client: SocketAddr,
    ) -> Result<SocketAddr, InterceptError> {
        Err(InterceptError::Unsupported(
            "a place for queries stands for one resolver here".into(),
        ))
    }

    /// What would happen to a connection of this workload, judged by what is in the kernel now.
    ///
    /// # Errors
    /// The kernel could not be asked, or there can be no such connection.
    fn explain(
        &self,
        enrolment: &Enrolment,
        inquiry: &Inquiry,
    ) -> Result<Explanation, InterceptError>;

    /// Called about every 250 ms while the data plane answers. Without it, new connections go directly
    /// (or are refused, where the workload says so) after a second.
    fn keep_alive(&mut self);
}

/// How many outbound listeners of each family are useful. In eBPF mode all captured connections go to loopback, where
/// one listener has room for the ephemeral range only; in iptables mode each keeps its destination.
pub const fn outbound_listeners(mode: Mode) -> usize {
    match mode {
        Mode::Ebpf => shunt_ebpf_common::maps::Workload::OUTBOUND_PORTS,
        Mode::Iptables => 1,
    }
}

/// How many sockets for queries each family has. In eBPF mode each stands for one resolver; in iptables mode connection
/// tracking knows which one was meant.
pub const fn dns_listeners(mode: Mode) -> usize {
    match mode {
        Mode::Ebpf => shunt_ebpf_common::dns::DnsListeners::SLOTS,
        Mode::Iptables => 1,
    }
}

/// A workload being steered.
#[derive(Debug)]
pub struct Enrolment {
    pub id: WorkloadId,
    pub spec: WorkloadSpec,
    pub netns: Arc<Netns>,
    /// The namespace's addresses, without loopback and link-local ones.
    pub addresses: Vec<IpAddr>,
    pub listeners: Vec<Listener>,
    /// Where its queries are taken; empty: they go directly.
    pub dns: Vec<DnsListener>,
    /// Why no connection may go past the agent, as `timeouts.idle is set`.
    pub needs_proxy: Option<&'static str>,
    /// The names of the configuration's listeners which serve captured connections of this workload.
    pub captured: Arc<Captured<String>>,
}

impl Enrolment {
    /// By which the hooks know it.
    pub(crate) fn key(&self) -> u64 {
        ebpf::workload_key(&self.spec, &self.netns)
    }

    /// The first of that direction and family.
    pub fn listener(&self, direction: Direction, family: Family) -> Option<&Listener> {
        self.all(direction, family).next()
    }

    /// The port of that listener, as bound.
    pub fn port(&self, direction: Direction, family: Family) -> Option<u16> {
        self.ports(direction, family).next()
    }

    /// The ports of all such listeners, as bound.
    pub fn ports(&self, direction: Direction, family: Family) -> impl Iterator<Item = u16> {
        self.all(direction, family)
            .map(|listener| listener.spec.addr.port())
    }

    fn all(&self, direction: Direction, family: Family) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(move |listener| {
            listener.spec.direction == direction && Family::of(listener.spec.addr) == family
        })
    }
}

/// A listening address of the agent in a workload's namespace: one `SO_REUSEPORT` socket per worker.
#[derive(Debug)]
pub struct Listener {
    pub spec: ListenerSpec,
    pub sockets: Vec<OwnedFd>,
}

/// A socket of the agent in a workload's namespace that takes queries.
#[derive(Debug)]
pub struct DnsListener {
    pub spec: DnsListenerSpec,
    pub socket: OwnedFd,
}

/// The marks of the agent's own sockets, see [`shunt_core::config::Config::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub upstream: u32,
    pub delivery: u32,
}

/// One thing that `shunt check` looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub name: &'static str,
    pub ok: bool,
    /// Without it the mode does not work at all.
    pub required: bool,
    /// The evidence.
    pub found: String,
    /// What follows from it.
    pub meaning: String,
}

#[derive(Debug, Error)]
pub enum InterceptError {
    /// `what` could not be done to `object`.
    #[error("cannot {what} {object}")]
    Io {
        what: &'static str,
        object: String,
        source: io::Error,
    },
    /// An external program said no.
    #[error("{program} failed: {message}")]
    Program { program: String, message: String },
    /// The host lacks something; the text says what, why it is needed, and what happens instead.
    #[error("{0}")]
    Unsupported(String),
    #[error("{what}: {message}")]
    Ebpf { what: String, message: String },
}

impl InterceptError {
    pub fn io(what: &'static str, object: impl ToString, source: io::Error) -> Self {
        Self::Io {
            what,
            object: object.to_string(),
            source,
        }
    }

    /// The whole chain in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}
