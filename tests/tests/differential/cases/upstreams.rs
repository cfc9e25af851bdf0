//! Upstreams whose answers are none, or can be read in two ways.

use super::{Case, get};

pub(super) fn all() -> Vec<Case> {
    let up = |name, text: &str| get(name, "all.test", "/up", "").upstream(text);
    vec![
        up(
            "upstream: two lengths",
            "HTTP/1.1 200 OK\ncontent-length: 2\ncontent-length: 3\n\nok!",
        ),
        up(
            "upstream: the same length twice",
            "HTTP/1.1 200 OK\ncontent-length: 2\ncontent-length: 2\n\nok",
        ),
        up(
            "upstream: a list of lengths",
            "HTTP/1.1 200 OK\ncontent-length: 2, 2\n\nok",
        ),
        up(
            "upstream: a length with a plus",
            "HTTP/1.1 200 OK\ncontent-length: +2\n\nok",
        ),
        up(
            "upstream: a length and chunks",
            "HTTP/1.1 200 OK\ncontent-length: 2\ntransfer-encoding: chunked\n\n2\nok\n0\n\n",
        ),
        up(
            "upstream: compressed, then chunked",
            "HTTP/1.1 200 OK\ntransfer-encoding: gzip, chunked\n\n2\nok\n0\n\n",
        ),
        up(
            "upstream: an encoding that is not known",
            "HTTP/1.1 200 OK\ntransfer-encoding: xchunked\n\n2\nok\n0\n\n",
        ),
        up(
            "upstream: more than it said",
            "HTTP/1.1 200 OK\ncontent-length: 2\n\nok, and more",
        ),
        up(
            "upstream: a NUL",
            "HTTP/1.1 200 OK\nx-a: 1\0\ncontent-length: 0\n\n",
        ),
        up(
            "upstream: a space before the colon",
            "HTTP/1.1 200 OK\nx-a : 1\ncontent-length: 0\n\n",
        ),
        up(
            "upstream: early hints",
            "HTTP/1.1 103 Early Hints\nlink: a\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok",
        ),
        get("upstream: half a head", "all.test", "/up", "")
            .upstream_closes("HTTP/1.1 200 OK\nx-a: 1\n"),
    ]
}
