//! The data plane's end of acceleration: what its own sockets are connected to, and which applications may send to each
//! other past it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use shunt_core::sockets::{Accelerator, FarEnd, Moved, SocketCookie};
use shunt_ebpf_common::maps::{End, Handoff, ROOM_LEVEL, ROOM_OPTION};

use super::element::Elements;
use crate::netns::int_option;

/// See the head of this module.
#[derive(Debug)]
pub struct Shortcuts {
    /// By descriptor of one of our own sockets.
    ends: Elements<i32, End>,
    peers: Elements<SocketCookie, SocketCookie>,
    handoffs: Elements<SocketCookie, Handoff>,
    cut: Elements<SocketCookie, u32>,
}

impl Shortcuts {
    /// `maps` as [`super::EbpfBackend::shortcut_fds`] gave them. `None`: they are not that many.
    pub fn from_fds(maps: Vec<OwnedFd>) -> Option<Self> {
        let [ends, peers, handoffs, cut] = maps.try_into().ok()?;
        Some(Self {
            ends: Elements::from_fd(ends),
            peers: Elements::from_fd(peers),
            handoffs: Elements::from_fd(handoffs),
            cut: Elements::from_fd(cut),
        })
    }

    fn end(&self, socket: BorrowedFd<'_>) -> io::Result<Option<End>> {
        self.ends.get(&socket.as_raw_fd())
    }
}

impl Accelerator for Shortcuts {
    fn far_end(&self, socket: BorrowedFd<'_>) -> io::Result<FarEnd> {
        let Some(end) = self.end(socket)? else {
            return Ok(FarEnd::NotAccelerated);
        };
        let peer = match end.peer {
            0 => self.peers.get(&end.cookie)?,
            peer => Some(peer),
        };
        Ok(peer.map_or(FarEnd::Unknown, FarEnd::Found))
    }

    fn has_delivered(&self, socket: BorrowedFd<'_>, bytes: u64) -> io::Result<bool> {
        let end = self.end(socket)?;
        Ok(end.is_some_and(|end| match end.state {
            End::UNDECIDED => bytes == 0,
            End::REDIRECTED => end.sent == bytes,
            _ => false,
        }))
    }

    fn room(&self, socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        match int_option(socket, ROOM_LEVEL, ROOM_OPTION) {
            Ok(room) => Ok(Some(room.into())),
            // As without the program that answers.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn hand_over(&self, from: SocketCookie, to: SocketCookie, at: u64) -> io::Result<()> {
        let handoff = Handoff {
            to,
            at,
            ..Handoff::default()
        };
        self.handoffs.set(&from, &handoff)
    }

    fn moved(&self, from: SocketCookie) -> io::Result<Moved> {
        let handoff = self.handoffs.get(&from)?;
        Ok(handoff.map_or(Moved::default(), |handoff| Moved {
            bytes: handoff.bytes,
            messages: handoff.messages,
        }))
    }

    fn each_moved(&self, told: &mut dyn FnMut(SocketCookie, u64)) -> io::Result<()> {
        self.handoffs
            .each(|from, handoff| told(from, handoff.bytes))
    }

    fn was_cut(&self, far_end: SocketCookie) -> io::Result<bool> {
        Ok(self.cut.get(&far_end)?.is_some())
    }

    fn forget(&self, far_end: SocketCookie) {
        // It fails when it was never handed over, or not cut.
        let _ = self.handoffs.remove(&far_end);
        let _ = self.cut.remove(&far_end);
    }
}
