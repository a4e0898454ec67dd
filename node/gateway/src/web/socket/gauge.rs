//! Counts what is read of a message before it is whole. A WebSocket's messages are put together
//! below us, in memory that all calls of the web share by one budget, so what goes in there is
//! counted against that as it comes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use parking_lot::Mutex;
use protocol::failure::{Failure, Reason};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::web::{
    hold::{Budget, Share},
    json::WHOLE_WITHIN,
    refusal::No,
};

/// What a socket may have read without its being counted: small messages never meet the budget.
const FREE_BYTES: usize = 64 * 1024;

/// The count of one socket. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Gauge(Arc<Mutex<Count>>);

struct Count {
    /// Of the message that comes now.
    bytes: usize,
    share: Share,
    /// When it began to be counted.
    since: Option<Instant>,
    refused: Option<No>,
}

impl Gauge {
    pub(super) fn new(budget: Budget) -> Self {
        let share = Share::new(budget);
        Self(Arc::new(Mutex::new(Count { bytes: 0, share, since: None, refused: None })))
    }

    /// Counts what is read of `stream`.
    pub(super) fn watch<I>(&self, stream: I) -> Gauged<I> {
        Gauged { stream, gauge: self.clone() }
    }

    /// A message has come whole: its bytes, which hold what was counted for them until they go.
    pub(super) fn whole(&self, message: Bytes) -> Bytes {
        let mut count = self.0.lock();
        count.bytes = 0;
        if count.since.take().is_none() {
            return message;
        }
        let share = count.share.split();
        Bytes::from_owner(Kept { message, _share: share })
    }

    /// What has come was no part of a message.
    pub(super) fn forget(&self, bytes: usize) {
        let mut count = self.0.lock();
        count.bytes = count.bytes.saturating_sub(bytes);
    }

    /// Why nothing more is read, if that is so.
    pub(super) fn refused(&self) -> Option<No> {
        self.0.lock().refused.take()
    }

    fn add(&self, bytes: usize) -> io::Result<()> {
        let mut count = self.0.lock();
        count.bytes += bytes;
        let Some(counted) = count.bytes.checked_sub(FREE_BYTES) else { return Ok(()) };
        let now = Instant::now();
        let since = *count.since.get_or_insert(now);
        let fits = if now.duration_since(since) > WHOLE_WITHIN {
            let message = format!("a large message did not come whole within {WHOLE_WITHIN:?}");
            Err(No::Failed(Failure::not_started(Reason::DeadlineExceeded, message)))
        } else {
            count.share.cover(counted)
        };
        fits.map_err(|no| {
            count.refused = Some(no);
            io::Error::other("no more of this message is read")
        })
    }
}

/// A message, and its part of the budget.
struct Kept {
    message: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// A stream of which a [`Gauge`] counts what is read.
pub(super) struct Gauged<I> {
    stream: I,
    gauge: Gauge,
}

impl<I: AsyncRead + Unpin> AsyncRead for Gauged<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.gauge.add(buf.filled().len() - before))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gauged<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::HELD_BYTES_MAX;

    #[tokio::test(start_paused = true)]
    async fn large_messages_share_one_budget_until_their_bytes_go() {
        let budget = Budget::default();
        let (one, two) = (Gauge::new(budget.clone()), Gauge::new(budget));
        one.add(FREE_BYTES).expect("free");
        two.add(FREE_BYTES).expect("free");
        one.add(HELD_BYTES_MAX).expect("all there is");
        assert!(two.add(1).is_err());
        assert!(matches!(two.refused(), Some(No::Failed(_))));
        let message = one.whole(Bytes::from_static(b"it"));
        assert!(two.add(1).is_err(), "its bytes are still there");
        drop(message);
        two.add(1).expect("there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_does_not_take_for_ever() {
        let gauge = Gauge::new(Budget::default());
        gauge.add(FREE_BYTES + 1).expect("begun");
        tokio::time::advance(WHOLE_WITHIN).await;
        gauge.add(1).expect("just in time");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(gauge.add(1).is_err());
    }
}
