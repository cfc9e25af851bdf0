//! Where an accepted connection was going, asked of whoever knows by the way it was steered.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError, RwLock};

use shunt_core::address::{OriginalDst, Provenance, canonical, from_kernel};
use shunt_core::sockets::{ListenerSpec, OriginalDstError, OriginalDstSource, Steering};
use shunt_ebpf_common::maps::Destination;
use socket2::SockRef;

use crate::ebpf::Destinations;

/// Asks the kernel. Needs no privilege.
#[derive(Clone, Debug, Default)]
pub struct KernelOriginalDst {
    /// Set once the supervisor has loaded the eBPF programs; those of the supervisor before may still be attached.
    destinations: Arc<RwLock<Vec<Destinations>>>,
}

impl KernelOriginalDst {
    /// In place of those that were known.
    pub fn set_destinations(&self, known: Vec<Destinations>) {
        *self
            .destinations
            .write()
            .unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn of(&self, accepted: BorrowedFd<'_>) -> Result<Option<Destination>, OriginalDstError> {
        let known = self.destinations.read();
        for map in known.unwrap_or_else(PoisonError::into_inner).iter() {
            let found = map.of(accepted).map_err(OriginalDstError::Lookup)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

impl OriginalDstSource for KernelOriginalDst {
    fn original_dst(
        &self,
        listener: &ListenerSpec,
        accepted: BorrowedFd<'_>,
        local: SocketAddr,
    ) -> Result<OriginalDst, OriginalDstError> {
        match listener.steering {
            Steering::ConnectHook => {
                let destination = self.of(accepted)?.ok_or(OriginalDstError::Missing)?;
                let addr = SocketAddr::new(from_kernel(destination.address), destination.port);
                Ok(OriginalDst {
                    addr,
                    source: Provenance::SkStorage,
                })
            }
            Steering::Redirect => {
                let addr = redirected(accepted, local)?;
                Ok(OriginalDst {
                    addr,
                    source: Provenance::Conntrack,
                })
            }
            Steering::SkLookup => Ok(OriginalDst {
                addr: canonical(local),
                source: Provenance::LocalAddr,
            }),
        }
    }
}

/// `SO_ORIGINAL_DST` of the socket's family.
fn redirected(accepted: BorrowedFd<'_>, local: SocketAddr) -> Result<SocketAddr, OriginalDstError> {
    let socket = SockRef::from(&accepted);
    let answer = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    match answer {
        Ok(address) => address
            .as_socket()
            .map(canonical)
            .ok_or(OriginalDstError::Missing),
        // ENOENT: conntrack does not know this connection.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OriginalDstError::Missing),
        Err(error) => Err(OriginalDstError::Lookup(error)),
    }
}
