//! Programs of others at the places where ours are.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{MapType, loaded_maps};

use super::kernel::{Hook, attached};
use crate::cgroup;
use crate::netns::Netns;

/// Ours start with it.
const OURS: &str = "shunt_";
/// Cgroups that `shunt check` looks at: more than any node has, less than for ever.
const CGROUPS: usize = 20_000;

const HOOKS: [(Hook, &str); 9] = [
    (Hook::Connect4, "connect4"),
    (Hook::Connect6, "connect6"),
    (Hook::Peername4, "getpeername4"),
    (Hook::Peername6, "getpeername6"),
    (Hook::Sockname4, "getsockname4"),
    (Hook::Sockname6, "getsockname6"),
    (Hook::SockOps, "sock_ops"),
    (Hook::GetSockOpt, "getsockopt"),
    (Hook::SetSockOpt, "setsockopt"),
];

/// Where programs are on a socket map: they see its sockets' messages, or what those receive.
const ON_MAPS: [Hook; 4] = [
    Hook::SkMsgVerdict,
    Hook::SkSkbStreamParser,
    Hook::SkSkbStreamVerdict,
    Hook::SkSkbVerdict,
];

/// A program attached to a cgroup.
#[derive(Clone, Debug)]
pub(crate) struct AtCgroup {
    pub(crate) program: String,
    pub(crate) hook: &'static str,
    pub(crate) path: PathBuf,
}

/// At a cgroup and everything above it, nearest first.
pub(crate) fn at_cgroup(cgroup: &Path) -> Vec<AtCgroup> {
    let Ok(root) = cgroup::mount_point() else {
        return Vec::new();
    };
    let up = cgroup
        .ancestors()
        .take_while(|path| path.starts_with(&root));
    up.flat_map(here).collect()
}

/// At a cgroup and everything below it.
pub(crate) fn below(root: &Path) -> Vec<AtCgroup> {
    let mut found = Vec::new();
    let mut next = vec![root.to_owned()];
    for _ in 0..CGROUPS {
        let Some(path) = next.pop() else { break };
        found.extend(here(&path));
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        next.extend(children.map(|entry| entry.path()));
    }
    found
}

fn here(path: &Path) -> Vec<AtCgroup> {
    let Ok(directory) = File::open(path) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (hook, name) in HOOKS {
        let programs = attached(directory.as_fd(), hook).unwrap_or_default();
        let foreign = programs
            .into_iter()
            .filter(|program| !program.name.starts_with(OURS));
        found.extend(foreign.map(|program| AtCgroup {
            program: program.to_string(),
            hook: name,
            path: path.to_owned(),
        }));
    }
    found
}

/// `sk_lookup` programs of a namespace.
pub(crate) fn in_namespace(netns: &Netns) -> Vec<String> {
    let programs = attached(netns.as_fd(), Hook::SkLookup).unwrap_or_default();
    let foreign = programs
        .iter()
        .filter(|program| !program.name.starts_with(OURS));
    foreign.map(ToString::to_string).collect()
}

/// Socket maps of the node, and the programs on them that redirect.
pub(crate) fn sockmaps() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for map in loaded_maps().flatten() {
        if !matches!(map.map_type(), Ok(MapType::SockMap | MapType::SockHash)) {
            continue;
        }
        let name = map.name_as_str().unwrap_or_default();
        let name = format!("{name} (id {})", map.id());
        let Ok(fd) = map.fd() else { continue };
        let on_map = |hook| attached(fd.as_fd(), hook).unwrap_or_default();
        let foreign = ON_MAPS.into_iter().flat_map(on_map);
        found.extend(
            foreign
                .filter(|program| !program.name.starts_with(OURS))
                .map(|program| (name.clone(), program.to_string())),
        );
    }
    found
}
