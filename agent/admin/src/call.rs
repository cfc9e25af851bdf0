//! What can be asked, and what comes back. Parsing a request is pure.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use shunt_core::explain::Inquiry;
use shunt_core::flow::Direction;
use shunt_core::tap::TapRequest;
use shunt_core::workload::WorkloadName;
use tokio::sync::mpsc;

use crate::query::{DumpQuery, Shape, StatsQuery, parameter, shape};

/// Told to whoever asks for help, or for something that is not there.
pub const ENDPOINTS: &str = "\
GET /help
GET /ready
GET /server_info
GET /workloads
GET /stats[?filter=REGEX][&usedonly][&format=text|json|prometheus]
GET /stats/prometheus[?filter=REGEX][&usedonly]
GET /config_dump[?resource=LIST][&mask=FIELD,..][&name_regex=REGEX][&include_eds]
GET /listeners[?format=text|json]
GET /clusters[?format=text|json]
GET /explain?workload=NAME&destination=ADDR:PORT[&direction=inbound][&from=ADDR]
GET /tap[?workload=NAME][&bytes=N]
POST /logging[?level=LEVEL]
POST /drain
POST /upgrade/data-plane
POST /upgrade/all
PUT /workloads/NAMESPACE/NAME
DELETE /workloads/NAMESPACE/NAME
";

/// One request, understood.
#[derive(Clone, Debug)]
pub enum Call {
    Ready,
    ServerInfo,
    Workloads,
    Stats(StatsQuery),
    ConfigDump(DumpQuery),
    Listeners(Shape),
    Clusters(Shape),
    Explain(Inquiry),
    Tap(TapRequest),
    LogLevel,
    SetLogLevel(String),
    Drain,
    UpgradeDataPlane,
    UpgradeAgent,
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
        ("GET", ["" | "help"]) => return Err(Answer::text(StatusCode::OK, ENDPOINTS)),
        ("GET", ["ready"]) => Call::Ready,
        ("GET", ["server_info"]) => Call::ServerInfo,
        ("GET", ["workloads"]) => Call::Workloads,
        ("GET", ["stats"]) => Call::Stats(understood(StatsQuery::parse(query, Shape::Text))?),
        ("GET", ["stats", "prometheus"]) => {
            Call::Stats(understood(StatsQuery::parse(query, Shape::Prometheus))?)
        }
        ("GET", ["config_dump"]) => Call::ConfigDump(understood(DumpQuery::parse(query))?),
        ("GET", ["listeners"]) => Call::Listeners(understood(shape(query))?),
        ("GET", ["clusters"]) => Call::Clusters(understood(shape(query))?),
        ("GET", ["explain"]) => Call::Explain(inquiry(query)?),
        ("GET", ["tap"]) => Call::Tap(tap(query)?),
        ("POST", ["logging"]) => match parameter(query, "level") {
            Some(level) if !level.is_empty() => Call::SetLogLevel(level),
            _ if query.is_none_or(str::is_empty) => Call::LogLevel,
            _ => return Err(wrong("say ?level=LEVEL")),
        },
        ("POST", ["drain"]) => Call::Drain,
        ("POST", ["upgrade", "data-plane"]) => Call::UpgradeDataPlane,
        ("POST", ["upgrade", "all"]) => Call::UpgradeAgent,
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

fn understood<T>(parsed: Result<T, String>) -> Result<T, Answer> {
    parsed.map_err(|text| wrong(&text))
}

fn wrong(text: &str) -> Answer {
    Answer::text(StatusCode::BAD_REQUEST, format!("{text}\n"))
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

    fn ask(method: Method, path: &str, query: Option<&str>) -> Result<String, StatusCode> {
        let call = parse(&method, path, query, String::new());
        call.map(said).map_err(|answer| answer.status)
    }

    fn said(call: Call) -> String {
        format!("{call:?}")
    }

    #[test]
    fn requests_are_understood() {
        assert_eq!(ask(Method::GET, "/ready", None), Ok(said(Call::Ready)));
        let prometheus = StatsQuery {
            shape: Shape::Prometheus,
            ..StatsQuery::default()
        };
        assert_eq!(
            ask(Method::GET, "/stats/prometheus", None),
            Ok(said(Call::Stats(prometheus)))
        );
        assert_eq!(
            ask(Method::GET, "/listeners", Some("format=json")),
            Ok(said(Call::Listeners(Shape::Json)))
        );
        assert_eq!(
            ask(Method::GET, "/stats", Some("filter=%28")),
            Err(StatusCode::BAD_REQUEST)
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
            Ok(said(Call::LogLevel))
        );
        assert_eq!(
            ask(Method::POST, "/logging", Some("levle=info")),
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
            Ok(said(Call::Explain(inquiry)))
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
            Ok(said(Call::Tap(TapRequest { workload, bytes })))
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
            Ok(said(level))
        );
        let name = WorkloadName {
            namespace: "default".into(),
            name: "web".into(),
        };
        assert_eq!(
            ask(Method::DELETE, "/workloads/default/web", None),
            Ok(said(Call::DeleteWorkload(name)))
        );
    }
}
