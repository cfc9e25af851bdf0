//! What goes wrong, and what is no request at all.

use super::{Case, case, get};

pub(super) fn all() -> Vec<Case> {
    let raw = |name, text: &str| case(name, text);
    vec![
        get("fault: nobody is there", "all.test", "/none", ""),
        get("fault: nobody listens", "all.test", "/dead", ""),
        get("fault: no answer in time", "all.test", "/slow", "").upstream_is_silent(),
        raw(
            "fault: the headers never end",
            "GET /up HTTP/1.1\nhost: a\n",
        )
        .on("PASS"),
        get("fault: the client goes away", "all.test", "/up", "")
            .upstream_is_silent()
            .ends(),
        get("fault: the upstream hangs up", "all.test", "/up", "").upstream_closes(""),
        get(
            "fault: the upstream breaks off in a body",
            "all.test",
            "/up",
            "",
        )
        .upstream_closes("HTTP/1.1 200 OK\ncontent-length: 10\n\nabc"),
        get(
            "fault: the upstream speaks something else",
            "all.test",
            "/up",
            "",
        )
        .upstream_closes("SSH-2.0-x\n\n"),
        raw("fault: HTTP/1.0", "GET /text HTTP/1.0\nhost: all.test\n\n"),
        raw("fault: no host", "GET /text HTTP/1.1\n\n"),
        raw(
            "fault: a path that is none",
            "OPTIONS * HTTP/1.1\nhost: all.test\n\n",
        ),
        raw(
            "fault: a fragment",
            "GET /text#a HTTP/1.1\nhost: all.test\n\n",
        ),
        raw("fault: no HTTP", "hello\n\n"),
        raw("fault: another version", "GET / HTTP/3.0\nhost: a\n\n"),
        raw(
            "fault: two lengths",
            "POST /up HTTP/1.1\nhost: all.test\ncontent-length: 2\ncontent-length: 3\n\nabc",
        ),
        raw(
            "fault: a length that is none",
            "POST /up HTTP/1.1\nhost: all.test\ncontent-length: +2\n\nab",
        ),
        raw(
            "fault: length and chunks",
            "POST /up HTTP/1.1\nhost: all.test\ncontent-length: 3\ntransfer-encoding: chunked\n\n0\n\n",
        ),
        raw(
            "fault: an encoding that is not known",
            "POST /up HTTP/1.1\nhost: all.test\ntransfer-encoding: gzip\n\n",
        ),
        raw(
            "fault: a space in a name",
            "GET /up HTTP/1.1\nhost: all.test\nx a: 1\n\n",
        ),
        raw(
            "fault: a folded line",
            "GET /up HTTP/1.1\nhost: all.test\nx-a: 1\n 2\n\n",
        ),
        raw(
            "fault: a NUL",
            "GET /up HTTP/1.1\nhost: all.test\nx-a: 1\u{0}2\n\n",
        ),
        raw(
            "fault: a method that is none",
            "G@T /up HTTP/1.1\nhost: all.test\n\n",
        ),
        raw(
            "fault: CONNECT",
            "CONNECT all.test:80 HTTP/1.1\nhost: all.test:80\n\n",
        ),
        raw(
            "fault: an upgrade that is not allowed",
            "GET /up HTTP/1.1\nhost: all.test\nconnection: upgrade\nupgrade: websocket\n\n",
        ),
        raw(
            "fault: the body never comes",
            "POST /up HTTP/1.1\nhost: all.test\ncontent-length: 5\n\nab",
        )
        .on("PASS"),
        get(
            "fault: headers too large",
            "all.test",
            "/text",
            &format!("x-large: {}\n", "a".repeat(70_000)),
        ),
        get(
            "fault: too many headers",
            "all.test",
            "/text",
            &(0..101)
                .map(|at| format!("x-{at}: 1\n"))
                .collect::<String>(),
        ),
    ]
}
