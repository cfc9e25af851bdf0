//! Takes the agent out of a flow's way while its two sockets stay where they are.
//!
//! ```text
//!   client app ══ queue ══► agent's socket ── relay ──► agent's other socket ══ queue ══► server app
//!        ╚═════════════════════════ once everything sent so far has arrived ══════════════════▲
//! ```
//! A direction is handed over whenever the relay has nothing of it in its hands: then what its application sends next
//! may overtake nothing. The kernel compares the byte count under the sender's lock, so an offer that comes too late is
//! void. Ends and resets still come through the agent's sockets, behind the bytes. When the receiver's queue is full
//! the kernel falls back to the relay, and that direction stays there: what it brings is put into the same queue as soon
//! as there is room ([`super::room`]).

use std::io;
use std::os::fd::AsFd;
use std::task::Context;

use shunt_core::flow::DataPath;
use shunt_core::sockets::{Accelerator, FarEnd, Moved, SocketCookie};
use tokio::net::TcpStream;

use super::counting::Counting;
use super::half::{Half, Way};
use crate::account::Account;

/// See the head of this module.
pub(crate) struct Shortcut<'a> {
    accelerator: &'a dyn Accelerator,
    /// The applications' sockets, as far as they are accelerated and were found.
    client: FarEnd,
    server: FarEnd,
    /// Both workloads let it be handed over.
    may_leave: bool,
    up: Leg,
    down: Leg,
    counting: Counting,
}

/// One direction.
#[derive(Default)]
struct Leg {
    /// Bytes that the relay had moved at the last offer.
    offered_at: Option<u64>,
    /// The relay has it for good.
    given_up: bool,
    /// Counted so far.
    moved: Moved,
}

impl<'a> Shortcut<'a> {
    /// `None`: neither side of this flow is accelerated. Whoever is, gets bytes past TCP and must be read accordingly,
    /// also when there is nothing to hand over.
    pub(crate) fn begin(
        accelerator: &'a dyn Accelerator,
        client: &TcpStream,
        upstream: &TcpStream,
        may_leave: bool,
        counting: &Counting,
    ) -> Option<Self> {
        let far_end = |socket: &TcpStream| {
            // Not knowing, the careful way.
            told(accelerator.far_end(socket.as_fd())).unwrap_or(FarEnd::Unknown)
        };
        let (client, server) = (far_end(client), far_end(upstream));
        let none = FarEnd::NotAccelerated;
        ((client, server) != (none, none)).then(|| Self {
            accelerator,
            client,
            server,
            may_leave,
            up: Leg::default(),
            down: Leg::default(),
            counting: counting.clone(),
        })
    }

    /// How bytes come from the client, and from the server.
    pub(super) fn ways(&self) -> [Way<'a>; 2] {
        let accelerator = self.accelerator;
        [self.client, self.server].map(|far_end| {
            let source = match far_end {
                FarEnd::Found(cookie) => Some(cookie),
                FarEnd::NotAccelerated | FarEnd::Unknown => None,
            };
            Way::Queues {
                accelerator,
                source,
            }
        })
    }

    /// The applications' sockets, if both are there and may be left alone.
    fn ends(&self) -> Option<(SocketCookie, SocketCookie)> {
        match (self.client, self.server) {
            (FarEnd::Found(client), FarEnd::Found(server)) if self.may_leave => {
                Some((client, server))
            }
            _ => None,
        }
    }

    /// Offers what can be handed over now.
    pub(super) fn offer(&mut self, to_upstream: &mut Half<'_>, to_client: &mut Half<'_>) {
        let Some((client, server)) = self.ends() else {
            return;
        };
        self.up.offer(self.accelerator, to_upstream, client, server);
        self.down.offer(self.accelerator, to_client, server, client);
    }

    /// Adds to the account what went past the agent. True: something did.
    pub(super) fn count(&mut self, account: &mut Account) -> bool {
        let Some((client, server)) = self.ends() else {
            return false;
        };
        let received = self.up.count(self.accelerator, client);
        let sent = self.down.count(self.accelerator, server);
        if received.bytes > 0 {
            account.received(DataPath::Handoff, received.bytes);
        }
        if sent.bytes > 0 {
            account.sent(DataPath::Handoff, sent.bytes);
        }
        account.messages(DataPath::Handoff, received.messages, sent.messages);
        received.bytes + sent.bytes > 0
    }

    /// Bytes that went past the agent, as counted last.
    pub(super) fn moved(&self) -> u64 {
        self.up.moved.bytes + self.down.moved.bytes
    }

    /// Counts now and then while the flow lives and moves.
    pub(super) fn poll_count(&mut self, cx: &Context<'_>, account: &mut Account) {
        let Some((client, server)) = self.ends() else {
            return;
        };
        let is_news =
            |leg: &Leg, from| leg.offered_at.is_some() && self.counting.has_moved(from, cx);
        if is_news(&self.up, client) | is_news(&self.down, server) {
            self.count(account);
        }
    }
}

impl Drop for Shortcut<'_> {
    fn drop(&mut self) {
        for far_end in [self.client, self.server] {
            if let FarEnd::Found(cookie) = far_end {
                self.accelerator.forget(cookie);
                self.counting.forget(cookie);
            }
        }
    }
}

impl Leg {
    fn offer(
        &mut self,
        accelerator: &dyn Accelerator,
        half: &mut Half<'_>,
        from: SocketCookie,
        to: SocketCookie,
    ) {
        if self.given_up || !half.is_drained() || self.offered_at == Some(half.moved) {
            return;
        }
        // Bytes that come here after some went past us: the kernel fell back, and a new offer would forget its count.
        let fell_back =
            self.offered_at.is_some() && told(accelerator.moved(from)) != Some(Moved::default());
        let delivered = || told(accelerator.has_delivered(half.sink().as_fd(), half.moved));
        if fell_back || delivered() != Some(true) {
            self.given_up = true;
            return;
        }
        self.given_up = told(accelerator.hand_over(from, to, half.moved)).is_none();
        self.offered_at = Some(half.moved);
    }

    /// What is new.
    fn count(&mut self, accelerator: &dyn Accelerator, from: SocketCookie) -> Moved {
        if self.offered_at.is_none() {
            return Moved::default();
        }
        let moved = told(accelerator.moved(from)).unwrap_or(self.moved);
        let before = std::mem::replace(&mut self.moved, moved);
        Moved {
            bytes: moved.bytes.saturating_sub(before.bytes),
            messages: moved.messages.saturating_sub(before.messages),
        }
    }
}

/// The kernel said why not: the flow goes on through the relay.
fn told<T>(answer: io::Result<T>) -> Option<T> {
    answer
        .inspect_err(|error| tracing::debug!(%error, "a flow is not accelerated"))
        .ok()
}
