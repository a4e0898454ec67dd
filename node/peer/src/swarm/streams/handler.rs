//! One connection's handler: turns requests to open into upgrades and answers them, and lets the
//! acceptor's upgrade do the rest. Requests still waiting when the connection ends are dropped with
//! the channel, which tells whoever asked.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
    handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedOutbound, ListenUpgradeError},
};
use tokio::sync::mpsc;

use super::{
    Acceptor,
    opening::{ACCEPT_MAX, Accept, Open, OpenError, OpenRequest},
    stream::ByteStream,
};

type Requested = SubstreamProtocol<Open, OpenRequest>;

/// One connection's handler.
pub(in crate::swarm) struct Handler {
    acceptor: Arc<Acceptor>,
    requests: mpsc::Receiver<OpenRequest>,
}

impl Handler {
    pub(super) fn new(acceptor: Arc<Acceptor>, requests: mpsc::Receiver<OpenRequest>) -> Self {
        Self { acceptor, requests }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept, ()> {
        SubstreamProtocol::new(Accept(self.acceptor.clone()), ()).with_timeout(ACCEPT_MAX)
    }

    fn connection_keep_alive(&self) -> bool {
        self.acceptor.keep.load(Ordering::Relaxed)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Open, OpenRequest, Infallible>> {
        while let Poll::Ready(Some(request)) = self.requests.poll_recv(cx) {
            // Whoever asked may have given up while the request waited.
            if !request.reply.is_closed() {
                let left = request.deadline.saturating_duration_since(Instant::now());
                let protocol: Requested = SubstreamProtocol::new(Open, request).with_timeout(left);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Accept, Open, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: request,
            }) => {
                let stream = ByteStream::new(stream, self.acceptor.relayed, request.place);
                // Dropped, and so reset, when whoever asked has given up.
                let _ = request.reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: request, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Late,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Apply(error) => error,
                    StreamUpgradeError::Io(error) => OpenError::Lost(error.to_string()),
                };
                let _ = request.reply.send(Err(error));
            }
            ConnectionEvent::ListenUpgradeError(ListenUpgradeError { error, .. }) => {
                tracing::debug!(peer = %self.acceptor.peer, %error, "inbound stream lost");
            }
            _ => {}
        }
    }
}
