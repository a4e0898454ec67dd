//! Calls that their caller gives up before the plugin has looked at them.
//!
//! An HTTP/2 server takes streams that are opened and reset in numbers, before its program saw
//! them, for an attack (CVE-2023-44487) and closes the connection. Calls of others travel on the
//! same one, so a caller in a hurry must not be passed on as it comes: the stream is reset a
//! moment later, when the server has had time to accept it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use protocol::{failure::Failure, ports::Body};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;

/// How long a reset waits. A loaded plugin's server accepts what has come within a few
/// milliseconds; a caller that gave up does not notice.
const WITHDRAW_AFTER: Duration = Duration::from_millis(50);

/// A request on its way. Dropping it before its answer began resets the stream a little later,
/// holding `kept` until then.
pub(super) struct Sending<F: Future + Send + 'static, K: Send + 'static> {
    future: Option<Pin<Box<F>>>,
    kept: Option<K>,
    tasks: TaskTracker,
}

impl<F: Future + Send + 'static, K: Send + 'static> Sending<F, K> {
    pub(super) fn new(future: F, kept: K, tasks: TaskTracker) -> Self {
        Self { future: Some(Box::pin(future)), kept: Some(kept), tasks }
    }
}

impl<F: Future + Send + 'static, K: Send + Unpin + 'static> Future for Sending<F, K> {
    type Output = (F::Output, K);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let Poll::Ready(output) = future.as_mut().poll(cx) else { return Poll::Pending };
        self.future = None;
        self.kept.take().map_or(Poll::Pending, |kept| Poll::Ready((output, kept)))
    }
}

impl<F: Future + Send + 'static, K: Send + 'static> Drop for Sending<F, K> {
    fn drop(&mut self) {
        let (Some(future), kept) = (self.future.take(), self.kept.take()) else { return };
        if tokio::runtime::Handle::try_current().is_err() || self.tasks.is_closed() {
            return;
        }
        self.tasks.spawn(async move {
            let _kept = kept;
            let _ = timeout(WITHDRAW_AFTER, future).await;
        });
    }
}

/// A request's messages, whose breaking off is told a little later for the same reason, and whose
/// end is told only after the head: gRPC has it on DATA, and grpc-go's servers wait for ever for
/// the end of a request that ended with its head.
pub(super) struct Patient {
    body: Body,
    asked: bool,
    broken: Option<(Failure, Pin<Box<Sleep>>)>,
}

impl Patient {
    pub(super) fn new(body: Body) -> Self {
        Self { body, asked: false, broken: None }
    }
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.asked = true;
        if self.broken.is_none() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Err(failure))) => {
                    self.broken = Some((failure, Box::pin(sleep(WITHDRAW_AFTER))));
                }
                other => return other,
            }
        }
        let Some((failure, wait)) = &mut self.broken else { return Poll::Pending };
        wait.as_mut().poll(cx).map(|()| Some(Err(failure.clone())))
    }

    fn is_end_stream(&self) -> bool {
        self.asked && self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::{BodyExt as _, Empty};

    use super::*;

    #[tokio::test]
    async fn an_empty_request_does_not_end_with_its_head() {
        let empty = Empty::new().map_err(|never| match never {});
        let mut request = Patient::new(Body::new(empty));
        assert!(!request.is_end_stream());
        assert!(request.frame().await.is_none());
        assert!(request.is_end_stream());
    }
}
