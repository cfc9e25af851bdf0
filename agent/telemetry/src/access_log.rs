//! One line for each application connection that has ended, for each HTTP request on one that the agent served itself, and
//! for each DNS query of a workload whose DNS is captured.
//!
//! A worker hands its line to a thread of the log's own and goes on; where that thread does not keep up, lines are
//! dropped and counted, connections never wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use shunt_core::config::{AccessLog, Log, LogFormat};
use shunt_core::counters::AgentCounters;
use shunt_core::dns::QueryRecord;
use shunt_core::flow::FlowRecord;
use shunt_core::http::record::RequestRecord;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

mod line;
mod query;
mod request;
#[cfg(test)]
mod tests;

/// Lines that wait for the writing thread; some megabytes when it is stuck, and its idle cost is small.
const LINES_WAITING: usize = 8192;
/// Bytes gathered into one system call while lines keep coming.
const BATCH: usize = 32 * 1024;

/// The access log. Clones write to the same place; when the last one is dropped, what waits is written out, for at
/// most about a second.
#[derive(Clone, Debug)]
pub struct AccessLogger {
    format: LogFormat,
    /// `None`: off.
    queue: Option<Queue>,
}

#[derive(Clone, Debug)]
struct Queue {
    lines: NonBlocking,
    dropped: ErrorCounter,
    /// How many of `dropped` are in `counters` already.
    counted: Arc<AtomicUsize>,
    counters: Arc<AgentCounters>,
    _flush_at_drop: Arc<WorkerGuard>,
}

/// Gathers lines and writes them whole. One call of `write` is one line.
struct Sink<W> {
    out: W,
    gathered: Vec<u8>,
    lines: u64,
    counters: Arc<AgentCounters>,
}

impl AccessLogger {
    /// Opens the place that `log` names; a file is made where there is none, and appended to.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(log: &Log, counters: Arc<AgentCounters>) -> io::Result<Self> {
        let out = match &log.access {
            AccessLog::Off => {
                return Ok(Self {
                    format: log.format,
                    queue: None,
                });
            }
            // A handle of its own: the standard library's would flush every line, and hold a lock meanwhile.
            AccessLog::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            AccessLog::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(path)?,
        };
        Ok(Self::to(out, log.format, counters))
    }

    /// Writes to `out`, for instance a file that somebody with more rights has opened.
    pub fn to<W: Write + Send + 'static>(
        out: W,
        format: LogFormat,
        counters: Arc<AgentCounters>,
    ) -> Self {
        Self::with_queue(out, format, counters, LINES_WAITING)
    }

    fn with_queue<W: Write + Send + 'static>(
        out: W,
        format: LogFormat,
        counters: Arc<AgentCounters>,
        lines_waiting: usize,
    ) -> Self {
        let sink = Sink {
            out,
            gathered: Vec::new(),
            lines: 0,
            counters: counters.clone(),
        };
        let (lines, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(lines_waiting)
            .thread_name("access-log")
            .finish(sink);
        let queue = Queue {
            dropped: lines.error_counter(),
            lines,
            counted: Arc::default(),
            counters,
            _flush_at_drop: Arc::new(guard),
        };
        Self {
            format,
            queue: Some(queue),
        }
    }

    /// Hands over the connection's line. Never blocks: a line that finds no room is dropped and counted.
    pub fn write(&self, record: &FlowRecord) {
        if self.is_on() {
            self.hand_over(match self.format {
                LogFormat::Text => line::text(record),
                LogFormat::Json => line::json(record),
            });
        }
    }

    /// The same with a request's line.
    pub fn write_request(&self, record: &RequestRecord) {
        if self.is_on() {
            self.hand_over(match self.format {
                LogFormat::Text => request::text(record),
                LogFormat::Json => request::json(record),
            });
        }
    }

    /// The same with a DNS query's line.
    pub fn write_query(&self, record: &QueryRecord) {
        if self.is_on() {
            self.hand_over(match self.format {
                LogFormat::Text => query::text(record),
                LogFormat::Json => query::json(record),
            });
        }
    }

    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    fn hand_over(&self, mut line: String) {
        let Some(queue) = &self.queue else { return };
        line.push('\n');
        // A full queue is no error here, it only counts.
        let _ = queue.lines.clone().write_all(line.as_bytes());
        let dropped = queue.dropped.dropped_lines();
        let new = dropped.saturating_sub(queue.counted.fetch_max(dropped, Relaxed));
        if new > 0 {
            queue
                .counters
                .access_log_dropped
                .fetch_add(new as u64, Relaxed);
        }
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(line);
        self.lines += 1;
        if self.gathered.len() >= BATCH {
            self.flush()?;
        }
        Ok(line.len())
    }

    /// Lines that cannot be written (a full disk, a reader that has gone) are dropped: later ones may fare better.
    fn flush(&mut self) -> io::Result<()> {
        if self
            .out
            .write_all(&self.gathered)
            .and_then(|()| self.out.flush())
            .is_err()
        {
            self.counters
                .access_log_dropped
                .fetch_add(self.lines, Relaxed);
        }
        self.gathered.clear();
        self.lines = 0;
        Ok(())
    }
}
