//! What data planes say, and their ends.

use std::process::ExitStatus;

use super::asked::Asker;
use super::data_plane::{Event, PlaneId, Role};
use super::{Next, Supervisor};
use crate::ipc::{Change, ChannelError, Outcome, ToSupervisor, ToWorker};

impl Supervisor {
    /// Something a data plane said, or its end.
    pub(super) fn heard(&mut self, event: Event) -> Next {
        match event {
            Event::Said(plane, message) => return self.said(plane, message),
            Event::Failed(plane, error) => {
                if !matches!(error, ChannelError::Closed) {
                    tracing::error!(%error, "a data plane is not understood and will be killed");
                    self.successor_fails(
                        plane,
                        &format!("the new data plane is not understood: {error}"),
                    );
                }
                self.data_plane.kill(plane);
            }
            Event::Ended(role, plane, status) => self.data_plane_ended(role, plane, status),
            Event::StartDue => {
                if let Err(error) = self.start_data_plane() {
                    tracing::error!(error = format!("{error:#}"), "cannot start the data plane");
                    self.data_plane.schedule_start();
                }
            }
        }
        Next::Continue
    }

    fn data_plane_ended(&mut self, role: Role, plane: PlaneId, status: ExitStatus) {
        match role {
            Role::Serving => {
                tracing::warn!(%status, "the data plane ended; starting another");
                *self.repairs.entry("data_plane".into()).or_default() += 1;
                self.give_up_upgrade("the data plane that serves ended meanwhile");
                self.data_plane.schedule_start();
            }
            Role::Successor => {
                let reason = format!("the new data plane ended: {status}");
                self.give_up_upgrade(&reason);
            }
            Role::Retired => tracing::info!(%status, "an earlier data plane ended"),
        }
        self.upgrade_misses(plane);
        self.flows_are_gone(plane);
        // Whoever asked it is not connected any more.
        self.forget_admins(plane);
        self.changed = true;
    }

    fn said(&mut self, plane: PlaneId, message: ToSupervisor) -> Next {
        match message {
            ToSupervisor::Ack { number, error } => {
                if let Some(error) = error {
                    tracing::error!(number, error, "a data plane could not carry out a message");
                    self.successor_fails(plane, &format!("the new data plane: {error}"));
                }
                self.acknowledged(plane, number);
                self.upgrade_knows(plane, number);
            }
            ToSupervisor::NeedSockets {
                worker,
                want,
                count,
            } => {
                self.supply(plane, worker, want, count);
            }
            ToSupervisor::ListenersClosed { id } => self.listeners_closed(plane, id),
            ToSupervisor::Drained { id } => self.drained(plane, id),
            ToSupervisor::WhichResolver {
                ticket,
                workload,
                listener,
                client,
            } => {
                let resolver = self.resolver(workload, listener, client);
                self.data_plane
                    .tell_one(plane, ToWorker::Resolver { ticket, resolver });
            }
            ToSupervisor::Explain { ticket, inquiry } => {
                let result = self.explain(&inquiry).map(Box::new);
                self.data_plane
                    .tell_one(plane, ToWorker::Explained { ticket, result });
            }
            ToSupervisor::Change { ticket, change } => {
                let asker = Asker::Admin(plane, ticket);
                let noted = match change {
                    Change::Put(spec) => self.put(*spec),
                    Change::Delete(name) => self.delete(&name),
                    Change::LogLevel(level) => {
                        let set = self.level.set(&level);
                        let set = set.map_err(|error| error.to_string());
                        self.answer(asker, set.map(|()| Outcome::InForce));
                        return Next::Continue;
                    }
                    Change::Drain => {
                        self.answer(asker, Ok(Outcome::InForce));
                        return Next::Stop;
                    }
                    Change::UpgradeAgent => {
                        self.be_succeeded(asker);
                        return Next::Continue;
                    }
                    Change::UpgradeDataPlane => {
                        self.upgrade_data_plane(asker);
                        return Next::Continue;
                    }
                };
                self.promise(asker, noted);
            }
        }
        Next::Continue
    }
}
