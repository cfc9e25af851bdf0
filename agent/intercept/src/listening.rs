//! The ports on which a namespace's processes listen, asked of the kernel by sock_diag.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr as BoundAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::InterceptError;
use crate::netns::Netns;

/// Holds several hundred answers; the kernel sends as many packets as it needs.
const BUFFER: usize = 64 << 10;

/// Asks about the namespace in which it was opened, from wherever it is used.
#[derive(Debug)]
pub(crate) struct ListeningSockets {
    socket: Socket,
}

impl ListeningSockets {
    pub(crate) fn open(netns: &Netns) -> Result<Self, InterceptError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok::<_, io::Error>(socket)
        };
        let opened = netns.enter(open).and_then(|opened| opened);
        let socket = opened.map_err(|error| {
            InterceptError::io("open sock_diag in", netns.path().display(), error)
        })?;
        Ok(Self { socket })
    }

    /// Port to number of listening sockets, those bound to loopback left out.
    pub(crate) fn ports(&mut self) -> Result<BTreeMap<u16, u32>, InterceptError> {
        let mut ports = BTreeMap::new();
        for addr in self.addresses()? {
            if !addr.ip().to_canonical().is_loopback() {
                *ports.entry(addr.port()).or_default() += 1;
            }
        }
        Ok(ports)
    }

    /// Where each listening socket is bound.
    pub(crate) fn addresses(&self) -> Result<Vec<BoundAddr>, InterceptError> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.dump(family, &mut found)
                .map_err(|error| InterceptError::io("dump", "listening sockets", error))?;
        }
        Ok(found)
    }

    fn dump(&self, family: u8, found: &mut Vec<BoundAddr>) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: if family == AF_INET {
                SocketId::new_v4()
            } else {
                SocketId::new_v6()
            },
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                    })?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        let id = &socket.header.socket_id;
                        found.push(BoundAddr::new(id.source_address, id.source_port));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
                let length = answer.header.length as usize;
                // Messages are aligned to four bytes.
                rest = rest
                    .get(length.next_multiple_of(4).max(4)..)
                    .unwrap_or_default();
            }
        }
    }
}
