//! HTTP filters, local replies, templates.

use super::{Case, case, get};

pub fn all() -> Vec<Case> {
    let filters = [cors(), mutation(), buffer(), health(), templates()].concat();
    let filters = filters.into_iter().map(|case| case.on("FILTERS"));
    let replies = replies().into_iter().map(|case| case.on("REPLIES"));
    filters.chain(replies).collect()
}

fn options(name: &'static str, path: &str, headers: &str) -> Case {
    case(
        name,
        format!("OPTIONS {path} HTTP/1.1\nhost: all.test\n{headers}\n"),
    )
}

const PREFLIGHT: &str = "access-control-request-method: PUT\n";

fn cors() -> Vec<Case> {
    let all = "all.test";
    let preflight =
        |name, path, origin| options(name, path, &format!("origin: {origin}\n{PREFLIGHT}"));
    vec![
        get("cors: allowed", all, "/cors", "origin: https://x.b.test\n"),
        get(
            "cors: not allowed",
            all,
            "/cors",
            "origin: https://a.test\n",
        ),
        get("cors: no origin", all, "/cors", ""),
        preflight("cors: preflight", "/cors", "https://x.b.test"),
        options(
            "cors: preflight of a private network",
            "/cors",
            &format!(
                "origin: https://x.b.test\n{PREFLIGHT}access-control-request-private-network: true\n"
            ),
        ),
        preflight(
            "cors: preflight, the host's policy",
            "/up",
            "https://a.test",
        ),
        preflight("cors: preflight, not allowed", "/up", "https://b.test"),
        options(
            "cors: OPTIONS without a method asked for",
            "/cors",
            "origin: https://x.b.test\n",
        ),
        preflight("cors: any origin", "/any-cors", "https://else.test"),
        preflight("cors: preflight stops", "/stops-cors", "https://a.test"),
        get(
            "cors: it goes on otherwise",
            all,
            "/stops-cors",
            "origin: https://a.test\n",
        ),
        preflight("cors: off", "/no-cors", "https://a.test"),
        get(
            "cors: of a direct response",
            all,
            "/direct",
            "origin: https://a.test\n",
        ),
        get("cors: nowhere", all, "/nowhere", "origin: https://a.test\n"),
    ]
}

fn mutation() -> Vec<Case> {
    let all = "all.test";
    vec![
        get(
            "mutation: the chain's",
            all,
            "/up",
            "x-gone: 1\nx-level: client\n",
        ),
        get(
            "mutation: the route's",
            all,
            "/mutated",
            "x-gone: 1\nx-also-gone: 1\nx-over: old\nx-empty: 1\n",
        ),
        get(
            "mutation: two lines of a name",
            all,
            "/up",
            "x-two: a\nx-two: b\n",
        ),
        get("mutation: the weighted cluster's", all, "/weighted", ""),
        get("mutation: of a direct response", all, "/direct", ""),
        get("mutation: nowhere", all, "/nowhere", ""),
    ]
}

fn buffer() -> Vec<Case> {
    let post = |name, path: &str, body: &str| {
        case(
            name,
            format!("POST {path} HTTP/1.1\nhost: all.test\n{body}"),
        )
    };
    vec![
        post("buffer: with a length", "/up", "content-length: 5\n\nhello"),
        post(
            "buffer: in chunks",
            "/up",
            "transfer-encoding: chunked\n\n3\nabc\n2\nde\n0\n\n",
        ),
        post(
            "buffer: as much as may be",
            "/up",
            "content-length: 10\n\n0123456789",
        ),
        post(
            "buffer: too much",
            "/up",
            "content-length: 11\n\n0123456789a",
        ),
        post(
            "buffer: too much in chunks",
            "/up",
            "transfer-encoding: chunked\n\nb\n0123456789a\n0\n\n",
        ),
        post("buffer: nothing", "/up", "content-length: 0\n\n"),
        post(
            "buffer: the route's",
            "/more",
            "transfer-encoding: chunked\n\nb\n0123456789a\n0\n\n",
        ),
        post(
            "buffer: off",
            "/unbuffered",
            "transfer-encoding: chunked\n\nb\n0123456789a\n0\n\n",
        ),
    ]
}

fn health() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("health: answered", all, "/healthz", ""),
        get("health: another path", all, "/healthz?a", ""),
        get("health: passed through", all, "/through", "x-check: 1\n"),
        get("health: not asked", all, "/through", ""),
        case("health: HEAD", "HEAD /healthz HTTP/1.1\nhost: all.test\n\n"),
    ]
}

fn templates() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("template: rewritten", all, "/t/x/y/z?q=1", ""),
        get("template: nothing at the end", all, "/t/x/", ""),
        get("template: too short", all, "/t/x", ""),
        get("template: within a segment", all, "/one/x/v2.json?q", ""),
        get("template: two segments", all, "/one/x/y/v2.json", ""),
        get("template: escapes", all, "/t/a%20b/c;d=e", ""),
        get("redirect: regex", all, "/to/x?q=1", ""),
        get("forward: host from the path", all, "/path-host/h/x?q", ""),
    ]
}

fn replies() -> Vec<Case> {
    let all = "all.test";
    vec![
        get("reply: as JSON", all, "/none", "x-json: 1\n"),
        get(
            "reply: JSON with what must be escaped",
            all,
            "/none",
            "x-json: a\"b\\c</d>\n",
        ),
        get("reply: by flag", all, "/none", ""),
        get("reply: another type", all, "/dead", ""),
        get("reply: no route", all, "/nowhere", ""),
        get("reply: mapped and formatted", all, "/direct", ""),
        get("reply: formatted", all, "/created", ""),
        get("reply: empty and formatted", all, "/empty", ""),
        get("reply: redirect", all, "/to", ""),
        get("reply: an upstream's is none", all, "/up", "")
            .upstream("HTTP/1.1 503 Service Unavailable\ncontent-length: 2\n\nup"),
        case("reply: HEAD", "HEAD /direct HTTP/1.1\nhost: all.test\n\n"),
        case("reply: no host", "GET /direct HTTP/1.1\n\n"),
    ]
}
