//! Where the battery plays: two pairs of namespaces with the same addresses, each a client and a server, joined by a
//! veth; and the programs, attached to this process's cgroup.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, unshare};
use shunt_ebpf_common::maps::{End, NetnsCookie, SocketCookie, Workload};
use socket2::{Domain, Protocol, Socket, Type};

use super::bytes::{Deadline, wait_for};
use super::{Answer, Fault};
use crate::ebpf::acceleration::Acceleration;
use crate::ebpf::element::Elements;
use crate::ebpf::hooks;
use crate::ebpf::kernel::{Hook, Link};
use crate::ebpf::neighbours::Neighbours;
use crate::ebpf::object::{Object, RECEIVE_QUEUE_LIMIT, failed};
use crate::netns::Netns;
use crate::return_path::Netlink;
use crate::{InterceptError, Marks};

/// From the block for documentation; nobody sees them.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PREFIX: u8 = 24;
/// The client's sockets are as the agent's that connect to servers: nothing captures them.
const MARKS: Marks = Marks {
    upstream: 1,
    delivery: 2,
};

pub(super) struct Scene {
    pub(super) pairs: [Pair; 2],
    pub(super) fault: Option<Fault>,
    ends: Elements<i32, End>,
    peers: Elements<SocketCookie, SocketCookie>,
    sockets: Elements<SocketCookie, u32>,
    _links: Vec<Link>,
    _acceleration: Acceleration,
    _neighbours: Neighbours,
    _object: Object,
}

/// Two namespaces. Nobody else has their name, and with this they end.
pub(super) struct Pair {
    client: Arc<Netns>,
    server: Arc<Netns>,
}

/// One connection of ours, both ends. Neither blocks.
pub(super) struct Flow {
    pub(super) near: Socket,
    pub(super) far: Socket,
}

impl Scene {
    pub(super) fn set(cgroup: &Path, fault: Option<Fault>) -> Result<Self, InterceptError> {
        let pairs = thread::scope(|scope| {
            let pairs = [scope.spawn(Pair::make), scope.spawn(Pair::make)];
            pairs.map(|pair| {
                pair.join()
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })
        });
        let [first, second] =
            pairs.map(|pair| pair.map_err(|error| InterceptError::io("make", "namespaces", error)));
        let pairs = [first?, second?];
        let queue = match fault {
            Some(Fault::Unbounded) => u32::MAX,
            _ => RECEIVE_QUEUE_LIMIT,
        };
        let mut object = Object::load_with(MARKS, queue)?;
        // Before any map is taken out: programs that are loaded later would miss it.
        let links = match fault {
            Some(Fault::Detached) => Vec::new(),
            _ => attach(&mut object, cgroup)?,
        };
        let acceleration = Acceleration::load(&mut object)?;
        let mut neighbours = Neighbours::load(&mut object)?;
        enrol(&mut object, &mut neighbours, &pairs)?;
        let fds = |error| InterceptError::io("share", "maps", error);
        let maps: [OwnedFd; 4] =
            acceleration.fds().map_err(fds)?.try_into().map_err(|_| {
                InterceptError::io("share", "maps", io::ErrorKind::InvalidData.into())
            })?;
        let [ends, peers, ..] = maps;
        let sockets = acceleration.sockets_fd().map_err(fds)?;
        Ok(Self {
            pairs,
            fault,
            ends: Elements::from_fd(ends),
            peers: Elements::from_fd(peers),
            sockets: Elements::from_fd(sockets),
            _links: links,
            _acceleration: acceleration,
            _neighbours: neighbours,
            _object: object,
        })
    }

    /// A new connection in the first pair.
    pub(super) fn flow(&self) -> Result<Flow, String> {
        self.pairs[0].flow(&Listening::default())
    }

    /// What the programs noted of a socket. Fails when they noted nothing: then no answer would mean anything.
    pub(super) fn end(&self, socket: &Socket) -> Result<End, String> {
        match self.ends.get(&socket.as_raw_fd()) {
            Ok(Some(end)) => Ok(end),
            Ok(None) => Err("the connection was not accelerated".into()),
            Err(error) => Err(format!("the programs' notes cannot be read: {error}")),
        }
    }

    /// Did everything that these sent go from queue to queue?
    pub(super) fn are_redirected(&self, senders: &[&Socket]) -> Answer {
        let mut sent = 0;
        for sender in senders {
            let end = self.end(sender)?;
            if end.state != End::REDIRECTED {
                return Err(format!("messages went by TCP (state {})", end.state));
            }
            sent += end.sent;
        }
        Ok(format!("{sent} bytes from queue to queue"))
    }

    /// Bytes wait in `socket`, and if it is to be broken, they are lost here.
    pub(super) fn bytes_wait_in(&self, socket: &Socket) -> Result<(), String> {
        if self.fault == Some(Fault::Deleted) {
            let cookie = self.end(socket)?.cookie;
            told(self.sockets.remove(&cookie))?;
        }
        Ok(())
    }

    /// If pairing is to be broken, each of two connecting ends has the other's far end.
    pub(super) fn are_paired(&self, flows: [&Flow; 2]) -> Result<(), String> {
        if self.fault != Some(Fault::Crossed) {
            return Ok(());
        }
        let [one, other] = flows.map(|flow| -> Result<[End; 2], String> {
            Ok([self.end(&flow.near)?, self.end(&flow.far)?])
        });
        let ([one, to_one], [other, to_other]) = (one?, other?);
        told(self.peers.set(&one.cookie, &to_other.cookie))?;
        told(self.peers.set(&other.cookie, &to_one.cookie))
    }
}

