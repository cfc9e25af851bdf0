//! Connecting: what it gives, and who the two sides think they are.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{self, MsgFlags, SockaddrIn};
use socket2::{Domain, SockRef, Socket, Type};

use super::data::{accept, dial};
use crate::conform::raw::{option, set_option};
use crate::conform::row::Sockets::{Blocking, Both};
use crate::conform::row::{Acceptor, Caller, Fault, Row, Seen, call};
use crate::conform::wire::{Wire, errno, known};

pub(super) const ROWS: &[Row] = &[
    call("refused", Both, is_refused, refuses),
    call("unreachable", Both, finds_nobody, stands_by).long(),
    call("connect", Both, connects, drinks_and_answers),
    call("connect-twice", Both, connects_twice, drinks_and_answers),
    call("fast-open", Blocking, opens_fast, drinks_and_answers),
    call("v6", Both, calls_v6, drinks_and_answers),
    call("v4-mapped", Both, calls_mapped, drinks_and_answers),
    call("names", Both, names_of_caller, names_of_acceptor),
    call(
        "original-destination",
        Blocking,
        asks_original,
        asks_original_too,
    ),
    call("defer-accept", Blocking, waits_before_data, defers),
    call(
        "type-of-service",
        Blocking,
        calls_with_service,
        asks_service,
    ),
];

/// On the bridge's network, and nobody's.
const NOBODY: [u8; 4] = [10, 66, 0, 250];
const LOW_DELAY: u32 = 0x10;

/// Connects as programs do; what a non-blocking one was told at once comes with it.
fn connect(caller: &Caller, to: SocketAddr) -> Result<(Wire, &'static str), Fault> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    connect_on(socket, caller, to)
}

fn connect_on(
    socket: Socket,
    caller: &Caller,
    to: SocketAddr,
) -> Result<(Wire, &'static str), Fault> {
    socket.set_nonblocking(caller.nonblocking)?;
    let told = match socket.connect(&to.into()) {
        Ok(()) => "at once",
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => "in progress",
        Err(error) => return Err(error.into()),
    };
    let wire = Wire::new(TcpStream::from(socket), caller.nonblocking)?;
    wire.wait(PollFlags::POLLOUT);
    match wire.socket.take_error()? {
        None => Ok((wire, told)),
        Some(error) => Err(Fault::Call(errno(error))),
    }
}

/// Some bytes there, their number and some back.
fn talk(wire: &Wire) -> Result<String, Fault> {
    wire.pour(0, 1000)?;
    wire.socket.shutdown(Shutdown::Write)?;
    Ok(wire.drink())
}

fn drinks_and_answers(acceptor: Acceptor) -> Seen {
    let wire = accept(&acceptor)?;
    let seen = wire.drink();
    wire.pour(0, 1000)?;
    Ok(seen)
}

/// A reset is only for those who were connected: a connect that is still under way is told of a refusal instead.
fn outcome(caller: &Caller, to: SocketAddr) -> String {
    match connect(caller, to) {
        Err(Fault::Call(Errno::ECONNRESET)) => "connected, then ECONNRESET".to_owned(),
        Err(fault) => format!("connect {fault}"),
        Ok((wire, _)) => match wire.recv(&mut [0]) {
            Ok(got) => format!("connected, {got} bytes"),
            Err(error) => format!("connected, then {error:?}"),
        },
    }
}

fn is_refused(mut caller: Caller) -> Seen {
    caller.link.meet()?;
    let seen = outcome(&caller, caller.v4);
    caller.link.meet()?;
    Ok(seen)
}

/// Bound, so that nobody else listens there, but not listening.
fn refuses(acceptor: Acceptor) -> Seen {
    let Acceptor {
        mut link, listener, ..
    } = acceptor;
    let at = listener.local_addr()?;
    drop(listener);
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.bind(&at.into())?;
    link.meet()?;
    link.meet()?;
    Ok("not listening".into())
}

fn finds_nobody(mut caller: Caller) -> Seen {
    let seen = outcome(&caller, SocketAddr::from((NOBODY, 80)));
    caller.link.meet()?;
    Ok(seen)
}

fn stands_by(mut acceptor: Acceptor) -> Seen {
    acceptor.link.meet()?;
    Ok("not called".into())
}

fn connects(caller: Caller) -> Seen {
    let (wire, told) = connect(&caller, caller.v4)?;
    Ok(format!("{told}; {}", talk(&wire)?))
}

fn connects_twice(caller: Caller) -> Seen {
    let (wire, _) = connect(&caller, caller.v4)?;
    let again = wire.options().connect(&caller.v4.into());
    let again = again.map_or_else(|error| format!("{:?}", errno(error)), |()| "works".into());
    Ok(format!("{again}; {}", talk(&wire)?))
}

