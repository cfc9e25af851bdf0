//! The agent's own log, to stderr; its level can be changed while it runs.

use std::io::{self, IsTerminal};

use shunt_core::config::file::check_level;
use shunt_core::config::{Log, LogFormat};
use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes the level of the log.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

#[derive(Debug, Error)]
pub enum LoggingError {
    /// The caller is at fault; the message says what is allowed.
    #[error("{0}")]
    Level(String),
    #[error("cannot set up logging")]
    Init(#[source] TryInitError),
    #[error("cannot change the log level")]
    Reload(#[source] reload::Error),
}

/// Sends the log of the whole process to stderr, as `log` says. Once per process.
///
/// # Errors
/// The level is none, or a log is set up already.
pub fn init(log: &Log) -> Result<LogLevel, LoggingError> {
    let (subscriber, level) = subscriber(log, io::stderr, io::stderr().is_terminal())?;
    subscriber.try_init().map_err(LoggingError::Init)?;
    Ok(level)
}

impl LogLevel {
    /// # Errors
    /// `level` is not a filter as in the configuration's `log.level`; the old one stays.
    pub fn set(&self, level: &str) -> Result<(), LoggingError> {
        self.0.reload(filter(level)?).map_err(LoggingError::Reload)
    }
}

fn subscriber<W>(
    log: &Log,
    writer: W,
    colours: bool,
) -> Result<(impl Subscriber + Send + Sync + use<W>, LogLevel), LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = fmt::layer().with_writer(writer).with_ansi(colours);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok((
        Registry::default().with(filter).with(lines),
        LogLevel(handle),
    ))
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    check_level(level).map_err(LoggingError::Level)?;
    level
        .parse()
        .map_err(|_| LoggingError::Level(format!("`{level}` is not a log level")))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use shunt_core::config::Config;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    fn log(format: LogFormat) -> Log {
        Log {
            format,
            ..Config::default().log
        }
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let memory = Memory::default();
        let writer = memory.clone();
        let (subscriber, level) =
            subscriber(&log(LogFormat::Text), move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("one");
            assert_eq!(memory.take(), "");
            level.set("warn,shunt_telemetry=debug").unwrap();
            tracing::debug!(workload = "default/web", "two");
            let line = memory.take();
            assert!(
                line.contains("DEBUG") && line.contains("two workload="),
                "{line}"
            );
            let error = level.set("loud").expect_err("no level").to_string();
            assert!(
                error.contains("`loud` is not a log level (off | error"),
                "{error}"
            );
            tracing::debug!("three");
            assert!(memory.take().contains("three"));
            level.set("off").unwrap();
            tracing::error!("four");
            assert_eq!(memory.take(), "");
        });
    }

    #[test]
    fn json_lines() {
        let memory = Memory::default();
        let writer = memory.clone();
        let (subscriber, _level) =
            subscriber(&log(LogFormat::Json), move || writer.clone(), true).unwrap();
        tracing::subscriber::with_default(subscriber, || tracing::info!(port = 15001, "bound"));
        let line: serde_json::Value = serde_json::from_str(&memory.take()).unwrap();
        assert_eq!(
            (&line["level"], &line["message"]),
            (&"INFO".into(), &"bound".into())
        );
        assert_eq!(
            (&line["port"], &line["target"]),
            (&15001.into(), &module_path!().into())
        );
    }
}
