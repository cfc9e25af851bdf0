//! A workload's DNS queries: each goes to the resolver that it was for, from a socket of its own, and the first datagram
//! that answers it goes back as it is.
//!
//! ```text
//! client ─► slot's socket ─► place? ─► which resolver ─► socket of the workload's namespace ─► resolver
//!    ◄───────── as it is ◄───────────── id and question are the same? ◄─────────────────────────┘
//! ```
//! Nothing is kept and nothing is made up, but SERVFAIL where the kernel says that nobody is there: a client with a
//! socket of its own would be told so too.

mod message;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use shunt_core::address::canonical;
use shunt_core::counters::{AgentCounters, WorkloadCounters};
use shunt_core::dns::{DnsCounters, QueryOutcome, QueryRecord, Taken};
use shunt_core::snapshot::Enrolled;
use shunt_core::sockets::{
    DnsListenerSpec, Family, OriginalDstSource, SocketRole, SocketSupply, SocketWant,
};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::timeout;

use self::message::{Asked, is_truncated, rcode};
use crate::worker::Local;

/// As long as the C library waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Queries that wait for an answer, of all workloads: each has a descriptor. Twice as many where a resolver has its own places.
const MOST: u64 = 2048;
/// Bytes of a query for which it has one place: all those that programs send.
const A_PLACE: usize = 1024;
/// Queries that are taken before others have their turn.
const AT_ONCE: usize = 32;
/// Bytes of the longest datagram.
pub(crate) const LONGEST: usize = 65_535;

/// Of those that came before its listener was closed, at most.
const LAST: usize = 1024;

/// Takes queries until told to close; what came before that is still taken.
pub(crate) async fn take<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    listener: Rc<DnsListenerSpec>,
    socket: UdpSocket,
    mut closing: watch::Receiver<bool>,
) {
    let socket = Rc::new(socket);
    let mut left = LAST;
    loop {
        let closes = *closing.borrow();
        if !closes {
            tokio::select! {
                ready = socket.readable() => if ready.is_err() { break },
                _ = closing.changed() => continue,
            }
        }
        let mut taken = 0;
        while taken < AT_ONCE
            && let Some((bytes, client)) = receive(&local, &socket)
        {
            let query = Client {
                listener: Rc::clone(&listener),
                socket: Rc::clone(&socket),
                addr: client,
            };
            let served = serve(Rc::clone(&local), query, bytes);
            local.start(listener.workload, served);
            taken += 1;
        }
        if closes {
            // Somebody may go on sending.
            left = left.saturating_sub(taken);
            if taken == 0 || left == 0 {
                break;
            }
        }
        yield_now().await;
    }
    local.stopped_taking(listener.workload);
}

fn receive<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    socket: &UdpSocket,
) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = local.datagram.borrow_mut();
    // Anything but "nothing there yet" is told again, or was about a datagram that is gone.
    let (length, client) = socket.try_recv_from(&mut buffer).ok()?;
    Some((buffer[..length].to_vec(), client))
}

/// Where a query came from, and its answer goes.
struct Client {
    listener: Rc<DnsListenerSpec>,
    socket: Rc<UdpSocket>,
    addr: SocketAddr,
}

/// What became of it, as far as it got.
#[derive(Default)]
struct Course {
    resolver: Option<SocketAddr>,
    sent: Option<(usize, Option<shunt_core::dns::Rcode>, bool)>,
}

async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    client: Client,
    bytes: Vec<u8>,
) {
    let (started, since) = (SystemTime::now(), Instant::now());
    let snapshot = local.context.snapshot.load_full();
    let Some(workload) = snapshot.workloads.get(&client.listener.workload) else {
        return;
    };
    let counters = &workload.counters.dns;
    let asked = Asked::new(bytes);
    if asked.is_malformed() {
        counters.malformed.fetch_add(1, Relaxed);
    }
    let mut course = Course::default();
    let counted = (&local.context.counters, &workload.counters);
    let outcome = match Place::take(counted, asked.bytes.len()) {
        Some(place) => {
            let answered = answer(&local, &client, place, &asked, counters, &mut course);
            let answered = timeout(PATIENCE, answered).await;
            answered.unwrap_or(QueryOutcome::TimedOut)
        }
        None => QueryOutcome::Limit,
    };
    counters.outcome(outcome).fetch_add(1, Relaxed);
    tell(
        &local,
        workload,
        &client,
        &asked,
        &course,
        (started, since, outcome),
    );
}

