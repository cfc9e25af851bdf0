//! Requests whose end two readers may see in different places: one request is one request to everybody, or none.

use crate::scene::{Scene, Talk};

/// `@` is the case's own path, and `\n` CR LF.
pub struct Case {
    name: &'static str,
    send: Vec<u8>,
    /// Statuses, in order.
    answers: &'static [u16],
    /// What the upstream gets: those that were answered with 200.
    seen: &'static [&'static str],
}

pub fn raw(
    name: &'static str,
    send: impl AsRef<[u8]>,
    answers: &'static [u16],
    seen: &'static [&'static str],
) -> Case {
    let send = send.as_ref().to_vec();
    Case {
        name,
        send,
        answers,
        seen,
    }
}

pub fn case(
    name: &'static str,
    send: &str,
    answers: &'static [u16],
    seen: &'static [&'static str],
) -> Case {
    raw(name, send.replace('\n', "\r\n"), answers, seen)
}

fn post(
    name: &'static str,
    rest: &str,
    answers: &'static [u16],
    seen: &'static [&'static str],
) -> Case {
    case(
        name,
        &format!("POST @ HTTP/1.1\nhost: a\n{rest}"),
        answers,
        seen,
    )
}

/// Plays every case, and judges what the upstream saw of all of them.
pub fn judge(cases: &[Case]) {
    let scene = Scene::new();
    let mut faults = Vec::new();
    let mut expected = Vec::new();
    scene.unharmed(|| {
        for (at, case) in cases.iter().enumerate() {
            let path = format!("/h{at}");
            let own = |text: &&str| text.replace('@', &path);
            let seen: Vec<String> = case.seen.iter().map(own).collect();
            let mut talk = scene.talk();
            // Who is refused early may close early.
            let _ = talk.say(&replace(&case.send, &path));
            for fault in play(&mut talk, case, &seen) {
                faults.push(format!("{}: {fault}", case.name));
            }
            expected.extend(seen);
        }
    });
    let got = scene.upstream.with(|seen| seen.requests.clone());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(got, expected);
}

fn play(talk: &mut Talk, case: &Case, seen: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = seen.iter();
    let mut is_last = false;
    for status in case.answers {
        match talk.answer() {
            Ok(Some(answer)) => {
                if answer.status != *status {
                    faults.push(format!("{} in place of {status}", answer.status));
                }
                if answer.status == 200 {
                    let own = seen.next().map_or("nothing", String::as_str);
                    if answer.body != own {
                        faults.push(format!("{:?} in place of {own:?}", answer.body));
                    }
                }
                is_last = answer.says("connection") == Some("close");
            }
            other => {
                faults.push(format!("{other:?} in place of {status}"));
                return faults;
            }
        }
    }
    // After a request that is one, if for nobody, the next can be told.
    let is_refused = case
        .answers
        .last()
        .is_none_or(|status| ![200, 404].contains(status));
    if is_refused && !is_last {
        faults.push("the connection goes on".to_owned());
    }
    if !is_last {
        talk.finish();
    }
    match talk.rest() {
        Ok(rest) if rest.is_empty() => {}
        other => faults.push(format!("then {other:?}")),
    }
    faults
}