/// Data with the first packet where both ends know how; after the handshake where not.
fn opens_fast(caller: Caller) -> Seen {
    let SocketAddr::V4(to) = caller.v4 else {
        return Err(Fault::Saw("no v4 address".into()));
    };
    let socket = TcpStream::from(Socket::new(Domain::IPV4, Type::STREAM, None)?);
    let wire = Wire::new(socket, caller.nonblocking)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let sent = socket::sendto(wire.fd(), known(0, 100), &SockaddrIn::from(to), flags)?;
    wire.pour(100, 1000)?;
    wire.socket.shutdown(Shutdown::Write)?;
    Ok(format!("{sent} bytes; {}", wire.drink()))
}

fn calls_v6(caller: Caller) -> Seen {
    let (wire, _) = connect(&caller, caller.v6)?;
    let peer = wire.socket.peer_addr()? == caller.v6;
    Ok(format!("{}; {}", dialled(peer), talk(&wire)?))
}

fn calls_mapped(caller: Caller) -> Seen {
    let IpAddr::V4(v4) = caller.v4.ip() else {
        return Err(Fault::Saw("no v4 address".into()));
    };
    let to = SocketAddr::from((v4.to_ipv6_mapped(), caller.v4.port()));
    let (wire, _) = connect(&caller, to)?;
    let peer = wire.socket.peer_addr()? == to;
    Ok(format!("{}; {}", dialled(peer), talk(&wire)?))
}

fn dialled(yes: bool) -> &'static str {
    if yes {
        "peer as dialled"
    } else {
        "another peer"
    }
}

fn names_of_caller(mut caller: Caller) -> Seen {
    let (wire, _) = connect(&caller, caller.v4)?;
    caller.link.tell(&wire.socket.local_addr()?.to_string())?;
    let peer = wire.socket.peer_addr()? == caller.v4;
    caller.link.meet()?;
    Ok(dialled(peer).to_owned())
}

fn names_of_acceptor(mut acceptor: Acceptor) -> Seen {
    let wire = accept(&acceptor)?;
    let own: SocketAddr = acceptor.link.hear()?.parse().map_err(|_| Fault::Alone)?;
    let seen = wire.socket.peer_addr()?;
    acceptor.link.meet()?;
    let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
    let word = |same| if same { "the caller's" } else { "another" };
    let (address, port) = (word(seen.ip() == own.ip()), word(seen.port() == own.port()));
    Ok(format!("{address} address, {port} port"))
}

/// What programs that are behind a redirection themselves ask for.
fn original(wire: &Wire, dialled: Option<SocketAddr>) -> String {
    let answer = SockRef::from(&wire.socket).original_dst_v4();
    match answer.ok().and_then(|answer| answer.as_socket()) {
        None => "none".to_owned(),
        Some(answer) if Some(answer) == dialled => "as dialled".to_owned(),
        Some(_) => "something else".to_owned(),
    }
}

fn asks_original(mut caller: Caller) -> Seen {
    let wire = dial(&caller)?;
    let seen = original(&wire, Some(caller.v4));
    caller.link.tell(&caller.v4.to_string())?;
    caller.link.meet()?;
    Ok(seen)
}

fn asks_original_too(mut acceptor: Acceptor) -> Seen {
    let wire = accept(&acceptor)?;
    let dialled = acceptor.link.hear()?.parse().ok();
    let seen = original(&wire, dialled);
    acceptor.link.meet()?;
    Ok(seen)
}

fn waits_before_data(mut caller: Caller) -> Seen {
    caller.link.meet()?;
    let wire = dial(&caller)?;
    caller.link.meet()?;
    caller.link.meet()?;
    talk(&wire).map_err(|fault| Fault::Saw(fault.to_string()))
}

/// `TCP_DEFER_ACCEPT`: a connection is there when data is.
fn defers(mut acceptor: Acceptor) -> Seen {
    let seconds = 5_i32.to_ne_bytes();
    set_option(
        &acceptor.listener,
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        &seconds,
    )?;
    acceptor.link.meet()?;
    acceptor.link.meet()?;
    crate::wait::pause(Duration::from_millis(100));
    acceptor.listener.set_nonblocking(true)?;
    let early = acceptor.listener.accept();
    let early = early.map_or_else(|error| format!("{:?}", errno(error)), |_| "there".into());
    acceptor.listener.set_nonblocking(false)?;
    acceptor.link.meet()?;
    Ok(format!("{early}; {}", drinks_and_answers(acceptor)?))
}

fn calls_with_service(mut caller: Caller) -> Seen {
    caller.link.meet()?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_tos_v4(LOW_DELAY)?;
    let (wire, _) = connect_on(socket, &caller, caller.v4)?;
    talk(&wire).map_err(|fault| Fault::Saw(fault.to_string()))
}

/// Of the first packet, which the kernel keeps for whoever asks.
fn asks_service(mut acceptor: Acceptor) -> Seen {
    let yes = 1_i32.to_ne_bytes();
    set_option(
        &acceptor.listener,
        libc::IPPROTO_TCP,
        libc::TCP_SAVE_SYN,
        &yes,
    )?;
    acceptor.link.meet()?;
    let wire = accept(&acceptor)?;
    let packet = option(&wire.socket, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, 200)?;
    let service = packet.get(1).copied().unwrap_or_default();
    let seen = wire.drink();
    wire.pour(0, 1000)?;
    Ok(format!("service {service:#x}; {seen}"))
}
