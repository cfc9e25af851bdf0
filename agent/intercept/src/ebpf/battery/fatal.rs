//! What must be as by TCP: else nothing is accelerated here.

use std::io::{self, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;
use shunt_ebpf_common::maps::End;

use super::Answer;
use super::bytes::{Deadline, Ending, expect, pattern, send_all, wait_for};
use super::scene::{Listening, Scene, accept, told};

/// As most programs write.
const PIECE: usize = 16 << 10;
/// Above the queue's bound and every socket buffer that a kernel has by default, below what would hurt.
const WITHOUT_BOUND: usize = 32 << 20;
/// Two pairs of these, equal, at the same time.
const SAME_PORTS: [u16; 2] = [40001, 8080];

pub(super) fn redirect(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    let (there, back) = (pattern(1, 1000), pattern(2, 3000));
    send_all(&flow.near, &there, PIECE, Deadline::new())?;
    expect(&flow.far, &there, &Ending::Open)?;
    send_all(&flow.far, &back, PIECE, Deadline::new())?;
    expect(&flow.near, &back, &Ending::Open)?;
    scene.are_redirected(&[&flow.near, &flow.far])
}

/// The reader reads all the while, or only when the writer has closed.
pub(super) fn order_under_close(scene: &Scene) -> Answer {
    const ROUNDS: u64 = 12;
    let mut bytes = 0;
    for round in 0..ROUNDS {
        let flow = scene.flow()?;
        let (writer, reader) = match round % 4 < 2 {
            true => (flow.near, flow.far),
            false => (flow.far, flow.near),
        };
        let sent = pattern(round, 100_000 + 17_000 * round as usize);
        let piece = [200, 5000, 70_000][round as usize % 3];
        let write = || {
            send_all(&writer, &sent, piece, Deadline::new())?;
            let end = scene.end(&writer)?;
            if end.state != End::REDIRECTED {
                return Err(format!("messages went by TCP (state {})", end.state));
            }
            scene.bytes_wait_in(&reader)?;
            drop(writer);
            Ok(())
        };
        if round % 2 == 0 {
            write()?;
            expect(&reader, &sent, &Ending::InOrder)?;
        } else {
            thread::scope(|scope| {
                let writing = scope.spawn(write);
                let heard = expect(&reader, &sent, &Ending::InOrder);
                let written = writing.join();
                written.unwrap_or_else(|_| Err("the writer failed".into()))?;
                heard
            })?;
        }
        bytes += sent.len();
    }
    Ok(format!("{ROUNDS} closes behind {bytes} bytes"))
}

pub(super) fn half_close(scene: &Scene) -> Answer {
    for seed in 0..2 {
        let flow = scene.flow()?;
        let (first, second) = match seed {
            0 => (&flow.near, &flow.far),
            _ => (&flow.far, &flow.near),
        };
        let (there, back) = (pattern(seed, 50_000), pattern(seed + 9, 200_000));
        send_all(first, &there, PIECE, Deadline::new())?;
        told(first.shutdown(Shutdown::Write))?;
        expect(second, &there, &Ending::InOrder)?;
        send_all(second, &back, PIECE, Deadline::new())?;
        scene.are_redirected(&[second])?;
        told(second.shutdown(Shutdown::Write))?;
        expect(first, &back, &Ending::InOrder)?;
    }
    Ok("200000 bytes against a closed direction, either way".into())
}

pub(super) fn reset(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    let sent = pattern(1, 1000);
    send_all(&flow.near, &sent, PIECE, Deadline::new())?;
    scene.are_redirected(&[&flow.near])?;
    told(flow.near.set_linger(Some(Duration::ZERO)))?;
    drop(flow.near);
    expect(&flow.far, &sent, &Ending::Reset)?;
    // And from the other end, before anything was said.
    let flow = scene.flow()?;
    scene.end(&flow.far)?;
    told(flow.far.set_linger(Some(Duration::ZERO)))?;
    drop(flow.far);
    expect(&flow.near, &[], &Ending::Reset)?;
    Ok("1000 bytes, then ECONNRESET; and at once".into())
}

/// Nobody reads until the writer may write no more.
pub(super) fn bounded_queue(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    let bytes = pattern(1, WITHOUT_BOUND);
    let mut held = 0;
    while held < bytes.len() {
        let piece = &bytes[held..bytes.len().min(held + (64 << 10))];
        match (&flow.near).write(piece) {
            Ok(sent) => held += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // By TCP the buffers of both ends fill for a moment yet.
                let soon = Deadline::after(Duration::from_millis(50));
                if wait_for(&flow.near, PollFlags::POLLOUT, soon).is_err() {
                    break;
                }
            }
            Err(error) => return Err(format!("after {held} bytes: {error}")),
        }
    }
    if held == bytes.len() {
        return Err(format!("it took {held} bytes that nobody reads"));
    }
    let end = scene.end(&flow.near)?;
    if end.sent == 0 {
        return Err("nothing went from queue to queue".into());
    }
    thread::scope(|scope| {
        let rest = &bytes[held..(held + (1 << 20)).min(bytes.len())];
        let all = &bytes[..held + rest.len()];
        let writing = scope.spawn(|| {
            send_all(&flow.near, rest, PIECE, Deadline::new())?;
            told(flow.near.shutdown(Shutdown::Write))
        });
        let heard = expect(&flow.far, all, &Ending::InOrder);
        let written = writing.join();
        written.unwrap_or_else(|_| Err("the writer failed".into()))?;
        heard
    })?;
    Ok(format!(
        "held back at {held} bytes, {} of them queued",
        end.sent
    ))
}

