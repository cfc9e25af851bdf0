//! Connections reach their destinations through the agent, in both modes, v4 and v6, and it says who called whom.

use std::process::Command;
use std::time::Duration;

use shunt_tests::{AgentBuilder, Pair, in_both_modes, wait};

in_both_modes!(
    curl_reaches_nginx,
    a_not_enrolled_client_is_seen_and_kept,
    addresses_are_as_without_us,
    the_server_may_speak_first,
    ends_and_resets_pass,
    some_things_are_never_captured,
    real_programs_work,
    bulk_is_spliced,
    the_agents_own_ports_are_refused,
);

fn curl_reaches_nginx(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    let urls = [
        format!("http://{}/", scene.server.v4),
        format!("http://[{}]/", scene.server.v6),
    ];
    let seen: Vec<String> = urls
        .iter()
        .map(|url| scene.client.says("curl", &["-sS", url]))
        .collect();
    assert_eq!(
        seen,
        [scene.client.v4.clone(), scene.client.v6.clone()],
        "nginx's $remote_addr"
    );
    let lines = agent.lines(2);
    for (line, (from, to)) in lines.iter().zip([
        (scene.client.v4.clone(), format!("{}:80", scene.server.v4)),
        (
            format!("[{}]", scene.client.v6),
            format!("[{}]:80", scene.server.v6),
        ),
    ]) {
        assert_eq!(line["direction"], "outbound");
        assert_eq!(line["original_dst"], to.as_str());
        assert_eq!(
            line["original_dst_source"],
            if mode == "ebpf" {
                "sk_storage"
            } else {
                "conntrack"
            }
        );
        assert!(
            line["client"].as_str().expect("text").starts_with(&from),
            "{line:#}"
        );
        assert!(
            line["workload"].to_string().contains("client")
                && line["peer_workload"].to_string().contains("server")
        );
        assert_eq!(
            (line["path"].as_str(), line["close_reason"].as_str()),
            (Some("copy"), Some("finished"))
        );
    }
    for name in ["client", "server"] {
        let workload = agent.workload(name);
        assert_eq!(
            (&workload["mode"], &workload["state"]),
            (&mode.into(), &"ready".into())
        );
        assert_eq!(
            workload["connections"]["total"], 2,
            "counted once at each end: {workload:#}"
        );
    }
    let metrics = agent.admin("GET", "/stats/prometheus", "").1;
    for name in [
        "shunt_connections_total{",
        "shunt_bytes_total{",
        "shunt_original_dst_misses_total",
        "shunt_loops_refused_total",
    ] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
}

fn a_not_enrolled_client_is_seen_and_kept(mode: &str) {
    let scene = Pair::new();
    let stranger = scene.world.pod();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    for (own, theirs) in [
        (&stranger.v4, scene.server.v4.clone()),
        (&stranger.v6, format!("[{}]", scene.server.v6)),
    ] {
        assert_eq!(
            &stranger.says("curl", &["-sS", &format!("http://{theirs}/")]),
            own
        );
    }
    for line in agent.lines(2) {
        assert_eq!(line["direction"], "inbound", "{line:#}");
    }
    // Nobody listens on 81: without us that is a refusal, with iptables a reset after the handshake.
    let closed = stranger.run(
        "curl",
        &["-sS", "-m", "5", &format!("http://{}:81/", scene.server.v4)],
    );
    let code = closed.status.code();
    assert!(
        if mode == "ebpf" {
            code == Some(7)
        } else {
            code == Some(7) || code == Some(56)
        },
        "{closed:?}"
    );
}

fn addresses_are_as_without_us(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let script = format!(
        "import socket\n\
         for family, host in [(socket.AF_INET, '{v4}'), (socket.AF_INET6, '{v6}'), (socket.AF_INET6, '::ffff:{v4}')]:\n\
         \x20   s = socket.socket(family); s.connect((host, 80))\n\
         \x20   print(s.getpeername()[:2], s.getsockname()[0])\n",
        v4 = scene.server.v4,
        v6 = scene.server.v6
    );
    let direct = scene.client.python(&script);
    let agent = scene.both(mode, "").start();
    assert_eq!(scene.client.python(&script), direct);
    agent.lines(3);
}

