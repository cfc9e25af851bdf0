//! What languages make of sockets: blocking, with an event loop, in threads.

use shunt_tests::Pair;

use crate::{is_accelerated, passed, rounds, start, write};

in_every_way!(
    python_blocking_and_asyncio,
    node_streams,
    java_blocking_and_channels,
);

/// An echo of each kind.
const PYTHON_SERVER: &str = "
import asyncio, socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536): self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True; request_queue_size = 64
async def echo(reader, writer):
    while data := await reader.read(65536): writer.write(data); await writer.drain()
    writer.close()
async def main():
    blocking = Server(('', 7001), Echo); threading.Thread(target=blocking.serve_forever, daemon=True).start()
    await (await asyncio.start_server(echo, '', 7002)).serve_forever()
asyncio.run(main())
";

/// Twenty connections of each kind to each kind.
const PYTHON_CLIENT: &str = "
import asyncio, concurrent.futures, random, socket, sys, threading
known = random.Random(1).randbytes(300000); host = sys.argv[1]
def blocking(port):
    with socket.create_connection((host, port), 15) as s:
        def send(): s.sendall(known); s.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=send); sender.start(); got = b''
        while data := s.recv(65536): got += data
        sender.join(); return got == known
async def aio(port):
    reader, writer = await asyncio.open_connection(host, port)
    async def send(): writer.write(known); await writer.drain(); writer.write_eof()
    _, got = await asyncio.gather(send(), reader.read()); writer.close(); return got == known
async def many(port): return await asyncio.wait_for(asyncio.gather(*[aio(port) for _ in range(20)]), 15)
for port in 7001, 7002:
    with concurrent.futures.ThreadPoolExecutor(20) as pool: print(sum(pool.map(blocking, [port] * 20)), sum(asyncio.run(many(port))))
";

fn python_blocking_and_asyncio(mode: &str) {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", PYTHON_SERVER]);
    scene.server.wait_for_listener(7001);
    scene.server.wait_for_listener(7002);
    let agent = start(&scene, mode);
    for _ in rounds(mode) {
        let words = ["-c", PYTHON_CLIENT, &scene.server.v4];
        assert_eq!(scene.client.says("python3", &words), "20 20\n20 20");
    }
    passed(&agent, mode, 80);
}

const NODE_SERVER: &str =
    "require('net').createServer({allowHalfOpen: true}, s => s.pipe(s)).listen(7003)";
const NODE_CLIENT: &str = "
const net = require('net'), known = require('crypto').randomBytes(300000); let right = 0, left = 20;
for (let i = 0; i < 20; i++) {
  const s = net.connect(7003, process.argv[1]), got = [];
  s.on('data', d => got.push(d)).on('error', e => console.log(e.code));
  s.on('close', () => { right += Buffer.concat(got).equals(known); if (--left == 0) console.log(right); });
  s.end(known);
}";

fn node_streams(mode: &str) {
    let scene = Pair::new();
    let _server = scene.server.spawn("node", &["-e", NODE_SERVER]);
    scene.server.wait_for_listener(7003);
    let agent = start(&scene, mode);
    for _ in rounds(mode) {
        let words = ["-e", NODE_CLIENT, &scene.server.v4];
        assert_eq!(scene.client.says("node", &words), "20");
    }
    passed(&agent, mode, 20);
}

/// Streams there, a selector's channel here.
const JAVA: &str = "
import java.io.*; import java.net.*; import java.nio.*; import java.nio.channels.*; import java.util.*;
public class Echo {
  public static void main(String[] a) throws Exception {
    if (a.length == 0) { serve(); return; }
    byte[] known = new byte[300000]; new Random(1).nextBytes(known); int right = 0;
    for (int i = 0; i < 10; i++) { if (Arrays.equals(streams(a[0], known), known)) right++; if (Arrays.equals(channel(a[0], known), known)) right++; }
    System.out.println(right);
  }
  static void serve() throws Exception {
    ServerSocket l = new ServerSocket(7004);
    while (true) { Socket s = l.accept(); new Thread(() -> { try (s) { s.getInputStream().transferTo(s.getOutputStream()); } catch (IOException e) { } }).start(); }
  }
  static byte[] streams(String host, byte[] known) throws Exception {
    try (Socket s = new Socket(host, 7004)) {
      new Thread(() -> { try { s.getOutputStream().write(known); s.shutdownOutput(); } catch (IOException e) { } }).start();
      return s.getInputStream().readAllBytes();
    }
  }
  static byte[] channel(String host, byte[] known) throws Exception {
    try (SocketChannel c = SocketChannel.open(new InetSocketAddress(host, 7004)); Selector sel = Selector.open()) {
      c.configureBlocking(false); c.register(sel, SelectionKey.OP_READ | SelectionKey.OP_WRITE);
      ByteBuffer out = ByteBuffer.wrap(known), in = ByteBuffer.allocate(known.length + 1);
      while (true) {
        sel.select(); sel.selectedKeys().clear();
        if (out.hasRemaining()) { c.write(out); if (!out.hasRemaining()) { c.shutdownOutput(); c.keyFor(sel).interestOps(SelectionKey.OP_READ); } }
        if (c.read(in) < 0) return Arrays.copyOf(in.array(), in.position());
      }
    }
  }
}";

fn java_blocking_and_channels(mode: &str) {
    let scene = Pair::new();
    let source = write(&scene, "Echo.java", JAVA);
    let classes = scene.world.dir.path().display().to_string();
    scene.client.says("javac", &["-d", &classes, &source]);
    let _server = scene.server.spawn("java", &["-cp", &classes, "Echo"]);
    scene.server.wait_for_listener(7004);
    let agent = start(&scene, mode);
    for _ in rounds(mode) {
        let words = ["-cp", &classes, "Echo", &scene.server.v4];
        assert_eq!(scene.client.says("java", &words), "20");
    }
    is_accelerated(&agent, mode, "server", false);
    passed(&agent, mode, 20);
}
