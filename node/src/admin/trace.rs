//! One real call made for the operator, with every step of it told.
//!
//! Owns the call's making and the bounds on its answer. What happens to it is written down by the
//! router; here it is put into the contract's words, with what the swarm knows of each provider.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full};
use protocol::{
    failure::Failure,
    limits::MESSAGE_BYTES_MAX,
    ports::{Body, Call, CallHead, Caller, Reply},
    proto::admin as api,
    service::{MethodPath, ServiceName},
};
use router::{Event, Step};
use tonic::Status;

use super::{Node, locality_of, show};
use crate::knowledge::Offer;

/// How long the call may take where the operator does not say.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Bytes of the answer that are read; what comes after them is not waited for.
const ANSWER_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// Bytes before each message: a flag and its length.
const PREFIX_BYTES: usize = 5;

/// Makes the call.
pub async fn trace(node: &Node, request: api::TraceRequest) -> Result<api::TraceResponse, Status> {
    let path: MethodPath =
        request.method.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    if request.message.len() > MESSAGE_BYTES_MAX {
        let text = format!("the request has {} bytes", request.message.len());
        return Err(Status::invalid_argument(format!("{text}; at most {MESSAGE_BYTES_MAX}")));
    }
    let service = path.service();
    let timeout = Some(request.timeout_ms).filter(|millis| *millis > 0);
    let timeout = timeout.map_or(CALL_MAX, Duration::from_millis);
    let head = CallHead {
        path,
        metadata: metadata(&request.metadata)?,
        deadline: Instant::now().checked_add(timeout),
        locality: locality_of(&request.locality)?,
        caller: Caller::Operator,
    };
    let body = Full::new(framed(&request.message)).map_err(|never| match never {});
    let began = Instant::now();
    let (answering, traced) = node.router.trace(Call { head, body: Body::new(body) });
    let ended = match answering.await {
        Ok(reply) => read(reply).await,
        Err(failure) => Ended::failed(&failure, 0, 0),
    };
    let total = began.elapsed();
    let offers = node.knowledge.offers().remove(&service).unwrap_or_default();
    let steps = traced.steps();
    let verdict = verdict(&service, &steps, &ended);
    let mut told: Vec<_> = steps.into_iter().map(|one| step(node, one, &offers)).collect();
    told.push(api::TraceStep {
        at_us: total.as_micros() as u64,
        kind: "ended".into(),
        text: ended.text(),
        ..api::TraceStep::default()
    });
    Ok(api::TraceResponse {
        steps: told,
        code: ended.code,
        message: ended.message,
        verdict,
        total_us: total.as_micros() as u64,
        answers: ended.answers,
        answer_bytes: ended.bytes as u64,
    })
}

fn metadata(asked: &HashMap<String, String>) -> Result<HeaderMap, Status> {
    let mut metadata = HeaderMap::new();
    for (key, value) in asked {
        let name = HeaderName::from_bytes(key.as_bytes()).ok();
        let value = HeaderValue::from_str(value).ok();
        let (Some(name), Some(value)) = (name, value) else {
            return Err(Status::invalid_argument(format!("`{key}` cannot be sent as metadata")));
        };
        metadata.insert(name, value);
    }
    metadata.insert("content-type", HeaderValue::from_static("application/grpc"));
    metadata.insert("te", HeaderValue::from_static("trailers"));
    Ok(metadata)
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// How the call ended.
struct Ended {
    code: u32,
    message: String,
    answers: u64,
    bytes: usize,
}

impl Ended {
    fn failed(failure: &Failure, answers: u64, bytes: usize) -> Self {
        Self { code: failure.grpc_code(), message: failure.to_string(), answers, bytes }
    }

    fn by(status: &HeaderMap, answers: u64, bytes: usize) -> Self {
        let text = |name: &str| status.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(2);
        let message = text("grpc-message").unwrap_or_default().to_owned();
        Self { code, message, answers, bytes }
    }

    fn text(&self) -> String {
        let code = tonic::Code::from(self.code as i32);
        let messages = if self.answers == 1 { "message" } else { "messages" };
        format!("{code:?} after {} {messages}, {} bytes", self.answers, self.bytes)
    }
}

/// Reads the answer to its end, or as much of it as is allowed.
async fn read(reply: Reply) -> Ended {
    let mut count = Messages::default();
    let mut bytes = 0;
    if reply.metadata.contains_key("grpc-status") {
        return Ended::by(&reply.metadata, 0, 0);
    }
    let mut body = reply.body;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(failure) => return Ended::failed(&failure, count.whole, bytes),
        };
        if let Some(trailers) = frame.trailers_ref() {
            return Ended::by(trailers, count.whole, bytes);
        }
        let data = frame.into_data().unwrap_or_default();
        bytes += data.len();
        count.pass(&data);
        if bytes > ANSWER_BYTES_MAX {
            let message = format!("the answer goes on after {ANSWER_BYTES_MAX} bytes; let go");
            return Ended { code: 0, message, answers: count.whole, bytes };
        }
    }
    let message = "the answer ended without a status".into();
    Ended { code: 13, message, answers: count.whole, bytes }
}

