//! The eBPF backend on a real kernel: namespaces, cgroups and unmodified clients. Needs root.

mod agreement;
mod cases;
mod classes;
mod log_lines;
mod pods;
mod reuse;
mod test_run;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use ipnet::IpNet;
use shunt_core::sockets::{Family, SocketRole};
use shunt_core::workload::{OnFailure, PortRange};
use shunt_intercept::Backend;

use crate::log_lines::Log;
use crate::pods::{Live, MARKS, Pod, agent, map_id, pair, until};

const PORT: u16 = 8080;

fn everywhere() -> SocketAddr {
    SocketAddr::from(([0_u16; 8], PORT))
}

/// What `Pod::ask` says of a connection that nobody touched.
fn untouched(client: &Pod, server: &Pod) -> String {
    format!("server {} {PORT} {}", server.v4, client.v4)
}

/// The same, captured.
fn captured(client: &Pod, server: &Pod) -> String {
    let (to, from) = (server.v4, client.v4);
    format!("outbound {to}:{PORT} {to} {PORT} {from}")
}

#[test]
fn a_connect_goes_to_the_agent_and_shows_its_own_addresses() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let enrolment = client.enrolment(1);
    let _agent = agent(&live, &enrolment);
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
    live.install(&enrolment);

    assert_eq!(client.ask(server.v4, PORT), captured(&client, &server));
    assert_eq!(
        client.ask(server.v6, PORT),
        format!("outbound [{0}]:{PORT} {0} {PORT} {1}", server.v6, client.v6)
    );
    let mapped = client.python(&format!(
        "s = socket.socket(socket.AF_INET6)\ns.connect(('::ffff:{}', {PORT}))\n\
         print(s.recv(99).decode(), s.getpeername()[:2], s.getsockname()[0])",
        server.v4
    ));
    assert_eq!(
        mapped,
        format!(
            "outbound {0}:{PORT} ('::ffff:{0}', {PORT}) ::ffff:{1}",
            server.v4, client.v4
        )
    );
    // Also when the application chose its source address.
    let bound = client.python(&format!(
        "s = socket.socket()\ns.bind(('{}', 0))\ns.connect(('{}', {PORT}))\n\
         print(s.recv(99).decode(), *s.getpeername(), s.getsockname()[0])",
        client.v4, server.v4
    ));
    assert_eq!(bound, captured(&client, &server));
    // MPTCP is left alone: its application would see the agent's address.
    let mptcp = client.python(&format!(
        "try: s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n\
         except OSError: s = None\n\
         if s:\n s.connect(('{}', {PORT}))\n print(s.recv(99).decode(), *s.getpeername(), s.getsockname()[0])\n\
         else: print('no MPTCP')",
        server.v4
    ));
    assert!(
        mptcp == untouched(&client, &server) || mptcp == "no MPTCP",
        "{mptcp}"
    );
    // The other pod is not enrolled.
    assert_eq!(server.ask(server.v4, PORT), untouched(&server, &server));

    live.release(&enrolment);
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
}

#[test]
fn a_socket_that_connects_again_forgets_its_first_destination() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    enrolment.spec.outbound.exclude_ports = vec![PortRange {
        first: PORT,
        last: PORT,
    }];
    let _agent = agent(&live, &enrolment);
    live.install(&enrolment);
    let own_port = enrolment.listeners[0].spec.addr.port();
    let script = |second: &str| {
        format!(
            "import struct\ns = socket.socket()\ns.connect(('{0}', 9))\nprint(s.recv(99).decode())\n\
             import ctypes\nctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)\n\
             s.connect({second})\nprint(s.recv(99).decode(), s.getpeername()[0])",
            server.v4
        )
    };
    let again = client.python(&script(&format!("('{}', {PORT})", server.v4)));
    assert_eq!(again, format!("outbound {0}:9\nserver {0}", server.v4));
    let direct = client.python(&script(&format!("('127.0.0.1', {own_port})")));
    assert_eq!(
        direct,
        format!("outbound {}:9\nnobody noted it 127.0.0.1", server.v4)
    );
}

