//! Whom the API wanted enrolled, on disk: an agent that starts while the API cannot be had goes on with them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shunt_workload::{PodWish, Verdict};

const FILE: &str = "pods.json";
const VERSION: u32 = 1;
/// Bytes; a node has some hundred pods.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    pods: Vec<PodWish>,
}

#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    pub(super) is_old: bool,
}

impl StateFile {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            path: dir.join(FILE),
            is_old: false,
        }
    }

    /// Those that were to be enrolled, and those that never are. A file that cannot be understood is as none: the API will tell.
    pub(super) fn read(&self) -> Vec<PodWish> {
        let read = || -> io::Result<State> {
            if fs::metadata(&self.path)?.len() > MAX_SIZE {
                return Err(io::Error::other("it is too large"));
            }
            Ok(serde_json::from_slice(&fs::read(&self.path)?)?)
        };
        match read() {
            Ok(state) if state.version == VERSION => state.pods,
            Ok(state) => {
                let version = state.version;
                tracing::warn!(
                    version,
                    "the pods of an agent of another version are not known"
                );
                Vec::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, %path, "cannot read which pods were enrolled");
                Vec::new()
            }
        }
    }

    pub(super) fn write<'a>(&mut self, pods: impl Iterator<Item = &'a PodWish>) {
        self.is_old = false;
        let pods = pods
            .filter(|wish| !matches!(wish.verdict, Verdict::Wrong(_)))
            .cloned()
            .collect();
        let state = State {
            version: VERSION,
            pods,
        };
        let new = self.path.with_extension("json.new");
        let written = serde_json::to_vec(&state)
            .map_err(Into::into)
            .and_then(|text| {
                let mut file = fs::File::create(&new)?;
                file.write_all(&text)?;
                fs::rename(&new, &self.path)
            });
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%error, %path, "cannot write down which pods are enrolled");
        }
    }

    /// Nobody is enrolled by the API any more.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}
