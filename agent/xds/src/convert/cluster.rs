//! Clusters.

use std::time::Duration;

use shunt_core::cluster::subsets::Metadata;
use shunt_core::cluster::{
    Balance, Cluster, ClusterLimits, Endpoint, Health, InUse, Member, ToOriginal,
};
use shunt_core::statistics::PerWorker;

use super::sources;
use super::subsets::{metadata, subsets};
use super::values::{address, plain_transport};
use crate::files::Kind;
use crate::reader::Reader;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Fewer healthy endpoints than this many in a hundred: all are used, as if they were.
const PANIC_THRESHOLD: usize = 50;
const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// An endpoint as it is said.
pub(super) struct Found {
    member: Member,
    pub(super) metadata: Metadata,
}

impl Found {
    fn is_healthy(&self) -> bool {
        self.member.health == Health::Healthy
    }
}

pub(super) fn cluster(reader: &Reader<'_>) -> Option<Cluster> {
    let name = reader.text("name");
    if name.is_empty() {
        reader.fault("name", "is required");
    }
    let mut to_original = None;
    let found = match reader.choice("type").as_str() {
        "STATIC" => {
            if reader.has("eds_cluster_config") {
                reader.fault("eds_cluster_config", "is for clusters of type EDS");
            }
            let assignment = reader.message("load_assignment");
            assignment.map(|assignment| endpoints(&assignment))
        }
        "EDS" => by_eds(reader, &name),
        "ORIGINAL_DST" => {
            to_original = Some(self::to_original(reader));
            None
        }
        _ => {
            reader.fault("type", "only STATIC, EDS and ORIGINAL_DST are supported");
            None
        }
    };
    let is_provided = to_original.is_some();
    let balance = match reader.choice("lb_policy").as_str() {
        "ROUND_ROBIN" if !is_provided => Balance::RoundRobin,
        "RANDOM" if !is_provided => Balance::Random,
        "CLUSTER_PROVIDED" if is_provided => Balance::RoundRobin,
        _ if is_provided => {
            let message = "must be CLUSTER_PROVIDED, as the cluster is of type ORIGINAL_DST";
            reader.fault("lb_policy", message);
            Balance::RoundRobin
        }
        other => {
            let message = format!("{other} is not supported (ROUND_ROBIN, RANDOM)");
            reader.fault("lb_policy", message);
            Balance::RoundRobin
        }
    };
    if is_provided && reader.has("lb_subset_config") {
        reader.fault("lb_subset_config", "not for clusters of type ORIGINAL_DST");
    }
    let found = found.unwrap_or_default();
    plain_transport(reader);
    let options = protocol_options(reader);
    let common = match &options {
        Some(options) => options.message("common_http_protocol_options"),
        None => reader.message("common_http_protocol_options"),
    };
    let common = common.as_ref();
    if let Some(common) = common
        && common.has("max_headers_count")
    {
        common.fault("max_headers_count", "not supported for upstreams");
    }
    let idle = common.and_then(|common| common.duration("idle_timeout"));
    let requests = common.and_then(|common| common.u32("max_requests_per_connection"));
    let connect_timeout = reader
        .duration("connect_timeout")
        .unwrap_or(CONNECT_TIMEOUT);
    if connect_timeout.is_zero() {
        reader.fault("connect_timeout", "must be longer than 0s");
    }
    Some(Cluster {
        name,
        endpoints: chosen(found.iter()),
        subsets: subsets(reader, &found),
        members: found.into_iter().map(|found| found.member).collect(),
        balance,
        to_original,
        connect_timeout,
        idle_timeout: Some(idle.unwrap_or(IDLE_TIMEOUT)).filter(|timeout| !timeout.is_zero()),
        max_requests_per_connection: requests
            .or_else(|| reader.u32("max_requests_per_connection"))
            .unwrap_or_default(),
        max_connection_duration: common
            .and_then(|common| common.duration("max_connection_duration"))
            .filter(|longest| !longest.is_zero()),
        trailers: options.is_some_and(|options| {
            let explicit = options.message("explicit_http_config");
            let http1 = explicit
                .as_ref()
                .and_then(|explicit| explicit.message("http_protocol_options"));
            http1.is_some_and(|http1| http1.is("enable_trailers"))
        }),
        limits: limits(reader),
        in_use: InUse::default(),
        counts: PerWorker::default(),
    })
}

fn limits(reader: &Reader<'_>) -> ClusterLimits {
    let mut limits = ClusterLimits::default();
    let breakers = reader.message("circuit_breakers");
    let thresholds = breakers
        .iter()
        .flat_map(|breakers| breakers.list("thresholds"));
    for of_priority in thresholds {
        if of_priority.choice("priority") != "DEFAULT" {
            of_priority.fault("priority", "only DEFAULT is supported");
        }
        for (name, limit) in [
            ("max_connections", &mut limits.connections),
            ("max_pending_requests", &mut limits.pending),
            ("max_requests", &mut limits.requests),
        ] {
            *limit = of_priority.u32(name).unwrap_or(*limit);
        }
    }
    limits
}