#[test]
fn policy_changes_apply_to_the_next_connect() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    let _agent = agent(&live, &enrolment);
    live.install(&enrolment);
    let (direct, through) = (untouched(&client, &server), captured(&client, &server));
    let now = |enrolment: &shunt_intercept::Enrolment| {
        live.update(enrolment);
        client.ask(server.v4, PORT)
    };
    assert_eq!(now(&enrolment), through);
    enrolment.spec.outbound.exclude_ports = vec![PortRange {
        first: 8000,
        last: 8100,
    }];
    assert_eq!(now(&enrolment), direct);
    enrolment.spec.outbound.exclude_ports = vec![PortRange {
        first: 8081,
        last: 8100,
    }];
    assert_eq!(now(&enrolment), through);
    enrolment.spec.outbound.exclude_cidrs = vec![IpNet::new(server.v4, 24).expect("a net")];
    assert_eq!(now(&enrolment), direct);
    enrolment.spec.outbound.exclude_cidrs.clear();
    enrolment.spec.outbound.include_cidrs = vec![server.v4.into()];
    assert_eq!(now(&enrolment), through);
    enrolment.spec.outbound.include_ports = vec![PortRange { first: 1, last: 80 }];
    assert_eq!(now(&enrolment), direct);
}

#[test]
fn without_a_sign_of_life_connections_go_directly_or_are_refused() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let log = Log::collect();
    let mut live = Live::load();
    let mut enrolment = client.enrolment(1);
    let _agent = agent(&live, &enrolment);
    live.install(&enrolment);
    assert_eq!(client.ask(server.v4, PORT), captured(&client, &server));
    let start = Instant::now();
    live.stop_beating();
    until("it opens", || {
        client.ask(server.v4, PORT) == untouched(&client, &server)
    });
    assert!(
        start.elapsed() < Duration::from_millis(2500),
        "{:?}",
        start.elapsed()
    );
    enrolment.spec.on_failure = OnFailure::Closed;
    live.update(&enrolment);
    assert_eq!(client.ask(server.v4, PORT), "ConnectionRefusedError");
    assert!(live.event("gate_stale") >= 2);
    live.backend().keep_alive();
    let said = log.0.lock().expect("whole");
    assert!(
        said.iter().any(|line| line.contains("no sign of life")),
        "{said:?}"
    );
}

#[test]
fn without_its_listener_connections_go_directly() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    live.install(&enrolment);
    enrolment.listeners.clear();
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
    assert_eq!(
        client.ask(server.v6, PORT),
        format!("server {} {PORT} {}", server.v6, client.v6)
    );
    assert_eq!(live.event("listener_gone"), 2);
}

#[test]
fn inbound_goes_to_the_agent_only_where_somebody_listens() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let enrolment = server.enrolment(1);
    let _agent = agent(&live, &enrolment);
    live.install(&enrolment);
    let v4 = client.ask(server.v4, PORT);
    let events = live.backend().events();
    assert_eq!(
        v4,
        format!("inbound {0}:{PORT} {0} {PORT} {1}", server.v4, client.v4),
        "{events:?}"
    );
    assert_eq!(
        client.ask(server.v6, PORT),
        format!("inbound [{0}]:{PORT} {0} {PORT} {1}", server.v6, client.v6)
    );
    assert_eq!(client.ask(server.v4, 81), "ConnectionRefusedError");
    // The workload to itself.
    assert_eq!(server.ask(server.v4, PORT), untouched(&server, &server));
    // The agent's own.
    let own = client
        .netns
        .stock(SocketRole::Upstream, Family::V4, MARKS, 1)
        .expect("a socket");
    let own = socket2::Socket::from(own.into_iter().next().expect("one"));
    own.set_nonblocking(false).expect("blocking");
    own.connect(&SocketAddr::new(server.v4, PORT).into())
        .expect("connected");
    let mut said = [std::mem::MaybeUninit::uninit(); 6];
    assert_eq!(own.recv(&mut said).expect("an answer"), 6);
    assert_eq!(live.event("inbound_captured"), 2, "not the agent's own");

    live.release(&enrolment);
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
}

#[test]
fn listeners_that_come_and_go_are_known_at_once() {
    let (client, server) = pair();
    let live = Live::load();
    let enrolment = server.enrolment(1);
    let _agent = agent(&live, &enrolment);
    live.install(&enrolment);
    let script = "import time\ns = socket.create_server(('', 9000))\nt = socket.socket()\n\
                  t.bind(('127.0.0.1', 9001))\nt.listen()\nprint('up', flush=True)\ntime.sleep(8)";
    let mut command = server.command();
    let script = format!("import socket\n{script}");
    command
        .args(["python3", "-c", &script])
        .stdout(std::process::Stdio::piped());
    let mut listening = command.spawn().expect("it starts");
    let mut up = [0; 3];
    let out = listening.stdout.as_mut().expect("a pipe");
    std::io::Read::read_exact(out, &mut up).expect("it is up");
    assert_eq!(
        client.ask(server.v4, 9000),
        format!("inbound {0}:9000 {0} 9000 {1}", server.v4, client.v4)
    );
    assert_eq!(
        client.ask(server.v4, 9001),
        "ConnectionRefusedError",
        "only on loopback"
    );
    listening.kill().expect("killed");
    listening.wait().expect("reaped");
    // The kernel closes a killed process's sockets before it is reaped.
    assert_eq!(client.ask(server.v4, 9000), "ConnectionRefusedError");
}

