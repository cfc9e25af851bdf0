//! Connections that become something else, and what comes before a response and after it.

use super::{Case, OK, case, get};

const WEBSOCKET: &str = "connection: Upgrade\nupgrade: websocket\nsec-websocket-key: k\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\nconnection: Upgrade\nupgrade: websocket\nx-up: 1\n\n";
/// Through a tunnel both proxies are to leave it as it is.
const INNER: &str = "GET /inner HTTP/1.1\nhost: inner\nconnection: x-hop\nx-hop: 1\n\n";
const INNER_ANSWER: &str =
    "HTTP/1.1 299 As It Is\nserver: inner\ncontent-length: 2\nconnection: x-hop\n\nin";

fn upgrade(name: &'static str, path: &str, headers: &str) -> Case {
    get(name, "tunnel.test", path, headers).on("TUNNELS")
}

/// A tunnel, and an exchange in it.
fn through(case: Case, switch: &str) -> Case {
    case.answers(2)
        .then(INNER)
        .upstream_in_turn(&[switch, INNER_ANSWER])
}

/// With what only looks like the next request.
fn behind(name: &'static str, path: &str) -> Case {
    let send = format!("GET {path} HTTP/1.1\nhost: a\n{WEBSOCKET}\n{INNER}");
    case(name, send).on("TUNNELS")
}

fn connect(name: &'static str, host: &str, headers: &str) -> Case {
    let send = format!("CONNECT {host} HTTP/1.1\nhost: {host}\n{headers}\n");
    case(name, send).on("TUNNELS")
}

pub(super) fn upgrades() -> Vec<Case> {
    let websocket = |name, path| upgrade(name, path, WEBSOCKET);
    let named = |name, headers| upgrade(name, "/up", headers);
    vec![
        through(websocket("upgrade: websocket", "/up"), SWITCH),
        through(
            websocket("upgrade: by a rewritten path", "/rewrite/a"),
            SWITCH,
        ),
        through(
            websocket("upgrade: allowed by the route", "/on").on("MAIN"),
            SWITCH,
        ),
        through(
            named(
                "upgrade: in capitals",
                "connection: keep-alive, Upgrade\nupgrade: WEBSOCKET\n",
            ),
            SWITCH,
        ),
        through(
            named(
                "upgrade: what connection names stays or goes",
                "connection: x-hop, Upgrade\nx-hop: 1\nkeep-alive: 5\nte: trailers\nupgrade: websocket\n",
            ),
            SWITCH,
        ),
        through(
            websocket("upgrade: the upstream's own words", "/up"),
            "HTTP/1.1 101 Fine\nConnection: keep-alive, Upgrade\nUpgrade: websocket\nserver: origin\ncontent-length: 0\nx-secret: s\n\n",
        ),
        through(
            websocket("upgrade: another protocol than was asked for", "/up"),
            "HTTP/1.1 101 Fine\nconnection: upgrade\nupgrade: other\n\n",
        ),
        through(
            named(
                "upgrade: of length 0",
                &format!("content-length: 0\n{WEBSOCKET}"),
            ),
            SWITCH,
        ),
        through(
            case(
                "upgrade: a POST",
                format!("POST /up HTTP/1.1\nhost: a\n{WEBSOCKET}\n"),
            )
            .on("TUNNELS"),
            SWITCH,
        ),
        through(
            case(
                "upgrade: before there is an answer",
                format!("GET /up HTTP/1.1\nhost: a\n{WEBSOCKET}\n{INNER}"),
            )
            .on("TUNNELS"),
            SWITCH,
        )
        .then(""),
        through(
            websocket("upgrade: hints first", "/up"),
            &format!("HTTP/1.1 103 Early Hints\nlink: a\n\n{SWITCH}"),
        ),
        websocket("upgrade: longer than the route's timeout", "/short")
            .answers(2)
            .then(INNER)
            .late()
            .upstream_in_turn(&[SWITCH, INNER_ANSWER]),
        websocket("upgrade: no answer in the route's time", "/short").upstream_is_silent(),
        websocket("upgrade: not allowed", "/up").on("MAIN"),
        websocket("upgrade: not allowed by the route", "/off"),
        websocket("upgrade: no route", "/nowhere"),
        websocket("upgrade: no route, and not allowed", "/nowhere").on("MAIN"),
        websocket(
            "upgrade: not allowed where there is a direct response",
            "/text",
        )
        .on("MAIN"),
        websocket(
            "upgrade: not allowed where there is a redirect",
            "/to-https",
        )
        .on("MAIN"),
        websocket("upgrade: a direct response", "/text"),
        websocket("upgrade: a redirect", "/redirect"),
        websocket("upgrade: nobody there", "/dead"),
        websocket("upgrade: refused by the upstream", "/up")
            .upstream("HTTP/1.1 403 No\ncontent-length: 2\n\nno"),
        websocket("upgrade: not heard by the upstream", "/up").upstream(OK),
        behind("upgrade: refused, and a request behind it", "/up")
            .upstream("HTTP/1.1 403 No\ncontent-length: 2\n\nno"),
        behind("upgrade: not allowed, and a request behind it", "/off"),
        websocket("upgrade: broken off", "/up").upstream_closes(""),
        websocket("upgrade: to something with a length", "/up").upstream(
            "HTTP/1.1 101 Fine\nconnection: upgrade\nupgrade: websocket\ncontent-length: 2\n\nok",
        ),
        websocket("upgrade: to nothing", "/up").upstream("HTTP/1.1 101 Fine\n\n"),
        get("upgrade: that nobody asked for", "tunnel.test", "/up", "")
            .on("TUNNELS")
            .upstream(SWITCH),
        named("upgrade: disabled", "connection: upgrade\nupgrade: bar\n"),
        named(
            "upgrade: two in a line",
            "connection: upgrade\nupgrade: websocket, foo\n",
        ),
        named(
            "upgrade: two lines",
            "connection: upgrade\nupgrade: websocket\nupgrade: foo\n",
        ),
        named("upgrade: not named by connection", "upgrade: websocket\n"),
        named(
            "upgrade: HTTP/2",
            "connection: Upgrade, HTTP2-Settings\nupgrade: h2c\nhttp2-settings: AA\n",
        ),
    ]
}

