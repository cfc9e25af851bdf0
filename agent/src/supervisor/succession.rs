//! Another program in the place of this one, in the same process: what it needs is left to it, nothing is let go meanwhile.
//!
//! ```text
//! Checking: the program on disk says whether it could go on from here          -- no, or late: nothing has changed
//!    what is under way is finished, everything is written down, exec(2)         -- fails: nothing has changed
//! the next supervisor: data planes and listeners are the same, programs of ours steer on
//!    -> enrols everybody: its programs are attached behind ours, rules are written over the same rules
//!    -> a data plane of its own takes over, see `upgrade`  -> ours are detached
//! ```

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, geteuid, getpid, kill_process, waitpid};
use shunt_core::status::OWNERSHIP;
use shunt_core::workload::WorkloadSpec;
use shunt_intercept::inherited::ignore_broken_pipes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Supervisor;
use super::asked::Asker;
use super::data_plane::Program;
use super::enrolment::Serving;
use super::inherited::Inherited;
use super::leaving::Leaving as Withdrawn;
use super::lifecycle::{Phase, Workload};
use super::store::{LISTEN, Stored};
use crate::ipc::Outcome;
use crate::will::{self, Leaving, Served, Will};

/// For the program on disk to say whether it could. Its answer is read, and what is under way finished, within this.
const CHECKS: Duration = Duration::from_secs(15);
/// Between attempts to start the data plane that replaces an inherited one.
const PAUSE: Duration = Duration::from_secs(2);
/// Who cannot be enrolled for so long is not waited for: what captured him is let go.
const TAKES_OVER: Duration = Duration::from_secs(30);
/// For what data planes have asked for meanwhile, and when it is taken for all.
const CATCHES_UP: Duration = Duration::from_millis(500);
const QUIET: Duration = Duration::from_millis(20);
const FLAG: &str = "--succeeds";

/// One that goes on.
#[derive(Debug)]
pub(super) struct Succession {
    asker: Asker,
    program: Program,
    verdict: oneshot::Receiver<Result<(), String>>,
    /// It has said yes.
    could: bool,
    until: Instant,
}

impl Supervisor {
    /// Begins to be succeeded.
    pub(super) fn be_succeeded(&mut self, asker: Asker) {
        match self.check_successor() {
            Ok((program, verdict)) => {
                self.succession = Some(Succession {
                    asker,
                    program,
                    verdict,
                    could: false,
                    until: Instant::now() + CHECKS,
                });
            }
            Err(error) => self.is_not_succeeded(asker, &format!("{error:#}")),
        }
    }

    fn is_not_succeeded(&mut self, asker: Asker, reason: &str) {
        let told = format!("{reason}; nothing has changed");
        tracing::error!(reason, "the agent is not replaced");
        *self.upgrades.entry("failed".into()).or_default() += 1;
        self.answer(asker, Err(told));
    }

    fn check_successor(&mut self) -> Result<(Program, oneshot::Receiver<Result<(), String>>)> {
        ensure!(self.succession.is_none(), "the agent is being replaced");
        ensure!(
            geteuid().is_root(),
            "the agent is not run by root: its capabilities would not outlive the change"
        );
        self.may_be_succeeded()?;
        self.may_upgrade()?;
        let (path, program) = Program::on_disk().context("cannot open the program on disk")?;
        tracing::info!(program = %path.display(), "the next supervisor is asked whether it could go on");
        let mut command = tokio::process::Command::from(command(&program)?);
        command.args(["--could-succeed", will::LINE]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let child = command
            .spawn()
            .context("cannot start the program on disk")?;
        let (tell, verdict) = oneshot::channel();
        tokio::spawn(async move {
            let output = tokio::time::timeout(CHECKS, child.wait_with_output()).await;
            let verdict = match output {
                Ok(Ok(output)) if output.status.success() => Ok(()),
                Ok(Ok(output)) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    Err(format!(
                        "the new program: {} ({})",
                        said.trim(),
                        output.status
                    ))
                }
                Ok(Err(error)) => Err(format!("the new program: {error}")),
                Err(_) => Err("the new program does not answer".into()),
            };
            let _ = tell.send(verdict);
        });
        Ok((program, verdict))
    }

    /// As long as nothing is there that cannot be handed over.
    fn may_be_succeeded(&self) -> Result<()> {
        let settings = self.needs_start.join(", ");
        ensure!(
            settings.is_empty(),
            "the configuration file has changed in {settings}: the agent has to be started anew"
        );
        let mut served = self.workloads.values().filter_map(Workload::serving);
        let asks = served.find(|serving| !serving.enrolment.dns.is_empty());
        if let Some(asks) = asks {
            let name = &asks.enrolment.spec.name;
            bail!(
                "{name} has its DNS queries captured, which is not handed over: upgrade the data plane alone, or start the agent anew"
            );
        }
        Ok(())
    }

