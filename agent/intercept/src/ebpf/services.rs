//! L4 services for the hooks: their addresses and endpoints as maps.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHashMap, MapData};
use shunt_core::address::{from_kernel, to_kernel};
use shunt_core::service::{Balance, Service};
use shunt_core::sockets::Family;
use shunt_ebpf_common::maps::Destination;
use shunt_ebpf_common::services::{EndpointKey, Service as Value};

use super::object::{Object, failed};
use crate::InterceptError;

pub(super) struct Services {
    services: BpfHashMap<MapData, Destination, Value>,
    endpoints: BpfHashMap<MapData, EndpointKey, Destination>,
    turns: BpfHashMap<MapData, u32, u32>,
    in_force: HashMap<String, Written>,
    /// By service and family, so that a changed service goes on where it was.
    turns_of: HashMap<(String, Family), u32>,
    /// Endpoints that were replaced, and when.
    retired: Vec<(Instant, Vec<EndpointKey>)>,
    next: u32,
}

struct Written {
    service: Service,
    endpoints: Vec<EndpointKey>,
}

impl Services {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            services: object.map("SHUNT_SERVICES")?,
            endpoints: object.map("SHUNT_ENDPOINTS")?,
            turns: object.map("SHUNT_TURNS")?,
            in_force: HashMap::new(),
            turns_of: HashMap::new(),
            retired: Vec::new(),
            next: 1,
        })
    }

    /// Each changed service is replaced at once for new connections; the others are not touched.
    ///
    /// # Errors
    /// There is no room for all of them; those that are missing keep what they had.
    pub(super) fn set(&mut self, services: &[Service]) -> Result<(), InterceptError> {
        let kept: HashMap<&str, &Service> = services
            .iter()
            .map(|service| (service.name.as_str(), service))
            .collect();
        let differs = |name: &String, written: &Written| {
            kept.get(name.as_str())
                .is_none_or(|service| **service != written.service)
        };
        let old: Vec<String> = self.in_force.keys().cloned().collect();
        let mut replaced = HashMap::new();
        for name in old {
            if self
                .in_force
                .get(&name)
                .is_some_and(|written| differs(&name, written))
            {
                replaced.extend(self.in_force.remove_entry(&name));
            }
        }
        // Addresses may have moved from one service to another.
        let wanted: HashSet<&SocketAddr> = services.iter().flat_map(|s| &s.addresses).collect();
        for address in replaced
            .values()
            .flat_map(|written| &written.service.addresses)
        {
            if !wanted.contains(address) {
                let _ = self.services.remove(&key(*address));
            }
        }
        let mut result = Ok(());
        for service in services {
            if !self.in_force.contains_key(&service.name) {
                result = result.and(self.write(service));
            }
        }
        let endpoints = replaced.into_values().flat_map(|written| written.endpoints);
        self.retired.push((Instant::now(), endpoints.collect()));
        result
    }

    fn write(&mut self, service: &Service) -> Result<(), InterceptError> {
        let mut endpoints = Vec::new();
        for family in [Family::V4, Family::V6] {
            let of_family = |addr: &&SocketAddr| Family::of(**addr) == family;
            let value = self.write_endpoints(service, family, &mut endpoints)?;
            for address in service.addresses.iter().filter(of_family) {
                self.services
                    .insert(key(*address), value, 0)
                    .map_err(|error| failed("write a service", &error))?;
            }
        }
        let service = service.clone();
        let name = service.name.clone();
        self.in_force.insert(name, Written { service, endpoints });
        Ok(())
    }

    fn write_endpoints(
        &mut self,
        service: &Service,
        family: Family,
        written: &mut Vec<EndpointKey>,
    ) -> Result<Value, InterceptError> {
        let set = self.next;
        self.next += 1;
        let mut count = 0;
        for (endpoint, index) in service.endpoints_of(family).zip(0..) {
            let place = EndpointKey { set, index };
            self.endpoints
                .insert(place, key(endpoint), 0)
                .map_err(|error| failed("write an endpoint", &error))?;
            written.push(place);
            count += 1;
        }
        let turns = match service.balance {
            Balance::Random => 0,
            Balance::RoundRobin => self.turns(&service.name, family)?,
        };
        Ok(Value {
            endpoints: set,
            count,
            turns,
        })
    }

    fn turns(&mut self, name: &str, family: Family) -> Result<u32, InterceptError> {
        let of = (name.to_owned(), family);
        if let Some(turns) = self.turns_of.get(&of) {
            return Ok(*turns);
        }
        let turns = self.next;
        self.next += 1;
        self.turns
            .insert(turns, 0, 0)
            .map_err(|error| failed("write a service's turns", &error))?;
        self.turns_of.insert(of, turns);
        Ok(turns)
    }

    /// What was replaced before `longer_than` ago is used by nobody.
    pub(super) fn remove_retired(&mut self, longer_than: Duration) {
        let due = |(since, _): &mut (Instant, _)| since.elapsed() >= longer_than;
        let gone: Vec<_> = self.retired.extract_if(.., due).collect();
        for endpoint in gone.iter().flat_map(|(_, endpoints)| endpoints) {
            let _ = self.endpoints.remove(endpoint);
        }
        if gone.is_empty() {
            return;
        }
        let known = &self.in_force;
        let unknown = |(name, _): &(String, Family), _: &mut u32| !known.contains_key(name);
        for (_, turns) in self.turns_of.extract_if(unknown) {
            let _ = self.turns.remove(&turns);
        }
    }

    /// Where connections to this address may go, as the maps have it. `None`: it is no service's.
    pub(super) fn at(&self, address: SocketAddr) -> Option<Vec<SocketAddr>> {
        let value = self.services.get(&key(address), 0).ok()?;
        let endpoint = |index| {
            let set = value.endpoints;
            let place = self.endpoints.get(&EndpointKey { set, index }, 0).ok()?;
            Some(SocketAddr::new(from_kernel(place.address), place.port))
        };
        Some((0..value.count).filter_map(endpoint).collect())
    }
}

fn key(address: SocketAddr) -> Destination {
    Destination {
        address: to_kernel(address.ip()),
        port: address.port(),
        reserved: [0; 3],
    }
}
