//! The child processes that carry connections, and the channels to them. One serves; while it is being replaced there are
//! others:
//!
//! ```text
//! successor --- has the listeners ---> serving --- replaced ---> retired --- flows ended, or their time is over ---> gone
//!     '--- fails: killed, nothing has changed       '--- dies: another is started
//! ```

mod passing_on;
mod plane;
mod process;
mod program;
mod published;

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::ExitStatus;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Result;
use shunt_core::sockets::SocketWant;
use shunt_core::workload::WorkloadName;
use shunt_intercept::Marks;
use shunt_intercept::netns::Netns;

pub(super) use self::plane::{Brought, PlaneId};
use self::plane::{Kept, Plane, Said};
pub(super) use self::program::Program;
use crate::ipc::{ChannelError, Counted, States, ToSupervisor, ToWorker, WorkloadInfo};

/// A data plane that lived shorter than this is started again only after [`PAUSE`].
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Keeps a data plane that cannot start from taking the node's CPU.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct DataPlane {
    workers: usize,
    program: Program,
    next: u64,
    /// Who accepts connections.
    serving: Option<Plane>,
    successor: Option<Plane>,
    /// With when they are killed at the latest.
    retired: Vec<(Plane, Instant)>,
    /// Whom alone everything is told that concerns all who serve, for now.
    confidant: Option<PlaneId>,
    start_at: Option<Instant>,
    last_alive: Instant,
}

/// What [`DataPlane::next`] waits for.
#[derive(Debug)]
pub(super) enum Event {
    Said(PlaneId, ToSupervisor),
    Failed(PlaneId, ChannelError),
    Ended(Role, PlaneId, ExitStatus),
    StartDue,
}

/// What a data plane was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Serving,
    Successor,
    Retired,
}

