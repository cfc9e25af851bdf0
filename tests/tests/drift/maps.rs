//! Whoever may do bpf(2) may also write our maps.

use std::process::Command;
use std::time::Duration;

use shunt_tests::attachments::held;
use shunt_tests::{require, wait};

use crate::scene::{Scene, run};

/// BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_SOCKMAP.
const HASH: &str = "1";
const TRIE: &str = "11";
const SOCKETS: &str = "15";

/// Ids of the agent's maps of this kind and name.
fn named(scene: &Scene, kind: &str, name: &str) -> Vec<String> {
    let mut maps = held(scene.agent.pid(), &[("map_type", kind)], "map_id");
    maps.sort();
    maps.dedup();
    maps.retain(|id| run("bpftool", &["map", "show", "id", id]).contains(name));
    maps
}

/// Deletes the first entry.
fn lose(map: &str) {
    let dump = run("bpftool", &["-j", "map", "dump", "id", map]);
    let entries: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let key = entries[0]["key"].as_array().expect("bytes").iter();
    let key = key.map(|byte| byte.as_str().expect("text"));
    let delete = ["map", "delete", "id", map, "key", "hex"].into_iter();
    run("bpftool", &delete.chain(key).collect::<Vec<_>>());
}

#[test]
fn lost_entries_come_back() {
    require::everything();
    let scene = Scene::new("ebpf", "nft");
    for (kind, name, found) in [
        (HASH, "SHUNT_WORKLOADS", "SHUNT_WORKLOADS is gone"),
        (TRIE, "SHUNT_RULES", "1 entries of SHUNT_RULES are gone"),
    ] {
        let maps = named(&scene, kind, name);
        assert_eq!(maps.len(), 1, "{name}");
        scene.repaired("maps", found, || lose(&maps[0]));
    }
    scene.repaired_so_far("maps", 2);
}

/// Without its listener nothing is handed to the agent.
#[test]
fn lost_listeners_come_back() {
    require::everything();
    let scene = Scene::with("ebpf", "nft", |client| {
        let listen = ["TCP-LISTEN:8080,fork,reuseaddr", "SYSTEM:echo here"];
        let running = client.spawn("socat", &listen);
        client.wait_for_listener(8080);
        Some(running)
    });
    let is_captured = || {
        let before = scene.agent.access_log().len();
        let to = format!("TCP:{}:8080", scene.client.v4);
        assert_eq!(scene.server.says("socat", &["-u", &to, "STDOUT"]), "here");
        let lines = || scene.agent.access_log().split_off(before);
        // One that went directly has none.
        (0..20).any(|_| {
            wait::pause(Duration::from_millis(10));
            lines().iter().any(|line| line["direction"] == "inbound")
        })
    };
    let captured = || {
        wait::until("it is captured", Duration::from_secs(5), || {
            is_captured().then_some(())
        });
    };
    captured();
    let found = "1 inbound listeners were not in SHUNT_LISTENERS";
    scene.repaired("maps", found, || {
        // Each instance of the program has its own; that of the loader is empty.
        let deleted = named(&scene, SOCKETS, "SHUNT_LISTENERS").into_iter();
        let deleted = deleted.filter(|map| {
            let delete = ["map", "delete", "id", map, "key", "0", "0", "0", "0"];
            let output = Command::new("bpftool").args(delete).output();
            output.expect("installed").status.success()
        });
        assert_eq!(deleted.count(), 1);
    });
    captured();
}
