//! What a caller is told in a socket: the messages of the answer as they come, and how it ended.

use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt as _, stream::SplitSink};
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use protocol::failure::{Failure, Reason};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

use super::{gauge::Gauged, listen::Pulse, session::Last};
use crate::{
    bounds::FRAME_BYTES_MAX,
    heads::message_bytes,
    web::{
        envelope::{COMPRESSED, END_OF_STREAM, PREFIX_BYTES},
        kind::Form,
        refusal::No,
        words,
    },
};

type Sink<I> = SplitSink<WebSocketStream<Gauged<I>>, Message>;

/// Tells one caller.
pub(super) struct Speaker<'a, I> {
    sink: Sink<I>,
    form: Form,
    pulse: &'a Pulse,
    /// A message was begun and has not been sent to its end.
    within: bool,
}

impl<'a, I: AsyncRead + AsyncWrite + Unpin> Speaker<'a, I> {
    pub(super) fn new(sink: Sink<I>, form: Form, pulse: &'a Pulse) -> Self {
        Self { sink, form, pulse, within: false }
    }

    /// Tells all of an answer but its end, each piece of it when the caller has taken the one
    /// before.
    pub(super) async fn tell(&mut self, answer: impl Future<Output = Response<Body>>) -> Last {
        self.try_tell(answer).await.unwrap_or(Last::Gone)
    }

    async fn try_tell(
        &mut self,
        answer: impl Future<Output = Response<Body>>,
    ) -> Result<Last, Error> {
        let (parts, mut body) = self.with_pings(answer).await?.into_parts();
        let (mut envelopes, mut end) = (Envelopes::default(), Vec::new());
        while let Some(Ok(frame)) = self.with_pings(body.frame()).await? {
            let mut chunk = frame.into_data().unwrap_or_default();
            while let Some(piece) = envelopes.next(&mut chunk) {
                if piece.flags & COMPRESSED != 0 {
                    let message = "the plugin compressed its answer unasked";
                    let no = No::Failed(Failure::failed(Reason::Malformed, message));
                    return Ok(Last::Broke { code: CloseCode::Error, no, ended: None });
                }
                if piece.flags & END_OF_STREAM == 0 {
                    self.send(piece).await?;
                    continue;
                }
                end.extend_from_slice(&piece.bytes);
                if piece.last {
                    return Ok(Last::Told(with_headers(end, parts.headers)));
                }
            }
        }
        Ok(Last::CutOff)
    }

    /// Waits for `waited`, and pings the caller meanwhile where that is wished.
    async fn with_pings<F: Future>(&mut self, waited: F) -> Result<F::Output, Error> {
        tokio::pin!(waited);
        loop {
            tokio::select! {
                biased;
                done = &mut waited => return Ok(done),
                () = self.pulse.wished() => {
                    self.sink.send(Message::Ping(Bytes::new())).await?;
                    self.pulse.asked();
                }
            }
        }
    }

    async fn send(&mut self, Piece { first, last, bytes, .. }: Piece) -> Result<(), Error> {
        let kind = match self.form {
            _ if !first => Data::Continue,
            Form::Json => Data::Text,
            Form::Proto => Data::Binary,
        };
        // Before and after: sending may be given up between.
        self.within |= !last;
        let frame = Frame::message(bytes, OpCode::Data(kind), last);
        self.sink.send(Message::Frame(frame)).await?;
        self.within &= !last;
        Ok(())
    }

    /// Tells how the call ended, where nothing is left half said, and closes with `code`.
    pub(super) async fn end(&mut self, end: Option<&[u8]>, code: CloseCode) -> Result<(), Error> {
        let end = end.filter(|_| !self.within);
        if let Some(end) = end {
            for text in [Bytes::new(), Bytes::copy_from_slice(end)] {
                let frame = Frame::message(text, OpCode::Data(Data::Text), true);
                self.sink.feed(Message::Frame(frame)).await?;
            }
        }
        // What is not told to its end has not ended normally.
        let told = end.is_some() || code != CloseCode::Normal;
        let code = if told { code } else { CloseCode::Error };
        let close = CloseFrame { code, reason: "".into() };
        self.sink.send(Message::Close(Some(close))).await
    }

    /// Sends what waits to be sent.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        self.sink.flush().await
    }

    /// What it speaks to.
    pub(super) fn into_sink(self) -> Sink<I> {
        self.sink
    }
}

