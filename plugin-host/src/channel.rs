//! Calls to one run of a plugin: in frames where its socket takes them, in HTTP/2 else; bytes
//! untouched.
//!
//! A few connections per plugin, opened when needed and reused. What goes wrong is told by
//! whether the plugin may have begun the call: no connection, or a stream the plugin refused, is
//! `NotStarted`; a connection lost after that is `Unknown`.

mod address;
mod asking;
mod framed;
mod reply;
mod withdraw;

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, ready};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use protocol::{
    failure::{Failure, Reason},
    id::InstanceId,
    limits::METADATA_BYTES_MAX,
    ports::{Body, Call, Invoke, Reach, Reply},
    timeout::{self, GRPC_TIMEOUT},
};
use tokio::{runtime::Handle, time::timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::courtesy::Called;

pub(crate) use address::{Address, Listener};
pub(crate) use asking::Asking;
use framed::Framed;
use reply::{ReplyBody, lost};
use withdraw::{Patient, Sending};

/// Connections to one plugin. One carries most plugins; more keep a large body on one from
/// holding up small calls on the others.
const CONNECTIONS_MAX: usize = 4;

/// Calls on one connection before another is opened. Below the 100 streams at once that many
/// servers allow by default.
const CALLS_PER_CONNECTION: usize = 64;

/// Calls to one plugin at once. More are refused at once instead of queueing where nobody sees.
pub const CALLS_MAX: usize = 16_384;

/// How long connecting may take where the caller set no earlier deadline.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What one call may have in flight towards us before it is read: large enough that a message of
/// the usual size never waits for a window update.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Calls to one run of a plugin.
pub(crate) struct Channel {
    inner: Arc<Inner>,
}

struct Inner {
    plugin: String,
    address: Address,
    connections: Mutex<Vec<Connection>>,
    framed: Framed,
    calls: Arc<AtomicUsize>,
    begun: AtomicU64,
    /// The host's own questions among them: so far, and under way.
    asked: AtomicU64,
    asking: AtomicUsize,
    idle: tokio::sync::Notify,
    /// Somebody waits for the next call.
    awaited: AtomicBool,
    entered: tokio::sync::Notify,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Where calls are carried: connections are made and driven there, whoever asks first.
    carriers: Handle,
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Body>,
    calls: Arc<AtomicUsize>,
}

impl Channel {
    pub(crate) fn new(plugin: &str, address: Address, carriers: Handle) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(Inner {
                plugin: plugin.into(),
                address,
                connections: Mutex::new(Vec::new()),
                framed: Framed::default(),
                calls: Arc::new(AtomicUsize::new(0)),
                begun: AtomicU64::new(0),
                asked: AtomicU64::new(0),
                asking: AtomicUsize::new(0),
                idle: tokio::sync::Notify::new(),
                awaited: AtomicBool::new(false),
                entered: tokio::sync::Notify::new(),
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
                carriers,
            }),
        })
    }

    /// Whether it accepts connections.
    pub(crate) async fn accepts(&self) -> Result<(), Failure> {
        let inner = Arc::clone(&self.inner);
        let connected = async move { inner.connection(None).await.map(drop) };
        self.carried(connected).await
    }

    /// As [`Invoke::invoke`], for whoever is not where calls are carried.
    async fn invoke_carried(self: &Arc<Self>, call: Call) -> Result<Reply, Failure> {
        let channel = Arc::clone(self);
        self.carried(async move { channel.invoke(call).await }).await
    }

    /// What `work` yields, done where calls are carried; it ends with whoever waits for it.
    async fn carried<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let carried = AbortOnDropHandle::new(self.inner.carriers.spawn(work)).await;
        // It is not aborted while somebody waits for it.
        let gone = |_| Err(Failure::not_started(Reason::Unreachable, "the node is ending"));
        carried.unwrap_or_else(gone)
    }

    /// Calls that it was given so far.
    pub(crate) fn begun(&self) -> u64 {
        self.inner.begun.load(Ordering::SeqCst)
    }

    /// The same without the host's own questions.
    pub(crate) fn called(&self) -> Called {
        let inner = &self.inner;
        // Questions first: one that is begun between the two looks would count as a call.
        let asked = inner.asked.load(Ordering::Acquire);
        let in_flight = inner.calls.load(Ordering::Acquire) > inner.asking.load(Ordering::Acquire);
        Called { begun: self.begun().saturating_sub(asked), in_flight }
    }

    /// The next call from now on, if only one waits for it; the host's own questions are calls too.
    pub(crate) fn next_call(&self) -> impl Future<Output = ()> + '_ {
        self.inner.awaited.store(true, Ordering::SeqCst);
        self.inner.entered.notified()
    }

    /// Waits until no call is in flight.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.inner.idle.notified();
            if self.inner.calls.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Ends every connection and waits for their tasks.
    pub(crate) async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.connections.lock().clear();
        self.inner.framed.close();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.inner.closing.cancel();
    }
}

