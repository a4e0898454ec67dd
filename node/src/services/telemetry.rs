//! The telemetry service: figures of the node it runs under, now and as they change.
//!
//! It has them from the node, which answers `blackhole.telemetry.v1.Figures` on the mesh socket of
//! a plugin that is granted to call it (`figures.rs`), and keeps nothing itself.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use protocol::{
    document::{self, Mistakes, Value},
    proto::{
        DESCRIPTORS,
        telemetry::{
            ReadRequest, Sample, TextRequest, TextResponse, WatchRequest,
            figures_client::FiguresClient,
            telemetry_server::{Telemetry, TelemetryServer},
        },
    },
};
use sdk::{Answer, Mesh, MeshError, Plugin, Stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Between two samples where neither the watcher nor the configuration says; as the host samples
/// its plugins.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

/// The shortest: a sample is a call, and its figures come from `/proc`.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The longest.
const INTERVAL_MAX: Duration = Duration::from_hours(1);

/// Watches at once; each asks the node every interval.
const WATCHES_MAX: usize = 64;

/// How long the node may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The permission that it needs.
pub const PERMISSION: &str = "call:blackhole.telemetry.v1.Figures";

/// Where its way to the node is.
#[derive(Debug, Clone)]
pub enum Way {
    /// The environment says it, as to any plugin.
    Environment,
    /// At this socket, for code within the node.
    Socket(PathBuf),
}

/// The service as a plugin.
pub fn plugin(way: Way) -> Plugin {
    let telemetry = Telling {
        way,
        node: Arc::default(),
        interval: Arc::new(AtomicU64::new(INTERVAL_DEFAULT.as_millis() as u64)),
        watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        closing: CancellationToken::new(),
    };
    let (interval, closing) = (Arc::clone(&telemetry.interval), telemetry.closing.clone());
    Plugin::new("telemetry", env!("CARGO_PKG_VERSION"))
        .description(
            "Tells figures of the node, the mesh and every plugin, as they are and change.",
        )
        .descriptors(DESCRIPTORS)
        .configure(move |part| {
            let chosen = interval_of(part)?.unwrap_or(INTERVAL_DEFAULT);
            interval.store(chosen.as_millis() as u64, Ordering::Relaxed);
            Ok::<_, String>(())
        })
        .drain(move |_| {
            closing.cancel();
            std::future::ready(Ok::<_, String>(()))
        })
        .service(TelemetryServer::new(telemetry))
}

/// `settings.interval` of its part of the configuration.
fn interval_of(part: &[u8]) -> Result<Option<Duration>, String> {
    let text = std::str::from_utf8(part).map_err(|error| error.to_string())?;
    // JSON is YAML, and the configuration's own reader knows durations.
    let node = document::parse(text).map_err(|mistake| mistake.to_string())?;
    if node.value == Value::Null {
        return Ok(None);
    }
    let mut found = Mistakes::default();
    let mut interval = None;
    if let Some(mut whole) = found.map(node, "services.telemetry") {
        let mut settings = whole.section("settings", &mut found);
        if let Some((node, at)) = settings.take("interval") {
            interval = found.duration(&node, &at, INTERVAL_MIN..=INTERVAL_MAX);
        }
        settings.finish(&mut found);
    }
    let told = found.into_sorted();
    if told.is_empty() {
        return Ok(interval);
    }
    Err(told.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

#[derive(Clone)]
struct Telling {
    way: Way,
    /// Made at the first call, which is within a runtime.
    node: Arc<OnceLock<Mesh>>,
    /// Milliseconds between two samples of a watch that does not say.
    interval: Arc<AtomicU64>,
    watches: Arc<Semaphore>,
    /// Ends watches.
    closing: CancellationToken,
}

impl Telling {
    fn node(&self) -> Result<FiguresClient<Mesh>, Status> {
        if let Some(known) = self.node.get() {
            return Ok(FiguresClient::new(known.clone()));
        }
        let made = match &self.way {
            Way::Environment => sdk::mesh(),
            Way::Socket(path) => sdk::mesh_through(path),
        };
        let made = made.map_err(|error: MeshError| Status::unavailable(error.to_string()))?;
        Ok(FiguresClient::new(self.node.get_or_init(|| made).clone()))
    }

    async fn sample(&self) -> Result<Sample, Status> {
        self.node()?.read(within(ReadRequest {})).await.map(Response::into_inner)
    }

    /// The interval of a watch that asks for `asked` milliseconds.
    fn interval(&self, asked: u64) -> Duration {
        match asked {
            0 => Duration::from_millis(self.interval.load(Ordering::Relaxed)),
            asked => Duration::from_millis(asked),
        }
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_MAX);
    request
}

#[tonic::async_trait]
impl Telemetry for Telling {
    async fn read(&self, _: Request<ReadRequest>) -> Answer<Sample> {
        Ok(Response::new(self.sample().await?))
    }

    type WatchStream = Stream<Sample>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Stream<Sample>> {
        let asked = request.into_inner().interval_ms;
        let range = INTERVAL_MIN.as_millis() as u64..=INTERVAL_MAX.as_millis() as u64;
        if asked != 0 && !range.contains(&asked) {
            let (least, most) = range.into_inner();
            return Err(Status::invalid_argument(format!(
                "interval_ms: {asked} is not from {least} to {most}"
            )));
        }
        let full = || {
            Status::resource_exhausted(format!("{WATCHES_MAX} watches are open; try again later"))
        };
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| full())?;
        let watcher =
            Watcher { telling: self.clone(), asked, due: Instant::now(), _permit: permit };
        let samples = futures::stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let next = watcher.next().await?;
            // An error is the last that is said.
            let watcher = next.is_ok().then_some(watcher);
            Some((next, watcher))
        });
        Ok(Response::new(Box::pin(samples)))
    }

    async fn text(&self, request: Request<TextRequest>) -> Answer<TextResponse> {
        self.node()?.text(within(request.into_inner())).await
    }
}

