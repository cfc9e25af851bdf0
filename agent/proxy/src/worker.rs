//! One worker: a thread with a runtime of its own. A connection never leaves it.

mod queries;
mod tally;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use shunt_core::counters::AgentCounters;
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{
    Accelerator, DnsListenerSpec, ListenerSpec, OriginalDstSource, ResolverSource, SocketSupply,
};
use shunt_core::statistics;
use shunt_core::workload::WorkloadId;
use tokio::net::TcpListener;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

pub(crate) use self::tally::{Counted, Tally};
use crate::account::FlowSink;
use crate::balance::RoundRobin;
use crate::http::Upstreams;
use crate::listener::{self, Closing};
use crate::relay::{COUNT, Pools};
use crate::rendezvous::Rendezvous;
use crate::scarcity::{Reserve, Seldom};

/// How often a worker shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// How often a stopping worker looks whether its flows have ended.
const LOOK: Duration = Duration::from_millis(20);

/// What a worker works with.
#[expect(
    missing_debug_implementations,
    reason = "closures and callers' own types"
)]
pub struct WorkerContext<S: SocketSupply, O: OriginalDstSource> {
    pub index: usize,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub supply: S,
    pub originals: O,
    pub flows: FlowSink,
    pub counters: Arc<AgentCounters>,
    /// Set once the kernel is ready to accelerate.
    pub shortcuts: Arc<OnceLock<Box<dyn Accelerator>>>,
    /// One for all workers.
    pub rendezvous: Arc<Rendezvous>,
    pub resolvers: Arc<dyn ResolverSource>,
    /// Called on the worker's thread, before anything else.
    pub begun: fn(),
    /// Called every 100 ms.
    pub heartbeat: Arc<dyn Fn() + Send + Sync>,
}

/// The handle that the control thread holds.
#[derive(Debug)]
pub struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    tally: Tally,
    ended: oneshot::Receiver<()>,
}

#[derive(Debug)]
enum Command {
    Listen(ListenerSpec, std::net::TcpListener),
    Serve(SocketAddr, std::net::TcpListener),
    Unserve(SocketAddr),
    TakeQueries(DnsListenerSpec, std::net::UdpSocket),
    CloseListeners(WorkloadId),
    Stop { grace: Duration },
    Retire { grace: Duration },
}

/// Starts the thread.
///
/// # Errors
/// No thread or no runtime can be made.
pub fn spawn<S: SocketSupply, O: OriginalDstSource>(
    context: WorkerContext<S, O>,
) -> io::Result<Worker> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (commands, orders) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let tally = Tally::default();
    let worker = Worker {
        commands,
        tally: tally.clone(),
        ended,
    };
    std::thread::Builder::new()
        .name(format!("worker-{}", context.index))
        .spawn(move || {
            (context.begun)();
            statistics::work_as(context.index);
            let tasks = LocalSet::new();
            // A task of its own, as waking what the thread blocks on costs two system calls more.
            runtime.spawn(beat(Arc::clone(&context.heartbeat)));
            let local = Rc::new(Local {
                context,
                pools: Pools::default(),
                balance: RoundRobin::default(),
                upstreams: Upstreams::default(),
                reserve: Reserve::default(),
                limit_warnings: Seldom::default(),
                accept_warnings: Seldom::default(),
                tally,
                listeners: RefCell::default(),
                queries: RefCell::default(),
                datagram: RefCell::new(Vec::new()),
            });
            tasks.block_on(&runtime, run(local, orders));
            // What is left of flows is dropped here: resets, each with its record.
            drop(tasks);
            let _ = end.send(());
        })?;
    Ok(worker)
}

impl Worker {
    /// Serves this listener from now on.
    pub fn listen(&self, spec: ListenerSpec, socket: std::net::TcpListener) {
        self.tally
            .change(spec.workload, |counts| counts.listeners += 1);
        self.send(Command::Listen(spec, socket));
    }

    /// Takes a workload's DNS queries from this socket from now on.
    pub fn take_queries(&self, spec: DnsListenerSpec, socket: std::net::UdpSocket) {
        self.tally
            .change(spec.workload, |counts| counts.listeners += 1);
        self.send(Command::TakeQueries(spec, socket));
    }

