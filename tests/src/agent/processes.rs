//! The agent's processes, and what they may do.

use std::fs;

use super::{Agent, AgentBuilder};
use crate::require;

impl AgentBuilder<'_> {
    /// An agent that is given these capabilities alone, by their names as in `CAP_NET_ADMIN`.
    #[must_use]
    pub fn with_capabilities(mut self, names: &[String]) -> Self {
        self.prefix = require::with_capabilities(names);
        self
    }

    /// An agent in whose environment these variables are set besides, each as `NAME=VALUE`.
    #[must_use]
    pub fn with_environment(mut self, variables: &[String]) -> Self {
        self.prefix = ["env".to_owned()]
            .into_iter()
            .chain(variables.iter().cloned())
            .collect();
        self
    }
}

impl Agent {
    /// The data plane's process, `None` while there is none.
    pub fn worker_pid(&self) -> Option<u32> {
        self.child_called("worker")
    }

    /// The process that watches the Kubernetes API, where there is one.
    pub fn watcher_pid(&self) -> Option<u32> {
        self.child_called("pods")
    }

    fn child_called(&self, verb: &str) -> Option<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let is = |child: &&str| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(verb.as_bytes())
        };
        children.split_whitespace().find(is)?.parse().ok()
    }
}
