//! DEL: as often as the runtime likes, also of what was never added. A pod's end does not depend on the agent: one that is
//! not there finds a note when it starts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use shunt_cni_protocol::{DELETED, MAX_REMEMBERED, REMEMBERED, Request};

use crate::agent::{Agent, Unanswered};
use crate::config::NetworkConfig;
use crate::environment::Attachment;
use crate::failure::Failure;
use crate::say;

pub(crate) fn del(config: &NetworkConfig, attachment: &Attachment) -> Result<(), Failure> {
    let settings = &config.settings;
    let agent = Agent::new(&settings.socket, settings.timeout());
    let request = Request::Del {
        attachment: attachment.told(&config.network),
    };
    let name = &attachment.workload;
    match agent.ask(&request, None) {
        Ok(()) => {}
        Err(Unanswered::NotRunning(_)) => {
            let dir = settings.socket.parent().unwrap_or(Path::new("/"));
            match leave_a_note(dir, &attachment.container) {
                // An agent that can be told of it now may have looked for notes before. One that cannot will look.
                Ok(()) => drop(agent.ask(&request, None)),
                Err(error) => say(&format!(
                    "warning: the next agent may enrol {name} again: {error}"
                )),
            }
        }
        Err(error) => say(&format!("warning: {name} may be enrolled still: {error}")),
    }
    Ok(())
}

/// Only of a container that an agent remembers: else nobody would ever read it.
fn leave_a_note(dir: &Path, container: &str) -> io::Result<()> {
    let mut remembered = Vec::new();
    match File::open(dir.join(REMEMBERED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?.take(MAX_REMEMBERED).read_to_end(&mut remembered)?,
    };
    let quoted = format!("\"{container}\"");
    let mut places = remembered.windows(quoted.len());
    if !places.any(|place| place == quoted.as_bytes()) {
        return Ok(());
    }
    let notes = dir.join(DELETED);
    fs::create_dir_all(&notes)?;
    File::create(notes.join(container)).map(|_| ())
}
