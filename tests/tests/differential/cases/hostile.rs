//! Requests that two readers may read in two ways.

use super::{Case, case};

pub(super) fn all() -> Vec<Case> {
    [lengths(), lines(), firsts()].concat()
}

fn lengths() -> Vec<Case> {
    let post = |name, rest: &str| case(name, format!("POST /up HTTP/1.1\nhost: all.test\n{rest}"));
    let chunks = "\n\n2\nab\n0\n\n";
    vec![
        post("hostile: the same length twice", "content-length: 2\ncontent-length: 2\n\nab"),
        post("hostile: a list of lengths", "content-length: 2, 2\n\nab"),
        post("hostile: an empty length", "content-length:\n\nab"),
        post("hostile: a hexadecimal length", "content-length: 0x2\n\nab"),
        post("hostile: a length of 65 bits", "content-length: 18446744073709551618\n\nab"),
        post("hostile: nearly chunked", &format!("transfer-encoding: xchunked{chunks}")),
        post("hostile: chunked, then identity", &format!("transfer-encoding: chunked, identity{chunks}")),
        post("hostile: compressed, then chunked", &format!("transfer-encoding: gzip, chunked{chunks}")),
        post("hostile: chunked twice", &format!("transfer-encoding: chunked\ntransfer-encoding: chunked{chunks}")),
        post("hostile: encoded in capitals", &format!("transfer-encoding: CHUNKED{chunks}")),
        post("hostile: a chunk's size that is none", "transfer-encoding: chunked\n\n2x\nab\n0\n\n"),
        post("hostile: a chunk's size with a plus", "transfer-encoding: chunked\n\n+2\nab\n0\n\n"),
        post("hostile: a chunk that is longer", "transfer-encoding: chunked\n\n2\nabc\n0\n\n"),
        case(
            "hostile: HTTP/1.0 with chunks",
            format!("POST /up HTTP/1.0\nhost: all.test\ntransfer-encoding: chunked{chunks}"),
        ),
        case(
            "hostile: garbage behind a request",
            "GET /up HTTP/1.1\nhost: all.test\n\n\u{16}\u{3}\n\n",
        )
        .answers(2),
        case(
            "hostile: a body that is longer",
            "POST /up HTTP/1.1\nhost: all.test\ncontent-length: 2\n\nabGET /text HTTP/1.1\nhost: all.test\n\n",
        )
        .answers(2),
    ]
}

fn lines() -> Vec<Case> {
    let line = |name, line: &str| {
        case(
            name,
            format!("GET /up HTTP/1.1\nhost: all.test\n{line}\n\n"),
        )
    };
    vec![
        line("hostile: two hosts", "host: other.test"),
        line("hostile: the same host twice", "host: all.test"),
        line("hostile: a space before the colon", "x-a : 1"),
        line("hostile: a space before the name", " x-a: 1"),
        line("hostile: no colon", "x-a"),
        line("hostile: no name", ": 1"),
        line("hostile: a bell", "x-a: \u{7}"),
        line("hostile: DEL", "x-a: \u{7f}"),
        line("hostile: a bare CR", "x-a: 1\rx-b: 2"),
        line("hostile: a name of other letters", "x-\u{e4}: 1"),
        line("hostile: a value of other letters", "x-a: \u{e4}"),
        line(
            "hostile: a connection that names the host",
            "connection: host",
        ),
        line("hostile: spaces around a value", "x-a: \t 1 \t"),
        line(
            "hostile: escaped line ends in what is added",
            "x-user: a%0d%0ab",
        ),
    ]
}

fn firsts() -> Vec<Case> {
    let first = |name, first: &str| case(name, format!("{first}\nhost: all.test\n\n"));
    vec![
        first("hostile: HTTP/0.9", "GET /up"),
        first("hostile: HTTP/1.2", "GET /up HTTP/1.2"),
        first("hostile: HTTP in small letters", "GET /up http/1.1"),
        first("hostile: two spaces", "GET  /up HTTP/1.1"),
        first("hostile: a tab", "GET\t/up HTTP/1.1"),
        first("hostile: a space in the target", "GET /up a HTTP/1.1"),
        first("hostile: a NUL in the target", "GET /up\0 HTTP/1.1"),
        first("hostile: a bell in the target", "GET /up\u{7} HTTP/1.1"),
        first("hostile: a target without a slash", "GET up HTTP/1.1"),
        first(
            "hostile: a target with another host",
            "GET http://other.test/up HTTP/1.1",
        ),
        first(
            "hostile: a target with a user",
            "GET http://me@other.test/up HTTP/1.1",
        ),
        first(
            "hostile: escaped line ends in a redirect",
            "GET /to-prefix/%0d%0aset-cookie:%20a HTTP/1.1",
        ),
        first(
            "hostile: escaped line ends in a rewrite",
            "GET /rewrite/%0d%0aset-cookie:%20a HTTP/1.1",
        ),
        case(
            "hostile: empty lines before",
            "\n\nGET /up HTTP/1.1\nhost: all.test\n\n",
        ),
        case("hostile: an empty host", "GET /text HTTP/1.1\nhost:\n\n"),
        case(
            "hostile: a host with a slash",
            "GET /text HTTP/1.1\nhost: a/b\n\n",
        ),
        case(
            "hostile: a host with a space",
            "GET /text HTTP/1.1\nhost: a b\n\n",
        ),
        case(
            "hostile: a host with an at sign",
            "GET /text HTTP/1.1\nhost: a@b\n\n",
        ),
    ]
}
