//! What the programs say reaches the log.

use std::sync::Mutex;

/// What the programs say, as this process's log gets it.
#[derive(Debug, Default)]
pub struct Log(pub Mutex<Vec<String>>);

impl Log {
    pub fn collect() -> &'static Self {
        let log: &'static Self = Box::leak(Box::default());
        log::set_logger(log).expect("the first logger");
        log::set_max_level(log::LevelFilter::Debug);
        log
    }
}

impl log::Log for Log {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        self.0.lock().expect("whole").push(line);
    }

    fn flush(&self) {}
}
