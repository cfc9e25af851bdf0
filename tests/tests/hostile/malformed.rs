//! What is no request, or one that others may read in another way.

use crate::scene::Scene;
use crate::smuggling::{Case, case, judge, raw};

/// With this line among its headers, between two that are in order.
fn line(name: &'static str, line: impl AsRef<[u8]>, status: &'static [u16]) -> Case {
    let mut send = b"GET @ HTTP/1.1\r\nhost: a\r\n".to_vec();
    send.extend_from_slice(line.as_ref());
    send.extend_from_slice(b"\r\nx-last: 1\r\n\r\n");
    let seen: &[&str] = match status {
        [200] => &["GET @ "],
        _ => &[],
    };
    raw(name, send, status, seen)
}

#[test]
fn lines() {
    judge(&[
        line("a NUL in a value", "x-a: 1\0", &[400]),
        line("a NUL in a name", "x\0a: 1", &[400]),
        line("a bare CR in a value", "x-a: 1\rx-b: 2", &[400]),
        line("a bare CR before a line's end", "x-a: 1\r", &[400]),
        line("a bell in a value", "x-a: \u{7}", &[400]),
        line("DEL in a value", "x-a: \u{7f}", &[400]),
        line("an escape in a name", "x\u{1b}: 1", &[400]),
        line("a space in a name", "x a: 1", &[400]),
        line("a space before the colon", "x-a : 1", &[400]),
        line("a tab before the colon", "x-a\t: 1", &[400]),
        line("a space before the name", " x-a: 1", &[400]),
        line("a folded line", "x-a: 1\r\n 2", &[400]),
        line("a line folded by a tab", "x-a: 1\r\n\t2", &[400]),
        line("no colon", "x-a", &[400]),
        line("no name", ": 1", &[400]),
        line("a name of other letters", "x-\u{e4}: 1", &[400]),
        line("a name in brackets", "x(a): 1", &[400]),
        line("spaces after a value", "x-a: 1 \t ", &[200]),
        line("a tab in a value", "x-a: 1\t2", &[200]),
        line("two hosts", "host: b", &[400]),
        line("the same host twice", "host: a", &[400]),
        line("bytes that are no text", b"x-a: 1", &[200]),
        line(
            "a connection that names the host",
            "connection: host, x-forwarded-for",
            &[200],
        ),
    ]);
}

fn first(name: &'static str, first: &str, status: &'static [u16]) -> Case {
    let seen: &[&str] = match status {
        [200] => &["GET @ "],
        _ => &[],
    };
    raw(name, format!("{first}\r\nhost: a\r\n\r\n"), status, seen)
}

