//! The admin API's answers. Changes go to the supervisor, which alone can carry them out.

mod envoy;
mod stats;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use shunt_admin::{AdminApi, Answer, Call, DumpQuery, Listener, Shape, StatsQuery, StatusCode};
use shunt_core::config::file;
use shunt_core::explain::Inquiry;
use shunt_core::status::WorkloadState;
use shunt_core::tap::TapRequest;
use shunt_telemetry::logging::LogLevel;
use shunt_telemetry::metrics::{self, Sources};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub(super) use self::envoy::Known;
use super::control::Wish;
use super::taps::{self, Refusal};
use super::view::View;
use crate::ipc::{Change, Outcome, Unexplained};

const OK: u16 = 200;
const ACCEPTED: u16 = 202;
const BAD_REQUEST: u16 = 400;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const UNAVAILABLE: u16 = 503;

const NOTHING_TO_COPY: &str =
    "nothing goes past the TCP stack here (`shunt status` says why): use tcpdump\n";

struct Api {
    view: Rc<RefCell<View>>,
    level: LogLevel,
    wishes: mpsc::UnboundedSender<Wish>,
}

/// Starts answering on the sockets that the supervisor bound: the unix one first, then perhaps one on loopback. The
/// tasks hold the sockets.
pub(super) fn serve(
    sockets: Vec<OwnedFd>,
    view: Rc<RefCell<View>>,
    level: LogLevel,
    wishes: mpsc::UnboundedSender<Wish>,
) -> Result<Vec<JoinHandle<()>>> {
    let mut servers = Vec::new();
    let api = Rc::new(Api {
        view,
        level,
        wishes,
    });
    for (index, socket) in sockets.into_iter().enumerate() {
        let listener = if index == 0 {
            let unix = std::os::unix::net::UnixListener::from(socket);
            unix.set_nonblocking(true)
                .context("cannot use the admin socket")?;
            Listener::Unix(UnixListener::from_std(unix).context("cannot use the admin socket")?)
        } else {
            let tcp = std::net::TcpListener::from(socket);
            tcp.set_nonblocking(true)
                .context("cannot use the admin address")?;
            Listener::Tcp(TcpListener::from_std(tcp).context("cannot use the admin address")?)
        };
        servers.push(tokio::task::spawn_local(shunt_admin::serve(
            listener,
            Rc::clone(&api),
        )));
    }
    Ok(servers)
}

impl AdminApi for Api {
    async fn answer(&self, call: Call) -> Answer {
        self.view.borrow_mut().catch_up();
        match call {
            Call::Ready => self.ready(),
            Call::ServerInfo => self.server_info(),
            Call::Workloads => Answer::json(&self.view.borrow().report()),
            Call::Stats(query) => self.stats(&query),
            Call::ConfigDump(query) => self.config_dump(&query),
            Call::Listeners(shape) => self.listeners(shape),
            Call::Clusters(shape) => self.clusters(shape),
            Call::LogLevel => {
                let level = &self.view.borrow().config.log.level;
                text(OK, format!("level: {level}\n"))
            }
            Call::SetLogLevel(level) => match self.level.set(&level) {
                Ok(()) => {
                    self.view.borrow_mut().config.log.level.clone_from(&level);
                    self.change(Change::LogLevel(level)).await
                }
                Err(error) => text(BAD_REQUEST, format!("{error}\n")),
            },
            Call::Explain(inquiry) => self.explain(inquiry).await,
            Call::Tap(request) => self.tap(&request),
            Call::Drain => self.change(Change::Drain).await,
            Call::UpgradeAgent => self.change(Change::UpgradeAgent).await,
            Call::UpgradeDataPlane => self.change(Change::UpgradeDataPlane).await,
            Call::DeleteWorkload(name) => self.change(Change::Delete(name)).await,
            Call::PutWorkload { name, body } => {
                let mode = self.view.borrow().config.mode;
                match file::parse_workload(&body, &name, mode) {
                    Ok(spec) => self.change(Change::Put(Box::new(spec))).await,
                    Err(error) => text(BAD_REQUEST, format!("{error}\n")),
                }
            }
        }
    }
}

impl Api {
    /// Ready as long as it answers: a workload that cannot be enrolled does not make the agent unready for others,
    /// but until every one was tried once, it is.
    fn ready(&self) -> Answer {
        let view = self.view.borrow();
        let pending: Vec<String> = view
            .infos
            .values()
            .filter(|info| info.state == WorkloadState::Pending)
            .map(|info| format!("{}: {}\n", info.name, info.state_reason))
            .collect();
        if !view.told {
            return text(
                UNAVAILABLE,
                "the supervisor has not said who is enrolled yet\n".into(),
            );
        }
        if !view.captures {
            return text(
                UNAVAILABLE,
                "the data plane has just started: connections go directly\n".into(),
            );
        }
        if pending.is_empty() {
            text(OK, "LIVE\n".into())
        } else {
            text(UNAVAILABLE, pending.concat())
        }
    }

