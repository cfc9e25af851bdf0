//! Pods that cost next to nothing: made by system calls of this process, without a program or a veth.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::World;

/// lo is the first interface of every namespace.
const LO: u32 = 1;

/// A namespace with lo, an address of its own and a cgroup; it goes when dropped.
#[derive(Debug)]
pub struct Mayfly {
    /// The namespace's name under /run/netns.
    pub netns: String,
    pub cgroup: PathBuf,
    /// The kernel gives it to another namespace as soon as this one is gone.
    pub inode: u64,
}

impl Mayfly {
    /// `name` is its own in the world while it lives.
    ///
    /// # Panics
    /// The host does not allow it.
    pub fn born(world: &World, name: &str, address: Ipv4Addr) -> Self {
        let netns = format!("{}-{name}", world.label());
        let cgroup = world.cgroup().join(name);
        fs::create_dir(&cgroup).expect("a cgroup");
        let inode = make(&path(&netns), address).expect("a namespace");
        Self {
            netns,
            cgroup,
            inode,
        }
    }
}

impl Drop for Mayfly {
    fn drop(&mut self) {
        let path = path(&self.netns);
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn path(netns: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(netns)
}

/// This thread makes it, names it, and comes home.
fn make(path: &PathBuf, address: Ipv4Addr) -> io::Result<u64> {
    File::create(path)?;
    let home = File::open("/proc/thread-self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let own = "/proc/thread-self/ns/net";
    let named = mount(
        Some(own),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    let furnished = furnish(address);
    setns(home, CloneFlags::CLONE_NEWNET)?;
    named?;
    furnished?;
    Ok(fs::metadata(path)?.ino())
}

/// lo comes up and gets the address.
fn furnish(address: Ipv4Addr) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut up = LinkMessage::default();
    up.header.index = LO;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    change(&socket, RouteNetlinkMessage::SetLink(up))?;
    let mut add = AddressMessage::default();
    add.header.family = AddressFamily::Inet;
    add.header.prefix_len = 32;
    add.header.index = LO;
    add.attributes = vec![AddressAttribute::Local(address.into())];
    change(&socket, RouteNetlinkMessage::NewAddress(add))
}

fn change(socket: &Socket, message: RouteNetlinkMessage) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
