//! The control thread: carries out what the supervisor says and passes on what the workers need.

mod books;
mod ending;
mod pieces;

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::sockets::Accelerator;
use shunt_core::workload::WorkloadId;
use shunt_intercept::ebpf::{Destinations, DirectEvents, MessageTap, Resolvers, Shortcuts};
use shunt_intercept::memory;
use shunt_intercept::original_dst::KernelOriginalDst;
use shunt_proxy::{FlowSink, Rendezvous, Worker, WorkerContext};
use shunt_telemetry::access_log::AccessLogger;
use shunt_telemetry::logging::LogLevel;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::books::pause;
use self::pieces::Pieces;
use super::resolvers::KernelResolvers;
use super::stock::Stock;
use super::taps::{Kernel, Taps, Witness};
use super::view::View;
use super::{Greeting, ToSupervisorChannel, api};
use crate::ipc::{Change, ChannelError, Outcome, ToSupervisor, ToWorker, Unexplained};

/// How often the end of withdrawn workloads' flows is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How often is read what the hooks tell of direct connections, while they tell something; their buffer has room for 11,000
/// events.
const BOOKS: Duration = Duration::from_millis(50);

/// What the admin API asks the supervisor for, and where the answer goes.
#[derive(Debug)]
pub(super) enum Wish {
    /// What became of it, or why it was refused.
    Change(Change, oneshot::Sender<Result<Outcome, String>>),
    Explain(Inquiry, oneshot::Sender<Explained>),
}

pub(super) type Explained = Result<Box<Explanation>, Unexplained>;

#[derive(Debug)]
pub(super) struct Control {
    channel: ToSupervisorChannel,
    workers: Vec<Worker>,
    stocks: Vec<Stock>,
    requests: mpsc::UnboundedReceiver<ToSupervisor>,
    wish: mpsc::UnboundedSender<Wish>,
    wishes: mpsc::UnboundedReceiver<Wish>,
    asked: HashMap<u64, oneshot::Sender<Result<Outcome, String>>>,
    inquired: HashMap<u64, oneshot::Sender<Explained>>,
    next_ticket: u64,
    view: Rc<RefCell<View>>,
    originals: KernelOriginalDst,
    resolvers: KernelResolvers,
    shortcuts: Arc<OnceLock<Box<dyn Accelerator>>>,
    level: LogLevel,
    traffic: Pieces,
    bootstrap: Pieces,
    dump: Pieces,
    leaving: Vec<Leaving>,
    /// By holding these, others know that flows still go through a workload's namespace.
    held: HashMap<WorkloadId, OwnedFd>,
    servers: Vec<JoinHandle<()>>,
    access_log: AccessLogger,
    keeps_listeners: bool,
}

#[derive(Debug)]
struct Leaving {
    id: WorkloadId,
    closed: bool,
}

/// What ends [`Control::serve`].
enum End {
    Stop { grace: Duration },
    Retire { grace: Duration },
    SupervisorGone,
}

impl Control {
    pub(super) fn start(channel: ToSupervisorChannel, greeting: Greeting) -> Result<Self> {
        let Greeting {
            config,
            supervisor_pid,
            uptime_ms,
            supervisor_version,
            keeps_listeners,
            heartbeats,
        } = greeting;
        let level = shunt_telemetry::logging::init(&config.log).context("cannot start logging")?;
        let uptime = Duration::from_millis(uptime_ms);
        let view = View::new(config, supervisor_pid, supervisor_version, uptime);
        let access_log = AccessLogger::open(&view.config.log, Arc::clone(&view.counters))
            .context("cannot open the access log")?;
        let (ask, requests) = mpsc::unbounded_channel();
        let originals = KernelOriginalDst::default();
        let resolvers = KernelResolvers::new(ask.clone());
        let shortcuts: Arc<OnceLock<Box<dyn Accelerator>>> = Arc::default();
        let rendezvous = Arc::new(Rendezvous::default());
        let (mut workers, mut stocks) = (Vec::new(), Vec::new());
        for index in 0..view.config.concurrency {
            let stock = Stock::new(index, ask.clone());
            let page = heartbeats.try_clone();
            let page = page.context("cannot share the heartbeats")?;
            let flows = witness(&access_log, &view.taps);
            let (snapshot, seen) = (Arc::clone(&view.snapshot), Arc::clone(&view.generations));
            let worker = shunt_proxy::spawn(WorkerContext {
                index,
                snapshot: Arc::clone(&view.snapshot),
                supply: stock.clone(),
                originals: originals.clone(),
                flows,
                counters: Arc::clone(&view.counters),
                shortcuts: Arc::clone(&shortcuts),
                rendezvous: Arc::clone(&rendezvous),
                resolvers: Arc::new(resolvers.clone()),
                begun: crate::blocks::keep,
                heartbeat: Arc::new(move || {
                    // Whatever this thread looks up from now on, it finds in this one or in a newer one.
                    seen[index].store(snapshot.load().generation, Ordering::Relaxed);
                    if let Err(error) = page.beat(index) {
                        tracing::error!(%error, "cannot write the heartbeat");
                    }
                }),
            })
            .with_context(|| format!("cannot start worker {index}"))?;
            workers.push(worker);
            stocks.push(stock);
        }
        let (wish, wishes) = mpsc::unbounded_channel();
        let view = Rc::new(RefCell::new(view));
        Ok(Self {
            channel,
            workers,
            stocks,
            requests,
            wish,
            wishes,
            asked: HashMap::new(),
            inquired: HashMap::new(),
            next_ticket: 1,
            view,
            originals,
            resolvers,
            shortcuts,
            level,
            traffic: Pieces::default(),
            bootstrap: Pieces::default(),
            dump: Pieces::default(),
            leaving: Vec::new(),
            held: HashMap::new(),
            servers: Vec::new(),
            access_log,
            keeps_listeners,
        })
    }

