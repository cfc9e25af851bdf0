//! What can be asked, and what comes back. Parsing a request is pure.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use shunt_core::explain::Inquiry;
use shunt_core::flow::Direction;
use shunt_core::tap::TapRequest;
use shunt_core::workload::WorkloadName;
use tokio::sync::mpsc;

/// Told to whoever asks for something that is not there.
pub const ENDPOINTS: &str = "\
GET /ready
GET /server_info
GET /workloads
GET /stats
GET /stats/prometheus
GET /config_dump
GET /listeners
GET /clusters
GET /explain?workload=NAME&destination=ADDR:PORT[&direction=inbound][&from=ADDR]
GET /tap[?workload=NAME][&bytes=N]
POST /logging?level=LEVEL
POST /drain
PUT /workloads/NAMESPACE/NAME
DELETE /workloads/NAMESPACE/NAME
";

/// One request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Ready,
    ServerInfo,
    Workloads,
    Stats,
    Prometheus,
    ConfigDump,
    Listeners,
    Clusters,
    Explain(Inquiry),
    Tap(TapRequest),
    SetLogLevel(String),
    Drain,
    PutWorkload { name: WorkloadName, body: String },
    DeleteWorkload(WorkloadName),
}

impl Call {
    /// Why not everybody on the host may ask this.
    pub(crate) fn only_for_the_owner(&self) -> Option<&'static str> {
        match self {
            Self::Explain(_) => Some("while the agent looks for the answer it serves nobody else"),
            Self::Tap(_) => Some("a tap tells who talks with whom, and what they say"),
            _ => None,
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Whole(Bytes),
    /// Told as it comes, until whoever sends has nothing more. It closes when the client has gone.
    Live(mpsc::Receiver<Bytes>),
}

impl Answer {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self {
            status,
            content_type,
            body: Body::Whole(Bytes::from(body.into())),
        }
    }

    /// Lines of JSON.
    pub fn live(lines: mpsc::Receiver<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/x-ndjson",
            body: Body::Live(lines),
        }
    }

    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json",
                body: Body::Whole(Bytes::from(body)),
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// Understands a request, or says what is wrong with it.
pub(crate) fn parse(
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: String,
) -> Result<Call, Answer> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let call = match (method.as_str(), segments.as_slice()) {
        ("GET", [""]) => return Err(Answer::text(StatusCode::OK, ENDPOINTS)),
        ("GET", ["ready"]) => Call::Ready,
        ("GET", ["server_info"]) => Call::ServerInfo,
        ("GET", ["workloads"]) => Call::Workloads,
        ("GET", ["stats"]) => Call::Stats,
        ("GET", ["stats", "prometheus"]) => Call::Prometheus,
        ("GET", ["config_dump"]) => Call::ConfigDump,
        ("GET", ["listeners"]) => Call::Listeners,
        ("GET", ["clusters"]) => Call::Clusters,
        ("GET", ["explain"]) => Call::Explain(inquiry(query)?),
        ("GET", ["tap"]) => Call::Tap(tap(query)?),
        ("POST", ["logging"]) => match parameter(query, "level") {
            Some(level) if !level.is_empty() => Call::SetLogLevel(level),
            _ => return Err(wrong("say ?level=LEVEL")),
        },
        ("POST", ["drain"]) => Call::Drain,
        ("PUT", ["workloads", namespace, name]) => Call::PutWorkload {
            name: workload(namespace, name),
            body,
        },
        ("DELETE", ["workloads", namespace, name]) => {
            Call::DeleteWorkload(workload(namespace, name))
        }
        _ => {
            let text = format!("no {method} {path}; there are\n{ENDPOINTS}");
            return Err(Answer::text(StatusCode::NOT_FOUND, text));
        }
    };
    Ok(call)
}

fn inquiry(query: Option<&str>) -> Result<Inquiry, Answer> {
    let workload = parameter(query, "workload").unwrap_or_default();
    if workload.is_empty() {
        return Err(wrong("say ?workload=NAME&destination=ADDR:PORT"));
    }
    let destination: SocketAddr = parameter(query, "destination")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong("destination is not ADDR:PORT, as 10.0.0.1:80 or [fd00::1]:80"))?;
    let direction = match parameter(query, "direction").as_deref() {
        None | Some("outbound") => Direction::Outbound,
        Some("inbound") => Direction::Inbound,
        Some(_) => return Err(wrong("direction is outbound or inbound")),
    };
    let from: Option<IpAddr> = match parameter(query, "from") {
        Some(text) => Some(text.parse().map_err(|_| wrong("from is not an address"))?),
        None => None,
    };
    let client = match direction {
        Direction::Outbound => None,
        Direction::Inbound => Some(from.unwrap_or_else(|| Inquiry::somebody(destination))),
    };
    Ok(Inquiry {
        workload,
        direction,
        destination,
        client,
    })
}

