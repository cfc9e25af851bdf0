//! Who was enrolled by the CNI plugin, remembered on disk: the agent that is started next serves them again before it is
//! ready. A namespace is known again by its cookie, which the kernel never gives twice until the host boots anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shunt_cni_protocol::{Attachment, DELETED, MAX_WORKLOAD, REMEMBERED};
use shunt_core::config::{Config, file};
use shunt_core::status::{CNI_CONTAINER, CNI_NETWORK};
use shunt_core::workload::{ModeSetting, WorkloadName, WorkloadSpec};
use shunt_intercept::netns::Netns;

use crate::cleanup;
use crate::supervisor::state_file::StateFile;

const VERSION: u32 = 1;
/// Bytes of a namespace's path: the kernel takes no longer one.
const MAX_PATH: usize = 4096;

#[derive(Debug)]
pub(in crate::supervisor) struct Attachments {
    dir: PathBuf,
    all: BTreeMap<WorkloadName, Attached>,
    file: StateFile,
}

#[derive(Debug)]
pub(in crate::supervisor) struct Attached {
    pub(super) attachment: Attachment,
    pub(super) netns: Arc<Netns>,
    /// As the plugin described it.
    pub(super) workload: Value,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    boot: String,
    attachments: Vec<Remembered>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    attachment: Attachment,
    netns: Place,
    workload: Value,
}

#[derive(Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    inode: u64,
    cookie: u64,
}

impl Attachments {
    /// What an earlier agent knew, as far as it still is so, and the workloads that follow from it.
    pub(in crate::supervisor) fn restore(config: &Config) -> (Self, Vec<WorkloadSpec>) {
        let mut attachments = Self {
            dir: config.state_dir.clone(),
            all: BTreeMap::new(),
            file: StateFile::new(&config.state_dir, REMEMBERED),
        };
        let remembered = match read(&attachments.file) {
            Ok(remembered) => remembered,
            Err(reason) => {
                let path = attachments.file.path().display();
                tracing::error!(reason, %path, "who was enrolled by CNI is not known any more: pods connect directly");
                Vec::new()
            }
        };
        let (remembered_count, deleted) = (remembered.len(), attachments.deleted());
        let living = cleanup::namespaces();
        let mut specs: Vec<WorkloadSpec> = Vec::new();
        for one in remembered {
            let (name, container) = (one.attachment.name.clone(), &one.attachment.container);
            if deleted.contains(container) {
                tracing::info!(workload = name, "deleted while no agent was running");
                continue;
            }
            match found_again(one, &living, config, &specs) {
                Ok((attached, spec)) => {
                    attachments.all.insert(spec.name.clone(), attached);
                    specs.push(spec);
                }
                Err(reason) => tracing::info!(workload = name, reason, "not served any more"),
            }
        }
        if remembered_count > 0 {
            let served = specs.len();
            tracing::info!(
                served,
                remembered = remembered_count,
                "enrolled by CNI before"
            );
            attachments.file.is_old();
            attachments.catch_up();
        }
        for container in deleted {
            attachments.forget_deletion(&container);
        }
        (attachments, specs)
    }

    pub(in crate::supervisor) fn get(&self, name: &WorkloadName) -> Option<&Attached> {
        self.all.get(name)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkloadName, &Attached)> {
        self.all.iter()
    }

    pub(super) fn insert(&mut self, name: WorkloadName, attached: Attached) {
        self.forget_deletion(&attached.attachment.container);
        self.all.insert(name, attached);
        self.file.is_old();
    }

    pub(in crate::supervisor) fn forget(&mut self, name: &WorkloadName) {
        if self.all.remove(name).is_some() {
            self.file.is_old();
        }
    }

    /// The namespace that was handed over for `spec`, unless somebody wished another.
    pub(in crate::supervisor) fn netns_of(&self, spec: &WorkloadSpec) -> Option<Arc<Netns>> {
        let attached = self.all.get(&spec.name)?;
        (attached.netns.path() == spec.netns).then(|| Arc::clone(&attached.netns))
    }

    /// Its namespace had a name here, which does not lead to it any more. Of the one that is `served` it is known already
    /// whether it is `lost`.
    pub(in crate::supervisor) fn is_gone(
        &self,
        name: &WorkloadName,
        served: Option<&Arc<Netns>>,
        lost: bool,
    ) -> bool {
        let attached = self.all.get(name).map(|attached| &attached.netns);
        attached.is_some_and(|netns| match served {
            Some(served) if Arc::ptr_eq(netns, served) => lost,
            _ => !netns.is_current(),
        })
    }

    /// The file says what is known, once for all changes since the last time.
    pub(in crate::supervisor) fn catch_up(&mut self) {
        let Self { all, file, .. } = self;
        file.catch_up(|| {
            let remembered = all.values().map(|attached| Remembered {
                attachment: attached.attachment.clone(),
                netns: Place {
                    path: attached.netns.path().to_owned(),
                    inode: attached.netns.inode(),
                    cookie: attached.netns.cookie(),
                },
                workload: attached.workload.clone(),
            });
            let state = State {
                version: VERSION,
                boot: boot()?,
                attachments: remembered.collect(),
            };
            Ok(serde_json::to_vec(&state)?)
        });
    }

