//! The two bodies of a call, passed through: the caller's messages in, the answer out.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use protocol::{
    failure::{Failure, Reason},
    limits::MESSAGE_BYTES_MAX,
    ports,
};
use tokio::sync::{
    OwnedSemaphorePermit,
    oneshot::{self, error::TryRecvError},
};

use crate::{
    rescue::{self, GRPC_STATUS},
    sizes::{Oversize, Sizes},
};

/// The caller's messages on their way in.
pub(crate) struct Upload<B> {
    incoming: B,
    sizes: Sizes,
    /// Tells the way out that the way in was refused: gRPC answers there.
    refused: Option<oneshot::Sender<Failure>>,
}

impl<B> Upload<B> {
    /// The messages of `incoming`, and where their refusal would be told.
    pub(crate) fn new(incoming: B) -> (Self, Verdict) {
        let (refused, verdict) = oneshot::channel();
        let upload = Self { incoming, sizes: Sizes::default(), refused: Some(refused) };
        (upload, Verdict(Some(verdict)))
    }
}

/// Hears of it when a call's messages are refused.
pub(crate) struct Verdict(Option<oneshot::Receiver<Failure>>);

impl Verdict {
    /// Ready when they were refused; pending for ever when they are all in.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Some(waiting) = &mut self.0 else { return Poll::Pending };
        let heard = ready!(Pin::new(waiting).poll(cx));
        self.0 = None;
        heard.map_or(Poll::Pending, Poll::Ready)
    }

    /// Why they were refused, if they were by now.
    pub(crate) fn now(&mut self) -> Option<Failure> {
        let heard = self.0.as_mut()?.try_recv();
        if heard != Err(TryRecvError::Empty) {
            self.0 = None;
        }
        heard.ok()
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Upload<B> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        Pin::new(&mut this.incoming).poll_frame(cx).map(|frame| match frame? {
            Ok(frame) => match frame.data_ref().map_or(Ok(()), |data| this.sizes.pass(data)) {
                Ok(()) => Some(Ok(frame)),
                Err(oversize) => {
                    let failure = too_large(oversize, "the request");
                    if let Some(refused) = this.refused.take() {
                        // Nobody listens when the answer has already ended.
                        let _ = refused.send(failure.clone());
                    }
                    Some(Err(failure))
                }
            },
            Err(_) => Some(Err(Failure::unknown(Reason::Cancelled, "the caller went away"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The answer on its way out. Always ends with a status.
pub(crate) struct Download {
    /// `None` once it has ended: dropping it cancels what is left of the call.
    body: Option<ports::Body>,
    sizes: Sizes,
    verdict: Verdict,
    /// The call's place among those in progress.
    permit: Option<OwnedSemaphorePermit>,
}

impl Download {
    /// Passes `body` on; `verdict` may end it from the way in.
    pub(crate) fn new(body: ports::Body, verdict: Verdict, permit: OwnedSemaphorePermit) -> Self {
        Self { body: Some(body), sizes: Sizes::default(), verdict, permit: Some(permit) }
    }

    /// Ends the answer with what went wrong.
    fn fail(&mut self, failure: &Failure) -> Frame<Bytes> {
        self.end();
        Frame::trailers(rescue::trailers(failure))
    }

    fn end(&mut self) {
        self.body = None;
        self.verdict = Verdict(None);
        self.permit = None;
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let frame = match frame.into_data() {
            Ok(data) => {
                return match self.sizes.pass(&data) {
                    Ok(()) => Frame::data(data),
                    Err(oversize) => self.fail(&too_large(oversize, "the answer")),
                };
            }
            Err(frame) => frame,
        };
        let mut trailers = frame.into_trailers().unwrap_or_default();
        if !trailers.contains_key(GRPC_STATUS) {
            return self.fail(&no_status());
        }
        self.end();
        rescue::strip_reserved(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(failure) = this.verdict.poll(cx) {
            return Poll::Ready(Some(Ok(this.fail(&failure))));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        Pin::new(body).poll_frame(cx).map(|frame| {
            Some(Ok(match frame {
                Some(Ok(frame)) => this.pass(frame),
                Some(Err(failure)) => this.fail(&failure),
                None => this.fail(&no_status()),
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }
}

fn too_large(Oversize { bytes }: Oversize, whose: &str) -> Failure {
    let message = format!(
        "a message of {whose} has {bytes} bytes; the mesh carries {MESSAGE_BYTES_MAX} at most: \
         send it in parts, as a stream"
    );
    Failure::failed(Reason::TooLarge, message)
}

fn no_status() -> Failure {
    Failure::unknown(Reason::Malformed, "the plugin's answer ended without a status")
}
