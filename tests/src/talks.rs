//! Connections that carry random bytes both ways at once, every byte of which is compared.

use serde_json::Value;

use crate::Pod;

/// Echoes nothing: each side of a connection sends `length` bytes of its own, in pieces and with pauses, ends its
/// direction, and reads the other's to the end. The first nine bytes say which: a kind, a seed.
pub const COMMON: &str = "
import asyncio, hashlib, random, resource, socket, struct, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def plan(seed, side):
    r = random.Random(seed * 2 + side)
    data = r.randbytes(r.choice([0, 1, 1000, 70_000, 1_000_000, 3_000_000]))
    pieces, at = [], 0
    while at < len(data):
        n = r.choice([1, 100, 4096, 65536, 200_000]); pieces.append((data[at:at + n], r.random() < 0.1)); at += n
    return data, pieces
async def talk(reader, writer, seed, side):
    async def say():
        for piece, pause in plan(seed, side)[1]:
            writer.write(piece); await writer.drain()
            if pause: await asyncio.sleep(0.001)
        writer.write_eof()
    async def hear():
        heard = hashlib.sha256(); pauses = random.Random(seed)
        while True:
            some = await reader.read(pauses.choice([1000, 65536, 1 << 20]))
            if not some: return heard.hexdigest()
            heard.update(some)
            if pauses.random() < 0.02: await asyncio.sleep(0.003)
    heard = (await asyncio.gather(say(), hear()))[1]
    writer.close()
    assert heard == hashlib.sha256(plan(seed, 1 - side)[0]).hexdigest(), f'seed {seed}: side {side} heard something else'
";

/// Talks with whoever comes, on port 7000 of every address.
pub const SERVER: &str = "
async def serve(reader, writer):
    try: await talk(reader, writer, struct.unpack('!q', await reader.readexactly(8))[0], 1)
    except Exception as error: print(repr(error), file=sys.stderr, flush=True)
async def main():
    both = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    async with await asyncio.start_server(serve, sock=both) as server: await server.serve_forever()
asyncio.run(main())
";

/// Forty talks at once with HOST.
const CLIENT: &str = "
async def one(host, seed):
    reader, writer = await asyncio.open_connection(host, 7000)
    writer.write(struct.pack('!q', seed))
    await talk(reader, writer, seed, 0)
async def main():
    await asyncio.gather(*[one(HOST, seed) for seed in range(40)])
asyncio.run(main()); print('heard all')
";

/// Forty at once from `client` to [`SERVER`] at `host`.
///
/// # Panics
/// Somebody heard something else.
pub fn all(client: &Pod, host: &str) {
    assert_eq!(client.python(&script(host, 40)), "heard all");
}

/// A client of `count` talks.
pub fn script(host: &str, count: usize) -> String {
    let client = CLIENT.replace("range(40)", &format!("range({count})"));
    format!("{COMMON}HOST = '{host}'\n{client}")
}

/// Do these lines of the access log tell of two times forty talks, with as many bytes as were sent?
///
/// # Panics
/// No.
pub fn are_told_exactly(client: &Pod, lines: &[Value]) {
    for line in lines {
        let moved: u64 = ["copy", "splice", "sockmap", "handoff", "direct"]
            .iter()
            .map(|path| line["bytes_by_path"][path].as_u64().expect("a count"))
            .sum();
        let told = |key: &str| line[key].as_u64().expect("a count");
        assert_eq!(moved, told("bytes_received") + told("bytes_sent"), "{line}");
        assert_eq!(line["close_reason"], "finished", "{line}");
    }
    let sizes = "
for seed in range(40): print(8 + len(plan(seed, 0)[0]), len(plan(seed, 1)[0]))";
    let sizes = client.python(&format!("{COMMON}{sizes}"));
    let mut planned: Vec<String> = sizes.lines().chain(sizes.lines()).map(Into::into).collect();
    let told = |line: &Value| format!("{} {}", line["bytes_received"], line["bytes_sent"]);
    let mut told: Vec<String> = lines.iter().map(told).collect();
    planned.sort();
    told.sort();
    assert_eq!(told, planned);
}

/// The path of each line.
///
/// # Panics
/// One has none.
pub fn paths(lines: &[Value]) -> Vec<&str> {
    let path = |line| Value::as_str(line).expect("a path");
    lines.iter().map(|line| path(&line["path"])).collect()
}
