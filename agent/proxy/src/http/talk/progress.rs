//! A request while it is under way.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use shunt_core::cluster::Held;
use tokio::time::Instant;

use super::{Expired, Talk, after, earliest};
use crate::http::books::Entry;

/// What is known of a request while it is under way.
pub(in crate::http) struct Progress {
    talk: Rc<Talk>,
    request_ended: Cell<Option<Instant>>,
    /// From the request's end to the response's; zero: no limit.
    route: Cell<Duration>,
    expired: Cell<Option<Expired>>,
    /// What wants to be a tunnel has no end: since when it waits for leave.
    endless: Cell<Option<Instant>>,
    /// It has a body.
    has_body: Cell<bool>,
    /// Every connection manager on the way passes them on.
    passes: Cell<Passes>,
    /// The route's, in place of the connection manager's.
    idle: Cell<Option<Duration>>,
    /// Of a cluster's limits, where no connection of its own carries the request.
    held: Cell<Option<Held>>,
    entry: Rc<Entry>,
}

/// What is passed on beside heads and bodies.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Passes {
    pub(in crate::http) informational: bool,
    pub(in crate::http) trailers: bool,
}

impl Progress {
    /// Until the request is over.
    pub(in crate::http) fn keep(&self, held: Held) {
        self.held.set(Some(held));
    }

    pub(super) fn new(talk: Rc<Talk>, entry: Rc<Entry>) -> Self {
        Self {
            talk,
            request_ended: Cell::default(),
            route: Cell::default(),
            expired: Cell::default(),
            endless: Cell::default(),
            has_body: Cell::default(),
            passes: Cell::default(),
            idle: Cell::default(),
            held: Cell::default(),
            entry,
        }
    }

    pub(in crate::http) fn talk(&self) -> &Rc<Talk> {
        &self.talk
    }

    pub(in crate::http) fn entry(&self) -> &Rc<Entry> {
        &self.entry
    }

    /// What `work` gives, unless one of the request's times is up.
    pub(in crate::http) async fn in_time<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Expired> {
        // Whoever says that time is up polls the whole connection.
        poll_fn(|cx| match self.expired() {
            Some(expired) => Poll::Ready(Err(expired)),
            None => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    pub(in crate::http) fn has_request_ended(&self) -> bool {
        self.request_ended.get().is_some()
    }

    /// When all of the request had come.
    pub(in crate::http) fn request_ended(&self) -> Option<Instant> {
        self.request_ended.get()
    }

    /// All of it has come.
    pub(in crate::http) fn end_request(&self) {
        if !self.has_request_ended() {
            self.request_ended.set(Some(self.talk.now()));
            // A limit that counts from now may be the next.
            self.talk.wake();
        }
    }

    pub(in crate::http) fn passes(&self) -> Passes {
        self.passes.get()
    }

    pub(in crate::http) fn pass(&self, passes: Passes) {
        self.passes.set(passes);
    }

    /// It wants to be a tunnel: its end is not that of its body.
    pub(in crate::http) fn is_endless(&self, has_body: bool) {
        self.endless.set(Some(self.talk.now()));
        self.has_body.set(has_body);
    }

    /// Has all come of it that is no tunnel's?
    pub(in crate::http) fn is_whole(&self) -> bool {
        self.has_request_ended() || self.may_be_tunnel() && !self.has_body.get()
    }

    /// The route's.
    pub(in crate::http) fn limit_idle(&self, idle: Option<Duration>) {
        self.idle.set(idle.or(self.idle.get()));
    }

    /// Of a request of which nothing moves; zero: none.
    pub(in crate::http) fn idle(&self) -> Duration {
        self.idle.get().unwrap_or(self.talk.limits.stream_idle)
    }

    /// Zero: none.
    pub(in crate::http) fn limit_response(&self, route: Duration) {
        // Of one and of the next connection manager: who is the first to lose patience.
        let known = Some(self.route.get()).filter(|known| !known.is_zero());
        let route = Some(route).filter(|route| !route.is_zero());
        self.route
            .set(known.into_iter().chain(route).min().unwrap_or_default());
    }

    pub(in crate::http) fn expired(&self) -> Option<Expired> {
        self.expired.get()
    }

    /// A time is up.
    pub(super) fn expire(&self, expired: Expired) {
        self.expired.set(Some(expired));
    }

    /// Is it to be a tunnel if the upstream likes?
    pub(super) fn may_be_tunnel(&self) -> bool {
        self.endless.get().is_some()
    }

    pub(super) fn due(&self, request: Duration, since: Instant) -> Option<(Instant, Expired)> {
        if self.expired.get().is_some() {
            return None; // It is being answered for that.
        }
        let waits_since = self.endless.get().or(self.request_ended.get());
        let response = waits_since.and_then(|since| after(self.route.get(), since));
        let response = response.map(|at| (at, Expired::Response));
        let request = after(request, since).filter(|_| !self.has_request_ended());
        earliest([response, request.map(|at| (at, Expired::Request)), None])
    }
}
