//! Bringing one workload under the agent: claim its namespace, listen in it, steer into the listeners.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::sync::Arc;

use shunt_core::config::Config;
use shunt_core::flow::{Direction, direction};
use shunt_core::listener::Captured;
use shunt_core::sockets::{DnsListenerSpec, ListenerSpec, Steering};
use shunt_core::status::ListenerStatus;
use shunt_core::workload::{Mode, WorkloadId, WorkloadSpec};
use shunt_ebpf_common::scope::of_name;
use shunt_intercept::netns::Netns;
use shunt_intercept::return_path::{self, Watched};
use shunt_intercept::{
    DnsListener, Enrolment, InterceptError, Listener, cgroup, dns_listeners, outbound_listeners,
};

use super::backends::Backends;
use super::drift::Health;
use super::ears::Ears;
use super::inherited::Heirloom;
use super::store::steering;
use crate::ipc::EnrolledView;

/// Abstract unix sockets belong to the network namespace, and whoever holds one lets go by dying. The supervisor that
/// holds this one serves the namespace.
const CLAIM: &str = "shunt/agent";
/// The start of the names that say that flows go through the namespace, whoever steers it now: both processes hold one
/// per enrolment until its last flow has ended.
const FLOWS: &str = "shunt/flows";

/// A workload that is being steered.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) enrolment: Enrolment,
    /// `None`: the kernel has no room for one more.
    pub(super) ears: Option<Ears>,
    pub(super) mode: Mode,
    pub(super) mode_reason: String,
    /// Clients' own addresses can be used for delivery: by this.
    pub(super) return_path: Option<Watched>,
    pub(super) health: Health,
    /// Given up together with the listeners.
    pub(super) claim: Option<UnixDatagram>,
    /// Keeps others from taking away what flows need.
    pub(super) flows: Option<UnixDatagram>,
}

impl Serving {
    /// Tries the modes the workload may have, best first.
    pub(super) fn start(
        spec: &WorkloadSpec,
        id: WorkloadId,
        netns: Arc<Netns>,
        (config, ports): (&Config, Ports),
        captured: &Arc<Captured<String>>,
        backends: &mut Backends,
    ) -> Result<Self, InterceptError> {
        let heirloom = backends.inherited.of(&spec.name, &netns);
        let mut heirloom =
            heirloom.map_err(|error| InterceptError::io("share", "what was left", error))?;
        let held = |inherited: Option<UnixDatagram>, name: &str| match inherited {
            Some(held) => Ok(held),
            None => hold(&netns, name),
        };
        let claim = held(heirloom.claim.take(), &claim(spec))?;
        let flows = held(heirloom.flows.take(), &flows(id))?;
        let addresses = netns.addresses()?;
        backends.prepare(spec);
        let mut reasons = Vec::new();
        for &mode in candidates(spec)? {
            let backend = match backends.get(mode) {
                Ok(backend) => backend,
                Err(reason) => {
                    reasons.push(format!(
                        "{} does not work on this host: {reason}",
                        mode.as_str()
                    ));
                    continue;
                }
            };
            let shared = spec.shares_netns();
            let ports = if shared { Ports::Free } else { ports };
            let settings = (config, ports, &mut heirloom);
            let (listeners, elsewhere) = listen(&netns, id, mode, settings)?;
            let dns = dns_sockets(&netns, spec, id, mode, config.mark)?;
            let ears = Ears::of(&listeners, &dns)
                .inspect_err(|error| {
                    tracing::warn!(workload = %spec.name, %error, "listeners that are closed by others are not noticed");
                })
                .ok();
            let enrolment = Enrolment {
                id,
                spec: spec.clone(),
                netns: Arc::clone(&netns),
                addresses: addresses.clone(),
                listeners,
                dns,
                needs_proxy: needs_proxy(config),
                captured: Arc::clone(captured),
            };
            if let Err(error) = backend.install(&enrolment) {
                reasons.push(format!("{} failed: {}", mode.as_str(), error.chain()));
                continue;
            }
            let mark = config.delivery_mark();
            let path = || {
                return_path::ensure(&netns, mark, mode).and_then(|()| Watched::open(&netns, mark))
            };
            // Nothing is delivered to one that shares its namespace.
            let path = (!shared).then(path).transpose();
            let return_path = path.unwrap_or_else(|error| {
                let reason = error.chain();
                tracing::warn!(workload = %spec.name, reason, "clients' addresses cannot be kept");
                reasons.push(format!("clients' addresses are not kept: {reason}"));
                None
            });
            reasons.push(backend.describe(&enrolment));
            if !enrolment.dns.is_empty() {
                reasons.push("DNS queries are captured".into());
            }
            reasons.extend(elsewhere);
            backends.inherited.claimed(&spec.name);
            let mode_reason = reasons.join("; ");
            return Ok(Self {
                enrolment,
                ears,
                mode,
                mode_reason,
                return_path,
                health: Health::new(),
                claim: Some(claim),
                flows: Some(flows),
            });
        }
        Err(InterceptError::Unsupported(reasons.join("; ")))
    }

