//! gRPC around a guest: one message in, one message out. Streams are refused, and said so.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout_at};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{HealthCheckResponse, health_check_response::ServingStatus};
use wasmtime::InstancePre;

use super::guest::{self, MESSAGE_BYTES_MAX, Order, Outcome, State};
use crate::{
    allowance::Allowance,
    level::{
        guest_memory,
        inside::{Answer, Ender},
    },
    logs::Logs,
};

/// The longest that one call of a guest may compute, whatever its caller would wait.
const CALL_MAX: Duration = Duration::from_secs(30);

/// Calls of one guest that compute at once; the others wait within their deadlines.
const CALLS_AT_ONCE: usize = 4;

/// Bytes before each message; source: gRPC over HTTP/2, *Length-Prefixed-Message*.
const PREFIX: usize = 5;

/// A guest that answers calls.
pub(super) struct Guest {
    module: InstancePre<State>,
    /// Asked at every call: it may change meanwhile.
    allowance: Allowance,
    /// Methods that stream in one direction or both.
    streaming: HashSet<String>,
    logs: Logs,
    at_once: Arc<Semaphore>,
    broken: AtomicU32,
    threshold: u32,
    ender: Ender,
}

impl Guest {
    /// `threshold` calls in a row that break end the run.
    pub(super) fn new(
        module: InstancePre<State>,
        allowance: Allowance,
        descriptors: Option<&[u8]>,
        logs: Logs,
        threshold: u32,
        ender: Ender,
    ) -> Self {
        Self {
            module,
            allowance,
            streaming: descriptors.map(streaming).unwrap_or_default(),
            logs,
            at_once: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            broken: AtomicU32::new(0),
            threshold: threshold.max(1),
            ender,
        }
    }

    async fn reply(self: Arc<Self>, request: Request<Incoming>) -> Result<Bytes, Status> {
        let method = request.uri().path().to_owned();
        let waits = timeout_of(request.headers()).map_or(CALL_MAX, |wait| wait.min(CALL_MAX));
        let until = Instant::now() + waits;
        if method == "/grpc.health.v1.Health/Check" {
            let serving = HealthCheckResponse { status: ServingStatus::Serving.into() };
            return Ok(serving.encode_to_vec().into());
        }
        if method.starts_with("/grpc.") || method.starts_with("/blackhole.plugin.") {
            return Err(Status::unimplemented(format!("a guest has no {method}")));
        }
        if self.streaming.contains(&method) {
            return Err(Status::unimplemented(
                "a guest takes one message and gives one; no streams",
            ));
        }
        let over = || Status::deadline_exceeded("the guest did not answer in time");
        let message =
            timeout_at(until.into(), one_message(request)).await.map_err(|_| over())??;
        let turn = Arc::clone(&self.at_once).acquire_owned();
        let turn = timeout_at(until.into(), turn).await.map_err(|_| over())?;
        let gone = Gone(Arc::new(AtomicBool::new(false)));
        let memory = guest_memory(&self.allowance);
        let (this, flag) = (Arc::clone(&self), Arc::clone(&gone.0));
        let outcome = spawn_blocking(move || {
            let _turn = turn;
            guest::call(
                &this.module,
                Order {
                    method: &method,
                    message: &message,
                    until,
                    gone: flag,
                    memory_max: usize::try_from(memory).unwrap_or(usize::MAX),
                    logs: this.logs.clone(),
                },
            )
        });
        let outcome = outcome.await.map_err(|_| Status::internal("the guest's call was lost"))?;
        drop(gone);
        self.judge(outcome, waits)
    }

