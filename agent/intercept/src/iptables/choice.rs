//! Which variant and which dead-man switch serve a namespace, and why. Tried for real once, then remembered.

use std::fmt::Write;

use nix::net::if_::InterfaceFlags;
use shunt_core::sockets::Family;
use shunt_core::workload::OnFailure;

use super::dead_man::DeadMan;
use super::tools::{Tools, Variant};
use crate::InterceptError;
use crate::netns::Netns;

/// What the rules of one namespace are made with.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) variant: Variant,
    /// `None`: the host has none, and the workload does without.
    pub(super) dead_man: Option<DeadMan>,
    /// There is a match for listening sockets: only ports that are open are captured.
    pub(super) asks_sockets: bool,
    /// For people.
    pub(super) reason: String,
}

/// What this host can do.
#[derive(Debug)]
pub(super) struct Abilities {
    /// The host's own rules are in legacy tables, and only there.
    legacy_host: bool,
    nft: Option<Ability>,
    legacy: Option<Ability>,
    /// Instead of the best that works.
    wanted: Option<DeadMan>,
}

#[derive(Clone, Debug)]
struct Ability {
    /// Why not.
    refusal: Option<String>,
    dead_man: Option<DeadMan>,
    asks_sockets: bool,
}

impl Abilities {
    pub(super) fn new(tools: &Tools, wanted: Option<DeadMan>) -> Self {
        let legacy_host = tools.legacy_rules_here() && !tools.nft_rules_here();
        Self {
            legacy_host,
            nft: None,
            legacy: None,
            wanted,
        }
    }

    /// Where rules are in legacy tables, ours must be there too: the two do not see each other.
    pub(super) fn choose(
        &mut self,
        tools: &Tools,
        netns: &Netns,
        on_failure: OnFailure,
    ) -> Result<Choice, InterceptError> {
        let legacy_namespace = netns.enter(|| tools.legacy_rules_here()).unwrap_or(false);
        let (first, because) = if legacy_namespace {
            (Variant::Legacy, "the namespace has rules in legacy tables")
        } else if self.legacy_host {
            (Variant::Legacy, "the host's own rules are in legacy tables")
        } else {
            (Variant::Nft, "nobody uses legacy tables here")
        };
        let second = if first == Variant::Nft {
            Variant::Legacy
        } else {
            Variant::Nft
        };
        let mut reason = String::new();
        for (variant, because) in [(first, because), (second, "the other does not work here")] {
            let ability = self.ability(tools, variant);
            match &ability.refusal {
                Some(refusal) => {
                    let _ = write!(reason, "iptables {}: {refusal}; ", variant.as_str());
                }
                None => return ability.choice(variant, because, reason, on_failure),
            }
        }
        Err(InterceptError::Unsupported(
            reason.trim_end_matches("; ").to_owned(),
        ))
    }

    /// The same variant, for a changed workload.
    pub(super) fn stay(
        &mut self,
        tools: &Tools,
        variant: Variant,
        on_failure: OnFailure,
    ) -> Result<Choice, InterceptError> {
        let ability = self.ability(tools, variant);
        ability.choice(
            variant,
            "the rules were there already",
            String::new(),
            on_failure,
        )
    }

    fn ability(&mut self, tools: &Tools, variant: Variant) -> Ability {
        let wanted = self.wanted;
        let slot = match variant {
            Variant::Nft => &mut self.nft,
            Variant::Legacy => &mut self.legacy,
        };
        slot.get_or_insert_with(|| examine(tools, variant, wanted))
            .clone()
    }
}

impl Ability {
    fn choice(
        &self,
        variant: Variant,
        because: &str,
        mut reason: String,
        on_failure: OnFailure,
    ) -> Result<Choice, InterceptError> {
        let dead_man = match on_failure {
            OnFailure::Closed => self.dead_man,
            OnFailure::Open => Some(self.dead_man.ok_or_else(no_dead_man)?),
        };
        let switch = dead_man.map_or("none, on_failure is closed", DeadMan::as_str);
        let _ = write!(
            reason,
            "iptables {}: {because}; dead-man switch: {switch}",
            variant.as_str()
        );
        if !self.asks_sockets {
            reason.push_str(
                "; no `socket` match: connections to closed ports are accepted, then reset",
            );
        }
        Ok(Choice {
            variant,
            dead_man,
            asks_sockets: self.asks_sockets,
            reason,
        })
    }
}

fn examine(tools: &Tools, variant: Variant, wanted: Option<DeadMan>) -> Ability {
    if !tools.has(variant) {
        return Ability {
            refusal: Some("not installed".into()),
            dead_man: None,
            asks_sockets: false,
        };
    }
    // The matches and targets are the same for IPv6; whether it exists is a question to each namespace.
    let works = |dead_man| tools.attempt(variant, Family::V4, dead_man);
    let mut candidates = DeadMan::ALL
        .into_iter()
        .filter(|candidate| wanted.is_none_or(|wanted| wanted == *candidate));
    let asks_sockets = tools.attempt_sockets(variant, Family::V4).is_ok();
    match candidates.find(|candidate| works(Some(*candidate)).is_ok()) {
        Some(dead_man) => Ability {
            refusal: None,
            dead_man: Some(dead_man),
            asks_sockets,
        },
        None => Ability {
            refusal: works(None).err().map(|error| error.chain()),
            dead_man: None,
            asks_sockets,
        },
    }
}

fn no_dead_man() -> InterceptError {
    InterceptError::Unsupported(
        "this kernel has neither the `recent` match (xt_recent) nor the `set` match (xt_set, ip_set_hash_net): \
         without one of them connections could not go directly when the agent dies, so only workloads with \
         on_failure: closed can be served in iptables mode; load one of the modules, or use eBPF mode"
            .into(),
    )
}

/// True also where it cannot be asked.
pub(super) fn loopback_is_up(netns: &Netns) -> bool {
    let up = || {
        let mut interfaces = nix::ifaddrs::getifaddrs().ok()?;
        let lo = interfaces.find(|interface| interface.interface_name == "lo")?;
        Some(lo.flags.contains(InterfaceFlags::IFF_UP))
    };
    netns.enter(up).ok().flatten().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_switch_only_closed_can_be_served() {
        let ability = Ability {
            refusal: None,
            dead_man: None,
            asks_sockets: true,
        };
        let choice =
            |on_failure| ability.choice(Variant::Nft, "because", String::new(), on_failure);
        let closed = choice(OnFailure::Closed).expect("needs no switch");
        assert_eq!(closed.dead_man, None);
        assert_eq!(
            closed.reason,
            "iptables nft: because; dead-man switch: none, on_failure is closed"
        );
        let open = choice(OnFailure::Open).expect_err("needs one");
        assert!(
            matches!(&open, InterceptError::Unsupported(text) if text.contains("on_failure: closed"))
        );
    }
}
