//! The ends of a data plane: told to stop, or left alone.

use std::time::Duration;

use super::Control;
use crate::ipc::ToWorker;

/// After the supervisor's death the iptables gates need this long to open: until then clients still come.
const ORPHAN: Duration = Duration::from_millis(1500);

impl Control {
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
