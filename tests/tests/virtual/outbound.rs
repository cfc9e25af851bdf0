//! The client's side.

use std::time::Duration;

use shunt_tests::greeter::greeter;
use shunt_tests::{Script, Way, on_every_way, wait};

use crate::scene::{Listener, Scene, bootstrap, says};

on_every_way!(
    the_listener_is_found_by_destination,
    what_no_listener_is_for_goes_as_ever,
    a_server_that_speaks_first_is_heard,
    a_name_in_a_client_hello_chooses_the_chain,
    a_change_meets_new_connections_only,
    a_dead_agent_leaves_connections_alone,
);

/// Exact, port, and the rest: its chains, the cluster that goes where the connection was going, the one without
/// endpoints.
fn the_listener_is_found_by_destination(way: Way) {
    let scene = Scene::new();
    let nowhere = scene.nowhere();
    let agent = scene.agent(
        way,
        &bootstrap(
            &[
                Listener::at("exact", "OUTBOUND", nowhere, 80).http("", &says("exact")),
                Listener::at("port", "OUTBOUND", "0.0.0.0", 81).http("", &says("port")),
                Listener::at("six", "OUTBOUND", "::", 81).http("", &says("six")),
                Listener::rest("rest", "OUTBOUND")
                    .tcp("destination_port: 82", "blackhole")
                    .tcp("", "passthrough"),
            ],
            &[],
        ),
    );
    assert_eq!(scene.curl(&format!("http://{nowhere}:80/")), "exact");
    assert_eq!(scene.curl("http://10.66.0.201:81/"), "port");
    assert_eq!(
        scene.curl(&format!("http://[{}]:81/", scene.server.v6)),
        "six"
    );
    // The same port elsewhere, and by the other family: with the client's own address.
    let (v4, v6) = (&scene.server.v4, &scene.server.v6);
    assert_eq!(scene.curl(&format!("http://{v4}/")), scene.client.v4);
    assert_eq!(scene.curl(&format!("http://[{v6}]/")), scene.client.v6);
    let reset = scene.fails(&format!("http://{v4}:82/"));
    // What curl calls it depends on when the reset comes.
    assert!(matches!(reset, Some(7 | 52 | 56)), "{reset:?}");
    let lines = scene.connections(&agent, 6);
    for line in &lines {
        assert_eq!(line["workload"], "default/client", "{line:#}");
        assert_eq!(line["path"], "copy", "{line:#}");
    }
    assert_eq!(
        lines[3]["peer_workload"], "default/server",
        "{:#}",
        lines[3]
    );
    assert_eq!(
        lines[5]["original_dst"],
        format!("{v4}:82"),
        "{:#}",
        lines[5]
    );
}