pub(super) fn connects() -> Vec<Case> {
    let host = "end.test:443";
    let end = |name, headers| {
        connect(name, host, headers)
            .answers(2)
            .then(INNER)
            .upstream(INNER_ANSWER)
    };
    vec![
        end("connect: ends here", ""),
        end("connect: with headers", "x-a: b\nproxy-authorization: x\n"),
        end("connect: of length 0", "content-length: 0\n"),
        through(
            connect("connect: goes on", "on.test:443", "x-a: b\n"),
            "HTTP/1.1 200 Fine\nx-up: 1\n\n",
        ),
        case(
            "connect: before there is an answer",
            format!("CONNECT {host} HTTP/1.1\n\n{INNER}"),
        )
        .on("TUNNELS")
        .answers(2)
        .upstream(INNER_ANSWER),
        connect("connect: refused by the upstream", "on.test:443", "")
            .upstream("HTTP/1.1 403 No\ncontent-length: 2\n\nno"),
        case(
            "connect: not allowed, and a request behind it",
            format!("CONNECT off.test:443 HTTP/1.1\nhost: off.test:443\n\n{INNER}"),
        )
        .on("TUNNELS"),
        connect("connect: not allowed by the route", "off.test:443", ""),
        connect("connect: to a path's route", "path.test:443", ""),
        connect("connect: nobody there", "dead.test:443", ""),
        connect("connect: a redirect", "redirect.test:443", ""),
        connect("connect: a header is missing", "header.test:443", ""),
        connect("connect: no port", "end.test", ""),
        connect("connect: with a body", host, "content-length: 2\n"),
        connect("connect: in chunks", host, "transfer-encoding: chunked\n"),
        case(
            "connect: a path",
            "CONNECT /a HTTP/1.1\nhost: end.test:443\n\n",
        )
        .on("TUNNELS"),
        get("connect: a GET to its route", "end.test:443", "/a", "").on("TUNNELS"),
    ]
}

pub(super) fn beside() -> Vec<Case> {
    let up = |name, headers| get(name, "a", "/up", headers).on("BESIDE");
    let post =
        |name, rest: &str| case(name, format!("POST /up HTTP/1.1\nhost: a\n{rest}")).on("BESIDE");
    let chunks = "te: trailers\ntransfer-encoding: chunked\n\n3\nabc\n0\nx-t: 1\n\n";
    vec![
        post("interim: expected", "expect: 100-continue\ncontent-length: 2\n\nab")
            .answers(2)
            .upstream("HTTP/1.1 100 Continue\nx-own: 1\nconnection: x-hop\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
        up("interim: hints", "")
            .answers(2)
            .upstream(&format!("HTTP/1.1 103 Early Hints\nlink: a\n\n{OK}")),
        up("interim: others", "")
            .answers(2)
            .upstream(&format!("HTTP/1.1 150 Hm\n\n{OK}")),
        up("interim: continue, twice", "")
            .answers(2)
            .upstream(&format!("HTTP/1.1 100 Continue\n\nHTTP/1.1 100 Continue\n\n{OK}")),
        up("interim: with a length", "")
            .upstream(&format!("HTTP/1.1 100 Continue\ncontent-length: 2\n\n{OK}")),
        post("trailers: announced", &format!("trailer: x-t\n{chunks}")),
        post("trailers: not announced", chunks),
        post("trailers: that are none", "transfer-encoding: chunked\n\n3\nabc\n0\nx t: 1\n\n")
            .upstream_is_silent(),
        up("trailers: of a response", "te: trailers\n").upstream(
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: x-t\n\n3\nabc\n0\nx-t: 1\n\n",
        ),
        up("trailers: of a response, not announced", "te: trailers\n").upstream(
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n3\nabc\n0\nx-t: 1\n\n",
        ),
        up("trailers: of a response, not asked for", "").upstream(
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: x-t\n\n3\nabc\n0\nx-t: 1\n\n",
        ),
    ]
}
