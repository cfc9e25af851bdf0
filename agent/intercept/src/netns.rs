//! Network namespaces: entering one, making sockets there, reading its addresses.
#![expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe binding")]

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use shunt_core::sockets::{Family, SocketRole};
use shunt_core::workload::OWN_NETNS;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{InterceptError, Marks};

/// Connections that may wait in one listener's accept queue; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// From asm-generic/socket.h; libc does not name it on every target.
const SO_NETNS_COOKIE: i32 = 71;
/// From linux/in.h; bounds in the two halves of a word.
const IP_LOCAL_PORT_RANGE: i32 = 51;

/// An open network namespace. It lives as long as this does, even when its name and its processes are gone.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    home: File,
    inode: u64,
    cookie: u64,
    /// The path led here when it was opened.
    named: bool,
}

fn leads_to(path: &Path, inode: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|now| now.ino() == inode)
}

impl Netns {
    /// # Errors
    /// `path` does not exist or is no network namespace, is the node's own, or may not be entered.
    pub fn open(path: &Path) -> Result<Self, InterceptError> {
        let file = File::open(path)
            .map_err(|error| InterceptError::io("open network namespace", path.display(), error))?;
        let netns = Self::handed_over(file, path)?;
        Ok(Self {
            named: true,
            ..netns
        })
    }

    /// The agent's own, which may be the node's.
    ///
    /// # Errors
    /// It may not be entered.
    pub fn own() -> Result<Self, InterceptError> {
        let path = Path::new(OWN_NETNS);
        let file = File::open(path)
            .map_err(|error| InterceptError::io("open network namespace", path.display(), error))?;
        let netns = Self::entered(file, path)?;
        Ok(Self {
            named: true,
            ..netns
        })
    }

    /// One that somebody else opened, who knows it by `path`: that may lead nowhere here.
    ///
    /// # Errors
    /// `file` is no network namespace, is the node's own, or may not be entered.
    pub fn handed_over(file: File, path: &Path) -> Result<Self, InterceptError> {
        let netns = Self::entered(file, path)?;
        if leads_to(Path::new("/proc/1/ns/net"), netns.inode) {
            return Err(InterceptError::Unsupported(format!(
                "{} is the node's own network namespace: capturing it would capture the node; \
                 give the workload a namespace of its own, or a `cgroup` and no `netns`",
                path.display()
            )));
        }
        Ok(netns)
    }

