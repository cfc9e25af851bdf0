//! Workloads that want acceleration: what is for a listener goes by TCP, since its proxy knows nothing else.

use shunt_tests::{AgentBuilder, Script, require};

use crate::scene::{Listener, Scene, bootstrap, to};

/// A server that begins to read late, and says the length and hash of what came.
const SLOW: &str = "
import hashlib, socket, time
listener = socket.create_server(('0.0.0.0', 9000))
print('ready', flush=True)
while True:
    taken, _ = listener.accept()
    time.sleep(1.5)
    digest, length = hashlib.sha256(), 0
    while piece := taken.recv(1 << 20):
        digest.update(piece)
        length += len(piece)
    taken.sendall(f'{length} {digest.hexdigest()}'.encode())
    taken.close()
";

/// Sends what a mistake in the order would show in, in pieces of many sizes, and says its hash.
const UPLOAD: &str = "
import hashlib, socket, sys
made = socket.create_connection((sys.argv[1], 9000))
sent = b''.join(number.to_bytes(4, 'big') for number in range(3 << 20))
at, size = 0, 1
while at < len(sent):
    made.sendall(sent[at:at + size])
    at, size = at + size, size * 2 if size < 1 << 17 else 1000
made.shutdown(socket.SHUT_WR)
said = b''
while piece := made.recv(1000): said += piece
print(said.decode() == f'{len(sent)} {hashlib.sha256(sent).hexdigest()}', said.decode()[:40])
";

#[test]
fn bytes_for_a_listener_keep_their_order() {
    require::everything();
    let ways = [
        "acceleration: {default: always, direct: false, handoff: false}",
        "acceleration: {default: always, direct: false}",
        "acceleration: always",
    ];
    for acceleration in ways {
        let scene = Scene::new();
        let listeners = [
            Listener::at("tcp", "OUTBOUND", "0.0.0.0", 9000).tcp("", "slow"),
            Listener::at("out", "OUTBOUND", "0.0.0.0", 8080)
                .http("", &to("passthrough", "x-t-out", "yes")),
            Listener::at("in", "INBOUND", "0.0.0.0", 8080)
                .http("", &to("passthrough", "x-t-in", "yes")),
        ];
        let clusters = [("slow", scene.server.v4.as_str(), 9000)];
        let path = scene.write(&bootstrap(&listeners, &clusters));
        let _agent = AgentBuilder::new(&scene.world, "ebpf")
            .set(&format!("bootstrap: {}", path.display()))
            .enrol("client", &scene.client, acceleration)
            .enrol("server", &scene.server, acceleration)
            .start();
        let mut slow = Script::start(&scene.server, SLOW, &[]);
        assert_eq!(slow.says(), "ready");
        let told = scene
            .client
            .says("python3", &["-c", UPLOAD, &scene.server.v4]);
        assert!(told.starts_with("True"), "{acceleration}: {told}");
        let told = scene.curl(&scene.told_at());
        assert!(
            told.ends_with("x-t-in=yes x-t-out=yes"),
            "{acceleration}: {told}"
        );
    }
}
