//! Clients that take their time, many of them: each has the time that its listener gives, and nobody waits for it.

use std::time::{Duration, Instant};

use shunt_tests::wait;

use crate::scene::{PATIENCE, Scene};
use crate::upstream::{DEAF, Evil};

const MANY: usize = 60;
/// Between two bytes: less than any limit.
const PACE: Duration = Duration::from_millis(100);

/// So many clients at once that say this byte by byte; what each is told in the end, if it is told anything.
fn trickle(scene: &Scene, first: &str, slowly: &str) -> Vec<Option<u16>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..MANY)
            .map(|_| {
                let mut talk = scene.talk();
                scope.spawn(move || {
                    let begun = Instant::now();
                    talk.say(first.as_bytes()).expect("it is heard");
                    for byte in slowly.as_bytes().iter().cycle() {
                        if talk.say(&[*byte]).is_err() || has_answer(&talk.raw.stream) {
                            break;
                        }
                        assert!(begun.elapsed() < PATIENCE, "it is listened to for ever");
                        wait::pause(PACE);
                    }
                    talk.answer().ok().flatten().map(|answer| answer.status)
                })
            })
            .collect();
        let told = clients.into_iter().map(|client| client.join());
        told.map(|told| told.expect("no panic")).collect()
    })
}

fn has_answer(stream: &std::net::TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let is_there = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).expect("a socket");
    is_there
}

#[test]
fn heads_byte_by_byte() {
    let scene = Scene::new();
    scene.unharmed(|| {
        let told = trickle(&scene, "", "GET /slow HTTP/1.1\r\nhost: a\r\nx-a: ");
        assert!(told.iter().all(|told| *told == Some(408)), "{told:?}");
        let told = trickle(&scene, "GET /slow HTTP/1.1\r\nhost: a\r\n", "x-a: 1\r\n");
        assert!(told.iter().all(|told| *told == Some(408)), "{told:?}");
    });
    let seen = scene.upstream.with(|seen| seen.requests.len());
    assert_eq!(seen, 0);
}

#[test]
fn bodies_byte_by_byte() {
    let scene = Scene::new();
    let post = "POST /slow HTTP/1.1\r\nhost: a\r\n";
    scene.unharmed(|| {
        let told = trickle(&scene, &format!("{post}content-length: 1000\r\n\r\n"), "a");
        assert!(told.iter().all(|told| *told == Some(408)), "{told:?}");
        let chunked = format!("{post}transfer-encoding: chunked\r\n\r\n");
        let told = trickle(&scene, &chunked, "1\r\na\r\n");
        assert!(told.iter().all(|told| *told == Some(408)), "{told:?}");
    });
    // Nobody got what never was all of a request.
    let seen = scene.upstream.with(|seen| seen.requests.len());
    assert_eq!(seen, 0);
}

/// Whoever takes nothing of an answer is let go of; what was read for it does not pile up.
#[test]
fn answers_that_nobody_reads() {
    let scene = Scene::new();
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [&b"8000\r\n"[..], &[b'x'; 0x8000], b"\r\n"].concat();
    scene.upstream.plan("/big", Evil::Endless(head, chunk));
    scene.unharmed(|| {
        let mut talks: Vec<_> = (0..MANY).map(|_| scene.talk()).collect();
        for talk in &mut talks {
            talk.say(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
                .expect("it is heard");
        }
        for talk in &mut talks {
            wait::until("it is let go of", PATIENCE, || {
                talk.raw.stream.take_error().expect("a socket")
            });
        }
    });
}

/// An upstream that takes nothing of a request whose client has left is let go of.
#[test]
fn uploads_that_nobody_takes() {
    let scene = Scene::new();
    let head = format!("POST {DEAF} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n");
    scene.unharmed(|| {
        for _ in 0..MANY {
            let mut talk = scene.talk();
            talk.say(head.as_bytes()).expect("it is heard");
            talk.raw.stream.set_nonblocking(true).expect("a socket");
            // Until all buffers on the way are full: nothing was taken for a while.
            let mut taken = Instant::now();
            while taken.elapsed() < PACE {
                match std::io::Write::write(&mut talk.raw.stream, &[b'x'; 1 << 16]) {
                    Ok(_) => taken = Instant::now(),
                    Err(_) => wait::pause(PACE / 10),
                }
            }
        }
    });
}
