//! Servers that say who they are, and clients that say whom they reached.

use std::net::{IpAddr, SocketAddr};

use crate::world::{Pod, Running};

/// Says its name to whoever connects, and prints from where. Arguments: its name, and ports.
pub const GREETER: &str = r#"
import selectors, socket, sys
name, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]
heard = selectors.DefaultSelector()
for port in ports:
    listener = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    heard.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in heard.select():
        client, address = key.fileobj.accept()
        print(address[0].removeprefix('::ffff:'), flush=True)
        try: client.sendall(name.encode())
        except OSError: pass
        client.close()
"#;

/// Connects to the address and port of its first two arguments, as often as the third says. Prints what was said and
/// whom it believes to talk to, or what went wrong.
const CLIENT: &str = r#"
import socket, sys
for _ in range(int(sys.argv[3])):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as server:
            peer = server.getpeername()
            said = b''.join(iter(lambda: server.recv(100), b''))
            print(said.decode(), peer[0], peer[1])
    except OSError as error:
        print(type(error).__name__)
"#;

/// A [`GREETER`] with this name on these ports.
///
/// # Panics
/// It does not listen.
pub fn greeter(pod: &Pod, name: &str, ports: &[u16]) -> Running {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let mut args = vec!["-c", GREETER, name];
    args.extend(ports.iter().map(String::as_str));
    let running = pod.spawn("python3", &args);
    for port in ports {
        pod.wait_for_listener(port.parse().expect("a port"));
    }
    running
}

/// What so many connections bring, one after the other: the server's name, or the name of the exception.
///
/// # Panics
/// A client believes that it talks to anybody but the one that it dialled.
pub fn reached(from: &Pod, to: SocketAddr, times: usize) -> Vec<String> {
    let (ip, port, times) = (
        to.ip().to_string(),
        to.port().to_string(),
        times.to_string(),
    );
    let said = from.says("python3", &["-c", CLIENT, &ip, &port, &times]);
    let name = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [name, ip, port] => {
            let believed: IpAddr = ip.parse().expect("an address");
            assert_eq!(SocketAddr::new(believed, port.parse().expect("a port")), to);
            name.to_owned()
        }
        _ => line.to_owned(),
    };
    said.lines().map(name).collect()
}

/// A pod's addresses with this port.
///
/// # Panics
/// It has none.
pub fn at(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [&pod.v4, &pod.v6].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
}
