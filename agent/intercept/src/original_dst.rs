//! Where an accepted connection was going, asked of whoever knows by the way it was steered.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use shunt_core::address::{ClientAddr, OriginalDst, Provenance, canonical, from_kernel, to_kernel};
use shunt_core::sockets::{ListenerSpec, OriginalDstError, OriginalDstSource, Steering};
use shunt_ebpf_common::maps::Handshake;
use socket2::SockRef;

use crate::ebpf::HandshakeTable;

/// Asks the kernel. Needs no privilege.
#[derive(Clone, Debug, Default)]
pub struct KernelOriginalDst {
    /// Set once the supervisor has loaded the eBPF programs.
    handshakes: Arc<OnceLock<HandshakeTable>>,
}

impl KernelOriginalDst {
    /// A second table is ignored: the supervisor loads the programs once in its life.
    pub fn set_handshakes(&self, table: HandshakeTable) {
        let _ = self.handshakes.set(table);
    }
}

impl OriginalDstSource for KernelOriginalDst {
    fn original_dst(
        &self,
        listener: &ListenerSpec,
        accepted: BorrowedFd<'_>,
        client: ClientAddr,
        local: SocketAddr,
    ) -> Result<OriginalDst, OriginalDstError> {
        match listener.steering {
            Steering::ConnectHook { netns_cookie } => {
                let table = self.handshakes.get().ok_or(OriginalDstError::Missing)?;
                let key = Handshake {
                    netns: netns_cookie,
                    client: to_kernel(client.0.ip().to_canonical()),
                    client_port: client.0.port(),
                    listener_port: local.port(),
                    reserved: 0,
                };
                let found = table.take(&key).map_err(OriginalDstError::Lookup)?;
                let destination = found.ok_or(OriginalDstError::Missing)?;
                let addr = SocketAddr::new(from_kernel(destination.address), destination.port);
                Ok(OriginalDst {
                    addr,
                    source: Provenance::Handshake,
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
