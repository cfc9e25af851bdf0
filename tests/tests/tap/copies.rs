//! Bytes past the TCP stack, in a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use shunt_tests::agent::signal;
use shunt_tests::tap::{Packet, packets};
use shunt_tests::{EVENTS, Pair, Script, Tap, talks, wait};

use crate::scene::{ALWAYS, HANDED_OVER, MANY_SIZES, SECONDS, Scene, copied, streams};

#[test]
fn bytes_past_the_stack_are_in_the_file() {
    for wish in [ALWAYS, HANDED_OVER] {
        let scene = Scene::new("ebpf", wish);
        let file = scene.file();
        // IPv4 reaches the server as a mapped address.
        for host in [&scene.pair.server.v4, &scene.pair.server.v6] {
            let mut tap = scene.copying(&["client", "--bytes", "65536"]);
            let said = scene.talk(host, MANY_SIZES);
            copied(&file, host, (said.0.len(), said.1.len()));
            tap.interrupt();
            assert!(streams(&file, host) == said, "{wish} {}", tap.says());
            let raw = fs::read(&file).expect("a file");
            assert!(has(&raw, "default/client to default/server"));
            let mode = fs::metadata(&file).expect("a file").permissions();
            assert_eq!(mode.mode() & 0o777, 0o600);
        }
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    let mut places = bytes.windows(text.len());
    places.any(|place| place == text.as_bytes())
}

#[test]
fn of_each_direction_the_first_bytes_are_copied() {
    for wish in [ALWAYS, HANDED_OVER] {
        let scene = Scene::new("ebpf", wish);
        let (file, host) = (scene.file(), &scene.pair.server.v4);
        let mut tap = scene.copying(&["server", "--bytes", "777"]);
        let (sent, heard) = scene.talk(host, MANY_SIZES);
        // What comes last in the file belongs to a later connection.
        scene.talk(&scene.pair.server.v6, "[100]");
        copied(&file, &scene.pair.server.v6, (104, 100));
        tap.interrupt();
        let (first_sent, first_heard) = streams(&file, host);
        assert!(first_sent == sent[..777], "{wish}: {}", first_sent.len());
        assert!(first_heard == heard[..777], "{wish}: {}", first_heard.len());
        let raw = fs::read(&file).expect("a file");
        assert!(has(&raw, "the first 777 bytes end here"));
    }
}

#[test]
fn a_direction_that_changes_to_tcp_is_marked_where_it_does() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut tap = scene.copying(&["--bytes", "100"]);
    // The server reads everything at once, which makes 64 KiB in a row a bulk.
    scene.talk(&scene.pair.server.v4, "[65_532] * 60");
    let raw = wait::until("the mark", SECONDS, || {
        let raw = fs::read(scene.file()).expect("a file");
        has(&raw, "from here on by TCP (bulk)").then_some(raw)
    });
    tap.interrupt();
    assert!(has(&raw, "default/client"), "{}", tap.says());
    let packets = packets(&scene.file());
    let marks = packets.iter().filter(|packet| packet.bytes.is_empty());
    let marked: Vec<u32> = marks.map(|mark| mark.sequence).collect();
    assert!(!marked.is_empty());
    assert!(marked.iter().all(|at| *at > (16 * 32) << 10), "{marked:?}");
    assert!(tap.says().contains("changed to TCP"), "{}", tap.says());
}

/// Sends a file's bytes as the kernel has them, and one message that lies in many places.
const UNUSUAL: &str = "
import os
s, data = call(sys.argv[1]), random.Random(3).randbytes(64_000)
open(sys.argv[2] + '/sent', 'wb').write((60_000).to_bytes(4, 'big') + data[:60_000])
file = os.open(sys.argv[2] + '/sent', os.O_RDONLY)
s.s.setblocking(True); at = 0
while at < 20_000: at += os.sendfile(s.s.fileno(), file, at, 20_000 - at)
rest = data[20_000 - 4:60_000]
assert s.s.sendmsg([rest[at:at + 1000] for at in range(0, len(rest), 1000)]) == len(rest)
s.s.setblocking(False); assert s.read(60_000) == data[:60_000][::-1]
";

#[test]
fn messages_in_many_places_are_copied_and_arrive() {
    for wish in [ALWAYS, HANDED_OVER] {
        let scene = Scene::new("ebpf", wish);
        let (file, host) = (scene.file(), &scene.pair.server.v4);
        let mut tap = scene.copying(&["--bytes", "65536"]);
        let script = format!("{EVENTS}{UNUSUAL}");
        let dir = scene.agent.dir.display().to_string();
        let client = &scene.pair.client;
        client.says("python3", &["-c", &script, host, &dir]);
        let sent = fs::read(scene.agent.dir.join("sent")).expect("a file");
        let (seen, heard) = copied(&file, host, (sent.len(), 60_000));
        tap.interrupt();
        assert!(seen == sent, "{wish}: {}", tap.says());
        let answer: Vec<u8> = sent[4..].iter().rev().copied().collect();
        assert!(heard == answer, "{wish}: {}", tap.says());
    }
}

#[test]
fn forty_talks_at_once_are_what_they_are_without_a_tap() {
    for wish in [ALWAYS, HANDED_OVER] {
        let pair = Pair::new();
        let script = format!("{}{}", talks::COMMON, talks::SERVER);
        let _server = pair.server.spawn("python3", &["-c", &script]);
        pair.server.wait_for_listener(7000);
        let agent = pair.both("ebpf", wish).start();
        let mut tap = Tap::start(&agent, &["-w", "/dev/null", "--bytes", "65536"]);
        for host in [&pair.server.v4, &pair.server.v6] {
            talks::all(&pair.client, host);
        }
        talks::are_told_exactly(&pair.client, &agent.lines(80));
        tap.interrupt();
        assert!(tap.says().contains(" packets with "), "{}", tap.says());
    }
}

