//! What went wrong, in gRPC's words. All failure policy of the gateway is here.
//!
//! A failure of the mesh becomes a gRPC status. Programs that want to know more find the trailers
//! `bh-ran` (may I repeat it?), `bh-reason` and `bh-peer`, and in `grpc-status-details-bin` the
//! same in the forms that gRPC libraries know (`details`): who was tried, why that failed, and
//! when another try is of use, which `grpc-retry-pushback-ms` tells to clients that retry by
//! themselves. The names that begin with `bh-` are the mesh's own: a plugin cannot send them.

use std::time::Duration;

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use protocol::failure::{Failure, Reason};

use crate::{bounds::STATUS_MESSAGE_BYTES_MAX, details};

/// `grpc-status`.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const RAN: HeaderName = HeaderName::from_static("bh-ran");
const REASON: HeaderName = HeaderName::from_static("bh-reason");
const PEER: HeaderName = HeaderName::from_static("bh-peer");
/// How long the answering peer's own part took; only for the operator, who gets it otherwise.
const LEGS: HeaderName = HeaderName::from_static("bh-legs");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// `grpc-retry-pushback-ms`.
pub(crate) const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A request that does not become a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not gRPC at all: answered in HTTP's words.
    Http {
        /// The status.
        status: StatusCode,
        /// One sentence for a person.
        message: &'static str,
    },
    /// Metadata that the gateway reads is wrong: `INVALID_ARGUMENT`.
    InvalidArgument(String),
    /// The path names no method: `UNIMPLEMENTED`.
    Unimplemented(String),
}

/// What a caller waits where somebody has too much to do and says no more of it.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// gRPC's `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: u32 = 3;
/// gRPC's `UNIMPLEMENTED`.
const UNIMPLEMENTED: u32 = 12;

/// The answer to a request that does not become a call.
pub(crate) fn refuse(refusal: &Refusal) -> Response<Body> {
    match refusal {
        Refusal::Http { status, message } => {
            let mut response = Response::new(Body::from(format!("{message}\n")));
            *response.status_mut() = *status;
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, plain);
            if *status == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        }
        Refusal::InvalidArgument(message) => trailers_only(status(INVALID_ARGUMENT, message)),
        Refusal::Unimplemented(message) => trailers_only(status(UNIMPLEMENTED, message)),
    }
}

/// The answer to a call that failed before anything of its answer was sent.
pub(crate) fn answer(failure: &Failure) -> Response<Body> {
    trailers_only(trailers(failure))
}

/// The trailers that tell a failure.
pub(crate) fn trailers(failure: &Failure) -> HeaderMap {
    let mut trailers = status(failure.grpc_code(), &failure.to_string());
    trailers.insert(RAN, HeaderValue::from_static(failure.ran.as_str()));
    trailers.insert(REASON, HeaderValue::from_static(failure.reason.as_str()));
    let pause = retry_after(failure);
    if let Some(pause) = pause {
        let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        trailers.insert(PUSHBACK, HeaderValue::from(millis.max(1)));
    }
    let details = details::encode(failure, pause);
    if let Ok(details) = HeaderValue::from_bytes(details.as_encoded_bytes()) {
        trailers.insert(DETAILS, details);
    }
    if let Some(peer) = &failure.peer {
        // Base58 is always a header value.
        if let Ok(peer) = HeaderValue::from_str(&peer.to_string()) {
            trailers.insert(PEER, peer);
        }
    }
    trailers
}

/// Takes the mesh's own names out of what a plugin sent.
pub(crate) fn strip_reserved(headers: &mut HeaderMap) {
    for name in [RAN, REASON, PEER, LEGS] {
        headers.remove(name);
    }
}

/// When another try is of use: as the failure says, or in a moment where somebody is busy.
fn retry_after(failure: &Failure) -> Option<Duration> {
    let known = failure.detail.as_ref().and_then(|detail| detail.retry_after);
    known.or_else(|| (failure.reason == Reason::Busy).then_some(BUSY_PAUSE))
}

fn status(code: u32, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    // Percent-encoded text is always a header value.
    if let Ok(message) = HeaderValue::from_str(&percent_encode(message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    headers
}

fn trailers_only(mut headers: HeaderMap) -> Response<Body> {
    headers.insert(CONTENT_TYPE, GRPC);
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    response
}

/// `text` as `grpc-message` carries it, shortened to its bound.
///
/// Source: gRPC over HTTP/2, *Percent-Encoded*: printable ASCII but `%` stays.
fn percent_encode(text: &str) -> String {
    let mut end = text.len().min(STATUS_MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut encoded = String::with_capacity(end);
    for byte in text[..end].bytes() {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                encoded.push('%');
                encoded.push(char::from(HEX[usize::from(byte >> 4)]));
                encoded.push(char::from(HEX[usize::from(byte & 15)]));
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::id::NodeKey;

    use super::*;

    #[test]
    fn a_failure_tells_its_status_whether_it_ran_why_and_where() {
        let peer = NodeKey::from_seed([3; 32]).peer_id();
        let trailers = trailers(&Failure::unknown(Reason::PeerLost, "lost 100% of it").at(peer));
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["bh-ran"], "unknown");
        assert_eq!(trailers["bh-reason"], "peer-lost");
        assert_eq!(trailers["bh-peer"], peer.to_string());
        let message = trailers["grpc-message"].to_str().expect("ASCII");
        assert!(message.starts_with("lost 100%25 of it (at peer 12D3Koo"), "{message}");
    }

    #[test]
    fn who_is_busy_says_when_to_come_back() {
        let busy = Failure::not_started(Reason::Busy, "too much");
        assert_eq!(trailers(&busy)["grpc-retry-pushback-ms"], "1000");
        let told = busy.retry_after(Duration::from_millis(70));
        assert_eq!(trailers(&told)["grpc-retry-pushback-ms"], "70");
        let lost = Failure::unknown(Reason::PeerLost, "lost");
        assert!(!trailers(&lost).contains_key("grpc-retry-pushback-ms"));
    }

    #[test]
    fn refusals_speak_the_language_they_were_asked_in() {
        let refusal = Refusal::Http { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, message: "no" };
        assert_eq!(refuse(&refusal).status(), 415);
        let response = refuse(&Refusal::InvalidArgument("bad".into()));
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &HeaderValue::from_static("3"))
        );
    }

    proptest! {
        #[test]
        fn any_message_survives_as_a_header(text in ".*") {
            let encoded = percent_encode(&text);
            prop_assert!(HeaderValue::from_str(&encoded).is_ok());
            prop_assert!(encoded.len() <= STATUS_MESSAGE_BYTES_MAX * 3);
            let decoded = tonic::Status::from_header_map(&status(5, &text));
            let message = decoded.expect("it has a status").message().to_owned();
            prop_assert!(text.starts_with(&message));
            let whole = message.len() == text.len();
            prop_assert!(whole || message.len() > STATUS_MESSAGE_BYTES_MAX - 4);
        }
    }
}
