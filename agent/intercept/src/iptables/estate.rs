//! What a supervisor leaves to the next one of this mode. Rules stay as they are: the next one writes the same over them.

use std::os::fd::OwnedFd;

use shunt_core::sockets::Family;

use super::IptablesBackend;

impl IptablesBackend {
    /// What keeps the rules closed, for the next supervisor until it has its own.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn switches(&self) -> std::io::Result<Vec<(Family, OwnedFd)>> {
        let installed = self.installed.values();
        let switches = installed.flat_map(|installed| &installed.switches);
        switches
            .filter_map(|switch| switch.share().transpose())
            .collect()
    }

    /// By the inode of a namespace: what keeps flows alive there as long as it is open. For the next supervisor.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn tables(&self) -> std::io::Result<Vec<(u64, OwnedFd)>> {
        let shared = self.tracking.iter();
        let shared = shared.map(|(inode, tracking)| Ok((*inode, tracking.share()?)));
        let shared: std::io::Result<Vec<_>> = shared.collect();
        let shared = shared?.into_iter();
        Ok(shared
            .filter_map(|(inode, socket)| Some((inode, socket?)))
            .collect())
    }

    /// Lets go of what nobody has taken over.
    pub fn disinherit(&mut self) {
        self.inherited.clear();
    }

    /// Takes what the supervisor before this one has left.
    pub fn inherit(&mut self, estate: Vec<(u64, OwnedFd)>) {
        self.inherited = estate.into_iter().collect();
    }
}