#[test]
fn what_the_agent_brought_and_what_passed_it_are_one_stream() {
    let scene = Scene::new("ebpf", HANDED_OVER);
    let (file, host) = (scene.file(), &scene.pair.server.v4);
    let mut tap = scene.copying(&["client"]);
    let script = format!(
        "{EVENTS}
input(); s = call('{host}'); s.send(b'\\0\\0\\0\\5first'); print('sent', flush=True)
print(s.read(5).decode(), flush=True)
s.send(b'\\0\\0\\0\\6second'); print(s.read(6).decode(), flush=True)
"
    );
    let mut client = Script::start(&scene.pair.client, &script, &[]);
    // Nothing can be handed over before the first message.
    let agent = scene.agent.worker_pid().expect("a data plane");
    signal("-STOP", agent);
    client.tell("");
    assert_eq!(client.says(), "sent");
    signal("-CONT", agent);
    assert_eq!(client.says(), "tsrif");
    assert_eq!(client.says(), "dnoces");
    client.succeeds();
    let (sent, heard) = copied(&file, host, (19, 11));
    tap.interrupt();
    assert_eq!(sent, b"\0\0\0\x05first\0\0\0\x06second");
    assert_eq!(heard, b"tsrifdnoces");
}

/// One connection, on which each line is sent that it is told; it says the answers.
fn talker(scene: &Scene) -> Script {
    let script = format!(
        "{EVENTS}
s = call('{}')
for line in sys.stdin:
    text = line.strip().encode(); s.send(len(text).to_bytes(4, 'big') + text)
    print(s.read(len(text)).decode(), flush=True)
",
        scene.pair.server.v4
    );
    Script::start(&scene.pair.client, &script, &[])
}

#[test]
fn a_living_connection_is_copied_from_now_on() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut client = talker(&scene);
    client.tell("before");
    assert_eq!(client.says(), "erofeb");
    let mut tap = scene.copying(&["--count", "2"]);
    client.tell("after");
    assert_eq!(client.says(), "retfa");
    // A request and an answer.
    assert!(tap.ends().success());
    let (sent, heard) = streams(&scene.file(), &scene.pair.server.v4);
    assert_eq!(
        (&sent[..], &heard[..]),
        (&b"\0\0\0\x05after"[..], &b"retfa"[..])
    );
}

#[test]
fn a_living_connection_is_copied_anew_by_the_next_data_plane() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut client = talker(&scene);
    let mut tap = scene.copying(&["--bytes", "3", "--count", "2"]);
    client.tell("before");
    assert_eq!(client.says(), "erofeb");
    assert!(tap.ends().success(), "{}", tap.says());
    signal("-KILL", scene.agent.worker_pid().expect("a data plane"));
    let file = scene.file().display().to_string();
    let mut tap = wait::until("the next one taps", SECONDS, || {
        let args = ["-w", &file, "--bytes", "3", "--count", "2"];
        let tap = Tap::start(&scene.agent, &args);
        tap.says().contains("go to").then_some(tap)
    });
    client.tell("after");
    assert_eq!(client.says(), "retfa");
    assert!(tap.ends().success(), "{}", tap.says());
    let (sent, heard) = streams(&scene.file(), &scene.pair.server.v4);
    assert_eq!((&sent[..], &heard[..]), (&b"\0\0\0"[..], &b"ret"[..]));
}

const LONG_TALK: &str = "[100] * 600";

/// Talks until the kernel has no room for what the stopped reader of this tap does not take.
fn stop(scene: &Scene, tap: &Tap) {
    tap.signal("-STOP");
    wait::until("the ring is full", 2 * SECONDS, || {
        scene.talk(&scene.pair.server.v4, LONG_TALK);
        (scene.kernel_count("tap_lost") > 0).then_some(())
    });
}

#[test]
fn what_a_slow_reader_misses_are_messages() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut tap = scene.copying(&["--bytes", "65536"]);
    stop(&scene, &tap);
    tap.signal("-CONT");
    // What comes last in the file.
    wait::until("it goes on", SECONDS, || {
        scene.talk(&scene.pair.server.v6, "[100]");
        let packets = packets(&scene.file());
        let of_the_last = |packet: &Packet| packet.source.ip().to_string() == scene.pair.server.v6;
        packets.iter().any(of_the_last).then_some(())
    });
    tap.interrupt();
    let says = tap.says();
    assert!(says.contains("messages not copied"), "{says}");
    assert!(!says.contains("events lost"), "{says}");
}

#[test]
fn a_tap_whose_reader_takes_nothing_copies_nothing_more() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut tap = scene.copying(&["--bytes", "65536"]);
    stop(&scene, &tap);
    let mut next = wait::until("the next one may", 4 * SECONDS, || {
        // Until then there are copies that wait.
        scene.talk(&scene.pair.server.v4, LONG_TALK);
        let next = Tap::start(&scene.agent, &["-w", "/dev/null"]);
        next.says().contains("go to").then_some(next)
    });
    next.interrupt();
    let count = || scene.kernel_count("tap_copied") + scene.kernel_count("tap_lost");
    // They are told by and by.
    let standing = || {
        wait::until("the counts stand still", SECONDS, || {
            let before = count();
            wait::pause(Duration::from_millis(700));
            (count() == before).then_some(before)
        })
    };
    let before = standing();
    scene.talk(&scene.pair.server.v4, "[100] * 20");
    assert_eq!(standing(), before);
    tap.signal("-CONT");
    assert_eq!(tap.ends().code(), Some(1));
    assert!(
        tap.says().contains("not written for 10 s"),
        "{}",
        tap.says()
    );
}
