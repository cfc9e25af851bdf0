//! The agent, asked over its admin socket. Every question has an end: the agent may be stopped, starting, or hung.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use shunt_core::status::{StatusReport, WorkloadStatus};
use shunt_core::workload::WorkloadName;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The agent tries again by itself as soon.
const LONG_PAUSE: Duration = Duration::from_millis(250);
/// Bytes of an answer; thousands of workloads have less.
const MAX_ANSWER: u64 = 64 << 20;

const OK: u16 = 200;
const ACCEPTED: u16 = 202;
const BAD_REQUEST: u16 = 400;
const CONFLICT: u16 = 409;
const TOO_LARGE: u16 = 413;

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
}

/// One agent, until a deadline.
#[derive(Debug)]
pub(crate) struct Agent<'a> {
    socket: &'a Path,
    deadline: Instant,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

impl<'a> Agent<'a> {
    pub(crate) fn new(socket: &'a Path, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout;
        Self { socket, deadline }
    }

    /// Returns when the workload's next connection is intercepted. An agent that is not there may be starting: it is
    /// asked until the deadline.
    pub(crate) fn enrol(&self, name: &WorkloadName, body: &str) -> Result<(), Unanswered> {
        let path = path_of(name);
        let worth_it = |error: &Unanswered| !matches!(error, Unanswered::Refused(_));
        self.until_deadline(worth_it, || {
            self.ask("PUT", &path, body).and_then(Answer::done)
        })
    }

    /// Returns when the workload's next connection goes directly. Who is not enrolled already does.
    pub(crate) fn withdraw(&self, name: &WorkloadName) -> Result<(), Unanswered> {
        let path = path_of(name);
        self.until_deadline(breaks_off, || match self.ask("DELETE", &path, "")? {
            Answer {
                status: CONFLICT, ..
            } => Ok(()),
            answer => answer.done(),
        })
    }

    pub(crate) fn workloads(&self) -> Result<Vec<WorkloadStatus>, Unanswered> {
        self.until_deadline(breaks_off, || {
            let answer = self.ask("GET", "/workloads", "")?;
            let body = answer.read()?;
            let report: StatusReport =
                serde_json::from_str(&body).map_err(|error| Unanswered::Broken(error.into()))?;
            Ok(report.workloads)
        })
    }

    pub(crate) fn is_answering(&self) -> Result<(), Unanswered> {
        let ask = || self.ask("GET", "/server_info", "")?.read();
        self.until_deadline(breaks_off, ask).map(|_| ())
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

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer, Unanswered> {
        let mut stream = self.connect()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: shunt\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream
            .set_write_timeout(self.patience()?)
            .and_then(|()| stream.write_all(request.as_bytes()))
            .map_err(of_time)?;
        let mut text = Vec::new();
        let mut piece = [0; 16 << 10];
        loop {
            stream
                .set_read_timeout(self.patience()?)
                .map_err(Unanswered::Broken)?;
            match stream.read(&mut piece).map_err(of_time)? {
                0 => break,
                count => text.extend_from_slice(&piece[..count]),
            }
            if text.len() as u64 > MAX_ANSWER {
                return Err(broken("its answer has no end"));
            }
        }
        parse(&text).ok_or_else(|| broken("half an answer"))
    }

    /// Waits for a place in the queue of an agent that does not accept.
    fn connect(&self) -> Result<UnixStream, Unanswered> {
        let patience = self.patience()?;
        let connected = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
            socket.set_write_timeout(patience)?;
            socket.connect(&SockAddr::unix(self.socket)?)?;
            Ok(UnixStream::from(OwnedFd::from(socket)))
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

impl Answer {
    /// A change that is in force.
    fn done(self) -> Result<(), Unanswered> {
        let body = self.body.trim().to_owned();
        match self.status {
            OK => Ok(()),
            BAD_REQUEST | CONFLICT | TOO_LARGE => Err(Unanswered::Refused(body)),
            ACCEPTED => Err(Unanswered::NotYet(body)),
            status => Err(broken(&format!("{status}: {body}"))),
        }
    }

    fn read(self) -> Result<String, Unanswered> {
        match self.status {
            OK => Ok(self.body),
            status => Err(broken(&format!("{status}: {}", self.body.trim()))),
        }
    }
}

/// `None`: not a whole answer.
fn parse(text: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let of_body = name.eq_ignore_ascii_case("content-length");
        of_body.then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() == length).then(|| Answer {
        status,
        body: body.to_owned(),
    })
}

/// Of an agent that was there and may be again at once: its data plane is replaced within a second.
fn breaks_off(error: &Unanswered) -> bool {
    matches!(error, Unanswered::Broken(_))
}

fn pause_after(error: &Unanswered) -> Duration {
    match error {
        Unanswered::NotYet(_) => LONG_PAUSE,
        _ => PAUSE,
    }
}

fn path_of(name: &WorkloadName) -> String {
    format!("/workloads/{}/{}", name.namespace, name.name)
}

fn of_time(error: io::Error) -> Unanswered {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unanswered::Late,
        _ => Unanswered::Broken(error),
    }
}

fn broken(what: &str) -> Unanswered {
    Unanswered::Broken(io::Error::other(what.to_owned()))
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
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(whole).map(|answer| answer.status), Some(202));
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_none(), "{end}");
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\nno length").is_none());
    }

    #[test]
    fn nobody_is_waited_for_longer_than_said() {
        let start = Instant::now();
        let agent = Agent::new(Path::new("/nowhere/admin.sock"), Duration::from_millis(120));
        let name = WorkloadName {
            namespace: "a".into(),
            name: "b".into(),
        };
        let error = agent.enrol(&name, "{}").expect_err("nobody is there");
        assert!(matches!(error, Unanswered::NotRunning(_)), "{error}");
        assert!(matches!(
            agent.workloads(),
            Err(Unanswered::NotRunning(_) | Unanswered::Late)
        ));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
