//! Loading the built object. Every load shares the maps of the first through a bpffs that is mounted nowhere: a
//! detached mount lives as long as its descriptor, and nobody else can see it.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use aya::maps::{Map, MapData, SockMap};
use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;

use super::raw;
use crate::{Enrolment, InterceptError, Marks};

/// Built from `ebpf/` by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/ebpf/shunt-ebpf.o"
));

/// Maps that every instance shares; only the listeners' socket map is each instance's own.
const SHARED: [&str; 10] = [
    "SHUNT_WORKLOADS",
    "SHUNT_RULES",
    "SHUNT_HANDSHAKE",
    "SHUNT_OWN_FLOWS",
    "SHUNT_LISTENING",
    "SHUNT_GATE",
    "SHUNT_EVENTS",
    "SHUNT_SOCKETS",
    "SHUNT_ACCEPTED",
    "AYA_LOGS",
];

/// The loaded object.
#[derive(Debug)]
pub(super) struct Object {
    marks: Marks,
    bpffs: OwnedFd,
    pub(super) main: Ebpf,
    pub(super) destinations: MapData,
    logger: Logger,
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
        let bpffs = detached_bpffs()?;
        let mut main = load(&bpffs, marks, 0)?;
        let destinations = match main.take_map("SHUNT_ACCEPTED") {
            Some(Map::SkStorage(map)) => map,
            _ => return Err(failed("find map", &"SHUNT_ACCEPTED")),
        };
        let logger = EbpfLogger::init(&mut main)
            .inspect_err(|error| tracing::warn!(%error, "what the eBPF programs say is not logged"))
            .ok();
        Ok(Self {
            marks,
            bpffs,
            main,
            destinations,
            logger: Logger(logger),
        })
    }

    /// Takes a map out of the object.
    pub(super) fn map<M: TryFrom<Map>>(&mut self, name: &str) -> Result<M, InterceptError> {
        let map = self
            .main
            .take_map(name)
            .ok_or_else(|| failed("find map", &name))?;
        M::try_from(map).map_err(|_| failed("use map", &name))
    }

    /// An instance of the inbound hook for this workload. `None`: it has no inbound listener.
    pub(super) fn attach_sk_lookup(
        &self,
        enrolment: &Enrolment,
    ) -> Result<Option<FdLink>, InterceptError> {
        let mut instance = load(&self.bpffs, self.marks, enrolment.netns.cookie())?;
        let mut listeners: SockMap<MapData> = instance
            .take_map("SHUNT_LISTENERS")
            .and_then(|map| map.try_into().ok())
            .ok_or_else(|| failed("find map", &"SHUNT_LISTENERS"))?;
        let mut any = false;
        for (index, family) in [(0, Family::V4), (1, Family::V6)] {
            // One of a SO_REUSEPORT group stands for all: the kernel picks among them by hash.
            let listener = enrolment.listener(Direction::Inbound, family);
            if let Some(socket) = listener.and_then(|listener| listener.sockets.first()) {
                listeners
                    .set(index, socket, 0)
                    .map_err(|error| failed("note the inbound listener", &error))?;
                any = true;
            }
        }
        if !any {
            return Ok(None);
        }
        let program = instance
            .program_mut("shunt_sk_lookup")
            .ok_or_else(|| failed("find program", &"shunt_sk_lookup"))?;
        let program: &mut SkLookup = program
            .try_into()
            .map_err(|error| failed("use sk_lookup", &error))?;
        program
            .load()
            .map_err(|error| failed("load sk_lookup", &error))?;
        let link = program
            .attach(&*enrolment.netns)
            .map_err(|error| failed("attach sk_lookup", &error))?;
        program
            .take_link(link)
            .map(|link| Some(link.into()))
            .map_err(|error| failed("keep sk_lookup", &error))
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

fn load(bpffs: &OwnedFd, marks: Marks, netns_cookie: u64) -> Result<Ebpf, InterceptError> {
    let mut loader = EbpfLoader::new();
    for name in SHARED {
        loader.map_pin_path(name, private_pin(bpffs, name));
    }
    loader
        .override_global("MARK_UPSTREAM", &marks.upstream, true)
        .override_global("MARK_DELIVERY", &marks.delivery, true)
        .override_global("NETNS_COOKIE", &netns_cookie, true)
        .load(OBJECT)
        .map_err(|error| failed("load the eBPF object", &error))
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
pub(super) fn failed(what: &str, error: &dyn Display) -> InterceptError {
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let rest: Vec<&str> = lines.collect();
    if !rest.is_empty() {
        tracing::debug!(what, log = rest.join("\n"), "the verifier said");
    }
    InterceptError::Ebpf {
        what: format!("cannot {what}"),
        message: first,
    }
}
