//! Listeners and filter chains.

use std::time::Duration;

use shunt_core::cluster::Weighted;
use shunt_core::flow::Direction;
use shunt_core::listener::{
    ChainMatch, FilterChain, Inspect, Listener, NetworkFilter, ProxyProtocol, Serves, SourceType,
    TcpProxy,
};

use super::values::{address, networks, plain_transport};
use super::{http, unique};
use crate::reader::Reader;

/// Envoy's.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's.
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn listener(reader: &Reader<'_>) -> Option<Listener> {
    let addr = address(reader, "address");
    let mut name = reader.text("name");
    if let (true, Some(addr)) = (name.is_empty(), addr) {
        name = addr.to_string();
    }
    let readers = reader.list("filter_chains");
    let chains: Vec<_> = readers.iter().filter_map(chain).collect();
    unique(&readers, |chain| chain.text("name"), "name");
    for (at, chain) in chains.iter().enumerate() {
        if chains[..at]
            .iter()
            .any(|other| other.matches == chain.matches)
            && chains.len() == readers.len()
        {
            readers[at].fault("filter_chain_match", "another chain has the same");
        }
    }
    let default_chain = reader.message("default_filter_chain");
    let default_chain = default_chain.map(|chain| self::chain(&chain));
    if readers.is_empty() && default_chain.is_none() {
        reader.fault("filter_chains", "is required");
    }
    let filters = Filters::read(reader);
    let mut inspect = filters.inspect;
    // As Envoy does where a chain asks for it and no filter says it.
    inspect.tls |= chains.iter().any(|chain| {
        let matches = &chain.matches;
        let says_nothing = matches.transport_protocol.is_empty();
        !matches.server_names.is_empty()
            || matches.transport_protocol == "tls"
            || says_nothing && !matches.application_protocols.is_empty()
    });
    let timeout = reader.duration("listener_filters_timeout");
    Some(Listener {
        name,
        addr: addr?,
        serves: serves(reader, filters.original_dst),
        chains,
        default_chain: default_chain.flatten(),
        inspect,
        proxy_protocol: filters.proxy_protocol,
        inspect_timeout: timeout.unwrap_or(INSPECT_TIMEOUT),
        continue_on_timeout: reader.is("continue_on_listener_filters_timeout"),
    })
}

/// Istio's virtual listeners have an address too, to which its rules steer; here nothing is bound for them.
fn serves(reader: &Reader<'_>, has_original_dst: bool) -> Serves {
    let is_bound = reader.bool("bind_to_port").unwrap_or(true);
    let takes_rest =
        reader.bool("use_original_dst").unwrap_or(false) || is_bound && has_original_dst;
    let direction = match reader.choice("traffic_direction").as_str() {
        "OUTBOUND" => Some(Direction::Outbound),
        "INBOUND" => Some(Direction::Inbound),
        _ => None,
    };
    match (direction, takes_rest, is_bound) {
        (_, false, true) => Serves::Bound,
        (Some(direction), true, _) => Serves::Rest(direction),
        (Some(direction), false, false) => Serves::Captured(direction),
        (None, ..) => {
            let why = "must be OUTBOUND or INBOUND: the listener serves captured connections of workloads";
            reader.fault("traffic_direction", why);
            Serves::Bound
        }
    }
}

/// Listener filters.
#[derive(Default)]
struct Filters {
    inspect: Inspect,
    proxy_protocol: Option<ProxyProtocol>,
    original_dst: bool,
}

impl Filters {
    fn read(reader: &Reader<'_>) -> Self {
        let mut filters = Self::default();
        for filter in reader.list("listener_filters") {
            let inner = filter.message("typed_config");
            let inner = inner.and_then(|any| any.unpacked());
            let name = inner.as_ref().map(|inner| inner.type_name());
            match name.unwrap_or_default().rsplit('.').next() {
                Some("TlsInspector") => filters.inspect.tls = true,
                Some("HttpInspector") => filters.inspect.http = true,
                Some("OriginalDst") => filters.original_dst = true,
                Some("ProxyProtocol") => {
                    if filters.inspect != Inspect::default() {
                        filter.fault("", "must come before the inspectors: they look at what follows its header");
                    }
                    filters.proxy_protocol = Some(ProxyProtocol {
                        is_optional: inner
                            .is_some_and(|inner| inner.is("allow_requests_without_proxy_protocol")),
                    });
                }
                _ => filter.fault(
                    "typed_config",
                    "only original_dst, proxy_protocol, tls_inspector and http_inspector are supported",
                ),
            }
        }
        filters
    }
}

