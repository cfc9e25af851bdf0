//! What is learned of sockets by watching how programs read them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use shunt_core::flow::Direction;
use shunt_core::workload::{Acceleration, WorkloadId};
use shunt_intercept::{Backend, Enrolment};

use crate::pods::{Live, Pod, agent, pair, until};

/// Answers every byte, for ever; its word says on what kind of sockets.
const SERVER: &str = "
import os, select, socket, sys
how = sys.argv[1]
l = socket.create_server(('', 8080)); print('up', flush=True)
while True:
    s = l.accept()[0]
    if how not in ('blocking', 'dontwait'): s.setblocking(False)
    if how == 'lowat': s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
    if how == 'zerocopy': s.setsockopt(socket.SOL_SOCKET, 60, 1)
    flags = {'dontwait': socket.MSG_DONTWAIT, 'waitall': socket.MSG_WAITALL, 'trunc': socket.MSG_TRUNC}.get(how, 0)
    while True:
        select.select([s], [], [])
        if how == 'splice':
            r, w = os.pipe(); some = os.read(r, 2) if os.splice(s.fileno(), w, 2) else b''; os.close(r); os.close(w)
        else: some = s.recv(2, flags)
        if not some: break
        s.send(b'xx'[:len(some)])
    s.close()
";

/// So many connections, of so many turns each.
fn call(client: &Pod, to: &Pod, connections: u32, turns: u32) {
    let said = client.python(&format!(
        "for _ in range({connections}):\n s = socket.create_connection(('{}', 8080))\n for _ in range({turns}):\n  \
           s.send(b'xx'); got = s.recv(2); assert got == b'xx'\n s.close()\nprint('turned')",
        to.v4
    ));
    assert_eq!(said, "turned");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(pod: &Pod, how: &str) -> Killed {
    let mut command = pod.command();
    command
        .args(["python3", "-c", SERVER, how])
        .stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).spawn();
    let mut serving = Killed(child.expect("it starts"));
    let mut up = [0; 2];
    let out = serving.0.stdout.as_mut().expect("a pipe");
    std::io::Read::read_exact(out, &mut up).expect("it is up");
    serving
}

/// Its callers meet the program itself.
fn learning(server: &Pod, id: u32, live: &Live) -> Enrolment {
    let mut enrolment = server.enrolment(id);
    enrolment.spec.acceleration = Acceleration::Auto.into();
    enrolment.spec.acceleration.direct = false;
    enrolment
        .listeners
        .retain(|listener| listener.spec.direction == Direction::Outbound);
    live.install(&enrolment);
    let told = live.backend().describe(&enrolment);
    assert!(!told.contains("auto"), "{told}");
    enrolment
}

fn learned(live: &Live, id: u32, verdict: &str) {
    let expected = BTreeMap::from([(verdict.to_owned(), 1)]);
    until(verdict, || {
        live.backend().classes(WorkloadId(id)) == expected
    });
}

#[test]
fn enough_connections_that_go_on_prove_a_class() {
    let (client, server) = pair();
    let live = Live::load();
    let enrolment = learning(&server, 1, &live);
    let _serving = serve(&server, "event");
    call(&client, &server, 7, 30);
    learned(&live, 1, "learning");
    // One of which nothing is read tells nothing.
    call(&client, &server, 1, 0);
    learned(&live, 1, "learning");
    call(&client, &server, 1, 30);
    learned(&live, 1, "proven");
    // What is short becomes so, and what is not again.
    call(&client, &server, 20, 1);
    learned(&live, 1, "short");
    call(&client, &server, 20, 30);
    learned(&live, 1, "proven");
    live.release(&enrolment);
    assert!(live.backend().classes(WorkloadId(1)).is_empty());
}

#[test]
fn one_that_stays_open_counts_when_it_has_gone_on_for_long() {
    let (client, server) = pair();
    let live = Live::load();
    let _enrolment = learning(&server, 1, &live);
    let _serving: Vec<Killed> = vec![serve(&server, "event")];
    call(&client, &server, 7, 30);
    learned(&live, 1, "learning");
    let script = format!(
        "import sys, time\ns = socket.create_connection(('{}', 8080))\nfor _ in range(70): s.send(b'xx'); s.recv(2)\n\
         time.sleep(8)",
        server.v4
    );
    let mut command = client.command();
    command.args(["python3", "-c", &format!("import socket\n{script}")]);
    let _open = Killed(command.spawn().expect("it starts"));
    learned(&live, 1, "proven");
}

#[test]
fn one_fault_turns_a_class_off_for_good() {
    let (client, server) = pair();
    let live = Live::load();
    for (id, how) in (1..).zip([
        "blocking", "waitall", "trunc", "splice", "lowat", "zerocopy",
    ]) {
        let enrolment = learning(&server, id, &live);
        {
            let _serving = serve(&server, "event");
            call(&client, &server, 10, 30);
            learned(&live, id, "proven");
        }
        {
            let _serving = serve(&server, how);
            call(&client, &server, 1, 1);
            learned(&live, id, "fault");
        }
        let _serving = serve(&server, "event");
        call(&client, &server, 10, 30);
        learned(&live, id, "fault");
        live.release(&enrolment);
    }
}

#[test]
fn reads_that_cannot_wait_are_good_on_any_socket() {
    let (client, server) = pair();
    let live = Live::load();
    let _enrolment = learning(&server, 1, &live);
    let _serving = serve(&server, "dontwait");
    call(&client, &server, 8, 30);
    learned(&live, 1, "proven");
}

#[test]
fn the_agents_own_sockets_prove_nothing() {
    let (client, server) = pair();
    let live = Live::load();
    let mut enrolment = server.enrolment(1);
    enrolment.spec.acceleration = Acceleration::Auto.into();
    enrolment.spec.acceleration.direct = false;
    // At the root the hooks see what the agent accepts, too.
    enrolment.spec.cgroup = None;
    live.install(&enrolment);
    let _agent = agent(&live, &enrolment);
    let _serving = serve(&server, "event");
    let to: SocketAddr = (server.v4, 8080).into();
    assert!(client.ask(to.ip(), 8080).starts_with("inbound"));
    assert!(live.event("inbound_captured") > 0);
    until("the kernel is looked at", || {
        live.backend().classes(WorkloadId(1)).is_empty()
    });
}
