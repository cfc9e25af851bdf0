//! The agent, asked over its socket for the plugin. Every question has an end: the agent may be stopped, starting, or hung.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use shunt_cni_protocol::{Reply, Request, decode, encode, socket};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The agent tries again by itself as soon.
const LONG_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Error)]
pub(crate) enum Unanswered {
    #[error("no agent is running ({0})")]
    NotRunning(#[source] io::Error),
    #[error("the agent did not answer in time")]
    Late,
    #[error("the agent broke off ({0})")]
    Broken(#[source] io::Error),
    /// It answered, and will not.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// It answered, and goes on trying.
    #[error("the agent could not yet, and goes on trying: {0}")]
    NotYet(String),
    /// What was asked has this answer.
    #[error("{0}")]
    No(String),
}

/// One agent, until a deadline.
#[derive(Debug)]
pub(crate) struct Agent<'a> {
    socket: &'a Path,
    deadline: Instant,
}

impl<'a> Agent<'a> {
    pub(crate) fn new(socket: &'a Path, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout;
        Self { socket, deadline }
    }

    /// Returns when what was asked for is in force. An agent that is not there may be starting: it is asked until the
    /// deadline.
    pub(crate) fn insist(
        &self,
        request: &Request,
        beside: BorrowedFd<'_>,
    ) -> Result<(), Unanswered> {
        let worth_it = |error: &Unanswered| !matches!(error, Unanswered::Refused(_));
        self.until_deadline(worth_it, || self.say(request, Some(beside)))
    }

    /// Of an agent that was there and may be again at once, more than once.
    pub(crate) fn ask(
        &self,
        request: &Request,
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<(), Unanswered> {
        let breaks_off = |error: &Unanswered| matches!(error, Unanswered::Broken(_));
        self.until_deadline(breaks_off, || self.say(request, beside))
    }

    /// Tries again what is worth it. What was wrong last is the error, unless that was only the deadline.
    fn until_deadline<T>(
        &self,
        worth_it: impl Fn(&Unanswered) -> bool,
        attempt: impl Fn() -> Result<T, Unanswered>,
    ) -> Result<T, Unanswered> {
        let mut before = None;
        loop {
            match attempt() {
                Err(Unanswered::Late) => return Err(before.unwrap_or(Unanswered::Late)),
                Err(error) if worth_it(&error) && self.left() > pause_after(&error) => {
                    pause(pause_after(&error));
                    before = Some(error);
                }
                ended => return ended,
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// For the next call that waits.
    fn patience(&self) -> Result<Option<Duration>, Unanswered> {
        let left = Some(self.left()).filter(|left| !left.is_zero());
        left.map(Some).ok_or(Unanswered::Late)
    }

    fn say(&self, request: &Request, beside: Option<BorrowedFd<'_>>) -> Result<(), Unanswered> {
        let packet = encode(request).map_err(|error| Unanswered::Refused(error.to_string()))?;
        let agent = self.connect()?;
        let sent = agent
            .set_write_timeout(self.patience()?)
            .and_then(|()| with_room_for(&agent, packet.len()))
            .and_then(|()| socket::send(&agent, &packet, beside));
        sent.map_err(of_time)?;
        let patience = self.patience()?;
        let received = agent
            .set_read_timeout(patience)
            .and_then(|()| socket::receive(&agent));
        let (packet, _) = received.map_err(of_time)?;
        if packet.is_empty() {
            let ended = io::Error::other("it ended without an answer");
            return Err(Unanswered::Broken(ended));
        }
        match decode(&packet) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::NotYet(reason)) => Err(Unanswered::NotYet(reason)),
            Ok(Reply::Refused(reason)) => Err(Unanswered::Refused(reason)),
            Ok(Reply::NotEnrolled(reason) | Reply::NotReady(reason)) => Err(Unanswered::No(reason)),
            Err(error) => Err(Unanswered::Refused(error.to_string())),
        }
    }

    /// Waits for a place in the queue of an agent that does not accept.
    fn connect(&self) -> Result<Socket, Unanswered> {
        let patience = self.patience()?;
        let connected = Socket::new(Domain::UNIX, Type::SEQPACKET, None).and_then(|socket| {
            socket.set_write_timeout(patience)?;
            socket.connect(&SockAddr::unix(self.socket)?)?;
            Ok(socket)
        });
        connected.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Unanswered::NotRunning(error)
            }
            io::ErrorKind::WouldBlock => Unanswered::Late,
            io::ErrorKind::PermissionDenied => Unanswered::Refused(error.to_string()),
            _ => Unanswered::Broken(error),
        })
    }
}

/// The kernel takes a packet whole or not at all.
fn with_room_for(socket: &Socket, length: usize) -> io::Result<()> {
    if length < socket.send_buffer_size()? / 2 {
        return Ok(());
    }
    // What root asks for is not capped.
    rustix::net::sockopt::set_socket_send_buffer_size_force(socket, length * 2)?;
    Ok(())
}

fn pause_after(error: &Unanswered) -> Duration {
    match error {
        Unanswered::NotYet(_) => LONG_PAUSE,
        _ => PAUSE,
    }
}

fn of_time(error: io::Error) -> Unanswered {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unanswered::Late,
        _ => Unanswered::Broken(error),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an agent that is not there gives no sign when it comes"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn nobody_is_waited_for_longer_than_said() {
        let start = Instant::now();
        let agent = Agent::new(Path::new("/nowhere/cni.sock"), Duration::from_millis(120));
        let stdin = std::io::stdin();
        let error = agent
            .insist(&Request::Status, stdin.as_fd())
            .expect_err("nobody is there");
        assert!(matches!(error, Unanswered::NotRunning(_)), "{error}");
        assert!(matches!(
            agent.ask(&Request::Status, None),
            Err(Unanswered::NotRunning(_) | Unanswered::Late)
        ));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
