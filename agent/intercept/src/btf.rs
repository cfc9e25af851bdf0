//! Where the running kernel keeps a member of one of its structures, from the type information in sysfs.
//!
//! The format is that of the kernel's documentation, Documentation/bpf/btf.rst.

use std::{fs, io};

use crate::InterceptError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u32 = 0xeb9f;

/// The types of the running kernel, some megabytes.
pub(crate) struct Kernel(Types);

impl Kernel {
    /// # Errors
    /// The kernel has no type information (`CONFIG_DEBUG_INFO_BTF`), or none in the format that is known.
    pub(crate) fn read() -> Result<Self, InterceptError> {
        let bytes = fs::read(VMLINUX).map_err(unreadable)?;
        let types = Types::parse(&bytes).ok_or_else(|| {
            let what = "not in the format that is known";
            unreadable(io::Error::new(io::ErrorKind::InvalidData, what))
        })?;
        Ok(Self(types))
    }

    /// Bytes from the start of `structure` to a member, named by a path through the structures in it.
    ///
    /// # Errors
    /// There is no such member.
    pub(crate) fn offset(&self, structure: &str, members: &[&str]) -> Result<u32, InterceptError> {
        Ok(self.bits(structure, members)? / u8::BITS)
    }

    /// The same in bits, for members that are bit fields.
    ///
    /// # Errors
    /// There is no such member.
    pub(crate) fn bits(&self, structure: &str, members: &[&str]) -> Result<u32, InterceptError> {
        self.0.bits(structure, members).ok_or_else(|| {
            let path = members.join(".");
            InterceptError::Unsupported(format!("the kernel's types have no {structure}.{path}"))
        })
    }

    /// The value of one name of an enumeration.
    ///
    /// # Errors
    /// There is no such name.
    pub(crate) fn enumerator(&self, of: &str, name: &str) -> Result<u32, InterceptError> {
        self.0.enumerator(of, name).ok_or_else(|| {
            InterceptError::Unsupported(format!("the kernel's types have no {name} in {of}"))
        })
    }
}

fn unreadable(error: io::Error) -> InterceptError {
    InterceptError::io("read the kernel's types from", VMLINUX, error)
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;

struct Types {
    records: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type's record begins; its id is its place, from 1.
    begins: Vec<usize>,
}

/// The head of a type's record.
struct Record {
    name: u32,
    kind: u32,
    members: usize,
    /// Members' offsets share their word with the width of a bit field.
    with_bit_fields: bool,
}

impl Types {
    const HEAD: usize = 12;
    const MEMBER: usize = 12;
    const ENUMERATOR: usize = 8;

    fn parse(bytes: &[u8]) -> Option<Self> {
        if word(bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let at = |offset| word(bytes, offset).map(|value| value as usize);
        let (head, types, types_length) = (at(4)?, at(8)?, at(12)?);
        let (strings, strings_length) = (at(16)?, at(20)?);
        let part = |from: usize, length| bytes.get(head.checked_add(from)?..)?.get(..length);
        let mut all = Self {
            records: part(types, types_length)?.to_vec(),
            strings: part(strings, strings_length)?.to_vec(),
            begins: Vec::new(),
        };
        let mut next = 0;
        while next < all.records.len() {
            all.begins.push(next);
            let record = all.record(next)?;
            next += Self::HEAD + record.tail()?;
        }
        Some(all)
    }

    /// Where the record of this kind and name begins.
    fn find(&self, kind: u32, name: &str) -> Option<usize> {
        let mut begins = self.begins.iter().copied();
        begins.find(|at| {
            self.record(*at)
                .is_some_and(|record| record.kind == kind && self.is(record.name, name))
        })
    }

    fn enumerator(&self, of: &str, name: &str) -> Option<u32> {
        let begins = self.find(ENUM, of)?;
        let mut values = (0..self.record(begins)?.members).map(|index| {
            let at = begins + Self::HEAD + index * Self::ENUMERATOR;
            Some((word(&self.records, at)?, word(&self.records, at + 4)?))
        });
        values.find_map(|value| {
            value
                .filter(|(at, _)| self.is(*at, name))
                .map(|(_, value)| value)
        })
    }

    fn bits(&self, structure: &str, members: &[&str]) -> Option<u32> {
        let mut at = self.find(STRUCT, structure)?;
        let mut bits = 0;
        for member in members {
            let (offset, of) = self.member(at, member)?;
            bits += offset;
            at = *self.begins.get((of as usize).checked_sub(1)?)?;
        }
        Some(bits)
    }

    /// Bits from its structure's start, and the id of its type. Members of members without a name are its own, as in C.
    fn member(&self, structure: usize, name: &str) -> Option<(u32, u32)> {
        const BIT_OFFSET: u32 = 0xff_ffff;
        let record = self.record(structure)?;
        if ![STRUCT, UNION].contains(&record.kind) {
            return None;
        }
        (0..record.members).find_map(|index| {
            let at = structure + Self::HEAD + index * Self::MEMBER;
            let bits = word(&self.records, at + 8)?;
            let bits = if record.with_bit_fields {
                bits & BIT_OFFSET
            } else {
                bits
            };
            let (called, of) = (word(&self.records, at)?, word(&self.records, at + 4)?);
            if self.is(called, "") {
                // Members of one without a name are members of what it is in.
                let within = *self.begins.get((of as usize).checked_sub(1)?)?;
                let (more, of) = self.member(within, name)?;
                return Some((bits + more, of));
            }
            self.is(called, name).then_some((bits, of))
        })
    }

    fn record(&self, at: usize) -> Option<Record> {
        let info = word(&self.records, at + 4)?;
        Some(Record {
            name: word(&self.records, at)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            with_bit_fields: info >> 31 == 1,
        })
    }

    fn is(&self, name: u32, wanted: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl Record {
    /// Bytes after the head. `None`: a kind that is not known.
    fn tail(&self) -> Option<usize> {
        Some(match self.kind {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, declaration tag.
            1 | 14 | 17 => 4,
            // Array.
            3 => 12,
            STRUCT | UNION | 15 | 19 => self.members * 12,
            // Enumeration, function prototype.
            ENUM | 13 => self.members * 8,
            _ => return None,
        })
    }
}

/// In the host's byte order, as the kernel writes it.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_type_information_is_refused() {
        assert!(Types::parse(b"").is_none());
        assert!(Types::parse(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 255]).is_none());
    }

    #[test]
    fn the_running_kernel_has_what_we_read() {
        let kernel = Kernel::read().expect("a kernel with BTF");
        let offset = |members: &[&str]| kernel.offset("sock", members);
        let backlog = offset(&["sk_backlog"]).expect("a member");
        let counter = offset(&["sk_backlog", "rmem_alloc"]).expect("a member of a member");
        assert!(counter >= backlog && counter < 4096, "{backlog} {counter}");
        let flags = offset(&["__sk_common", "skc_flags"]).expect("a member of a nameless member");
        assert!(flags > 0 && flags < backlog, "{flags} {backlog}");
        let error = offset(&["no_such_member"]).expect_err("no such member");
        assert!(error.to_string().contains("sock.no_such_member"), "{error}");
        let state = |name| kernel.enumerator("sock_flags", name);
        // The first of them, in the kernel's include/net/sock.h.
        assert_eq!(
            (state("SOCK_DEAD").ok(), state("SOCK_DONE").ok()),
            (Some(0), Some(1))
        );
        let error = state("no_such_flag").expect_err("no such name");
        assert!(error.to_string().contains("no_such_flag"), "{error}");
    }
}
