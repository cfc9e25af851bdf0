//! Pods that are made while the agent replaces itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use shunt_tests::cni::Network;
use shunt_tests::{AgentBuilder, World, in_both_modes, require, wait};

use crate::{NOBODY, asking, connects, enrolled, server};

in_both_modes!(who_is_added_meanwhile_is_captured_from_the_first_connection);

fn who_is_added_meanwhile_is_captured_from_the_first_connection(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let over = AtomicBool::new(false);
    let pods = std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let mut pods = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let mut pod = network.container("shop", &format!("client{}", pods.len()));
                network.add(&mut pod).expect("added");
                connects(&pod, &server);
                pods.push(pod);
            }
            pods
        });
        for times in 1..=3 {
            assert_eq!(agent.admin("POST", "/upgrade/all", "").0, 200);
            wait::until(
                "the next one has taken over",
                Duration::from_secs(40),
                || {
                    let said = agent.log();
                    (said.matches("this program has taken over").count() == times).then_some(())
                },
            );
        }
        over.store(true, Ordering::Relaxed);
        adding.join().expect("no panic")
    });
    // Nobody had been told to go past the agent.
    agent.lines(pods.len());
    assert_eq!(enrolled(&agent).len(), pods.len());
    for pod in &pods {
        network.del(pod).expect("deleted");
    }
    assert_eq!(enrolled(&agent), NOBODY);
}
