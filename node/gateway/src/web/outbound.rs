//! The answer on its way out, in the form in which it was asked for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
};
use http_body::Frame;
use http_body_util::BodyExt as _;
use protocol::{
    failure::{Failure, Reason},
    limits::MESSAGE_BYTES_MAX,
};
use tonic::{Code, Status};

use super::{
    CONNECT_ENCODING, GRPC_ENCODING,
    envelope::{self, COMPRESSED, END_OF_STREAM, PREFIX_BYTES, TRAILERS},
    hold::{Budget, Hold},
    json::Shape,
    kind::Kind,
    refusal::{No, Wrong},
    rest::{Drain, Rest},
    text, words,
};
use crate::{
    bounds::JSON_BYTES_MAX,
    grpc::Outgoing,
    heads::message_bytes,
    rescue::{self, GRPC_STATUS, PUSHBACK},
};

/// What is needed to write an answer.
pub(super) struct Writing {
    pub(super) kind: Kind,
    pub(super) shape: Option<Shape>,
    pub(super) budget: Budget,
    pub(super) wrong: Wrong,
    pub(super) rest: Rest,
}

impl Writing {
    /// gRPC's answer in the form of the request.
    pub(super) async fn write(self, answer: Response<Outgoing>) -> Response<Body> {
        let answer = match self.wrong.get() {
            Some(no) => no.answer().map(Outgoing::Own),
            None => answer,
        };
        let (parts, body) = answer.into_parts();
        let mut metadata = parts.headers;
        metadata.remove(CONTENT_TYPE);
        if parts.status != StatusCode::OK && !metadata.contains_key(GRPC_STATUS) {
            let failure = Failure::failed(Reason::Internal, format!("it said {}", parts.status));
            metadata.extend(rescue::trailers(&failure));
        }
        // Trailers-only: what looks like metadata are the trailers.
        let ended = metadata.contains_key(GRPC_STATUS);
        let trailers = if ended { Some(std::mem::take(&mut metadata)) } else { None };
        match self.kind {
            Kind::Unary(_) => self.unary(metadata, trailers, body).await,
            Kind::Web { .. } | Kind::Stream(_) => self.stream(metadata, trailers, body),
        }
    }

    fn stream(
        self,
        mut metadata: HeaderMap,
        trailers: Option<HeaderMap>,
        body: Outgoing,
    ) -> Response<Body> {
        if matches!(self.kind, Kind::Stream(_)) {
            let encoding = metadata.remove(GRPC_ENCODING);
            strip_grpc(&mut metadata);
            if let Some(encoding) = encoding.filter(|_| self.shape.is_none()) {
                metadata.insert(CONNECT_ENCODING, encoding);
            }
        }
        metadata.insert(CONTENT_TYPE, self.kind.content_type());
        let hold = Hold::new(self.budget.clone(), JSON_BYTES_MAX * 2);
        let drain = None;
        let outbound = Outbound { body: Some(body), trailers, hold, drain, writing: self };
        let mut response = Response::new(Body::new(outbound));
        *response.headers_mut() = metadata;
        response
    }

    /// The status is in the head, so all of the answer must have come.
    async fn unary(
        self,
        mut metadata: HeaderMap,
        trailers: Option<HeaderMap>,
        body: Outgoing,
    ) -> Response<Body> {
        let encoding = metadata.remove(GRPC_ENCODING);
        strip_grpc(&mut metadata);
        let (message, mut trailers) = match trailers {
            Some(trailers) => (Ok(None), trailers),
            None => match whole(body, Hold::new(self.budget.clone(), ONE_BYTES_MAX)).await {
                Ok((message, trailers)) => (Ok(Some(message)), trailers),
                Err(no) => (Err(no), HeaderMap::new()),
            },
        };
        self.rest.drain().await;
        let no = self.wrong.get().cloned().or_else(|| message.as_ref().err().cloned());
        if let Some(no) = no {
            trailers = no.trailers();
        }
        let pause = trailers.get(PUSHBACK).cloned();
        let status = words::status(&trailers);
        strip_grpc(&mut trailers);
        for (name, value) in &trailers {
            if let Ok(name) = HeaderName::try_from(format!("trailer-{name}")) {
                metadata.append(name, value.clone());
            }
        }
        let message = message.ok().flatten().unwrap_or_default();
        let told = match status.code() {
            Code::Ok => self.message(&message).map_err(|failure| {
                let code = Code::from_i32(failure.grpc_code() as i32);
                Status::new(code, failure.to_string())
            }),
            _ => Err(status),
        };
        match told {
            Ok((compressed, message)) => {
                metadata.insert(CONTENT_TYPE, self.kind.content_type());
                if let Some(encoding) = encoding.filter(|_| compressed) {
                    metadata.insert(CONTENT_ENCODING, encoding);
                }
                respond(StatusCode::OK, metadata, message.into())
            }
            Err(status) => {
                metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                if let Some(pause) = pause.as_ref().and_then(seconds) {
                    metadata.insert(RETRY_AFTER, pause);
                }
                let error = words::error(&status).to_string();
                respond(words::code(status.code()).1, metadata, error.into())
            }
        }
    }

