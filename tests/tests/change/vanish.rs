//! Namespaces and cgroups vanish at any moment, and names and addresses come back as somebody else's.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use shunt_tests::{Agent, AgentBuilder, Pod, World, require, wait};

fn enrol(agent: &Agent, name: &str, pod: &Pod, mode: &str) -> u16 {
    let body = json!({"netns": pod.netns, "cgroup": pod.cgroup, "mode": mode});
    agent
        .admin(
            "PUT",
            &format!("/workloads/default/{name}"),
            &body.to_string(),
        )
        .0
}

fn withdraw(agent: &Agent, name: &str) -> u16 {
    agent
        .admin("DELETE", &format!("/workloads/default/{name}"), "")
        .0
}

fn delete_netns(pod: &Pod) {
    let mut ip = Command::new("ip");
    ip.args(["netns", "del", &pod.netns]).stderr(Stdio::null());
    assert!(ip.status().expect("ip runs").success(), "{}", pod.netns);
}

fn delete_cgroup(pod: &Pod) {
    fs::write(pod.cgroup.join("cgroup.kill"), "1").expect("a cgroup");
    wait::until(
        "the cgroup is empty and gone",
        Duration::from_secs(5),
        || fs::remove_dir(&pod.cgroup).ok(),
    );
}

/// The data plane keeps more sockets ready for workloads that are used.
const STOCK: usize = 64;

/// Which of the two goes first.
#[derive(Clone, Copy)]
enum First {
    Netns,
    Cgroup,
}

fn vanish(pod: &Pod, first: First) {
    match first {
        First::Netns => {
            delete_netns(pod);
            delete_cgroup(pod);
        }
        First::Cgroup => {
            delete_cgroup(pod);
            delete_netns(pod);
        }
    }
}

fn at_any_point(mode: &str, first: First) {
    require::everything();
    let world = World::new();
    let (server, steady) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, mode)
        .enrol("web", &server, "")
        .enrol("steady", &steady, "")
        .start();
    let before = super::churn::holdings(&agent);
    let slow = format!("http://{}/slow", server.v4);

    // Before the enrolment: nobody to enrol, tried again without noise.
    let pod = world.pod();
    vanish(&pod, first);
    assert_eq!(enrol(&agent, "before", &pod, mode), 202);
    assert_eq!(withdraw(&agent, "before"), 200);

    // Between enrolment and first connection; withdrawn only after the agent has seen it.
    let pod = world.pod();
    assert_eq!(enrol(&agent, "between", &pod, mode), 200);
    vanish(&pod, first);
    wait::until("it is seen", Duration::from_secs(10), || {
        (agent.workload("between")["state"] == "pending").then_some(())
    });
    assert_eq!(withdraw(&agent, "between"), 200);

    // In the middle of flows, and while nobody has noticed a policy is changed, and then the mode.
    let pod = world.pod();
    assert_eq!(enrol(&agent, "middle", &pod, mode), 200);
    let mut flow = pod.spawn("curl", &["-s", "-o", "/dev/null", &slow]);
    wait::until("the flow runs", Duration::from_secs(5), || {
        (agent.workload("middle")["connections"]["active"] == 1).then_some(())
    });
    vanish(&pod, first);
    let change = json!({"netns": pod.netns, "cgroup": pod.cgroup, "mode": mode, "outbound": {"exclude_ports": ["22"]}});
    agent.admin("PUT", "/workloads/default/middle", &change.to_string());
    let other = if mode == "ebpf" { "iptables" } else { "ebpf" };
    assert_eq!(enrol(&agent, "middle", &pod, other), 202);
    assert_eq!(withdraw(&agent, "middle"), 200);
    assert!(!flow.0.wait().expect("killed").success());

    // During the withdrawal: its flow still drains.
    let pod = world.pod();
    assert_eq!(enrol(&agent, "during", &pod, mode), 200);
    let _flow = pod.spawn("curl", &["-s", "-o", "/dev/null", &slow]);
    wait::until("the flow runs", Duration::from_secs(5), || {
        (agent.workload("during")["connections"]["active"] == 1).then_some(())
    });
    assert_eq!(withdraw(&agent, "during"), 200);
    vanish(&pod, first);

    super::churn::until_back(&agent, &before, STOCK);
    let url = format!("http://{}/", server.v4);
    assert_eq!(steady.says("curl", &["-sS", &url]), steady.v4);
    let log = agent.log();
    assert!(
        log.lines().count() < 120,
        "{} lines of log: {log}",
        log.lines().count()
    );
    assert!(
        !log.contains("panicked") && !log.contains("the data plane ended"),
        "{log}"
    );
}

/// Deleted, and made again at once with the same name, addresses and cgroup: the new one is served as itself.
fn the_same_again(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, other) = (world.pod(), world.pod());
    let mut server = world.pod();
    let agent = AgentBuilder::new(&world, mode)
        .enrol("client", &client, "")
        .enrol("web", &server, "")
        .start();
    let mut total = 0;
    for _ in 0..5 {
        let nginx = server.nginx(&world);
        wait::until("it is served", Duration::from_secs(10), || {
            let seen = other.says(
                "curl",
                &["-sS", "-m", "5", &format!("http://{}/", server.v4)],
            );
            assert_eq!(seen, other.v4);
            (agent.workload("web")["connections"]["total"].as_u64()? > total).then_some(())
        });
        for (own, host) in [
            (&client.v4, server.v4.clone()),
            (&client.v6, format!("[{}]", server.v6)),
        ] {
            let seen = client.says("curl", &["-sS", "-m", "5", &format!("http://{host}/")]);
            assert_eq!(&seen, own);
        }
        let lines = agent.access_log();
        let last = lines
            .iter()
            .rev()
            .find(|line| line["direction"] == "outbound")
            .expect("a line");
        assert_eq!(last["peer_workload"], "default/web", "{last:#}");
        total = agent.workload("web")["connections"]["total"]
            .as_u64()
            .expect("a number");
        drop(nginx);
        server = world.again(server);
    }
    // Somebody else has the name's addresses now: connections are his.
    let heir = world.again(server);
    let _nginx = heir.nginx(&world);
    let body = json!({"netns": heir.netns, "cgroup": heir.cgroup, "mode": mode});
    assert_eq!(withdraw(&agent, "web"), 200);
    assert_eq!(
        agent
            .admin("PUT", "/workloads/default/heir", &body.to_string())
            .0,
        200
    );
    client.says("curl", &["-sS", "-m", "5", &format!("http://{}/", heir.v4)]);
    wait::until("the heir is named", Duration::from_secs(5), || {
        let last = agent.access_log().pop()?;
        (last["peer_workload"] == "default/heir").then_some(())
    });
}

macro_rules! in_both_modes {
    ($($name:ident: $story:expr;)*) => {
        mod ebpf { use super::*; $(#[test] fn $name() { ($story)("ebpf"); })* }
        mod iptables { use super::*; $(#[test] fn $name() { ($story)("iptables"); })* }
    };
}

in_both_modes! {
    netns_first: |mode| at_any_point(mode, First::Netns);
    cgroup_first: |mode| at_any_point(mode, First::Cgroup);
    the_same_name_and_address_again: the_same_again;
}
