//! The list of policy rules.

use super::node::{Field, Mapping};
use super::{values, workloads};
use crate::flow::Direction;
use crate::policy::{Action, Peer, PolicyRule, Selector};

const KEYS: &[&str] = &["action", "direction", "workload", "peer", "ports"];

/// All rules, in their order.
pub(super) fn list(field: &Field<'_>) -> Vec<PolicyRule> {
    field.list().iter().filter_map(rule).collect()
}

fn rule(entry: &Field<'_>) -> Option<PolicyRule> {
    let Some(map) = entry.mapping(KEYS) else {
        if entry.is_empty() {
            entry.fault("empty where a rule is expected (action and direction at least)");
        }
        return None;
    };
    let actions = [("allow", Action::Allow), ("deny", Action::Deny)];
    let directions = [
        ("inbound", Direction::Inbound),
        ("outbound", Direction::Outbound),
    ];
    // Every field is looked at before a missing one ends the entry.
    let action = required(&map, "action", &actions);
    let direction = required(&map, "direction", &directions);
    let workload = map.get("workload").map(|field| selector(&field));
    let peer = map.get("peer").map(|field| peer(&field));
    let ports = map.list("ports", values::port_range);
    Some(PolicyRule {
        action: action?,
        direction: direction?,
        // A rule that says wrongly whom it is about is about nobody, not about all.
        workload: workload.map_or(Some(None), |found| found.map(Some))?,
        peer: peer.map_or(Some(None), |found| found.map(Some))?,
        ports,
    })
}

fn required<T: Copy>(map: &Mapping<'_>, key: &str, words: &[(&str, T)]) -> Option<T> {
    if map.get(key).is_none() {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        map.fault(key, format!("missing ({})", words.join(" | ")));
    }
    map.value(key, |text| values::choice(text, words))
}

/// `{}` is every workload; nothing at all is a typing error.
fn selector(field: &Field<'_>) -> Option<Selector> {
    let Some(map) = field.mapping(&["name", "namespace", "labels"]) else {
        if field.is_empty() {
            field.fault(
                "empty where a workload is expected (name, namespace, labels; {} is every one)",
            );
        }
        return None;
    };
    Some(Selector {
        name: map.value("name", values::name),
        namespace: map.value("namespace", values::name),
        labels: workloads::labels(&map),
    })
}

fn peer(field: &Field<'_>) -> Option<Peer> {
    let Some(map) = field.mapping(&["cidr", "workload"]) else {
        if field.is_empty() {
            field.fault("empty where a peer is expected (cidr or workload)");
        }
        return None;
    };
    match (map.get("cidr"), map.get("workload")) {
        (Some(cidr), None) => cidr.value(values::cidr).map(Peer::Cidr),
        (None, Some(workload)) => selector(&workload).map(Peer::Workload),
        (cidr, _) => {
            let found = if cidr.is_some() { "both" } else { "neither" };
            map.fault("", format!("{found} of cidr and workload (exactly one)"));
            None
        }
    }
}
