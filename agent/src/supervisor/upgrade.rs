//! Another data plane, of the program that is on disk now, in the place of the one that serves. Nobody is refused or reset:
//!
//! ```text
//! Preparing: the successor is told everything but the listeners     -- fails, is late: killed, nothing has changed
//! Opening:   it has the listeners too, both accept                  -- the same
//!    it has said so: the commit point
//! Retiring:  the old one accepts no more, lets go of what only one process can read; then the new one has that too
//! ```
//! The old one goes on with its connections for as long as `timeouts.upgrade`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Supervisor;
use super::asked::Asker;
use super::data_plane::{PlaneId, Program};
use crate::ipc::{Outcome, ToWorker};

/// For a successor to be told everything and to have all its threads answer. Shorter than the admin API's patience.
const PREPARES: Duration = Duration::from_secs(20);
/// For an answer to one message.
const ANSWERS: Duration = Duration::from_secs(5);
/// Beyond what a retired data plane was told.
const ENDS: Duration = Duration::from_secs(5);
/// Retired data planes at once: each has its own memory, and `timeouts.upgrade` may be long.
const MOST_RETIRED: usize = 4;

/// One that goes on.
#[derive(Debug)]
pub(super) struct Upgrade {
    asker: Option<Asker>,
    stage: Stage,
    /// When this stage has failed.
    until: Instant,
}

#[derive(Debug)]
enum Stage {
    Preparing {
        successor: PlaneId,
        /// `None`: only now.
        program: Option<Program>,
        /// It has carried out messages up to this one.
        known: u64,
    },
    Opening {
        successor: PlaneId,
        program: Option<Program>,
        /// The last of its listeners came with the message of this number.
        number: u64,
    },
    Retiring {
        plane: PlaneId,
        number: u64,
    },
}

impl Supervisor {
    pub(super) fn upgrade_data_plane(&mut self, asker: Asker) {
        let program = Program::on_disk().context("cannot open the program on disk");
        let begun = program.and_then(|(path, program)| {
            tracing::info!(program = %path.display(), "a new data plane is made ready");
            self.begin_upgrade(program)
        });
        if let Err(error) = begun {
            let error = format!("{error:#}; nothing has changed");
            tracing::error!(error, "the data plane is not replaced");
            *self.upgrades.entry("failed".into()).or_default() += 1;
            self.answer(asker, Err(error));
        } else if let Some(upgrade) = &mut self.upgrade {
            upgrade.asker = Some(asker);
        }
    }

    /// # Errors
    /// Nothing of the kind is possible now.
    pub(super) fn may_upgrade(&mut self) -> Result<()> {
        anyhow::ensure!(self.upgrade.is_none(), "an upgrade goes on already");
        let retired = self.data_plane.retired().len();
        anyhow::ensure!(
            retired < MOST_RETIRED,
            "{retired} earlier data planes still let their connections end: wait for them (`shunt status`), or \
             make `timeouts.upgrade` shorter"
        );
        anyhow::ensure!(
            self.data_plane.alive(),
            "the data plane that is to be replaced does not answer; if it is stuck it is replaced within 5 s"
        );
        Ok(())
    }

    /// # Errors
    /// It cannot begin; nothing has changed.
    pub(super) fn begin_upgrade(&mut self, program: Program) -> Result<()> {
        self.may_upgrade()?;
        let hello = self.hello();
        let successor = self.data_plane.spawn_successor(&program, &hello)?;
        self.data_plane.confide(Some(successor));
        let admin = self.home.admin_fds();
        match admin {
            Ok(admin) => self.data_plane.tell(&ToWorker::Admin, admin),
            Err(error) => tracing::error!(%error, "the new data plane will not answer"),
        }
        self.tell_everything();
        self.data_plane.confide(None);
        self.upgrade = Some(Upgrade {
            asker: None,
            stage: Stage::Preparing {
                successor,
                program: Some(program),
                known: 0,
            },
            until: Instant::now() + PREPARES,
        });
        Ok(())
    }

    /// A data plane has carried out a message.
    pub(super) fn upgrade_knows(&mut self, plane: PlaneId, number: u64) {
        let Some(upgrade) = &mut self.upgrade else {
            return;
        };
        match &mut upgrade.stage {
            Stage::Preparing {
                successor, known, ..
            } if *successor == plane => *known = number,
            Stage::Opening {
                successor,
                program,
                number: last,
            } if *successor == plane && number >= *last => {
                if let Some(program) = program.take() {
                    self.commit(program);
                }
                return;
            }
            Stage::Retiring {
                plane: old,
                number: last,
            } if *old == plane && number >= *last => return self.succeeded(),
            _ => {}
        }
        self.go_on_with_upgrade();
    }