impl Invoke for Channel {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let inner = Arc::clone(&self.inner);
        let Some(guard) = Guard::enter(&inner) else {
            let message = format!("plugin {} has {CALLS_MAX} calls at once already", inner.plugin);
            return Box::pin(ready(Err(Failure::not_started(Reason::Busy, message))));
        };
        if let Some(link) = inner.framed_now() {
            return framed::invoke(&link, call, guard);
        }
        Box::pin(async move {
            match inner.framed(call.head.deadline).await? {
                Some(link) => framed::invoke(&link, call, guard).await,
                None => inner.call(call, guard).await,
            }
        })
    }
}

impl Inner {
    async fn call(self: Arc<Self>, call: Call, mut guard: Guard) -> Result<Reply, Failure> {
        let deadline = call.head.deadline;
        let mut request = request(call, Instant::now())?;
        // A connection that the plugin closed while idle gives the request back untouched; then
        // a fresh one is tried.
        for _ in 0..=CONNECTIONS_MAX {
            let mut connection = self.connection(deadline).await?;
            let held = Held::on(&connection);
            let sending = connection.sender.try_send_request(request);
            let sending = Sending::new(sending, (guard, held), self.tasks.clone());
            let (sent, guards) = match deadline {
                Some(deadline) => match timeout_at(deadline.into(), sending).await {
                    Ok(sent) => sent,
                    Err(_) => return Err(self.deadline_passed()),
                },
                None => sending.await,
            };
            match sent {
                Ok(response) => return self.reply(response, deadline, guards),
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) => {
                        request = unsent;
                        guard = guards.0;
                        self.forget(&connection);
                    }
                    None => return Err(lost(&self.plugin, refused.error(), deadline)),
                },
            }
        }
        let message = format!("plugin {} closes every connection", self.plugin);
        Err(Failure::not_started(Reason::Unreachable, message))
    }

    /// A connection with room, or the least busy one there may be.
    async fn connection(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Connection, Failure> {
        {
            let mut connections = self.connections.lock();
            connections.retain(|connection| !connection.sender.is_closed());
            let least = connections
                .iter()
                .min_by_key(|connection| connection.calls.load(Ordering::Relaxed));
            if let Some(least) = least
                && (connections.len() >= CONNECTIONS_MAX
                    || least.calls.load(Ordering::Relaxed) < CALLS_PER_CONNECTION)
            {
                return Ok(least.clone());
            }
        }
        let patience = Instant::now() + CONNECT_PATIENCE;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let connection = match timeout_at(until.into(), self.open()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let message = format!("plugin {} cannot be reached: {error}", self.plugin);
                return Err(Failure::not_started(Reason::Unreachable, message));
            }
            Err(_) => return Err(self.does_not_accept(deadline)),
        };
        let mut connections = self.connections.lock();
        // Others may have opened some meanwhile; one too many serves this call and is dropped.
        if connections.len() < CONNECTIONS_MAX {
            connections.push(connection.clone());
        }
        Ok(connection)
    }

    async fn open(
        self: &Arc<Self>,
    ) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        if self.closing.is_cancelled() {
            return Err("it has ended".into());
        }
        let stream = self.address.connect().await?;
        let tasks = Tasks::new(&self.tasks, &self.closing);
        let (sender, driver) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(METADATA_BYTES_MAX as u32)
            .handshake(TokioIo::new(stream))
            .await?;
        // How a connection ended is told to each of its calls.
        hyper::rt::Executor::execute(&tasks, async move {
            let _ = driver.await;
        });
        Ok(Connection { sender, calls: Arc::new(AtomicUsize::new(0)) })
    }

    fn forget(&self, gone: &Connection) {
        self.connections.lock().retain(|known| !Arc::ptr_eq(&known.calls, &gone.calls));
    }

    fn reply(
        &self,
        response: http::Response<Incoming>,
        deadline: Option<Instant>,
        guards: (Guard, Held),
    ) -> Result<Reply, Failure> {
        let (parts, body) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            let message = format!(
                "plugin {} answered with HTTP status {} instead of gRPC",
                self.plugin, parts.status
            );
            return Err(Failure::failed(Reason::Malformed, message));
        }
        let mut metadata = parts.headers;
        remove_hop_by_hop(&mut metadata);
        self.framed.note(&mut metadata);
        let told = metadata.contains_key("grpc-status");
        let body = ReplyBody::new(&self.plugin, body, told, deadline, guards);
        Ok(Reply { metadata, body: Body::new(body) })
    }

    fn does_not_accept(&self, deadline: Option<Instant>) -> Failure {
        let message = format!("plugin {} does not accept connections", self.plugin);
        let reason = match deadline {
            Some(deadline) if deadline <= Instant::now() => Reason::DeadlineExceeded,
            _ => Reason::Unreachable,
        };
        Failure::not_started(reason, message)
    }

    fn deadline_passed(&self) -> Failure {
        let message = format!("plugin {} did not answer before the deadline", self.plugin);
        Failure::unknown(Reason::DeadlineExceeded, message)
    }
}

