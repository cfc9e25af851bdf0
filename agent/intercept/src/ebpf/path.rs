//! Which path a connection is meant to take, and why: what `explain` says beyond "captured".

use std::net::{IpAddr, SocketAddr};

use shunt_core::explain::Inquiry;
use shunt_core::flow::{DataPath, Direction};
use shunt_core::workload::Acceleration as Configured;
use shunt_ebpf_common::classes::{ClassKey, Verdict, Wish};
use shunt_ebpf_common::maps::{RuleKey, Workload};

use super::acceleration::Acceleration;
use super::{EbpfBackend, Enrolled, RuleEntry, trie};
use crate::Enrolment;
use crate::explain::served_by;

type Path = (DataPath, String);

fn copied(reason: impl Into<String>) -> Path {
    (DataPath::Copy, reason.into())
}

impl EbpfBackend {
    /// Of a steered connection.
    pub(super) fn path(&self, enrolment: &Enrolment, inquiry: &Inquiry) -> Path {
        let dialled = inquiry.destination;
        let port = dialled.port();
        if let Some(listener) = enrolment.captured.of(inquiry.direction).find(dialled) {
            return copied(served_by(listener));
        }
        if inquiry.direction == Direction::Outbound
            && let Some(reason) = self.listened(dialled)
        {
            return copied(reason);
        }
        if enrolment.spec.acceleration.of(port) == Configured::Off {
            return copied(format!("acceleration of port {port} is off"));
        }
        if inquiry.direction == Direction::Inbound {
            return copied(self.inbound(enrolment, port));
        }
        let Some(endpoints) = self.services.at(dialled) else {
            return self.path_to(enrolment, port, dialled);
        };
        let mut paths = endpoints
            .iter()
            .map(|endpoint| self.path_to(enrolment, port, *endpoint));
        let Some(first) = paths.next() else {
            return copied("the service has no endpoint");
        };
        match paths.find(|other| other.0 != first.0) {
            Some(other) => copied(format!(
                "it depends on the endpoint: {} ({}), or {} ({})",
                first.0.as_str(),
                first.1,
                other.0.as_str(),
                other.1
            )),
            None => first,
        }
    }

    fn inbound(&self, enrolment: &Enrolment, port: u16) -> String {
        let mut text = "a client that is not enrolled here is not accelerated".to_owned();
        if let (None, Ok(acceleration)) = (self.why_not(), &self.acceleration) {
            let configured = enrolment.spec.acceleration.of(port);
            let wish = self.possible(enrolment).in_kernel(configured);
            let id = enrolment.id.0;
            let (_, reason) = acceleration.classes.judge(wish, id, ClassKey::SERVER, port);
            text.push_str(&format!("; port {port} is {reason}"));
        }
        text
    }

    /// `dialled`: the port that the client asks for, perhaps of a service; `server`: where the connection goes.
    fn path_to(&self, enrolment: &Enrolment, dialled: u16, to: SocketAddr) -> Path {
        let configured = enrolment.spec.acceleration.of(dialled);
        let own = self.possible(enrolment).bits(configured);
        let server = match self.server(to.ip().to_canonical()) {
            Server::Elsewhere => None,
            Server::NotHooked => {
                return copied("the destination's workload is not in eBPF mode");
            }
            Server::Hooked(server) => Some(server),
        };
        if let Some(reason) = self.listened(to) {
            return copied(reason);
        }
        let theirs = server.map_or(Workload::DIRECT, |server| bits(server, to.port()));
        let is_direct = own & theirs & Workload::DIRECT != 0;
        let (None, Ok(acceleration)) = (self.why_not(), &self.acceleration) else {
            let reason = self.why_not().unwrap_or_default();
            return match is_direct {
                true => directly(&format!("its bytes by TCP: {reason}")),
                false => copied(format!("nothing is accelerated here: {reason}")),
            };
        };
        match server {
            None if is_direct => directly("its bytes by TCP to another node"),
            None => copied(
                "the agent stays in the way, and the destination is no workload that is in eBPF mode on this node",
            ),
            Some(server) => self.between(acceleration, enrolment, server, to.port(), is_direct),
        }
    }

    /// Of a connection between two hooked workloads of this node.
    fn between(
        &self,
        acceleration: &Acceleration,
        enrolment: &Enrolment,
        server: &Enrolled,
        port: u16,
        is_direct: bool,
    ) -> Path {
        let classes = &acceleration.classes;
        let configured = enrolment.spec.acceleration.of(port);
        let wish = self.possible(enrolment).in_kernel(configured);
        let (own, client) = if wish == Wish::Off && configured == Configured::Auto {
            // The programs were told `off`, as nothing can be learned.
            classes.judge(Wish::Auto, 0, ClassKey::CLIENT, 0)
        } else {
            classes.judge_clients(wish, enrolment.id.0, port)
        };
        let id = server.value.id;
        let (theirs, serves) =
            classes.judge(Wish::of(bits(server, port)), id, ClassKey::SERVER, port);
        if is_direct {
            let always = own == Verdict::Always && theirs == Verdict::Always;
            return match always {
                true if acceleration.is_bulk_service(id, port) => directly(&format!(
                    "its bytes by TCP, which is faster for what connections to port {port} bring; some are tried past it"
                )),
                true => directly(&format!(
                    "past the TCP stack: both workloads always accelerate port {port}"
                )),
                false => directly(&format!(
                    "its bytes by TCP: not both workloads always accelerate port {port}"
                )),
            };
        }
        let mut reason =
            format!("port {port}: the client's end is {client}; the server's end is {serves}");
        let may_leave = enrolment.spec.acceleration.handoff && server.handoff;
        let path = match own.accelerates() && theirs.accelerates() {
            true if may_leave => DataPath::Handoff,
            true => {
                reason.push_str("; one of the workloads says `handoff: false`");
                DataPath::Sockmap
            }
            false => DataPath::Copy,
        };
        (path, reason)
    }

    /// By the inbound listener of a workload of this node.
    fn listened(&self, to: SocketAddr) -> Option<String> {
        let Server::Hooked(server) = self.server(to.ip().to_canonical()) else {
            return None;
        };
        let listener = server.captured.inbound.find(to)?;
        Some(format!("at the server's side, {}", served_by(listener)))
    }

    /// As the hooks find it.
    fn server(&self, address: IpAddr) -> Server<'_> {
        let Some(owner) = self.neighbours.owner(address) else {
            return Server::Elsewhere;
        };
        let is_owner =
            |enrolled: &&Enrolled| enrolled.netns == owner && !enrolled.addresses.is_empty();
        let hooked = self.enrolled.values().find(is_owner);
        hooked.map_or(Server::NotHooked, Server::Hooked)
    }
}

fn directly(bytes: &str) -> Path {
    let reason = format!("nothing needs the agent in the way; {bytes}");
    (DataPath::Direct, reason)
}

enum Server<'a> {
    /// Not enrolled on this node.
    Elsewhere,
    NotHooked,
    Hooked(&'a Enrolled),
}

/// As the programs look it up.
fn bits(workload: &Enrolled, port: u16) -> u32 {
    let table = |(key, _): &&RuleEntry| key.data().table == RuleKey::ACCELERATION;
    let by_port: Vec<RuleEntry> = workload.rules.iter().filter(table).copied().collect();
    let wanted = RuleKey::acceleration(workload.value.rules, port);
    trie::longest(&by_port, &wanted).map_or(workload.value.flags, |(_, bits)| *bits)
}
