//! The child process and the channel to it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shunt_core::sockets::SocketWant;
use shunt_intercept::Marks;
use shunt_intercept::netns::Netns;
use tokio::process::{Child, Command};

use crate::heartbeat::Heartbeats;
use crate::ipc::{self, Channel, ChannelError, States, ToSupervisor, ToWorker};

/// A data plane that lived shorter than this is started again only after [`PAUSE`].
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Keeps a data plane that cannot start from taking the node's CPU.
const PAUSE: Duration = Duration::from_millis(500);
/// More unsent messages than this: it does not read any more.
const BACKLOG: usize = 10_000;

#[derive(Debug)]
pub(super) struct DataPlane {
    heartbeats: Heartbeats,
    running: Option<Running>,
    start_at: Option<Instant>,
    last_alive: Instant,
    published_states: Option<States>,
    published_counters: Option<(BTreeMap<String, u64>, BTreeMap<String, u64>)>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    channel: Channel<ToWorker, ToSupervisor>,
    channel_failed: bool,
    /// It was told that it captures.
    captures: bool,
    /// The number of the last message.
    told: u64,
    /// The number of the last message that was carried out.
    acked: u64,
    started: Instant,
}

/// What [`DataPlane::next`] waits for.
#[derive(Debug)]
pub(super) enum Event {
    Said(ToSupervisor),
    Failed(ChannelError),
    Ended(ExitStatus),
    StartDue,
}

impl DataPlane {
    pub(super) fn new(workers: usize) -> Result<Self> {
        let heartbeats = Heartbeats::new(workers).context("cannot make the heartbeat page")?;
        Ok(Self {
            heartbeats,
            running: None,
            start_at: None,
            last_alive: Instant::now(),
            published_states: None,
            published_counters: None,
        })
    }

    /// Starts the child and says hello. `admin` are the sockets it answers on.
    pub(super) fn spawn(&mut self, hello: &ToWorker, admin: Vec<OwnedFd>) -> Result<()> {
        let (ours, theirs) = ipc::pair().context("cannot make the channel to the data plane")?;
        self.heartbeats
            .clear()
            .context("cannot clear the heartbeats")?;
        // Through /proc, so that a replaced file on disk does not mix two builds.
        let child = Command::new("/proc/self/exe")
            .arg0("shunt")
            .arg("worker")
            .stdin(Stdio::from(theirs))
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the data plane")?;
        let mut channel = Channel::new(ours).context("cannot use the channel to the data plane")?;
        let mut fds = vec![
            self.heartbeats
                .share()
                .context("cannot share the heartbeats")?,
        ];
        fds.extend(admin);
        channel
            .send(hello, fds)
            .context("cannot greet the data plane")?;
        tracing::info!(pid = child.id(), "data plane started");
        self.start_at = None;
        self.last_alive = Instant::now();
        self.running = Some(Running {
            child,
            channel,
            channel_failed: false,
            captures: false,
            told: 0,
            acked: 0,
            started: Instant::now(),
        });
        Ok(())
    }

    /// Queues a message. Without a data plane it is dropped: the next one is told everything anyway.
    pub(super) fn tell(&mut self, message: &ToWorker, fds: Vec<OwnedFd>) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.channel_failed {
            return;
        }
        match running.channel.send(message, fds) {
            Ok(number) => running.told = number,
            // `next` sees the same failure, or the end of the process.
            Err(error) => tracing::debug!(%error, "a message to the data plane was not sent"),
        }
        if running.channel.backlog() > BACKLOG {
            tracing::error!("the data plane does not read its messages and will be replaced");
            self.kill();
        }
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        if let Some(at) = self.start_at {
            tokio::time::sleep_until(at.into()).await;
            self.start_at = None;
            return Event::StartDue;
        }
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        tokio::select! {
            biased;
            heard = running.channel.receive(), if !running.channel_failed => match heard {
                Ok((_, message, _)) => Event::Said(message),
                Err(error) => {
                    running.channel_failed = true;
                    Event::Failed(error)
                }
            },
            status = running.child.wait() => {
                let short = running.started.elapsed() < SHORT_LIFE;
                self.running = None;
                // The page still holds young beats of the dead.
                let _ = self.heartbeats.clear();
                self.start_at = short.then(|| Instant::now() + PAUSE);
                match status {
                    Ok(status) => Event::Ended(status),
                    Err(_) => Event::Ended(ExitStatus::default()),
                }
            }
        }
    }

    /// Starts it again now, or after the pause that a short life earned.
    pub(super) fn schedule_start(&mut self) {
        if self.running.is_none() {
            self.start_at.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.start_kill();
        }
    }

    /// Do all worker threads answer?
    pub(super) fn alive(&mut self) -> bool {
        let alive = self.running.is_some() && self.heartbeats.alive();
        if alive {
            self.last_alive = Instant::now();
        }
        alive
    }

    /// The gates hold by its signs of life: from now on it may call itself ready.
    pub(super) fn captures(&mut self) {
        if let Some(running) = &mut self.running
            && !std::mem::replace(&mut running.captures, true)
        {
            self.tell(&ToWorker::Captures, Vec::new());
        }
    }

    /// How long a running data plane has not answered.
    pub(super) fn stuck_for(&self) -> Duration {
        match self.running {
            Some(_) => self.last_alive.elapsed(),
            None => Duration::ZERO,
        }
    }

    /// The number of the last message, which the data plane will acknowledge. `None`: it has acknowledged all, or is
    /// not running.
    pub(super) fn awaited(&self) -> Option<u64> {
        let running = self.running.as_ref()?;
        (running.told > running.acked).then_some(running.told)
    }

    pub(super) fn acknowledged(&mut self, number: u64) {
        if let Some(running) = &mut self.running {
            running.acked = running.acked.max(number);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Makes `count` sockets of a kind and sends them, or says why there are none.
    pub(super) fn stock(
        &mut self,
        netns: &Netns,
        marks: Marks,
        worker: usize,
        want: SocketWant,
        count: usize,
    ) {
        match netns.stock(want.role, want.family, marks, count) {
            Ok(sockets) => self.tell(&ToWorker::Stock { worker, want }, sockets),
            Err(error) => {
                let error = error.to_string();
                self.tell(
                    &ToWorker::StockFailed {
                        worker,
                        want,
                        error,
                    },
                    Vec::new(),
                );
            }
        }
    }

    pub(super) fn publish_states(&mut self, states: States) {
        if self.published_states.as_ref() != Some(&states) {
            self.tell(&ToWorker::States(states.clone()), Vec::new());
            self.published_states = Some(states);
        }
    }

    pub(super) fn publish_counters(
        &mut self,
        kernel: BTreeMap<String, u64>,
        repairs: BTreeMap<String, u64>,
    ) {
        let counters = (kernel, repairs);
        if self.published_counters.as_ref() != Some(&counters) {
            let (kernel, repairs) = counters.clone();
            self.tell(&ToWorker::Counters { kernel, repairs }, Vec::new());
            self.published_counters = Some(counters);
        }
    }

    /// A new data plane has been told nothing yet.
    pub(super) fn forget_published(&mut self) {
        self.published_states = None;
        self.published_counters = None;
    }
}
