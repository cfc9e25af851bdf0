//! What a withdrawn workload goes through, in this order; nothing of it resets a connection:
//!
//! ```text
//! released (new connections go directly) -> told to the data plane -> listeners closed, once nobody waits in them
//!    -> drained (its last flow has ended) -> what flows needed is removed
//! ```

use std::time::Instant;

use shunt_core::workload::{WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::return_path;

use super::Supervisor;
use super::data_plane::PlaneId;
use super::enrolment::{Serving, flows, is_in_use};
use super::lifecycle::Retry;
use super::store::listen_no_more;
use crate::ipc::ToWorker;

/// Withdrawn, and not gone yet.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) serving: Serving,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its hooks or rules are still in force.
    Capturing(Retry),
    Draining {
        /// Those that have not said that its listeners are closed.
        listening: Vec<PlaneId>,
        /// Those that have not said that its last flow has ended.
        carrying: Vec<PlaneId>,
    },
    /// What its flows needed is still there.
    Leftovers(Retry),
}

impl Leaving {
    /// When something is to be done about it; `None`: others say when.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Capturing(retry) | Stage::Leftovers(retry) => Some(retry.at),
            Stage::Draining { .. } => None,
        }
    }

    pub(super) fn still_captures(&self) -> bool {
        self.captures_until().is_some()
    }

    /// When its hooks or rules are to be released, if they are still in force.
    pub(super) fn captures_until(&self) -> Option<Retry> {
        match self.stage {
            Stage::Capturing(retry) => Some(retry),
            Stage::Draining { .. } | Stage::Leftovers(_) => None,
        }
    }

    /// Its listeners are still open where this one wants to be.
    pub(super) fn holds_place_of(&self, spec: &WorkloadSpec) -> bool {
        let enrolment = &self.serving.enrolment;
        let is_there = enrolment.netns.path() == spec.netns
            && (!spec.shares_netns() || enrolment.spec.cgroup == spec.cgroup);
        self.serving.claim.is_some() && is_there
    }

    pub(super) fn is_of(&self, name: &WorkloadName) -> bool {
        self.serving.enrolment.spec.name == *name
    }

    fn is(&self, id: WorkloadId) -> bool {
        self.serving.enrolment.id == id
    }

    /// A data plane has closed its listeners.
    fn listens_no_more(&mut self, plane: PlaneId) {
        if let Stage::Draining { listening, .. } = &mut self.stage {
            listening.retain(|of| *of != plane);
            if listening.is_empty() {
                self.close_listeners();
            }
        }
    }

    /// A data plane has none of its flows any more.
    fn carries_no_more(&mut self, plane: PlaneId) {
        self.listens_no_more(plane);
        if let Stage::Draining { carrying, .. } = &mut self.stage {
            carrying.retain(|of| *of != plane);
            if carrying.is_empty() {
                self.flows_ended();
            }
        }
    }

    /// Also those that systemd keeps: nobody shall wait there.
    fn close_listeners(&mut self) {
        self.serving.claim = None;
        for listener in self.serving.enrolment.listeners.drain(..) {
            listener.sockets.iter().for_each(listen_no_more);
        }
        self.serving.enrolment.dns.clear();
    }

    fn flows_ended(&mut self) {
        self.close_listeners();
        self.serving.flows = None;
        self.stage = Stage::Leftovers(Retry::now());
    }
}

impl Supervisor {
    /// Takes it out of service, by and by.
    pub(super) fn leave(&mut self, serving: Serving) {
        self.watch.remove(serving.enrolment.id);
        self.store_no_more(&serving);
        self.leaving.push(Leaving {
            serving,
            stage: Stage::Capturing(Retry::now()),
        });
    }

    /// The same for one to whom nobody is steered.
    pub(super) fn leave_released(&mut self, serving: Serving) {
        let id = serving.enrolment.id;
        self.data_plane.tell_everybody(&ToWorker::Withdraw { id });
        let planes = self.data_plane.ids();
        let is_over = planes.is_empty();
        let stage = Stage::Draining {
            listening: planes.clone(),
            carrying: planes,
        };
        let mut leaving = Leaving { serving, stage };
        if is_over {
            leaving.flows_ended();
        }
        self.leaving.push(leaving);
    }

    /// The next thing for somebody who leaves. False: nothing is due.
    pub(super) fn step_of_leaving(&mut self, now: Instant) -> bool {
        let due = |leaving: &Leaving| leaving.due().is_some_and(|at| at <= now);
        let Some(at) = self.leaving.iter().position(due) else {
            return false;
        };
        let mut leaving = self.leaving.swap_remove(at);
        match leaving.stage {
            Stage::Capturing(retry) => match self.release(&leaving.serving) {
                Err(()) => {
                    leaving.stage = Stage::Capturing(retry.later());
                    self.leaving.push(leaving);
                }
                Ok(()) => self.leave_released(leaving.serving),
            },
            Stage::Leftovers(retry) => {
                if let Some(later) = self.remove_leftovers(&leaving.serving, retry) {
                    leaving.stage = Stage::Leftovers(later);
                    self.leaving.push(leaving);
                }
            }
            Stage::Draining { .. } => {}
        }
        true
    }

    /// New connections go directly from now on. The error has been told.
    fn release(&mut self, serving: &Serving) -> Result<(), ()> {
        let enrolment = &serving.enrolment;
        let backend = self.backends.get(serving.mode);
        let released =
            backend.and_then(|backend| backend.release(enrolment).map_err(|error| error.chain()));
        released.map_err(|reason| {
            let workload = &enrolment.spec.name;
            tracing::warn!(%workload, reason, "still captures; releasing it is retried");
        })
    }

    /// `None`: nothing is left, or somebody else needs it.
    fn remove_leftovers(&mut self, serving: &Serving, retry: Retry) -> Option<Retry> {
        let enrolment = &serving.enrolment;
        // There was nothing besides the hooks.
        if enrolment.spec.shares_netns() {
            return None;
        }
        // Served again, or an older data plane has flows there: whoever is last removes.
        if is_in_use(&enrolment.netns, &[flows(enrolment.id)]) {
            return None;
        }
        let finished = self.backends.finish(enrolment);
        let removed = return_path::remove(&enrolment.netns, self.backends.marks.delivery);
        let reason = finished.and(removed.map_err(|error| error.chain())).err()?;
        let workload = &enrolment.spec.name;
        tracing::warn!(%workload, reason, "not everything could be removed; it is retried");
        Some(retry.later())
    }

    pub(super) fn listeners_closed(&mut self, plane: PlaneId, id: WorkloadId) {
        let of_id = self.leaving.iter_mut().filter(|leaving| leaving.is(id));
        of_id.for_each(|leaving| leaving.listens_no_more(plane));
    }

    pub(super) fn drained(&mut self, plane: PlaneId, id: WorkloadId) {
        let of_id = self.leaving.iter_mut().filter(|leaving| leaving.is(id));
        of_id.for_each(|leaving| leaving.carries_no_more(plane));
    }

    /// This data plane is dead, and its flows with it. Whoever still captures goes on with the next one.
    pub(super) fn flows_are_gone(&mut self, plane: PlaneId) {
        let all = self.leaving.iter_mut();
        all.for_each(|leaving| leaving.carries_no_more(plane));
    }

    /// At the end, also those that could not be released.
    pub(super) fn everybody_is_gone(&mut self) {
        self.leaving.iter_mut().for_each(Leaving::flows_ended);
    }
}
