//! The application sees the client's own address, whoever the client is; where that cannot be had, it is said.

use std::fs;
use std::time::Duration;

use shunt_tests::router::distant_pod;
use shunt_tests::{AgentBuilder, Pod, World, in_both_modes, postgres, require, wait};

in_both_modes!(
    near_and_far_clients_are_seen,
    pg_hba_judges_by_the_clients_address,
    without_a_return_path_it_is_said_and_works,
);

fn url(host: &str) -> String {
    match host.contains(':') {
        true => format!("http://[{host}]/"),
        false => format!("http://{host}/"),
    }
}

fn near_and_far_clients_are_seen(mode: &str) {
    require::everything();
    let world = World::new();
    let (server, near, enrolled) = (world.pod(), world.pod(), world.pod());
    let far = distant_pod(&world, &[&server, &near, &enrolled]);
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, mode)
        .enrol("web", &server, "")
        .enrol("client", &enrolled, "")
        .start();
    let mut count = 0;
    for client in [&near, &far, &enrolled] {
        for (own, to) in [(&client.v4, &server.v4), (&client.v6, &server.v6)] {
            assert_eq!(&client.says("curl", &["-sS", "-m", "10", &url(to)]), own);
            count += 1;
        }
        // Bytes both ways, more than a window.
        let big = format!("{}big", url(&server.v4));
        let file = world.dir.path().join(&client.netns).join("got");
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        client.says(
            "curl",
            &["-sS", "-m", "15", "-o", &file.display().to_string(), &big],
        );
        let known = world.dir.path().join(&server.netns).join("big");
        assert!(fs::read(file).expect("a file") == fs::read(known).expect("a file"));
        count += 1;
    }
    for line in agent.lines(count) {
        let client = line["client"].as_str().expect("text");
        let outbound = line["direction"] == "outbound";
        assert_eq!(
            outbound,
            client.contains(&enrolled.v4) || client.contains(&enrolled.v6),
            "{line:#}"
        );
    }
    // The other way: an enrolled client and a server on another node.
    let _far_nginx = far.nginx(&world);
    for (own, to) in [(&enrolled.v4, &far.v4), (&enrolled.v6, &far.v6)] {
        assert_eq!(&enrolled.says("curl", &["-sS", "-m", "10", &url(to)]), own);
    }
    agent.lines(count + 2);
}

fn pg_hba_judges_by_the_clients_address(mode: &str) {
    require::everything();
    let world = World::new();
    let (server, friend, other) = (world.pod(), world.pod(), world.pod());
    let _postgres = postgres::start(&world, &server, &friend);
    let psql = |pod: &Pod, host: &str| {
        let words = [
            "-h",
            host,
            "-U",
            "postgres",
            "-w",
            "-Atc",
            "select inet_client_addr()",
            "postgres",
        ];
        let output = pod.run("psql", &words);
        (
            output.status.success(),
            format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        )
    };
    let check = |when: &str| {
        for (host, own, others) in [
            (&server.v4, &friend.v4, &other.v4),
            (&server.v6, &friend.v6, &other.v6),
        ] {
            let (let_in, said) = psql(&friend, host);
            assert!(let_in && said.trim() == own, "{when}: {said}");
            let (let_in, said) = psql(&other, host);
            assert!(
                !let_in
                    && said.contains(&format!(
                        "pg_hba.conf rejects connection for host \"{others}\""
                    )),
                "{when}: {said}"
            );
        }
    };
    check("without us");
    {
        let agent = AgentBuilder::new(&world, mode)
            .enrol("db", &server, "")
            .start();
        check("only the server is enrolled");
        assert!(agent.workload("db")["connections"]["total"].as_u64() >= Some(4));
    }
    let agent = AgentBuilder::new(&world, mode)
        .enrol("db", &server, "")
        .enrol("friend", &friend, "")
        .enrol("other", &other, "")
        .start();
    check("everybody is enrolled");
    // psql first asks for TLS, and tries again without it when it is rejected.
    for name in ["friend", "other"] {
        assert!(agent.workload(name)["connections"]["total"].as_u64() >= Some(2));
    }
}

/// A host on which the agent cannot write the namespace's sysctls, as in a container with a read-only /proc/sys.
fn without_a_return_path_it_is_said_and_works(mode: &str) {
    require::everything();
    let world = World::new();
    let (server, client) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let before = server.state();
    let agent = AgentBuilder::new(&world, mode)
        .with_read_only_sysctls()
        .enrol("web", &server, "")
        .start();
    let workload = agent.workload("web");
    assert_eq!(
        (&workload["mode"], &workload["state"]),
        (&mode.into(), &"ready".into())
    );
    let reason = workload["mode_reason"].as_str().expect("text");
    assert!(
        reason.contains("clients' addresses are not kept")
            && reason.contains("Read-only file system"),
        "{reason}"
    );
    for to in [&server.v4, &server.v6] {
        let seen = client.says("curl", &["-sS", "-m", "10", &url(to)]);
        assert!(seen != client.v4 && seen != client.v6, "{seen}");
    }
    for line in agent.lines(2) {
        assert_eq!(
            (&line["direction"], &line["close_reason"]),
            (&"inbound".into(), &"finished".into())
        );
        let known = line["client"].as_str().expect("text");
        assert!(
            known.contains(&client.v4) || known.contains(&client.v6),
            "{line:#}"
        );
    }
    drop(agent);
    wait::until("nothing is left", Duration::from_secs(5), || {
        (server.state() == before).then_some(())
    });
}