fn replace(bytes: &[u8], path: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for byte in bytes {
        match byte {
            b'@' => all.extend_from_slice(path.as_bytes()),
            byte => all.push(*byte),
        }
    }
    all
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\nhost: a\n\n";

#[test]
fn lengths() {
    let smuggling = |lines: &str| format!("{lines}\n\nhello{SMUGGLED}");
    let refused = |name, lines: &str| post(name, &smuggling(lines), &[400], &[]);
    judge(&[
        refused("two lengths", "content-length: 5\ncontent-length: 6"),
        post(
            "the same length twice",
            "content-length: 5\ncontent-length: 5\n\nhello",
            &[200],
            &["POST @ hello"],
        ),
        refused("a list of lengths", "content-length: 5, 5"),
        refused("a list of two lengths", "content-length: 5, 6"),
        refused("a plus", "content-length: +5"),
        refused("a minus", "content-length: -5"),
        refused("hexadecimal", "content-length: 0x5"),
        refused("a fraction", "content-length: 5.0"),
        refused("a space within", "content-length: 5 5"),
        refused("nothing", "content-length:"),
        refused("letters", "content-length: five"),
        refused("quotes", "content-length: \"5\""),
        refused("more than 64 bits", "content-length: 18446744073709551621"),
        post(
            "nearly 64 bits",
            &smuggling("content-length: 18446744073709551615"),
            &[431],
            &[],
        ),
        refused("a vertical tab", "content-length: \u{b}5"),
        refused("an underscore", "content-length: 0_5"),
        refused("full-width digits", "content-length: \u{ff15}"),
        post(
            "zeros before",
            "content-length: 0005\n\nhello",
            &[200],
            &["POST @ hello"],
        ),
        post(
            "spaces around",
            "content-length: \t 5 \t\n\nhello",
            &[200],
            &["POST @ hello"],
        ),
        case(
            "of a GET, and one more",
            "GET @ HTTP/1.1\nhost: a\ncontent-length: 5\n\nhelloGET @/2 HTTP/1.1\nhost: a\n\n",
            &[200, 200],
            &["GET @ hello", "GET @/2 "],
        ),
        case(
            "none of a GET, and what looks like a body",
            "GET @ HTTP/1.1\nhost: a\n\nhello\n\n",
            &[200, 400],
            &["GET @ "],
        ),
        case(
            "too long: what is too much is no request",
            "POST @ HTTP/1.1\nhost: a\ncontent-length: 5\n\nhello, world\n\n",
            &[200, 400],
            &["POST @ hello"],
        ),
        case(
            "named by connection",
            "POST @ HTTP/1.1\nhost: a\nconnection: content-length\ncontent-length: 5\n\nhello",
            &[200],
            &["POST @ hello"],
        ),
    ]);
}

#[test]
fn encodings() {
    let chunks = "\n\n5\nhello\n0\n\n";
    let refused =
        |name, lines: &str| post(name, &format!("{lines}{chunks}{SMUGGLED}"), &[400], &[]);
    let unknown =
        |name, lines: &str| post(name, &format!("{lines}{chunks}{SMUGGLED}"), &[501], &[]);
    // The chunks count, and the connection is over: nobody before us can have hidden a request behind the length.
    let closes = |name, lines: &str| {
        post(
            name,
            &format!("{lines}{chunks}{SMUGGLED}"),
            &[200],
            &["POST @ hello"],
        )
    };
    judge(&[
        closes(
            "a length, then chunks",
            "content-length: 3\ntransfer-encoding: chunked",
        ),
        closes(
            "chunks, then a length",
            "transfer-encoding: chunked\ncontent-length: 3",
        ),
        closes(
            "chunks, and what is no length",
            "transfer-encoding: chunked\ncontent-length: x",
        ),
        refused(
            "no length, and chunks",
            "content-length: x\ntransfer-encoding: chunked",
        ),
        refused("nearly chunked", "transfer-encoding: xchunked"),
        refused("chunked, then more", "transfer-encoding: chunked, identity"),
        refused(
            "a list in two lines",
            "transfer-encoding: chunked\ntransfer-encoding: identity",
        ),
        refused("identity", "transfer-encoding: identity"),
        refused("nothing", "transfer-encoding:"),
        refused("quotes", "transfer-encoding: \"chunked\""),
        refused("a vertical tab", "transfer-encoding: \u{b}chunked"),
        refused("a parameter", "transfer-encoding: chunked;a=b"),
        unknown(
            "compressed, then chunked",
            "transfer-encoding: gzip, chunked",
        ),
        unknown("chunked twice", "transfer-encoding: chunked, chunked"),
        unknown(
            "chunked twice in two lines",
            "transfer-encoding: chunked\ntransfer-encoding: chunked",
        ),
        unknown(
            "identity, then chunked",
            "transfer-encoding: identity\ntransfer-encoding: chunked",
        ),
        unknown("a comma before", "transfer-encoding: ,chunked"),
        refused("a space before the colon", "transfer-encoding : chunked"),
        refused("a folded line", "transfer-encoding:\n chunked"),
        case(
            "of HTTP/1.0",
            &format!("POST @ HTTP/1.0\nhost: a\ntransfer-encoding: chunked{chunks}"),
            &[400],
            &[],
        ),
        post(
            "any case",
            &format!("Transfer-ENCODING: cHuNkEd{chunks}"),
            &[200],
            &["POST @ hello"],
        ),
        case(
            "named by connection",
            &format!(
                "POST @ HTTP/1.1\nhost: a\nconnection: transfer-encoding\ntransfer-encoding: chunked{chunks}GET @/2 HTTP/1.1\nhost: a\n\n"
            ),
            &[200, 200],
            &["POST @ hello", "GET @/2 "],
        ),
    ]);
}

/// What is wrong in a body is found when the upstream has a part of it, which it never takes for all.
#[test]
fn chunks() {
    let broken = |name, body: &str| {
        raw(
            name,
            format!(
                "POST @ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}{}",
                SMUGGLED.replace('\n', "\r\n")
            ),
            &[400],
            &[],
        )
    };
    judge(&[
        broken("no size", "\r\nhello\r\n0\r\n\r\n"),
        broken("a size that is none", "5x\r\nhello\r\n0\r\n\r\n"),
        broken("a plus", "+5\r\nhello\r\n0\r\n\r\n"),
        broken("a minus", "-5\r\nhello\r\n0\r\n\r\n"),
        broken("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        broken(
            "more than 64 bits",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        broken("a chunk that is longer", "5\r\nhello!\r\n0\r\n\r\n"),
        broken("a bare LF after a size", "5\nhello\r\n0\r\n\r\n"),
        broken("a bare LF after a chunk", "5\r\nhello\n0\r\n\r\n"),
        broken("a bare CR after a size", "5\rhello\r\n0\r\n\r\n"),
        broken("a bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        broken("a comma after a size", "5,\r\nhello\r\n0\r\n\r\n"),
    ]);
}
