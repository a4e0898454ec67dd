//! The stream as the rest of the product sees it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead as _, AsyncWrite as _};
use libp2p::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};

/// An ordered stream of bytes to or from another peer. It keeps its connection alive, and holds its
/// place on it. Dropping it resets it.
pub struct ByteStream {
    inner: Stream,
    relayed: bool,
    _place: OwnedSemaphorePermit,
}

impl ByteStream {
    pub(super) fn new(inner: Stream, relayed: bool, place: OwnedSemaphorePermit) -> Self {
        Self { inner, relayed, _place: place }
    }

    /// Whether its connection goes through a third peer.
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buf.initialize_unfilled();
        Pin::new(&mut self.inner).poll_read(cx, unfilled).map_ok(|count| buf.advance(count))
    }
}

// Neither yamux nor QUIC gathers several buffers into one frame, so `is_write_vectored` stays
// false and writers gather themselves.
impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
