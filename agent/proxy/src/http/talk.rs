//! What is known of a client's connection while it lives, and of the request that is under way on it: bytes, times, and
//! whose turn it is.
//!
//! ```text
//!  Idle --first byte--> Head --request--> Waiting --response begins--> Answering --all given--> Flushing --written--> Idle
//!                                                              the client goes on with its request: '--written--> Trailing
//! ```
//! Each state has its limits, and one timer rings for all of them, whoever of hyper, the client and the upstream it is
//! that does nothing.

mod clock;
mod progress;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use shunt_core::flow::DataPath;
use shunt_core::http::HttpTimeouts;
use shunt_core::snapshot::Enrolled;
use tokio::time::Instant;

pub(super) use self::clock::Clock;
pub(super) use self::progress::{Passes, Progress};
use super::books::Entry;
use super::gauge::Gauge;
use super::interim::Interim;
use super::tunnel::Tunnel;
use crate::account::Account;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request.
    Idle,
    /// Some of a request's head.
    Head,
    /// A request, and nothing of its response.
    Waiting,
    /// Some of the response.
    Answering,
    /// All of the response, in hyper's hands.
    Flushing,
    /// The client has all of the response, and goes on with a request of which nothing comes any more. None follows.
    Trailing,
}

pub(super) struct Talk {
    limits: HttpTimeouts,
    gauge: Gauge,
    opened: Instant,
    /// When the connection was polled last, and whether it is being polled.
    turn: Cell<Instant>,
    in_turn: Cell<bool>,
    state: Cell<State>,
    /// A request's first byte, or the end of the one before.
    since: Cell<Instant>,
    /// When something moved last, in any direction.
    moved: Cell<Instant>,
    request: RefCell<Option<Rc<Progress>>>,
    /// The request had not ended when all of its response was there.
    trails: Cell<bool>,
    /// The connection is as old as it may be: its next response is the last.
    is_old: Cell<bool>,
    is_drained: Cell<bool>,
    read: Cell<u64>,
    written: Cell<u64>,
    /// Bytes that are told of.
    told: Cell<(u64, u64)>,
    /// Of those to come, the first that are accounted for already.
    counted: Cell<u64>,
    upstream: Cell<Option<(SocketAddr, Option<SocketAddr>)>>,
    peer: RefCell<Option<Arc<Enrolled>>>,
    /// What the connection becomes after the response under way.
    tunnel: RefCell<Option<Tunnel>>,
    /// What an upstream says before its response, and whether it says `100 Continue` in hyper's place.
    interim: RefCell<Option<Arc<Interim>>>,
    leaves_continue: Cell<bool>,
    /// Of who looks at the time.
    waker: RefCell<Option<Waker>>,
}

/// A time that was up before a response began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The route's.
    Response,
    /// The request's own.
    Request,
    /// Nothing moved; had the request ended?
    Stream { request_ended: bool },
}

/// What is to be done because time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// There was no request for long, or no more of one that has been answered.
    Idle,
    /// A request's head did not come whole; the text says which limit.
    Head(&'static str),
    /// The request has been told.
    Told,
    /// A response does not go on.
    Stuck,
    /// The connection is as old as it may be, and had its time to end.
    Drained,
}

/// What the timer is set to.
#[derive(Clone, Copy)]
enum Due {
    Rung(Rung),
    Expired(Expired),
    Old,
}