    /// Serves this socket as the proxy's listener of that address from now on.
    pub fn serve(&self, addr: SocketAddr, socket: std::net::TcpListener) {
        self.tally
            .change(WorkloadId::NODE, |counts| counts.listeners += 1);
        self.send(Command::Serve(addr, socket));
    }

    /// Closes the proxy's listener of that address once nobody waits in its queue.
    pub fn unserve(&self, addr: SocketAddr) {
        self.send(Command::Unserve(addr));
    }

    /// Closes a workload's listeners once nobody waits in their queues.
    pub fn close_listeners(&self, workload: WorkloadId) {
        self.send(Command::CloseListeners(workload));
    }

    /// How many listeners of a workload are open.
    pub fn listeners(&self, workload: WorkloadId) -> usize {
        self.tally.of(workload).listeners
    }

    /// How many flows of a workload's listeners are alive.
    pub fn flows(&self, workload: WorkloadId) -> u64 {
        self.tally.of(workload).flows
    }

    /// Closes all listeners as [`Worker::close_listeners`] does, lets flows end for `grace`, resets the rest.
    pub fn stop(&self, grace: Duration) {
        self.send(Command::Stop { grace });
    }

    /// As [`Worker::stop`], but leaves at once to another process what listens there too: all but what was told to close.
    pub fn retire(&self, grace: Duration) {
        self.send(Command::Retire { grace });
    }

    /// Waits for the thread's end.
    pub async fn ended(self) {
        // An error means that it ended without saying so.
        let _ = self.ended.await;
    }

    /// Has its thread ended?
    pub fn has_ended(&mut self) -> bool {
        self.ended.try_recv() != Err(TryRecvError::Empty)
    }

    fn send(&self, command: Command) {
        // A worker that has ended has nothing left to do.
        let _ = self.commands.send(command);
    }
}

/// The worker's own things; they never leave its thread.
pub(crate) struct Local<S: SocketSupply, O: OriginalDstSource> {
    pub(crate) context: WorkerContext<S, O>,
    pub(crate) pools: Pools,
    pub(crate) balance: RoundRobin,
    pub(crate) upstreams: Upstreams,
    pub(crate) reserve: Reserve,
    pub(crate) limit_warnings: Seldom,
    pub(crate) accept_warnings: Seldom,
    tally: Tally,
    listeners: RefCell<Vec<Open>>,
    /// Where DNS queries are taken, and what ends it.
    queries: RefCell<Vec<(WorkloadId, watch::Sender<bool>)>>,
    /// Holds one datagram between two calls of the kernel. Empty until the first socket for queries comes.
    pub(crate) datagram: RefCell<Vec<u8>>,
}

struct Open {
    entrance: Rc<Entrance>,
    close: watch::Sender<Closing>,
}

/// What connections come in by.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// They were steered here.
    Steered(Rc<ListenerSpec>),
    /// They were made to this address, which is the proxy's own.
    Bound(SocketAddr),
}

impl Entrance {
    pub(crate) fn workload(&self) -> WorkloadId {
        match self {
            Self::Steered(spec) => spec.workload,
            Self::Bound(_) => WorkloadId::NODE,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Self::Steered(spec) => spec.addr,
            Self::Bound(addr) => *addr,
        }
    }
}

/// As long as this thread gets to run something else after each task.
async fn beat(heartbeat: Arc<dyn Fn() + Send + Sync>) {
    let mut beats = interval(HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        heartbeat();
    }
}

/// Flows that are busy past the agent are told of while they live, and what a new configuration has no use for is let go.
async fn count<S: SocketSupply, O: OriginalDstSource>(local: Rc<Local<S, O>>) {
    loop {
        sleep(COUNT).await;
        local.follow(&local.context.snapshot.load());
        if let Some(kernel) = local.context.shortcuts.get() {
            local.pools.counting.look(kernel.as_ref());
        }
    }
}

