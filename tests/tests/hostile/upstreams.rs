//! Upstreams that mean harm: their clients are told that there is no answer, or see it break off, and nobody gets what was
//! said to another.

use crate::scene::Scene;
use crate::upstream::Evil;

/// What a client is told.
enum Told {
    Status(u16),
    /// The first part of an answer, and no end that looks like one.
    BrokenOff,
    Body(&'static str),
}

struct Case {
    name: &'static str,
    evil: Evil,
    told: Told,
}

fn says(name: &'static str, text: &str, told: Told) -> Case {
    let evil = Evil::Says(text.replace('\n', "\r\n").into_bytes());
    Case { name, evil, told }
}

fn closes(name: &'static str, text: &str, told: Told) -> Case {
    let evil = Evil::SaysAndCloses(text.replace('\n', "\r\n").into_bytes());
    Case { name, evil, told }
}

fn endless(name: &'static str, first: &str, more: &str, told: Told) -> Case {
    let first = first.replace('\n', "\r\n").into_bytes();
    let more = more.replace('\n', "\r\n").into_bytes();
    Case {
        name,
        evil: Evil::Endless(first, more),
        told,
    }
}

const EVIL: &str = "HTTP/1.1 200 OK\ncontent-length: 4\n\nevil";

fn cases() -> Vec<Case> {
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\n{rest}");
    let long = "x".repeat(4096);
    vec![
        says(
            "two lengths",
            &ok("content-length: 2\ncontent-length: 3\n\nok!"),
            Told::Status(502),
        ),
        says(
            "the same length twice",
            &ok("content-length: 2\ncontent-length: 2\n\nok"),
            Told::Status(502),
        ),
        says(
            "a list of lengths",
            &ok("content-length: 2, 2\n\nok"),
            Told::Status(502),
        ),
        says("a plus", &ok("content-length: +2\n\nok"), Told::Status(502)),
        says(
            "a length and chunks",
            &ok("content-length: 30\ntransfer-encoding: chunked\n\n2\nok\n0\n\n"),
            Told::Status(502),
        ),
        closes(
            "an encoding that nobody knows",
            &ok("transfer-encoding: xchunked\n\n2\nok\n0\n\n"),
            Told::Status(502),
        ),
        says(
            "compressed, then chunked",
            &ok("transfer-encoding: gzip, chunked\n\n2\nok\n0\n\n"),
            Told::Status(502),
        ),
        says(
            "an answer behind the answer",
            &format!("{}{EVIL}", ok("content-length: 2\n\nok")),
            Told::Body("ok"),
        ),
        says(
            "a body that is longer than it was said",
            &ok("content-length: 2\n\nok, and more"),
            Told::Body("ok"),
        ),
        says(
            "an answer behind the last chunk",
            &format!("{}{EVIL}", ok("transfer-encoding: chunked\n\n2\nok\n0\n\n")),
            Told::Body("ok"),
        ),
        says(
            "an answer behind one that has no body",
            &format!("HTTP/1.1 204 No Content\n\n{EVIL}"),
            Told::Status(204),
        ),
        closes("nothing", "", Told::Status(503)),
        closes("half a head", "HTTP/1.1 200 OK\nx-a", Told::Status(503)),
        closes(
            "half a body",
            &ok("content-length: 10\n\nhalf"),
            Told::BrokenOff,
        ),
        closes(
            "half a chunk",
            &ok("transfer-encoding: chunked\n\na\nhalf"),
            Told::BrokenOff,
        ),
        says(
            "a chunk that is none",
            &ok("transfer-encoding: chunked\n\n2\nok\nzz\n"),
            Told::BrokenOff,
        ),
        says("no HTTP", "SSH-2.0-x\n\n", Told::Status(502)),
        says("a NUL", &ok("x-a: 1\0\n\n"), Told::Status(502)),
        says(
            "a folded line",
            &ok("x-a: 1\n 2\ncontent-length: 0\n\n"),
            Told::Status(502),
        ),
        says(
            "a space before the colon",
            &ok("content-length : 2\n\nok"),
            Told::Status(502),
        ),
        says(
            "a status of four digits",
            "HTTP/1.1 2000 OK\n\n",
            Told::Status(502),
        ),
        endless(
            "an endless head",
            "HTTP/1.1 200 OK\n",
            "x-a: 1\n",
            Told::Status(502),
        ),
        endless(
            "an endless line",
            "HTTP/1.1 200 OK\nx-a: ",
            &long,
            Told::Status(502),
        ),
        endless(
            "early hints without end",
            "",
            "HTTP/1.1 103 Early Hints\nlink: a\n\n",
            Told::Status(503),
        ),
        endless(
            "an endless extension of a chunk",
            &ok("transfer-encoding: chunked\n\n2;"),
            &long,
            Told::BrokenOff,
        ),
        endless(
            "an endless size of a chunk",
            &ok("transfer-encoding: chunked\n\n"),
            &"0".repeat(4096),
            Told::BrokenOff,
        ),
        endless(
            "endless trailers",
            &ok("transfer-encoding: chunked\n\n2\nok\n0\n"),
            "x-a: 1\n",
            Told::BrokenOff,
        ),
    ]
}

#[test]
fn upstreams_that_mean_harm() {
    let scene = Scene::new();
    let mut faults = Vec::new();
    scene.unharmed(|| {
        for (at, case) in cases().into_iter().enumerate() {
            let path = format!("/evil/{at}");
            scene.upstream.plan(&path, case.evil);
            let mut talk = scene.talk();
            let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            talk.say(text.as_bytes()).expect("it is heard");
            let answer = talk.answer();
            let is_right = match (&case.told, &answer) {
                (Told::Status(status), Ok(Some(answer))) => answer.status == *status,
                (Told::Body(body), Ok(Some(answer))) => {
                    answer.status == 200 && answer.body == *body
                }
                (Told::BrokenOff, Err(_)) => true,
                _ => false,
            };
            if !is_right {
                faults.push(format!("{}: {answer:?}", case.name));
            }
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
