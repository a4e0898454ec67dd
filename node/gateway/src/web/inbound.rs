//! The caller's messages on their way in, out of whatever they came in.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use futures::future::poll_fn;
use http::HeaderMap;
use http_body::Frame;
use protocol::{
    failure::{Failure, Reason},
    limits::MESSAGE_BYTES_MAX,
};
use tokio::time::timeout_at;

use super::{
    GRPC_ENCODING,
    envelope::{self, COMPRESSED, Follow},
    hold::{Budget, Hold},
    json::{Shape, WHOLE_WITHIN},
    kind::{Form, Kind},
    refusal::{No, Wrong},
    rest::Rest,
    text::Decoder,
};
use crate::bounds::JSON_BYTES_MAX;

/// How the messages come.
#[derive(Debug)]
enum Reader {
    /// In envelopes that gRPC has as well.
    Envelopes(Follow),
    /// The same in base64.
    Text(Decoder, Follow),
    /// In envelopes, each to be translated.
    Json(Hold, Shape),
    /// One message without an envelope, of a length that HTTP tells and holds it to.
    Rest,
}

impl Reader {
    /// What a plugin is to read of the next chunk.
    fn push(&mut self, chunk: Bytes) -> Result<Bytes, No> {
        match self {
            Self::Rest => Ok(chunk),
            Self::Envelopes(follow) => follow.pass(&chunk).map(|()| chunk),
            Self::Text(decoder, follow) => {
                let bytes = decoder.push(&chunk).map_err(|_| No::invalid("it is not base64"))?;
                follow.pass(&bytes).map(|()| bytes)
            }
            Self::Json(hold, shape) => {
                hold.push(&chunk)?;
                let mut messages = Vec::new();
                while let Some(message) = envelope::next(hold, JSON_BYTES_MAX)? {
                    messages.extend(envelope::wrap(0, &shape.to_proto(&message)?));
                }
                Ok(messages.into())
            }
        }
    }

    /// Nothing is missing at the end.
    fn end(&self) -> Result<(), No> {
        let whole = match self {
            Self::Rest => true,
            Self::Envelopes(follow) => follow.is_whole(),
            Self::Text(decoder, follow) => decoder.is_whole() && follow.is_whole(),
            Self::Json(hold, _) => hold.as_slice().is_empty(),
        };
        if whole { Ok(()) } else { Err(No::invalid("the request ends within a message")) }
    }
}

/// The messages, as gRPC has them.
pub(super) struct Inbound {
    body: Rest,
    reader: Reader,
    /// Goes before everything else.
    first: Option<Bytes>,
    wrong: Wrong,
    ended: bool,
}

/// What is needed to read a request's messages.
pub(super) struct Reading<'a> {
    pub(super) kind: Kind,
    /// The request's headers, as gRPC has them.
    pub(super) metadata: &'a HeaderMap,
    pub(super) shape: Option<Shape>,
    pub(super) budget: &'a Budget,
    pub(super) deadline: Option<Instant>,
    pub(super) wrong: Wrong,
}

impl Inbound {
    /// The messages in `body`. Waits for all of it only where gRPC needs a length that HTTP does
    /// not tell.
    pub(super) async fn read(body: Rest, reading: Reading<'_>) -> Result<Self, No> {
        let Reading { kind, metadata, shape, budget, deadline, wrong } = reading;
        let compressed = metadata.get(GRPC_ENCODING).is_some_and(|value| value != "identity");
        let follow = Follow::new(compressed);
        let reader = match (kind, shape) {
            (Kind::Unary(form), shape) => {
                let flags = if compressed { COMPRESSED } else { 0 };
                return Self::read_one(body, flags, form, shape, (budget, deadline), wrong).await;
            }
            (Kind::Web { text: true }, _) => Reader::Text(Decoder::default(), follow),
            // Twice the bound: one chunk may hold the end of one message and much of the next.
            (_, Some(shape)) => Reader::Json(Hold::new(budget.clone(), JSON_BYTES_MAX * 2), shape),
            (_, None) => Reader::Envelopes(follow),
        };
        Ok(Self { body, reader, first: None, wrong, ended: false })
    }

    /// A message without an envelope.
    async fn read_one(
        body: Rest,
        flags: u8,
        form: Form,
        shape: Option<Shape>,
        (budget, deadline): (&Budget, Option<Instant>),
        wrong: Wrong,
    ) -> Result<Self, No> {
        let told = body.length();
        if let (Form::Proto, Some(length)) = (form, told) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MESSAGE_BYTES_MAX {
                let message =
                    format!("it has {length} bytes; the mesh carries {MESSAGE_BYTES_MAX} at most");
                return Err(No::too_large(message));
            }
            let first = Bytes::copy_from_slice(&envelope::prefix(flags, length));
            return Ok(Self {
                body,
                reader: Reader::Rest,
                first: Some(first),
                wrong,
                ended: false,
            });
        }
        let bytes_max = if shape.is_some() { JSON_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        let patience = Instant::now() + WHOLE_WITHIN;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let whole = whole(&body, Hold::new(budget.clone(), bytes_max));
        let message = timeout_at(until.into(), whole).await.map_err(|_| {
            No::Failed(Failure::not_started(
                Reason::DeadlineExceeded,
                "the request did not come whole before its deadline",
            ))
        })??;
        let first = match shape {
            Some(shape) => envelope::wrap(0, &shape.to_proto(message.as_slice())?),
            None => envelope::wrap(flags, message.as_slice()),
        };
        let reader = Reader::Rest;
        Ok(Self { body, reader, first: Some(first.into()), wrong, ended: true })
    }
}

/// All of `body`.
async fn whole(body: &Rest, mut hold: Hold) -> Result<Hold, No> {
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        let frame = frame.map_err(|_| went_away())?;
        if let Some(chunk) = frame.data_ref() {
            hold.push(chunk)?;
        }
    }
    Ok(hold)
}

fn went_away() -> Failure {
    Failure::not_started(Reason::Cancelled, "the caller went away")
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        while !this.ended {
            let read = match ready!(this.body.poll(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => this.reader.push(chunk),
                    // Trailers of HTTP mean nothing here.
                    Err(_) => continue,
                },
                Some(Err(_)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(went_away())));
                }
                None => {
                    this.ended = true;
                    this.reader.end().map(|()| Bytes::new())
                }
            };
            match read {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(no) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(this.wrong.found(no))));
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && (self.ended || (matches!(self.reader, Reader::Rest) && self.body.is_end()))
    }
}
