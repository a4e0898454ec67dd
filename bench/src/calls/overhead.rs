//! What frames take beside what they carry.

use std::time::Duration;

use anyhow::Result;
use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use protocol::frame::{CallId, Encoder};

use crate::report::{Better, Figure};

/// The figure.
pub const NAME: &str = "wire_overhead";

/// A message, in bytes.
const MESSAGE_BYTES: usize = 4 * 1024;

/// What a unary call with 4 KiB each way has on the wire beyond that, counted in its two frames as
/// the SDK sends them once the path is known to the link.
pub fn wire_overhead() -> Result<Figure> {
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    let path = "/demo.v1.Echo/Handle".parse()?;
    let grpc = HeaderValue::from_static("application/grpc");
    let mut asked = HeaderMap::from_iter([(CONTENT_TYPE, grpc.clone())]);
    asked.insert("te", HeaderValue::from_static("trailers"));
    let answered = HeaderMap::from_iter([(CONTENT_TYPE, grpc)]);
    let mut told = HeaderMap::new();
    told.insert("grpc-status", HeaderValue::from_static("0"));
    // gRPC's prefix, and the tag and length of the one field.
    let message = MESSAGE_BYTES + 5 + 3;
    let left = Some(Duration::from_secs(10));
    let mut bytes = 0;
    for call in 1..=2 {
        wire.clear();
        encoder.open(&mut wire, CallId(call), &path, left, &asked, message, true)?;
        encoder.headers(&mut wire, CallId(call), &answered, message, Some(&told))?;
        bytes = wire.len() + 2 * message;
    }
    let payload = 2 * MESSAGE_BYTES;
    let percent = (bytes - payload) as f64 / payload as f64 * 100.0;
    let how = format!("{bytes} bytes of frames for {payload} of payload, exact");
    Ok(Figure::of(NAME, "%", Better::Lower, &[percent], how).reach(2.0))
}
