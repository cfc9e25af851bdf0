//! Responses of an upstream's before its response, `100 Continue` and its kin, on their way to the client: hyper's server
//! writes none, so they go past it, in front of what it writes next.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use hyper::ext::on_informational;
use hyper::header::{self, HeaderMap};
use hyper::{Request, StatusCode};

use super::body::RequestBody;
use super::received::drop_hop_by_hop;
use super::wire::properly;

/// Those of one request that are passed on; the client need not take them, and its upstream could go on for ever.
const MOST: usize = 8;
/// Bytes of one, likewise.
const LARGEST: usize = 16 << 10;

/// Of one request.
pub(super) struct Interim {
    state: Mutex<State>,
    proper_case: bool,
    /// Of who writes to the client.
    waker: Option<Waker>,
}

#[derive(Default)]
struct State {
    /// Not written yet.
    bytes: Vec<u8>,
    passed: usize,
    continued: bool,
}

impl Interim {
    pub(super) fn new(proper_case: bool, waker: Option<Waker>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            proper_case,
            waker,
        })
    }

    /// Hears of what comes before this request's response.
    pub(super) fn listen(self: &Arc<Self>, request: &mut Request<RequestBody>) {
        let own = Arc::clone(self);
        on_informational(request, move |response| {
            own.pass(response.status(), response.headers());
        });
    }

    pub(super) fn take(&self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.bytes)
    }

    fn pass(&self, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_continue = status == StatusCode::CONTINUE;
        let text = self.render(status, headers);
        // As in Envoy, a client continues once.
        if state.passed >= MOST || text.len() > LARGEST || is_continue && state.continued {
            return;
        }
        state.passed += 1;
        state.continued |= is_continue;
        state.bytes.extend(text);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn render(&self, status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
        let mut headers = headers.clone();
        drop_hop_by_hop(&mut headers);
        headers.remove(header::CONTENT_LENGTH);
        // Envoy's words.
        let reason = match status {
            StatusCode::CONTINUE => "Continue",
            _ => "Unknown",
        };
        let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
        for (name, value) in &headers {
            match self.proper_case {
                true => text.extend(properly(name.as_str()).bytes()),
                false => text.extend(name.as_str().bytes()),
            }
            text.extend(b": ");
            text.extend(value.as_bytes());
            text.extend(b"\r\n");
        }
        text.extend(b"\r\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_continues_once_and_hears_so_much() {
        let interim = Interim::new(true, None);
        let mut headers = HeaderMap::new();
        headers.insert("x-own", "1".parse().expect("a value"));
        headers.insert("connection", "close".parse().expect("a value"));
        interim.pass(StatusCode::CONTINUE, &headers);
        interim.pass(StatusCode::CONTINUE, &headers);
        let text = String::from_utf8(interim.take()).expect("text");
        assert_eq!(text, "HTTP/1.1 100 Continue\r\nX-Own: 1\r\n\r\n");
        for _ in 0..100 {
            interim.pass(StatusCode::EARLY_HINTS, &HeaderMap::new());
        }
        let text = String::from_utf8(interim.take()).expect("text");
        assert_eq!(text, "HTTP/1.1 103 Unknown\r\n\r\n".repeat(MOST - 1));
    }
}