#[test]
fn first_lines() {
    judge(&[
        first("HTTP/0.9", "GET @", &[400]),
        first("HTTP/1.2", "GET @ HTTP/1.2", &[400]),
        first("HTTP/2.0", "GET @ HTTP/2.0", &[400]),
        first("HTTP/1.10", "GET @ HTTP/1.10", &[400]),
        first("http in small letters", "GET @ http/1.1", &[400]),
        first("another protocol", "GET @ HTCPCP/1.0", &[400]),
        first("two spaces", "GET  @ HTTP/1.1", &[400]),
        first("two spaces before the version", "GET @  HTTP/1.1", &[400]),
        first("a tab", "GET\t@\tHTTP/1.1", &[400]),
        first("a space at the end", "GET @ HTTP/1.1 ", &[400]),
        first("a space before", " GET @ HTTP/1.1", &[400]),
        first("a space in the target", "GET @ x HTTP/1.1", &[400]),
        first("a NUL in the target", "GET @\0 HTTP/1.1", &[400]),
        first("a bare CR in the target", "GET @\rx HTTP/1.1", &[400]),
        first("a bare LF in the target", "GET @\nx HTTP/1.1", &[400]),
        first("a bell in the target", "GET @\u{7} HTTP/1.1", &[400]),
        first("a method in brackets", "G(T @ HTTP/1.1", &[400]),
        first("a NUL in the method", "G\0T @ HTTP/1.1", &[400]),
        first("no target", "GET HTTP/1.1", &[400]),
        first("a target without a slash", "GET x HTTP/1.1", &[400]),
        first(
            "an absolute target without a host",
            "GET http:///@ HTTP/1.1",
            &[400],
        ),
        first("a fragment", "GET @#/smuggled HTTP/1.1", &[200]),
        first(
            "an endless method",
            &format!("{} @ HTTP/1.1", "G".repeat(20_000)),
            &[431],
        ),
        first(
            "an endless target",
            &format!("GET @{} HTTP/1.1", "a".repeat(20_000)),
            &[431],
        ),
        case(
            "empty lines before",
            "\n\nGET @ HTTP/1.1\nhost: a\n\n",
            &[200],
            &["GET @ "],
        ),
        case("an empty host", "GET @ HTTP/1.1\nhost:\n\n", &[400], &[]),
        case(
            "a host with a slash",
            "GET @ HTTP/1.1\nhost: a/b\n\n",
            &[400],
            &[],
        ),
        case(
            "a host with a space",
            "GET @ HTTP/1.1\nhost: a b\n\n",
            &[400],
            &[],
        ),
        case("no host", "GET @ HTTP/1.1\nx-a: 1\n\n", &[400], &[]),
        case("garbage", "\u{16}\u{3}\u{1}\n\n", &[400], &[]),
        case(
            "garbage after a request",
            "GET @ HTTP/1.1\nhost: a\n\n\u{16}\u{3}\u{1}\n\n",
            &[200, 400],
            &["GET @ "],
        ),
        case(
            "a target with another host than the line's",
            "GET http://b@ HTTP/1.1\nhost: a\n\n",
            &[200],
            &["GET @ "],
        ),
        raw(
            "bare LFs, which RFC 9112 lets us understand",
            "GET @ HTTP/1.1\nhost: a\n\n",
            &[200],
            &["GET @ "],
        ),
    ]);
}

/// Escapes stay escapes, wherever a part of a request is said again.
#[test]
fn escapes() {
    let scene = Scene::new();
    let injected = "%0d%0ax-injected:%201%0d%0a%0d%0aGET%20/smuggled%20HTTP/1.1";
    let ask = |path: &str, say: &str| {
        let mut talk = scene.talk();
        let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-say: {say}\r\n\r\n");
        talk.say(text.as_bytes()).expect("it is heard");
        let answer = talk.answer().expect("it is read").expect("an answer");
        talk.finish();
        assert!(talk.rest().expect("an end").is_empty(), "{path}");
        assert!(answer.says("x-injected").is_none(), "{}", answer.head);
        answer
    };
    scene.unharmed(|| {
        for path in ["/to/", "/to-regex/"] {
            let answer = ask(&format!("{path}{injected}"), injected);
            assert_eq!(answer.status, 301, "{}", answer.head);
            let location = answer.says("location").unwrap_or_default();
            assert!(location.ends_with(injected), "{location}");
            assert_eq!(
                answer.says("x-said"),
                Some(&format!("{injected} {path}{injected}")[..])
            );
        }
        // As a host it is none.
        let answer = ask(&format!("/mutated/{injected}"), injected);
        assert!([200, 400].contains(&answer.status), "{}", answer.head);
        let answer = ask(&format!("/mutated/{injected}"), "b.test");
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert_eq!(answer.body, format!("GET /was-mutated/{injected} "));
        let answer = ask(&format!("/a/..%2f../%2e%2e/{injected}"), "");
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(
            answer.body.ends_with(&format!("{injected} ")),
            "{}",
            answer.body
        );
    });
    let seen = scene.upstream.with(|seen| seen.requests.clone());
    assert!(
        seen.iter().all(|request| !request.contains(" /smuggled ")),
        "{seen:#?}"
    );
}
