//! The programs in the kernel and the decision function must give the same answer, to a hundred thousand questions
//! each way. Outbound, sockets connect for real and the hooks' counters tell; inbound, the kernel runs `sk_lookup` on
//! made-up packets (BPF_PROG_TEST_RUN, which hooks of connect(2) do not know).

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Instant;

use shunt_core::address::to_kernel;
use shunt_core::explain::{Inquiry, Outcome, rule};
use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;
use shunt_core::workload::{CapturePolicy, OnFailure};
use shunt_ebpf_common::decision::{Question, Verdict, decide};
use shunt_intercept::{Backend, Enrolment, cgroup};
use socket2::{Domain, Socket, Type};

use crate::cases::{Chance, port_edges};
use crate::pods::{Live, pair, until};
use crate::test_run::{self, Packet};

const POLICIES: usize = 320;
const QUESTIONS: usize = 320;
/// More, since a third of them is for ports on which nobody listens.
const INBOUND_QUESTIONS: usize = 500;
/// Of each policy's questions, as many go to `explain` too.
const EXPLAINED: usize = 2;

struct Asked {
    to: SocketAddr,
    mapped: bool,
    bound_to_device: bool,
}

#[test]
fn connect_hooks_agree_with_the_decision_function() {
    let (client, _peer) = pair();
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    // The test's own sockets are asked about.
    let root = cgroup::mount_point().expect("cgroup2");
    enrolment.spec.cgroup = Some(cgroup::of_this_process(&root).expect("a cgroup"));
    live.install(&enrolment);
    let mut chance = Chance::new();
    let (start, seed, edges) = (Instant::now(), chance.seed(), port_edges());
    let (mut captured, mut verdicts) = (0, std::collections::BTreeMap::<&str, u32>::new());
    for _ in 0..POLICIES {
        let policy = chance.policy(&edges);
        let own: Vec<IpAddr> = (0..chance.below(4)).map(|_| chance.ip()).collect();
        enrolment.spec.outbound = policy.clone();
        enrolment.addresses = own.clone();
        live.update(&enrolment);
        live.backend().keep_alive();
        let questions: Vec<Asked> = (0..QUESTIONS)
            .map(|_| Asked {
                to: SocketAddr::new(
                    chance.address(&policy, &own),
                    chance.question_port(&policy, &edges),
                ),
                mapped: chance.one_in(3),
                bound_to_device: chance.one_in(20),
            })
            .collect();
        let verdict = |asked: &Asked| {
            let question = Question {
                direction: Direction::Outbound,
                address: to_kernel(asked.to.ip()),
                port: asked.to.port(),
                bound_to_device: asked.bound_to_device,
            };
            let rules = PolicyRules {
                policy: &policy,
                own: &own,
            };
            decide(&question, &rules)
        };
        let answers = client.netns.enter(|| {
            let answers = questions.iter().map(|asked| connect(&live, asked));
            answers.collect::<Vec<bool>>()
        });
        for (asked, answer) in questions.iter().zip(answers.expect("the namespace")) {
            let verdict = verdict(asked);
            assert_eq!(
                answer,
                verdict == Verdict::Capture,
                "SHUNT_SEED={seed} {} mapped {} bound {}: the function says {verdict:?}; own {own:?} {policy:#?}",
                asked.to,
                asked.mapped,
                asked.bound_to_device
            );
            captured += u32::from(answer);
            *verdicts.entry(verdict.as_str()).or_default() += 1;
        }
        for asked in questions
            .iter()
            .filter(|asked| !asked.bound_to_device)
            .take(EXPLAINED)
        {
            explained(
                &live,
                &enrolment,
                Direction::Outbound,
                asked.to,
                None,
                verdict(asked),
            );
        }
    }
    println!(
        "{} questions in {:?}, {captured} captured, seed {seed}: {verdicts:?}",
        POLICIES * QUESTIONS,
        start.elapsed()
    );
    assert!(
        captured > 10_000 && verdicts.len() == 11,
        "{captured} {verdicts:?}"
    );
}