    fn entered(file: File, path: &Path) -> Result<Self, InterceptError> {
        let failed = |what, source| InterceptError::io(what, path.display(), source);
        let home = File::open("/proc/thread-self/ns/net")
            .map_err(|error| failed("open the agent's own namespace for", error))?;
        let inode = file
            .metadata()
            .map_err(|error| failed("stat", error))?
            .ino();
        let mut netns = Self {
            path: path.to_owned(),
            file,
            home,
            inode,
            cookie: 0,
            named: leads_to(path, inode),
        };
        netns.cookie = netns
            .enter(|| {
                let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
                netns_cookie(probe.as_fd())
            })
            .and_then(|cookie| cookie)
            .map_err(|error| failed("enter network namespace", error))?;
        Ok(netns)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identifies the namespace among living ones; reused after it is gone.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Never reused while the host runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Does the path still lead to this namespace? Where it never did, nobody can say otherwise.
    pub fn is_current(&self) -> bool {
        !self.named || leads_to(&self.path, self.inode)
    }

    /// Runs `work` on this thread inside the namespace. `work` must not block: the whole supervisor waits.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When the thread cannot return: it must not go on in the wrong namespace.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            panic!("cannot return from {}: {error}", self.path.display());
        }
        Ok(result)
    }

    /// Addresses of the namespace's interfaces without loopback and IPv6 link-local ones.
    ///
    /// # Errors
    /// The namespace cannot be entered or its interfaces not be read.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, InterceptError> {
        let read = || -> io::Result<Vec<IpAddr>> {
            let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
                .filter_map(|interface| {
                    let address = interface.address?;
                    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                })
                .filter(|ip| match ip {
                    IpAddr::V4(v4) => !v4.is_loopback(),
                    IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
                })
                .collect();
            found.sort_unstable();
            found.dedup();
            Ok(found)
        };
        let entered = self.enter(read).and_then(|read| read);
        entered.map_err(|error| {
            InterceptError::io("read the addresses of", self.path.display(), error)
        })
    }

    /// `count` listening sockets on one address, sharing it by `SO_REUSEPORT`; with port 0, on one free port.
    ///
    /// # Errors
    /// The address is taken or, for IPv6, not there.
    pub fn listen(
        &self,
        addr: SocketAddr,
        mark: u32,
        count: usize,
    ) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
        self.enter(|| {
            let mut addr = addr;
            let mut sockets = Vec::with_capacity(count);
            for index in 0..count {
                let socket = tcp_socket(Family::of(addr), mark)?;
                if addr.is_ipv6() {
                    socket.set_only_v6(true)?;
                }
                socket.set_reuse_address(true)?;
                // The first one binds alone, so that a port which somebody else listens on is an error, not shared.
                socket.set_reuse_port(index > 0)?;
                socket.bind(&SockAddr::from(addr))?;
                socket.set_reuse_port(true)?;
                // Inherited by what is accepted: a data plane that dies between accept and its first own option must
                // not end a connection as if in order.
                socket.set_linger(Some(Duration::ZERO))?;
                socket.listen(BACKLOG)?;
                if let Some(bound) = socket.local_addr()?.as_socket() {
                    addr = bound;
                }
                sockets.push(OwnedFd::from(socket));
            }
            Ok((addr, sockets))
        })?
    }

    /// A socket for datagrams on one address; with port 0, on a free port.
    ///
    /// # Errors
    /// The address is taken or, for IPv6, not there.
    pub fn take_datagrams(&self, addr: SocketAddr, mark: u32) -> io::Result<(SocketAddr, OwnedFd)> {
        self.enter(|| {
            let socket = udp_socket(Family::of(addr), mark)?;
            if addr.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SockAddr::from(addr))?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(addr);
            Ok((bound, OwnedFd::from(socket)))
        })?
    }

    /// `count` ready sockets for the data plane's stock.
    ///
    /// # Errors
    /// The family does not exist in the namespace, or descriptors ran out.
    pub fn stock(
        &self,
        role: SocketRole,
        family: Family,
        marks: Marks,
        count: usize,
    ) -> io::Result<Vec<OwnedFd>> {
        self.enter(|| {
            let ports = ports_of(role);
            let make = |_| {
                let socket = match role {
                    // Its port is drawn at random when it connects.
                    SocketRole::Resolver => return Ok(udp_socket(family, marks.upstream)?.into()),
                    SocketRole::Upstream => tcp_socket(family, marks.upstream)?,
                    SocketRole::Delivery => {
                        let socket = tcp_socket(family, marks.delivery)?;
                        set_transparent(&socket, family)?;
                        socket
                    }
                };
                set_bind_address_no_port(&socket)?;
                keep_ports_apart(&socket, ports);
                Ok(OwnedFd::from(socket))
            };
            (0..count).map(make).collect()
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn tcp_socket(family: Family, mark: u32) -> io::Result<Socket> {
    socket(family, Type::STREAM, Protocol::TCP, mark)
}

fn udp_socket(family: Family, mark: u32) -> io::Result<Socket> {
    socket(family, Type::DGRAM, Protocol::UDP, mark)
}

fn socket(family: Family, kind: Type, protocol: Protocol, mark: u32) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
    socket.set_mark(mark)?;
    Ok(socket)
}

/// Lets the data plane bind a client's address without a privilege of its own.
fn set_transparent(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true),
        Family::V6 => set_int(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// A socket that listens already then takes what TPROXY gives it, and nothing else changes for it.
pub(crate) fn make_transparent(socket: &OwnedFd, family: Family) -> io::Result<()> {
    set_transparent(&socket2::SockRef::from(socket), family)
}

/// A bind to an address alone leaves the port to connect, which knows the whole tuple: many more fit.
fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_int(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// A same-node flow's delivery has the same addresses as its crossing; with the same port too, conntrack in the
/// destination's namespace would take one for the other (seen: resets after some thousand connections). So each role
/// has a part of the ephemeral ports of its own, of the namespace that this thread is in. `None`: they are not known.
fn ports_of(role: SocketRole) -> Option<i32> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = range.split_whitespace().map(|bound| bound.parse::<u16>());
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    let middle = first + last.saturating_sub(first) / 2;
    let (first, last) = match role {
        SocketRole::Upstream | SocketRole::Resolver => (first, middle),
        SocketRole::Delivery => (middle + 1, last),
    };
    Some((u32::from(last) << 16 | u32::from(first)).cast_signed())
}

/// Kernels before 6.3 do not know the option.
fn keep_ports_apart(socket: &Socket, ports: Option<i32>) {
    let Some(value) = ports else {
        return;
    };
    if let Err(error) = set_int(socket, libc::SOL_IP, IP_LOCAL_PORT_RANGE, value) {
        tracing::debug!(%error, "cannot keep the ports of crossings and deliveries apart");
    }
}

pub(crate) fn set_int(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` lives across the call and `length` is its size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An option of four bytes.
pub(crate) fn int_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<u32> {
    let mut value = 0_u32;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `value` and `length` live across the call and `length` is the size of `value`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if done == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The cookie of the namespace in which `socket` was made.
///
/// # Errors
/// Kernels before 5.14 have no such option.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `length` live across the call and `length` is the size of `cookie`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
