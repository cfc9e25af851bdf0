//! The admin API's answers. Changes go to the supervisor, which alone can carry them out.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use serde_json::json;
use shunt_admin::{AdminApi, Answer, Call, Listener};
use shunt_core::config::file;
use shunt_core::explain::Inquiry;
use shunt_core::flow::CloseReason;
use shunt_core::status::WorkloadState;
use shunt_core::tap::TapRequest;
use shunt_telemetry::logging::LogLevel;
use shunt_telemetry::metrics::{self, Sources};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

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
            Call::ServerInfo => Answer::json(&self.view.borrow().report().agent),
            Call::Workloads => Answer::json(&self.view.borrow().report()),
            Call::Stats => self.stats(),
            Call::Prometheus => self.prometheus(),
            Call::ConfigDump => Answer::json(&self.view.borrow().config),
            Call::Listeners => self.listeners(),
            Call::Clusters => self.clusters(),
            Call::SetLogLevel(level) => match self.level.set(&level) {
                Ok(()) => self.change(Change::LogLevel(level)).await,
                Err(error) => text(BAD_REQUEST, format!("{error}\n")),
            },
            Call::Explain(inquiry) => self.explain(inquiry).await,
            Call::Tap(request) => self.tap(&request),
            Call::Drain => self.change(Change::Drain).await,
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
            .iter()
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

    fn stats(&self) -> Answer {
        let view = self.view.borrow();
        let counters = &view.counters;
        let mut lines = vec![
            format!(
                "connections_active: {}",
                counters.connections_active.load(Relaxed)
            ),
            format!(
                "original_dst_misses: {}",
                counters.original_dst_misses.load(Relaxed)
            ),
            format!("loops_refused: {}", counters.loops_refused.load(Relaxed)),
            format!(
                "connections_refused_by_limit: {}",
                counters.connections_refused_by_limit.load(Relaxed)
            ),
            format!(
                "policy_denied: {}",
                counters.closed(CloseReason::PolicyDenied).load(Relaxed)
            ),
            format!("accept_errors: {}", counters.accept_errors.load(Relaxed)),
            format!(
                "access_log_dropped: {}",
                counters.access_log_dropped.load(Relaxed)
            ),
            format!("snapshot_generation: {}", view.snapshot.load().generation),
        ];
        lines.extend(
            view.kernel_events
                .iter()
                .map(|(name, count)| format!("kernel.{name}: {count}")),
        );
        lines.extend(
            view.repairs
                .iter()
                .map(|(name, count)| format!("repairs.{name}: {count}")),
        );
        text(OK, lines.join("\n") + "\n")
    }

    fn prometheus(&self) -> Answer {
        let view = self.view.borrow();
        let list = |map: &std::collections::BTreeMap<String, u64>| -> Vec<(String, u64)> {
            map.iter()
                .map(|(name, count)| (name.clone(), *count))
                .collect()
        };
        let body = metrics::render(&Sources {
            snapshot: &view.snapshot.load(),
            agent: &view.counters,
            workloads: &view.report().workloads,
            repairs: &list(&view.repairs),
            kernel_events: &list(&view.kernel_events),
            version: env!("CARGO_PKG_VERSION"),
        });
        Answer {
            content_type: metrics::CONTENT_TYPE,
            ..text(OK, body)
        }
    }

    fn listeners(&self) -> Answer {
        let view = self.view.borrow();
        let rows = view
            .infos
            .iter()
            .map(|info| json!({"workload": info.name.to_string(), "listeners": info.listeners}));
        let snapshot = view.snapshot.load();
        let own = snapshot.proxy.listeners().iter().map(|served| {
            let (name, addr) = (&served.listener.name, served.listener.addr);
            let serves = served.listener.serves;
            json!({"workload": served.account.name.to_string(), "listeners": [{"name": name, "address": addr.to_string(), "serves": serves}]})
        });
        let rows: Vec<serde_json::Value> = rows.chain(own).collect();
        Answer::json(&rows)
    }

    /// As Envoy prints them: a line for each fact.
    fn clusters(&self) -> Answer {
        let snapshot = self.view.borrow().snapshot.load_full();
        let mut lines = String::new();
        for cluster in snapshot.proxy.clusters() {
            let name = &cluster.name;
            for endpoint in &cluster.endpoints {
                lines += &format!("{name}::{}::weight::{}\n", endpoint.addr, endpoint.weight);
            }
            if cluster.to_original.is_some() {
                lines += &format!("{name}::original destination\n");
            } else if cluster.endpoints.is_empty() {
                lines += &format!("{name}::no endpoint\n");
            }
        }
        text(OK, lines)
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

fn text(status: u16, body: String) -> Answer {
    Answer::text(status.try_into().unwrap_or_default(), body)
}
