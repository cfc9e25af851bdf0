//! Whom a query was for: hooks leave a note by the socket that it came to, of rules the supervisor asks the kernel.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use shunt_core::sockets::{DnsListenerSpec, ResolverSource, Steering};
use shunt_intercept::ebpf::Resolvers;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::ipc::ToSupervisor;

#[derive(Clone, Debug)]
pub(super) struct KernelResolvers {
    /// Set once the supervisor has loaded the eBPF programs.
    known: Arc<OnceLock<Resolvers>>,
    requests: UnboundedSender<ToSupervisor>,
    asked: Arc<Mutex<Asked>>,
}

type Answer = Result<SocketAddr, String>;

#[derive(Debug, Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

impl KernelResolvers {
    pub(super) fn new(requests: UnboundedSender<ToSupervisor>) -> Self {
        Self {
            known: Arc::default(),
            requests,
            asked: Arc::default(),
        }
    }

    /// A second map is ignored: the supervisor loads the programs once in its life.
    pub(super) fn set(&self, known: Resolvers) {
        let _ = self.known.set(known);
    }

    pub(super) fn told(&self, ticket: u64, answer: Answer) {
        if let Some(asker) = self.lock().waiting.remove(&ticket) {
            let _ = asker.send(answer);
        }
    }

    async fn ask(&self, listener: &DnsListenerSpec, client: SocketAddr) -> io::Result<SocketAddr> {
        let (answer, told) = oneshot::channel();
        let ticket = {
            let mut asked = self.lock();
            asked.last += 1;
            let ticket = asked.last;
            asked.waiting.insert(ticket, answer);
            ticket
        };
        let _forgets = Forgets(self, ticket);
        let request = ToSupervisor::WhichResolver {
            ticket,
            workload: listener.workload,
            listener: listener.addr,
            client,
        };
        let gone = |_| io::Error::other("the supervisor is gone");
        self.requests
            .send(request)
            .map_err(|_| io::Error::other("the supervisor is gone"))?;
        told.await.map_err(gone)?.map_err(io::Error::other)
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        // No code that holds the lock can panic half way through a change.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits no longer is not remembered.
struct Forgets<'a>(&'a KernelResolvers, u64);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting.remove(&self.1);
    }
}

impl ResolverSource for KernelResolvers {
    fn resolver<'a>(
        &'a self,
        listener: &'a DnsListenerSpec,
        client: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send + 'a>> {
        Box::pin(async move {
            if listener.steering != Steering::ConnectHook {
                return self.ask(listener, client).await;
            }
            let unknown = || io::Error::from(io::ErrorKind::NotFound);
            let known = self.known.get().ok_or_else(unknown)?;
            known.of(listener)?.ok_or_else(unknown)
        })
    }
}