/// The end of a call, with the headers of its answer: they came first, but nothing of the dialect
/// comes before the messages.
fn with_headers(end: Vec<u8>, mut headers: HeaderMap) -> Vec<u8> {
    headers.remove(CONTENT_TYPE);
    let headers = words::metadata(&headers);
    if headers.is_empty() {
        return end;
    }
    let mut told: Map<String, Value> = serde_json::from_slice(&end).unwrap_or_default();
    told.insert("headers".into(), Value::Object(headers));
    Value::Object(told).to_string().into_bytes()
}

/// A part of what is in an envelope.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    flags: u8,
    first: bool,
    last: bool,
    bytes: Bytes,
}

/// Takes envelopes apart as they pass; each content comes in pieces that fit a frame.
#[derive(Debug, Default)]
struct Envelopes {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that have come.
    come: usize,
    /// Bytes of the content that have not come; `None` while the prefix comes.
    left: Option<usize>,
    begun: bool,
}

impl Envelopes {
    /// The next piece of `chunk`; `None` when nothing is left of it.
    fn next(&mut self, chunk: &mut Bytes) -> Option<Piece> {
        let left = if let Some(left) = self.left {
            left
        } else {
            let taken = chunk.split_to((PREFIX_BYTES - self.come).min(chunk.len()));
            self.prefix[self.come..self.come + taken.len()].copy_from_slice(&taken);
            self.come += taken.len();
            if self.come < PREFIX_BYTES {
                return None;
            }
            self.begun = false;
            message_bytes(self.prefix)
        };
        self.left = Some(left);
        if left > 0 && chunk.is_empty() {
            return None;
        }
        let bytes = chunk.split_to(left.min(chunk.len()).min(FRAME_BYTES_MAX as usize));
        let (first, last) = (!self.begun, left == bytes.len());
        self.begun = true;
        self.left = Some(left - bytes.len());
        if last {
            (self.come, self.left) = (0, None);
        }
        Some(Piece { flags: self.prefix[0], first, last, bytes })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::web::envelope::wrap;

    proptest! {
        #[test]
        fn contents_come_out_of_envelopes_however_they_are_cut(
            contents in prop::collection::vec((0..3_u8, 0..300_usize), 0..6),
            cut in 1..40_usize,
        ) {
            let wrapped = |(flags, length): &(u8, usize)| wrap(*flags, &vec![7; *length]);
            let wire: Vec<u8> = contents.iter().flat_map(wrapped).collect();
            let (mut envelopes, mut found) = (Envelopes::default(), Vec::new());
            for chunk in wire.chunks(cut) {
                let mut chunk = Bytes::copy_from_slice(chunk);
                while let Some(piece) = envelopes.next(&mut chunk) {
                    if piece.first {
                        found.push((piece.flags, 0));
                    }
                    let (flags, length) = found.last_mut().expect("one was first");
                    prop_assert_eq!(*flags, piece.flags);
                    *length += piece.bytes.len();
                    prop_assert_eq!(piece.last, *length == contents[found.len() - 1].1);
                }
                prop_assert!(chunk.is_empty());
            }
            prop_assert_eq!(found, contents);
        }
    }

    #[test]
    fn a_large_message_comes_in_frames_of_bounded_size() {
        let mut chunk = Bytes::from(wrap(0, &vec![7; 3 * FRAME_BYTES_MAX as usize - 1]));
        let mut envelopes = Envelopes::default();
        let mut pieces = Vec::new();
        while let Some(piece) = envelopes.next(&mut chunk) {
            pieces.push((piece.first, piece.last, piece.bytes.len()));
        }
        let all = FRAME_BYTES_MAX as usize;
        assert_eq!(pieces, [(true, false, all), (false, false, all), (false, true, all - 1)]);
    }

    #[test]
    fn the_end_has_the_headers_of_the_answer_beside_the_trailers() {
        let told = |name| HeaderMap::from_iter([(name, HeaderValue::from_static("a"))]);
        assert_eq!(with_headers(b"{}".to_vec(), told(CONTENT_TYPE)), b"{}");
        let end = br#"{"metadata":{"x-cost":["1"]}}"#.to_vec();
        let end = with_headers(end, told(http::header::ETAG));
        let wanted =
            serde_json::json!({ "metadata": { "x-cost": ["1"] }, "headers": { "etag": ["a"] } });
        assert_eq!(serde_json::from_slice::<Value>(&end).expect("JSON"), wanted);
    }
}
