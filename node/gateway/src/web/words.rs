//! How calls end, in Connect's words and in gRPC-Web's.
//!
//! Source: Connect protocol, *Error codes*, *Error end-stream*; gRPC-Web protocol, *Trailers*.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, StatusCode};
use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use crate::{details, rescue::GRPC_STATUS};

/// Details shown of one error.
const DETAILS_MAX: usize = 64;

/// Connect's name of a status, and the HTTP status of an answer that fails with it.
pub(super) fn code(code: Code) -> (&'static str, StatusCode) {
    match code {
        Code::Ok => ("ok", StatusCode::OK),
        // HTTP has no name for it; the number is Connect's.
        Code::Cancelled => ("canceled", StatusCode::from_u16(499).unwrap_or_default()),
        Code::Unknown => ("unknown", StatusCode::INTERNAL_SERVER_ERROR),
        Code::InvalidArgument => ("invalid_argument", StatusCode::BAD_REQUEST),
        Code::DeadlineExceeded => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
        Code::NotFound => ("not_found", StatusCode::NOT_FOUND),
        Code::AlreadyExists => ("already_exists", StatusCode::CONFLICT),
        Code::PermissionDenied => ("permission_denied", StatusCode::FORBIDDEN),
        Code::ResourceExhausted => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
        Code::FailedPrecondition => ("failed_precondition", StatusCode::BAD_REQUEST),
        Code::Aborted => ("aborted", StatusCode::CONFLICT),
        Code::OutOfRange => ("out_of_range", StatusCode::BAD_REQUEST),
        Code::Unimplemented => ("unimplemented", StatusCode::NOT_IMPLEMENTED),
        Code::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        Code::DataLoss => ("data_loss", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED),
    }
}

/// The status that `trailers` tell; without one the call has been cut off.
pub(super) fn status(trailers: &HeaderMap) -> Status {
    if !trailers.contains_key(GRPC_STATUS) {
        return Status::internal("the answer ended without a status");
    }
    let status = Status::from_header_map(trailers);
    status.unwrap_or_else(|| Status::internal("the answer's status cannot be read"))
}

/// An error as Connect writes it.
pub(super) fn error(status: &Status) -> Value {
    let mut error = Map::from_iter([("code".to_owned(), json!(code(status.code()).0))]);
    if !status.message().is_empty() {
        error.insert("message".into(), json!(status.message()));
    }
    let details = details::Status::decode(status.details()).unwrap_or_default().details;
    if !details.is_empty() {
        let details = details.iter().take(DETAILS_MAX).map(|any| {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            json!({ "type": name, "value": STANDARD_NO_PAD.encode(&any.value) })
        });
        error.insert("details".into(), details.collect());
    }
    Value::Object(error)
}

/// Connect's last envelope of a stream: how it ended, and the trailers.
pub(super) fn end_of_stream(trailers: &HeaderMap) -> Vec<u8> {
    let status = status(trailers);
    let mut end = Map::new();
    if status.code() != Code::Ok {
        end.insert("error".into(), error(&status));
    }
    let metadata = metadata(trailers);
    if !metadata.is_empty() {
        end.insert("metadata".into(), Value::Object(metadata));
    }
    Value::Object(end).to_string().into_bytes()
}

/// Headers or trailers as Connect writes them: each name with all its values.
pub(super) fn metadata(headers: &HeaderMap) -> Map<String, Value> {
    let mut metadata = Map::new();
    for (name, value) in headers.iter().filter(|(name, _)| !is_grpc(name)) {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let values = metadata.entry(name.as_str()).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(value.into());
        }
    }
    metadata
}

/// gRPC-Web's last envelope: the trailers as HTTP/1 writes headers.
pub(super) fn trailer_lines(trailers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines
}

/// Whether it is gRPC's own, which Connect says otherwise.
pub(super) fn is_grpc(name: &HeaderName) -> bool {
    name.as_str().starts_with("grpc-")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use protocol::failure::{Failure, Reason};

    use super::*;
    use crate::rescue;

    #[test]
    fn a_failure_of_the_mesh_is_told_with_its_details() {
        let failure = Failure::unknown(Reason::PluginLost, "its plugin ended");
        let trailers = rescue::trailers(&failure);
        let end: Value = serde_json::from_slice(&end_of_stream(&trailers)).expect("JSON");
        assert_eq!(end["error"]["code"], "unavailable");
        assert_eq!(end["error"]["message"], "its plugin ended (it may have run)");
        assert_eq!(end["error"]["details"][0]["type"], "google.rpc.ErrorInfo");
        assert_eq!(end["metadata"]["bh-ran"], json!(["unknown"]));
        assert!(end["metadata"].get("grpc-status").is_none());
    }

    #[test]
    fn success_says_nothing_but_the_trailers() {
        let mut trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        assert_eq!(end_of_stream(&trailers), b"{}");
        assert_eq!(trailer_lines(&trailers), b"grpc-status: 0\r\n");
        for value in ["1", "2"] {
            trailers.append("x-cost", HeaderValue::from_static(value));
        }
        assert_eq!(end_of_stream(&trailers), br#"{"metadata":{"x-cost":["1","2"]}}"#);
        assert_eq!(status(&HeaderMap::new()).code(), Code::Internal);
    }

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            (0..=16).map(|number| code(Code::from_i32(number)).0).collect();
        assert_eq!(names.len(), 17);
    }

    #[test]
    fn the_reference_has_the_same_table() {
        let page = include_str!("../../../../docs/src/reference/failures.md");
        for reason in Reason::ALL {
            let (before, after) = (Failure::not_started(reason, ""), Failure::unknown(reason, ""));
            let number = before.grpc_code();
            assert_eq!(number, after.grpc_code());
            let (name, status) = code(Code::from_i32(number as i32));
            let grpc = name.to_uppercase().replace("CANCELED", "CANCELLED");
            let row = format!(
                "| `{}` | {number} {grpc} | `{name}` | {} | {} | {} |",
                reason.as_str(),
                status.as_u16(),
                before.http_status(),
                after.http_status()
            );
            assert!(page.contains(&row), "{row}");
        }
    }
}
