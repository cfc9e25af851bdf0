//! Attachments, by bpf(2) itself: the kernel's word on where a program is attached, and whose programs are there.
#![expect(unsafe_code, reason = "no safe binding tells where a link is attached")]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// From linux/bpf.h.
const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_FREEZE: u32 = 22;
const LINK_CREATE: u32 = 28;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    SockOps = 3,
    SkSkbStreamParser = 4,
    SkSkbStreamVerdict = 5,
    SkMsgVerdict = 7,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    GetSockOpt = 21,
    SetSockOpt = 22,
    Peername4 = 29,
    Peername6 = 30,
    Sockname4 = 31,
    Sockname6 = 32,
    SkLookup = 36,
    SkSkbVerdict = 38,
}

/// An attachment. Dropping it detaches, pinned or not.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    pin: Option<PathBuf>,
}

impl Link {
    pub(super) fn attach(
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        hook: Hook,
    ) -> io::Result<Self> {
        let mut attr = [number(program), number(target), hook as u32, 0];
        let fd = bpf_fd(LINK_CREATE, &mut attr)?;
        Ok(Self { fd, pin: None })
    }

    /// As long as this is open too, it stays attached.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// It was pinned, and somebody removed the pin.
    pub(super) fn has_lost_its_pin(&self) -> bool {
        self.pin.as_ref().is_some_and(|path| !path.exists())
    }

    /// From now on it stays when this process dies. Pinned already, nothing happens.
    pub(super) fn pin(&mut self, path: PathBuf) -> io::Result<()> {
        if self.pin.is_some() && !self.has_lost_its_pin() {
            return Ok(());
        }
        let name = CString::new(path.as_os_str().as_bytes())?;
        let pointer = name.as_ptr() as u64;
        let mut attr = [
            pointer as u32,
            (pointer >> 32) as u32,
            number(self.fd.as_fd()),
            0,
        ];
        bpf(OBJ_PIN, &mut attr)?;
        self.pin = Some(path);
        Ok(())
    }

    /// The inode of the cgroup or of the namespace where it is attached. 0: nowhere any more, by somebody's doing or
    /// by the end of that place.
    pub(super) fn target(&self) -> io::Result<u64> {
        // `struct bpf_link_info`: type, id, program, padding, then of a cgroup 64 bits, of a namespace 32.
        let mut info = [0_u32; 16];
        info_of(self.fd.as_fd(), &mut info)?;
        const NETNS: u32 = 5;
        Ok(match info[0] {
            NETNS => u64::from(info[4]),
            _ => u64::from(info[5]) << 32 | u64::from(info[4]),
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(path) = &self.pin
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "a link stays pinned");
        }
    }
}

/// Gives an array of one element its value, which nobody can change from then on.
pub(super) fn fill_for_ever(map: BorrowedFd<'_>, value: &mut [u8]) -> io::Result<()> {
    let key = 0_u32;
    let ([key_low, key_high], [low, high]) = (
        halves((&raw const key) as u64),
        halves(value.as_mut_ptr() as u64),
    );
    // `map_fd`, padding, `key`, `value`, `flags`.
    let mut attr = [number(map), 0, key_low, key_high, low, high, 0, 0];
    bpf(MAP_UPDATE_ELEM, &mut attr)?;
    bpf(MAP_FREEZE, &mut [number(map)]).map(drop)
}

/// `instructions` as the kernel lays them out. What the verifier says against them goes to the debug log.
pub(super) fn load_sk_lookup(
    name: &str,
    instructions: &[u64],
    license: &CStr,
) -> io::Result<OwnedFd> {
    const SK_LOOKUP: u32 = 30;
    let [code_low, code_high] = halves(instructions.as_ptr() as u64);
    let [license_low, license_high] = halves(license.as_ptr() as u64);
    let mut short = [0_u8; 16];
    let length = name.len().min(short.len() - 1);
    short[..length].copy_from_slice(&name.as_bytes()[..length]);
    let load = |log: &mut [u8]| {
        let [log_low, log_high] = match log.is_empty() {
            true => [0, 0],
            false => halves(log.as_mut_ptr() as u64),
        };
        let mut attr = [0_u32; 18];
        attr[..10].copy_from_slice(&[
            SK_LOOKUP,
            instructions.len() as u32,
            code_low,
            code_high,
            license_low,
            license_high,
            u32::from(!log.is_empty()),
            log.len() as u32,
            log_low,
            log_high,
        ]);
        // Then the kernel's version, flags, and from byte 48 on the name.
        for (word, bytes) in attr[12..16].iter_mut().zip(short.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        attr[17] = Hook::SkLookup as u32;
        bpf_fd(PROG_LOAD, &mut attr)
    };
    load(&mut []).inspect_err(|_| {
        let mut log = vec![0; 1 << 20];
        let _ = load(&mut log);
        let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        tracing::debug!(name, log = %said, "the verifier said");
    })
}

/// A program that somebody attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) id: u32,
    pub(super) name: String,
}

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (id {})", self.name, self.id)
    }
}

/// The programs attached to a cgroup, a namespace or a socket map itself, not to what is above it.
pub(super) fn attached(target: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<Attached>> {
    // As many as the kernel lets be attached to one cgroup.
    const MOST: usize = 64;
    let mut ids = [0_u32; MOST];
    let pointer = ids.as_mut_ptr() as u64;
    // `target_fd`, `attach_type`, `query_flags`, `attach_flags`, `prog_ids` (64 bits), `prog_cnt`.
    let mut attr = [
        number(target),
        hook as u32,
        0,
        0,
        pointer as u32,
        (pointer >> 32) as u32,
        MOST as u32,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(PROG_QUERY, &mut attr)?;
    let count = (attr[6] as usize).min(MOST);
    Ok(ids[..count]
        .iter()
        .map(|id| Attached {
            id: *id,
            name: name(*id),
        })
        .collect())
}

pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info`: type, id.
    let mut info = [0_u32; 20];
    info_of(program, &mut info)?;
    Ok(info[1])
}

/// Empty when it went meanwhile, or has none.
fn name(id: u32) -> String {
    let read = || -> io::Result<String> {
        let program = bpf_fd(PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
        // `struct bpf_prog_info`: the name is 16 bytes from byte 64 on.
        let mut info = [0_u32; 20];
        info_of(program.as_fd(), &mut info)?;
        let bytes: Vec<u8> = info[16..]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    };
    read().unwrap_or_default()
}

fn info_of(object: BorrowedFd<'_>, info: &mut [u32]) -> io::Result<()> {
    let pointer = info.as_mut_ptr() as u64;
    let mut attr = [
        number(object),
        size_of_val(info) as u32,
        pointer as u32,
        (pointer >> 32) as u32,
    ];
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(|_| ())
}

/// The kernel's types have been read, some ten megabytes of small pieces, and are needed no more. The allocator keeps
/// what is below a piece that is still in use.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer into what is given back is alive: only free memory is.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// As two words, in the order of little-endian hosts, as the object is.
fn halves(pointer: u64) -> [u32; 2] {
    [pointer as u32, (pointer >> 32) as u32]
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn bpf_fd(command: u32, attr: &mut [u32]) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: these commands return a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two words for a pointer are in the order of little-endian hosts, as the object is.
fn bpf(command: u32, attr: &mut [u32]) -> io::Result<i32> {
    // SAFETY: `attr` is of the size that is told. Pointers in it are to buffers that live across the call and are of
    // the sizes told beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
