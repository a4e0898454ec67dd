//! What discovery needs of the network, as a trait: so that it can be tested without one.

use std::time::Instant;

use futures::future::BoxFuture;
use protocol::{failure::Failure, id::PeerId};

use crate::swarm::{MessageToken, SwarmHandle, Verdict};

/// The swarm, as discovery sees it.
pub(crate) trait Network: Clone + Send + Sync + 'static {
    /// Names a gossip message until its verdict.
    type Token: Send + 'static;

    fn provide(&self, key: [u8; 32]) -> BoxFuture<'static, ()>;
    fn stop_providing(&self, key: [u8; 32]) -> BoxFuture<'static, ()>;
    fn find_providers(&self, key: [u8; 32], deadline: Instant) -> BoxFuture<'static, Vec<PeerId>>;
    fn publish(&self, data: Vec<u8>) -> BoxFuture<'static, bool>;
    fn penalise(&self, peer: PeerId) -> BoxFuture<'static, ()>;
    fn report(&self, token: Self::Token, verdict: Verdict);
    fn request(
        &self,
        peer: PeerId,
        data: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<u8>, Failure>>;
}

impl Network for SwarmHandle {
    type Token = MessageToken;

    fn provide(&self, key: [u8; 32]) -> BoxFuture<'static, ()> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::provide(&swarm, key).await })
    }

    fn stop_providing(&self, key: [u8; 32]) -> BoxFuture<'static, ()> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::stop_providing(&swarm, key).await })
    }

    fn find_providers(&self, key: [u8; 32], deadline: Instant) -> BoxFuture<'static, Vec<PeerId>> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::find_providers(&swarm, key, deadline).await })
    }

    fn publish(&self, data: Vec<u8>) -> BoxFuture<'static, bool> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::publish(&swarm, data).await })
    }

    fn penalise(&self, peer: PeerId) -> BoxFuture<'static, ()> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::penalise(&swarm, peer).await })
    }

    fn report(&self, token: MessageToken, verdict: Verdict) {
        SwarmHandle::report(self, token, verdict);
    }

    fn request(
        &self,
        peer: PeerId,
        data: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<u8>, Failure>> {
        let swarm = self.clone();
        Box::pin(async move { SwarmHandle::request(&swarm, peer, data, deadline).await })
    }
}