fn the_server_may_speak_first(mode: &str) {
    let scene = Pair::new();
    let _server = scene.server.spawn(
        "socat",
        &[
            "TCP6-LISTEN:7,fork,reuseaddr,ipv6only=0",
            "SYSTEM:echo 220 hello; cat",
        ],
    );
    scene.server.wait_for_listener(7);
    let agent = scene.both(mode, "").start();
    let script = format!(
        "import socket\ns = socket.create_connection(('{}', 7)); f = s.makefile('rw')\n\
         print(f.readline().strip()); f.write('ping\\n'); f.flush(); print(f.readline().strip())",
        scene.server.v4
    );
    assert_eq!(scene.client.python(&script), "220 hello\nping");
    agent.lines(1);
}

fn ends_and_resets_pass(mode: &str) {
    let scene = Pair::new();
    // A server which reads to the end and only then answers; on port 9 it resets after the first bytes.
    let server = "import socket, struct, threading\n\
        def serve(port, work):\n    l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', port)); l.listen()\n    while True:\n        c, _ = l.accept(); work(c); c.close()\n\
        def tally(c):\n    n = 0\n    while True:\n        b = c.recv(65536)\n        if not b: break\n        n += len(b)\n    c.sendall(b'%d\\n' % n + b'x' * 1000000)\n\
        def reset(c):\n    c.recv(1); c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
        threading.Thread(target=serve, args=(8, tally)).start(); serve(9, reset)\n";
    let _server = scene.server.spawn("python3", &["-c", server]);
    scene.server.wait_for_listener(9);
    scene.server.wait_for_listener(8);
    let agent = scene.both(mode, "").start();
    let half_close = format!(
        "import socket\ns = socket.create_connection(('{}', 8)); s.sendall(b'y' * 3000000); s.shutdown(socket.SHUT_WR)\n\
         d = b''\n\
         while True:\n    b = s.recv(65536)\n    if not b: break\n    d += b\n\
         print(d.split(b'\\n')[0].decode(), len(d))",
        scene.server.v4
    );
    assert_eq!(scene.client.python(&half_close), "3000000 1000008");
    let reset = format!(
        "import socket\ns = socket.create_connection(('{}', 9)); s.sendall(b'y')\n\
         try:\n    print('end' if s.recv(1) == b'' else 'data')\nexcept ConnectionResetError: print('reset')",
        scene.server.v4
    );
    assert_eq!(scene.client.python(&reset), "reset");
    let reasons: Vec<String> = agent
        .lines(2)
        .iter()
        .map(|line| line["close_reason"].to_string())
        .collect();
    assert_eq!(reasons, ["\"finished\"", "\"upstream_reset\""]);
}

fn some_things_are_never_captured(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let _own = scene.client.nginx(&scene.world);
    let agent = AgentBuilder::new(&scene.world, mode)
        .enrol(
            "client",
            &scene.client,
            "outbound: {exclude_ports: [\"79-81\"], exclude_cidrs: [fd66::/64]}",
        )
        .start();
    let (server, own) = (&scene.server, &scene.client);
    for host in [
        server.v4.clone(),
        format!("[{}]", server.v6),
        own.v4.clone(),
        format!("[{}]", own.v6),
        "127.0.0.1".into(),
    ] {
        scene
            .client
            .says("curl", &["-sS", &format!("http://{host}/")]);
    }
    let workload = agent.workload("client");
    assert_eq!(
        workload["connections"]["total"],
        0,
        "{workload:#} {:#?}",
        agent.access_log()
    );
}

