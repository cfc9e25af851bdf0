//! The agent's end, in order.

use std::time::{Duration, Instant};

use super::leaving::Leaving;
use super::{RELEASES, Supervisor, data_plane, until};
use crate::ipc::{ToSupervisor, ToWorker};

/// So long after its flows' time the data plane is given to end.
const ENDS: Duration = Duration::from_secs(5);

type Signal = tokio::signal::unix::Signal;

impl Supervisor {
    /// New connections go directly at once; flows get their time; then everything is removed.
    pub(super) async fn stop(&mut self, terminate: &mut Signal, interrupt: &mut Signal) {
        tracing::info!("stopping: new connections go directly, flows may end in order");
        let grace = self.config.timeouts.drain;
        self.manager.stopping(grace + ENDS + 3 * RELEASES);
        self.give_up_upgrade("the agent stops");
        self.store_only_node();
        self.withdraw_everything();
        let released_by = Instant::now() + RELEASES;
        while self.leaving.iter().any(Leaving::still_captures) && Instant::now() < released_by {
            let step = self.next_step();
            tokio::select! {
                event = self.data_plane.next() => self.heard_while_stopping(event),
                () = until(step) => {
                    self.step_of_leaving(Instant::now());
                    // Those whose turn has not come are served until then.
                    self.keep_gates();
                }
            }
        }
        let stop = ToWorker::Stop {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        self.data_plane.tell_everybody(&stop);
        self.data_plane.start_no_more();
        let deadline = Instant::now() + grace + ENDS;
        while !self.data_plane.ids().is_empty() {
            tokio::select! {
                event = self.data_plane.next() => self.heard_while_stopping(event),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = tokio::time::sleep_until(deadline.into()) => {
                    tracing::warn!("the data plane did not end in time and is killed");
                    break;
                }
            }
        }
        self.data_plane.kill_everybody();
        // Until they are reaped they hold what says that flows go on.
        while !self.data_plane.ids().is_empty() {
            let event = self.data_plane.next().await;
            self.heard_while_stopping(event);
        }
        self.everybody_is_gone();
        let removed_by = Instant::now() + RELEASES;
        while let Some(at) = self.next_step().filter(|at| *at < removed_by) {
            until(Some(at)).await;
            self.step_of_leaving(Instant::now());
        }
        self.backends.unload();
        self.home.leave();
        tracing::info!("stopped; nothing of the agent is left");
    }

    /// Flows that are ending still need sockets; nothing is started any more.
    fn heard_while_stopping(&mut self, event: data_plane::Event) {
        match event {
            data_plane::Event::Said(
                plane,
                ToSupervisor::NeedSockets {
                    worker,
                    want,
                    count,
                },
            ) => {
                self.supply(plane, worker, want, count);
            }
            data_plane::Event::Said(plane, ToSupervisor::ListenersClosed { id }) => {
                self.listeners_closed(plane, id);
            }
            data_plane::Event::Said(plane, ToSupervisor::Drained { id }) => {
                self.drained(plane, id);
            }
            data_plane::Event::Said(..)
            | data_plane::Event::StartDue
            | data_plane::Event::Failed(..) => {}
            data_plane::Event::Ended(_, plane, _) => {
                tracing::debug!("a data plane ended");
                self.flows_are_gone(plane);
            }
        }
    }
}
