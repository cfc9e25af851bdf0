//! Whom queries were for that rules led away: asked of connection tracking, in the namespace where they were.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;

use super::netfilter::Netfilter;
use crate::netns::Netns;
use crate::{Enrolment, InterceptError};

/// By namespace. Opened when the first question is asked there.
#[derive(Debug, Default)]
pub(super) struct Asked(HashMap<u64, Netfilter>);

impl Asked {
    /// Queries are led away only where this can be told.
    pub(super) fn attempt(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(listener) = enrolment.dns.first() else {
            return Ok(());
        };
        let nobody = listener.spec.addr;
        match self
            .of(&enrolment.netns)?
            .original_destination(nobody, nobody)
        {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(InterceptError::Unsupported(format!(
                    "dns.capture: connection tracking cannot be asked which resolver a query was for \
                     (nf_conntrack_netlink): {error}"
                )))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn resolver(
        &mut self,
        netns: &Netns,
        listener: SocketAddr,
        client: SocketAddr,
    ) -> Result<SocketAddr, InterceptError> {
        let found = self.of(netns)?.original_destination(listener, client);
        found.map_err(|error| failed(netns, error))
    }

    pub(super) fn forget(&mut self, netns: u64) {
        self.0.remove(&netns);
    }

    fn of(&mut self, netns: &Netns) -> Result<&Netfilter, InterceptError> {
        Ok(match self.0.entry(netns.inode()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let opened = netns.enter(Netfilter::open).and_then(|opened| opened);
                place.insert(opened.map_err(|error| failed(netns, error))?)
            }
        })
    }
}

fn failed(netns: &Netns, error: io::Error) -> InterceptError {
    InterceptError::io("ask connection tracking in", netns.path().display(), error)
}