fn real_programs_work(mode: &str) {
    let scene = Pair::new();
    let _redis = scene.server.spawn(
        "redis-server",
        &[
            "--bind",
            "0.0.0.0",
            "::",
            "--protected-mode",
            "no",
            "--save",
            "",
        ],
    );
    let _iperf = scene.server.spawn("iperf3", &["-s"]);
    let _nginx = scene.server.nginx(&scene.world);
    scene.server.wait_for_listener(6379);
    scene.server.wait_for_listener(5201);
    let agent = scene.both(mode, "").start();
    let redis = |args: &[&str]| {
        scene
            .client
            .says("redis-cli", &[&["-h", &scene.server.v4], args].concat())
    };
    assert_eq!(redis(&["set", "key", "value"]), "OK");
    assert_eq!(redis(&["get", "key"]), "value");
    for reverse in [&[][..], &["-R"]] {
        let args = [&["-c", &scene.server.v6, "-t", "1", "-J"], reverse].concat();
        let report: serde_json::Value =
            serde_json::from_str(&scene.client.says("iperf3", &args)).expect("JSON");
        let end = &report["end"];
        assert!(
            end["sum_received"]["bytes"].as_u64().expect("a number") > 1 << 20,
            "{end:#}"
        );
    }
    let file = scene.world.dir.path().join("got");
    scene.client.says(
        "curl",
        &[
            "-sS",
            "-o",
            &file.display().to_string(),
            &format!("http://{}/big", scene.server.v4),
        ],
    );
    let known = scene.world.dir.path().join(&scene.server.netns).join("big");
    assert!(
        Command::new("cmp")
            .arg(&file)
            .arg(&known)
            .status()
            .expect("cmp runs")
            .success()
    );
    // Two of redis, two each (control and data) of iperf3, one of curl.
    agent.lines(7);
}

/// A file large enough, there and back; the same with splicing switched off while the agent runs.
fn bulk_is_spliced(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    let known = scene.world.dir.path().join(&scene.server.netns).join("big");
    let fetch = |name: &str| {
        let file = scene.world.dir.path().join(name);
        let url = format!("http://{}/big", scene.server.v4);
        let path = file.display().to_string();
        scene.client.says("curl", &["-sS", "-o", &path, &url]);
        let compared = Command::new("cmp").arg(&file).arg(&known).status();
        assert!(compared.expect("cmp runs").success(), "{name} differs");
    };
    fetch("spliced");
    let line = agent.lines(1).remove(0);
    assert_eq!(
        (line["path"].as_str(), line["close_reason"].as_str()),
        (Some("splice"), Some("finished")),
        "{line:#}"
    );
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let by_path = |bytes: &serde_json::Value| (number(&bytes["copy"]), number(&bytes["splice"]));
    let (copy, splice) = by_path(&line["bytes_by_path"]);
    assert!(copy > 1 << 20 && splice > 1 << 20, "{line:#}");
    let moved = number(&line["bytes_received"]) + number(&line["bytes_sent"]);
    assert_eq!(copy + splice, moved, "{line:#}");
    for name in ["client", "server"] {
        let bytes = agent.workload(name)["bytes"].clone();
        assert_eq!(by_path(&bytes), (copy, splice), "{name}");
    }
    let metrics = agent.admin("GET", "/stats/prometheus", "").1;
    assert!(
        metrics.contains("shunt_acceleration_total{path=\"splice\",reason=\"bulk\"} 1"),
        "{metrics}"
    );
    let file = agent.dir.join("shunt.yaml");
    let text = std::fs::read_to_string(file).expect("readable");
    agent.rewrite_text(&format!("splice_after: off\n{text}"));
    wait::until("the change is applied", Duration::from_secs(5), || {
        let dump = agent.admin("GET", "/config_dump", "").1;
        dump.contains("\"splice_after\": null").then_some(())
    });
    fetch("copied");
    let line = agent.lines(2).remove(1);
    assert_eq!(line["path"], "copy", "{line:#}");
}

fn the_agents_own_ports_are_refused(mode: &str) {
    let scene = Pair::new();
    let agent = scene.both(mode, "").start();
    let mut urls = vec![
        "http://127.0.0.1:15001/".to_owned(),
        "http://[::1]:15001/".to_owned(),
    ];
    if mode == "iptables" {
        urls.push(format!("http://{}:15006/", scene.client.v4));
    }
    for url in &urls {
        assert!(
            !scene
                .client
                .run("curl", &["-sS", "-m", "5", url])
                .status
                .success(),
            "{url} answered"
        );
    }
    let reasons: Vec<String> = agent
        .lines(urls.len())
        .iter()
        .map(|line| line["close_reason"].to_string())
        .collect();
    let want = if mode == "ebpf" {
        "\"original_dst_missing\""
    } else {
        "\"loop\""
    };
    assert!(reasons.iter().all(|reason| reason == want), "{reasons:?}");
}
