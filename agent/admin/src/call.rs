//! What can be asked, and what comes back. Parsing a request is pure.

use bytes::Bytes;
use hyper::{Method, StatusCode};
use shunt_core::workload::WorkloadName;

/// Told to whoever asks for something that is not there.
pub const ENDPOINTS: &str = "\
GET /ready
GET /server_info
GET /workloads
GET /stats
GET /stats/prometheus
GET /config_dump
GET /listeners
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
    SetLogLevel(String),
    Drain,
    PutWorkload { name: WorkloadName, body: String },
    DeleteWorkload(WorkloadName),
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Answer {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self {
            status,
            content_type,
            body: Bytes::from(body.into()),
        }
    }

    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json",
                body: Bytes::from(body),
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
        ("POST", ["logging"]) => {
            let level = query
                .unwrap_or_default()
                .split('&')
                .find_map(|pair| pair.strip_prefix("level="));
            match level {
                Some(level) if !level.is_empty() => Call::SetLogLevel(percent_decoded(level)),
                _ => return Err(Answer::text(StatusCode::BAD_REQUEST, "say ?level=LEVEL\n")),
            }
        }
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
            ask(Method::GET, "/clusters", None),
            Err(StatusCode::NOT_FOUND)
        );
        assert_eq!(
            ask(Method::POST, "/logging", None),
            Err(StatusCode::BAD_REQUEST)
        );
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
