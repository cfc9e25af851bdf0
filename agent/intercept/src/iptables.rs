//! The iptables backend: nat REDIRECT in the workload's namespace, behind a dead-man switch that the kernel judges.
//!
//! What differs from eBPF mode: sockets bound to a device are captured too (netfilter cannot see it), and inbound
//! ports are captured whether or not anybody listens on them, so a closed port is reset after the handshake.

mod render;
mod tools;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};

use shunt_core::flow::Direction;
use shunt_core::sockets::Family;
use shunt_core::workload::{Mode, OnFailure, WorkloadId};

use self::render::{Rendered, has_chains, jumps, removal, unhooking};
use self::tools::{Tools, Variant};
use crate::netns::Netns;
use crate::{Backend, Enrolment, Finding, InterceptError, Marks, return_path};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// See the head of this module.
#[derive(Debug)]
pub struct IptablesBackend {
    marks: Marks,
    tools: Tools,
    installed: HashMap<WorkloadId, Installed>,
    /// By namespace: the families whose nat table was there before us, and stays.
    foreign_tables: HashMap<u64, Vec<Family>>,
}

#[derive(Debug)]
struct Installed {
    variant: Variant,
    /// The `recent` lists that keep the rules closed.
    switches: Vec<Switch>,
}

/// One family's dead-man switch: writing refreshes it, not writing opens it after a second.
#[derive(Debug)]
struct Switch {
    file: File,
    words: &'static [u8],
}

impl Switch {
    /// From the start of the file each time: the kernel takes nothing at a later offset, and knows no pwrite here.
    fn refresh(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(self.words)
    }
}

impl IptablesBackend {
    /// # Errors
    /// No usable iptables is installed.
    pub fn new(marks: Marks) -> Result<Self, InterceptError> {
        Ok(Self {
            marks,
            tools: Tools::find()?,
            installed: HashMap::new(),
            foreign_tables: HashMap::new(),
        })
    }

    fn apply(&mut self, enrolment: &Enrolment, variant: Variant) -> Result<(), InterceptError> {
        let mut foreign = Vec::new();
        for family in FAMILIES {
            let saved = self.tools.save(&enrolment.netns, variant, family)?;
            if saved.contains("*nat") {
                foreign.push(family);
            }
            let rendered = Rendered::of(enrolment, self.marks, family);
            if rendered.captures_nothing() {
                // The family may have gone from the namespace since.
                self.remove(&enrolment.netns, variant, family, &saved)?;
                continue;
            }
            let text = rendered.transaction(&jumps(&saved));
            self.tools
                .restore(&enrolment.netns, variant, family, &text)?;
        }
        // What was there when we first came counts: later it is ours.
        self.foreign_tables
            .entry(enrolment.netns.inode())
            .or_insert(foreign);
        Ok(())
    }

    fn remove(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
        saved: &str,
    ) -> Result<(), InterceptError> {
        match removal(saved) {
            Some(text) => self.tools.restore(netns, variant, family, &text),
            None => Ok(()),
        }
    }

    fn switches(&self, enrolment: &Enrolment) -> Result<Vec<Switch>, InterceptError> {
        if enrolment.spec.on_failure == OnFailure::Closed {
            return Ok(Vec::new());
        }
        FAMILIES
            .into_iter()
            .filter(|family| {
                let port = |direction| enrolment.port(direction, *family);
                port(Direction::Outbound)
                    .or(port(Direction::Inbound))
                    .is_some()
            })
            .map(|family| open_switch(&enrolment.netns, family))
            .collect()
    }
}

impl Backend for IptablesBackend {
    fn mode(&self) -> Mode {
        Mode::Iptables
    }

    fn install(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let variant = self.tools.choose(&enrolment.netns)?;
        let installed = self
            .apply(enrolment, variant)
            .and_then(|()| self.switches(enrolment))
            .map(|switches| Installed { variant, switches });
        match installed {
            Ok(installed) => {
                self.installed.insert(enrolment.id, installed);
                Ok(())
            }
            Err(error) => {
                for family in FAMILIES {
                    let undone = self
                        .tools
                        .save(&enrolment.netns, variant, family)
                        .and_then(|saved| self.remove(&enrolment.netns, variant, family, &saved));
                    if let Err(error) = undone {
                        tracing::error!(error = error.chain(), "cannot undo a failed installation");
                    }
                }
                Err(error)
            }
        }
    }