/// True: captured. The hook counts every connection of the workload once.
fn connect(live: &Live, asked: &Asked) -> bool {
    let before = counts(live);
    let (domain, to) = match asked.to.ip() {
        IpAddr::V4(v4) if asked.mapped => {
            let to = SocketAddr::new(v4.to_ipv6_mapped().into(), asked.to.port());
            (Domain::IPV6, to)
        }
        IpAddr::V4(_) => (Domain::IPV4, asked.to),
        IpAddr::V6(_) => (Domain::IPV6, asked.to),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None).expect("a socket");
    // Nothing of it is to stay behind.
    socket
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("an option");
    if asked.bound_to_device {
        socket.bind_device(Some(b"eth0")).expect("bound");
    }
    // Whether the address can be reached does not matter: the hook comes first.
    let _ = socket.connect(&to.into());
    let after = counts(live);
    let (captured, bypassed) = (after.0 - before.0, after.1 - before.1);
    assert_eq!(captured + bypassed, 1, "{to}: {before:?} {after:?}");
    captured == 1
}

fn counts(live: &Live) -> (u64, u64) {
    let events = live.backend().events();
    let of = |name| {
        events
            .iter()
            .find(|(held, _)| *held == name)
            .expect("known")
            .1
    };
    (of("outbound_captured"), of("outbound_bypassed"))
}

fn explained(
    live: &Live,
    enrolment: &Enrolment,
    direction: Direction,
    destination: SocketAddr,
    client: Option<IpAddr>,
    verdict: Verdict,
) {
    let inquiry = Inquiry {
        workload: enrolment.spec.name.to_string(),
        direction,
        destination,
        client,
    };
    let answer = live
        .backend()
        .explain(enrolment, &inquiry)
        .expect("an answer");
    assert_eq!(answer.rule, verdict.as_str(), "{answer:#?}");
    let captured = answer.outcome == Outcome::Captured;
    assert_eq!(captured, verdict == Verdict::Capture, "{answer:#?}");
    assert!(
        answer.drift.is_empty() && answer.doubts.is_empty(),
        "{answer:#?}"
    );
    assert_eq!(answer.configured.as_deref(), Some(verdict.as_str()));
}

#[test]
fn sk_lookup_agrees_with_the_decision_function() {
    let (pod, _peer) = pair();
    let live = Live::load();
    let mut enrolment = pod.enrolment(1);
    let edges = port_edges();
    let applications = pod.netns.enter(|| {
        let listen = |port: &u16| TcpListener::bind(SocketAddr::from(([0_u16; 8], *port)));
        edges.iter().map(listen).collect::<Result<Vec<_>, _>>()
    });
    let _applications = applications.expect("the namespace").expect("free ports");
    let cookies = listen_alone(&mut enrolment);
    live.install(&enrolment);
    let program = test_run::program_that_chooses(cookies[0], pod.v4);
    let mut chance = Chance::new();
    let (start, seed) = (Instant::now(), chance.seed());
    let (mut captured, mut verdicts) = (0, std::collections::BTreeMap::<&str, u32>::new());
    for _ in 0..POLICIES {
        let policy = chance.policy(&edges);
        enrolment.spec.inbound = policy.clone();
        live.update(&enrolment);
        live.backend().keep_alive();
        for asked in 0..INBOUND_QUESTIONS {
            let client = chance.address(&policy, &[pod.v4, pod.v6]);
            let port = chance.question_port(&policy, &edges);
            let own = if client.is_ipv4() { pod.v4 } else { pod.v6 };
            let to = SocketAddr::new(own, port);
            let verdict = inbound_verdict(&policy, client, port);
            let chosen = test_run::run(&program, &Packet { from: client, to }).expect("it runs");
            let judged = edges.contains(&port) && client != own;
            let want = (judged && verdict == Verdict::Capture)
                .then(|| cookies[usize::from(client.is_ipv6())]);
            assert_eq!(
                chosen, want,
                "SHUNT_SEED={seed} {client} to {to}: {verdict:?} {policy:#?}"
            );
            captured += u32::from(chosen.is_some());
            let counted = if judged {
                verdict.as_str()
            } else {
                "not asked"
            };
            *verdicts.entry(counted).or_default() += 1;
            if judged && asked < EXPLAINED && !client.is_loopback() {
                explained(
                    &live,
                    &enrolment,
                    Direction::Inbound,
                    to,
                    Some(client),
                    verdict,
                );
            }
        }
    }
    println!(
        "{} questions in {:?}, {captured} captured, seed {seed}: {verdicts:?}",
        POLICIES * INBOUND_QUESTIONS,
        start.elapsed()
    );
    assert!(
        captured > 10_000 && verdicts.len() == 10,
        "{captured} {verdicts:?}"
    );
}

