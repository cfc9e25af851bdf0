//! What is sent, and what the upstream does about it.

mod chains;
mod edges;
mod faults;
mod filters;
mod framing;
mod hostile;
mod subsets;
mod tunnels;
mod upstreams;

use std::net::SocketAddr;

/// `\n` is CR LF on the wire.
#[derive(Clone, Debug, Default)]
pub enum Upstream {
    Says(String),
    SaysAndCloses(String),
    /// One after the other, and the last again and again.
    InTurn(Vec<String>),
    /// At which of its addresses it was asked.
    SaysWhere,
    /// One after the other, with a pause behind each, as soon as the request's head is there.
    IsEarly(Vec<String>),
    #[default]
    IsSilent,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub listener: &'static str,
    /// Where the client's connection is from; port 0: any.
    pub from: Option<SocketAddr>,
    /// Sent before the rest.
    pub first: Vec<u8>,
    pub send: String,
    /// Responses that are waited for.
    pub responses: usize,
    pub upstream: Upstream,
    /// Sent after the first response.
    pub then: String,
    /// And half a second later.
    pub is_late: bool,
    /// The client sends its end when the upstream has its request.
    pub ends: bool,
}

const OK: &str = "HTTP/1.1 200 OK\ncontent-length: 2\nx-up: yes\nx-secret: s\nserver: origin\n\nok";

const OWN: &str = "x-envoy-decorator-operation: 1\nx-envoy-downstream-service-cluster: 1\nx-envoy-downstream-service-node: 1\n\
    x-envoy-expected-rq-timeout-ms: 1\nx-envoy-force-trace: 1\nx-envoy-hedge-on-per-try-timeout: 1\nx-envoy-ip-tags: 1\n\
    x-envoy-is-timeout-retry: 1\nx-envoy-original-path: 1\nx-envoy-original-host: 1\nx-envoy-retriable-header-names: 1\n\
    x-envoy-retriable-status-codes: 1\nx-envoy-retry-grpc-on: 1\nx-envoy-upstream-alt-stat-name: 1\nx-envoy-attempt-count: 1\n\
    x-envoy-upstream-rq-per-try-timeout-ms: 1\nx-envoy-upstream-rq-timeout-alt-response: 1\nx-envoy-external-address: 1\n\
    x-envoy-peer-metadata: 1\nx-envoy-original-url: 1\nx-envoy-original-dst-host: 1\nx-envoy-nothing: 1\n";

fn case(name: &'static str, send: impl Into<String>) -> Case {
    Case {
        name,
        listener: "MAIN",
        from: None,
        first: Vec::new(),
        send: send.into(),
        responses: 1,
        upstream: Upstream::Says(OK.to_owned()),
        then: String::new(),
        is_late: false,
        ends: false,
    }
}

fn get(name: &'static str, host: &str, path: &str, headers: &str) -> Case {
    case(
        name,
        format!("GET {path} HTTP/1.1\nhost: {host}\n{headers}\n"),
    )
}

impl Case {
    fn on(self, listener: &'static str) -> Self {
        Self { listener, ..self }
    }

    fn answers(self, responses: usize) -> Self {
        Self { responses, ..self }
    }

    fn upstream(self, text: &str) -> Self {
        let upstream = Upstream::Says(text.to_owned());
        Self { upstream, ..self }
    }

    fn upstream_closes(self, text: &str) -> Self {
        let upstream = Upstream::SaysAndCloses(text.to_owned());
        Self { upstream, ..self }
    }

    fn upstream_in_turn(self, texts: &[&str]) -> Self {
        let upstream = Upstream::InTurn(texts.iter().map(|text| (*text).to_owned()).collect());
        Self { upstream, ..self }
    }

    fn upstream_is_early(self, texts: &[&str]) -> Self {
        let upstream = Upstream::IsEarly(texts.iter().map(|text| (*text).to_owned()).collect());
        Self { upstream, ..self }
    }

    fn then(self, text: &str) -> Self {
        let then = text.to_owned();
        Self { then, ..self }
    }

    fn late(self) -> Self {
        Self {
            is_late: true,
            ..self
        }
    }

