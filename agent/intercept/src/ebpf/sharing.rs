//! What comes from and goes to the rest of the agent. The data plane is given maps, as descriptors: whoever holds one may
//! use it without any privilege.

use std::os::fd::{AsFd, OwnedFd};

use std::sync::Arc;

use aya::maps::IterableMap;
use shunt_core::policy::Policy;
use shunt_core::service::Service;
use shunt_ebpf_common::maps::Event;

use super::EbpfBackend;
use super::acceleration::Acceleration;
use super::estate::Estate;
use super::kernel::Link;
use crate::InterceptError;

impl EbpfBackend {
    /// The map that has accepted sockets' original destinations, for [`super::Destinations::from_fd`].
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn destinations_fd(&self) -> std::io::Result<OwnedFd> {
        self.object.destinations.fd().as_fd().try_clone_to_owned()
    }

    /// What [`super::Resolvers::from_fd`] takes.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn resolvers_fd(&self) -> std::io::Result<OwnedFd> {
        self.dns.resolvers_fd()
    }

    /// What the next supervisor needs for going on to steer until it has attached its own.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn estate(&self) -> std::io::Result<Estate> {
        let inbound = self.enrolled.values();
        let inbound = inbound.filter_map(|enrolled| enrolled.inbound.as_ref()?.link.as_ref());
        let share = |links: &mut dyn Iterator<Item = &Link>| {
            links.map(Link::share).collect::<std::io::Result<_>>()
        };
        Ok(Estate {
            gate: self.gate.map().fd().as_fd().try_clone_to_owned()?,
            destinations: self.destinations_fd()?,
            capturing: share(&mut self.hooks.links(true).chain(inbound))?,
            attending: share(&mut self.hooks.links(false))?,
        })
    }

    /// What [`super::DirectEvents::from_fd`] takes.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn direct_events_fd(&self) -> std::io::Result<OwnedFd> {
        self.direct_events.fd().as_fd().try_clone_to_owned()
    }

    /// What [`super::Shortcuts::from_fds`] takes. Empty: this kernel cannot accelerate.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn shortcut_fds(&self) -> std::io::Result<Vec<OwnedFd>> {
        let acceleration = self.acceleration.as_ref().ok();
        let acceleration = acceleration.filter(|_| self.why_not().is_none());
        acceleration.map_or(Ok(Vec::new()), Acceleration::fds)
    }

    /// What [`super::MessageTap::from_fds`] takes. Empty: nothing goes past the TCP stack here, or where is not known.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn tap_fds(&self) -> std::io::Result<Vec<OwnedFd>> {
        match (self.why_not(), &self.tap) {
            (None, Ok(tap)) => tap.fds(&self.events),
            _ => Ok(Vec::new()),
        }
    }

    /// A data plane is gone, and with it its flows.
    pub fn forget_flows(&mut self) {
        if let Ok(acceleration) = &mut self.acceleration {
            acceleration.forget_flows();
        }
        if let Ok(tap) = &mut self.tap {
            tap.end();
        }
    }

    /// L4 services, for new connections at once.
    ///
    /// # Errors
    /// There is no room for all of them; what is missing stays as it was.
    pub fn set_services(&mut self, services: &[Service]) -> Result<(), InterceptError> {
        self.services.set(services)
    }

    /// L4 policy. A workload has it with the next [`Backend::update`](crate::Backend::update).
    ///
    /// # Errors
    /// There is no room for it.
    pub fn set_policy(&mut self, policy: Arc<Policy>) -> Result<(), InterceptError> {
        self.policies.set(policy)
    }

    /// What the programs counted since they were loaded, by name.
    pub fn events(&self) -> Vec<(&'static str, u64)> {
        let verdicts = self.acceleration.as_ref().ok();
        let verdicts = verdicts.map(|acceleration| acceleration.classes.connections());
        Event::NAMES
            .into_iter()
            .zip(0..)
            .map(|(name, index)| {
                let sum = self
                    .events
                    .get(&index, 0)
                    .map(|per_cpu| per_cpu.iter().sum());
                (name, sum.unwrap_or(0))
            })
            .chain(verdicts.into_iter().flatten())
            .collect()
    }
}