    /// The one message of an answer, and whether it is compressed.
    fn message(&self, envelopes: &Bytes) -> Result<(bool, Bytes), Failure> {
        let malformed = |message: &str| Err(Failure::failed(Reason::Malformed, message));
        let Some(prefix) = envelopes.first_chunk::<PREFIX_BYTES>().copied() else {
            return malformed("the plugin answered without a message");
        };
        if message_bytes(prefix) != envelopes.len() - PREFIX_BYTES {
            return malformed("the plugin did not answer with one message: ask for a stream");
        }
        let message = envelopes.slice(PREFIX_BYTES..);
        let compressed = prefix[0] & COMPRESSED != 0;
        match &self.shape {
            Some(_) if compressed => malformed("the plugin compressed its answer unasked"),
            Some(shape) => Ok((false, shape.to_json(&message)?.into())),
            None => Ok((compressed, message)),
        }
    }
}

/// One message with its prefix.
const ONE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + PREFIX_BYTES;

/// All of an answer: what is in it, and its trailers.
async fn whole(mut body: Outgoing, mut hold: Hold) -> Result<(Bytes, HeaderMap), No> {
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::unknown(Reason::Internal, format!("the answer broke off: {error}"))
        })?;
        match frame.into_data() {
            Ok(chunk) => hold.push(&chunk)?,
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok((hold.take(), trailers))
}

fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Milliseconds as whole seconds, upwards.
fn seconds(millis: &HeaderValue) -> Option<HeaderValue> {
    let millis: u64 = millis.to_str().ok()?.parse().ok()?;
    Some(HeaderValue::from(millis.div_ceil(1_000)))
}

fn strip_grpc(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.keys().filter(|name| words::is_grpc(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The body of a streamed answer. Always ends with how the call ended.
struct Outbound {
    /// `None` once it has ended: dropping it cancels what is left of the call.
    body: Option<Outgoing>,
    /// Where they came before any body.
    trailers: Option<HeaderMap>,
    hold: Hold,
    /// What is left of the request, once the answer has ended.
    drain: Option<Drain>,
    writing: Writing,
}

impl Outbound {
    fn chunk(&mut self, chunk: Bytes) -> Result<Bytes, No> {
        match (&self.writing.shape, self.writing.kind) {
            (None, Kind::Web { text: true }) => Ok(text::encode(&chunk)),
            (None, _) => Ok(chunk),
            (Some(shape), _) => {
                self.hold.push(&chunk)?;
                let mut messages = Vec::new();
                while let Some(message) = envelope::next(&mut self.hold, JSON_BYTES_MAX)? {
                    messages.extend(envelope::wrap(0, &shape.to_json(&message)?));
                }
                Ok(messages.into())
            }
        }
    }

    fn end(&mut self, trailers: HeaderMap) -> Bytes {
        self.body = None;
        self.drain = Some(self.writing.rest.drain());
        let mut trailers = match self.writing.wrong.get() {
            Some(no) => no.trailers(),
            None => trailers,
        };
        trailers.remove(CONTENT_TYPE);
        match self.writing.kind {
            Kind::Web { text } => {
                if !trailers.contains_key(GRPC_STATUS) {
                    let message = "the answer ended without a status";
                    trailers
                        .extend(rescue::trailers(&Failure::unknown(Reason::Malformed, message)));
                }
                let last = envelope::wrap(TRAILERS, &words::trailer_lines(&trailers));
                if text { text::encode(&last) } else { last.into() }
            }
            Kind::Stream(_) | Kind::Unary(_) => {
                envelope::wrap(END_OF_STREAM, &words::end_of_stream(&trailers)).into()
            }
        }
    }
}

impl http_body::Body for Outbound {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            let Some(body) = &mut this.body else {
                if let Some(drain) = &mut this.drain {
                    ready!(Pin::new(drain).poll(cx));
                    this.drain = None;
                }
                return Poll::Ready(None);
            };
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::data(this.end(trailers)))));
            }
            let written = match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => this.chunk(chunk),
                    Err(frame) => Ok(this.end(frame.into_trailers().unwrap_or_default())),
                },
                Some(Err(_)) | None => Ok(this.end(HeaderMap::new())),
            };
            let bytes = written.unwrap_or_else(|no| this.end(no.trailers()));
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none() && self.drain.is_none()
    }
}