    /// With each tick.
    pub(super) fn go_on_with_succession(&mut self) {
        self.orphans
            .retain(|orphan| matches!(waitpid(Some(*orphan), WaitOptions::NOHANG), Ok(None)));
        self.replace_the_inherited();
        let gone = self.data_plane.retired().is_empty();
        if self.backends.let_go(gone) {
            tracing::info!("nothing of the program before is left");
            if std::mem::take(&mut self.unfinished) {
                let all = self.workloads.values().map(|workload| &workload.spec);
                let nobody = Stored::default();
                self.home
                    .clean_up_after_the_dead(all, &self.attachments, &nobody);
                self.keep_gates();
            }
            self.tell_destinations();
        }
        let Some(mut succession) = self.succession.take() else {
            return;
        };
        if !succession.could {
            match succession.verdict.try_recv() {
                Ok(Ok(())) => succession.could = true,
                Ok(Err(reason)) => return self.is_not_succeeded(succession.asker, &reason),
                Err(_) => {}
            }
        }
        if succession.could && self.is_at_rest() {
            // It was asked a while ago.
            return match self.may_be_succeeded() {
                Ok(()) => self.leave_everything(succession),
                Err(error) => self.is_not_succeeded(succession.asker, &format!("{error:#}")),
            };
        }
        if Instant::now() >= succession.until {
            let reason = "something else was under way all the time";
            return self.is_not_succeeded(succession.asker, reason);
        }
        self.succession = Some(succession);
    }

    /// Nobody waits for an answer, and nobody is between two states.
    fn is_at_rest(&self) -> bool {
        let waits = |workload: &Workload| match &workload.phase {
            Phase::Serving { change, .. } => change.is_some(),
            Phase::Waiting { retry, .. } => !retry.failed(),
        };
        // A data plane that has just ended is started again first: the next supervisor expects one.
        self.captures
            && self.upgrade.is_none()
            && self.asked.is_empty()
            && self.unconfirmed.is_empty()
            && !self.workloads.values().any(waits)
            && !self.leaving.iter().any(Withdrawn::still_captures)
    }

    fn leave_everything(&mut self, succession: Succession) {
        self.keep_gates();
        let Succession { asker, program, .. } = succession;
        // Answered before: afterwards nobody knows who asked.
        self.answer(asker, Ok(Outcome::InForce));
        let mut leaving = Leaving::default();
        let Err(error) = self.replace_this_program(&program, &mut leaving);
        let error = format!("{error:#}");
        tracing::error!(error, "the agent is not replaced, and goes on");
        *self.upgrades.entry("failed".into()).or_default() += 1;
    }

    /// Returns only where it failed.
    fn replace_this_program(
        &mut self,
        program: &Program,
        leaving: &mut Leaving,
    ) -> Result<Infallible> {
        let will = self.will(leaving).context("cannot leave everything")?;
        let will = will.ok_or_else(|| anyhow!("a data plane does not read what it is told"))?;
        let number = leaving.write(&will).context("cannot write it down")?;
        tracing::info!("another program goes on from here");
        let mut command = command(program)?;
        let error = command.arg(FLAG).arg(number.to_string()).exec();
        ignore_broken_pipes()?;
        Err(error).context("cannot run it")
    }

    /// `None`: not now.
    fn will(&mut self, leaving: &mut Leaving) -> io::Result<Option<Will>> {
        let uptime = self.home.started.elapsed().as_millis();
        let uptime = u64::try_from(uptime).unwrap_or(u64::MAX);
        let mut will = Will::new(uptime, self.next_id, self.config.concurrency);
        let Some((planes, next)) = self.data_plane.bequeath(leaving)? else {
            return Ok(None);
        };
        (will.planes, will.next_plane) = (planes, next);
        will.admin = leaving.leave_all(&self.home.admin_fds().map_err(io::Error::other)?)?;
        for (addr, sockets) in self.served.sockets() {
            will.node.push((*addr, leaving.leave_all(sockets)?));
        }
        for serving in self.workloads.values().filter_map(Workload::serving) {
            will.served.push(served(serving, leaving)?);
        }
        self.backends.bequeath(leaving, &mut will)?;
        will.stored = self.manager.kept();
        will.unfinished = self.unfinished || !self.leaving.is_empty();
        // They are remembered elsewhere.
        let others = |spec: &WorkloadSpec| {
            let mut labels = spec.labels.keys();
            labels.any(|label| label.starts_with(OWNERSHIP))
                || self.attachments.netns_of(spec).is_some()
        };
        let of_file = &self.config.workloads;
        let wished = self.workloads.values().map(|workload| &workload.spec);
        will.put = wished
            .filter(|spec| !of_file.contains(spec) && !others(spec))
            .cloned()
            .collect();
        let gone = of_file.iter().map(|spec| &spec.name);
        will.deleted = gone
            .filter(|name| !self.workloads.contains_key(name))
            .cloned()
            .collect();
        Ok(Some(will))
    }

