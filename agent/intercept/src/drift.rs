//! What somebody else did to what steers a workload, as far as it can be seen in the kernel.

/// A part of what steers a workload. Its name is the `what` of `shunt_interception_repairs_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Our chains and the jumps to them.
    Rules,
    /// What closes the rules for a second at a time.
    DeadMan,
    ReturnPath,
    /// Attachments of programs.
    Links,
    /// What keeps them when the agent dies.
    Pins,
    /// Entries of maps.
    Maps,
    /// The directory where programs are attached.
    Cgroup,
    Listeners,
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::DeadMan => "dead_man",
            Self::ReturnPath => "return_path",
            Self::Links => "links",
            Self::Pins => "pins",
            Self::Maps => "maps",
            Self::Cgroup => "cgroup",
            Self::Listeners => "listeners",
        }
    }
}

/// One thing that is not as it was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub part: Part,
    /// The evidence.
    pub found: String,
}

impl Drift {
    pub(crate) fn new(part: Part, found: impl Into<String>) -> Self {
        let found = found.into();
        Self { part, found }
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// Every other second, at each workload: everything that the kernel does not announce.
    Full,
    /// After an event, and now and then in case one was lost: everything.
    Close,
}