    fn stats(&self, query: &StatsQuery) -> Answer {
        let view = self.view.borrow();
        match query.shape {
            Shape::Text => {
                let numbers = stats::text(&stats::all(&view), query);
                text(OK, numbers + &stats::percentiles(&view, query))
            }
            Shape::Json => Answer::json(&stats::json(&stats::all(&view), query)),
            Shape::Prometheus => Answer {
                content_type: metrics::CONTENT_TYPE,
                ..text(OK, stats::samples(&prometheus(&view), query))
            },
        }
    }

    fn server_info(&self) -> Answer {
        let state = match self.ready().status == StatusCode::OK {
            true => "LIVE",
            false => "INITIALIZING",
        };
        let view = self.view.borrow();
        let config = &view.config;
        let bootstrap = config.bootstrap.as_ref();
        Answer::json(&envoy::server_info(
            &view.report().agent,
            state,
            config.concurrency,
            bootstrap.map(|path| path.display().to_string()).as_deref(),
            &view.known,
        ))
    }

    fn config_dump(&self, query: &DumpQuery) -> Answer {
        let view = self.view.borrow();
        let dump = crate::dump::with_own(&view.dump, &view.config);
        match envoy::selected(dump, query) {
            Ok(part) => Answer::json(&part),
            Err(error) => text(NOT_FOUND, format!("{error}\n")),
        }
    }

    fn listeners(&self, shape: Shape) -> Answer {
        let view = self.view.borrow();
        let (snapshot, workloads) = (view.snapshot.load(), view.report().workloads);
        match shape {
            Shape::Json => Answer::json(&envoy::listener_statuses(&snapshot, &workloads)),
            _ => text(OK, envoy::listeners(&snapshot, &workloads)),
        }
    }

    fn clusters(&self, shape: Shape) -> Answer {
        let view = self.view.borrow();
        let (snapshot, known) = (view.snapshot.load(), &view.known);
        match shape {
            Shape::Json => Answer::json(&envoy::cluster_statuses(&snapshot, known)),
            _ => text(OK, envoy::clusters(&snapshot, known)),
        }
    }

    async fn explain(&self, inquiry: Inquiry) -> Answer {
        let (tell, told) = oneshot::channel();
        // When it cannot be sent, nobody tells either.
        let _ = self.wishes.send(Wish::Explain(inquiry, tell));
        match told.await {
            Ok(Ok(explanation)) => Answer::json(&explanation),
            Ok(Err(Unexplained::Unknown(reason))) => text(NOT_FOUND, format!("{reason}\n")),
            Ok(Err(Unexplained::Failed(reason))) => text(CONFLICT, format!("{reason}\n")),
            Err(_) => text(UNAVAILABLE, "the agent is stopping\n".into()),
        }
    }

    fn tap(&self, request: &TapRequest) -> Answer {
        match taps::begin(&self.view.borrow(), request) {
            Ok(lines) => Answer::live(lines),
            Err(Refusal::UnknownWorkload(reason)) => text(NOT_FOUND, format!("{reason}\n")),
            Err(Refusal::Taken(reason)) => text(CONFLICT, format!("{reason}\n")),
            Err(Refusal::NothingToCopy) => text(CONFLICT, NOTHING_TO_COPY.into()),
        }
    }

    async fn change(&self, change: Change) -> Answer {
        let (tell, told) = oneshot::channel();
        if self.wishes.send(Wish::Change(change, tell)).is_err() {
            return text(UNAVAILABLE, "the agent is stopping\n".into());
        }
        match told.await {
            Ok(Ok(Outcome::InForce)) => text(OK, "done\n".into()),
            Ok(Ok(Outcome::Later(reason))) => {
                text(ACCEPTED, format!("not in force yet, retried: {reason}\n"))
            }
            Ok(Err(reason)) => text(CONFLICT, format!("{reason}\n")),
            Err(_) => text(UNAVAILABLE, "the agent is stopping\n".into()),
        }
    }
}

fn prometheus(view: &View) -> String {
    let list = |map: &BTreeMap<String, u64>| -> Vec<(String, u64)> {
        map.iter()
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    };
    metrics::render(&Sources {
        snapshot: &view.snapshot.load(),
        agent: &view.counters,
        workloads: &view.report().workloads,
        repairs: &list(&view.counted.repairs),
        kernel_events: &list(&view.counted.kernel),
        upgrades: &list(&view.counted.upgrades),
        retired: view.retired.len(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

fn text(status: u16, body: String) -> Answer {
    Answer::text(status.try_into().unwrap_or_default(), body)
}
