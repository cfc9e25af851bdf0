//! What would happen to a connection: the question goes to whoever steers the workload.

use std::net::{IpAddr, SocketAddr};

use shunt_core::address::canonical;
use shunt_core::explain::{Explanation, Inquiry, Outcome, PolicyAnswer, ServiceAnswer, rule};
use shunt_core::flow::Direction;
use shunt_core::policy::{Decision, Identity};
use shunt_core::sockets::Family;
use shunt_core::status::StatusMode;
use shunt_core::workload::{Mode, called};

use super::Supervisor;
use super::enrolment::Serving;
use super::lifecycle::{Phase, Workload};
use crate::ipc::Unexplained;

impl Supervisor {
    /// # Errors
    /// There is no such workload, or the kernel could not be asked.
    pub(super) fn explain(&mut self, inquiry: &Inquiry) -> Result<Explanation, Unexplained> {
        let all = self.workloads.values();
        let workload = called(all, |workload| &workload.spec.name, &inquiry.workload)
            .map_err(Unexplained::Unknown)?;
        let serving = match &workload.phase {
            Phase::Serving { serving, .. } => serving,
            Phase::Waiting { reason, .. } => return Ok(not_served(workload, inquiry, reason)),
        };
        let backend = self
            .backends
            .get(serving.mode)
            .map_err(Unexplained::Failed)?;
        let mut answer = backend
            .explain(&serving.enrolment, inquiry)
            .map_err(|error| Unexplained::Failed(error.chain()))?;
        answer.mode = match serving.mode {
            Mode::Ebpf => StatusMode::Ebpf,
            Mode::Iptables => StatusMode::Iptables,
        };
        answer.mode_reason.clone_from(&serving.mode_reason);
        if answer.outcome == Outcome::Captured {
            self.say_traffic(serving, inquiry, &mut answer);
        }
        Ok(answer)
    }

    /// Where the agent sends it, and whether policy lets it.
    fn say_traffic(&self, serving: &Serving, inquiry: &Inquiry, answer: &mut Explanation) {
        let dialled = canonical(inquiry.destination);
        let policy = self.backends.policy();
        if inquiry.direction == Direction::Inbound {
            let client = inquiry.client.map(|client| client.to_canonical());
            let client = client.unwrap_or_else(|| Inquiry::somebody(dialled));
            let peer = self.owner(client);
            let decision = policy.decide(
                Direction::Inbound,
                identity(serving),
                peer.map(identity),
                client,
                dialled.port(),
            );
            let said = said((Direction::Inbound, decision), dialled, serving, peer);
            answer.policy.push(said);
            return;
        }
        let mut services = self.config.services.iter();
        let service = services.find(|service| service.addresses.contains(&dialled));
        answer.service = service.map(|service| ServiceAnswer {
            name: service.name.clone(),
            balance: service.balance,
            endpoints: service.endpoints_of(Family::of(dialled)).collect(),
        });
        let servers = match &answer.service {
            Some(service) => service.endpoints.clone(),
            None => vec![dialled],
        };
        let addresses = &serving.enrolment.addresses;
        for server in servers {
            let peer = self.owner(server.ip());
            let judgement = policy.judge(identity(serving), addresses, server, peer.map(identity));
            let outbound = (Direction::Outbound, judgement.outbound);
            answer.policy.push(said(outbound, server, serving, peer));
            if let Some((inbound, peer)) = judgement.inbound.zip(peer) {
                let inbound = (Direction::Inbound, inbound);
                answer
                    .policy
                    .push(said(inbound, server, peer, Some(serving)));
            }
        }
    }

    /// The workload that alone has this address, as the data plane finds it.
    fn owner(&self, address: IpAddr) -> Option<&Serving> {
        let has = |serving: &&Serving| {
            let enrolment = &serving.enrolment;
            !enrolment.spec.shares_netns() && enrolment.addresses.contains(&address)
        };
        let mut owners = self
            .workloads
            .values()
            .filter_map(Workload::serving)
            .filter(has);
        owners.next().filter(|_| owners.next().is_none())
    }
}

fn identity(serving: &Serving) -> Identity<'_> {
    serving.enrolment.spec.identity()
}

fn said(
    (direction, decision): (Direction, Decision),
    server: SocketAddr,
    about: &Serving,
    peer: Option<&Serving>,
) -> PolicyAnswer {
    PolicyAnswer {
        server,
        direction,
        workload: about.enrolment.spec.name.to_string(),
        peer: peer.map(|peer| peer.enrolment.spec.name.to_string()),
        action: decision.action,
        rule: decision.rule_name(),
    }
}

fn not_served(workload: &Workload, inquiry: &Inquiry, reason: &str) -> Explanation {
    let mut answer = Explanation::begin(&workload.spec.name, inquiry, StatusMode::Off);
    answer.mode_reason = reason.to_owned();
    answer.rule = rule::NOT_ENROLLED.to_owned();
    answer.step(rule::NOT_ENROLLED, true, reason);
    answer
}
