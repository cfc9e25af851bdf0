//! Too much of something: at the limit it is taken, one above it is not, and without an end it ends soon.

use std::time::{Duration, Instant};

use crate::scene::{MOST_BYTES, MOST_LINES, PATIENCE, Scene, Talk};

/// Of one in which the answer is read before the reset.
const TRIES: usize = 20;

/// A request with so many lines, `host` one of them.
fn with_lines(lines: usize) -> String {
    let more: String = (1..lines).map(|at| format!("x-{at}: 1\r\n")).collect();
    format!("GET /lines HTTP/1.1\r\nhost: a\r\n{more}\r\n")
}

/// A request of so many bytes.
fn of_bytes(bytes: usize) -> String {
    let text = "GET /bytes HTTP/1.1\r\nhost: a\r\nx-a: \r\n\r\n";
    let more = "a".repeat(bytes - text.len());
    text.replace("x-a: ", &format!("x-a: {more}"))
}

#[test]
fn at_the_limit_and_one_above() {
    let scene = Scene::new();
    let status = |text: &str| {
        let mut talk = scene.talk();
        let _ = talk.say(text.as_bytes());
        let answer = talk.answer().expect("it is read").expect("an answer");
        answer.status
    };
    scene.unharmed(|| {
        assert_eq!(status(&with_lines(MOST_LINES)), 200);
        assert_eq!(status(&with_lines(MOST_LINES + 1)), 431);
        assert_eq!(status(&of_bytes(MOST_BYTES)), 200);
        assert_eq!(status(&of_bytes(MOST_BYTES + 1)), 431);
    });
    let seen = scene.upstream.with(|seen| seen.requests.clone());
    assert_eq!(seen, ["GET /lines ", "GET /bytes "]);
}

/// Says it again and again. The status that is said meanwhile, 0 where it is taken for ever, or `None` where the connection just ends.
fn pour(mut talk: Talk, first: &str, more: &str) -> Option<u16> {
    let more = more.repeat(1 + 4096 / more.len());
    let mut reading = Talk::from(talk.raw.stream.try_clone().expect("a clone"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || reading.answer().ok().flatten());
        let mut goes_on = talk.say(first.as_bytes()).is_ok();
        while goes_on && begun.elapsed() < PATIENCE {
            goes_on = talk.say(more.as_bytes()).is_ok();
        }
        let answer = answer.join().expect("no panic");
        match goes_on {
            true => Some(0),
            false => answer.map(|answer| answer.status),
        }
    })
}

#[test]
fn without_end() {
    let scene = Scene::new();
    let chunked = "POST /endless HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let head = "GET /endless HTTP/1.1\r\nhost: a\r\n";
    let cases = [
        ("empty lines", "", "\r\n", &[400, 408, 431][..]),
        ("a method", "", "G", &[400, 431]),
        ("a target", "GET /endless", "a", &[414, 431]),
        ("a version", "GET /endless HTTP/1.1", "1", &[400, 431]),
        (
            "a line",
            "GET /endless HTTP/1.1\r\nhost: a\r\nx-a: ",
            "a",
            &[431],
        ),
        ("a name", head, "a", &[431]),
        ("lines", head, "x-a: 1\r\n", &[431]),
        ("a size", chunked, "0", &[400]),
        ("an extension", &format!("{chunked}5;"), "a", &[400]),
        (
            "an extension in each chunk",
            chunked,
            "1;aaaaaaaaaaaaaaa\r\na\r\n",
            &[400],
        ),
        (
            "a line of trailers",
            &format!("{chunked}0\r\nx-a: "),
            "a",
            &[400],
        ),
        ("trailers", &format!("{chunked}0\r\n"), "x-a: 1\r\n", &[400]),
        ("chunks", chunked, "1\r\na\r\n", &[408]),
        (
            "a body",
            "POST /endless HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n",
            "a",
            &[408],
        ),
        (
            "garbage behind a request",
            "GET /endless HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            &[200],
        ),
    ];
    let mut faults = Vec::new();
    scene.unharmed(|| {
        for (name, first, more, statuses) in cases {
            // Who is not listened to any more may be reset before the answer is read, but not each time.
            let mut said = None;
            for _ in 0..TRIES {
                let begun = Instant::now();
                said = pour(scene.talk(), first, more);
                if begun.elapsed() > PATIENCE + Duration::from_secs(1) {
                    faults.push(format!("{name}: {:?}", begun.elapsed()));
                }
                if said.is_some() {
                    break;
                }
            }
            if !said.is_some_and(|status| statuses.contains(&status)) {
                faults.push(format!("{name}: {said:?}"));
            }
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Requests that nobody waits for, as many as go into the sockets.
#[test]
fn pipelines_without_end() {
    let scene = Scene::new();
    scene.unharmed(|| {
        let mut talk = scene.talk();
        // Nothing is read: at some time nothing more is taken.
        let begun = Instant::now();
        let many = "GET /pipelined HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
        while talk.say(many.as_bytes()).is_ok() {
            assert!(begun.elapsed() < PATIENCE * 4, "it goes on and on");
        }
    });
    let seen = scene.upstream.with(|seen| seen.requests.clone());
    assert!(seen.iter().all(|request| request == "GET /pipelined "));
}
