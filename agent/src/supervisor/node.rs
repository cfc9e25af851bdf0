//! What the agent serves in the node's own name: the listeners of its bootstrap, bound here since their ports may be
//! privileged ones, and sockets to connect from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use shunt_core::bootstrap::Bootstrap;
use shunt_core::config::Config;
use shunt_core::listener::Captured;
use shunt_intercept::netns::Netns;
use shunt_xds::{Loaded, Source};

use super::Supervisor;
use super::store::{Kept, Stored};
use crate::ipc::ToWorker;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) netns: Netns,
    pub(super) loaded: Loaded,
    /// Why what was read last is not served.
    pub(super) refused: Option<String>,
    /// The names of its listeners that serve workloads' connections.
    pub(super) captured: Arc<Captured<String>>,
    /// One for each worker.
    sockets: BTreeMap<SocketAddr, Vec<OwnedFd>>,
}

impl Node {
    /// Binds every listener that has not been left by the supervisor before this one, or kept by systemd.
    pub(super) fn open(
        config: &Config,
        loaded: Loaded,
        inherited: BTreeMap<SocketAddr, Vec<OwnedFd>>,
        stored: &mut Stored,
    ) -> Result<Self> {
        let mut node = Self {
            netns: Netns::own().context("cannot open the agent's own namespace")?,
            loaded: Loaded::default(),
            refused: None,
            captured: Arc::default(),
            sockets: BTreeMap::new(),
        };
        node.sockets = inherited;
        node.sockets
            .extend(stored.take_node(&node.netns, config.concurrency));
        node.sockets.retain(|addr, sockets| {
            let mut bound = loaded.bootstrap.bound();
            sockets.len() == config.concurrency && bound.any(|listener| listener.addr == *addr)
        });
        let sockets = node.bind(config, &loaded.bootstrap)?;
        node.sockets.extend(sockets);
        node.captured = Arc::new(loaded.bootstrap.captured());
        node.loaded = loaded;
        Ok(node)
    }

    /// Those that are not bound yet.
    fn bind(
        &self,
        config: &Config,
        bootstrap: &Bootstrap,
    ) -> Result<BTreeMap<SocketAddr, Vec<OwnedFd>>> {
        let mut bound = BTreeMap::new();
        for listener in bootstrap.bound() {
            if self.sockets.contains_key(&listener.addr) {
                continue;
            }
            let (addr, sockets) = self
                .netns
                .listen(listener.addr, config.mark, config.concurrency)
                .with_context(|| {
                    format!(
                        "listener `{}`: cannot bind {}",
                        listener.name, listener.addr
                    )
                })?;
            tracing::info!(listener = listener.name, %addr, "listens");
            bound.insert(listener.addr, sockets);
        }
        Ok(bound)
    }

    /// Its listeners, for the next supervisor.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&SocketAddr, &Vec<OwnedFd>)> {
        self.sockets.iter()
    }
}

impl Supervisor {
    /// Serves this configuration in place of the one before, on the same sockets where the addresses are the same.
    ///
    /// # Errors
    /// An address cannot be bound; nothing has changed.
    pub(super) fn replace_bootstrap(&mut self, loaded: Loaded) -> Result<()> {
        let bootstrap = &loaded.bootstrap;
        let new = self.served.bind(&self.config, bootstrap)?;
        let is_gone = |addr: &SocketAddr| {
            let mut bound = bootstrap.bound();
            !bound.any(|listener| listener.addr == *addr)
        };
        let gone: Vec<SocketAddr> = self
            .served
            .sockets
            .keys()
            .copied()
            .filter(is_gone)
            .collect();
        let added: Vec<SocketAddr> = new.keys().copied().collect();
        self.served.sockets.extend(new);
        // The data plane knows them before the hooks send it connections, and as long as they do.
        let captured = bootstrap.captured();
        if captured != *self.served.captured {
            self.served.captured = Arc::new(captured);
            self.desire_all_anew();
        }
        self.served.loaded = loaded;
        self.tell_bootstrap();
        self.tell_dump();
        for addr in added {
            self.tell_served(addr);
        }
        self.store_node();
        for addr in gone {
            self.manager.forget(&Kept::node(addr).to_string());
            self.served.sockets.remove(&addr);
            self.data_plane.tell(&ToWorker::Unserve(addr), Vec::new());
        }
        Ok(())
    }

    /// To a data plane that knows nothing.
    pub(super) fn tell_node(&mut self) {
        self.tell_dump();
        if self.served.loaded.bootstrap.is_empty() {
            return;
        }
        self.tell_bootstrap();
        let all: Vec<SocketAddr> = self.served.sockets.keys().copied().collect();
        for addr in all {
            self.tell_served(addr);
        }
    }

    fn tell_bootstrap(&mut self) {
        match ToWorker::bootstrap(&self.served.loaded.bootstrap) {
            Ok(messages) => messages
                .iter()
                .for_each(|message| self.data_plane.tell(message, Vec::new())),
            Err(error) => tracing::error!(%error, "cannot tell the data plane its bootstrap"),
        }
    }

    /// Also where nothing else has changed: a file that is wrong is told of there.
    pub(super) fn tell_dump(&mut self) {
        let mut text = self.served.loaded.dump.clone();
        if let Some(error) = &self.served.refused
            && text.pop() == Some('}')
        {
            text += &format!(
                ",\"cannot_serve\":{}}}",
                serde_json::Value::from(error.as_str())
            );
        }
        for message in ToWorker::dump(&text) {
            self.data_plane.tell(&message, Vec::new());
        }
    }

    fn tell_served(&mut self, addr: SocketAddr) {
        let sockets = self.served.sockets.get(&addr).into_iter().flatten();
        let sockets: std::io::Result<Vec<OwnedFd>> = sockets
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect();
        match sockets {
            Ok(sockets) => self.data_plane.tell(&ToWorker::Serve(addr), sockets),
            Err(error) => tracing::error!(%error, "cannot share a listener"),
        }
    }
}

/// Files that have become wrong, or right again, or something else.
pub(super) fn tell_of_refused(before: &Loaded, loaded: &Loaded) {
    for source in &loaded.sources {
        let known = before
            .sources
            .iter()
            .find(|known| known.wanted == source.wanted);
        let (kind, path) = (source.wanted.kind.word(), source.wanted.path.display());
        let was = known.and_then(|known| known.rejected.as_ref());
        match &source.rejected {
            Some(rejected) if was != Some(rejected) => {
                let stays = match &source.accepted {
                    Some(_) => "the last right one stays",
                    None => "nothing of it is served",
                };
                let error = &rejected.error;
                tracing::error!(kind, %path, "a file of the bootstrap is wrong, {stays}\n{error}");
            }
            _ => {}
        }
        let version = |source: &Source| {
            let accepted = source.accepted.as_ref();
            accepted.map(|accepted| (accepted.version.clone(), accepted.since))
        };
        if let Some((version_info, _)) = version(source)
            && version(source) != known.and_then(version)
        {
            tracing::info!(kind, %path, version_info, "a file of the bootstrap was read");
        }
    }
}
