//! What most tests need: two pods, and an agent that serves both.

use crate::{AgentBuilder, Pod, World, require};

/// A world with two pods.
#[derive(Debug)]
pub struct Pair {
    pub world: World,
    pub client: Pod,
    pub server: Pod,
}

impl Pair {
    /// # Panics
    /// This machine has not what end-to-end tests need, and the message says what.
    #[expect(
        clippy::new_without_default,
        reason = "a test that makes one means to make one"
    )]
    pub fn new() -> Self {
        require::everything();
        let world = World::new();
        let (client, server) = (world.pod(), world.pod());
        Self {
            world,
            client,
            server,
        }
    }

    /// An agent with both enrolled, as `client` and `server`, `more` of each.
    pub fn both<'a>(&'a self, mode: &str, more: &str) -> AgentBuilder<'a> {
        AgentBuilder::new(&self.world, mode)
            .enrol("client", &self.client, more)
            .enrol("server", &self.server, more)
    }
}