    fn judge(&self, outcome: Outcome, waited: Duration) -> Result<Bytes, Status> {
        match outcome {
            Outcome::Message(message) => {
                self.broken.store(0, Ordering::Relaxed);
                Ok(message.into())
            }
            Outcome::Status(code, text) => {
                self.broken.store(0, Ordering::Relaxed);
                Err(Status::new(Code::from_i32(code), text))
            }
            Outcome::TimeOver if waited < CALL_MAX => {
                // A caller in a hurry says nothing about the guest.
                Err(Status::deadline_exceeded("the guest was stopped at the deadline"))
            }
            Outcome::TimeOver => {
                let text = format!("time limit: it computed for {CALL_MAX:?}");
                self.note(&text);
                Err(Status::deadline_exceeded(text))
            }
            Outcome::Broken(why) => {
                self.note(&why);
                let code =
                    if why.starts_with("OOM") { Code::ResourceExhausted } else { Code::Internal };
                Err(Status::new(code, format!("the guest broke: {why}")))
            }
        }
    }

    /// Records a call that broke; several in a row are more than a bad call.
    fn note(&self, why: &str) {
        self.logs.supervisor("warn", 0, format!("a call broke: {why}"));
        let in_a_row = self.broken.fetch_add(1, Ordering::Relaxed) + 1;
        if in_a_row >= self.threshold {
            self.ender.fail(&format!("{in_a_row} calls in a row broke: {why}"));
        }
    }
}

/// Told to the guest when its caller gives up.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Answer for Guest {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            match self.reply(request).await {
                Ok(message) => framed(&message),
                Err(status) => status.into_http(),
            }
        })
    }
}

/// The paths of all methods that stream.
fn streaming(descriptors: &[u8]) -> HashSet<String> {
    let set = FileDescriptorSet::decode(descriptors).unwrap_or_default();
    let mut found = HashSet::new();
    for file in &set.file {
        let package = if file.package().is_empty() { "" } else { "." };
        let package = format!("{}{package}", file.package());
        for service in &file.service {
            let streams = service
                .method
                .iter()
                .filter(|method| method.client_streaming() || method.server_streaming());
            let path = |name: &str| format!("/{package}{}/{name}", service.name());
            found.extend(streams.map(|method| path(method.name())));
        }
    }
    found
}

/// The only message of a request.
async fn one_message(request: Request<Incoming>) -> Result<Bytes, Status> {
    let limited = Limited::new(request.into_body(), MESSAGE_BYTES_MAX + PREFIX);
    let collected = limited.collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            let text = format!("a message may have {MESSAGE_BYTES_MAX} bytes");
            return Status::resource_exhausted(text);
        }
        Status::cancelled("the request broke off")
    })?;
    unframe(&collected.to_bytes())
}

fn unframe(bytes: &Bytes) -> Result<Bytes, Status> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(Status::invalid_argument("the request has no message"));
    };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(Status::unimplemented("a guest takes messages that are not compressed"));
    }
    let rest = bytes.slice(PREFIX..);
    match rest.len().cmp(&length) {
        std::cmp::Ordering::Equal => Ok(rest),
        std::cmp::Ordering::Less => Err(Status::invalid_argument("the message is cut off")),
        std::cmp::Ordering::Greater => {
            Err(Status::unimplemented("a guest takes one message; no streams"))
        }
    }
}

fn framed(message: &[u8]) -> Response<Body> {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(bytes.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Source: gRPC over HTTP/2, *Timeout*: at most eight digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_exactly_one_plain_message() {
        let told = |bytes: &'static [u8]| unframe(&Bytes::from_static(bytes));
        assert_eq!(told(&[0, 0, 0, 0, 2, 7, 8]).expect("whole"), Bytes::from_static(&[7, 8]));
        assert_eq!(told(&[]).expect_err("none").code(), Code::InvalidArgument);
        assert_eq!(told(&[0, 255, 255, 255, 255]).expect_err("cut").code(), Code::InvalidArgument);
        assert_eq!(told(&[1, 0, 0, 0, 0]).expect_err("gzip").code(), Code::Unimplemented);
        let two = told(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect_err("two");
        assert_eq!(two.code(), Code::Unimplemented);
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &'static str| {
            let value = HeaderValue::from_bytes(text.as_bytes()).expect("a header");
            let name = http::HeaderName::from_static("grpc-timeout");
            timeout_of(&HeaderMap::from_iter([(name, value)]))
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!((read(""), read("m"), read("999999999S"), read("5µ")), (None, None, None, None));
    }
}
