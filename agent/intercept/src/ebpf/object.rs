//! Loading the built object. What is loaded later shares its maps through a bpffs that is mounted nowhere: a detached
//! mount lives as long as its descriptor, and nobody else can see it.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use aya::maps::{Map, MapData};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use object::{Object as _, ObjectSection, ObjectSymbol};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::inbound::{Inbound, Template};
use super::offsets::Statics;
use super::pins::Pins;

use super::{observer, offsets, raw, tap};
use crate::{Enrolment, InterceptError, Marks, btf};

/// Built from `ebpf/` by `cargo xtask build-ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/ebpf/shunt-ebpf.o"
));

/// Maps that every instance shares; only the listeners' socket map is each instance's own.
const SHARED: [&str; 34] = [
    "SHUNT_WORKLOADS",
    "SHUNT_SCOPES",
    "SHUNT_RULES",
    "SHUNT_HANDSHAKE",
    "SHUNT_OWN_FLOWS",
    "SHUNT_LISTENING",
    "SHUNT_GATE",
    "SHUNT_EVENTS",
    "SHUNT_SOCKETS",
    "SHUNT_ACCEPTED",
    "SHUNT_ADDRESSES",
    "SHUNT_SOCKHASH",
    "SHUNT_MEETINGS",
    "SHUNT_PEERS",
    "SHUNT_QUEUES",
    "SHUNT_CUT",
    "SHUNT_HANDOFFS",
    "SHUNT_ENDS",
    "SHUNT_SENDERS",
    "SHUNT_DIRECT",
    "SHUNT_SERVICES",
    "SHUNT_ENDPOINTS",
    "SHUNT_TURNS",
    "SHUNT_POLICY",
    "SHUNT_SELECTED",
    "SHUNT_BULK",
    "SHUNT_CLASSES",
    "SHUNT_WATCHED",
    "SHUNT_VERDICTS",
    "SHUNT_TAP",
    "SHUNT_TAPPED",
    "SHUNT_DNS",
    "SHUNT_RESOLVERS",
    "AYA_LOGS",
];

/// The loaded object.
#[derive(Debug)]
pub(super) struct Object {
    marks: Marks,
    bpffs: OwnedFd,
    pub(super) main: Ebpf,
    pub(super) destinations: MapData,
    /// Is it known where the kernel keeps what the programs read of sockets?
    pub(super) offsets: Result<(), InterceptError>,
    /// The same, of what the observer reads, and of what a tap reads.
    pub(super) observed: Result<(), InterceptError>,
    pub(super) tapped: Result<(), InterceptError>,
    logger: Logger,
    /// Made when the first workload needs it.
    inbound: Option<Template>,
}

/// What the programs say, on its way to the log.
struct Logger(Option<EbpfLogger<&'static dyn log::Log>>);

impl std::fmt::Debug for Logger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logger")
    }
}

impl Object {
    pub(super) fn load(marks: Marks) -> Result<Self, InterceptError> {
        Self::load_with(marks, RECEIVE_QUEUE_LIMIT)
    }