impl DataPlane {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            workers,
            program: Program::Own,
            next: 1,
            serving: None,
            successor: None,
            retired: Vec::new(),
            confidant: None,
            start_at: None,
            last_alive: Instant::now(),
        }
    }

    /// Starts the one that serves. With `books` it may have what only one process can read.
    pub(super) fn spawn(&mut self, hello: &ToWorker, books: bool) -> Result<()> {
        let kept = if books { Kept::Nothing } else { Kept::Books };
        let plane = self.make(None, hello, kept)?;
        self.start_at = None;
        self.last_alive = Instant::now();
        self.serving = Some(plane);
        Ok(())
    }

    /// Starts one that is to be told everything, by [`DataPlane::confide`], before it is given connections.
    pub(super) fn spawn_successor(
        &mut self,
        program: &Program,
        hello: &ToWorker,
    ) -> Result<PlaneId> {
        let plane = self.make(Some(program), hello, Kept::Connections)?;
        let id = plane.id;
        self.successor = Some(plane);
        Ok(id)
    }

    fn make(&mut self, program: Option<&Program>, hello: &ToWorker, kept: Kept) -> Result<Plane> {
        let id = PlaneId(self.next);
        self.next += 1;
        let program = program.unwrap_or(&self.program);
        Plane::spawn(id, program, self.workers, hello, kept)
    }

    /// Everything that concerns all who serve is told this one alone, until this is called again.
    pub(super) fn confide(&mut self, to: Option<PlaneId>) {
        self.confidant = to;
    }

    /// The successor is given what brings connections, and may call itself ready when it has them. Gives the number of
    /// the last message.
    pub(super) fn open_successor(&mut self) -> Option<u64> {
        let successor = self.successor.as_mut()?;
        successor.captures();
        successor.give(Kept::Books);
        Some(successor.told)
    }

    /// The successor serves, by this program. The one before is told to retire, and killed `until` then. Gives it, and the
    /// number of that message.
    pub(super) fn promote(
        &mut self,
        program: Program,
        retire: &ToWorker,
        until: Instant,
    ) -> Option<(PlaneId, u64)> {
        let successor = self.successor.take()?;
        self.program = program;
        self.last_alive = Instant::now();
        let mut before = self.serving.replace(successor)?;
        before.tell(retire.clone(), Vec::new());
        let told = (before.id, before.told);
        self.retired.push((before, until));
        Some(told)
    }

    /// Nobody else reads what only one can.
    pub(super) fn give_books(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.give(Kept::Nothing);
        }
    }

    /// Kills the successor; its end is told.
    pub(super) fn give_up_successor(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.kill();
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Plane> {
        let serving = self.serving.iter_mut().chain(&mut self.successor);
        serving.chain(self.retired.iter_mut().map(|(plane, _)| plane))
    }

    /// Whom is told what concerns all who serve, or will.
    fn served(&mut self) -> impl Iterator<Item = &mut Plane> {
        let alone = self.confidant;
        let both = self.serving.iter_mut().chain(&mut self.successor);
        both.filter(move |plane| alone.is_none_or(|id| id == plane.id))
    }

    fn plane(&mut self, id: PlaneId) -> Option<&mut Plane> {
        self.all().find(|plane| plane.id == id)
    }

    /// Queues a message. Without a data plane it is dropped: the next one is told everything anyway.
    pub(super) fn tell(&mut self, message: &ToWorker, fds: Vec<OwnedFd>) {
        for plane in self.served() {
            match fds.iter().map(OwnedFd::try_clone).collect() {
                Ok(fds) => plane.tell(message.clone(), fds),
                Err(error) => tracing::error!(%error, "no descriptor for the data plane"),
            }
        }
    }

    /// As [`DataPlane::tell`], also those that have retired.
    pub(super) fn tell_everybody(&mut self, message: &ToWorker) {
        self.all()
            .for_each(|plane| plane.tell(message.clone(), Vec::new()));
    }

    pub(super) fn tell_one(&mut self, id: PlaneId, message: ToWorker) {
        if let Some(plane) = self.plane(id) {
            plane.tell(message, Vec::new());
        }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let due = self.start_at;
        let start = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = start => {
                self.start_at = None;
                Event::StartDue
            }
            (id, said) = said(self.all()) => match said {
                Said::Message(message) => Event::Said(id, message),
                Said::Failed(error) => Event::Failed(id, error),
                Said::Ended(status) => {
                    let role = self.forget(id);
                    Event::Ended(role, id, status)
                }
            }
        }
    }

    fn forget(&mut self, id: PlaneId) -> Role {
        let is = |plane: &mut Plane| plane.id == id;
        if let Some(plane) = self.serving.take_if(is) {
            self.start_at = (plane.age() < SHORT_LIFE).then(|| Instant::now() + PAUSE);
            return Role::Serving;
        }
        if self.successor.take_if(is).is_some() {
            return Role::Successor;
        }
        self.retired.retain(|(plane, _)| plane.id != id);
        Role::Retired
    }

    /// Starts it again now, or after the pause that a short life earned.
    pub(super) fn schedule_start(&mut self) {
        if self.serving.is_none() {
            self.start_at.get_or_insert_with(Instant::now);
        }
    }

    /// Never starts another.
    pub(super) fn start_no_more(&mut self) {
        self.start_at = None;
    }

    pub(super) fn kill(&mut self, id: PlaneId) {
        if let Some(plane) = self.plane(id) {
            plane.kill();
        }
    }

    pub(super) fn kill_serving(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.kill();
        }
    }

    pub(super) fn kill_everybody(&mut self) {
        self.all().for_each(Plane::kill);
    }

    /// Kills those that have retired and did not end in time.
    pub(super) fn kill_the_late(&mut self) {
        let now = Instant::now();
        for (plane, until) in &mut self.retired {
            if *until <= now {
                tracing::warn!(
                    pid = plane.pid(),
                    "an earlier data plane did not end in time"
                );
                plane.kill();
            }
        }
    }

    /// Do all worker threads of the one that serves answer?
    pub(super) fn alive(&mut self) -> bool {
        let alive = self.serving.as_ref().is_some_and(Plane::alive);
        if alive {
            self.last_alive = Instant::now();
        }
        alive
    }

    /// The same of the successor.
    pub(super) fn successor_is_alive(&self) -> bool {
        self.successor.as_ref().is_some_and(Plane::alive)
    }

    /// The gates hold by its signs of life: from now on it may call itself ready.
    pub(super) fn captures(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.captures();
        }
    }

    /// How long a running data plane has not answered.
    pub(super) fn stuck_for(&self) -> Duration {
        match self.serving {
            Some(_) => self.last_alive.elapsed(),
            None => Duration::ZERO,
        }
    }

    /// The number of the last message to the one that serves, which it will acknowledge. `None`: it has acknowledged all.
    pub(super) fn awaited(&self) -> Option<(PlaneId, u64)> {
        let plane = self.serving.as_ref()?;
        (plane.told > plane.acked).then_some((plane.id, plane.told))
    }

    pub(super) fn acknowledged(&mut self, id: PlaneId, number: u64) {
        if let Some(plane) = self.all().find(|plane| plane.id == id) {
            plane.acked = plane.acked.max(number);
        }
    }

    /// The same of the successor.
    pub(super) fn told_successor(&self) -> Option<u64> {
        self.successor.as_ref().map(|plane| plane.told)
    }

    /// All of them, whatever they do.
    pub(super) fn ids(&mut self) -> Vec<PlaneId> {
        self.all().map(|plane| plane.id).collect()
    }

    /// The process that serves.
    pub(super) fn pid(&self) -> Option<u32> {
        self.serving.as_ref().and_then(Plane::pid)
    }

    /// The processes that have retired.
    pub(super) fn retired(&self) -> Vec<u32> {
        let retired = self.retired.iter();
        retired.filter_map(|(plane, _)| plane.pid()).collect()
    }

    /// Makes `count` sockets of a kind for each who serves, or will.
    pub(super) fn stock(
        &mut self,
        netns: &Netns,
        marks: Marks,
        (worker, want): (usize, SocketWant),
        count: usize,
    ) {
        self.served()
            .for_each(|plane| plane.stock(netns, marks, (worker, want), count));
    }

    /// The same for one that has asked.
    pub(super) fn stock_one(
        &mut self,
        id: PlaneId,
        netns: &Netns,
        marks: Marks,
        (worker, want): (usize, SocketWant),
        count: usize,
    ) {
        if let Some(plane) = self.plane(id) {
            plane.stock(netns, marks, (worker, want), count);
        }
    }

    pub(super) fn publish_states(&mut self, states: &States) {
        self.served().for_each(|plane| plane.publish_states(states));
    }

    pub(super) fn publish_state(&mut self, name: &WorkloadName, now: Option<&WorkloadInfo>) {
        self.served()
            .for_each(|plane| plane.publish_state(name, now));
    }

    pub(super) fn publish_counters(&mut self, counted: &Counted) {
        self.served()
            .for_each(|plane| plane.publish_counters(counted));
    }
}

/// What any of them says first. For ever, when there are none.
async fn said(planes: impl Iterator<Item = &mut Plane>) -> (PlaneId, Said) {
    let mut waits: Vec<_> = planes
        .map(|plane| Box::pin(async { (plane.id, plane.next().await) }))
        .collect();
    std::future::poll_fn(|cx| {
        let mut polls = waits.iter_mut().map(|wait| Pin::new(wait).poll(cx));
        polls.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}
