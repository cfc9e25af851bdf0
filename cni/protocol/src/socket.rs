//! A packet and at most one descriptor, sent and received.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::MAX_PACKET;

/// Descriptors that a packet may have beside it; more are closed, and an error.
const MAX_FDS: usize = 4;

/// As long as the socket's own timeout says.
///
/// # Errors
/// The other side is gone or does not read, or the packet has no room in the socket's buffer.
pub fn send(socket: impl AsFd, packet: &[u8], beside: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let beside: Vec<BorrowedFd<'_>> = beside.into_iter().collect();
    if !beside.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&beside));
    }
    let slices = [IoSlice::new(packet)];
    retry_on_intr(|| rustix::net::sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// A whole packet; an empty one is the other side's end.
///
/// # Errors
/// Nothing came within the socket's own timeout, or what came is longer than [`MAX_PACKET`], or has more than one
/// descriptor beside it.
pub fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    // Asked first, since a packet that does not fit is cut off.
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
    // A socket with a timeout is not waited for again by the kernel after a signal, even one that nobody handles.
    let (_, length) = retry_on_intr(|| rustix::net::recv(&socket, &mut [0_u8; 0][..], peek))?;
    if length > MAX_PACKET {
        return Err(invalid("a packet is too long"));
    }
    let mut packet = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut packet)];
    let got = rustix::net::recvmsg(&socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds: Vec<OwnedFd> = fds.flatten().collect();
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > 1 {
        return Err(invalid("not all descriptors beside a packet can be taken"));
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(invalid("a packet was cut off"));
    }
    packet.truncate(got.bytes);
    Ok((packet, fds.pop()))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// Descriptors are counted: nobody else opens or closes any meanwhile.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair")
    }

    #[test]
    fn a_descriptor_arrives_with_its_packet() {
        let _alone = alone();
        let (ours, theirs) = pair();
        let file = File::open("/proc/self/ns/net").expect("a namespace");
        send(&ours, b"with", Some(file.as_fd())).expect("sent");
        send(&ours, b"without", None).expect("sent");
        drop(ours);
        let (packet, beside) = receive(&theirs).expect("a packet");
        let inode = |file: File| file.metadata().expect("an inode").ino();
        assert_eq!(packet, b"with");
        assert_eq!(
            inode(beside.expect("a descriptor").into()),
            inode(file),
            "the same namespace"
        );
        let (packet, beside) = receive(&theirs).expect("a packet");
        assert_eq!(
            (packet.as_slice(), beside.is_none()),
            (&b"without"[..], true)
        );
        assert!(receive(&theirs).expect("the end").0.is_empty());
    }

    #[test]
    fn more_descriptors_than_asked_for_are_closed() {
        let _alone = alone();
        let (ours, theirs) = pair();
        let file = File::open("/proc/self/ns/net").expect("a namespace");
        let open = || std::fs::read_dir("/proc/self/fd").expect("a list").count();
        for count in [2, MAX_FDS + 3] {
            let many = vec![file.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            let slices = [IoSlice::new(b"x")];
            let flags = SendFlags::empty();
            rustix::net::sendmsg(&ours, &slices, &mut control, flags).expect("sent");
            let before = open();
            let got = receive(&theirs);
            assert!(got.is_err(), "{count}: {got:?}");
            assert_eq!(open(), before, "{count}");
        }
    }
}