fn request(call: Call, now: Instant) -> Result<http::Request<Body>, Failure> {
    let uri = http::Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(call.head.path.as_str())
        .build()
        .map_err(|error| Failure::failed(Reason::Malformed, format!("method path: {error}")))?;
    let mut request = http::Request::new(Body::new(Patient::new(call.body)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = uri;
    let mut headers = call.head.metadata;
    remove_hop_by_hop(&mut headers);
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    if let Some(deadline) = call.head.deadline {
        let Some(left) = deadline.checked_duration_since(now).filter(|left| !left.is_zero()) else {
            let message = "the deadline had passed before the plugin was asked";
            return Err(Failure::not_started(Reason::DeadlineExceeded, message));
        };
        headers.insert(GRPC_TIMEOUT, timeout::write(left));
    }
    *request.headers_mut() = headers;
    Ok(request)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::HOST,
        header::CONTENT_LENGTH,
        header::TE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        GRPC_TIMEOUT,
    ] {
        headers.remove(name);
    }
}

/// One call's place among the plugin's calls.
struct Guard {
    inner: Arc<Inner>,
}

impl Guard {
    fn enter(inner: &Arc<Inner>) -> Option<Self> {
        let before = inner.calls.fetch_add(1, Ordering::AcqRel);
        inner.begun.fetch_add(1, Ordering::SeqCst);
        if inner.awaited.load(Ordering::SeqCst) && inner.awaited.swap(false, Ordering::SeqCst) {
            inner.entered.notify_one();
        }
        let guard = Self { inner: Arc::clone(inner) };
        (before < CALLS_MAX).then_some(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.inner.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inner.idle.notify_waiters();
        }
    }
}

/// One call's place on its connection. Holds the connection open, too.
struct Held(
    Arc<AtomicUsize>,
    #[allow(dead_code, reason = "keeps the connection")] SendRequest<Body>,
);

impl Held {
    fn on(connection: &Connection) -> Self {
        connection.calls.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&connection.calls), connection.sender.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a connection's tasks where the channel can end and await them.
#[derive(Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Tasks {
    /// Tasks that `tracker` knows and `closing` ends.
    pub(crate) fn new(tracker: &TaskTracker, closing: &CancellationToken) -> Self {
        Self { tracker: tracker.clone(), closing: closing.clone() }
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let closing = self.closing.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = task => {}
            }
        });
    }
}

/// The channels of all ready plugins.
#[derive(Default)]
pub(crate) struct Channels {
    by_instance: RwLock<HashMap<InstanceId, Arc<Channel>>>,
}

impl Channels {
    pub(crate) fn insert(&self, instance: InstanceId, channel: Arc<Channel>) {
        self.by_instance.write().insert(instance, channel);
    }

    pub(crate) fn remove(&self, instance: InstanceId) {
        self.by_instance.write().remove(&instance);
    }
}

impl Reach<InstanceId> for Channels {
    fn reach(
        &self,
        target: InstanceId,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        let found = self.by_instance.read().get(&target).cloned();
        Box::pin(async move {
            let ended = || {
                let message = format!("plugin instance {target} has ended");
                Failure::not_started(Reason::Unreachable, message)
            };
            found.map(|channel| channel as Arc<dyn Invoke>).ok_or_else(ended)
        })
    }
}

#[cfg(test)]
mod tests;
