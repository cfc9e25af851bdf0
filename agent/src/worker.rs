//! The data plane: holds no capability, gets everything it works with as descriptors from the supervisor.
//!
//! ```text
//! supervisor == SEQPACKET == control (this thread: messages, admin API) -- handles --> worker threads (connections)
//! ```

mod api;
mod control;
mod direct;
mod resolvers;
mod stock;
mod taps;
mod view;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shunt_core::config::Config;
use shunt_intercept::scheduling;
use tokio::task::LocalSet;

use self::control::Control;
use crate::heartbeat::Heartbeats;
use crate::ipc::{Channel, ToSupervisor, ToWorker};
use crate::{cli, confined};

/// The shortest slices that the kernel gives: beside busy applications a flow of small answers waits for the worker, not
/// for the bytes of others.
const SLICE: Duration = Duration::from_micros(100);

pub fn run() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failed(&error),
    }
}

fn start() -> Result<()> {
    let (socket, runtime) = confined::begin()?;
    // Before there is a second thread, which then has it too. Without it flows are only slower.
    let slices = scheduling::take_slices(SLICE);
    LocalSet::new().block_on(&runtime, async {
        let channel = Channel::new(socket)
            .context("standard input is not a channel; `shunt worker` is started by `shunt run`")?;
        let (channel, greeting) = greet(channel).await?;
        let control = Control::start(channel, greeting)?;
        if let Err(error) = slices {
            tracing::debug!(%error, "the kernel gives no short slices");
        }
        control.serve().await
    })
}

/// What the supervisor's first message brings.
#[derive(Debug)]
struct Greeting {
    config: Config,
    supervisor_pid: u32,
    uptime_ms: u64,
    heartbeats: Heartbeats,
    admin: Vec<OwnedFd>,
}

type ToSupervisorChannel = Channel<ToSupervisor, ToWorker>;

async fn greet(mut channel: ToSupervisorChannel) -> Result<(ToSupervisorChannel, Greeting)> {
    let (_, message, mut fds) = channel.receive().await.context("no greeting")?;
    let ToWorker::Hello {
        config,
        supervisor_pid,
        uptime_ms,
    } = message
    else {
        bail!("the supervisor's first message is not a greeting");
    };
    if fds.len() < 2 {
        bail!(
            "the greeting has {} descriptors: the heartbeat page or the admin socket is missing",
            fds.len()
        );
    }
    let admin = fds.split_off(1);
    let heartbeats = Heartbeats::from_fd(fds.remove(0), config.concurrency);
    Ok((
        channel,
        Greeting {
            config: *config,
            supervisor_pid,
            uptime_ms,
            heartbeats,
            admin,
        },
    ))
}
