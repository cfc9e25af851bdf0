//! What was found is found for as long as neither the kernel nor the programs are others.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shunt_core::behaviour::Behaviour;

use crate::ebpf::object;

/// In the state directory.
const FILE: &str = "behaviour.json";

/// For what it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    boot: String,
    /// Release and build.
    kernel: String,
    /// A hash of the programs.
    object: u64,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    behaviour: Behaviour,
}

impl Key {
    pub(super) fn now() -> Self {
        let read =
            |name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        let (boot, release, build) = (read("random/boot_id"), read("osrelease"), read("version"));
        Self {
            boot: boot.trim().to_owned(),
            kernel: format!("{} {}", release.trim(), build.trim()),
            object: hash(object::OBJECT),
        }
    }
}

/// FNV-1a: it tells objects apart, and keeps nobody from writing another one's.
fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold)
}

/// `None`: nothing is known of this kernel with these programs.
pub(super) fn read(state_dir: &Path, key: &Key) -> Option<Behaviour> {
    let text = fs::read(place(state_dir)).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    (entry.key == *key).then_some(entry.behaviour)
}

/// Replaced as a whole. When it cannot be written, the next start asks again.
pub(super) fn write(state_dir: &Path, key: Key, behaviour: &Behaviour) {
    let entry = Entry {
        key,
        behaviour: behaviour.clone(),
    };
    let path = place(state_dir);
    let new = path.with_extension("new");
    let written = serde_json::to_vec_pretty(&entry)
        .map_err(Into::into)
        .and_then(|text| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, &path));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "what the kernel's queues do is not remembered");
    }
}

fn place(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaviour() -> Behaviour {
        Behaviour {
            verdicts: Vec::new(),
            milliseconds: 7,
        }
    }

    #[test]
    fn it_is_known_again_and_only_for_the_same_boot_kernel_and_programs() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = Key::now();
        assert!(!key.boot.is_empty() && key.kernel.len() > 5, "{key:?}");
        assert_eq!(read(dir.path(), &key), None);
        write(dir.path(), key.clone(), &behaviour());
        assert_eq!(read(dir.path(), &key), Some(behaviour()));
        let others = [
            Key {
                boot: "another".into(),
                ..key.clone()
            },
            Key {
                kernel: "another".into(),
                ..key.clone()
            },
            Key { object: 1, ..key },
        ];
        for other in others {
            assert_eq!(read(dir.path(), &other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_known() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(place(dir.path()), "{\"key\": {}").expect("written");
        assert_eq!(read(dir.path(), &Key::now()), None);
        // Nor does it keep anybody from writing.
        write(dir.path(), Key::now(), &behaviour());
        assert_eq!(read(dir.path(), &Key::now()), Some(behaviour()));
    }
}
