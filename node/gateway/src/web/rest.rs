//! What is left of a request when it has been answered.
//!
//! HTTP/1.1 has one request after the other on a connection, so a connection whose request was not
//! read to its end must be closed, and its client finds that out with its next call. Most often all
//! that is left is a chunk that says the end: it is read before the answer ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

/// What is read for this: more than clients send at once.
const REST_BYTES_MAX: usize = 64 * 1024;

/// How long the end may take to come.
const REST_WITHIN: Duration = Duration::from_millis(500);

/// The body of a request, which its answer can take back.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest(Arc<Mutex<Option<Body>>>);

impl Rest {
    /// Puts in all of it.
    pub(super) fn put(&self, body: Body) {
        *self.0.lock() = Some(body);
    }

    /// The next of it; `None` also when it was taken back.
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *self.0.lock() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    /// How long all of it is, where HTTP tells.
    pub(super) fn length(&self) -> Option<u64> {
        self.0.lock().as_ref().and_then(|body| body.size_hint().exact())
    }

    /// Nothing more comes.
    pub(super) fn is_end(&self) -> bool {
        self.0.lock().as_ref().is_none_or(Body::is_end_stream)
    }

    /// Takes it back, to read it to its end.
    pub(super) fn drain(&self) -> Drain {
        let body = self.0.lock().take().filter(|body| !body.is_end_stream());
        Drain { body, bytes: 0, until: Box::pin(sleep(REST_WITHIN)) }
    }
}

/// Ready when the end has come, or is not waited for any longer.
pub(super) struct Drain {
    body: Option<Body>,
    bytes: usize,
    until: Pin<Box<Sleep>>,
}

impl Future for Drain {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        while let Some(body) = &mut this.body {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                ready!(this.until.as_mut().poll(cx));
                break;
            };
            let Some(Ok(frame)) = frame else { break };
            this.bytes += frame.data_ref().map_or(0, Bytes::len);
            if this.bytes > REST_BYTES_MAX {
                break;
            }
        }
        this.body = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_little_is_read_to_its_end_and_much_is_not() {
        for (chunks, all) in [(3, true), (1_000, false)] {
            let (told, mut heard) = tokio::sync::mpsc::channel::<()>(2_000);
            let chunks = stream::iter((0..chunks).map(move |_| {
                let _ = told.try_send(());
                Ok::<_, axum::Error>(Bytes::from_static(&[0; 1024]))
            }));
            let rest = Rest::default();
            rest.put(Body::from_stream(chunks));
            rest.drain().await;
            assert!(rest.is_end());
            let mut read = 0;
            while heard.recv().await.is_some() {
                read += 1;
            }
            assert!(if all { read == 3 } else { read < 100 }, "{read}");
        }
    }
}
