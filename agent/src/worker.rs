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

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shunt_core::config::Config;
use shunt_intercept::scheduling;
use tokio::task::LocalSet;

use self::control::Control;
use crate::heartbeat::Heartbeats;
use crate::ipc::{Channel, ChannelError, ToSupervisor, ToWorker};
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
    supervisor_version: String,
    keeps_listeners: bool,
    heartbeats: Heartbeats,
}

type ToSupervisorChannel = Channel<ToSupervisor, ToWorker>;

async fn greet(mut channel: ToSupervisorChannel) -> Result<(ToSupervisorChannel, Greeting)> {
    let greeting = channel.receive().await;
    if let Err(ChannelError::Version { .. }) = &greeting {
        // Whatever it says, its number shows the supervisor whom it has to do with.
        let _ = channel.send(
            &ToSupervisor::Ack {
                number: 0,
                error: None,
            },
            Vec::new(),
        );
    }
    let (_, message, fds) = greeting.context("no greeting")?;
    let ToWorker::Hello {
        config,
        supervisor_pid,
        uptime_ms,
        supervisor_version,
        keeps_listeners,
    } = message
    else {
        bail!("the supervisor's first message is not a greeting");
    };
    let page = fds.into_iter().next();
    let page = page.context("the greeting came without the heartbeat page")?;
    let heartbeats = Heartbeats::from_fd(page, config.concurrency);
    Ok((
        channel,
        Greeting {
            config: *config,
            supervisor_pid,
            uptime_ms,
            supervisor_version,
            keeps_listeners,
            heartbeats,
        },
    ))
}
