//! A worker's sockets for DNS queries.

use std::rc::Rc;

use shunt_core::sockets::{DnsListenerSpec, OriginalDstSource, SocketSupply};
use shunt_core::workload::WorkloadId;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::Local;
use crate::dns;

impl<S: SocketSupply, O: OriginalDstSource> Local<S, O> {
    pub(super) fn take_queries(
        self: &Rc<Self>,
        spec: DnsListenerSpec,
        socket: std::net::UdpSocket,
    ) {
        let taken = socket.set_nonblocking(true);
        let socket = match taken.and_then(|()| UdpSocket::from_std(socket)) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = %spec.addr, %error, "cannot take queries");
                return self.stopped_taking(spec.workload);
            }
        };
        self.datagram.borrow_mut().resize(dns::LONGEST, 0);
        let (close, closing) = watch::channel(false);
        self.queries.borrow_mut().push((spec.workload, close));
        let taking = dns::take(Rc::clone(self), Rc::new(spec), socket, closing);
        tokio::task::spawn_local(taking);
    }

    pub(super) fn close_queries(&self, whose: impl Fn(WorkloadId) -> bool) {
        self.queries.borrow_mut().retain(|(workload, close)| {
            let closes = whose(*workload);
            if closes {
                let _ = close.send(true);
            }
            !closes
        });
    }

    pub(crate) fn stopped_taking(&self, workload: WorkloadId) {
        self.tally.change(workload, |counts| counts.listeners -= 1);
    }
}
