//! What tests of the mesh ask the called side: what arrived, and whether a call was cancelled.

use std::{collections::BTreeMap, sync::Mutex, sync::MutexGuard, time::Duration};

use blackhole_plugins::demo::probe_server::Probe;
use blackhole_plugins::demo::{
    AddRequest, CountThroughMeshReply, CountThroughMeshRequest, FailReply, FailRequest,
    InspectReply, InspectRequest, LingerReply, LingerRequest, Metadatum, OutcomeReply,
    OutcomeRequest, counter_client::CounterClient, probe_client::ProbeClient,
};
use sdk::{Answer, Stream};
use tokio_stream::StreamExt;
use tonic::metadata::{
    AsciiMetadataKey, BinaryMetadataKey, BinaryMetadataValue, KeyAndValueRef, MetadataMap,
};
use tonic::{Code, Request, Response, Status};

/// Keys remembered; beyond, everything is forgotten, so that callers cannot fill the memory.
const OUTCOMES_MAX: usize = 1_000;

/// Everything that came with a call, as it came.
fn inspect(metadata: &MetadataMap) -> InspectReply {
    let entries = metadata.iter().map(|entry| match entry {
        KeyAndValueRef::Ascii(name, value) => {
            Metadatum { name: name.to_string(), value: value.as_bytes().to_vec() }
        }
        KeyAndValueRef::Binary(name, value) => Metadatum {
            name: name.to_string(),
            value: value.to_bytes().map(|bytes| bytes.to_vec()).unwrap_or_default(),
        },
    });
    let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    InspectReply {
        metadata: entries.collect(),
        time_left_ms: timeout.and_then(timeout_millis).unwrap_or(0),
        instance: sdk::instance().into(),
    }
}

/// `grpc-timeout` as gRPC writes it: up to eight digits and a unit.
fn timeout_millis(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(count * 3_600_000),
        "M" => Some(count * 60_000),
        "S" => Some(count * 1_000),
        "m" => Some(count),
        "u" => Some(count.div_ceil(1_000)),
        "n" => Some(count.div_ceil(1_000_000)),
        _ => None,
    }
}

/// The failure that was asked for, or one that says what is wrong with the request.
fn failure(request: FailRequest) -> Status {
    let mut trailers = MetadataMap::new();
    for Metadatum { name, value } in request.trailers {
        if !add(&mut trailers, &name, &value) {
            return Status::invalid_argument(format!("{name:?} cannot be a trailer"));
        }
    }
    let (code, details) = (Code::from_i32(request.code), request.details.into());
    Status::with_details_and_metadata(code, request.message, details, trailers)
}

fn add(trailers: &mut MetadataMap, name: &str, value: &[u8]) -> bool {
    if name.ends_with("-bin") {
        let key = BinaryMetadataKey::from_bytes(name.as_bytes());
        key.map(|key| trailers.append_bin(key, BinaryMetadataValue::from_bytes(value))).is_ok()
    } else {
        let key = AsciiMetadataKey::from_bytes(name.as_bytes()).ok();
        let value = value.try_into().ok();
        key.zip(value).map(|(key, value)| trailers.append(key, value)).is_some()
    }
}

/// The service that remembers what became of calls.
pub struct Prober;

static OUTCOMES: Mutex<BTreeMap<String, OutcomeReply>> = Mutex::new(BTreeMap::new());

fn outcomes() -> MutexGuard<'static, BTreeMap<String, OutcomeReply>> {
    OUTCOMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A call that is going on; dropping it before it was finished counts as cancelled.
struct Begun {
    key: String,
    finished: bool,
}

impl Begun {
    fn new(key: String) -> Self {
        let mut outcomes = outcomes();
        if outcomes.len() >= OUTCOMES_MAX && !outcomes.contains_key(&key) {
            outcomes.clear();
        }
        outcomes.entry(key.clone()).or_default().begun += 1;
        Self { key, finished: false }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(outcome) = outcomes().get_mut(&self.key) {
            let counted =
                if self.finished { &mut outcome.finished } else { &mut outcome.cancelled };
            *counted += 1;
        }
    }
}

#[tonic::async_trait]
impl Probe for Prober {
    type DripStream = Stream<LingerReply>;

    async fn inspect(&self, request: Request<InspectRequest>) -> Answer<InspectReply> {
        if !request.get_ref().through_mesh {
            return Ok(Response::new(inspect(request.metadata())));
        }
        // What travels does so by itself.
        ProbeClient::new(mesh()?).inspect(InspectRequest { through_mesh: false }).await
    }

    async fn fail(&self, request: Request<FailRequest>) -> Answer<FailReply> {
        Err(failure(request.into_inner()))
    }

    async fn linger(&self, request: Request<LingerRequest>) -> Answer<LingerReply> {
        let LingerRequest { key, millis } = request.into_inner();
        let mut begun = Begun::new(key);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        begun.finished = true;
        Ok(Response::new(LingerReply {}))
    }

    async fn drip(&self, request: Request<LingerRequest>) -> Answer<Stream<LingerReply>> {
        let LingerRequest { key, millis } = request.into_inner();
        let begun = Begun::new(key);
        let drops = tokio_stream::iter(std::iter::repeat(())).map(move |()| {
            // The stream owns the call: it ends when the transport drops the stream.
            let _ = &begun;
            Ok(LingerReply {})
        });
        Ok(Response::new(Box::pin(drops.throttle(Duration::from_millis(millis.max(1))))))
    }

    async fn outcome(&self, request: Request<OutcomeRequest>) -> Answer<OutcomeReply> {
        let outcome = outcomes().get(&request.into_inner().key).copied();
        Ok(Response::new(outcome.unwrap_or_default()))
    }

    async fn count_through_mesh(
        &self,
        request: Request<CountThroughMeshRequest>,
    ) -> Answer<CountThroughMeshReply> {
        let CountThroughMeshRequest { name, amount } = request.into_inner();
        let mut counter = CounterClient::new(mesh()?);
        let counted = counter.add(AddRequest { name, amount }).await?.into_inner();
        let reply = CountThroughMeshReply { value: counted.value, instance: counted.instance };
        Ok(Response::new(reply))
    }
}

fn mesh() -> Result<sdk::Mesh, Status> {
    sdk::mesh().map_err(|error| Status::failed_precondition(error.to_string()))
}
