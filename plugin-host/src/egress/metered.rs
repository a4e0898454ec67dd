//! A connection to the outside: its bytes are counted and shaped, and it ends when it carries
//! nothing for too long.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::permissions::Access;

/// Bytes read at once, so that one call cannot take a large buffer's worth past the bucket.
const READ_BYTES_MAX: usize = 64 * 1_024;

pub(super) struct Metered {
    stream: TcpStream,
    access: Arc<Access>,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    /// Until the bucket has bytes for this direction again.
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, access: Arc<Access>, idle_max: Duration) -> Self {
        let idle = Box::pin(sleep(idle_max));
        Self { stream, access, idle, idle_max, reading: None, writing: None }
    }

    /// Something moved.
    fn moved(&mut self) {
        self.idle.as_mut().reset(Instant::now() + self.idle_max);
    }

    /// Nothing moves now; was that so for too long?
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.idle.as_mut().poll(cx));
        let text = format!("nothing was carried for {:?}", self.idle_max);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

/// How many of `wanted` bytes may pass; waits in `pause` for the first of them.
fn allowed(
    access: &Access,
    pause: &mut Option<Pin<Box<Sleep>>>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<usize> {
    loop {
        if let Some(waiting) = pause {
            ready!(waiting.as_mut().poll(cx));
            *pause = None;
        }
        match access.take_bandwidth(wanted) {
            Ok(bytes) => return Poll::Ready(bytes),
            Err(wait) => *pause = Some(Box::pin(sleep(wait))),
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let wanted = buf.remaining().min(READ_BYTES_MAX);
        if wanted == 0 {
            return Poll::Ready(Ok(()));
        }
        let Poll::Ready(bytes) = allowed(&this.access, &mut this.reading, wanted, cx) else {
            return this.wait(cx);
        };
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(bytes));
        let polled = Pin::new(&mut this.stream).poll_read(cx, &mut part);
        let read = part.filled().len();
        buf.advance(read);
        this.access.return_bandwidth(bytes - read);
        match polled {
            Poll::Ready(done) => {
                this.access.received(read as u64);
                this.moved();
                Poll::Ready(done)
            }
            Poll::Pending => this.wait(cx),
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Poll::Ready(allowed) = allowed(&this.access, &mut this.writing, bytes.len(), cx) else {
            return this.wait(cx);
        };
        let polled = Pin::new(&mut this.stream).poll_write(cx, &bytes[..allowed]);
        let written = if let Poll::Ready(Ok(written)) = &polled { *written } else { 0 };
        this.access.return_bandwidth(allowed - written);
        match polled {
            Poll::Ready(done) => {
                this.access.sent(written as u64);
                this.moved();
                Poll::Ready(done)
            }
            Poll::Pending => this.wait(cx),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
