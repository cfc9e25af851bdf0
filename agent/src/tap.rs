//! `shunt tap`: watches live flows, or copies what they send past the TCP stack to a file.

mod capture;
mod packet;
mod pcapng;

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use shunt_core::flow::Direction;
use shunt_core::tap::{FlowSeen, TapEvent};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use self::capture::Capture;
use crate::ask::{self, percent_encoded};
use crate::cli::{self, Format, TapArgs};
use crate::status::size;

pub fn run(args: &TapArgs) -> ExitCode {
    match ask::runtime().and_then(|runtime| runtime.block_on(watch(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failed(&error),
    }
}

/// Why it ended.
enum End {
    Asked,
    /// Nobody reads what we write.
    NobodyReads,
    Agent,
}

async fn watch(args: &TapArgs) -> Result<()> {
    // Before anything is begun that is to be ended.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut telling = ask::telling(&args.socket, &path(args)).await?;
    let mut output = Output::begin(args)?;
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let mut told = 0;
    let end = loop {
        if args.count.is_some_and(|count| told >= count) {
            break End::Asked;
        }
        tokio::select! {
            line = telling.line() => match next(line)? {
                None => break End::Agent,
                Some(event) => match output.take(&event) {
                    Ok(more) => told += u64::from(more),
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break End::NobodyReads,
                    Err(error) => return Err(error).context("cannot write"),
                },
            },
            _ = interrupt.recv() => break End::Asked,
            _ = terminate.recv() => break End::Asked,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break End::Asked,
        }
    };
    drop(telling);
    output.sum_up(args);
    match end {
        End::Asked | End::NobodyReads => Ok(()),
        End::Agent => {
            bail!(
                "the agent ended, its data plane was replaced, or a file was not written for 10 s: nothing more is told"
            )
        }
    }
}

/// `None`: the agent has ended, in order or not.
fn next(
    line: Result<Option<bytes::Bytes>, shunt_admin::client::ClientError>,
) -> Result<Option<TapEvent>> {
    match line {
        Ok(Some(line)) => serde_json::from_slice(&line)
            .map(Some)
            .context("the agent is not understood"),
        Ok(None) | Err(_) => Ok(None),
    }
}

fn path(args: &TapArgs) -> String {
    let mut path = "/tap?".to_owned();
    if let Some(workload) = &args.workload {
        let _ = write!(path, "workload={}&", percent_encoded(workload));
    }
    if args.write.is_some() {
        let _ = write!(path, "bytes={}", args.bytes);
    }
    path
}

fn whose(args: &TapArgs) -> &str {
    args.workload.as_deref().unwrap_or("every workload")
}

/// Where events go.
enum Output {
    Table,
    Json,
    Capture(Box<Capture>),
}

impl Output {
    fn begin(args: &TapArgs) -> Result<Self> {
        let Some(file) = &args.write else {
            let whose = whose(args);
            cli::complain(&format!("watching the flows of {whose}; Ctrl-C ends it"));
            return Ok(match args.output.output {
                Format::Json => Self::Json,
                Format::Table => {
                    say(HEADLINE)?;
                    Self::Table
                }
            });
        };
        cli::complain(&format!(
            "the first {} bytes of each direction past the TCP stack go to {}; what goes by TCP does not",
            args.bytes,
            file.display()
        ));
        let out = open(file).with_context(|| format!("cannot write {}", file.display()))?;
        let capture = Capture::begin(out, whose(args), args.bytes);
        let capture = capture.with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self::Capture(Box::new(capture)))
    }

    /// True: it was one that counts.
    fn take(&mut self, event: &TapEvent) -> io::Result<bool> {
        let is_flow = matches!(
            event,
            TapEvent::Open(_) | TapEvent::Path(_) | TapEvent::Close(_)
        );
        match self {
            Self::Capture(capture) => return capture.take(event),
            Self::Json => say(&serde_json::to_string(event)?)?,
            Self::Table => match event {
                TapEvent::Open(flow) => say(&row("open", flow))?,
                TapEvent::Path(flow) => say(&row("path", flow))?,
                TapEvent::Close(flow) => say(&row("close", flow))?,
                TapEvent::Lost { lines, .. } => {
                    cli::complain(&format!("{lines} events lost: this reader is too slow"));
                }
                TapEvent::Bytes(_) | TapEvent::ByTcp(_) => {}
            },
        }
        Ok(is_flow)
    }

    fn sum_up(&self, args: &TapArgs) {
        if let (Self::Capture(capture), Some(file)) = (self, &args.write) {
            cli::complain(&format!("{}: {}", file.display(), capture.summary()));
        }
    }
}

const OWNER_ALONE: u32 = 0o600;

/// What was said on connections is not for everybody on the host.
fn open(file: &Path) -> io::Result<Box<dyn Write>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true);
    let file: File = options.mode(OWNER_ALONE).open(file)?;
    // One that was there already; a device stays as it is.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(OWNER_ALONE))?;
    }
    Ok(Box::new(file))
}

/// A line on stdout, at once.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

const HEADLINE: &str =
    "TIME          EVENT  PATH          SENT   RECEIVED     LASTED  CLIENT -> SERVER";

fn row(event: &str, flow: &FlowSeen) -> String {
    let (sent, received, lasted) = match &flow.close_reason {
        Some(_) => (
            size(flow.bytes_received),
            size(flow.bytes_sent),
            lasted(flow.duration_ms),
        ),
        None => ("-".into(), "-".into(), "-".into()),
    };
    // 2026-01-31T23:59:59.999Z
    let time = flow.time.get(11..23).unwrap_or(&flow.time);
    let own = Some(flow.workload.as_str());
    let peer = flow.peer_workload.as_deref();
    let (caller, callee) = match flow.direction {
        Direction::Outbound => (own, peer),
        Direction::Inbound => (peer, own),
    };
    let mut row = format!(
        "{time:12}  {event:5}  {:7} {sent:>10} {received:>10} {lasted:>10}  {} -> {}",
        flow.path.as_str(),
        end(caller, Some(flow.client)),
        end(callee, flow.original_dst),
    );
    if let Some(upstream) = flow.upstream.filter(|to| Some(*to) != flow.original_dst) {
        let _ = write!(row, " at {upstream}");
    }
    for more in [&flow.close_reason, &flow.detail].into_iter().flatten() {
        let _ = write!(row, "  {more}");
    }
    row
}

fn end(workload: Option<&str>, address: Option<SocketAddr>) -> String {
    let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    match workload {
        Some(workload) => format!("{workload} {address}"),
        None => address,
    }
}

fn lasted(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{milliseconds} ms"),
        _ => format!("{} s", milliseconds / 1000),
    }
}

#[cfg(test)]
mod tests;