fn chain(reader: &Reader<'_>) -> Option<FilterChain> {
    plain_transport(reader);
    let matches = reader.message("filter_chain_match");
    let matches = matches.map_or_else(ChainMatch::default, |matches| chain_match(&matches));
    let filters = reader.list("filters");
    if filters.len() > 1 {
        filters[1].fault(
            "",
            "a chain has one filter: tcp_proxy or http_connection_manager",
        );
    }
    let Some(first) = filters.first() else {
        reader.fault("filters", "is required");
        return None;
    };
    Some(FilterChain {
        name: reader.text("name"),
        matches,
        filter: filter(first)?,
    })
}

fn chain_match(reader: &Reader<'_>) -> ChainMatch {
    let port = reader.u32("destination_port").map(|port| {
        u16::try_from(port).unwrap_or_else(|_| {
            reader.fault("destination_port", format!("{port} is no port"));
            0
        })
    });
    let names = reader.texts("server_names");
    for name in &names {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') {
            let message = format!("`{name}` is neither a name nor `*.` and a name");
            reader.fault("server_names", message);
        }
    }
    let transport = reader.text("transport_protocol");
    if !matches!(transport.as_str(), "" | "tls" | "raw_buffer") {
        let message = format!("`{transport}` is not known (tls, raw_buffer)");
        reader.fault("transport_protocol", message);
    }
    let ports = reader.numbers("source_ports");
    ChainMatch {
        destination_port: port,
        destinations: networks(reader, "prefix_ranges"),
        server_names: names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        transport_protocol: transport,
        application_protocols: reader.texts("application_protocols"),
        direct_sources: networks(reader, "direct_source_prefix_ranges"),
        source_type: match reader.choice("source_type").as_str() {
            "SAME_IP_OR_LOOPBACK" => SourceType::Local,
            "EXTERNAL" => SourceType::External,
            _ => SourceType::Any,
        },
        sources: networks(reader, "source_prefix_ranges"),
        source_ports: ports
            .into_iter()
            .filter_map(|port| {
                let port = u16::try_from(port).ok().filter(|port| *port > 0);
                if port.is_none() {
                    reader.fault("source_ports", "a port is from 1 to 65535");
                }
                port
            })
            .collect(),
    }
}

fn filter(reader: &Reader<'_>) -> Option<NetworkFilter> {
    let any = reader.required("typed_config", reader.message("typed_config"))?;
    let inner = any.unpacked()?;
    match inner.type_name().rsplit('.').next() {
        Some("TcpProxy") => Some(NetworkFilter::Tcp(tcp_proxy(&inner)?)),
        Some("HttpConnectionManager") => {
            http::manager(&inner).map(Box::new).map(NetworkFilter::Http)
        }
        _ => {
            any.fault(
                "",
                "only tcp_proxy and http_connection_manager are supported",
            );
            None
        }
    }
}

fn tcp_proxy(reader: &Reader<'_>) -> Option<TcpProxy> {
    let attempts = reader.u32("max_connect_attempts");
    if attempts == Some(0) {
        reader.fault("max_connect_attempts", "must be at least 1");
    }
    let clusters = match reader.message("weighted_clusters") {
        Some(weighted) => {
            let choices = weighted.list("clusters");
            let choices = choices.iter().map(|choice| {
                (
                    choice.u32("weight").unwrap_or_default(),
                    choice.text("name"),
                )
            });
            let clusters = Weighted::new(choices.collect());
            if clusters.is_none() {
                weighted.fault(
                    "clusters",
                    "the sum of the weights must be from 1 to 4294967295",
                );
            }
            clusters?
        }
        None => {
            let name = reader.text("cluster");
            if name.is_empty() {
                reader.fault("cluster", "is required");
            }
            Weighted::only(name)
        }
    };
    Some(TcpProxy {
        clusters,
        idle_timeout: reader.duration("idle_timeout").unwrap_or(TCP_IDLE_TIMEOUT),
        max_connect_attempts: attempts.unwrap_or(1),
    })
}
