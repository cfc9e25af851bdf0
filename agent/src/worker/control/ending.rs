//! The ends of a data plane: told to stop, or left alone.

use std::time::Duration;

use super::Control;
use crate::ipc::{ToSupervisor, ToWorker};

/// After the supervisor's death the iptables gates need this long to open: until then clients still come.
const ORPHAN: Duration = Duration::from_millis(1500);

impl Control {
    /// Tells the supervisor of workloads whose listeners have closed and whose flows have ended.
    pub(super) fn look_at_leaving(&mut self) {
        let mut done = Vec::new();
        let mut told = Vec::new();
        for leaving in &mut self.leaving {
            let listeners: usize = self
                .workers
                .iter()
                .map(|worker| worker.listeners(leaving.id))
                .sum();
            if !leaving.closed && listeners == 0 {
                leaving.closed = true;
                told.push(ToSupervisor::ListenersClosed { id: leaving.id });
            }
            let flows: u64 = self
                .workers
                .iter()
                .map(|worker| worker.flows(leaving.id))
                .sum();
            if leaving.closed && flows == 0 {
                told.push(ToSupervisor::Drained { id: leaving.id });
                done.push(leaving.id);
            }
        }
        self.leaving.retain(|leaving| !done.contains(&leaving.id));
        for id in done {
            self.view.borrow_mut().forget(id);
            self.held.remove(&id);
            for stock in &self.stocks {
                stock.clear(id);
            }
        }
        for message in told {
            self.say(&message);
        }
    }

    /// In order: the supervisor still supplies sockets while flows end.
    pub(super) async fn stop(mut self, grace: Duration) {
        tracing::info!(
            grace_s = grace.as_secs(),
            "the data plane lets its flows end"
        );
        let workers = std::mem::take(&mut self.workers);
        let ended = async {
            for worker in &workers {
                worker.stop(grace);
            }
            for worker in workers {
                worker.ended().await;
            }
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                () = &mut ended => return,
                Some(request) = self.requests.recv() => self.say(&request),
                message = self.channel.receive() => match message {
                    Ok((_, ToWorker::Stock { worker, want }, fds)) => {
                        if let Some(stock) = self.stocks.get(worker) {
                            stock.put(want, fds);
                        }
                    }
                    Ok((_, ToWorker::StockFailed { worker, want, error }, _)) => {
                        if let Some(stock) = self.stocks.get(worker) {
                            stock.fail(want, error);
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return ended.await,
                },
            }
        }
    }

    /// The supervisor is dead, and soon nobody is steered here any more. Those who come until then are served as far
    /// as the stock goes; flows go on for as long as they like.
    pub(super) async fn outlive_supervisor(mut self) {
        // The next agent binds its own admin socket, and nobody makes sockets for us any more.
        for server in &self.servers {
            server.abort();
        }
        self.requests.close();
        self.view.borrow().taps.end();
        tracing::error!("the supervisor is gone: no new connections soon, those under way go on");
        tokio::time::sleep(ORPHAN).await;
        for worker in &self.workers {
            worker.stop(Duration::MAX);
        }
        for worker in self.workers {
            worker.ended().await;
        }
    }
}
