//! Gossip and registry requests.

use std::collections::HashMap;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    PeerId, gossipsub,
    request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel},
};
use protocol::failure::{Failure, Reason};
use tokio::sync::oneshot;

use super::{MessageToken, OUTBOX_MAX, SwarmEvent, Verdict, actor::Actor, behaviour};

/// Requests of this peer that wait for their answer. One more is refused.
const REQUESTS_MAX: usize = 1_024;

/// Requests of others that are being answered. One more is not answered.
const ANSWERS_MAX: usize = 256;

/// Requests of one peer that wait until it is known to be of this network.
const EARLY_MAX: usize = 8;

/// An answer on its way, or none where it was refused.
pub(super) type Answered = (ResponseChannel<Vec<u8>>, Option<Vec<u8>>);

/// A request of a peer not yet known to be of this network.
pub(super) type Early = (Vec<u8>, ResponseChannel<Vec<u8>>);

/// The requests under way.
#[derive(Default)]
pub(super) struct Exchanges {
    asked: HashMap<OutboundRequestId, oneshot::Sender<Result<Vec<u8>, Failure>>>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
}

impl Exchanges {
    /// The next answer that is ready; waits for ever when none is being made.
    pub(super) async fn next_answer(&mut self) -> Answered {
        match self.answers.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

impl Actor {
    /// Gossips `data`; false when nobody takes it.
    pub(super) fn publish(&mut self, data: Vec<u8>) -> bool {
        let topic = behaviour::topic(self.network.as_str());
        let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() else { return false };
        match gossip.publish(topic, data) {
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => true,
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => false,
            Err(error) => {
                tracing::debug!(%error, "gossip was not sent");
                false
            }
        }
    }

    /// Handles what gossip brings.
    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source, message_id, message } = event else {
            return;
        };
        self.counters.gossip_received += 1;
        let token = MessageToken { message: message_id, carrier: propagation_source };
        if self.outbox.len() >= OUTBOX_MAX {
            self.counters.gossip_dropped += 1;
            self.judge(&token, Verdict::Ignore);
        } else {
            self.emit(SwarmEvent::Gossip { from: token.carrier.into(), data: message.data, token });
        }
    }

    /// Says what becomes of a gossip message.
    pub(super) fn judge(&mut self, token: &MessageToken, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
        };
        if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
            gossip.report_message_validation_result(&token.message, &token.carrier, acceptance);
        }
    }

    /// Asks `peer`.
    pub(super) fn request(
        &mut self,
        peer: PeerId,
        data: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>, Failure>>,
    ) {
        if self.exchanges.asked.len() >= REQUESTS_MAX {
            let busy = Failure::not_started(Reason::Busy, "too many requests wait for answers");
            let _ = reply.send(Err(busy));
            return;
        }
        let id = self.swarm.behaviour_mut().registry.send_request(&peer, data);
        self.exchanges.asked.insert(id, reply);
    }

    /// Sends an answer that is ready. Without one the channel is dropped, which refuses.
    pub(super) fn on_answered(&mut self, (channel, answer): Answered) {
        if let Some(answer) = answer {
            // An error means that the other side no longer waits.
            let _ = self.swarm.behaviour_mut().registry.send_response(channel, answer);
        }
    }

    /// Handles what the request protocol says.
    pub(super) fn on_registry(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.on_request(peer, request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(reply) = self.exchanges.asked.remove(&request_id) {
                    let _ = reply.send(Ok(response));
                }
            }
            Event::OutboundFailure { request_id, error, .. } => {
                if let Some(reply) = self.exchanges.asked.remove(&request_id) {
                    let _ = reply.send(Err(failure(&error)));
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "a registry request was not answered");
            }
            Event::ResponseSent { .. } => {}
        }
    }

    /// Answers what `peer` asked before it was known to be of this network.
    pub(super) fn answer_early(&mut self, peer: PeerId) {
        let Some(neighbour) = self.peers.get_mut(&peer) else { return };
        for (request, channel) in std::mem::take(&mut neighbour.early) {
            self.on_request(peer, request, channel);
        }
    }

    fn on_request(&mut self, peer: PeerId, data: Vec<u8>, channel: ResponseChannel<Vec<u8>>) {
        let Some(neighbour) = self.peers.get_mut(&peer) else { return };
        if !neighbour.admitted {
            if neighbour.early.len() < EARLY_MAX {
                neighbour.early.push((data, channel));
            }
            return;
        }
        let full = self.outbox.len() >= OUTBOX_MAX || self.exchanges.answers.len() >= ANSWERS_MAX;
        if full {
            tracing::debug!(%peer, "too many registry requests; one is not answered");
            return;
        }
        let (reply, answer) = oneshot::channel();
        self.exchanges.answers.push(Box::pin(async move { (channel, answer.await.ok()) }));
        self.emit(SwarmEvent::Request { peer: peer.into(), data, reply });
    }
}

fn failure(error: &OutboundFailure) -> Failure {
    let not_started = |text: &str| Failure::not_started(Reason::Unreachable, text);
    match error {
        OutboundFailure::DialFailure => not_started("the peer could not be reached"),
        OutboundFailure::UnsupportedProtocols => not_started(
            "the peer speaks no version of the registry protocol that this peer speaks \
             (/blackhole/registry/1)",
        ),
        OutboundFailure::Timeout => {
            Failure::unknown(Reason::Unreachable, "the peer did not answer the registry request")
        }
        OutboundFailure::ConnectionClosed => {
            Failure::unknown(Reason::PeerLost, "the connection ended before the peer answered")
        }
        OutboundFailure::Io(error) => Failure::unknown(
            Reason::PeerLost,
            format!("the peer did not answer the registry request: {error}"),
        ),
    }
}
