//! One connection that a plugin accepted, whatever it came in by.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tonic::transport::server::Connected;

/// A connection that was accepted.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Does the same with whichever it is.
macro_rules! with {
    ($connection:expr, $inner:ident => $work:expr) => {
        match $connection {
            Connection::Unix($inner) => $work,
            Connection::Tcp($inner) => $work,
        }
    };
}

impl link::Socket for Connection {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        with!(self, inner => inner.first_byte().await)
    }
}

impl Connected for Connection {
    // Who calls is known to the node, which lets nobody else in.
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        with!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        with!(self, inner => inner.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}