    fn ends(self) -> Self {
        Self { ends: true, ..self }
    }

    fn upstream_is_silent(self) -> Self {
        let upstream = Upstream::IsSilent;
        Self { upstream, ..self }
    }
}

pub fn all() -> Vec<Case> {
    [
        hosts(),
        paths(),
        redirects(),
        headers(),
        framing::all(),
        faults::all(),
        edges::http(),
        edges::normalized(),
        edges::tcp(),
        chains::all(),
        filters::all(),
        hostile::all(),
        upstreams::all(),
        subsets::all(),
        tunnels::upgrades(),
        tunnels::connects(),
        tunnels::beside(),
    ]
    .concat()
}

fn hosts() -> Vec<Case> {
    vec![
        get("host: exact", "exact.example", "/", ""),
        get("host: in capitals", "EXACT.Example", "/", ""),
        get("host: exact with a port", "exact.example:8080", "/", ""),
        get("host: exact with another port", "exact.example:81", "/", ""),
        get("host: suffix", "a.example", "/", ""),
        get("host: longer suffix", "a.long.example", "/", ""),
        get("host: nothing before the suffix", ".example", "/text", ""),
        get("host: prefix", "prefix.com", "/", ""),
        get("host: any", "else.test", "/text", ""),
        get("host: no route in it", "nothing.test", "/", ""),
        get("host: TLS is required", "tls.test", "/a?b=c", ""),
        get(
            "host: TLS is required and was used",
            "tls.test",
            "/",
            "x-forwarded-proto: https\n",
        ),
        case(
            "host: in the target",
            "GET http://exact.example/ HTTP/1.1\nhost: other\n\n",
        ),
    ]
}

fn paths() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("path: exact", all, "/text", ""),
        get("path: exact with a query", all, "/text?a=/b", ""),
        get("path: longer than exact", all, "/text/", ""),
        get("path: any case", all, "/cASE", ""),
        get("path: regex", all, "/re/12?x", ""),
        get("path: regex must match whole", all, "/re/12a", ""),
        get("path: separated prefix", all, "/sep/a", ""),
        get("path: separated prefix alone", all, "/sep?a", ""),
        get("path: not separated", all, "/separate", ""),
        get("header: exact", all, "/h", "x-v: 2\n"),
        get("header: two of a name", all, "/h", "x-v: 2\nx-v: 3\n"),
        get(
            "header: two of a name, the second fits",
            all,
            "/h",
            "x-v: 3\nx-v: 2\n",
        ),
        get("header: two values in one line", all, "/h", "x-v: 2,3\n"),
        get("header: prefix in any case", all, "/h", "x-v: PREFIX\n"),
        get("header: in range", all, "/h", "x-n: 19\n"),
        get("header: out of range", all, "/h", "x-n: 20\n"),
        get("header: present", all, "/h", "x-p:\n"),
        get("header: inverted", all, "/h", "x-i: yes\n"),
        get(
            "header: inverted, two of a name",
            all,
            "/h",
            "x-i: no\nx-i: yes\n",
        ),
        get("header: inverted and equal", all, "/h", "x-i: no\n"),
        case(
            "header: method",
            "PUT /h HTTP/1.1\nhost: all.test\ncontent-length: 0\n\n",
        ),
        get("header: none", all, "/h", ""),
        get("query: exact", all, "/q?b=2&a=1", ""),
        get("query: the first counts", all, "/q?a=2&a=1", ""),
        get("query: present", all, "/q?b", ""),
        get("query: none", all, "/q", ""),
    ]
}

fn redirects() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("redirect: https", all, "/to-https?a=b", ""),
        get(
            "redirect: https from port 80",
            "all.test:80",
            "/to-https",
            "",
        ),
        get(
            "redirect: https from port 81",
            "all.test:81",
            "/to-https",
            "",
        ),
        get("redirect: host and port", all, "/to-host/a?b", ""),
        get("redirect: path", all, "/to-path?a", ""),
        get("redirect: prefix", all, "/to-prefix/a?b", ""),
        get("direct: no content", all, "/empty", ""),
        get("direct: bytes", all, "/teapot", ""),
        case("direct: HEAD", "HEAD /text HTTP/1.1\nhost: all.test\n\n"),
        case(
            "direct: with a body that is there",
            "POST /text HTTP/1.1\nhost: all.test\ncontent-length: 2\n\nab",
        ),
    ]
}