    pub(super) async fn serve(mut self) -> Result<()> {
        // The terminal's Ctrl-C reaches both processes; the supervisor says when to stop.
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let mut looks = tokio::time::interval(LOOK);
        let mut books = Instant::now();
        let end = loop {
            tokio::select! {
                message = self.channel.receive() => match message {
                    Ok((number, message, fds)) => {
                        match message {
                            ToWorker::Stop { grace_ms } => {
                                break End::Stop { grace: Duration::from_millis(grace_ms) };
                            }
                            ToWorker::Retire { grace_ms } => {
                                self.retire();
                                self.say(&ToSupervisor::Ack { number, error: None });
                                break End::Retire { grace: Duration::from_millis(grace_ms) };
                            }
                            _ => {}
                        }
                        let error = self.carry_out(message, fds).err().map(|error| format!("{error:#}"));
                        self.say(&ToSupervisor::Ack { number, error });
                    }
                    Err(ChannelError::Closed) => break End::SupervisorGone,
                    Err(error) => return Err(error).context("the supervisor is not understood"),
                },
                Some(request) = self.requests.recv() => self.say(&request),
                Some(wish) = self.wishes.recv() => self.pass_on(wish),
                _ = interrupt.recv() => {}
                _ = looks.tick(), if !self.leaving.is_empty() => self.look_at_leaving(),
                () = sleep_until(books) => {
                    let told = self.view.borrow_mut().catch_up();
                    books = Instant::now() + pause(told);
                }
            }
        };
        if !matches!(end, End::Retire { .. }) {
            self.view.borrow_mut().let_go(|_| true);
        }
        match end {
            End::Stop { grace } => self.stop(grace).await,
            End::Retire { grace } => self.be_succeeded(grace).await,
            End::SupervisorGone => self.outlive_supervisor().await,
        }
        Ok(())
    }

    fn say(&mut self, message: &ToSupervisor) {
        if let Err(error) = self.channel.send(message, Vec::new()) {
            // The next receive says the same, and ends the loop.
            tracing::debug!(%error, "a message to the supervisor was not sent");
        }
    }

