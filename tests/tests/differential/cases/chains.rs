//! Filter chains: by server name, protocol, and who comes from where. Each goes to another address of the upstream, which says it.

use super::{Case, Upstream, case};

fn vector_of(width: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - width..], content].concat()
}

fn extension(number: u16, content: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &vector_of(2, content)].concat()
}

/// A ClientHello of TLS 1.2 and 1.3, RFC 8446; nobody answers it, its bytes go on to the upstream. Empty: no name.
fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !name.is_empty() {
        let name = [&[0][..], &vector_of(2, name.as_bytes())].concat();
        extensions.extend(extension(0, &vector_of(2, &name)));
    }
    if !protocols.is_empty() {
        let all: Vec<u8> = protocols
            .iter()
            .flat_map(|one| vector_of(1, one.as_bytes()))
            .collect();
        extensions.extend(extension(16, &vector_of(2, &all)));
    }
    // Groups, signatures, versions, a key share of x25519.
    extensions.extend(extension(10, &vector_of(2, &[0, 29])));
    extensions.extend(extension(13, &vector_of(2, &[4, 3, 8, 4])));
    extensions.extend(extension(43, &vector_of(1, &[3, 4, 3, 3])));
    let share = [&[0, 29][..], &vector_of(2, &[9; 32])].concat();
    extensions.extend(extension(51, &vector_of(2, &share)));
    let body = [
        &[3, 3][..],
        &[7; 32],
        &vector_of(1, &[8; 32]),
        &vector_of(2, &[0x13, 1, 0xc0, 0x2b]),
        &vector_of(1, &[0]),
        &vector_of(2, &extensions),
    ]
    .concat();
    let message = [&[1][..], &vector_of(3, &body)].concat();
    [&[22, 3, 1][..], &vector_of(2, &message)].concat()
}

pub(super) fn all() -> Vec<Case> {
    let raw = |name| Case {
        upstream: Upstream::SaysWhere,
        ..case(name, "GET /where HTTP/1.1\nhost: a\n\n").on("CHAINS")
    };
    let tls = |name, server: &str, protocols: &[&str]| Case {
        first: hello(server, protocols),
        ..raw(name)
    };
    let from = |case: Case, addr: &str| Case {
        from: Some(addr.parse().expect("an address")),
        ..case
    };
    vec![
        tls("chain: a name", "www.a.test", &[]),
        tls("chain: a name in capitals", "WWW.A.Test", &[]),
        tls("chain: a name by its end", "b.a.test", &[]),
        tls("chain: a name by its longer end", "c.b.a.test", &[]),
        tls(
            "chain: a name that is an end without its dot",
            "a.test",
            &[],
        ),
        tls("chain: a name before a protocol", "b.a.test", &["h2"]),
        tls(
            "chain: another name, a protocol",
            "x.test",
            &["h2", "http/1.1"],
        ),
        tls(
            "chain: the protocol that is liked more",
            "x.test",
            &["http/1.1", "h2"],
        ),
        tls("chain: a protocol that nobody is for", "x.test", &["spdy"]),
        tls("chain: TLS without anything", "", &[]),
        raw("chain: no TLS"),
        from(raw("chain: a source"), "127.0.0.1:0"),
        from(raw("chain: a nearer source"), "127.0.0.9:0"),
        from(raw("chain: a nearer source and its port"), "127.0.0.9:4711"),
        from(raw("chain: the port of a farther source"), "127.0.0.8:4711"),
        from(raw("chain: another source"), "10.66.0.100:0"),
        tls("chain: from the same address", "where.test", &[]),
        from(
            tls("chain: from loopback", "where.test", &[]),
            "127.0.0.1:0",
        ),
        from(
            tls("chain: from another address of loopback", "where.test", &[]),
            "127.0.0.2:0",
        ),
        from(
            tls("chain: from elsewhere", "where.test", &[]),
            "10.66.0.100:0",
        ),
        from(tls("chain: TLS of a source", "", &[]), "127.0.0.9:4711"),
        from(
            tls("chain: a name's own source", "src.test", &[]),
            "127.0.0.9:0",
        ),
        // The name's chain is left, and there is no way back to those without one.
        from(
            tls("chain: a name from another source", "src.test", &[]),
            "127.0.0.8:0",
        ),
    ]
}