fn inbound_verdict(policy: &CapturePolicy, client: IpAddr, port: u16) -> Verdict {
    let question = Question {
        direction: Direction::Inbound,
        address: to_kernel(client),
        port,
        bound_to_device: false,
    };
    decide(&question, &PolicyRules { policy, own: &[] })
}

/// A run for a test tells which socket was chosen only when it is not one of a group: one listener per family.
fn listen_alone(enrolment: &mut Enrolment) -> Vec<u64> {
    let mut cookies = Vec::new();
    let netns = std::sync::Arc::clone(&enrolment.netns);
    for listener in &mut enrolment.listeners {
        if listener.spec.direction == Direction::Inbound {
            let addr = SocketAddr::new(listener.spec.addr.ip(), 0);
            let bound = netns
                .enter(|| TcpListener::bind(addr))
                .expect("the namespace");
            let bound = bound.expect("a free port");
            listener.spec.addr = bound.local_addr().expect("bound");
            cookies.push(test_run::cookie(bound.as_raw_fd()));
            listener.sockets = vec![bound.into()];
        }
    }
    cookies
}

#[test]
fn a_stale_gate_and_a_missing_listener_are_told() {
    let (client, server) = pair();
    let mut live = Live::load();
    let mut enrolment = client.enrolment(1);
    live.install(&enrolment);
    let ask = |live: &Live, enrolment: &Enrolment| {
        let inquiry = Inquiry {
            workload: enrolment.spec.name.to_string(),
            direction: Direction::Outbound,
            destination: SocketAddr::new(server.v4, 80),
            client: None,
        };
        let backend = live.backend();
        backend.explain(enrolment, &inquiry).expect("an answer")
    };
    assert_eq!(ask(&live, &enrolment).outcome, Outcome::Captured);
    live.stop_beating();
    until("the gate is stale", || {
        ask(&live, &enrolment).gate.holds == Some(false)
    });
    let open = ask(&live, &enrolment);
    assert_eq!(
        (open.rule.as_str(), open.outcome),
        (rule::GATE_STALE, Outcome::Direct)
    );
    enrolment.spec.on_failure = OnFailure::Closed;
    live.update(&enrolment);
    assert_eq!(ask(&live, &enrolment).outcome, Outcome::Refused);

    for listener in &mut enrolment.listeners {
        listener.sockets.clear();
    }
    // A child that another test is starting holds them for an instant, until it executes its program.
    until("the listeners are gone", || {
        live.backend().keep_alive();
        let gone = ask(&live, &enrolment);
        (gone.rule.as_str(), gone.outcome) == (rule::LISTENER_GONE, Outcome::Refused)
    });
}

#[test]
fn a_policy_that_is_not_in_the_kernel_is_told() {
    let (client, server) = pair();
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    live.install(&enrolment);
    let inquiry = Inquiry {
        workload: enrolment.spec.name.to_string(),
        direction: Direction::Outbound,
        destination: SocketAddr::new(server.v4, 80),
        client: None,
    };
    enrolment.spec.outbound.exclude_ports = vec!["80".parse().expect("a port")];
    let answer = live
        .backend()
        .explain(&enrolment, &inquiry)
        .expect("an answer");
    assert_eq!(answer.outcome, Outcome::Captured, "as the kernel has it");
    assert_eq!(answer.configured.as_deref(), Some("excluded_port"));
    assert_eq!(answer.drift.len(), 2, "{:#?}", answer.drift);

    // The hooks are not where the configuration wants them.
    let cgroup = enrolment.spec.cgroup.replace(server.cgroup.clone());
    let answer = live
        .backend()
        .explain(&enrolment, &inquiry)
        .expect("an answer");
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::NOT_ENROLLED, Outcome::Direct)
    );
    enrolment.spec.cgroup = cgroup;

    live.release(&enrolment);
    let answer = live
        .backend()
        .explain(&enrolment, &inquiry)
        .expect("an answer");
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::NOT_ENROLLED, Outcome::Direct)
    );
    assert!(!answer.drift.is_empty());
}
