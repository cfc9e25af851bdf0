//! The accept loop.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use std::sync::atomic::Ordering::Relaxed;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::scarcity::out_of_descriptors;
use crate::worker::{Entrance, Local};
use crate::{flow, gateway};

/// Out of memory, or of descriptors and the reserve, accept is tried again this late, and later and later: it must not spin.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A closing listener whose queue was empty for this long, twice, has nobody left to serve.
const QUIET: Duration = Duration::from_millis(50);

/// Is a listener to be closed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    No,
    /// Once nobody waits in its queue: nobody else takes them.
    WhenQuiet,
    /// At once: another process has the same queue.
    HandedOver,
}

/// Accepts until told to close and the queue is empty, or somebody else's.
pub(crate) async fn accept<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    entrance: Rc<Entrance>,
    listener: TcpListener,
    mut closing: watch::Receiver<Closing>,
) {
    let mut pause = FIRST_PAUSE;
    let mut quiet = 0;
    while quiet < 2 {
        let state = *closing.borrow_and_update();
        let accepted = match state {
            Closing::HandedOver => break,
            Closing::WhenQuiet => match timeout(QUIET, listener.accept()).await {
                Ok(accepted) => accepted,
                Err(_) => {
                    quiet += 1;
                    continue;
                }
            },
            Closing::No => tokio::select! {
                accepted = listener.accept() => accepted,
                _ = closing.changed() => continue,
            },
        };
        quiet = 0;
        match accepted {
            // The reserve goes before new flows: who comes after this one must be refused too.
            Ok((client, from)) if !local.reserve.refill() => {
                let counters = &local.context.counters;
                counters
                    .connections_refused_by_descriptors
                    .fetch_add(1, Relaxed);
                // With a reset. If it fails, the client is gone already.
                let _ = flow::prepare(&client);
                match &*entrance {
                    Entrance::Steered(spec) => flow::refused(&local, spec, from),
                    Entrance::Bound(addr) => gateway::refused(&local, *addr, from),
                }
                drop(client);
                local.reserve.refill();
            }
            Ok((client, from)) => {
                pause = FIRST_PAUSE;
                match &*entrance {
                    Entrance::Steered(spec) => {
                        let closing = closing.clone();
                        let flow =
                            flow::serve(Rc::clone(&local), Rc::clone(spec), client, from, closing);
                        local.start(spec.workload, flow);
                    }
                    Entrance::Bound(addr) => {
                        let closing = closing.clone();
                        let served =
                            gateway::serve(Rc::clone(&local), *addr, client, from, closing);
                        local.start(entrance.workload(), served);
                    }
                }
            }
            // The client gave up while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Somebody destroyed the socket (`ss -K`): it listens no more, and nobody waits. The supervisor sees it too.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => {
                local.context.counters.accept_errors.fetch_add(1, Relaxed);
                if let Some(unsaid) = local.accept_warnings.now() {
                    tracing::warn!(listener = %entrance.addr(), %error, unsaid, "cannot accept");
                }
                // The next one in the queue is taken in a place of the reserve, and refused.
                if out_of_descriptors(&error) && local.reserve.give() {
                    continue;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
    local.listener_closed(&entrance);
}
