//! One worker: a thread with a runtime of its own. A connection never leaves it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use shunt_core::counters::AgentCounters;
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{Accelerator, ListenerSpec, OriginalDstSource, SocketSupply};
use shunt_core::workload::WorkloadId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::account::FlowSink;
use crate::listener;
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
    CloseListeners(WorkloadId),
    Stop { grace: Duration },
}

/// Listeners and flows per workload, which the handle may read at any time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<HashMap<WorkloadId, Counts>>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    listeners: usize,
    flows: u64,
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
            let tasks = LocalSet::new();
            // A task of its own, as waking what the thread blocks on costs two system calls more.
            runtime.spawn(beat(Arc::clone(&context.heartbeat)));
            let local = Rc::new(Local {
                context,
                pools: Pools::default(),
                reserve: Reserve::default(),
                limit_warnings: Seldom::default(),
                accept_warnings: Seldom::default(),
                tally,
                listeners: RefCell::default(),
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

    /// Waits for the thread's end.
    pub async fn ended(self) {
        // An error means that it ended without saying so.
        let _ = self.ended.await;
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
    pub(crate) reserve: Reserve,
    pub(crate) limit_warnings: Seldom,
    pub(crate) accept_warnings: Seldom,
    tally: Tally,
    listeners: RefCell<Vec<Open>>,
}

struct Open {
    spec: Rc<ListenerSpec>,
    close: watch::Sender<bool>,
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

/// Flows that are busy past the agent are told of while they live.
async fn count<S: SocketSupply, O: OriginalDstSource>(local: Rc<Local<S, O>>) {
    loop {
        sleep(COUNT).await;
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
        let alive = tokio::select! {
            order = orders.recv(), if deadline.is_none() => order,
            () = sleep(LOOK), if deadline.is_some() => {
                if local.is_idle() || deadline.flatten().is_some_and(|at| Instant::now() >= at) {
                    return;
                }
                continue;
            }
        };
        match alive {
            Some(Command::Listen(spec, socket)) => local.listen(spec, socket),
            Some(Command::CloseListeners(workload)) => local.close(Some(workload)),
            Some(Command::Stop { grace }) => {
                local.close(None);
                // Too far away to be said: never.
                deadline = Some(Instant::now().checked_add(grace));
            }
            None => return,
        }
    }
}

impl<S: SocketSupply, O: OriginalDstSource> Local<S, O> {
    fn listen(self: &Rc<Self>, spec: ListenerSpec, socket: std::net::TcpListener) {
        let listener = match socket
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(socket))
        {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(listener = %spec.addr, %error, "cannot serve a listener");
                self.tally
                    .change(spec.workload, |counts| counts.listeners -= 1);
                return;
            }
        };
        let spec = Rc::new(spec);
        let (close, closing) = watch::channel(false);
        self.listeners.borrow_mut().push(Open {
            spec: Rc::clone(&spec),
            close,
        });
        tokio::task::spawn_local(listener::accept(Rc::clone(self), spec, listener, closing));
    }

    /// `None`: every workload's.
    fn close(&self, workload: Option<WorkloadId>) {
        for open in self.listeners.borrow().iter() {
            if workload.is_none_or(|workload| workload == open.spec.workload) {
                let _ = open.close.send(true);
            }
        }
    }

    pub(crate) fn listener_closed(&self, spec: &Rc<ListenerSpec>) {
        self.listeners
            .borrow_mut()
            .retain(|open| !Rc::ptr_eq(&open.spec, spec));
        self.tally
            .change(spec.workload, |counts| counts.listeners -= 1);
    }

    pub(crate) fn listens_on(&self, workload: WorkloadId, port: u16) -> bool {
        let listeners = self.listeners.borrow();
        listeners
            .iter()
            .any(|open| open.spec.workload == workload && open.spec.addr.port() == port)
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

/// Counts a flow of a workload as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted {
    tally: Tally,
    workload: WorkloadId,
}

impl Counted {
    pub(crate) fn workload(&self) -> WorkloadId {
        self.workload
    }

    pub(crate) fn new(tally: Tally, workload: WorkloadId) -> Self {
        tally.change(workload, |counts| counts.flows += 1);
        Self { tally, workload }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally.change(self.workload, |counts| counts.flows -= 1);
    }
}

impl Tally {
    fn change(&self, workload: WorkloadId, change: impl FnOnce(&mut Counts)) {
        let mut all = self.lock();
        let counts = all.entry(workload).or_default();
        change(counts);
        if *counts == Counts::default() {
            all.remove(&workload);
        }
    }

    fn of(&self, workload: WorkloadId) -> Counts {
        self.lock().get(&workload).copied().unwrap_or_default()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadId, Counts>> {
        // A change is one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