/// Of a cluster of type ORIGINAL_DST.
fn to_original(reader: &Reader<'_>) -> ToOriginal {
    /// Envoy's.
    const HEADER: &str = "x-envoy-original-dst-host";
    if reader.has("load_assignment") {
        reader.fault("load_assignment", "not for clusters of type ORIGINAL_DST");
    }
    let mut to = ToOriginal::default();
    let Some(config) = reader.message("original_dst_lb_config") else {
        return to;
    };
    if config.is("use_http_header") {
        let named = config.text("http_header_name").to_ascii_lowercase();
        to.header = Some(
            Some(named)
                .filter(|name| !name.is_empty())
                .unwrap_or(HEADER.to_owned()),
        );
    }
    to.port = config.u32("upstream_port_override").and_then(|port| {
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        if port.is_none() {
            config.fault("upstream_port_override", "a port is from 1 to 65535");
        }
        port
    });
    to
}

fn protocol_options<'a>(reader: &'a Reader<'_>) -> Option<Reader<'a>> {
    let mut found = None;
    for (name, any) in reader.map("typed_extension_protocol_options") {
        let options = any
            .unpacked()
            .filter(|any| any.type_name() == PROTOCOL_OPTIONS);
        match options {
            Some(options) if name == PROTOCOL_OPTIONS => {
                // HTTP/1.1 is what there is. Others are not in the table.
                match options.message("explicit_http_config") {
                    None => options.fault("explicit_http_config", "is required"),
                    Some(explicit) => trailers_at_most(&explicit),
                }
                found = Some(options);
            }
            _ => any.fault("", format!("only {PROTOCOL_OPTIONS} is supported")),
        }
    }
    found
}

/// The message's other fields are those of connection managers.
fn trailers_at_most(explicit: &Reader<'_>) {
    let http1 = explicit.message("http_protocol_options");
    for http1 in http1.iter() {
        let fields = http1.raw().fields().map(|(field, _)| field);
        for field in fields.filter(|field| field.name() != "enable_trailers") {
            http1.fault(field.name(), "not supported for upstreams");
        }
    }
}

/// `None`, as long as no file with them was right: there is no healthy upstream then.
fn by_eds(reader: &Reader<'_>, cluster: &str) -> Option<Vec<Found>> {
    if reader.has("load_assignment") {
        reader.fault("load_assignment", "is for clusters of type STATIC");
    }
    let eds = reader.required("eds_cluster_config", reader.message("eds_cluster_config"))?;
    let source = eds.required("eds_config", eds.message("eds_config"))?;
    let service = eds.text("service_name");
    let name = if service.is_empty() {
        cluster
    } else {
        &service
    };
    let found = sources::read(&source, Kind::Endpoints, name, |readers| {
        sources::only(readers, "cluster_name", name).map(|reader| endpoints(&reader))
    });
    found.flatten()
}

fn endpoints(assignment: &Reader<'_>) -> Vec<Found> {
    if assignment.text("cluster_name").is_empty() {
        assignment.fault("cluster_name", "is required");
    }
    let mut all = Vec::new();
    for locality in assignment.list("endpoints") {
        if locality.u32("priority").unwrap_or_default() != 0 {
            locality.fault("priority", "only 0 is supported");
        }
        for endpoint in locality.list("lb_endpoints") {
            let Some(found) = self::endpoint(&endpoint) else {
                continue;
            };
            let health = endpoint.choice("health_status");
            if health == "DEGRADED" {
                endpoint.fault("health_status", "DEGRADED is not supported");
            }
            all.push(Found {
                member: Member {
                    endpoint: found,
                    health: match health.as_str() {
                        "UNKNOWN" | "HEALTHY" => Health::Healthy,
                        "DRAINING" => Health::Draining,
                        _ => Health::Unhealthy,
                    },
                },
                metadata: metadata(&endpoint, "metadata"),
            });
        }
    }
    let weights = all
        .iter()
        .map(|found| u64::from(found.member.endpoint.weight));
    let total: u64 = weights.sum();
    if total > u64::from(u32::MAX) {
        assignment.fault(
            "endpoints",
            "the sum of the weights is larger than 4294967295",
        );
    }
    all
}

/// Those of a group that are chosen from.
pub(super) fn chosen<'f>(group: impl Iterator<Item = &'f Found> + Clone) -> Vec<Endpoint> {
    let is_healthy = |found: &&Found| found.is_healthy();
    let (all, healthy) = (
        group.clone().count(),
        group.clone().filter(is_healthy).count(),
    );
    let all_are_used = healthy * 100 < all * PANIC_THRESHOLD;
    let used = group.filter(|found| found.is_healthy() || all_are_used);
    used.map(|found| found.member.endpoint.clone()).collect()
}

fn endpoint(reader: &Reader<'_>) -> Option<Endpoint> {
    let weight = reader.u32("load_balancing_weight");
    if weight == Some(0) {
        reader.fault("load_balancing_weight", "must be at least 1");
    }
    let endpoint = reader.required("endpoint", reader.message("endpoint"))?;
    let addr = address(&endpoint, "address")?;
    if addr.port() == 0 {
        endpoint.fault("address", "port 0 cannot be connected to");
    }
    Some(Endpoint {
        addr,
        hostname: endpoint.text("hostname"),
        weight: weight.unwrap_or(1),
    })
}