async fn answer<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    client: &Client,
    mut place: Place,
    asked: &Asked,
    counters: &DnsCounters,
    course: &mut Course,
) -> QueryOutcome {
    let listener = &client.listener;
    let found = local.context.resolvers.resolver(listener, client.addr);
    let resolver = match found.await {
        Ok(resolver) => *course.resolver.insert(resolver),
        Err(error) => {
            tracing::debug!(%error, client = %client.addr, "a query's resolver is not known");
            return QueryOutcome::Failed;
        }
    };
    if !place.is_for(resolver) {
        return QueryOutcome::Limit;
    }
    let want = SocketWant {
        workload: listener.workload,
        role: SocketRole::Resolver,
        family: Family::of(resolver),
    };
    let socket = match local.context.supply.take(want).await {
        Ok(socket) => std::net::UdpSocket::from(socket),
        Err(error) => {
            tracing::debug!(%error, "no socket for a query");
            return QueryOutcome::Failed;
        }
    };
    match ask(local, socket, resolver, client, asked, counters).await {
        Ok(sent) => {
            course.sent = Some(sent);
            QueryOutcome::Answered
        }
        Err(error) => {
            tracing::debug!(%error, %resolver, "a resolver cannot be asked");
            if let Some(failure) = asked.failure() {
                // A client that does not take it asks again.
                let _ = client.socket.try_send_to(&failure, client.addr);
                course.sent = Some((failure.len(), rcode(&failure), false));
            }
            QueryOutcome::Unreachable
        }
    }
}

/// Passes on the first datagram that answers; the kernel lets nobody's but the resolver's in.
async fn ask<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    socket: std::net::UdpSocket,
    resolver: SocketAddr,
    client: &Client,
    asked: &Asked,
    counters: &DnsCounters,
) -> io::Result<(usize, Option<shunt_core::dns::Rcode>, bool)> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(resolver).await?;
    socket.send(&asked.bytes).await?;
    loop {
        readable_or_failed(&socket).await?;
        let mut buffer = local.datagram.borrow_mut();
        match socket.try_recv(&mut buffer) {
            Ok(length) if asked.is_answered_by(&buffer[..length]) => {
                let answer = &buffer[..length];
                let rcode = rcode(answer);
                if let Some(rcode) = rcode {
                    counters.answers(rcode).fetch_add(1, Relaxed);
                }
                // As above.
                let _ = client.socket.try_send_to(answer, client.addr);
                return Ok((length, rcode, is_truncated(answer)));
            }
            Ok(_) => {
                counters.mismatched.fetch_add(1, Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// "Port unreachable" and the like are told as errors only, without which there is nothing to read.
async fn readable_or_failed(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if !ready.is_error() {
        return Ok(());
    }
    let failed = socket.try_io(Interest::ERROR, || {
        let error = SockRef::from(socket).take_error()?;
        Err::<(), _>(error.unwrap_or(io::ErrorKind::WouldBlock.into()))
    });
    match failed {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

fn tell<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    workload: &Enrolled,
    client: &Client,
    asked: &Asked,
    course: &Course,
    (started, since, outcome): (SystemTime, Instant, QueryOutcome),
) {
    let witness = &local.context.flows;
    if !witness.reads_requests() {
        return;
    }
    let (name, kind) = asked.told();
    let (sent, rcode, truncated) = course.sent.unwrap_or((0, None, false));
    witness.resolved(&QueryRecord {
        started,
        workload: workload.name.clone(),
        client: canonical(client.addr),
        resolver: course.resolver,
        name,
        kind,
        outcome,
        rcode,
        truncated,
        bytes_received: asked.bytes.len() as u64,
        bytes_sent: sent as u64,
        duration: since.elapsed(),
    });
}

/// Places for queries that wait, until it is dropped.
struct Place {
    agent: Arc<AgentCounters>,
    own: Arc<WorkloadCounters>,
    /// `None`: it is not known yet.
    resolver: Option<SocketAddr>,
    taken: u64,
}

impl Place {
    /// For so many bytes: what waits takes memory too.
    fn take(
        (agent, own): (&Arc<AgentCounters>, &Arc<WorkloadCounters>),
        bytes: usize,
    ) -> Option<Self> {
        let taken = 1 + (bytes / A_PLACE) as u64;
        enter(agent, own, None, taken).then(|| Self {
            agent: Arc::clone(agent),
            own: Arc::clone(own),
            resolver: None,
            taken,
        })
    }

    /// Now it is known whom it waits for. False: too many do.
    fn is_for(&mut self, resolver: SocketAddr) -> bool {
        self.leave();
        let taken = std::mem::take(&mut self.taken);
        self.resolver = Some(resolver);
        let entered = enter(&self.agent, &self.own, self.resolver, taken);
        self.taken = if entered { taken } else { 0 };
        entered
    }

    fn leave(&self) {
        self.own.dns.places.leave(self.resolver, self.taken);
        self.agent.queries_active.fetch_sub(self.taken, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Neither the workload's places nor the agent's are taken, or both.
fn enter(
    agent: &AgentCounters,
    own: &WorkloadCounters,
    resolver: Option<SocketAddr>,
    count: u64,
) -> bool {
    let most = match own.dns.places.take(resolver, count) {
        Some(Taken::Own) => 2 * MOST,
        Some(Taken::Shared) => MOST,
        None => return false,
    };
    let entered = agent.queries_active.fetch_add(count, Relaxed) + count <= most;
    if !entered {
        agent.queries_active.fetch_sub(count, Relaxed);
        own.dns.places.leave(resolver, count);
    }
    entered
}
