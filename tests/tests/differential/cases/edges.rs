//! The listener that clients reach directly, and the one without HTTP.

use super::{Case, OWN, case, get};

pub(super) fn http() -> Vec<Case> {
    let edge = |name, path, headers| get(name, "edge.test:81", path, headers).on("EDGE");
    vec![
        edge("edge: plain", "/a?b", ""),
        edge("edge: local", "/text", ""),
        edge("edge: said to be forwarded", "/a", "x-forwarded-for: 1.2.3.4\nx-forwarded-proto: https\nvia: 1.1 me\n"),
        edge("edge: envoy's own from a client", "/a", "x-envoy-internal: true\nx-envoy-max-retries: 3\nx-envoy-retry-on: 5xx\nx-envoy-original-path: /x\nx-envoy-expected-rq-timeout-ms: 1\nx-envoy-upstream-rq-timeout-ms: 9999\nx-request-id: mine\n"),
        edge("edge: all of envoy's own", "/a", OWN),
        edge("edge: an origin behind others", "/a", "").upstream("HTTP/1.1 200 OK\nvia: 1.1 origin\nx-request-id: theirs\ncontent-length: 0\n\n"),
        case("edge: HTTP/1.0", "GET /a HTTP/1.0\n\n").on("EDGE"),
        case("edge: HTTP/1.0 with keep-alive", "GET /text HTTP/1.0\nhost: a\nconnection: keep-alive\n\n").on("EDGE"),
        case("edge: the last request of a connection", "GET /text HTTP/1.1\nhost: a\n\nGET /text HTTP/1.1\nhost: a\n\nGET /text HTTP/1.1\nhost: a\n\n").on("EDGE").answers(3),
        edge("edge: headers too large", "/text", Box::leak(format!("x-large: {}\n", "a".repeat(9000)).into_boxed_str())),
        edge("edge: too many headers", "/text", Box::leak((0..21).map(|at| format!("x-{at}: 1\n")).collect::<String>().into_boxed_str())),
    ]
}

pub(super) fn normalized() -> Vec<Case> {
    let path = |name, path| get(name, "edge.test", path, "").on("EDGE");
    vec![
        path("normalized: dots", "/a/./b/../c?d/../e"),
        path("normalized: dots at the end", "/a/b/.."),
        path("normalized: one dot at the end", "/a/."),
        path("normalized: above the root", "/../../text"),
        path("normalized: escaped dots", "/a/%2e%2E/b"),
        path("normalized: needless escapes", "/%41%2d%7e%2fx%3f"),
        path("normalized: no escape", "/a%zz"),
        path("normalized: backslashes", "/a\\b"),
        path("normalized: slashes", "//a///b//?c//d"),
        path("normalized: slashes between dots", "/a/..//text"),
        path("normalized: to what is matched", "/x/../text"),
        path(
            "normalized: other characters",
            "/a;b=c,d(e)'f'!*@:$&+|{}[]^\"",
        ),
    ]
}

pub(super) fn tcp() -> Vec<Case> {
    vec![
        get("tcp: HTTP/1.1 is known by its first line", "a", "/x", "").on("TCP"),
        case("tcp: nobody listens", "GET / HTTP/1.0\n\n").on("TCP"),
        case("tcp: no chain", "SSH-2.0-x\n").on("TCP"),
    ]
}