    /// With each tick, and when something has changed.
    pub(super) fn go_on_with_upgrade(&mut self) {
        self.data_plane.kill_the_late();
        let Some(upgrade) = &mut self.upgrade else {
            return;
        };
        if Instant::now() >= upgrade.until {
            return self.upgrade_is_late();
        }
        let Stage::Preparing {
            successor,
            program,
            known,
        } = &mut upgrade.stage
        else {
            return;
        };
        let told = self.data_plane.told_successor();
        if told.is_some_and(|told| *known >= told)
            && self.data_plane.successor_is_alive()
            && let Some(number) = self.data_plane.open_successor()
        {
            let (successor, program) = (*successor, program.take());
            upgrade.stage = Stage::Opening {
                successor,
                program,
                number,
            };
            upgrade.until = Instant::now() + ANSWERS;
        }
    }

    /// From here on there is no way back: the new one accepts connections.
    fn commit(&mut self, program: Program) {
        let grace = self.config.timeouts.upgrade;
        let retire = ToWorker::Retire {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        let until = Instant::now() + grace + ENDS;
        let retired = self.data_plane.promote(program, &retire, until);
        *self.upgrades.entry("done".into()).or_default() += 1;
        match (retired, &mut self.upgrade) {
            (Some((plane, number)), Some(upgrade)) => {
                upgrade.stage = Stage::Retiring { plane, number };
                upgrade.until = Instant::now() + ANSWERS;
            }
            _ => self.succeeded(),
        }
        self.keep_gates();
    }

    fn succeeded(&mut self) {
        self.data_plane.give_books();
        let pid = self.data_plane.pid();
        tracing::info!(
            pid,
            "the data plane was replaced; the one before lets its connections end"
        );
        if let Some(asker) = self.upgrade.take().and_then(|upgrade| upgrade.asker) {
            self.answer(asker, Ok(Outcome::InForce));
        }
        self.changed = true;
    }

    fn upgrade_is_late(&mut self) {
        let old = self
            .upgrade
            .as_ref()
            .and_then(|upgrade| match upgrade.stage {
                Stage::Retiring { plane, .. } => Some(plane),
                _ => None,
            });
        match old {
            Some(old) => {
                tracing::error!("the earlier data plane does not answer and is killed");
                self.data_plane.kill(old);
                self.succeeded();
            }
            None => self.give_up_upgrade("the new data plane did not make itself ready in time"),
        }
    }

    /// A data plane is no good; of interest here if it is the successor.
    pub(super) fn successor_fails(&mut self, plane: PlaneId, reason: &str) {
        let is_it = self.upgrade.as_ref().is_some_and(|upgrade| {
            matches!(upgrade.stage, Stage::Preparing { successor, .. } | Stage::Opening { successor, .. }
                if successor == plane)
        });
        if is_it {
            self.give_up_upgrade(reason);
        }
    }

    /// Nothing has changed: the one that serves goes on.
    pub(super) fn give_up_upgrade(&mut self, reason: &str) {
        let before = |upgrade: &mut Upgrade| !matches!(upgrade.stage, Stage::Retiring { .. });
        let Some(upgrade) = self.upgrade.take_if(before) else {
            return;
        };
        self.data_plane.give_up_successor();
        tracing::error!(
            reason,
            "the data plane is not replaced, the one that serves goes on"
        );
        *self.upgrades.entry("failed".into()).or_default() += 1;
        if let Some(asker) = upgrade.asker {
            let told = format!("{reason}; the data plane that serves goes on, nothing has changed");
            self.answer(asker, Err(told));
        }
    }

    /// A data plane has ended.
    pub(super) fn upgrade_misses(&mut self, ended: PlaneId) {
        let stage = self.upgrade.as_ref().map(|upgrade| &upgrade.stage);
        match stage {
            Some(Stage::Retiring { plane, .. }) if *plane == ended => self.succeeded(),
            _ => {}
        }
    }

    /// May whoever serves read what only one process can?
    pub(super) fn books_are_free(&self) -> bool {
        self.upgrade.is_none()
    }
}
