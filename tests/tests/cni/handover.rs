//! The namespace goes to the agent as a descriptor; what comes over that socket is not believed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde_json::json;
use shunt_cni_protocol::{Attachment, Reply, Request, decode, encode, socket};
use shunt_tests::agent::signal;
use shunt_tests::cni::{Network, binary};
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, require};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{NOBODY, SHUNT, asking, connects, enrolled, server};

in_both_modes!(an_agent_that_does_not_see_the_namespaces_name_serves_it);

/// As in a container without the host's /run/netns: it finds the namespace again by its processes.
fn an_agent_that_does_not_see_the_namespaces_name_serves_it(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode)
        .without_named_namespaces()
        .start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    connects(&pod, &server);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    let said = network.invoke("CHECK", SHUNT, &pod);
    assert!(said.succeeded, "{said:?}");

    let _process = pod.pod.nginx(&world);
    agent.terminate();
    agent.restart();
    assert_eq!(enrolled(&agent), ["shop/client"]);
    connects(&pod, &server);
    assert_eq!(agent.lines(2)[1]["workload"], "shop/client");
    network.del(&pod).expect("deleted");
    assert_eq!(enrolled(&agent), NOBODY);
}

fn say(agent: &Agent, packet: &[u8], beside: Option<BorrowedFd<'_>>) -> Option<Reply> {
    let connected = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    let at = SockAddr::unix(agent.dir.join("state/cni.sock")).expect("an address");
    connected.connect(&at).expect("the agent is there");
    connected
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    socket::send(&connected, packet, beside).expect("sent");
    let (reply, _) = socket::receive(&connected).expect("an answer or the end");
    (!reply.is_empty()).then(|| decode(&reply).expect("understood"))
}

#[test]
fn what_is_said_over_the_socket_is_not_believed() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let pod = network.container("shop", "client");
    let before = pod.pod.state();
    let netns = File::open(format!("/run/netns/{}", pod.pod.netns)).expect("a namespace");
    let other = File::open("/proc/self/ns/mnt").expect("a namespace");
    let file = File::open("/etc/passwd").expect("a file");
    let add = |name: &str, container: &str, workload| {
        let attachment = Attachment {
            namespace: "shop".into(),
            name: name.into(),
            container: container.into(),
            network: "pods".into(),
        };
        let request = Request::Add {
            attachment,
            netns: "/run/netns/x".into(),
            workload,
        };
        encode(&request).expect("written")
    };
    let right = add("client", "c0ffee", json!({}));
    let cases = [
        ("nonsense", b"\0\xff".to_vec(), Some(&netns)),
        ("half", right[..40].to_vec(), Some(&netns)),
        (
            "a version to come",
            br#"{"version":2,"body":{}}"#.to_vec(),
            Some(&netns),
        ),
        ("no namespace", right.clone(), None),
        ("another kind of namespace", right.clone(), Some(&other)),
        ("a file", right.clone(), Some(&file)),
        ("a path", add("../x", "c0ffee", json!({})), Some(&netns)),
        ("a path too", add("client", "../x", json!({})), Some(&netns)),
        ("a list", add("client", "c0ffee", json!([])), Some(&netns)),
        (
            "a wrong workload",
            add("client", "c0ffee", json!({"mode": "x"})),
            Some(&netns),
        ),
        (
            "100 KB",
            add(
                "client",
                "c0ffee",
                json!({"labels": {"a": "x".repeat(100_000)}}),
            ),
            Some(&netns),
        ),
    ];
    for (what, packet, beside) in cases {
        let reply = say(&agent, &packet, beside.map(AsFd::as_fd));
        assert!(
            matches!(reply, Some(Reply::Refused(_))),
            "{what}: {reply:?}"
        );
    }
    assert_eq!(enrolled(&agent), NOBODY);
    assert_eq!(pod.pod.state(), before);
    // It goes on.
    let reply = say(&agent, &right, Some(netns.as_fd()));
    assert_eq!(reply, Some(Reply::Done));
    assert_eq!(enrolled(&agent), ["shop/client"]);
}

/// Who asks and goes away leaves his place to others, however many they are.
#[test]
fn visitors_that_left_hold_no_place() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let pod = network.container("shop", "client");
    let netns = File::open(format!("/run/netns/{}", pod.pod.netns)).expect("a namespace");
    let worker = agent.worker_pid().expect("a data plane");
    signal("-STOP", worker);
    let attachment = Attachment {
        namespace: "shop".into(),
        name: "client".into(),
        container: "c0ffee".into(),
        network: "pods".into(),
    };
    let add = Request::Add {
        attachment,
        netns: "/run/netns/x".into(),
        workload: json!({}),
    };
    let add = encode(&add).expect("written");
    let at = SockAddr::unix(agent.dir.join("state/cni.sock")).expect("an address");
    for _ in 0..300 {
        let visitor = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        visitor.connect(&at).expect("the agent is there");
        socket::send(&visitor, &add, Some(netns.as_fd())).expect("sent");
    }
    let status = encode(&Request::Status).expect("written");
    let reply = say(&agent, &status, None);
    let same = agent.worker_pid() == Some(worker);
    signal("-CONT", worker);
    assert!(matches!(reply, Some(Reply::NotReady(_))), "{reply:?}");
    assert!(same, "it answered only once there was another data plane");
}

/// Whoever the refusal is about keeps what he has.
#[test]
fn a_refusal_takes_nothing_back() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let closed = json!({"on_failure": "closed"});
    let network = Network::new(&world, "1.0.0", asking(&agent, &closed));
    let (server, _nginx) = server(&world, &network);
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    let mut environment = pod.environment();
    environment.push((
        "CNI_ARGS",
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=twin".into(),
    ));
    let mut config = network.plugins[SHUNT].clone();
    config["name"] = "pods".into();
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"] = pod.result.clone();
    let input = config.to_string();
    let said = network.run(&binary(), "ADD", &environment, input.as_bytes());
    assert_eq!(said.code(), 7, "one namespace, two names: {said:?}");
    assert_eq!(enrolled(&agent), ["shop/client"]);
    connects(&pod, &server);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    network.del(&pod).expect("deleted");
}
