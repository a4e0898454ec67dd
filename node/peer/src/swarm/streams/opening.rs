//! Opening one stream: the upgrade of each side, and the one byte between them.
//!
//! The opener proposes the one protocol and reads a byte; the acceptor answers [`ACCEPTED`],
//! [`BUSY`] or [`REFUSED`]. With lazy negotiation this is one round trip in all.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{Acceptor, Inbound, Port, stream::ByteStream};

/// Calls between peers, version 1.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/blackhole/call/1");

const ACCEPTED: u8 = 1;
const BUSY: u8 = 2;
const REFUSED: u8 = 3;

/// How long a stream waits for its opener to be known as one of the network, and how long an
/// answer may take to be written.
pub(super) const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// Why a stream was not opened. Nothing of the caller's was sent in any of these cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::swarm) enum OpenError {
    /// The other side has as many streams as it takes.
    #[error("it has as many streams open as it takes")]
    Busy,
    /// The other side does not take streams from this peer.
    #[error("it takes no calls from this peer")]
    Refused,
    /// The other side speaks another version.
    #[error("it speaks no version of the call protocol that this peer speaks ({PROTOCOL})")]
    Unsupported,
    /// The connection, or the stream, ended first.
    #[error("the connection failed: {0}")]
    Lost(String),
    /// No answer in time.
    #[error("it did not answer in time")]
    Late,
}

/// A request to open a stream on one connection.
pub(in crate::swarm) struct OpenRequest {
    pub(super) place: OwnedSemaphorePermit,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<ByteStream, OpenError>>,
}

impl Port {
    /// Opens a stream on this connection, waiting for a place, until `deadline`.
    pub(in crate::swarm) async fn open(&self, deadline: Instant) -> Result<ByteStream, OpenError> {
        let attempt = async {
            let closed = |what: &str| OpenError::Lost(what.to_owned());
            let place = self.gate.clone().acquire_owned().await;
            let place = place.map_err(|_| closed("it was closed"))?;
            let (reply, answer) = oneshot::channel();
            let request = OpenRequest { place, deadline, reply };
            self.opens.send(request).await.map_err(|_| closed("it was closed"))?;
            answer.await.map_err(|_| closed("it was closed while the stream was opened"))?
        };
        tokio::time::timeout_at(deadline.into(), attempt).await.unwrap_or(Err(OpenError::Late))
    }
}

/// The opener's upgrade: waits for the acceptor's byte.
#[derive(Debug)]
pub(in crate::swarm) struct Open;

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = Stream;
    type Error = OpenError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, OpenError>> + Send>>;

    fn upgrade_outbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            let mut answer = [0];
            stream.read_exact(&mut answer).await.map_err(|error| classify(&error))?;
            match answer[0] {
                ACCEPTED => Ok(stream),
                BUSY => Err(OpenError::Busy),
                REFUSED => Err(OpenError::Refused),
                other => Err(OpenError::Lost(format!("unknown answer {other}"))),
            }
        })
    }
}

/// With lazy negotiation a protocol that the other side does not speak shows as a failed read.
fn classify(error: &io::Error) -> OpenError {
    use libp2p::core::upgrade::NegotiationError;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<NegotiationError>());
    match inner {
        Some(NegotiationError::Failed) => OpenError::Unsupported,
        _ => OpenError::Lost(error.to_string()),
    }
}

/// The acceptor's upgrade: answers with its byte and hands the stream on.
pub(in crate::swarm) struct Accept(pub(super) Arc<Acceptor>);

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn upgrade_inbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            match self.admit().await {
                Ok((place, slot)) => {
                    stream.write_all(&[ACCEPTED]).await?;
                    stream.flush().await?;
                    let stream = ByteStream::new(stream, self.0.relayed, place);
                    slot.send(Inbound { peer: self.0.peer, stream });
                }
                Err(answer) => {
                    stream.write_all(&[answer]).await?;
                    stream.close().await?;
                }
            }
            Ok(())
        })
    }
}

impl Accept {
    /// A place on the connection and one in the queue, or the byte that says why not.
    async fn admit(&self) -> Result<(OwnedSemaphorePermit, mpsc::OwnedPermit<Inbound>), u8> {
        let mut admitted = self.0.admitted.subscribe();
        admitted.wait_for(|admitted| *admitted).await.map_err(|_| REFUSED)?;
        let place = self.0.gate.clone().try_acquire_owned().map_err(|_| BUSY)?;
        let slot = self.0.sink.clone().try_reserve_owned().map_err(|_| BUSY)?;
        Ok((place, slot))
    }
}