    pub(super) fn view(&self) -> EnrolledView {
        EnrolledView {
            id: self.enrolment.id,
            name: self.enrolment.spec.name.clone(),
            labels: self.enrolment.spec.labels.clone(),
            mode: self.mode,
            addresses: self.enrolment.addresses.clone(),
            owns_addresses: !self.enrolment.spec.shares_netns(),
            inbound: self.enrolment.spec.inbound.clone(),
            transparent: self.return_path.is_some(),
            handoff: self.enrolment.spec.acceleration.handoff,
        }
    }

    /// Reads its addresses again. True: they changed.
    pub(super) fn refresh_addresses(&mut self) -> bool {
        let workload = &self.enrolment.spec.name;
        match self.enrolment.netns.addresses() {
            Ok(addresses) if addresses != self.enrolment.addresses => {
                tracing::info!(%workload, ?addresses, "its addresses changed");
                self.enrolment.addresses = addresses;
                true
            }
            Ok(_) => false,
            Err(error) => {
                let error = error.chain();
                tracing::warn!(%workload, error, "cannot look at its addresses");
                false
            }
        }
    }

    pub(super) fn listener_status(&self) -> Vec<ListenerStatus> {
        let listeners = self.enrolment.listeners.iter();
        listeners
            .map(|listener| ListenerStatus {
                direction: direction::as_str(listener.spec.direction).to_owned(),
                address: listener.spec.addr.to_string(),
            })
            .collect()
    }

    /// Duplicates for the data plane.
    pub(super) fn listener_fds(listener: &Listener) -> io::Result<Vec<OwnedFd>> {
        listener
            .sockets
            .iter()
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect()
    }
}

/// What only the proxy can do for connections.
pub(super) fn needs_proxy(config: &Config) -> Option<&'static str> {
    (!config.timeouts.idle.is_zero()).then_some("timeouts.idle is set")
}

pub(super) fn flows(id: WorkloadId) -> String {
    format!("{FLOWS}/{}/{}", std::process::id(), id.0)
}

/// How whoever serves this workload says so. Of a namespace that workloads share, each is served for itself.
pub(super) fn claim(spec: &WorkloadSpec) -> String {
    match spec.cgroup.as_ref().filter(|_| spec.shares_netns()) {
        None => CLAIM.to_owned(),
        // An abstract name has 107 bytes, a path may have more.
        Some(named) => {
            let path = cgroup::of_workload(spec).unwrap_or_else(|_| named.clone());
            format!("{CLAIM}/{:x}", of_name(&path.display().to_string()))
        }
    }
}

/// The modes to try, best first.
fn candidates(spec: &WorkloadSpec) -> Result<&'static [Mode], InterceptError> {
    let all = Backends::candidates(spec.mode);
    if !spec.shares_netns() {
        return Ok(all);
    }
    match all.split_first() {
        Some((Mode::Ebpf, _)) => Ok(&[Mode::Ebpf]),
        _ => Err(InterceptError::Unsupported(
            "a workload in the agent's own namespace needs eBPF mode: rules there are everybody's; \
             say `mode: ebpf`, or give it a namespace of its own"
                .into(),
        )),
    }
}

pub(super) fn hold(netns: &Netns, name: &str) -> Result<UnixDatagram, InterceptError> {
    let bind =
        || UnixAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
    match netns.enter(bind).and_then(|bound| bound) {
        Ok(held) => Ok(held),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(InterceptError::io(
            "claim (another agent serves it)",
            netns.path().display(),
            error,
        )),
        Err(error) => Err(InterceptError::io("claim", netns.path().display(), error)),
    }
}

