//! Bodies and their ends, and connections that go on or do not.

use super::{Case, case, get};

const EARLY: &str = "HTTP/1.1 200 OK\ncontent-length: 10\n\nearly bird";

pub(super) fn all() -> Vec<Case> {
    let post = |name, body| case(name, format!("POST /up HTTP/1.1\nhost: all.test\n{body}"));
    vec![
        post("body: with a length", "content-length: 5\n\nhello"),
        post(
            "body: in chunks",
            "transfer-encoding: chunked\n\n3\nabc\n2;ext=1\nde\n0\n\n",
        ),
        post(
            "body: in chunks with trailers",
            "transfer-encoding: chunked\n\n3\nabc\n0\nx-trailer: 1\n\n",
        ),
        post("body: of length 0", "content-length: 0\n\n"),
        post("body: none", "\n"),
        case(
            "body: none of a DELETE",
            "DELETE /up HTTP/1.1\nhost: all.test\n\n",
        ),
        case(
            "body: none of OPTIONS",
            "OPTIONS /up HTTP/1.1\nhost: all.test\n\n",
        ),
        case(
            "body: none of a PUT",
            "PUT /up HTTP/1.1\nhost: all.test\n\n",
        ),
        case(
            "body: none of another method",
            "PROPFIND /up HTTP/1.1\nhost: all.test\n\n",
        ),
        post(
            "body: expected",
            "expect: 100-continue\ncontent-length: 2\n\nab",
        )
        .answers(2),
        case(
            "body: of a GET",
            "GET /up HTTP/1.1\nhost: all.test\ncontent-length: 2\n\nab",
        ),
        case("response: to HEAD", "HEAD /up HTTP/1.1\nhost: all.test\n\n")
            .upstream("HTTP/1.1 200 OK\ncontent-length: 20\n\n"),
        post(
            "response: before the request's end",
            "content-length: 10\n\nhello",
        )
        .on("PASS")
        .then("again")
        .late()
        .upstream_is_early(&[EARLY]),
        // Longer than the limit of the request.
        post(
            "response: before the request's end, in pieces",
            "content-length: 10\n\nhello",
        )
        .on("PASS")
        .upstream_is_early(&["HTTP/1.1 200 OK\ncontent-length: 10\n\nearly", " bird"]),
        post(
            "response: before the request's end, a refusal",
            "content-length: 10\n\nhello",
        )
        .upstream_is_early(&["HTTP/1.1 413 No\ncontent-length: 2\n\nno"]),
        get("response: in chunks", "all.test", "/up", "")
            .upstream("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n3\nabc\n0\n\n"),
        get("response: trailers", "all.test", "/up", "te: trailers\n").upstream(
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: x-t\n\n3\nabc\n0\nx-t: 1\n\n",
        ),
        get("response: until the end", "all.test", "/up", "")
            .upstream_closes("HTTP/1.1 200 OK\n\nall of it"),
        get("response: no content", "all.test", "/up", "").upstream("HTTP/1.1 204 No Content\n\n"),
        get("response: not modified", "all.test", "/up", "")
            .upstream("HTTP/1.1 304 Not Modified\netag: \"1\"\n\n"),
        get("response: reason of its own", "all.test", "/up", "")
            .upstream("HTTP/1.1 200 Fine\ncontent-length: 0\n\n"),
        get("response: unknown status", "all.test", "/up", "")
            .upstream("HTTP/1.1 299 Hm\ncontent-length: 0\n\n"),
        get("response: closes", "all.test", "/up", "")
            .upstream_closes("HTTP/1.1 200 OK\nconnection: close\ncontent-length: 2\n\nok"),
        get("response: two cookies", "all.test", "/up", "")
            .upstream("HTTP/1.1 200 OK\nset-cookie: a=1\nset-cookie: b=2\ncontent-length: 0\n\n"),
        get("response: a date of its own", "all.test", "/up", "")
            .upstream("HTTP/1.1 200 OK\ndate: then\ncontent-length: 0\n\n"),
        get("response: HTTP/1.0", "all.test", "/up", "").upstream_closes("HTTP/1.0 200 OK\n\nold"),
        case(
            "two requests in a row",
            "GET /up?1 HTTP/1.1\nhost: all.test\n\nGET /text HTTP/1.1\nhost: all.test\n\n",
        )
        .answers(2),
        get(
            "the client closes",
            "all.test",
            "/up",
            "connection: close\n",
        ),
        get(
            "names in proper case",
            "all.test",
            "/up",
            "x-request-id: 1\n",
        )
        .on("PASS"),
    ]
}
