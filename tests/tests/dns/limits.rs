//! Resolvers that do not answer.

use std::time::Duration;

use shunt_tests::{in_both_modes, kernel, wait};

use crate::scene::*;

in_both_modes!(
    silent_resolvers_cost_little_and_hold_up_nobody,
    a_silent_resolver_leaves_others_their_places,
    a_closed_port_is_told_at_once,
);

/// Takes queries and answers none.
const SILENT: &str = "
import socket, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 53))
while True: time.sleep(60)
";

fn silent_resolvers_cost_little_and_hold_up_nobody(mode: &str) {
    let scene = Scene::new();
    let _silent = python_server(&scene.resolver, SILENT);
    let _dns = dnsmasq(&scene.other, "192.0.2.8");
    let agent = scene.agent(mode, "");
    let at = format!("@{}", scene.other.v4);
    let dig = || {
        let args = ["+short", "+tries=1", "+time=5", &at, "web.test", "A"];
        scene.client.run("dig", &args)
    };
    assert!(dig().status.success());
    let worker = agent.status()["agent"]["worker_pid"]
        .as_u64()
        .expect("a number");
    let worker = u32::try_from(worker).expect("a process id");
    let (files, memory) = (kernel::descriptors(worker).len(), kernel::resident(worker));
    let flood = "
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(3000): s.sendto(struct.pack('>6H', n, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1', ('TO', 53))
";
    scene
        .client
        .python(&flood.replace("TO", &scene.resolver.v4));
    let lost =
        "shunt_dns_queries_total{workload=\"client\",namespace=\"default\",outcome=\"limit\"";
    wait::until("the limit is reached", Duration::from_secs(5), || {
        (metric(&agent, lost) > 0).then_some(())
    });
    let more = kernel::descriptors(worker).len() - files;
    // 256 that wait, and the stock beside them.
    assert!(more < 256 + 400, "{more} more descriptors");
    // None of them is answered, and the client hears nothing.
    let late =
        "shunt_dns_queries_total{workload=\"client\",namespace=\"default\",outcome=\"timed_out\"";
    wait::until("they are given up", Duration::from_secs(12), || {
        (metric(&agent, late) >= 256).then_some(())
    });
    wait::until("others are answered", Duration::from_secs(10), || {
        dig().status.success().then_some(())
    });
    let grown = kernel::resident(worker).saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes more");
    let active = "shunt_dns_queries_active{workload=\"client\"";
    assert_eq!(metric(&agent, active), 0);
}

/// Queries to it go on all the time: it has every place that it may have.
fn a_silent_resolver_leaves_others_their_places(mode: &str) {
    let scene = Scene::new();
    let _silent = python_server(&scene.resolver, SILENT);
    let _dns = dnsmasq(&scene.other, "192.0.2.8");
    let agent = scene.agent(mode, "");
    let flood = "
import socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for n in range(20): s.sendto(struct.pack('>6H', n, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1', ('TO', 53))
    time.sleep(0.05)
";
    let flood = flood.replace("TO", &scene.resolver.v4);
    let _flood = scene.client.spawn("python3", &["-c", &flood]);
    let lost =
        "shunt_dns_queries_total{workload=\"client\",namespace=\"default\",outcome=\"limit\"";
    wait::until("the limit is reached", Duration::from_secs(10), || {
        (metric(&agent, lost) > 0).then_some(())
    });
    let at = format!("@{}", scene.other.v4);
    let args = ["+short", "+tries=1", "+time=2", &at, "web.test", "A"];
    for _ in 0..5 {
        let told = scene.client.run("dig", &args);
        let text = String::from_utf8_lossy(&told.stdout);
        assert_eq!(text.trim(), "192.0.2.8", "{told:?}");
    }
    let active = "shunt_dns_queries_active{workload=\"client\"";
    assert!(metric(&agent, active) >= 256);
}

fn a_closed_port_is_told_at_once(mode: &str) {
    let scene = Scene::new();
    let agent = scene.agent(mode, "");
    for to in [&scene.resolver.v4, &scene.resolver.v6] {
        let script = format!(
            "
import socket, struct
s = socket.socket(socket.AF_INET6 if ':' in '{to}' else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(4)
s.connect(('{to}', 53)); s.send(struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1')
print(s.recv(2048)[:12].hex())
"
        );
        assert_eq!(scene.client.python(&script), "000781020001000000000000");
    }
    let lines = queries(&agent, 2);
    assert!(
        lines
            .iter()
            .all(|line| line["outcome"] == "unreachable" && line["rcode"] == "SERVFAIL"),
        "{lines:#?}"
    );
}
