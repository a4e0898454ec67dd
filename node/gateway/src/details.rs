//! A failure's details in the forms of `google.rpc`, which gRPC libraries of every language read.
//!
//! `ErrorInfo` for programs: the reason, whether it ran, the peer, the plugin. `RetryInfo` where
//! another try is of use later. `DebugInfo` for people: one line for each provider that was tried.
//! The messages are written here rather than generated: four small ones, fixed for ever.
//!
//! Source: `google/rpc/status.proto`, `google/rpc/error_details.proto`.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use protocol::{
    failure::{Failure, Ran},
    limits::METADATA_BYTES_MAX,
};
use tonic::metadata::{BinaryMetadataValue, MetadataValue};

use crate::bounds::STATUS_MESSAGE_BYTES_MAX;

/// Who speaks in `ErrorInfo.domain`.
const DOMAIN: &str = "blackhole";

/// Any text in the details, in bytes: names and ids are shorter.
const TEXT_BYTES_MAX: usize = 256;

// A line for each that was tried, the message and the rest, in base64, beside the plain trailers.
const _: () = assert!(
    (protocol::failure::TRIED_MAX * TEXT_BYTES_MAX + STATUS_MESSAGE_BYTES_MAX * 2) * 2
        < METADATA_BYTES_MAX
);

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, Message)]
struct DebugInfo {
    #[prost(string, repeated, tag = "1")]
    stack_entries: Vec<String>,
    #[prost(string, tag = "2")]
    detail: String,
}

/// The value of `grpc-status-details-bin`; `pause` is how long to wait before another try.
pub(crate) fn encode(failure: &Failure, pause: Option<Duration>) -> BinaryMetadataValue {
    let mut details = vec![any("ErrorInfo", &info(failure))];
    if let Some(pause) = pause {
        let retry_delay = prost_types::Duration::try_from(pause).ok();
        details.push(any("RetryInfo", &RetryInfo { retry_delay }));
    }
    let tried = failure.detail.as_ref().map_or(&[][..], |detail| &detail.tried);
    if !tried.is_empty() {
        let lines = tried.iter().map(|one| short(&one.to_string())).collect();
        let detail = "providers that were tried before the last one, in their order".into();
        details.push(any("DebugInfo", &DebugInfo { stack_entries: lines, detail }));
    }
    let mut message = failure.to_string();
    let end = message.floor_char_boundary(STATUS_MESSAGE_BYTES_MAX);
    message.truncate(end);
    let status = Status { code: failure.grpc_code() as i32, message, details };
    MetadataValue::from_bytes(&status.encode_to_vec())
}

fn info(failure: &Failure) -> ErrorInfo {
    let mut metadata = HashMap::from([("ran".to_owned(), failure.ran.as_str().to_owned())]);
    let repeat = match failure.ran {
        Ran::NotStarted => "yes",
        Ran::Unknown => "only if the method is idempotent",
        Ran::Failed => "no",
    };
    metadata.insert("repeat".into(), repeat.into());
    if let Some(peer) = failure.peer {
        metadata.insert("peer".into(), peer.to_string());
    }
    if let Some(plugin) = failure.detail.as_ref().and_then(|detail| detail.plugin.as_ref()) {
        metadata.insert("plugin".into(), short(plugin));
    }
    // Its form is fixed: UPPER_SNAKE_CASE.
    let reason = failure.reason.as_str().replace('-', "_").to_uppercase();
    ErrorInfo { reason, domain: DOMAIN.into(), metadata }
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: message.encode_to_vec(),
    }
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use protocol::{
        failure::{Reason, Tried},
        id::NodeKey,
    };

    use super::*;

    #[test]
    fn programs_read_who_was_tried_and_whether_to_repeat() {
        let peer = NodeKey::from_seed([3; 32]).peer_id();
        let mut failure =
            Failure::not_started(Reason::Busy, "too much").at(peer).at_plugin("counter");
        let (ran, reason) = (Ran::NotStarted, Reason::Unreachable);
        failure.detail_mut().tried.push(Tried { peer, plugin: "counter".into(), ran, reason });
        let value = encode(&failure, Some(Duration::from_millis(1_500)));
        let bytes = value.to_bytes().expect("base64");
        let status = Status::decode(bytes).expect("a status");
        assert_eq!((status.code, status.details.len()), (8, 3));
        let info = ErrorInfo::decode(status.details[0].value.as_slice()).expect("its info");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("BUSY", "blackhole"));
        assert_eq!(info.metadata["plugin"], "counter");
        assert_eq!(
            (info.metadata["ran"].as_str(), info.metadata["repeat"].as_str()),
            ("not-started", "yes")
        );
        let retry = RetryInfo::decode(status.details[1].value.as_slice()).expect("its pause");
        let delay = retry.retry_delay.expect("a pause");
        assert_eq!((delay.seconds, delay.nanos), (1, 500_000_000));
        let debug = DebugInfo::decode(status.details[2].value.as_slice()).expect("its lines");
        assert_eq!(debug.stack_entries, [format!("counter@{peer} unreachable not-started")]);
    }
}
