//! The byte streams of connections, and what is seen of them as they pass.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use link::{LinkSettings, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::Instant,
};

use crate::calm::{Calm, Flood};

/// Where connections come from.
#[derive(Debug)]
pub enum Listening {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listening {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// A byte stream of either kind.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Who is at its other end, where that has an address.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// How a link on it behaves.
    pub(crate) fn settings(&self) -> LinkSettings {
        match self {
            Self::Tcp(_) => LinkSettings::default(),
            Self::Unix(_) => LinkSettings::within_machine(),
        }
    }
}

impl Socket for Stream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        match self {
            Self::Tcp(stream) => stream.first_byte().await,
            Self::Unix(stream) => stream.first_byte().await,
        }
    }
}

/// The next connection.
pub(crate) async fn accept(listening: &Listening) -> io::Result<Stream> {
    match listening {
        Listening::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Small calls must not wait for an acknowledgement.
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        Listening::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
    }
}

/// The connection was gone before it was accepted: nothing is wrong with the listener.
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | InvalidInput)
}

macro_rules! either {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $do,
            Stream::Unix($inner) => $do,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// What was seen of a connection by now.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    greeted: AtomicBool,
    flood: OnceLock<Flood>,
}

impl Seen {
    /// Whether it has said anything of length: the 24 bytes of HTTP/2's preface, or about a
    /// request line.
    pub(crate) fn has_greeted(&self) -> bool {
        self.greeted.load(Relaxed)
    }

    /// The flood for which it was ended.
    pub(crate) fn flood(&self) -> Option<&Flood> {
        self.flood.get()
    }
}

/// A stream that is looked at as it passes, and that ends where it is flooded.
pub(crate) struct Watched<I> {
    stream: I,
    bytes: usize,
    calm: Calm,
    seen: Arc<Seen>,
}

const GREETING_BYTES: usize = 16;

impl<I> Watched<I> {
    pub(crate) fn new(stream: I) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let calm = Calm::new(Instant::now());
        (Self { stream, bytes: 0, calm, seen: Arc::clone(&seen) }, seen)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        if this.bytes < GREETING_BYTES {
            this.bytes += read.len();
            if this.bytes >= GREETING_BYTES {
                this.seen.greeted.store(true, Relaxed);
            }
        }
        match this.calm.read(read, Instant::now) {
            Ok(()) => polled,
            Err(flood) => {
                let told = io::Error::new(io::ErrorKind::ConnectionAborted, flood.clone());
                let _ = this.seen.flood.set(flood);
                Poll::Ready(Err(told))
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &written {
            self.calm.wrote(&buf[..*count]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = &written {
            let mut left = *count;
            for buf in bufs {
                let of_this = left.min(buf.len());
                self.calm.wrote(&buf[..of_this]);
                left -= of_this;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