    fn update(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(variant) = self
            .installed
            .get(&enrolment.id)
            .map(|installed| installed.variant)
        else {
            return self.install(enrolment);
        };
        self.apply(enrolment, variant)?;
        let switches = self.switches(enrolment)?;
        if let Some(installed) = self.installed.get_mut(&enrolment.id) {
            installed.switches = switches;
        }
        Ok(())
    }

    /// Takes out the jumps only. The REDIRECT rules stay where nothing leads to them: with the last of them the kernel
    /// would stop tracking the namespace's connections, and with that translating the flows under way.
    fn release(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(installed) = self.installed.remove(&enrolment.id) else {
            return Ok(());
        };
        for family in FAMILIES {
            let saved = self
                .tools
                .save(&enrolment.netns, installed.variant, family)?;
            if let Some(text) = unhooking(&saved) {
                self.tools
                    .restore(&enrolment.netns, installed.variant, family, &text)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let foreign = self
            .foreign_tables
            .remove(&enrolment.netns.inode())
            .unwrap_or_default();
        for variant in self.tools.variants(&enrolment.netns) {
            for family in FAMILIES {
                let saved = self.tools.save(&enrolment.netns, variant, family)?;
                self.remove(&enrolment.netns, variant, family, &saved)?;
                if !foreign.contains(&family) {
                    self.tools
                        .drop_empty_table(&enrolment.netns, variant, family)?;
                }
            }
        }
        Ok(())
    }

    fn keep_alive(&mut self) {
        for (id, installed) in &mut self.installed {
            for switch in &mut installed.switches {
                if let Err(error) = switch.refresh() {
                    tracing::debug!(workload = id.0, %error, "cannot refresh a dead-man switch");
                }
            }
        }
    }
}

fn open_switch(netns: &Netns, family: Family) -> Result<Switch, InterceptError> {
    let (name, words): (_, &[u8]) = match family {
        Family::V4 => ("shunt4", b"+0.0.0.0\n"),
        Family::V6 => ("shunt6", b"+::\n"),
    };
    let path = format!("/proc/thread-self/net/xt_recent/{name}");
    let opened = netns
        .enter(|| File::options().write(true).open(&path))
        .and_then(|opened| opened);
    let file =
        opened.map_err(|error| InterceptError::io("open the dead-man switch", &path, error))?;
    Ok(Switch { file, words })
}

/// What an earlier agent has left in a namespace. Looks only.
pub fn leftovers(netns: &Netns) -> Vec<String> {
    let Ok(tools) = Tools::find() else {
        return return_path::leftovers(netns);
    };
    let mut found = Vec::new();
    for variant in tools.variants(netns) {
        for family in FAMILIES {
            if tools
                .save(netns, variant, family)
                .is_ok_and(|saved| has_chains(&saved))
            {
                found.push(describe(variant, family));
            }
        }
    }
    found.extend(return_path::leftovers(netns));
    found
}

/// Removes every trace that an agent which is gone has left in a namespace, and says what it was. Parts that are
/// missing are no error.
///
/// # Errors
/// Something of ours may still be there.
pub fn cleanup(netns: &Netns) -> Result<Vec<String>, InterceptError> {
    let mut removed = Vec::new();
    if let Ok(tools) = Tools::find() {
        for variant in tools.variants(netns) {
            for family in FAMILIES {
                let saved = tools.save(netns, variant, family)?;
                if let Some(text) = removal(&saved) {
                    tools.restore(netns, variant, family, &text)?;
                    tools.drop_empty_table(netns, variant, family)?;
                    removed.push(describe(variant, family));
                }
            }
        }
    }
    removed.extend(return_path::remove_any(netns)?);
    Ok(removed)
}

fn describe(variant: Variant, family: Family) -> String {
    format!("chains SHUNT_* ({})", variant.command(family, ""))
}

/// What `shunt check` says of iptables mode. Tries everything for real, in a namespace made for it.
pub fn probe() -> Vec<Finding> {
    tools::probe()
}
