//! A process that somebody moves out of its workload's cgroup leaves the hooks behind.

use std::fs;
use std::time::Duration;

use shunt_tests::{require, wait};

use crate::scene::Scene;

/// Said, since nobody but the one who moved it can put it back.
#[test]
fn a_process_in_another_cgroup_is_named() {
    require::everything();
    let scene = Scene::with("ebpf", "nft", |client| {
        Some(client.spawn("sleep", &["600"]))
    });
    let notes = || scene.agent.workload("client")["notes"].to_string();
    let cgroup = &scene.client.cgroup;
    let procs = wait::until("it runs in its cgroup", Duration::from_secs(5), || {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).expect("readable");
        (procs.lines().count() == 1).then_some(procs)
    });
    let pid = procs.trim();
    let name = format!("sleep (pid {pid})");
    assert!(!notes().contains(&name), "{}", notes());
    let elsewhere = cgroup.parent().expect("the world's").join("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    let put = |cgroup: &std::path::Path| {
        fs::write(cgroup.join("cgroup.procs"), pid).expect("moved");
    };
    put(&elsewhere);
    let note = wait::until("it is said", Duration::from_secs(30), || {
        let notes = notes();
        notes.contains(&name).then_some(notes)
    });
    assert!(note.contains("elsewhere"), "{note}");
    assert!(scene.agent.log().contains(&name));
    put(cgroup);
    wait::until("it is not said any more", Duration::from_secs(30), || {
        (!notes().contains(&name)).then_some(())
    });
    fs::remove_dir(&elsewhere).expect("empty");
}
