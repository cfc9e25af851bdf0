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

    /// All data planes: while one is being replaced there are several.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.children_called("worker")
    }

    fn child_called(&self, verb: &str) -> Option<u32> {
        self.children_called(verb).first().copied()
    }

    fn children_called(&self, verb: &str) -> Vec<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let is = |child: &&str| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(verb.as_bytes())
        };
        let called = children.split_whitespace().filter(is);
        called.filter_map(|child| child.parse().ok()).collect()
    }
}
