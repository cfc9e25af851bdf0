//! Bytes of a known pattern over sockets that do not block, with deadlines.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

/// For what must happen: more than any machine needs, since a verdict of "not" switches acceleration off.
const PATIENCE: Duration = Duration::from_secs(3);
/// For what may not happen: on a machine so slow that TCP needs longer, the careful verdict comes out.
pub(super) const SHORT: Duration = Duration::from_millis(200);

/// Between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn new() -> Self {
        Self::after(PATIENCE)
    }

    pub(super) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Looks until it is so, or the time is over.
#[expect(
    clippy::disallowed_methods,
    reason = "between two looks, with a deadline"
)]
pub(super) fn until(deadline: Deadline, mut is_so: impl FnMut() -> bool) -> bool {
    loop {
        if is_so() {
            return true;
        }
        if deadline.left().is_zero() {
            return false;
        }
        thread::sleep(LOOK);
    }
}

/// Waits until a socket is ready for this, or has failed.
pub(super) fn wait_for(socket: &Socket, what: PollFlags, deadline: Deadline) -> Result<(), String> {
    let mut fds = [PollFd::new(socket.as_fd(), what)];
    let left = PollTimeout::try_from(deadline.left()).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, left) {
        Ok(0) => Err(format!("waited in vain for {what:?}")),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("poll: {error}")),
    }
}

/// `length` bytes that no other `seed` gives.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    let words = length.div_ceil(size_of::<u64>());
    let mut bytes = Vec::with_capacity(words * size_of::<u64>());
    (0..words).for_each(|_| bytes.extend_from_slice(&step()));
    bytes.truncate(length);
    bytes
}

/// Sends in pieces of this size.
pub(super) fn send_all(
    mut socket: &Socket,
    mut bytes: &[u8],
    piece: usize,
    deadline: Deadline,
) -> Result<(), String> {
    while !bytes.is_empty() {
        let piece = &bytes[..piece.min(bytes.len())];
        match socket.write(piece) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(socket, PollFlags::POLLOUT, deadline)?;
            }
            Err(error) => return Err(format!("{} bytes unsent: {error}", bytes.len())),
        }
    }
    Ok(())
}

/// What a stream ended with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    InOrder,
    Reset,
    /// So many bytes came, and no end was asked for.
    Open,
}

/// Reads `most` bytes, or to the end.
pub(super) fn receive(
    mut socket: &Socket,
    most: usize,
    deadline: Deadline,
) -> Result<(Vec<u8>, Ending), String> {
    let (mut heard, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while heard.len() < most {
        let room = buffer.len().min(most - heard.len());
        match socket.read(&mut buffer[..room]) {
            Ok(0) => return Ok((heard, Ending::InOrder)),
            Ok(read) => heard.extend(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(socket, PollFlags::POLLIN, deadline)
                    .map_err(|error| format!("after {} bytes: {error}", heard.len()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok((heard, Ending::Reset));
            }
            Err(error) => return Err(format!("after {} bytes: {error}", heard.len())),
        }
    }
    Ok((heard, Ending::Open))
}

/// Must be what was sent, then this end.
pub(super) fn expect(socket: &Socket, sent: &[u8], ending: &Ending) -> Result<(), String> {
    let most = match ending {
        Ending::Open => sent.len(),
        Ending::InOrder | Ending::Reset => usize::MAX,
    };
    let (heard, ended) = receive(socket, most, Deadline::new())?;
    if heard != sent {
        let same = heard.iter().zip(sent).take_while(|(a, b)| a == b).count();
        return Err(format!(
            "{} bytes were sent, {} came, the first {same} of them right",
            sent.len(),
            heard.len()
        ));
    }
    if ended != *ending {
        return Err(format!(
            "{} bytes, then {ended:?}, not {ending:?}",
            heard.len()
        ));
    }
    Ok(())
}
