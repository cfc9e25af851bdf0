//! One data plane process and the channel to it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shunt_core::sockets::{ListenerSpec, SocketWant};
use shunt_core::workload::WorkloadName;
use shunt_intercept::Marks;
use shunt_intercept::netns::Netns;
use tokio::process::Command;

use super::Program;
use super::process::Process;
use super::published::Published;
use crate::heartbeat::Heartbeats;
use crate::ipc::{
    self, Channel, ChannelError, Counted, States, ToSupervisor, ToWorker, WorkloadInfo,
};
use crate::will::{self, Leaving};

/// More unsent messages than this: it does not read any more.
const BACKLOG: usize = 10_000;

/// Which of the data planes that there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::supervisor) struct PlaneId(pub(super) u64);

#[derive(Debug)]
pub(super) struct Plane {
    pub(super) id: PlaneId,
    process: Process,
    /// It was there before this supervisor, and has these listeners.
    adopted: Option<Brought>,
    channel: Channel<ToWorker, ToSupervisor>,
    channel_failed: bool,
    heartbeats: Heartbeats,
    pub(super) started: Instant,
    /// It was told that it captures.
    captures: bool,
    /// The number of the last message.
    pub(super) told: u64,
    /// The number of the last one that was carried out.
    pub(super) acked: u64,
    kept: Kept,
    /// Of [`Plane::kept`], in order.
    waiting: Vec<(ToWorker, Vec<OwnedFd>)>,
    published: Option<Published>,
    published_counters: Option<Counted>,
}

/// What is not yet sent to a data plane, since an earlier one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    Nothing,
    /// What only one process can read.
    Books,
    /// That, and whatever brings connections.
    Connections,
}

/// What [`Plane::next`] waits for.
#[derive(Debug)]
pub(super) enum Said {
    Message(ToSupervisor),
    Failed(ChannelError),
    Ended(ExitStatus),
}

impl Plane {
    /// Starts it and says hello.
    pub(super) fn spawn(
        id: PlaneId,
        program: &Program,
        workers: usize,
        hello: &ToWorker,
        kept: Kept,
    ) -> Result<Self> {
        let (ours, theirs) = ipc::pair().context("cannot make the channel to the data plane")?;
        let heartbeats = Heartbeats::new(workers).context("cannot make the heartbeat page")?;
        let child = Command::new(program.path())
            .arg0("shunt")
            .arg("worker")
            .stdin(Stdio::from(theirs))
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the data plane")?;
        let mut channel = Channel::new(ours).context("cannot use the channel to the data plane")?;
        let page = heartbeats.share().context("cannot share the heartbeats")?;
        let told = match channel.send(hello, vec![page]) {
            // It has ended already; how, is what is told next.
            Err(ChannelError::Closed) => 0,
            told => told.context("cannot greet the data plane")?,
        };
        tracing::info!(pid = child.id(), "data plane started");
        Ok(Self {
            id,
            process: Process::Child(child),
            adopted: None,
            channel,
            channel_failed: false,
            heartbeats,
            started: Instant::now(),
            captures: false,
            told,
            acked: 0,
            kept,
            waiting: Vec::new(),
            published: None,
            published_counters: None,
        })
    }

    /// One that the supervisor before this one has started.
    pub(super) fn adopt(left: will::Plane, workers: usize, brought: Brought) -> Result<Self> {
        let channel = Channel::go_on(left.channel.take()?, left.next)
            .context("cannot use the channel to the data plane")?;
        let heartbeats = Heartbeats::from_fd(left.heartbeats.take()?, workers);
        Ok(Self {
            id: PlaneId(left.id),
            process: Process::inherited(left.pid).context("a data plane without a process")?,
            adopted: Some(brought),
            channel,
            channel_failed: false,
            heartbeats,
            started: Instant::now(),
            captures: true,
            told: left.next - 1,
            // What counts for those whom this supervisor answers comes after.
            acked: left.next - 1,
            kept: Kept::Nothing,
            waiting: Vec::new(),
            published: None,
            published_counters: None,
        })
    }

    /// For the next supervisor. `None`: it has ended, or has not been sent everything yet.
    pub(super) fn bequeath(
        &self,
        leaving: &mut Leaving,
        retires_in: Option<Duration>,
    ) -> io::Result<Option<will::Plane>> {
        let Some(pid) = self.pid().filter(|_| self.channel.backlog() == 0) else {
            return Ok(None);
        };
        let (channel, next) = self.channel.parts();
        Ok(Some(will::Plane {
            id: self.id.0,
            pid,
            channel: leaving.leave(channel)?,
            heartbeats: leaving.leave(self.heartbeats.share()?)?,
            page: match retires_in {
                Some(_) => None,
                None => Some(leaving.leave(self.heartbeats.share()?)?),
            },
            next,
            retires_in_ms: retires_in.map(|time| u64::try_from(time.as_millis()).unwrap_or(0)),
        }))
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.adopted.is_some()
    }

    /// `None`: it has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Do all worker threads answer?
    pub(super) fn alive(&self) -> bool {
        self.heartbeats.alive()
    }

