//! The TCP proxy filter: one connection to an endpoint of a cluster, and bytes both ways.

use std::sync::Arc;

use shunt_core::cluster::Resource;
use shunt_core::config::Timeouts;
use shunt_core::flow::{CloseReason, DataPath};
use shunt_core::listener::TcpProxy;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};

use crate::account::Account;
use crate::admission::Refused;
use crate::balance::ANY;
use crate::flow::connect_failed;
use crate::gateway::{Connection, OnePass, pass_on};
use crate::origin::{Dial, Dialled, Origin};
use crate::relay::{Early, Rules, relay};
use crate::worker::Local;

/// How the connection ended.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    tcp: &TcpProxy,
    connection: Connection,
    account: &mut Account,
) -> Refused {
    let name = tcp.clusters.choose(fastrand::u64(..));
    let Some(cluster) = connection.tables.cluster(name) else {
        return (
            CloseReason::ConnectFailed,
            Some(format!("no cluster `{name}`")),
        );
    };
    let Some(_held) = cluster.hold(Resource::Connection) else {
        let detail = format!("cluster `{name}` has as many connections as it may have");
        return (CloseReason::Limit, Some(detail));
    };
    let snapshot = Arc::clone(&connection.snapshot);
    let dial = Dial {
        local,
        snapshot: &snapshot,
        origin: connection.origin,
        by_tcp: true,
    };
    let mut refused = (
        CloseReason::ConnectFailed,
        Some(format!("cluster `{name}` has no endpoint")),
    );
    let mut upstream = None;
    for _ in 0..tcp.max_connect_attempts {
        let chosen = local.balance.choose(cluster, ANY, connection.original);
        let Some(endpoint) = chosen.map(|chosen| chosen.addr) else {
            break;
        };
        if let Err(error) = dial.judge(endpoint) {
            refused = connect_failed(&error, endpoint, account);
            continue;
        }
        let from = connection.direct_from;
        if let Some(pass) = OnePass::to(&snapshot, connection.origin, from, endpoint) {
            return pass_on(local, pass, connection, account).await;
        }
        match dial.connect(endpoint, cluster.connect_timeout).await {
            Ok(dialled) => {
                if matches!(connection.origin, Origin::Outbound { .. })
                    && let Some(peer) = snapshot.owner(endpoint.ip())
                {
                    account.peer(peer.name.clone());
                    account.count_at_peer(peer);
                }
                account.upstream(endpoint, dialled.stream.local_addr().ok());
                upstream = Some(dialled);
                break;
            }
            Err(error) => refused = connect_failed(&error, endpoint, account),
        }
    }
    let Some(Dialled {
        stream: upstream,
        held: _held,
    }) = upstream
    else {
        return refused;
    };
    let Connection {
        client,
        read,
        counted,
        ..
    } = connection;
    account.received(DataPath::Copy, (read.len() - counted) as u64);
    let early = Early {
        to_upstream: read.into(),
        ..Early::default()
    };
    let rules = Rules {
        timeouts: Timeouts {
            idle: tcp.idle_timeout,
            ..snapshot.timeouts
        },
        splice_after: snapshot.splice_after,
    };
    let end = relay(client, upstream, early, &local.pools, &rules, None, account).await;
    (end.reason, end.error.map(|error| error.to_string()))
}
