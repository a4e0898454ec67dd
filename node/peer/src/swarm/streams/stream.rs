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

/// An ordered stream of bytes in both directions.
pub trait AsyncReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> AsyncReadWrite for S {}

/// A stream to or from another peer. It keeps its connection alive. Dropping it resets it.
pub type ByteStream = Box<dyn AsyncReadWrite>;

/// A negotiated stream that holds its place on its connection while it lives.
pub(super) struct CallStream {
    inner: Stream,
    _place: OwnedSemaphorePermit,
}

impl CallStream {
    pub(super) fn boxed(inner: Stream, place: OwnedSemaphorePermit) -> ByteStream {
        Box::new(Self { inner, _place: place })
    }
}

impl AsyncRead for CallStream {
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
impl AsyncWrite for CallStream {
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
