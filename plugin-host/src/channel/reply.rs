//! The plugin's answer on its way back, and what a stream that breaks means.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use protocol::failure::{Failure, Reason};
use tokio::time::{Sleep, sleep_until};

/// The plugin's answer, held to its deadline and to having a status.
pub(super) struct ReplyBody<G> {
    plugin: String,
    /// The status has been seen.
    told: bool,
    body: Option<Incoming>,
    deadline: Option<Pin<Box<Sleep>>>,
    _guards: G,
}

impl<G> ReplyBody<G> {
    /// The rest of an answer whose head has been read; `told` where that held the status.
    /// `guards` are dropped with it.
    pub(super) fn new(
        plugin: &str,
        body: Incoming,
        told: bool,
        deadline: Option<Instant>,
        guards: G,
    ) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline.into())));
        Self { plugin: plugin.into(), told, body: Some(body), deadline, _guards: guards }
    }
}

impl<G: Unpin> http_body::Body for ReplyBody<G> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(match frame {
                Some(Ok(frame)) => {
                    this.told |= frame
                        .trailers_ref()
                        .is_some_and(|trailers| trailers.contains_key("grpc-status"));
                    Some(Ok(frame))
                }
                Some(Err(error)) => {
                    this.body = None;
                    // A status, once told, is the end; what breaks after it changes nothing.
                    let deadline = this.deadline.as_ref().map(|it| it.deadline().into_std());
                    (!this.told).then(|| Err(lost(&this.plugin, &error, deadline)))
                }
                None => {
                    this.body = None;
                    let message = format!("plugin {} answered without a status", this.plugin);
                    (!this.told).then(|| Err(Failure::failed(Reason::Malformed, message)))
                }
            });
        }
        let Some(deadline) = &mut this.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(cx));
        // Dropping it resets the stream: the plugin learns that nobody waits.
        this.body = None;
        let message = format!("plugin {} did not finish before the deadline", this.plugin);
        Poll::Ready(Some(Err(Failure::unknown(Reason::DeadlineExceeded, message))))
    }

    fn is_end_stream(&self) -> bool {
        // Not merely the end of data: whether a status came must still be looked at.
        self.body.as_ref().is_none_or(|body| self.told && body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

/// A plugin counts a call's time by its own clock and may give up this much before the node does;
/// what it breaks off then has met its deadline.
const DEADLINE_SLACK: Duration = Duration::from_millis(10);

/// What a broken stream means for a call with this deadline.
pub(super) fn lost(plugin: &str, error: &hyper::Error, deadline: Option<Instant>) -> Failure {
    let expired = deadline.is_some_and(|deadline| deadline <= Instant::now() + DEADLINE_SLACK);
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        // The caller's own body failed: that is the failure.
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.clone();
        }
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            // A graceful GOAWAY ends exactly the streams that were not looked at.
            let turned_away =
                h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
            if refused || turned_away {
                let message = format!("plugin {plugin} refused the call before it began");
                return Failure::not_started(Reason::Busy, message);
            }
            if h2.is_reset() && h2.is_remote() && expired {
                let message = format!("plugin {plugin} did not finish before the deadline");
                return Failure::unknown(Reason::DeadlineExceeded, message);
            }
            if h2.is_reset() && h2.is_remote() {
                let message = format!("plugin {plugin} broke the call off: {h2}");
                return Failure::unknown(Reason::PluginLost, message);
            }
        }
        source = cause.source();
    }
    let message = format!("plugin {plugin} ended, or closed its connection, during the call");
    Failure::unknown(Reason::PluginLost, message)
}
