//! What a quiet pod notices of a neighbour that moves as many bytes as it can.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result, ensure};
use shunt_tests::{Pod, Running};

use super::Figures;
use super::load::{SINK_PORT, bulk};
use crate::run::answer;

/// The neighbour's connections, each written to by a thread.
const FLOWS: usize = 8;
/// Bytes in each after which the flood is under way: direct connections have their windows, spliced ones their pipes.
const UNDER_WAY: u64 = 4 << 20;
const WRITE: usize = 64 << 10;
const FLOODING: &str = "flooding";

/// The neighbour's part. Says when all connections are under way, and at the end of standard input how many megabytes
/// a second they moved together.
pub(super) fn pour(host: &str) -> Result<()> {
    let to = SocketAddr::new(host.parse()?, SINK_PORT);
    let ended = AtomicBool::new(false);
    let (under_way, all) = mpsc::channel();
    let rate = std::thread::scope(|scope| {
        let pour = |under_way: mpsc::Sender<()>| -> Result<f64> {
            let moved = bulk(to, WRITE, |sent| {
                if sent == UNDER_WAY {
                    // The main thread has given up only when another failed.
                    let _ = under_way.send(());
                }
                !ended.load(Ordering::Relaxed)
            })?;
            Ok(moved.rate)
        };
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                let under_way = under_way.clone();
                scope.spawn(move || pour(under_way))
            })
            .collect();
        drop(under_way);
        if all.iter().take(FLOWS).count() == FLOWS {
            answer(FLOODING);
            let _ = std::io::stdin().read(&mut [0]);
        }
        ended.store(true, Ordering::Relaxed);
        flows.into_iter().map(joined).sum::<Result<f64>>()
    })?;
    answer(&rate.to_string());
    Ok(())
}

fn joined(flow: ScopedJoinHandle<'_, Result<f64>>) -> Result<f64> {
    flow.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Adds the neighbour's rate and the quiet one's round trips, measured by `quiet` at the same time.
pub(super) fn beside(
    figures: &mut Figures,
    neighbour: &Pod,
    program: &str,
    host: &str,
    quiet: impl FnOnce() -> Result<Figures>,
) -> Result<()> {
    let mut command = neighbour.command(program);
    command.args(["bench-load", "flood", "--host", host]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut flood = Running(command.spawn().context("the flood starts")?);
    let mut lines = BufReader::new(flood.0.stdout.take().context("a pipe")?).lines();
    let first = lines.next().context("the flood failed")??;
    ensure!(first == FLOODING, "the flood says `{first}`");
    figures.extend(quiet()?);
    drop(flood.0.stdin.take());
    let rate = lines.next().context("the flood failed")??;
    figures.insert("quiet_neighbour_mbps".into(), rate.parse()?);
    Ok(())
}
