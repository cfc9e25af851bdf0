//! Whom the API wanted enrolled, on disk: an agent that starts while the API cannot be had goes on with them.

use std::io;

use serde::{Deserialize, Serialize};
use shunt_workload::{PodWish, Verdict};

use crate::supervisor::state_file::StateFile;

/// In `state_dir`.
pub(super) const FILE: &str = "pods.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    pods: Vec<PodWish>,
}

/// Those that were to be enrolled, and those that never are. A file that cannot be understood is as none: the API will
/// tell.
pub(super) fn read(file: &StateFile) -> Vec<PodWish> {
    let state = file
        .read()
        .and_then(|text| Ok(text.map(|text| serde_json::from_slice(&text)).transpose()?));
    match state {
        Ok(None) => Vec::new(),
        Ok(Some(State { version, pods })) if version == VERSION => pods,
        Ok(Some(State { version, .. })) => {
            tracing::warn!(
                version,
                "the pods of an agent of another version are not known"
            );
            Vec::new()
        }
        Err(error) => {
            let path = file.path().display();
            tracing::warn!(%error, %path, "cannot read which pods were enrolled");
            Vec::new()
        }
    }
}

pub(super) fn text<'a>(pods: impl Iterator<Item = &'a PodWish>) -> io::Result<Vec<u8>> {
    let state = State {
        version: VERSION,
        pods: pods
            .filter(|wish| !matches!(wish.verdict, Verdict::Wrong(_)))
            .cloned()
            .collect(),
    };
    Ok(serde_json::to_vec(&state)?)
}
