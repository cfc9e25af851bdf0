//! What a tap writes: packets of the bytes that it is told of.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use shunt_core::tap::{Leg, TapEvent};

use super::packet::segment;
use super::pcapng::File;

/// Directions that are remembered; some megabytes.
const MOST_DIRECTIONS: usize = 1 << 15;

/// See the head of this module.
pub(super) struct Capture {
    file: File<Box<dyn Write>>,
    /// Bytes of each direction so far.
    seen: HashMap<(SocketAddr, SocketAddr), u64>,
    /// Of each direction.
    most: u64,
    packets: u64,
    bytes: u64,
    left_for_tcp: u64,
    lost_lines: u64,
    lost_messages: u64,
}

impl Capture {
    /// `whose`: a name for people.
    pub(super) fn begin(out: Box<dyn Write>, whose: &str, most: u32) -> io::Result<Self> {
        Ok(Self {
            file: File::begin(out, whose)?,
            seen: HashMap::new(),
            most: u64::from(most),
            packets: 0,
            bytes: 0,
            left_for_tcp: 0,
            lost_lines: 0,
            lost_messages: 0,
        })
    }

    /// True: a packet was written.
    pub(super) fn take(&mut self, event: &TapEvent) -> io::Result<bool> {
        match event {
            TapEvent::Bytes(seen) => {
                let bytes = seen.bytes().ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "bytes that are none")
                })?;
                self.bytes += bytes.len() as u64;
                let ends = seen.leg.offset + bytes.len() as u64 == self.most;
                let ends = ends.then(|| format!("the first {} bytes end here", self.most));
                let begins = (seen.leg.offset == 0).then(|| who(&seen.leg));
                let notes: Vec<String> = begins.into_iter().chain(ends).collect();
                let comment = (!notes.is_empty()).then(|| notes.join("; "));
                self.write(&seen.leg, &bytes, comment.as_deref())
            }
            TapEvent::ByTcp(left) => {
                self.left_for_tcp += 1;
                let reason = &left.reason;
                let comment = format!("from here on by TCP ({reason}): not in this file");
                self.write(&left.leg, &[], Some(&comment))
            }
            TapEvent::Lost { lines, messages } => {
                self.lost_lines += lines;
                self.lost_messages += messages;
                Ok(false)
            }
            TapEvent::Open(_) | TapEvent::Path(_) | TapEvent::Close(_) => Ok(false),
        }
    }

    fn write(&mut self, leg: &Leg, bytes: &[u8], comment: Option<&str>) -> io::Result<bool> {
        if self.seen.len() >= MOST_DIRECTIONS {
            self.seen.clear();
        }
        let (source, destination) = (leg.source, leg.destination);
        let answered = self.seen.get(&(destination, source)).copied().unwrap_or(0);
        self.seen
            .insert((source, destination), leg.offset + bytes.len() as u64);
        let Some(packet) = segment(source, destination, leg.offset, answered, bytes) else {
            return Ok(false);
        };
        self.file.packet(leg.time_ns, &packet, comment)?;
        self.packets += 1;
        Ok(true)
    }

    pub(super) fn summary(&self) -> String {
        let mut summary = format!("{} packets with {} bytes", self.packets, self.bytes);
        if self.packets == 0 {
            summary += "; nothing went past the TCP stack, tcpdump sees the rest";
        }
        let notes = [
            (self.left_for_tcp, "directions changed to TCP"),
            (self.lost_lines, "events lost, this reader was too slow"),
            (
                self.lost_messages,
                "messages not copied, there were too many",
            ),
        ];
        for (count, note) in notes.into_iter().filter(|(count, _)| *count > 0) {
            summary += &format!("; {count} {note}");
        }
        summary
    }
}

fn who(leg: &Leg) -> String {
    let name = |of: &Option<String>| of.clone().unwrap_or_else(|| "not enrolled".into());
    format!("{} to {}", name(&leg.from), name(&leg.to))
}
