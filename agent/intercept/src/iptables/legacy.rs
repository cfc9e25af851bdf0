//! Legacy tables, asked of the kernel without a program. They announce nothing, so they are asked often.
#![expect(unsafe_code, reason = "IPT_SO_GET_* have no safe binding")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use shunt_core::sockets::Family;

use crate::netlink::u32_at;

/// The same numbers for both families.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: name, valid hooks, five entries, five underflows, number of entries, size.
const INFO: usize = 84;
const NAME: usize = 32;
/// `struct ipt_get_entries` up to its entries: name, size, padding.
const HEAD: usize = 40;
/// The hooks of a nat table, by number.
const HOOKS: [(usize, &str); 4] = [
    (0, "PREROUTING"),
    (1, "INPUT"),
    (3, "OUTPUT"),
    (4, "POSTROUTING"),
];
/// `struct xt_entry_target`: size, name, revision; then a verdict or an error's name.
const TARGET: usize = 32;
/// Another table than ours may grow between the two questions.
const ATTEMPTS: usize = 5;

/// Asks about the namespace in which it was opened, from wherever it is used. The table must be there: asking would
/// make it.
#[derive(Debug)]
pub(super) struct Legacy {
    socket: UdpSocket,
    family: Family,
    table: &'static str,
}

/// Where things are in an entry of a family.
struct Layout {
    level: i32,
    /// `target_offset` and `next_offset`, 16 bits each; `comefrom` follows.
    offsets: usize,
    /// From `comefrom` to the end of the counters is the kernel's.
    end: usize,
}

impl Legacy {
    /// In this thread's namespace.
    pub(super) fn open(family: Family, table: &'static str) -> io::Result<Self> {
        let any = match family {
            Family::V4 => "0.0.0.0:0",
            Family::V6 => "[::]:0",
        };
        let socket = UdpSocket::bind(any)?;
        Ok(Self {
            socket,
            family,
            table,
        })
    }

    /// Changes when rules come or go, for a fraction of what reading them costs: the table's size, number of entries, and
    /// where its built-in chains begin and end. One rule in another's place it does not tell.
    pub(super) fn outline(&self) -> io::Result<Vec<u8>> {
        self.get(GET_INFO, named(self.table, INFO))
    }

    /// The names of all chains that are not built in.
    pub(super) fn chains(&self) -> io::Result<Vec<String>> {
        let table = self.table()?;
        let names = table.entries().filter_map(|entry| entry.error_name());
        Ok(names.collect())
    }

    /// Every rule: its chain, what it is, the chain to which it jumps.
    pub(super) fn rules(&self, mut each: impl FnMut(&str, &[u8], Option<&str>)) -> io::Result<()> {
        let table = self.table()?;
        let chains = table.chains();
        let name_at = |at: usize| {
            chains
                .iter()
                .find(|(start, _)| *start == at)
                .map(|(_, name)| name.as_str())
        };
        let mut chain = "";
        let mut entries = table.entries().peekable();
        while let Some(entry) = entries.next() {
            chain = name_at(entry.at).unwrap_or(chain);
            // A chain's name stands before it, and what stands before a name is the end of a chain: no rule of anybody.
            let ends = entries
                .peek()
                .is_some_and(|next| next.error_name().is_some());
            if ends || entry.error_name().is_some() {
                continue;
            }
            let to = entry
                .verdict()
                .and_then(|verdict| name_at(usize::try_from(verdict).ok()?));
            each(chain, &entry.without_counters(to), to);
        }
        Ok(())
    }

    fn layout(&self) -> Layout {
        match self.family {
            Family::V4 => Layout {
                level: libc::SOL_IP,
                offsets: 88,
                end: 112,
            },
            Family::V6 => Layout {
                level: libc::SOL_IPV6,
                offsets: 140,
                end: 168,
            },
        }
    }

    fn table(&self) -> io::Result<Table> {
        let mut attempts = 0;
        loop {
            let info = self.outline()?;
            let size = u32_at(&info, INFO - 4).unwrap_or(0);
            let mut question = named(self.table, HEAD + size as usize);
            question[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
            match self.get(GET_ENTRIES, question) {
                Ok(answer) => {
                    let layout = self.layout();
                    return Ok(Table {
                        info,
                        entries: answer.get(HEAD..).unwrap_or_default().to_vec(),
                        layout,
                    });
                }
                // It changed its size in between.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempts < ATTEMPTS => {
                    attempts += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn get(&self, what: i32, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which `buffer` has.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                self.layout().level,
                what,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if done == 0 {
            Ok(buffer)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn named(table: &str, size: usize) -> Vec<u8> {
    let mut buffer = vec![0; size];
    buffer[..table.len()].copy_from_slice(table.as_bytes());
    buffer
}

struct Table {
    info: Vec<u8>,
    entries: Vec<u8>,
    layout: Layout,
}

struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    layout: &'a Layout,
}

impl Table {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.entries.get(at..)?;
            let length = u16_at(rest, self.layout.offsets + 2).filter(|length| *length > 0)?;
            let entry = Entry {
                at,
                bytes: rest.get(..length)?,
                layout: &self.layout,
            };
            at += length;
            Some(entry)
        })
    }

    /// Where each chain's rules begin.
    fn chains(&self) -> Vec<(usize, String)> {
        let valid = u32_at(&self.info, NAME).unwrap_or(0);
        let hooks = HOOKS.into_iter().filter(|(hook, _)| valid >> hook & 1 == 1);
        let mut chains: Vec<(usize, String)> = hooks
            .filter_map(|(hook, name)| {
                Some((
                    u32_at(&self.info, NAME + 4 + hook * 4)? as usize,
                    name.to_owned(),
                ))
            })
            .collect();
        // A chain of users begins after an entry that has its name.
        chains.extend(
            self.entries()
                .filter_map(|entry| Some((entry.at + entry.bytes.len(), entry.error_name()?))),
        );
        chains
    }
}

impl Entry<'_> {
    fn target(&self) -> &[u8] {
        let offset = u16_at(self.bytes, self.layout.offsets).unwrap_or(0);
        self.bytes.get(offset..).unwrap_or_default()
    }

    fn target_name(&self) -> &[u8] {
        let name = self.target().get(2..TARGET - 1).unwrap_or_default();
        name.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The name of the chain that begins after this entry.
    fn error_name(&self) -> Option<String> {
        let name = self
            .target()
            .get(TARGET..)
            .filter(|_| self.target_name() == b"ERROR")?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Of a standard target; not negative: where it jumps.
    fn verdict(&self) -> Option<i32> {
        let verdict = u32_at(self.target(), TARGET).filter(|_| self.target_name().is_empty())?;
        Some(verdict as i32)
    }

    /// Where it jumps is the chain's name instead of a place that others' rules move.
    fn without_counters(&self, to: Option<&str>) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        if let Some(kernels) = bytes.get_mut(self.layout.offsets + 4..self.layout.end) {
            kernels.fill(0);
        }
        if let Some(to) = to {
            bytes.truncate(bytes.len().saturating_sub(self.target().len()));
            bytes.extend(to.as_bytes());
        }
        bytes
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(usize::from(u16::from_ne_bytes(*two)))
}
