//! The TCP proxy filter: one connection to an endpoint of a cluster, and bytes both ways.

use shunt_core::cluster::Resource;
use shunt_core::config::Timeouts;
use shunt_core::flow::{CloseReason, DataPath};
use shunt_core::listener::TcpProxy;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::io::AsyncWriteExt;

use crate::account::Account;
use crate::admission::Refused;
use crate::connect;
use crate::flow::connect_failed;
use crate::gateway::Connection;
use crate::relay::{Rules, relay};
use crate::worker::Local;

/// How the connection ended.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    tcp: &TcpProxy,
    connection: Connection,
    account: &mut Account,
) -> Refused {
    let Connection {
        client,
        read,
        snapshot,
        ..
    } = connection;
    let name = tcp.clusters.choose(fastrand::u64(..));
    let Some(cluster) = snapshot.proxy.cluster(name) else {
        return (
            CloseReason::ConnectFailed,
            Some(format!("no cluster `{name}`")),
        );
    };
    let Some(_held) = cluster.hold(Resource::Connection) else {
        let detail = format!("cluster `{name}` has as many connections as it may have");
        return (CloseReason::Limit, Some(detail));
    };
    let mut refused = (
        CloseReason::ConnectFailed,
        Some(format!("cluster `{name}` has no endpoint")),
    );
    let mut upstream = None;
    for _ in 0..tcp.max_connect_attempts {
        let Some(endpoint) = local.balance.choose(cluster) else {
            break;
        };
        let longest = cluster.connect_timeout;
        match connect::from_node(&local.context.supply, endpoint, longest).await {
            Ok(stream) => {
                account.upstream(endpoint, stream.local_addr().ok());
                upstream = Some(stream);
                break;
            }
            Err(error) => refused = connect_failed(&error, endpoint, account),
        }
    }
    let Some(mut upstream) = upstream else {
        return refused;
    };
    if !read.is_empty() {
        if let Err(error) = upstream.write_all(&read).await {
            return (CloseReason::UpstreamReset, Some(error.to_string()));
        }
        account.received(DataPath::Copy, read.len() as u64);
    }
    let rules = Rules {
        timeouts: Timeouts {
            idle: tcp.idle_timeout,
            ..snapshot.timeouts
        },
        splice_after: snapshot.splice_after,
    };
    let end = relay(client, upstream, &local.pools, &rules, None, account).await;
    (end.reason, end.error.map(|error| error.to_string()))
}