    fn pass_on(&mut self, wish: Wish) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        match wish {
            Wish::Change(change, answer) => {
                self.asked.insert(ticket, answer);
                self.say(&ToSupervisor::Change { ticket, change });
            }
            Wish::Explain(inquiry, answer) => {
                self.inquired.insert(ticket, answer);
                self.say(&ToSupervisor::Explain { ticket, inquiry });
            }
        }
    }

    fn carry_out(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<()> {
        match message {
            ToWorker::Hello { .. } => anyhow::bail!("greeted twice"),
            ToWorker::Destinations => {
                anyhow::ensure!(!fds.is_empty(), "no map came with the message");
                let maps = fds.into_iter().map(Destinations::from_fd);
                self.originals.set_destinations(maps.collect());
            }
            ToWorker::DirectEvents => {
                let map = fds.into_iter().next();
                let events = DirectEvents::from_fd(map.context("no map came with the message")?)
                    .context("cannot read what the hooks tell")?;
                let mut view = self.view.borrow_mut();
                let sink = witness(&self.access_log, &view.taps);
                view.follow(events, sink);
            }
            ToWorker::Tap => {
                let maps = MessageTap::from_fds(fds).context("cannot read the kernel's copies")?;
                let mut view = self.view.borrow_mut();
                // As above.
                view.kernel_tap.get_or_insert_with(|| Kernel::new(maps));
            }
            ToWorker::Shortcuts => {
                let maps = Shortcuts::from_fds(fds).context("the maps did not come along")?;
                // A second time is ignored: the supervisor loads the programs once in its life.
                let _ = self.shortcuts.set(Box::new(maps));
            }
            ToWorker::Admin => {
                let (view, level) = (Rc::clone(&self.view), self.level.clone());
                self.servers = api::serve(fds, view, level, self.wish.clone())?;
            }
            ToWorker::Enrol(view) => {
                if let Some(held) = fds.into_iter().next() {
                    self.held.insert(view.id, held);
                }
                self.view.borrow_mut().enrol(view);
            }
            ToWorker::Listen(spec) => {
                for (worker, socket) in self.one_for_each(fds)? {
                    worker.listen(spec.clone(), socket.into());
                }
            }
            ToWorker::Resolvers => {
                let map = fds.into_iter().next();
                let map = map.context("no map came with the message")?;
                self.resolvers.set(Resolvers::from_fd(map));
            }
            ToWorker::TakeQueries(spec) => {
                let socket = fds.into_iter().next();
                let socket = socket.context("no socket came with the message")?;
                // Each resolver's queries stay on one thread.
                let worker = &self.workers[spec.slot % self.workers.len()];
                worker.take_queries(spec, socket.into());
            }
            ToWorker::Resolver { ticket, resolver } => self.resolvers.told(ticket, resolver),
            ToWorker::Stock { worker, want } => self.stock(worker)?.put(want, fds),
            ToWorker::StockFailed {
                worker,
                want,
                error,
            } => self.stock(worker)?.fail(want, error),
            ToWorker::Withdraw { id } => {
                self.view.borrow_mut().withdraw(id);
                for worker in &self.workers {
                    worker.close_listeners(id);
                }
                self.leaving.push(Leaving { id, closed: false });
            }
            ToWorker::Captures => self.view.borrow_mut().captures = true,
            ToWorker::States(states) => {
                self.view.borrow_mut().told(states);
            }
            ToWorker::StateChanges(changes) => self.view.borrow_mut().told_changes(changes),
            ToWorker::Settings {
                timeouts,
                limits,
                splice_after,
                log_level,
            } => {
                self.view
                    .borrow_mut()
                    .set_live(timeouts, limits, splice_after);
                self.level
                    .set(&log_level)
                    .map_err(|error| anyhow::anyhow!("log level: {error}"))?;
                self.view.borrow_mut().config.log.level = log_level;
            }
            ToWorker::Traffic { part, last } => {
                if let Some(text) = self.traffic.add(&part, last) {
                    let read = serde_json::from_str(&text);
                    let traffic = read.context("cannot read services and policy")?;
                    self.view.borrow_mut().set_traffic(traffic);
                }
            }
            ToWorker::Bootstrap { part, last } => {
                if let Some(text) = self.bootstrap.add(&part, last) {
                    let read = serde_json::from_str(&text).context("cannot read the bootstrap")?;
                    // Its dump follows, and then memory is given back.
                    self.view.borrow_mut().set_bootstrap(read);
                }
            }
            ToWorker::Dump { part, last } => {
                if let Some(text) = self.dump.add(&part, last) {
                    self.view.borrow_mut().set_dump(text);
                    memory::give_back();
                }
            }
            ToWorker::Serve(addr) => {
                for (worker, socket) in self.one_for_each(fds)? {
                    worker.serve(addr, socket.into());
                }
            }
            ToWorker::Unserve(addr) => {
                for worker in &self.workers {
                    worker.unserve(addr);
                }
            }
            ToWorker::Counters(counted) => self.view.borrow_mut().counted = counted,
            ToWorker::Changed { ticket, result } => {
                if let Some(asker) = self.asked.remove(&ticket) {
                    // Whoever asked may have gone away.
                    let _ = asker.send(result);
                }
            }
            ToWorker::Explained { ticket, result } => {
                if let Some(asker) = self.inquired.remove(&ticket) {
                    let _ = asker.send(result);
                }
            }
            ToWorker::Retire { .. } | ToWorker::Stop { .. } => {}
        }
        Ok(())
    }

    fn stock(&self, worker: usize) -> Result<&Stock> {
        self.stocks.get(worker).context("no such worker")
    }

    fn one_for_each(
        &self,
        sockets: Vec<OwnedFd>,
    ) -> Result<impl Iterator<Item = (&Worker, OwnedFd)>> {
        let (sent, workers) = (sockets.len(), self.workers.len());
        anyhow::ensure!(sent == workers, "{sent} sockets for {workers} workers");
        Ok(self.workers.iter().zip(sockets))
    }
}

fn witness(log: &AccessLogger, taps: &Arc<Taps>) -> FlowSink {
    Arc::new(Witness {
        log: log.clone(),
        taps: Arc::clone(taps),
    })
}