fn tap(query: Option<&str>) -> Result<TapRequest, Answer> {
    let workload = parameter(query, "workload").filter(|name| !name.is_empty());
    let bytes = match parameter(query, "bytes").map(|text| text.parse()) {
        None => None,
        Some(Ok(bytes)) if (1..=TapRequest::MOST_BYTES).contains(&bytes) => Some(bytes),
        Some(_) => return Err(wrong("bytes is a number from 1 to 65536")),
    };
    Ok(TapRequest { workload, bytes })
}

fn wrong(text: &str) -> Answer {
    Answer::text(StatusCode::BAD_REQUEST, format!("{text}\n"))
}

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map(|(_, value)| percent_decoded(value))
}

/// As far as it is right; anything else stays as it stands, and is refused where its meaning is known.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn workload(namespace: &str, name: &str) -> WorkloadName {
    WorkloadName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, path: &str, query: Option<&str>) -> Result<Call, StatusCode> {
        parse(&method, path, query, String::new()).map_err(|answer| answer.status)
    }

    #[test]
    fn a_level_may_be_percent_encoded() {
        let cases = [
            ("info%2cshunt_proxy%3Ddebug", "info,shunt_proxy=debug"),
            ("50%", "50%"),
            ("%+1%zz%€", "%+1%zz%€"),
        ];
        for (text, expected) in cases {
            assert_eq!(percent_decoded(text), expected);
        }
    }

    #[test]
    fn requests_are_understood() {
        assert_eq!(ask(Method::GET, "/ready", None), Ok(Call::Ready));
        assert_eq!(
            ask(Method::GET, "/stats/prometheus", None),
            Ok(Call::Prometheus)
        );
        assert_eq!(
            ask(Method::POST, "/ready", None),
            Err(StatusCode::NOT_FOUND)
        );
        assert_eq!(
            ask(Method::GET, "/cluster", None),
            Err(StatusCode::NOT_FOUND)
        );
        assert_eq!(
            ask(Method::POST, "/logging", None),
            Err(StatusCode::BAD_REQUEST)
        );
        let query = "workload=default%2Fweb&destination=%5Bfd00::1%5D:80&direction=inbound";
        let inquiry = Inquiry {
            workload: "default/web".into(),
            direction: Direction::Inbound,
            destination: "[fd00::1]:80".parse().expect("an address"),
            client: Some("2001:db8::1".parse().expect("an address")),
        };
        assert_eq!(
            ask(Method::GET, "/explain", Some(query)),
            Ok(Call::Explain(inquiry))
        );
        for faulty in [
            None,
            Some("workload=web"),
            Some("destination=10.0.0.1:80"),
            Some("workload=web&destination=10.0.0.1"),
            Some("workload=web&destination=10.0.0.1:80&direction=up"),
            Some("workload=web&destination=10.0.0.1:80&direction=inbound&from=me"),
        ] {
            let answer = ask(Method::GET, "/explain", faulty);
            assert_eq!(answer, Err(StatusCode::BAD_REQUEST), "{faulty:?}");
        }
        let tap = |workload: Option<&str>, bytes| {
            let workload = workload.map(str::to_owned);
            Ok(Call::Tap(TapRequest { workload, bytes }))
        };
        for (query, request) in [
            (None, tap(None, None)),
            (Some("workload=a%2Fb"), tap(Some("a/b"), None)),
            (Some("bytes=65536&workload="), tap(None, Some(65536))),
            (Some("bytes=0"), Err(StatusCode::BAD_REQUEST)),
            (Some("bytes=65537"), Err(StatusCode::BAD_REQUEST)),
        ] {
            assert_eq!(ask(Method::GET, "/tap", query), request, "{query:?}");
        }
        let level = Call::SetLogLevel("debug".into());
        assert_eq!(
            ask(Method::POST, "/logging", Some("level=debug")),
            Ok(level)
        );
        let name = WorkloadName {
            namespace: "default".into(),
            name: "web".into(),
        };
        assert_eq!(
            ask(Method::DELETE, "/workloads/default/web", None),
            Ok(Call::DeleteWorkload(name))
        );
    }
}
