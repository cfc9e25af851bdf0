//! What `shunt check` says of iptables mode. Everything is tried for real, in namespaces made for it.

use shunt_core::sockets::Family;

use super::dead_man::DeadMan;
use super::tools::{Tools, Variant, elsewhere, legacy_names, version, which};
use super::tracking;
use crate::{Finding, InterceptError, return_path};

pub(super) fn probe() -> Vec<Finding> {
    let tools = Tools::find();
    let mut findings = vec![programs(&tools)];
    let Ok(tools) = tools else { return findings };
    findings.push(legacy_tables(&tools));
    let variant = if tools.has(Variant::Nft) {
        Variant::Nft
    } else {
        Variant::Legacy
    };
    findings.push(rules(&tools, "rules, IPv4", variant, Family::V4));
    findings.push(rules(&tools, "rules, IPv6", variant, Family::V6));
    findings.extend(dead_men(&tools, variant));
    findings.push(sockets(&tools, variant));
    findings.push(marks());
    findings.push(apart());
    findings
}

fn programs(tools: &Result<Tools, InterceptError>) -> Finding {
    let found = match tools {
        Ok(tools) => {
            let mut found = Vec::new();
            for variant in Variant::ALL {
                for family in super::FAMILIES {
                    let program = tools.program(variant, family, "-restore");
                    found.push(match which(&program).filter(|_| tools.has(variant)) {
                        Some(path) => {
                            format!(
                                "{} ({})",
                                path.display(),
                                version(&program).unwrap_or_default()
                            )
                        }
                        None => format!("{} variant for {family:?}: missing", variant.as_str()),
                    });
                }
            }
            found.join(", ")
        }
        Err(error) => error.chain(),
    };
    Finding {
        name: "iptables",
        ok: tools.is_ok(),
        required: true,
        found,
        meaning: "the rules are written with iptables-restore; nft unless legacy tables are in use"
            .into(),
    }
}

fn legacy_tables(tools: &Tools) -> Finding {
    let names: Vec<String> = super::FAMILIES
        .into_iter()
        .flat_map(|family| {
            legacy_names(family)
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    let (legacy, nft) = (tools.legacy_rules_here(), tools.nft_rules_here());
    Finding {
        name: "legacy tables",
        ok: true,
        required: false,
        found: match (legacy, names.is_empty()) {
            (_, true) => "none on the host".into(),
            (true, _) => format!("rules in legacy tables of the host ({})", names.join(", ")),
            (false, _) => format!("loaded on the host, without rules ({})", names.join(", ")),
        },
        meaning: if legacy && !nft {
            "rules are written with the legacy variant".into()
        } else {
            "rules are written with the nft variant where it works, unless a namespace has legacy rules".into()
        },
    }
}

/// A node without IPv6 is served all the same.
fn rules(tools: &Tools, name: &'static str, variant: Variant, family: Family) -> Finding {
    let result = tools.attempt(variant, family, None);
    let program = tools.program(variant, family, "-restore");
    Finding {
        name,
        ok: result.is_ok(),
        required: family == Family::V4,
        found: match result {
            Ok(()) => format!("{program} took mark, addrtype and REDIRECT"),
            Err(error) => error.chain(),
        },
        meaning: "tried in a namespace of its own: REDIRECT is what captures".into(),
    }
}

fn dead_men(tools: &Tools, variant: Variant) -> [Finding; 2] {
    let [recent, set] = DeadMan::ALL.map(|dead_man| {
        super::FAMILIES
            .into_iter()
            .map(|family| tools.attempt(variant, family, Some(dead_man)))
            .collect::<Result<Vec<()>, _>>()
    });
    let found = |result: &Result<Vec<()>, InterceptError>| match result {
        Ok(_) => "works for IPv4 and IPv6".to_owned(),
        Err(error) => error.chain(),
    };
    let recent_meaning = match (&recent, &set) {
        (Ok(_), _) => "connections go directly a second after the agent dies",
        (Err(_), Ok(_)) => "an ipset with timeout takes its place",
        (Err(_), Err(_)) => "only workloads with on_failure: closed can be served in iptables mode",
    };
    [
        Finding {
            name: "recent match",
            ok: recent.is_ok(),
            required: false,
            found: found(&recent),
            meaning: recent_meaning.into(),
        },
        Finding {
            name: "ipset match",
            ok: set.is_ok(),
            required: false,
            found: found(&set),
            meaning: "takes the place of the recent match where that is missing".into(),
        },
    ]
}

fn sockets(tools: &Tools, variant: Variant) -> Finding {
    let tried = super::FAMILIES.map(|family| tools.attempt_sockets(variant, family));
    let missing = tried.into_iter().find_map(Result::err);
    Finding {
        name: "socket match",
        ok: missing.is_none(),
        required: false,
        meaning: match missing {
            None => "connections to ports on which nobody listens are refused by the kernel, as without the agent",
            Some(_) => {
                "connections to ports on which nobody listens are accepted, then reset: probes take such ports for open"
            }
        }
        .into(),
        found: missing.map_or_else(|| "works for IPv4 and IPv6".into(), |error| error.chain()),
    }
}

fn marks() -> Finding {
    let tried = elsewhere(return_path::attempt);
    Finding {
        name: "routing by mark",
        ok: tried.is_ok(),
        required: false,
        found: match &tried {
            Ok(()) => "ip rule fwmark and the sysctls are there".into(),
            Err(error) => error.chain(),
        },
        meaning: if tried.is_ok() {
            "applications see their clients' own addresses".into()
        } else {
            "applications see the agent's address instead of their clients'".into()
        },
    }
}

fn apart() -> Finding {
    let tried = elsewhere(tracking::attempt);
    Finding {
        name: "table of our own",
        ok: tried.is_ok(),
        required: false,
        found: match &tried {
            Ok(()) => "nftables has owned tables, snat and tproxy".into(),
            Err(error) => error.chain(),
        },
        meaning: if tried.is_ok() {
            "captured flows outlive a flush of the rules; source ports are drawn at random".into()
        } else {
            "a flush of the rules breaks captured flows; two connections from one source port at once may take a second".into()
        },
    }
}