/// One open watch.
struct Watcher {
    telling: Telling,
    /// Milliseconds; 0 leaves it to the configuration, also while that changes.
    asked: u64,
    due: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// Waits for the next sample; `None` when the service ends.
    async fn next(&mut self) -> Option<Result<Sample, Status>> {
        let due = tokio::time::sleep_until(self.due);
        self.telling.closing.run_until_cancelled(due).await?;
        let interval = self.telling.interval(self.asked);
        // From now, not from when it was due: a watcher that is slow must not be hurried.
        self.due = Instant::now() + interval;
        let sample = self.telling.sample().await;
        Some(sample.map(|sample| Sample { interval_ms: interval.as_millis() as u64, ..sample }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_read_from_its_part_and_wrong_ones_are_refused_by_name() {
        let read = |part: &str| interval_of(part.as_bytes());
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read("null"), Ok(None));
        assert_eq!(read(r#"{"enabled":true,"settings":{}}"#), Ok(None));
        let two = Some(Duration::from_secs(2));
        assert_eq!(read(r#"{"enabled":true,"settings":{"interval":"2s"}}"#), Ok(two));
        for part in [r#"{"settings":{"interval":"1ms"}}"#, r#"{"settings":{"intervall":"2s"}}"#] {
            let told = read(part).expect_err("refused");
            assert!(told.contains("services.telemetry.settings.interval"), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watches_are_bounded_in_number_and_pace_and_end_with_the_service() {
        let directory = tempfile::tempdir().expect("made");
        let telling = Telling {
            way: Way::Socket(directory.path().join("nobody")),
            node: Arc::default(),
            interval: Arc::new(AtomicU64::new(1_000)),
            watches: Arc::new(Semaphore::new(1)),
            closing: CancellationToken::new(),
        };
        let ask = |interval_ms| Request::new(WatchRequest { interval_ms });
        let code = |watched: Answer<Stream<Sample>>| watched.err().map(|status| status.code());
        assert_eq!(code(telling.watch(ask(99)).await), Some(tonic::Code::InvalidArgument));
        let open = telling.watch(ask(0)).await.expect("there is room").into_inner();
        assert_eq!(code(telling.watch(ask(0)).await), Some(tonic::Code::ResourceExhausted));
        drop(open);
        let mut open = telling.watch(ask(100)).await.expect("there is room again").into_inner();
        telling.closing.cancel();
        let last = futures::StreamExt::next(&mut open).await;
        assert!(last.is_none(), "it is over: {last:?}");
    }
}
