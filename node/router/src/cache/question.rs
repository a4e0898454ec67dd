//! A call's question, read whole before it is sent anywhere, and what stands for it.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use protocol::{
    failure::Failure,
    ports::{Body, CallHead, Caller, Locality},
};

/// The largest question that is read first. Larger ones are sent on as they come, and their answers
/// are not kept.
const QUESTION_BYTES_MAX: usize = 16 * 1024;

/// And the most chunks it may come in.
const CHUNKS_MAX: usize = 64;

/// Metadata that does not change an answer: it differs from call to call, or speaks of the way.
/// Whatever else a caller says is part of the question.
const BESIDE_THE_POINT: [&str; 7] =
    ["baggage", "bh-explain", "bh-priority", "cache-control", "te", "traceparent", "tracestate"];

/// What stands for a question: who asks whom for what, byte by byte.
pub(crate) type Key = Box<[u8]>;

/// A request that was read up to [`QUESTION_BYTES_MAX`], and still is a whole one.
pub(super) struct Question {
    read: VecDeque<Bytes>,
    /// What comes after that; `None` where that was all.
    rest: Option<Body>,
    /// Where the caller broke off.
    failure: Option<Failure>,
}

impl Question {
    /// Reads `body` as far as it is kept.
    pub(super) async fn read(mut body: Body) -> Self {
        let (mut read, mut bytes) = (VecDeque::new(), 0);
        while bytes <= QUESTION_BYTES_MAX && read.len() < CHUNKS_MAX {
            match body.frame().await {
                Some(Ok(frame)) => {
                    // A request of gRPC has no trailers.
                    let Ok(data) = frame.into_data() else { continue };
                    bytes += data.len();
                    if !data.is_empty() {
                        read.push_back(data);
                    }
                }
                Some(Err(failure)) => return Self { read, rest: None, failure: Some(failure) },
                None => return Self { read, rest: None, failure: None },
            }
        }
        Self { read, rest: Some(body), failure: None }
    }

    /// The message, where that is all there is.
    pub(super) fn message(&self) -> Option<impl Iterator<Item = &Bytes>> {
        (self.rest.is_none() && self.failure.is_none()).then(|| self.read.iter())
    }
}

impl http_body::Body for Question {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(data) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let rest = self.rest.as_ref().is_none_or(http_body::Body::is_end_stream);
        self.read.is_empty() && self.failure.is_none() && rest
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What stands for `message` asked with `head`. Every part is written with its length, so that no
/// two questions have the same key.
pub(super) fn key<'a>(head: &CallHead, message: impl Iterator<Item = &'a Bytes>) -> Key {
    let mut key = Vec::with_capacity(256);
    match &head.caller {
        Caller::Operator => part(&mut key, b"operator"),
        Caller::Client => part(&mut key, b"client"),
        Caller::Plugin(name) => part(&mut key, format!("plugin {name}").as_bytes()),
        Caller::Peer(peer) => part(&mut key, format!("peer {peer}").as_bytes()),
    }
    match head.locality {
        Locality::Local => part(&mut key, b"local"),
        Locality::PreferLocal => part(&mut key, b"prefer-local"),
        Locality::Any => part(&mut key, b"any"),
        Locality::Peer(peer) => part(&mut key, peer.to_string().as_bytes()),
    }
    part(&mut key, head.path.as_str().as_bytes());
    let counts = |name: &HeaderName| !BESIDE_THE_POINT.contains(&name.as_str());
    let mut metadata: Vec<_> = head.metadata.iter().filter(|(name, _)| counts(name)).collect();
    // Stable: the order of values of one name may mean something.
    metadata.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in metadata {
        part(&mut key, name.as_str().as_bytes());
        part(&mut key, value.as_bytes());
    }
    // Marks where metadata ends: no name is empty.
    part(&mut key, b"");
    message.for_each(|chunk| key.extend_from_slice(chunk));
    key.into()
}

fn part(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    key.extend_from_slice(bytes);
}
