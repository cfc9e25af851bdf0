//! Chains of others.

use shunt_core::sockets::Family;

use super::FAMILIES;
use super::legacy::Legacy;
use super::netfilter::Netfilter;
use super::tools::legacy_names;

/// The tables in which connections are sent elsewhere.
const TABLES: [&str; 2] = ["nat", "mangle"];

/// Table and name of every chain in the tables that matter of this thread's namespace. Makes no table.
pub(crate) fn chains() -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Ok(netfilter) = Netfilter::open() {
        // A kernel without nftables has no chains there.
        let _ = netfilter.chains(|table, chain| found.push((table.to_owned(), chain.to_owned())));
    }
    for family in FAMILIES {
        let names = legacy_names(family);
        let there = TABLES
            .into_iter()
            .filter(|table| names.lines().any(|name| name == *table));
        for table in there {
            let chains = Legacy::open(family, table).and_then(|legacy| legacy.chains());
            let place = format!("{table} ({})", place(family));
            found.extend(
                chains
                    .unwrap_or_default()
                    .into_iter()
                    .map(|chain| (place.clone(), chain)),
            );
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn place(family: Family) -> &'static str {
    match family {
        Family::V4 => "legacy, IPv4",
        Family::V6 => "legacy, IPv6",
    }
}
