//! The ends of a data plane: told to stop, succeeded by another, or left alone.

use std::rc::Rc;
use std::time::Duration;

use shunt_proxy::Worker;

use super::{Control, LOOK};
use crate::ipc::{ToSupervisor, ToWorker};

/// After the supervisor's death the iptables gates need this long to open: until then clients still come.
const ORPHAN: Duration = Duration::from_millis(1500);

/// For answers over the admin API that are not read yet, after the last flow.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

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

    /// Another data plane answers from now on, and keeps the books of direct connections.
    pub(super) fn retire(&mut self) {
        for server in &self.servers {
            server.abort();
        }
        let mut view = self.view.borrow_mut();
        view.taps.end();
        view.leave_the_books();
    }

    /// Nobody else accepts from the listeners.
    pub(super) async fn stop(mut self, grace: Duration) {
        tracing::info!(
            grace_s = grace.as_secs(),
            "the data plane lets its flows end"
        );
        self.workers.iter().for_each(|worker| worker.stop(grace));
        self.attend_until(Self::flows_have_ended).await;
    }

    /// Another data plane has the listeners too.
    pub(super) async fn be_succeeded(mut self, grace: Duration) {
        tracing::info!(
            grace_s = grace.as_secs(),
            "another data plane accepts now; this one lets its flows end"
        );
        self.workers.iter().for_each(|worker| worker.retire(grace));
        self.attend_until(Self::flows_have_ended).await;
        // Whoever asked for the upgrade over the admin API is still to be answered.
        let answered = self.attend_until(Self::has_answered);
        let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
    }

    fn flows_have_ended(&mut self) -> bool {
        self.workers.iter_mut().all(Worker::has_ended)
    }

    fn has_answered(&mut self) -> bool {
        // Each connection of the admin API holds it.
        self.asked.is_empty() && Rc::strong_count(&self.view) == 1
    }

    /// In order: the supervisor still supplies sockets while flows end, withdraws workloads, and answers.
    async fn attend_until(&mut self, is_over: fn(&mut Self) -> bool) {
        let mut looks = tokio::time::interval(LOOK);
        let mut supervised = true;
        while !is_over(self) {
            tokio::select! {
                Some(request) = self.requests.recv() => self.say(&request),
                Some(wish) = self.wishes.recv() => self.pass_on(wish),
                message = self.channel.receive(), if supervised => match message {
                    Ok((number, ToWorker::Stop { grace_ms }, _)) => {
                        let grace = Duration::from_millis(grace_ms);
                        self.workers.iter().for_each(|worker| worker.stop(grace));
                        self.say(&ToSupervisor::Ack { number, error: None });
                    }
                    Ok((number, message, fds)) => {
                        let error = self.carry_out(message, fds).err();
                        let error = error.map(|error| format!("{error:#}"));
                        self.say(&ToSupervisor::Ack { number, error });
                    }
                    Err(_) => {
                        supervised = false;
                        self.requests.close();
                    }
                },
                _ = looks.tick() => self.look_at_leaving(),
            }
        }
    }

    /// The supervisor is dead, and soon nobody is steered here any more. Those who come until then are served as far
    /// as the stock goes, or wait for the next agent where somebody keeps the listeners; flows go on for as long as they
    /// like.
    pub(super) async fn outlive_supervisor(mut self) {
        // The next agent binds its own admin socket, and nobody makes sockets for us any more.
        for server in &self.servers {
            server.abort();
        }
        if self.keeps_listeners {
            let all = self.workers.iter();
            all.for_each(|worker| worker.retire(Duration::MAX));
        }
        self.requests.close();
        self.view.borrow().taps.end();
        tracing::error!("the supervisor is gone: no new connections soon, those under way go on");
        if !self.keeps_listeners {
            tokio::time::sleep(ORPHAN).await;
            let all = self.workers.iter();
            all.for_each(|worker| worker.stop(Duration::MAX));
        }
        for worker in self.workers {
            worker.ended().await;
        }
    }
}