#[test]
fn hooks_of_nested_cgroups_agree() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let near = client.enrolment(1);
    // No cgroup: the hooks are at the root, above the other's.
    let mut far = server.enrolment(2);
    far.spec.cgroup = None;
    let (_near_agent, _far_agent) = (agent(&live, &near), agent(&live, &far));
    live.install(&far);
    live.install(&near);
    // Inbound at the far one: the hooks come one after the other on the same connection's two ends.
    assert_eq!(client.ask(server.v4, PORT), captured(&client, &server));
    let _other = client.serve(everywhere(), "client");
    assert_eq!(server.ask(client.v4, PORT), captured(&server, &client));
    // The agent's own sockets run through the hooks at the root.
    let own = client
        .netns
        .stock(SocketRole::Upstream, Family::V4, MARKS, 1)
        .expect("a socket");
    let own = socket2::Socket::from(own.into_iter().next().expect("one"));
    own.set_nonblocking(false).expect("blocking");
    own.connect(&SocketAddr::new(server.v4, PORT).into())
        .expect("connected");
    let mut said = [std::mem::MaybeUninit::uninit(); 6];
    assert_eq!(own.recv(&mut said).expect("an answer"), 6, "`server`");
    // A listener is counted once, and gone when it is closed.
    let port = "s = socket.create_server(('', 9000))\nprint('closed')";
    assert_eq!(client.python(port), "closed");
    assert_eq!(
        server.ask(client.v4, 9000),
        format!("outbound {0}:9000 {0} 9000 {1}", client.v4, server.v4)
    );
    live.release(&far);
    assert_eq!(server.ask(client.v4, 9000), "ConnectionRefusedError");
    live.release(&near);
}

#[test]
fn two_workloads_share_a_cgroup() {
    let (client, server) = pair();
    let live = Live::load();
    let one = client.enrolment(1);
    let mut two = server.enrolment(2);
    two.spec.cgroup = Some(client.cgroup.clone());
    let _agent = agent(&live, &one);
    live.install(&one);
    live.install(&two);
    live.release(&two);
    assert_eq!(client.ask(server.v4, PORT), captured(&client, &server));
}

#[test]
fn nothing_stays_in_the_kernel() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let enrolment = client.enrolment(1);
    live.install(&enrolment);
    let map = map_id(
        live.backend()
            .destinations_fd()
            .expect("a descriptor")
            .as_fd(),
    );
    let using = |maps: &[u32]| {
        let programs = loaded_programs().flatten().filter(|info| {
            let used = info.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|map| maps.contains(map))
        });
        programs.collect::<Vec<_>>()
    };
    // From one map to every program: each shares a map with one that shares one with this.
    let maps_beside = |maps: &[u32]| -> Vec<u32> {
        let programs = using(maps);
        let of = |info: &ProgramInfo| info.map_ids().ok().flatten().unwrap_or_default();
        programs.iter().flat_map(of).collect()
    };
    let shared = maps_beside(&maps_beside(&[map]));
    let programs: Vec<u32> = using(&shared).iter().map(|info| info.id()).collect();
    let links = || {
        let links = loaded_links().flatten();
        links
            .filter(|info| programs.contains(&info.program_id()))
            .count()
    };
    // The socket hash holds its program without a link.
    assert_eq!((programs.len(), links()), (13, 11));
    drop(live);
    let gone = || using(&shared).is_empty() && links() == 0;
    until("the programs are gone", gone);
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
}

#[test]
fn a_missing_cgroup_is_named_and_nothing_stays() {
    let (client, server) = pair();
    let _server = server.serve(everywhere(), "server");
    let live = Live::load();
    let mut enrolment = client.enrolment(1);
    enrolment.spec.cgroup = Some("shunt-no-such".into());
    let error = live
        .backend()
        .install(&enrolment)
        .expect_err("refused")
        .chain();
    assert!(error.contains("/shunt-no-such: No such file"), "{error}");
    assert_eq!(client.ask(server.v4, PORT), untouched(&client, &server));
}