pub(super) fn early_bytes(scene: &Scene) -> Answer {
    let (listener, near) = scene.pairs[0].call(&Listening::default())?;
    // The accepting end is there as soon as the listener is ready.
    wait_for(&listener, PollFlags::POLLIN, Deadline::new())?;
    let sent = pattern(1, 10);
    send_all(&near, &sent, PIECE, Deadline::new())?;
    scene.are_redirected(&[&near])?;
    let far = accept(&listener)?;
    wait_for(&far, PollFlags::POLLIN, Deadline::new())?;
    expect(&far, &sent, &Ending::Open)?;
    Ok("10 bytes sent before accept made the socket readable".into())
}

pub(super) fn large_messages(scene: &Scene) -> Answer {
    const SIZE: usize = 1 << 20;
    for seed in 0..3 {
        let flow = scene.flow()?;
        let sent = pattern(seed, SIZE);
        thread::scope(|scope| {
            let writing = scope.spawn(|| send_all(&flow.near, &sent, SIZE, Deadline::new()));
            let heard = expect(&flow.far, &sent, &Ending::Open);
            let written = writing.join();
            written.unwrap_or_else(|_| Err("the writer failed".into()))?;
            heard
        })?;
        if scene.end(&flow.near)?.sent == 0 {
            return Err("nothing went from queue to queue".into());
        }
    }
    Ok("3 of them".into())
}

pub(super) fn mapped_addresses(scene: &Scene) -> Answer {
    for mapped_client in [false, true] {
        let how = Listening {
            on_both: true,
            mapped_client,
            ports: [0, 0],
        };
        let flow = scene.pairs[0].flow(&how)?;
        let sent = pattern(3, 2000);
        send_all(&flow.near, &sent, PIECE, Deadline::new())?;
        expect(&flow.far, &sent, &Ending::Open)?;
        send_all(&flow.far, &sent, PIECE, Deadline::new())?;
        expect(&flow.near, &sent, &Ending::Open)?;
        scene.are_redirected(&[&flow.near, &flow.far])?;
    }
    Ok("a server on ::, clients of IPv4 and of IPv6".into())
}

pub(super) fn isolation(scene: &Scene) -> Answer {
    let how = Listening {
        ports: SAME_PORTS,
        ..Listening::default()
    };
    let [one, other] = [scene.pairs[0].flow(&how)?, scene.pairs[1].flow(&how)?];
    scene.are_paired([&one, &other])?;
    for (flow, seed) in [(&one, 1), (&other, 2)] {
        send_all(&flow.near, &pattern(seed, 5000), PIECE, Deadline::new())?;
        send_all(&flow.far, &pattern(seed + 10, 5000), PIECE, Deadline::new())?;
    }
    for (flow, seed) in [(&one, 1), (&other, 2)] {
        expect(&flow.far, &pattern(seed, 5000), &Ending::Open)?;
        expect(&flow.near, &pattern(seed + 10, 5000), &Ending::Open)?;
    }
    scene.are_redirected(&[&one.near, &one.far, &other.near, &other.far])?;
    Ok("two connections with equal addresses and ports kept apart".into())
}