/// Without a listener for the rest.
fn what_no_listener_is_for_goes_as_ever(way: Way) {
    let scene = Scene::new();
    let nowhere = scene.nowhere();
    let exact = Listener::at("exact", "OUTBOUND", nowhere, 80).http("", &says("exact"));
    let agent = scene.agent(way, &bootstrap(&[exact], &[]));
    assert_eq!(scene.curl(&format!("http://{nowhere}:80/")), "exact");
    let url = format!("http://{}/", scene.server.v4);
    assert_eq!(scene.curl(&url), scene.client.v4);
    let lines = scene.connections(&agent, 2);
    let path_to = |addr: &str| {
        let was_going = |line: &&serde_json::Value| line["original_dst"] == addr;
        let line = lines.iter().find(was_going);
        line.unwrap_or_else(|| panic!("{lines:#?}"))["path"].clone()
    };
    assert_eq!(path_to(&format!("{nowhere}:80")), "copy");
    assert_eq!(path_to(&format!("{}:80", scene.server.v4)), way.path);
    let why = |to: &str| {
        let query = format!("/explain?workload=client&destination={to}");
        let (_, answer) = agent.admin("GET", &query, "");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer["path_reason"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer:#}"))
            .to_owned()
    };
    let reason = "listener `exact` of the configuration is for it";
    assert_eq!(why(&format!("{nowhere}:80")), reason);
    assert_ne!(why(&format!("{}:80", scene.server.v4)), reason);
    let notes = agent.workload("client")["notes"].to_string();
    assert!(notes.contains("outbound by 1 listeners"), "{notes}");
    // The listener is taken away, and comes back: in force without anything else.
    scene.write(&bootstrap(&[], &[]));
    wait::until("the listener is gone", Duration::from_secs(5), || {
        scene
            .fails(&format!("http://{nowhere}:80/"))
            .filter(|code| *code != 0)
    });
    let port = Listener::at("port", "OUTBOUND", "0.0.0.0", 80).http("", &says("port"));
    scene.write(&bootstrap(&[port], &[]));
    wait::until("the listener is there", Duration::from_secs(5), || {
        (scene.curl(&url) == "port").then_some(())
    });
}

/// The inspectors wait for a client's first bytes, which do not come.
fn a_server_that_speaks_first_is_heard(way: Way) {
    let scene = Scene::new();
    let _greeter = greeter(&scene.server, "hello", &[2525]);
    let rest = Listener::rest("rest", "OUTBOUND")
        .filter("tls_inspector")
        .filter("http_inspector")
        .also("listener_filters_timeout: 0.2s, continue_on_listener_filters_timeout: true")
        .http("application_protocols: [http/1.1]", &says("http"))
        .tcp("", "passthrough");
    let _agent = scene.agent(way, &bootstrap(&[rest], &[]));
    let script = format!(
        "import socket; s = socket.create_connection(('{}', {})); s.settimeout(5); print(s.recv(100).decode())",
        scene.server.v4, 2525
    );
    assert_eq!(scene.client.python(&script), "hello");
    assert_eq!(scene.curl(&format!("http://{}/", scene.server.v4)), "http");
}

fn a_name_in_a_client_hello_chooses_the_chain(way: Way) {
    let scene = Scene::new();
    let mut servers = Vec::new();
    for (name, port) in [("a.test", 8443), ("b.test", 8444)] {
        let at = scene.world.dir.path().join(name).display().to_string();
        let (key, certificate) = (format!("{at}.key"), format!("{at}.pem"));
        let subject = format!("/CN={name}");
        let mut words = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt"];
        words.extend(["ec_paramgen_curve:P-256", "-nodes", "-subj", &subject]);
        words.extend(["-keyout", &key, "-out", &certificate]);
        scene.server.says("openssl", &words);
        let port_text = port.to_string();
        let words = [
            "s_server",
            "-accept",
            &port_text,
            "-key",
            &key,
            "-cert",
            &certificate,
            "-www",
        ];
        servers.push(scene.server.spawn("openssl", &words));
        scene.server.wait_for_listener(port);
    }
    let tls = Listener::at("tls", "OUTBOUND", "0.0.0.0", 443)
        .filter("tls_inspector")
        .tcp("server_names: [a.test]", "a")
        .tcp("server_names: [\"*.test\"]", "b")
        .tcp("", "blackhole");
    let v4 = scene.server.v4.as_str();
    let _agent = scene.agent(way, &bootstrap(&[tls], &[("a", v4, 8443), ("b", v4, 8444)]));
    let to = format!("{}:443", scene.nowhere());
    let subject = |name: &str| {
        let out = scene.client.run(
            "openssl",
            &["s_client", "-connect", &to, "-servername", name],
        );
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("subject="));
        line.map(|line| line.replace(' ', ""))
    };
    assert_eq!(subject("a.test").as_deref(), Some("subject=CN=a.test"));
    assert_eq!(subject("c.test").as_deref(), Some("subject=CN=b.test"));
    assert_eq!(subject("elsewhere"), None);
}

fn a_change_meets_new_connections_only(way: Way) {
    let scene = Scene::new();
    let url = format!("http://{}", scene.server.v4);
    let through = Listener::at("web", "OUTBOUND", "0.0.0.0", 80).tcp("", "passthrough");
    let _agent = scene.agent(way, &bootstrap(&[through], &[]));
    let script = format!(
        "
import urllib.request
with urllib.request.urlopen('{url}/slow', timeout=10) as answer:
    print(len(answer.read(1000)), flush=True)
    input()
    print(len(answer.read()), flush=True)
"
    );
    let mut transfer = Script::start(&scene.client, &script, &[]);
    assert_eq!(transfer.says(), "1000");
    let changed = Listener::at("web", "OUTBOUND", "0.0.0.0", 80).http("", &says("changed"));
    scene.write(&bootstrap(&[changed], &[]));
    wait::until("the change", Duration::from_secs(5), || {
        (scene.curl(&format!("{url}/")) == "changed").then_some(())
    });
    transfer.tell("go on");
    assert_eq!(transfer.says(), ((4 << 20) - 1000).to_string());
    transfer.succeeds();
}

/// Fails open, though the configuration speaks of every connection.
fn a_dead_agent_leaves_connections_alone(way: Way) {
    let scene = Scene::new();
    let rest = Listener::rest("rest", "OUTBOUND").http("", &says("agent"));
    let mut agent = scene.agent(way, &bootstrap(&[rest], &[]));
    let url = format!("http://{}/", scene.server.v4);
    assert_eq!(scene.curl(&url), "agent");
    agent.kill();
    wait::until("it goes directly", Duration::from_secs(5), || {
        let out = scene.client.run("curl", &["-s", "-m", "1", &url]);
        (String::from_utf8_lossy(&out.stdout) == scene.client.v4).then_some(())
    });
}