impl Talk {
    pub(super) fn new(limits: HttpTimeouts, gauge: Gauge, counted: usize) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            limits,
            gauge,
            opened: now,
            turn: Cell::new(now),
            in_turn: Cell::default(),
            state: Cell::new(State::Idle),
            since: Cell::new(now),
            moved: Cell::new(now),
            request: RefCell::default(),
            trails: Cell::default(),
            is_old: Cell::default(),
            is_drained: Cell::default(),
            read: Cell::default(),
            written: Cell::default(),
            told: Cell::default(),
            counted: Cell::new(counted as u64),
            upstream: Cell::default(),
            peer: RefCell::default(),
            tunnel: RefCell::default(),
            interim: RefCell::default(),
            leaves_continue: Cell::default(),
            waker: RefCell::default(),
        })
    }

    pub(super) fn read(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes as u64);
        self.touch();
        if bytes > 0 && self.state.get() == State::Idle {
            self.state.set(State::Head);
            self.since.set(self.moved.get());
        }
    }

    /// What the client has sent without anything coming of it.
    pub(super) fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
        self.touch();
    }

    pub(super) fn touch(&self) {
        self.moved.set(self.now());
    }

    /// Polls the connection: all that this does happens at one time.
    pub(super) fn turn<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.turn.set(Instant::now());
        self.in_turn.set(true);
        let polled = poll();
        self.in_turn.set(false);
        polled
    }

    pub(super) fn now(&self) -> Instant {
        match self.in_turn.get() {
            true => self.turn.get(),
            false => Instant::now(),
        }
    }

    /// Hyper has nothing more to write.
    pub(super) fn flushed(&self) {
        if self.state.get() == State::Flushing {
            self.state.set(match self.trails.get() {
                true => State::Trailing,
                false => State::Idle,
            });
            self.gauge.reset();
            self.since.set(self.now());
        }
    }

    /// Is no request being answered? Then what is written is hyper's own.
    pub(super) fn is_nobodys(&self) -> bool {
        matches!(self.state.get(), State::Idle | State::Head)
    }

    /// A request's head is there.
    pub(super) fn begin(self: &Rc<Self>, entry: Rc<Entry>) -> Rc<Progress> {
        if self.state.get() != State::Head {
            self.since.set(self.now());
        }
        self.state.set(State::Waiting);
        self.gauge.reset();
        self.touch();
        let progress = Rc::new(Progress::new(Rc::clone(self), entry));
        *self.request.borrow_mut() = Some(Rc::clone(&progress));
        self.interim.take();
        self.leaves_continue.set(false);
        progress
    }

    /// Who hears of what an upstream says before its response. `expected`: the client wants to hear before its body.
    pub(super) fn interim_of(&self, proper_case: bool, expected: bool) -> Arc<Interim> {
        self.leaves_continue.set(expected);
        let interim = Interim::new(proper_case, self.waker.borrow().clone());
        self.interim.replace(Some(Arc::clone(&interim)));
        interim
    }

    /// To be written before anything else.
    pub(super) fn interim(&self) -> Vec<u8> {
        let interim = self.interim.borrow();
        interim
            .as_ref()
            .map(|interim| interim.take())
            .unwrap_or_default()
    }

    /// To be asked before each write: only what is written first may be `100 Continue`.
    pub(super) fn leaves_continue(&self) -> bool {
        self.leaves_continue.replace(false)
    }

    /// A response is there.
    pub(super) fn answering(&self) {
        self.state.set(State::Answering);
        self.touch();
    }

    /// All of it is in hyper's hands.
    pub(super) fn answered(&self) {
        self.state.set(State::Flushing);
        let request = self.request.borrow_mut().take();
        self.trails
            .set(request.is_some_and(|request| !request.is_whole()));
        self.touch();
    }

    /// The response does not go on, and nobody waits for it any longer.
    pub(super) fn stuck(&self) {
        if let Some(request) = &*self.request.borrow() {
            request.entry().stuck();
        }
    }

    /// The connection has ended, whatever was under way: the two know each other, and would keep each other alive.
    pub(super) fn over(&self) {
        self.request.borrow_mut().take();
        self.tunnel.take();
    }

    /// After the response under way the connection is this.
    pub(super) fn becomes(&self, tunnel: Tunnel) {
        self.tunnel.replace(Some(tunnel));
    }

    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel.take()
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel.borrow().is_some()
    }

    /// Is it a tunnel, or about to be one if the upstream likes? Its response is the last in any case.
    pub(super) fn may_be_tunnel(&self) -> bool {
        let request = self.request.borrow();
        let request = request.as_ref();
        self.is_tunnel() || request.is_some_and(|request| request.may_be_tunnel())
    }

    pub(super) fn is_old(&self) -> bool {
        self.is_old.get()
    }

    /// Whom requests are sent to now.
    pub(super) fn upstream(&self, upstream: SocketAddr, local: Option<SocketAddr>) {
        self.upstream.set(Some((upstream, local)));
    }

    /// Whose workload that is, if it is one of this node's.
    pub(super) fn peer(&self, peer: &Arc<Enrolled>) {
        self.peer.replace(Some(Arc::clone(peer)));
    }

    /// Tells what is new: bytes that were read, and written.
    pub(super) fn tell(&self, account: &mut Account) -> (u64, u64) {
        if let Some(peer) = self.peer.take() {
            account.peer(peer.name.clone());
            account.count_at_peer(&peer);
        }
        if let Some((upstream, local)) = self.upstream.take() {
            account.upstream(upstream, local);
        }
        let (read, written) = self.told.replace((self.read.get(), self.written.get()));
        let (read, written) = (self.read.get() - read, self.written.get() - written);
        let counted = self.counted.get().min(read);
        if read > counted {
            account.received(DataPath::Copy, read - counted);
        }
        self.counted.set(self.counted.get() - counted);
        if written > 0 {
            account.sent(DataPath::Copy, written);
        }
        (read, written)
    }

    fn due(&self) -> Option<(Instant, Due)> {
        let limits = &self.limits;
        let rung = |limit, from, rung| after(limit, from).map(|at| (at, Due::Rung(rung)));
        let (since, moved) = (self.since.get(), self.moved.get());
        let of_state = match self.state.get() {
            State::Idle => rung(limits.idle, since, Rung::Idle),
            State::Head => earliest([
                rung(
                    limits.request_headers,
                    since,
                    Rung::Head("request header timeout"),
                ),
                rung(limits.request, since, Rung::Head("request timeout")),
                rung(limits.stream_idle, since, Rung::Head("stream timeout")),
            ]),
            State::Flushing => rung(limits.stream_idle, moved, Rung::Stuck),
            State::Trailing => rung(limits.stream_idle, moved, Rung::Idle),
            state => {
                let request = self.request.borrow();
                let progress = request.as_ref();
                // Whoever has begun to answer has not waited for the request's end, and nobody does any more.
                let whole = match state {
                    State::Waiting => limits.request,
                    _ => Duration::ZERO,
                };
                let own = progress.and_then(|progress| progress.due(whole, since));
                let idle = progress.and_then(|progress| {
                    let request_ended = progress.has_request_ended();
                    after(progress.idle(), moved).map(|at| (at, Expired::Stream { request_ended }))
                });
                earliest([own, idle, None]).map(|(at, expired)| match state {
                    State::Waiting => (at, Due::Expired(expired)),
                    _ => (at, Due::Rung(Rung::Stuck)),
                })
            }
        };
        let age = match (self.is_old.get(), self.is_drained.get()) {
            _ if limits.connection.is_zero() => None,
            (false, _) => Some((self.opened + limits.connection, Due::Old)),
            (true, false) => {
                let at = self.opened + limits.connection + limits.drain;
                Some((at, Due::Rung(Rung::Drained)))
            }
            (true, true) => None,
        };
        earliest([of_state, age, None])
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// Zero: never.
fn after(limit: Duration, from: Instant) -> Option<Instant> {
    (!limit.is_zero()).then(|| from + limit)
}

fn earliest<T>(all: [Option<(Instant, T)>; 3]) -> Option<(Instant, T)> {
    all.into_iter().flatten().min_by_key(|(at, _)| *at)
}
