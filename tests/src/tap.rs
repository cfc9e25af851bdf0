//! `shunt tap` as its users run it, and what is in its files, by tcpdump.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::agent::{self, Agent, signal};
use crate::wait;

const LONGEST: Duration = Duration::from_secs(10);

/// A tap; killed when dropped.
#[derive(Debug)]
pub struct Tap {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Tap {
    /// Starts it, and waits until it watches or has ended.
    ///
    /// # Panics
    /// It does neither.
    pub fn start(agent: &Agent, args: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |kind| agent.dir.join(format!("tap{number}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let create = |path: &Path| fs::File::create(path).expect("a file");
        let child = Command::new(agent::binary())
            .args(["tap", "--socket"])
            .arg(agent.dir.join("admin.sock"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(create(&out))
            .stderr(create(&err))
            .spawn()
            .expect("it starts");
        let mut tap = Self { child, out, err };
        wait::until("the tap says something", LONGEST, || {
            let ended = tap.child.try_wait().expect("a status").is_some();
            (ended || tap.says().ends_with('\n')).then_some(())
        });
        tap
    }

    /// On stderr, so far.
    pub fn says(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// On stdout, so far.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Its lines of JSON so far.
    ///
    /// # Panics
    /// One is none.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Sends SIGSTOP and the like.
    pub fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn ends(&mut self) -> ExitStatus {
        wait::until("the tap ends", LONGEST, || {
            self.child.try_wait().expect("a status")
        })
    }

    /// Ends it with Ctrl-C.
    ///
    /// # Panics
    /// It fails, or does not end.
    pub fn interrupt(&mut self) {
        self.signal("-INT");
        let status = self.ends();
        assert!(status.success(), "{status}: {}", self.says());
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TCP segment.
#[derive(Debug)]
pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub sequence: u32,
    pub bytes: Vec<u8>,
}

/// The packets of a capture file, as tcpdump reads it.
///
/// # Panics
/// It cannot, or finds a wrong checksum.
pub fn packets(file: &Path) -> Vec<Packet> {
    let dump = Command::new("tcpdump")
        .args(["-nn", "-tt", "-vv", "-x", "-r"])
        .arg(file)
        .output()
        .expect("tcpdump runs");
    let text = String::from_utf8_lossy(&dump.stdout);
    let complaints = String::from_utf8_lossy(&dump.stderr);
    // The last packet may be in the middle of being written.
    let is_right = dump.status.success() || complaints.contains("truncated dump file");
    assert!(is_right, "{complaints}");
    assert!(!text.contains("incorrect"), "{text}");
    let mut packets: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        match line.trim_start().split_once(":  ") {
            Some((at, digits)) if at.starts_with("0x") => {
                if at == "0x0000" {
                    packets.push(Vec::new());
                }
                let digits: String = digits.split_whitespace().collect();
                let pairs = digits.as_bytes().chunks(2);
                let bytes = pairs.map(|pair| {
                    let pair = std::str::from_utf8(pair).expect("text");
                    u8::from_str_radix(pair, 16).expect("digits")
                });
                packets.last_mut().expect("a packet").extend(bytes);
            }
            _ => {}
        }
    }
    packets.iter().map(|packet| parse(packet)).collect()
}

fn parse(packet: &[u8]) -> Packet {
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match packet[0] >> 4 {
        4 => {
            let at = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("an address");
            (at(12).into(), at(16).into(), &packet[20..])
        }
        6 => {
            let at = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("an address");
            (at(8).into(), at(24).into(), &packet[40..])
        }
        other => panic!("IP version {other}"),
    };
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    Packet {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
        sequence: u32::from_be_bytes(tcp[4..8].try_into().expect("a number")),
        bytes: tcp[usize::from(tcp[12] >> 4) * 4..].to_vec(),
    }
}

/// What was sent from or to this port, every byte in its place.
///
/// # Panics
/// There is a hole.
pub fn stream<'a>(packets: impl Iterator<Item = &'a Packet>) -> Vec<u8> {
    let mut stream = Vec::new();
    for packet in packets {
        assert_eq!(packet.sequence as usize, 1 + stream.len(), "{packet:?}");
        stream.extend_from_slice(&packet.bytes);
    }
    stream
}