/// Does a living agent serve this namespace, or do flows of one go through it, `besides` those of these names? When that
/// cannot be told, yes.
pub(crate) fn is_in_use(netns: &Netns, besides: &[String]) -> bool {
    let held = |table: String| {
        table
            .lines()
            .filter_map(|line| line.split_once(" @").map(|(_, name)| name))
            .filter(|name| !besides.iter().any(|known| known == name))
            .any(|name| name.starts_with(CLAIM) || name.starts_with(FLOWS))
    };
    let table = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/unix"));
    table.and_then(|table| table).map_or(true, held)
}

/// Which ports the listeners may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    Configured,
    /// Any free one where the configured one is taken.
    Any,
    /// Outbound listeners alone, on any free ports: others are in the namespace too.
    Free,
}

/// The agent's listeners, by direction and family, and for people where they are not as configured. IPv6 is left out
/// where the namespace has none.
fn listen(
    netns: &Netns,
    id: WorkloadId,
    mode: Mode,
    (config, ports, heirloom): (&Config, Ports, &mut Heirloom),
) -> Result<(Vec<Listener>, Vec<String>), InterceptError> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    // Netfilter redirects to the interface's address; sk_lookup finds a listener wherever it is bound.
    let inbound: [IpAddr; 2] = match mode {
        Mode::Ebpf => loopback,
        Mode::Iptables => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let mut listeners = Vec::new();
    let mut elsewhere = Vec::new();
    // The configured port first, then any that are free.
    let mut outbound = vec![0; outbound_listeners(mode)];
    let mut to_configured = vec![config.ports.inbound];
    match ports {
        Ports::Configured | Ports::Any => outbound[0] = config.ports.outbound,
        Ports::Free => to_configured.clear(),
    }
    for (direction, addresses, numbers) in [
        (Direction::Outbound, loopback, outbound),
        (Direction::Inbound, inbound, to_configured),
    ] {
        let wanted = addresses
            .into_iter()
            .flat_map(|address| numbers.iter().map(move |port| (address, *port)));
        for (address, port) in wanted {
            let wanted = SocketAddr::new(address, port);
            let mut at = |addr| match heirloom.listener(direction, addr, config.concurrency) {
                Some(listening) => Ok(listening),
                None => netns.listen(addr, config.mark, config.concurrency),
            };
            let listening = match at(wanted) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && ports == Ports::Any => {
                    at(SocketAddr::new(address, 0)).inspect(|(instead, _)| {
                        let reason = format!("{wanted} is taken by an application: {instead} instead");
                        tracing::warn!(netns = %netns.path().display(), reason, "the listener is elsewhere");
                        elsewhere.push(reason);
                    })
                }
                listening => listening,
            };
            match listening {
                Ok((addr, sockets)) => listeners.push(Listener {
                    spec: ListenerSpec {
                        workload: id,
                        direction,
                        steering: steering(mode, direction),
                        addr,
                    },
                    sockets,
                }),
                Err(error) if address.is_ipv6() && no_such_family(&error) => {
                    tracing::debug!(netns = %netns.path().display(), %error, "no IPv6 here");
                }
                Err(error) => {
                    let object = format!("{wanted} in {}", netns.path().display());
                    return Err(InterceptError::io("listen on", object, error));
                }
            }
        }
    }
    Ok((listeners, elsewhere))
}

/// Where the workload's queries are taken, if it wants them captured. IPv6 is left out where the namespace has none.
fn dns_sockets(
    netns: &Netns,
    spec: &WorkloadSpec,
    workload: WorkloadId,
    mode: Mode,
    mark: u32,
) -> Result<Vec<DnsListener>, InterceptError> {
    let mut sockets = Vec::new();
    if !spec.dns.capture {
        return Ok(sockets);
    }
    let steering = match mode {
        Mode::Ebpf => Steering::ConnectHook,
        Mode::Iptables => Steering::Redirect,
    };
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        for slot in 0..dns_listeners(mode) {
            match netns.take_datagrams(SocketAddr::new(address, 0), mark) {
                Ok((addr, socket)) => {
                    let spec = DnsListenerSpec {
                        workload,
                        steering,
                        addr,
                        slot,
                    };
                    sockets.push(DnsListener { spec, socket });
                }
                Err(error) if address.is_ipv6() && no_such_family(&error) => {}
                Err(error) => {
                    let object = format!("{address} in {}", netns.path().display());
                    return Err(InterceptError::io("take queries on", object, error));
                }
            }
        }
    }
    Ok(sockets)
}

fn no_such_family(error: &io::Error) -> bool {
    let codes = [nix::libc::EADDRNOTAVAIL, nix::libc::EAFNOSUPPORT];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}