async fn run<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    mut orders: mpsc::UnboundedReceiver<Command>,
) {
    let mut deadline = None;
    tokio::task::spawn_local(count(Rc::clone(&local)));
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = sleep(LOOK), if deadline.is_some() => {
                if local.is_idle() || deadline.flatten().is_some_and(|at| Instant::now() >= at) {
                    return;
                }
                continue;
            }
        };
        match order {
            Some(Command::Listen(spec, socket)) => {
                local.listen(Entrance::Steered(Rc::new(spec)), socket);
            }
            Some(Command::TakeQueries(spec, socket)) => local.take_queries(spec, socket),
            Some(Command::Serve(addr, socket)) => local.listen(Entrance::Bound(addr), socket),
            Some(Command::CloseListeners(workload)) => {
                local.upstreams.forget(workload);
                local.close(Closing::WhenQuiet, |entrance| {
                    entrance.workload() == workload
                });
                local.close_queries(|of| of == workload);
            }
            Some(Command::Unserve(addr)) => {
                local.close(
                    Closing::WhenQuiet,
                    |entrance| matches!(entrance, Entrance::Bound(bound) if *bound == addr),
                );
            }
            // Too far away to be said: never.
            Some(Command::Stop { grace }) => {
                local.close(Closing::WhenQuiet, |_| true);
                local.close_queries(|_| true);
                local.upstreams.close();
                deadline = Some(Instant::now().checked_add(grace));
            }
            Some(Command::Retire { grace }) => {
                local.close(Closing::HandedOver, |_| true);
                local.close_queries(|_| true);
                local.upstreams.close();
                deadline = Some(Instant::now().checked_add(grace));
            }
            None => return,
        }
    }
}

impl<S: SocketSupply, O: OriginalDstSource> Local<S, O> {
    fn listen(self: &Rc<Self>, entrance: Entrance, socket: std::net::TcpListener) {
        let listener = match socket
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(socket))
        {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(listener = %entrance.addr(), %error, "cannot serve a listener");
                self.tally
                    .change(entrance.workload(), |counts| counts.listeners -= 1);
                return;
            }
        };
        let entrance = Rc::new(entrance);
        let (close, closing) = watch::channel(Closing::No);
        self.listeners.borrow_mut().push(Open {
            entrance: Rc::clone(&entrance),
            close,
        });
        let accepting = listener::accept(Rc::clone(self), entrance, listener, closing);
        tokio::task::spawn_local(accepting);
    }

    /// Lets go of what is only of use to an earlier configuration; costs little when there is nothing new.
    pub(crate) fn follow(&self, now: &Arc<Snapshot>) {
        if self.upstreams.follow(now) {
            self.balance.follow(now);
        }
    }

    /// What is closing already goes on with that.
    fn close(&self, how: Closing, which: impl Fn(&Entrance) -> bool) {
        for open in self.listeners.borrow().iter() {
            if which(&open.entrance) {
                open.close.send_if_modified(|closing| {
                    *closing == Closing::No && {
                        *closing = how;
                        true
                    }
                });
            }
        }
    }

    pub(crate) fn listener_closed(&self, entrance: &Rc<Entrance>) {
        self.listeners
            .borrow_mut()
            .retain(|open| !Rc::ptr_eq(&open.entrance, entrance));
        self.tally
            .change(entrance.workload(), |counts| counts.listeners -= 1);
    }

    pub(crate) fn listens_on(&self, workload: WorkloadId, port: u16) -> bool {
        let listeners = self.listeners.borrow();
        listeners
            .iter()
            .any(|open| open.entrance.workload() == workload && open.entrance.addr().port() == port)
    }

    /// Runs a flow on this worker.
    pub(crate) fn start(&self, workload: WorkloadId, flow: impl Future<Output = ()> + 'static) {
        let counted = self.count(workload);
        tokio::task::spawn_local(async move {
            flow.await;
            drop(counted);
        });
    }

    /// A flow depends on what this workload's namespace holds.
    pub(crate) fn count(&self, workload: WorkloadId) -> Counted {
        Counted::new(self.tally.clone(), workload)
    }

    fn is_idle(&self) -> bool {
        self.listeners.borrow().is_empty() && self.tally.is_idle()
    }
}