/// Counts messages in chunks that are cut anywhere.
#[derive(Default)]
struct Messages {
    prefix: Vec<u8>,
    left: usize,
    whole: u64,
}

impl Messages {
    fn pass(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left == 0 {
                let missing = (PREFIX_BYTES - self.prefix.len()).min(data.len());
                let (taken, rest) = data.split_at(missing);
                self.prefix.extend_from_slice(taken);
                data = rest;
                if let [_, a, b, c, d] = self.prefix[..] {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.prefix.clear();
                    self.whole += u64::from(self.left == 0);
                }
            } else {
                let taken = self.left.min(data.len());
                self.left -= taken;
                data = &data[taken..];
                self.whole += u64::from(self.left == 0);
            }
        }
    }
}

/// Who answered after how many attempts, in one sentence.
fn verdict(service: &ServiceName, steps: &[Step], ended: &Ended) -> String {
    let mut chosen = steps.iter().filter_map(|step| match &step.what {
        Event::Chosen { plugin, peer, local, .. } => Some((plugin, peer, *local)),
        _ => None,
    });
    let attempts = chosen.clone().count();
    let times = if attempts == 1 { "attempt" } else { "attempts" };
    let recalled = |step: &Step| matches!(step.what, Event::Recalled { .. });
    match chosen.next_back() {
        None if steps.iter().any(recalled) => {
            format!("{service} was answered by this node, which kept an earlier answer")
        }
        None => format!("{service} was called at nobody: {}", ended.message),
        Some((plugin, peer, local)) => {
            let place = if local { "this node".to_owned() } else { peer.to_string() };
            let answered = steps.iter().any(|step| matches!(step.what, Event::Answered { .. }));
            let did = if answered { "was answered by" } else { "failed, the last time at" };
            format!("{service} {did} {plugin} on {place} after {attempts} {times}")
        }
    }
}

fn step(node: &Node, step: Step, offers: &[Offer]) -> api::TraceStep {
    let text = step.what.to_string();
    let mut told =
        api::TraceStep { at_us: step.at.as_micros() as u64, text, ..api::TraceStep::default() };
    told.kind = match step.what {
        Event::LookedUp { .. } => "looked-up",
        Event::Recalled { .. } => "recalled",
        Event::Weighed(candidates) => {
            told.candidates =
                candidates.iter().map(|one| show::candidate(node, one, offers)).collect();
            "weighed"
        }
        Event::Chosen { peer, instance, .. } => {
            let is = |offer: &&Offer| {
                (offer.candidate.peer, offer.candidate.instance) == (peer, instance)
            };
            told.provider = offers.iter().find(is).map(|offer| show::provider(node, offer));
            "chosen"
        }
        Event::Sent => "sent",
        Event::Answered { .. } => "answered",
        Event::Failed(failure) => {
            told.ran = failure.ran.as_str().into();
            told.reason = failure.reason.as_str().into();
            "failed"
        }
        Event::Waits(_) => "waits",
        Event::Stopped(_) => "stopped",
    }
    .into();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let whole = [framed(b"hello"), framed(b""), framed(&[7; 300])].concat();
        for size in 1..whole.len() {
            let mut count = Messages::default();
            whole.chunks(size).for_each(|chunk| count.pass(chunk));
            assert_eq!(count.whole, 3, "cut at every {size}");
        }
    }
}