    /// Goes on from what the supervisor before this one has left, but for what [`Inherited`] has.
    ///
    /// # Errors
    /// It did not come whole.
    pub(super) async fn succeed(&mut self, will: Will, inherited: Inherited) -> Result<()> {
        self.next_id = will.next_id;
        self.unfinished = will.unfinished;
        self.manager.recall(will.stored);
        self.store_node();
        self.orphans = orphans(&will.planes);
        let brought = inherited.brought.clone();
        self.backends.inherited = inherited;
        self.data_plane
            .adopt(will.planes, will.workers, will.next_plane, brought)?;
        for name in &will.deleted {
            self.workloads.remove(name);
        }
        for spec in will.put {
            self.workloads
                .insert(spec.name.clone(), Workload::new(spec));
        }
        self.succeeds = Some(Instant::now());
        // Loading programs takes a while. Those who have waited for sockets do not wait for that too.
        let last = Instant::now() + CATCHES_UP;
        while Instant::now() < last
            && let Ok(event) = timeout(QUIET, self.data_plane.next()).await
        {
            if self.heard(event).is_stop() {
                // The loop hears it, once it runs.
                kill_process(getpid(), Signal::TERM)?;
            }
        }
        Ok(())
    }

    /// Once everybody is enrolled, a data plane of this build is put in the place of the one that was there before, and what
    /// is left of the supervisor before this one is let go.
    fn replace_the_inherited(&mut self) {
        let Some(since) = self.succeeds.filter(|_| self.upgrade.is_none()) else {
            return;
        };
        let untried = |workload: &Workload| match &workload.phase {
            Phase::Waiting { retry, .. } => !retry.failed(),
            Phase::Serving { .. } => false,
        };
        // One that could not be enrolled at once is captured as before, for a while.
        let is_late = since.elapsed() > TAKES_OVER;
        let waits = |name| self.workloads.contains_key(name);
        let is_awaited = !is_late && self.backends.inherited.unclaimed().any(waits);
        if is_awaited || self.workloads.values().any(untried) {
            return;
        }
        if !self.data_plane.serves_adopted() {
            if self.captures {
                tracing::info!("this program has taken over");
                self.succeeds = None;
                self.backends.inherited.release();
                self.manager.forget_recalled();
                self.backends.make_ready(self.config.mode);
            }
            return;
        }
        if self.succession_due.is_none_or(|at| at <= Instant::now()) {
            self.succession_due = Some(Instant::now() + PAUSE);
            if let Err(error) = self.begin_upgrade(Program::Own) {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "no data plane of this build yet; the one before goes on"
                );
            }
        }
    }
}

/// Children of the program before that end by themselves, and are not reaped by anybody else.
fn orphans(planes: &[will::Plane]) -> Vec<Pid> {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    let is_plane = |child: &u32| planes.iter().any(|plane| plane.pid == *child);
    let others = children.filter(|child| !is_plane(child));
    others
        .filter_map(|child| Pid::from_raw(i32::try_from(child).ok()?))
        .collect()
}

/// The same words as this one was started with.
fn command(program: &Program) -> Result<Command> {
    let mut words = std::env::args_os();
    let mut command = Command::new(program.path());
    command.arg0(words.next().context("no name")?);
    // What systemd has handed over is left by the will.
    for name in LISTEN {
        command.env_remove(name);
    }
    while let Some(word) = words.next() {
        if word == FLAG {
            words.next();
        } else {
            command.arg(word);
        }
    }
    Ok(command)
}

fn served(serving: &Serving, leaving: &mut Leaving) -> io::Result<Served> {
    let enrolment = &serving.enrolment;
    let mut listeners = Vec::new();
    for listener in &enrolment.listeners {
        let sockets = leaving.leave_all(&listener.sockets)?;
        listeners.push((listener.spec.clone(), sockets));
    }
    let mut held = |held: &Option<_>| held.as_ref().map(|fd| leaving.leave(fd)).transpose();
    Ok(Served {
        id: enrolment.id,
        name: enrolment.spec.name.clone(),
        shares_netns: enrolment.spec.shares_netns(),
        claim: held(&serving.claim)?,
        flows: held(&serving.flows)?,
        netns: leaving.leave(&*enrolment.netns)?,
        path: enrolment.netns.path().to_owned(),
        listeners,
    })
}
