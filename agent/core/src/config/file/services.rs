//! The list of services, and what they may not have in common.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::node::{Field, Mapping};
use super::values;
use crate::service::{Balance, Service};
use crate::sockets::Family;

const KEYS: &[&str] = &["name", "addresses", "endpoints", "balance"];

/// A service, and where its parts stand.
struct Listed<'a> {
    map: Mapping<'a>,
    name: Option<String>,
    addresses: Vec<(Field<'a>, SocketAddr)>,
    endpoints: Vec<(Field<'a>, SocketAddr)>,
    balance: Balance,
}

/// All services. Two never share a name or an address, and no address is an endpoint.
pub(super) fn list(field: &Field<'_>) -> Vec<Service> {
    let listed: Vec<Listed<'_>> = field.list().iter().filter_map(listed).collect();
    check_names(&listed);
    check_addresses(&listed);
    for service in &listed {
        check_families(service);
    }
    listed.into_iter().filter_map(Listed::service).collect()
}

fn listed<'a>(entry: &Field<'a>) -> Option<Listed<'a>> {
    let Some(map) = entry.mapping(KEYS) else {
        if entry.is_empty() {
            entry.fault("empty where a service is expected (name, addresses and endpoints)");
        }
        return None;
    };
    let name = match map.get("name") {
        Some(field) => field.value(values::name),
        None => {
            map.fault("name", "missing (every service has one)");
            None
        }
    };
    let addresses = socket_addresses(&map, "addresses");
    if map
        .get("addresses")
        .is_none_or(|field| is_empty_list(&field))
    {
        map.fault("addresses", "missing (a service has one at least)");
    }
    let endpoints = socket_addresses(&map, "endpoints");
    if map.get("endpoints").is_none() {
        map.fault("endpoints", "missing ([] refuses every connection)");
    }
    let words = [
        ("round_robin", Balance::RoundRobin),
        ("random", Balance::Random),
    ];
    let balance = map.value("balance", |text| values::choice(text, &words));
    Some(Listed {
        map,
        name,
        addresses,
        endpoints,
        balance: balance.unwrap_or_default(),
    })
}

fn socket_addresses<'a>(map: &Mapping<'a>, key: &str) -> Vec<(Field<'a>, SocketAddr)> {
    let entries = map.get(key).map(|field| field.list()).unwrap_or_default();
    let read = |entry: Field<'a>| {
        let address = entry.value(values::service_address)?;
        Some((entry, address))
    };
    entries.into_iter().filter_map(read).collect()
}

/// A list without entries; what is no list at all has its fault already.
fn is_empty_list(field: &Field<'_>) -> bool {
    field.is_empty() || field.is_list() && field.list().is_empty()
}

fn check_names(services: &[Listed<'_>]) {
    let mut seen: HashSet<&str> = HashSet::new();
    for service in services {
        if let Some(name) = &service.name
            && !seen.insert(name)
        {
            let message = format!("service `{name}` is given twice");
            match service.map.get("name") {
                Some(field) => field.fault(message),
                None => service.map.fault("name", message),
            }
        }
    }
}

fn check_addresses(services: &[Listed<'_>]) {
    let mut owners: HashMap<SocketAddr, &str> = HashMap::new();
    for service in services {
        for (field, address) in &service.addresses {
            if let Some(owner) = owners.insert(*address, service.shown()) {
                field.fault(format!(
                    "`{address}` is an address of service `{owner}` already"
                ));
            }
        }
    }
    for service in services {
        let mut seen: HashSet<SocketAddr> = HashSet::new();
        for (field, endpoint) in &service.endpoints {
            if let Some(owner) = owners.get(endpoint) {
                field.fault(format!(
                    "`{endpoint}` is an address of service `{owner}` (an endpoint is where somebody listens)"
                ));
            }
            if !seen.insert(*endpoint) {
                field.fault(format!("`{endpoint}` is given twice"));
            }
        }
    }
}

/// A connection cannot change its family on the way. A service without any endpoint is right: it refuses.
fn check_families(service: &Listed<'_>) {
    let Listed {
        addresses,
        endpoints,
        ..
    } = service;
    // Wrong entries are not here, and one fault is enough.
    if addresses.is_empty() || endpoints.is_empty() {
        return;
    }
    let has = |list: &[(Field<'_>, SocketAddr)], family| {
        list.iter()
            .any(|(_, address)| Family::of(*address) == family)
    };
    for (field, address) in addresses {
        if !has(endpoints, Family::of(*address)) {
            field.fault(format!("`{address}` has no endpoint of its address family"));
        }
    }
    for (field, endpoint) in endpoints {
        if !has(addresses, Family::of(*endpoint)) {
            field.fault(format!(
                "no address of the service is of `{endpoint}`'s address family: nothing can reach it"
            ));
        }
    }
}

impl Listed<'_> {
    fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("?")
    }

    fn service(self) -> Option<Service> {
        Some(Service {
            name: self.name?,
            addresses: bare(&self.addresses),
            endpoints: bare(&self.endpoints),
            balance: self.balance,
        })
    }
}

fn bare(listed: &[(Field<'_>, SocketAddr)]) -> Vec<SocketAddr> {
    listed.iter().map(|(_, address)| *address).collect()
}
