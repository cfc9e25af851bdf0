//! How a child of the supervisor begins: with nothing but a channel.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::{privileges, seccomp};

/// Gives up every privilege, before anything is read and before there is a second thread; then its end of the channel and
/// a runtime of one thread.
///
/// # Errors
/// Something could not be given up, and the process must not go on; or there is no channel on its standard input.
pub fn begin() -> Result<(OwnedFd, Runtime)> {
    // Its file may have been a number when it was run.
    let _ = rustix::thread::set_name(c"shunt");
    privileges::drop_all()?;
    seccomp::permit_needed()?;
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("cannot take the channel")?;
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().build();
    Ok((socket, runtime.context("cannot start the runtime")?))
}
