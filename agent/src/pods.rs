//! `shunt pods`: watches the Kubernetes API without any privilege, and tells the supervisor which pods are to be
//! enrolled. It is a process of its own so that what a network says is parsed neither where the privileges are nor where
//! connections are.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use shunt_core::config::Log;
use shunt_workload::{Discovered, Rules, watch};
use tokio::sync::mpsc;

use crate::ipc::{Channel, ChannelError};
use crate::{cli, confined};

/// The supervisor's first and only message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    pub rules: Rules,
    pub node: String,
    pub log: Log,
}

pub fn run() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failed(&error),
    }
}

fn start() -> Result<()> {
    let (socket, runtime) = confined::begin()?;
    runtime.block_on(async {
        let mut channel: Channel<Discovered, Begin> = Channel::new(socket)
            .context("standard input is not a channel; `shunt pods` is started by `shunt run`")?;
        let (_, begin, _) = channel.receive().await.context("no greeting")?;
        let level = shunt_telemetry::logging::init(&begin.log);
        let _level = level.context("cannot start logging")?;
        serve(channel, begin).await
    })
}

async fn serve(mut channel: Channel<Discovered, Begin>, begin: Begin) -> Result<()> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let watching = watch::watch(begin.rules, &begin.node, |news| tell.send(news).is_ok());
    let mut watching = std::pin::pin!(watching);
    loop {
        tokio::select! {
            () = &mut watching => bail!("nothing is watched any more"),
            Some(news) = told.recv() => {
                channel.send(&news, Vec::new()).context("cannot tell the supervisor")?;
            }
            heard = channel.receive() => match heard {
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
                Ok(_) => bail!("the supervisor said something that is not expected"),
            },
        }
    }
}
