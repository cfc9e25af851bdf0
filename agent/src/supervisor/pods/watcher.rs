//! The child process that watches the Kubernetes API.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shunt_core::config::Config;
use shunt_workload::{Discovered, Rules};
use tokio::process::{Child, Command};

use crate::ipc::{self, Channel};
use crate::pods::Begin;

/// Between its end and its next start, longer each time.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// A life this long makes its end a single event.
const LONG_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(in crate::supervisor) struct Watcher {
    begin: Begin,
    running: Option<Running>,
    start_at: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Running {
    child: Child,
    channel: Channel<Begin, Discovered>,
    failed: bool,
    started: Instant,
}

impl Watcher {
    /// `None`: the configuration does not ask for it.
    ///
    /// # Errors
    /// Nobody says what the node is called.
    pub(super) fn new(config: &Config) -> Result<Option<Self>> {
        let Some(kubernetes) = &config.kubernetes else {
            return Ok(None);
        };
        let named = kubernetes
            .node_name
            .clone()
            .or_else(|| std::env::var("NODE_NAME").ok());
        let node = named
            .filter(|name| !name.is_empty())
            .context("kubernetes.node_name is not given, and the environment has no NODE_NAME")?;
        let rules = Rules {
            kubernetes: kubernetes.clone(),
            mode: config.mode,
        };
        let begin = Begin {
            rules,
            node,
            log: config.log.clone(),
        };
        Ok(Some(Self {
            begin,
            running: None,
            start_at: Instant::now(),
            pause: PAUSES[0],
        }))
    }

    /// What it says next; the error is the end of it, after which it is started anew. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Discovered, String> {
        loop {
            let Some(running) = &mut self.running else {
                tokio::time::sleep_until(self.start_at.into()).await;
                match spawn(&self.begin) {
                    Ok(running) => self.running = Some(running),
                    Err(error) => {
                        self.schedule(Duration::ZERO);
                        return Err(format!("{error:#}"));
                    }
                }
                continue;
            };
            tokio::select! {
                biased;
                heard = running.channel.receive(), if !running.failed => match heard {
                    Ok((_, news, _)) => return Ok(news),
                    Err(error) => {
                        tracing::debug!(%error, "the watcher of pods is not understood");
                        running.failed = true;
                        let _ = running.child.start_kill();
                    }
                },
                status = running.child.wait() => {
                    let lived = running.started.elapsed();
                    self.running = None;
                    self.schedule(lived);
                    return Err(match status {
                        Ok(status) => format!("the watcher of pods ended: {status}"),
                        Err(error) => format!("the watcher of pods ended: {error}"),
                    });
                }
            }
        }
    }

    fn schedule(&mut self, lived: Duration) {
        let [first, longest] = PAUSES;
        if lived > LONG_LIFE {
            self.pause = first;
        }
        self.start_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(longest);
    }
}

fn spawn(begin: &Begin) -> Result<Running> {
    let (ours, theirs): (OwnedFd, OwnedFd) = ipc::pair().context("cannot make the channel")?;
    // Through /proc, so that a replaced file on disk does not mix two builds.
    let child = Command::new("/proc/self/exe")
        .arg0("shunt")
        .arg("pods")
        .stdin(Stdio::from(theirs))
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the watcher of pods")?;
    let mut channel = Channel::new(ours).context("cannot use the channel")?;
    channel
        .send(begin, Vec::new())
        .context("cannot greet the watcher of pods")?;
    tracing::info!(pid = child.id(), node = begin.node, "watching for pods");
    Ok(Running {
        child,
        channel,
        failed: false,
        started: Instant::now(),
    })
}