fn headers() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("forward: plain", all, "/up?a=b", ""),
        get(
            "forward: named by connection",
            all,
            "/up",
            "connection: x-hop\nx-hop: 1\nx-stays: 1\n",
        ),
        case(
            "forward: a GET with chunks",
            "GET /up HTTP/1.1\nhost: all.test\ntransfer-encoding: chunked\n\n2\nab\n0\n\n",
        ),
        get(
            "redirect: as the client came",
            all,
            "/to-host/a?b",
            "x-forwarded-proto: https\n",
        ),
        get(
            "forward: what clients say",
            all,
            "/up",
            "user-agent: me\naccept: a\naccept: b\nX-Upper: Yes\ncookie: a=b\n",
        ),
        get(
            "forward: lines of a name",
            all,
            "/up",
            "user-agent: a\nuser-agent: b\ncookie: a=1\ncookie: b=2\nx-forwarded-for: 1\nx-forwarded-for: 2\naccept-encoding: a\naccept-encoding: b\nvia: a\nvia: b\ncontent-type: a\ncontent-type: b\nauthorization: a\nauthorization: b\nx-a: 1\nx-a: 2\nx-request-id: a\nx-request-id: b\ncache-control: a\ncache-control: b\norigin: a\norigin: b\n",
        ),
        get("forward: all of envoy's own", all, "/up", OWN),
        get(
            "forward: prefix and host rewritten",
            all,
            "/rewrite/a?b",
            "",
        ),
        get(
            "forward: regex and host from a header",
            all,
            "/regex-rewrite/a/b?c",
            "x-new-host: new.test\n",
        ),
        get(
            "forward: no host in the header",
            all,
            "/regex-rewrite/a/b/c",
            "",
        ),
        get(
            "forward: headers changed",
            all,
            "/mutated",
            "x-gone: 1\nx-user: alice-b\nx-over: old\nx-absent: old\nx-if: old\nx-both: client\n",
        ),
        get(
            "forward: whom it is from",
            all,
            "/mutated",
            "user-agent: me\nx-client-port: ?\nx-forwarded-for: 10.9.9.9, 10.8.8.8\n",
        ),
        get(
            "forward: whom it is from, in two lines",
            all,
            "/mutated",
            "user-agent: me\nx-forwarded-for: 10.9.9.9\nx-forwarded-for: fd00::8\n",
        ),
        get(
            "forward: from nobody",
            all,
            "/mutated",
            "user-agent: me\nx-forwarded-for: 10.9.9.9, unknown\n",
        ),
        get(
            "forward: from somebody's port",
            all,
            "/mutated",
            "user-agent: me\nx-forwarded-for: 10.9.9.9:80\n",
        ),
        get(
            "forward: headers added",
            all,
            "/mutated",
            "user-agent: longer\n",
        ),
        get(
            "forward: hop by hop",
            all,
            "/up",
            "connection: keep-alive\nkeep-alive: 5\nproxy-connection: x\nte: gzip, trailers\n",
        ),
        get("forward: te without trailers", all, "/up", "te: gzip\n"),
        get(
            "forward: an id of the client's",
            all,
            "/up",
            "x-request-id: mine\n",
        ),
        get(
            "forward: said to be forwarded",
            all,
            "/up",
            "x-forwarded-for: 1.2.3.4\nx-forwarded-proto: https\n",
        ),
        get(
            "forward: envoy's own from a client",
            all,
            "/up",
            "x-envoy-internal: true\nx-envoy-max-retries: 3\nx-envoy-original-path: /x\n",
        ),
        get("forward: by header", all, "/by-header", "x-cluster: one\n"),
        get(
            "forward: by header, no such cluster",
            all,
            "/by-header",
            "x-cluster: two\n",
        ),
        get("forward: by header, none", all, "/by-header", ""),
    ]
}
