//! What processes hold in the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

/// The kernel's objects of a kind (prog, map, link) that a process holds, by id.
///
/// # Panics
/// There is no such process.
pub fn held_by(pid: u32, kind: &str) -> BTreeSet<u64> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process");
    let texts = infos
        .flatten()
        .map(|info| fs::read_to_string(info.path()).unwrap_or_default());
    let id = |text: String| {
        let mut lines = text.lines();
        lines.find_map(|line| {
            let id = line.strip_prefix(&format!("{kind}_id:"))?;
            id.trim().parse().ok()
        })
    };
    texts.filter_map(id).collect()
}

/// All of a kind, as bpftool shows them.
///
/// # Panics
/// bpftool fails.
pub fn all(kind: &str) -> BTreeSet<u64> {
    let objects = bpftool(&[kind, "show"]);
    let objects = objects.as_array().expect("a list").iter();
    objects.filter_map(|object| object["id"].as_u64()).collect()
}

/// Entries of each map that a process holds, by the map's name; arrays are left out.
///
/// # Panics
/// bpftool fails.
pub fn entries(pid: u32) -> Vec<(String, usize)> {
    let maps = held_by(pid, "map").into_iter().filter_map(|id| {
        let id = id.to_string();
        let map = bpftool(&["map", "show", "id", &id]);
        let kind = map["type"].as_str()?;
        if !["hash", "lpm_trie"].contains(&kind) {
            return None;
        }
        let dump = bpftool(&["map", "dump", "id", &id]);
        let name = map["name"].as_str()?.to_owned();
        Some((name, dump.as_array().map_or(0, Vec::len)))
    });
    let mut maps: Vec<_> = maps.collect();
    maps.sort();
    maps
}

fn bpftool(args: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(args).output();
    let output = output.expect("bpftool runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("bpftool {args:?}: {error}: {output:?}"))
}

/// How many descriptors a process has open.
///
/// # Panics
/// There is no such process.
pub fn descriptors(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let names = links
        .flatten()
        .filter_map(|link| fs::read_link(link.path()).ok())
        .map(|target| target.display().to_string());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Resident memory of a process, in KiB.
///
/// # Panics
/// There is no such process.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}