    /// Those whose containers the plugin has left notes of since [`Attachments::restore`].
    pub(super) fn deleted_meanwhile(&self) -> Vec<WorkloadName> {
        let deleted = self.deleted();
        for container in &deleted {
            self.forget_deletion(container);
        }
        let all = self.all.iter();
        all.filter(|(_, attached)| deleted.contains(&attached.attachment.container))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Containers that the plugin could tell nobody of.
    fn deleted(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.join(DELETED)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        names.flat_map(|name| name.into_string()).collect()
    }

    pub(super) fn forget_deletion(&self, container: &str) {
        let path = self.dir.join(DELETED).join(container);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "cannot remove it");
            }
            _ => {}
        }
    }
}

impl Attached {
    /// The plugin's workload, with what somebody else says of it over that.
    ///
    /// # Errors
    /// As [`spec`].
    pub(in crate::supervisor) fn spec_with(
        &self,
        said: &Map<String, Value>,
        mode: ModeSetting,
    ) -> Result<WorkloadSpec, String> {
        let mut workload = self.workload.clone();
        lay_over(&mut workload, &Value::Object(said.clone()));
        spec(&self.attachment, self.netns.path(), &workload, mode)
    }

    /// Did this workload come of it?
    pub(in crate::supervisor) fn made(&self, spec: &WorkloadSpec) -> bool {
        spec.labels.get(CNI_CONTAINER) == Some(&self.attachment.container)
    }
}

/// Objects key by key; of everything else the upper one counts.
fn lay_over(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// The workload that a plugin's description makes.
///
/// # Errors
/// It cannot be one, for people.
pub(super) fn spec(
    attachment: &Attachment,
    netns: &Path,
    workload: &Value,
    mode: ModeSetting,
) -> Result<WorkloadSpec, String> {
    let name = super::name(attachment);
    file::name(&attachment.container).map_err(|error| format!("container: {error}"))?;
    file::name(&attachment.network).map_err(|error| format!("network: {error}"))?;
    let Value::Object(mut map) = workload.clone() else {
        return Err("the workload is not an object".into());
    };
    let netns = netns.to_str().ok_or("the namespace's path is not UTF-8")?;
    if netns.len() > MAX_PATH {
        return Err("the namespace's path is too long".into());
    }
    map.insert("netns".into(), netns.into());
    let text = Value::Object(map).to_string();
    if text.len() > MAX_WORKLOAD {
        return Err(format!(
            "the workload has more than {} KiB",
            MAX_WORKLOAD >> 10
        ));
    }
    let parsed = file::parse_workload(&text, &name, mode);
    let mut spec = parsed.map_err(|error| error.to_string().trim().to_owned())?;
    for (label, value) in [
        (CNI_CONTAINER, &attachment.container),
        (CNI_NETWORK, &attachment.network),
    ] {
        spec.labels.insert(label.into(), value.clone());
    }
    Ok(spec)
}

/// The error says why it is not served, for people.
fn found_again(
    one: Remembered,
    living: &BTreeMap<u64, PathBuf>,
    config: &Config,
    others: &[WorkloadSpec],
) -> Result<(Attached, WorkloadSpec), String> {
    let gone = || "its network namespace is gone".to_owned();
    let place = &one.netns;
    // By its own name, or one that it has here, or one of its processes.
    let here = living.get(&place.inode).ok_or_else(gone)?;
    let netns = File::open(here)
        .map_err(|error| error.to_string())
        .and_then(|file| Netns::handed_over(file, &place.path).map_err(|error| error.chain()))?;
    if netns.cookie() != place.cookie {
        return Err(gone());
    }
    let spec = spec(&one.attachment, &place.path, &one.workload, config.mode)?;
    let by_file = config.workloads.iter().find(|file| file.name == spec.name);
    if by_file.is_some() {
        return Err("the configuration file says otherwise".into());
    }
    if let Some(conflict) = file::conflict(config.workloads.iter().chain(others), &spec) {
        return Err(conflict);
    }
    let attached = Attached {
        attachment: one.attachment,
        netns: Arc::new(netns),
        workload: one.workload,
    };
    Ok((attached, spec))
}

/// Nobody: there is no file, or the host has booted since. The error is for people.
fn read(file: &StateFile) -> Result<Vec<Remembered>, String> {
    let Some(text) = file.read().map_err(|error| error.to_string())? else {
        return Ok(Vec::new());
    };
    #[derive(Deserialize)]
    struct Envelope {
        version: u32,
        boot: String,
    }
    let envelope: Envelope = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let now = boot().map_err(|error| format!("which boot this is: {error}"))?;
    if envelope.boot != now {
        tracing::info!("the host has booted since pods were enrolled by CNI; they are gone");
        return Ok(Vec::new());
    }
    if envelope.version != VERSION {
        return Err(format!("version {} is not {VERSION}", envelope.version));
    }
    let state: State = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok(state.attachments)
}

fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