    /// Queues a message, or keeps it until it may have it.
    pub(super) fn tell(&mut self, message: ToWorker, fds: Vec<OwnedFd>) {
        match &message {
            ToWorker::Withdraw { id } => self.waiting.retain(|(kept, _)| match kept {
                ToWorker::Listen(spec) => spec.workload != *id,
                ToWorker::TakeQueries(spec) => spec.workload != *id,
                _ => true,
            }),
            ToWorker::Unserve(addr) => self
                .waiting
                .retain(|(kept, _)| !matches!(kept, ToWorker::Serve(kept) if kept == addr)),
            _ => {}
        }
        if self.adopted.as_ref().is_some_and(|of| of.has(&message)) {
            return;
        }
        if self.keeps(&message) {
            self.waiting.push((message, fds));
        } else {
            self.send(&message, fds);
        }
    }

    fn keeps(&self, message: &ToWorker) -> bool {
        match message {
            ToWorker::Listen(_)
            | ToWorker::TakeQueries(_)
            | ToWorker::Serve(_)
            | ToWorker::Admin => self.kept >= Kept::Connections,
            ToWorker::DirectEvents | ToWorker::Tap => self.kept >= Kept::Books,
            _ => false,
        }
    }

    /// Sends what was kept and need not be any more.
    pub(super) fn give(&mut self, kept: Kept) {
        self.kept = kept;
        for (message, fds) in std::mem::take(&mut self.waiting) {
            self.tell(message, fds);
        }
    }

    fn send(&mut self, message: &ToWorker, fds: Vec<OwnedFd>) {
        if self.channel_failed {
            return;
        }
        match self.channel.send(message, fds) {
            Ok(number) => self.told = number,
            // `next` sees the same failure, or the end of the process.
            Err(error) => tracing::debug!(%error, "a message to the data plane was not sent"),
        }
        if self.channel.backlog() > BACKLOG {
            tracing::error!("the data plane does not read its messages and will be replaced");
            self.kill();
        }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Said {
        tokio::select! {
            biased;
            heard = self.channel.receive(), if !self.channel_failed => match heard {
                Ok((_, message, _)) => Said::Message(message),
                Err(error) => {
                    self.channel_failed = true;
                    Said::Failed(error)
                }
            },
            status = self.process.wait() => Said::Ended(status),
        }
    }

    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    /// Says once that the gates hold by its signs of life.
    pub(super) fn captures(&mut self) {
        if !std::mem::replace(&mut self.captures, true) {
            self.tell(ToWorker::Captures, Vec::new());
        }
    }

    /// Makes `count` sockets of a kind and sends them, or says why there are none.
    pub(super) fn stock(
        &mut self,
        netns: &Netns,
        marks: Marks,
        (worker, want): (usize, SocketWant),
        count: usize,
    ) {
        match netns.stock(want.role, want.family, marks, count) {
            Ok(sockets) => self.tell(ToWorker::Stock { worker, want }, sockets),
            Err(error) => {
                let error = error.to_string();
                let failed = ToWorker::StockFailed {
                    worker,
                    want,
                    error,
                };
                self.tell(failed, Vec::new());
            }
        }
    }

    /// An adopted one goes on saying what it was told last, until it is replaced.
    pub(super) fn publish_states(&mut self, states: &States) {
        if self.adopted.is_some() {
            return;
        }
        let message = match &mut self.published {
            Some(published) => published.catch_up(states).map(ToWorker::StateChanges),
            place => {
                *place = Some(Published::new(states));
                Some(ToWorker::States(states.clone()))
            }
        };
        if let Some(message) = message {
            self.tell(message, Vec::new());
        }
    }

    /// The same of one workload, as it is now; `None`: it is gone. Who has been told of none yet is told of all first.
    pub(super) fn publish_state(&mut self, name: &WorkloadName, now: Option<&WorkloadInfo>) {
        let published = self.published.as_mut().filter(|_| self.adopted.is_none());
        if let Some(changes) = published.and_then(|published| published.catch_up_with(name, now)) {
            self.tell(ToWorker::StateChanges(changes), Vec::new());
        }
    }

    pub(super) fn publish_counters(&mut self, counted: &Counted) {
        if self.adopted.is_none() && self.published_counters.as_ref() != Some(counted) {
            self.tell(ToWorker::Counters(counted.clone()), Vec::new());
            self.published_counters = Some(counted.clone());
        }
    }

    /// It lived so long.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What a data plane has had from the supervisor before, by the same descriptors.
#[derive(Clone, Debug, Default)]
pub(in crate::supervisor) struct Brought {
    pub(in crate::supervisor) listeners: Vec<ListenerSpec>,
    pub(in crate::supervisor) node: Vec<SocketAddr>,
}

impl Brought {
    fn has(&self, message: &ToWorker) -> bool {
        match message {
            ToWorker::Listen(spec) => self.listeners.contains(spec),
            ToWorker::Serve(addr) => self.node.contains(addr),
            ToWorker::Admin | ToWorker::DirectEvents | ToWorker::Tap | ToWorker::Shortcuts => true,
            _ => false,
        }
    }
}
