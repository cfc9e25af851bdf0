//! A client's port that is used again while an older connection from it still waits to be accepted, and other dangers of that moment.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use shunt_core::address::from_kernel;
use shunt_intercept::Enrolment;
use shunt_intercept::ebpf::Destinations;

use crate::pods::{Live, pair, until};

#[test]
fn a_reused_port_does_not_inherit_a_destination() {
    let (client, server) = pair();
    let live = Live::load();
    let enrolment = client.enrolment(1);
    live.install(&enrolment);
    // Both wait in the accept queue: one was reset, the other came later from the same port.
    client.python(&format!(
        "import struct\ndef dial(port):\n s = socket.socket()\n s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n \
         s.bind(('{1}', 40123))\n s.connect(('{0}', port))\n return s\n\
         s = dial(81)\ns.sendall(b'for 81')\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\ns.close()\n\
         dial(82)",
        server.v4, client.v4
    ));
    let accepted = accept_all(&live, &enrolment);
    assert_eq!(accepted.len(), 2, "{accepted:?}");
    for (bytes, destination) in &accepted {
        let wrong = bytes == "for 81" && destination.ends_with(":82");
        assert!(
            !wrong,
            "bytes meant for 81 would go to {destination}: {accepted:?}"
        );
    }
    assert!(
        accepted
            .iter()
            .any(|(_, destination)| destination.ends_with(":82")),
        "{accepted:?}"
    );
}

/// A data plane that is killed right after accept(2) has set no option of its own yet.
#[test]
fn what_was_accepted_and_never_touched_ends_in_a_reset() {
    let (client, server) = pair();
    let live = Live::load();
    let enrolment = client.enrolment(1);
    live.install(&enrolment);
    let end = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            client.python(&format!(
                "s = socket.create_connection(('{}', 81))\n\
                 try: print('end' if s.recv(1) == b'' else 'data')\n\
                 except ConnectionResetError: print('reset')",
                server.v4
            ))
        });
        until("somebody was accepted", || {
            !accept_all(&live, &enrolment).is_empty()
        });
        asking.join().expect("no panic")
    });
    assert_eq!(end, "reset");
}

/// Accepts whoever waits: the bytes each sent, and where the kernel says it was going.
fn accept_all(live: &Live, enrolment: &Enrolment) -> Vec<(String, String)> {
    let destinations =
        Destinations::from_fd(live.backend().destinations_fd().expect("a descriptor"));
    let mut found = Vec::new();
    for socket in enrolment
        .listeners
        .iter()
        .flat_map(|listener| &listener.sockets)
    {
        let listener =
            TcpListener::from(socket.as_fd().try_clone_to_owned().expect("a descriptor"));
        listener.set_nonblocking(true).expect("set");
        while let Ok((mut stream, _)) = listener.accept() {
            let destination = destinations
                .of(stream.as_fd())
                .expect("permitted")
                .map_or("nobody noted it".into(), |to| {
                    SocketAddr::new(from_kernel(to.address), to.port).to_string()
                });
            stream.set_nonblocking(true).expect("set");
            let mut bytes = [0; 99];
            let length = std::io::Read::read(&mut stream, &mut bytes).unwrap_or(0);
            found.push((
                String::from_utf8_lossy(&bytes[..length]).into_owned(),
                destination,
            ));
        }
    }
    found
}
