//! A row: two sides of a conversation, and what each saw of it.

use std::fmt;
use std::net::{SocketAddr, TcpListener};

use nix::errno::Errno;

use super::link::Link;
use super::wire::Wire;

/// What one side saw, in a few words that are the same each time.
pub(super) type Seen = Result<String, Fault>;

/// Why a side came to no end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Call(Errno),
    /// The other side ended before the place where the two meet.
    Alone,
    /// What came instead of what should have.
    Saw(String),
}

/// One side of a row on a connection: the row's *near* side is the one that acts.
#[derive(Debug)]
pub(super) struct End {
    pub(super) wire: Wire,
    pub(super) link: Link,
}

/// One who connects.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) link: Link,
    pub(super) v4: SocketAddr,
    pub(super) v6: SocketAddr,
    pub(super) nonblocking: bool,
}

/// One who is called.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) link: Link,
    pub(super) listener: TcpListener,
    pub(super) nonblocking: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Sides {
    /// On a connection that there is.
    Pair {
        near: fn(End) -> Seen,
        far: fn(End) -> Seen,
    },
    /// From the call on: the caller is near.
    Call {
        caller: fn(Caller) -> Seen,
        acceptor: fn(Acceptor) -> Seen,
    },
}

/// How the two sides use their sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    Both,
    Blocking,
    NonBlocking,
}

#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) sockets: Sockets,
    pub(super) sides: Sides,
    /// Only on connections that have been used: before that, it is a race with whoever is in between.
    pub(super) is_warm: bool,
    /// Moves many bytes, or waits for the kernel's own timers.
    pub(super) is_long: bool,
}

/// One way of running a row; its name is `ROW/blocking/called/warm` or, for a call, `ROW/blocking`.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    pub(super) row: Row,
    pub(super) nonblocking: bool,
    /// The near side is the one that was called.
    pub(super) turned: bool,
    /// There were words before, so that a path that is chosen late has been chosen.
    pub(super) warm: bool,
}

pub(super) const fn pair(
    name: &'static str,
    sockets: Sockets,
    near: fn(End) -> Seen,
    far: fn(End) -> Seen,
) -> Row {
    let sides = Sides::Pair { near, far };
    Row {
        name,
        sockets,
        sides,
        is_warm: false,
        is_long: false,
    }
}

pub(super) const fn call(
    name: &'static str,
    sockets: Sockets,
    caller: fn(Caller) -> Seen,
    acceptor: fn(Acceptor) -> Seen,
) -> Row {
    let sides = Sides::Call { caller, acceptor };
    Row {
        name,
        sockets,
        sides,
        is_warm: false,
        is_long: false,
    }
}

impl Row {
    pub(super) const fn warm(mut self) -> Self {
        self.is_warm = true;
        self
    }

    pub(super) const fn long(mut self) -> Self {
        self.is_long = true;
        self
    }

    pub(super) fn variants(self) -> Vec<Variant> {
        let blocking = (self.sockets != Sockets::NonBlocking).then_some(false);
        let nonblocking = (self.sockets != Sockets::Blocking).then_some(true);
        let ways: &[(bool, bool)] = match self.sides {
            Sides::Pair { .. } if self.is_warm => &[(false, true), (true, true)],
            Sides::Pair { .. } => &[(false, true), (true, true), (false, false), (true, false)],
            Sides::Call { .. } => &[(false, false)],
        };
        let kinds = blocking.into_iter().chain(nonblocking);
        kinds
            .flat_map(|nonblocking| {
                ways.iter().map(move |&(turned, warm)| Variant {
                    row: self,
                    nonblocking,
                    turned,
                    warm,
                })
            })
            .collect()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |yes, one, other| if yes { one } else { other };
        let kind = word(self.nonblocking, "non-blocking", "blocking");
        write!(out, "{}/{kind}", self.row.name)?;
        if matches!(self.row.sides, Sides::Pair { .. }) {
            let (from, warm) = (
                word(self.turned, "called", "calling"),
                word(self.warm, "warm", "cold"),
            );
            write!(out, "/{from}/{warm}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(errno) => write!(out, "{errno:?}"),
            Self::Alone => out.write_str("left alone"),
            Self::Saw(text) => out.write_str(text),
        }
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Call(errno)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Call(super::wire::errno(error))
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self::Saw(text)
    }
}
