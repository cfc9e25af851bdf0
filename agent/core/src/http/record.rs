//! What the access log says of a request.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::workload::WorkloadName;

/// Of one request, told when its response has ended or was broken off. Texts of the client's are cut to
/// [`RequestRecord::LONGEST`] bytes.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    pub started: SystemTime,
    /// In whose name it was served.
    pub workload: WorkloadName,
    pub client: SocketAddr,
    pub listener: SocketAddr,
    pub method: String,
    /// As the client said it, with the query.
    pub path: String,
    pub authority: String,
    pub protocol: &'static str,
    /// `None`: no response had begun.
    pub status: Option<u16>,
    /// Envoy's; none is empty.
    pub flags: &'static str,
    /// Envoy's words for where the response comes from.
    pub details: &'static str,
    /// Of the body.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration: Duration,
    /// From the request's end to the beginning of the upstream's response.
    pub upstream_time: Option<Duration>,
    pub upstream: Option<SocketAddr>,
    pub cluster: Option<String>,
    pub route: String,
    pub request_id: String,
    pub user_agent: String,
    pub forwarded_for: String,
}

impl RequestRecord {
    /// Bytes of each text that a client chooses.
    pub const LONGEST: usize = 1024;
}