    /// `queue` is how many bytes may wait for an application.
    pub(super) fn load_with(marks: Marks, queue: u32) -> Result<Self, InterceptError> {
        let bpffs = detached_bpffs()?;
        let types = btf::Kernel::read();
        let find = |statics: fn(&btf::Kernel) -> Statics| match &types {
            Ok(types) => statics(types),
            Err(error) => Err(InterceptError::Unsupported(error.chain())),
        };
        let statics = [offsets::statics, observer::statics, tap::statics].map(find);
        let known: Vec<(&'static str, u32)> = statics.iter().flatten().flatten().copied().collect();
        let object = prepared(marks, &known, queue)?;
        let loaded = loader(&bpffs).load(&object);
        let mut main = loaded.map_err(|error| failed("load the eBPF object", &error))?;
        let destinations = sk_storage(&mut main, "SHUNT_ACCEPTED")?;
        let logger = EbpfLogger::init(&mut main)
            .inspect_err(|error| tracing::warn!(%error, "what the eBPF programs say is not logged"))
            .ok();
        let [offsets, observed, tapped] = statics;
        Ok(Self {
            marks,
            bpffs,
            main,
            destinations,
            offsets: offsets.map(drop),
            observed: observed.map(drop),
            tapped: tapped.map(drop),
            logger: Logger(logger),
            inbound: None,
        })
    }

    /// Takes a map out of the object.
    pub(super) fn map<M: TryFrom<Map>>(&mut self, name: &str) -> Result<M, InterceptError> {
        let map = self
            .main
            .take_map(name)
            .ok_or_else(|| missing("map", name))?;
        M::try_from(map).map_err(|_| missing("such map", name))
    }

    /// Takes a map of sockets' own storage out of the object.
    pub(super) fn sk_storage(&mut self, name: &str) -> Result<MapData, InterceptError> {
        sk_storage(&mut self.main, name)
    }

    /// Takes a ring buffer out of the object.
    pub(super) fn ring(&mut self, name: &str) -> Result<MapData, InterceptError> {
        match self.main.take_map(name) {
            Some(Map::RingBuf(map)) => Ok(map),
            _ => Err(missing("map", name)),
        }
    }

    /// An instance of the inbound hook for this workload. `None`: it has no inbound listener.
    pub(super) fn attach_sk_lookup(
        &mut self,
        enrolment: &Enrolment,
        pins: Option<&Pins>,
    ) -> Result<Option<Inbound>, InterceptError> {
        let template = match &mut self.inbound {
            Some(template) => template,
            place => {
                let shared = SHARED.map(|name| (name, private_pin(&self.bpffs, name)));
                let object = prepared(self.marks, &[], 0)?;
                place.insert(Template::of(&object, &shared)?)
            }
        };
        Inbound::attach_to(enrolment, template, pins)
    }

    /// Where a shared map is pinned for this process alone.
    pub(super) fn private_pin(&self, name: &str) -> PathBuf {
        private_pin(&self.bpffs, name)
    }

    /// Passes on what the programs said since the last call.
    pub(super) fn drain_log(&mut self) {
        if let Some(logger) = &mut self.logger.0 {
            logger.flush();
        }
    }
}

/// From linux/bpf.h: do not replace.
pub(super) const NOEXIST: u64 = 1;

pub(super) fn exists(error: &aya::maps::MapError) -> bool {
    matches!(error, aya::maps::MapError::SyscallError(error)
        if error.io_error.kind() == std::io::ErrorKind::AlreadyExists)
}

/// Bytes that may wait for an application before its sender feels back-pressure.
pub(super) const RECEIVE_QUEUE_LIMIT: u32 = 1 << 20;

/// A new one reads the kernel's types, megabytes of them. Our programs ask for none of them.
fn loader(bpffs: &OwnedFd) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for name in SHARED {
        loader.map_pin_path(name, private_pin(bpffs, name));
    }
    loader
}

/// The object, with what its programs are told: where the running kernel keeps what they read, by the name of a static,
/// and how many bytes may wait.
fn prepared(
    marks: Marks,
    offsets: &[(&'static str, u32)],
    queue: u32,
) -> Result<Vec<u8>, InterceptError> {
    let mut object = OBJECT.to_vec();
    // Not by `override_global`: the loader would want to keep what it is given.
    set(&mut object, "MARK_UPSTREAM", &marks.upstream.to_ne_bytes())?;
    set(&mut object, "MARK_DELIVERY", &marks.delivery.to_ne_bytes())?;
    for (name, offset) in offsets {
        set(&mut object, name, &offset.to_ne_bytes())?;
    }
    set(&mut object, "RECEIVE_QUEUE_LIMIT", &queue.to_ne_bytes())?;
    Ok(object)
}

/// Writes a static of the programs into their object file.
fn set(object: &mut [u8], name: &str, value: &[u8]) -> Result<(), InterceptError> {
    let at = place(object, name).ok_or_else(|| missing("static", name))?;
    let place = object.get_mut(at..at + value.len());
    place
        .ok_or_else(|| missing("room for", name))?
        .copy_from_slice(value);
    Ok(())
}

fn place(object: &[u8], name: &str) -> Option<usize> {
    let file = object::File::parse(object).ok()?;
    let symbol = file.symbol_by_name(name)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let (start, _) = section.file_range()?;
    usize::try_from(start + symbol.address()).ok()
}

fn sk_storage(object: &mut Ebpf, name: &str) -> Result<MapData, InterceptError> {
    match object.take_map(name) {
        Some(Map::SkStorage(map)) => Ok(map),
        _ => Err(missing("map", name)),
    }
}

fn private_pin(bpffs: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", raw(bpffs)))
}

fn detached_bpffs() -> Result<OwnedFd, InterceptError> {
    let make = || {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    };
    make().map_err(|error| InterceptError::io("make a private", "bpffs", error.into()))
}

/// An aya error with all its causes but without the verifier's log, which goes to the debug log.
pub(super) fn failed(what: &str, error: &dyn Error) -> InterceptError {
    let mut message = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let text = error.to_string();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        if !rest.is_empty() {
            tracing::debug!(what, log = rest, "the verifier said");
        }
        // Some errors repeat their cause, some do not.
        if !message.ends_with(first) {
            message.push_str(if message.is_empty() { "" } else { ": " });
            message.push_str(first);
        }
    }
    InterceptError::Ebpf {
        what: format!("cannot {what}"),
        message,
    }
}

/// The object is not what this code was written for.
pub(super) fn missing(what: &str, name: &str) -> InterceptError {
    InterceptError::Ebpf {
        what: format!("the eBPF object has no {what}"),
        message: name.to_owned(),
    }
}