pub(super) fn told<T>(result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// Both pairs are workloads that want everything accelerated. Their servers have one address, of which the map of
/// addresses knows one owner.
fn enrol(
    object: &mut Object,
    neighbours: &mut Neighbours,
    pairs: &[Pair; 2],
) -> Result<(), InterceptError> {
    let mut workloads: aya::maps::HashMap<aya::maps::MapData, NetnsCookie, Workload> =
        object.map("SHUNT_WORKLOADS")?;
    let namespaces = pairs.iter().flat_map(|pair| [&pair.client, &pair.server]);
    for (netns, id) in namespaces.zip(1..) {
        let workload = Workload {
            id,
            flags: Workload::ACCELERATE,
            ..Workload::default()
        };
        let written = workloads.insert(netns.cookie(), workload, 0);
        written.map_err(|error| failed("write the workload", &error))?;
    }
    let server = pairs[0].server.cookie();
    neighbours.move_in(&[], &[SERVER.into()], server)
}

fn attach(object: &mut Object, cgroup: &Path) -> Result<Vec<Link>, InterceptError> {
    let io = |error| InterceptError::io("attach to", cgroup.display(), error);
    let directory = File::open(cgroup).map_err(io)?;
    let attach = |name| {
        let program = hooks::load(object, name)?;
        let link = Link::attach(program.as_fd(), directory.as_fd(), Hook::SockOps);
        link.map_err(io)
    };
    [hooks::HANDSHAKE, hooks::AGENT]
        .into_iter()
        .map(attach)
        .collect()
}

/// How a server listens, and who calls it from where.
#[derive(Default)]
pub(super) struct Listening {
    /// On `::`, for both families.
    pub(super) on_both: bool,
    /// The client's socket is of IPv6, its destination an IPv4 address.
    pub(super) mapped_client: bool,
    /// The client's and the server's port; 0: any.
    pub(super) ports: [u16; 2],
}

impl Pair {
    fn make() -> io::Result<Self> {
        let (client, server) = (anonymous()?, anonymous()?);
        let pair = Self {
            client: Arc::new(client),
            server: Arc::new(server),
        };
        pair.client.enter(|| join(&pair.server))??;
        pair.client.enter(|| set_up(CLIENT))??;
        pair.server.enter(|| set_up(SERVER))??;
        Ok(pair)
    }

    pub(super) fn flow(&self, how: &Listening) -> Result<Flow, String> {
        let (listener, near) = self.call(how)?;
        let far = accept(&listener)?;
        Ok(Flow { near, far })
    }

    /// A connection that waits to be accepted.
    pub(super) fn call(&self, how: &Listening) -> Result<(Socket, Socket), String> {
        let listener = told(self.server.enter(|| listen(how)).and_then(|made| made))?;
        let bound = told(listener.local_addr())?.as_socket();
        let port = bound.map(|addr| addr.port()).unwrap_or_default();
        let near = told(
            self.client
                .enter(|| connect(how, port))
                .and_then(|made| made),
        )?;
        wait_for(&near, PollFlags::POLLOUT, Deadline::new())?;
        match told(near.take_error())? {
            None => Ok((listener, near)),
            Some(error) => Err(format!("cannot connect: {error}")),
        }
    }
}

pub(super) fn accept(listener: &Socket) -> Result<Socket, String> {
    wait_for(listener, PollFlags::POLLIN, Deadline::new())?;
    let (far, _) = told(listener.accept())?;
    told(far.set_nonblocking(true))?;
    Ok(far)
}

fn listen(how: &Listening) -> io::Result<Socket> {
    let domain = if how.on_both {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    let port = how.ports[1];
    let addr = if how.on_both {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from((SERVER, port))
    };
    if how.on_both {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(8)?;
    Ok(socket)
}

fn connect(how: &Listening, port: u16) -> io::Result<Socket> {
    let ip = |ip: Ipv4Addr| -> std::net::IpAddr {
        if how.mapped_client {
            ip.to_ipv6_mapped().into()
        } else {
            ip.into()
        }
    };
    let domain = if how.mapped_client {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_mark(MARKS.upstream)?;
    socket.set_tcp_nodelay(true)?;
    if how.ports[0] != 0 {
        socket.bind(&SocketAddr::from((ip(CLIENT), how.ports[0])).into())?;
    }
    match socket.connect(&SocketAddr::from((ip(SERVER), port)).into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// A namespace without a name: it ends with the last that holds it.
fn anonymous() -> io::Result<Netns> {
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        made.join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })?;
    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
    Netns::open(Path::new(&path)).map_err(|error| io::Error::other(error.chain()))
}

/// A veth from this thread's namespace to `other`, `eth0` in both.
fn join(other: &Netns) -> io::Result<()> {
    let name = || LinkAttribute::IfName("eth0".into());
    let mut peer = LinkMessage::default();
    let there = LinkAttribute::NetNsFd(other.as_fd().as_raw_fd());
    peer.attributes = vec![name(), there];
    let mut link = LinkMessage::default();
    let veth = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    link.attributes = vec![
        name(),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), veth]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Netlink::open()?.change(RouteNetlinkMessage::NewLink(link), flags)
}

/// Gives this thread's namespace its address.
fn set_up(ip: Ipv4Addr) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex("eth0")?;
    let mut netlink = Netlink::open()?;
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = PREFIX;
    address.header.index = index;
    address.attributes = vec![
        AddressAttribute::Local(ip.into()),
        AddressAttribute::Address(ip.into()),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    netlink.change(RouteNetlinkMessage::NewAddress(address), flags)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(link), 0)
}
