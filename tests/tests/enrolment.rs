//! Enrolling a workload that is at work already.

use std::time::Duration;

use shunt_tests::load::program;
use shunt_tests::{AgentBuilder, Load, World, require, wait};

mod ebpf {
    #[test]
    fn spares_connections_that_go_directly() {
        super::spares_connections_that_go_directly("ebpf");
    }
}

mod iptables {
    #[test]
    fn spares_connections_that_go_directly() {
        super::spares_connections_that_go_directly("iptables");
    }
}

/// In iptables mode connection tracking begins with the rules: it must not take a connection's next packet for a new
/// connection.
fn spares_connections_that_go_directly(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let body = [
        "body", "--port", "7001", "--bytes", "2000000", "--millis", "4000",
    ];
    let _server = server.spawn(&program(), &body);
    server.wait_for_listener(7001);
    let fetch = |host: &str| {
        let to = format!("{host}:7001");
        let args = ["fetch", "--to", &to, "--bytes", "2000000", "--once"];
        Load::start(&client, &args)
    };
    let both = [fetch(&server.v4), fetch(&format!("[{}]", server.v6))];
    wait::until("two connections", Duration::from_secs(5), || {
        let shown = server.says("ss", &["-Htn", "state", "established"]);
        (shown.lines().count() == 2).then_some(())
    });
    let agent = AgentBuilder::new(&world, mode)
        .enrol("client", &client, "")
        .enrol("server", &server, "")
        .start();
    for load in both {
        let report = load.report(Duration::from_secs(20));
        assert_eq!(
            report["ends"],
            serde_json::json!({"whole": 1}),
            "{report:#}"
        );
    }
    assert_eq!(agent.access_log().len(), 0);
}
