//! Hosts that lack something, or are otherwise.

use std::path::Path;

use super::AgentBuilder;
use crate::require;

impl AgentBuilder<'_> {
    /// A host whose kernel refuses bpf(2).
    #[must_use]
    pub fn without_bpf(mut self) -> Self {
        self.prefix = require::without_bpf();
        self
    }

    /// A host whose kernel refuses unshare(2).
    #[must_use]
    pub fn without_new_namespaces(mut self) -> Self {
        self.prefix = require::without_new_namespaces();
        self
    }

    /// A host on which the agent may not change sysctls.
    #[must_use]
    pub fn with_read_only_sysctls(mut self) -> Self {
        self.prefix = require::with_read_only_sysctls();
        self
    }

    /// A container that has a /run/netns of its own, in which nothing is.
    #[must_use]
    pub fn without_named_namespaces(mut self) -> Self {
        self.prefix = require::without_named_namespaces();
        self
    }

    /// A container whose clocks are not the kernel's: some 28 hours ahead.
    #[must_use]
    pub fn in_a_time_namespace(mut self) -> Self {
        self.prefix = require::in_a_time_namespace();
        self
    }

    /// A host that has these programs before all others.
    #[must_use]
    pub fn with_programs(mut self, dir: &Path) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        self.prefix = vec!["env".into(), format!("PATH={}:{path}", dir.display())];
        self
    }

    /// A host whose time of day is what `file` says: `+0`, `-1d` and the like.
    #[must_use]
    pub fn with_time_of_day(mut self, file: &Path) -> Self {
        self.prefix = require::with_time_of_day(file);
        self
    }
}
