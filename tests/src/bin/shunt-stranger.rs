//! In the place of an agent's program on disk: one that is no good, in the way that a file beside it says.

use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use shunt_tests::wait::pause;

/// Longer than an agent waits for it.
const LONG: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let how = std::fs::read_to_string(std::env::current_exe()?.with_extension("how"))?;
    match how.trim() {
        "another version" => {
            let channel = UnixDatagram::from(io::stdin().as_fd().try_clone_to_owned()?);
            channel.send(br#"{"version":99,"number":1,"body":"hello"}"#)?;
            pause(LONG);
        }
        "silent" => pause(LONG),
        // It could succeed, but then it cannot be run.
        "locks itself" => {
            std::fs::set_permissions(std::env::current_exe()?, Permissions::from_mode(0o600))?;
        }
        _ => anyhow::bail!("this one ends at once"),
    }
    Ok(())
}
