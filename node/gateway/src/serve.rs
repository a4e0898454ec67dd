//! Listeners and their connections: accepted under bounds, owned, drained.
//!
//! Every connection and every call on it is a task of one tracker; a server's future ends only
//! when all of them have. Whatever a stranger sends ends its own connection at most.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use link::Dialect;
use protocol::ports::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bounds::{
        ACCEPT_REST, CONNECTION_CALLS_MAX, CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX,
        FRAME_BYTES_MAX, GREETING, HEADER_LIST_BYTES_MAX, KEEP_ALIVE_ANSWER, KEEP_ALIVE_EVERY,
        RESETS_PENDING_MAX, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES,
    },
    framed::{self, Links},
    grpc::{Grpc, GrpcService, Outgoing},
    meters::{Ended, Meters, Why},
    takeover::Takeover,
    wire::{Listening, Stream, Watched, accept, is_of_one_connection},
};

/// Serves gRPC on `listening`, in HTTP/2 and in frames as each connection likes, everyone there
/// being `caller`, until `stop` is cancelled. Then nothing new is accepted, calls in progress have
/// `drain` to end, and what is left is cut off.
/// Returns when every connection is closed. Dropping the future cuts everything off at once.
pub async fn serve_grpc(
    listening: impl Into<Listening>,
    grpc: Grpc,
    caller: Caller,
    stop: CancellationToken,
    drain: Duration,
) {
    let links = Links::new(grpc.clone(), caller.clone());
    let meters = grpc.meters();
    let server = Server::new(GrpcService { grpc, caller }, meters, &stop);
    serve(listening.into(), server, Some(links), stop, drain).await;
}

/// Serves gRPC over HTTP/2 on one connection that was already accepted; otherwise as
/// [`serve_grpc`].
pub async fn serve_grpc_stream<S>(
    stream: S,
    grpc: Grpc,
    caller: Caller,
    stop: CancellationToken,
    drain: Duration,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let meters = grpc.meters();
    let server = Server::new(GrpcService { grpc, caller }, meters, &stop);
    server.spawn(stream, None, ());
    server.finish(stop, drain).await;
}

/// Serves `routes` over HTTP/1.1 and HTTP/2 on `listening`, counting connections in `meters`;
/// otherwise as [`serve_grpc`].
pub async fn serve_http(
    listening: impl Into<Listening>,
    routes: Router,
    meters: Meters,
    stop: CancellationToken,
    drain: Duration,
) {
    let service =
        HttpService { routes: TowerToHyperService::new(routes), takeover: Takeover::default() };
    let server = Server::new(service, meters, &stop);
    serve(listening.into(), server, None, stop, drain).await;
}

async fn serve<S, B>(
    listening: Listening,
    server: Server<S>,
    links: Option<Links>,
    stop: CancellationToken,
    drain: Duration,
) where
    S: Serves<B>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listening) => accepted,
        };
        match accepted {
            Ok(stream) => {
                if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                    server.accept(stream, links.clone(), slot);
                } else {
                    server.meters.count(Why::Full);
                    tracing::warn!(CONNECTIONS_MAX, "connection refused: too many are open");
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listening);
    server.finish(stop, drain).await;
}

/// What serves requests on a connection.
trait Serves<B>:
    hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// For a new connection, which may leave HTTP by `takeover`.
    fn on(self, takeover: &Takeover) -> Self;
}

impl Serves<Outgoing> for GrpcService {
    fn on(self, _: &Takeover) -> Self {
        self
    }
}

/// Routes for the connections of one listener.
#[derive(Clone)]
struct HttpService {
    routes: TowerToHyperService<Router>,
    takeover: Takeover,
}

impl Serves<Body> for HttpService {
    fn on(self, takeover: &Takeover) -> Self {
        Self { takeover: takeover.clone(), ..self }
    }
}

impl hyper::service::Service<Request<Incoming>> for HttpService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        <TowerToHyperService<Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.takeover.clone());
        self.routes.call(request)
    }
}

/// The connections of one listener.
struct Server<S> {
    service: S,
    meters: Meters,
    tasks: TaskTracker,
    /// Finish what you have.
    drain: CancellationToken,
    /// End now. Also when the server is dropped.
    cut: tokio_util::sync::DropGuard,
    /// `cut`'s token, for those who listen to it.
    cutting: CancellationToken,
}

impl<S> Server<S> {
    fn new(service: S, meters: Meters, stop: &CancellationToken) -> Self {
        let cutting = CancellationToken::new();
        Self {
            service,
            meters,
            tasks: TaskTracker::new(),
            drain: stop.child_token(),
            cut: cutting.clone().drop_guard(),
            cutting,
        }
    }

    /// Serves `stream` in the dialect that it speaks, holding `slot` while it lasts.
    fn accept<B, G>(&self, stream: Stream, links: Option<Links>, slot: G)
    where
        S: Serves<B>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
        G: Send + 'static,
    {
        let from = stream.from();
        let Some(links) = links else { return self.spawn(stream, from, slot) };
        let (service, meters) = (self.service.clone(), self.meters.clone());
        let (drain, cut) = (self.drain.clone(), self.cutting.clone());
        let tasks = Owned(self.tasks.clone());
        self.tasks.spawn(async move {
            let sniffed = tokio::select! {
                sniffed = tokio::time::timeout(GREETING, link::sniff(&stream)) => sniffed,
                () = drain.cancelled() => return,
                () = cut.cancelled() => return,
            };
            match sniffed {
                Ok(Ok(Dialect::Link)) => framed::drive(stream, links, drain, cut).await,
                Ok(Ok(Dialect::Other)) => {
                    let ended = drive(stream, service, tasks, drain, cut).await;
                    meters.tell(from, ended);
                }
                Ok(Err(_)) | Err(_) => meters.tell(from, Some(Ended::Silent)),
            }
            drop(slot);
        });
    }

    /// Serves `stream` in HTTP, holding `slot` while it lasts.
    fn spawn<B, I, G>(&self, stream: I, from: Option<SocketAddr>, slot: G)
    where
        S: Serves<B>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        G: Send + 'static,
    {
        let (service, meters) = (self.service.clone(), self.meters.clone());
        let (drain, cut) = (self.drain.clone(), self.cutting.clone());
        let tasks = Owned(self.tasks.clone());
        self.tasks.spawn(async move {
            let ended = drive(stream, service, tasks, drain, cut).await;
            meters.tell(from, ended);
            drop(slot);
        });
    }

    /// Waits for `stop` and for what is in progress, `drain` at most; or for all to have ended
    /// by themselves.
    async fn finish(self, stop: CancellationToken, drain: Duration) {
        self.tasks.close();
        let cutting = self.cutting.clone();
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(drain).await;
            cutting.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.tasks.wait() => {}
            () = drained => {}
        }
        drop(self.cut);
    }
}

/// Runs one HTTP connection to its end, and tells what was wrong with it.
async fn drive<S, B, I>(
    stream: I,
    service: S,
    tasks: Owned,
    drain: CancellationToken,
    cut: CancellationToken,
) -> Option<Ended>
where
    S: Serves<B>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (stream, seen) = Watched::new(stream);
    let builder = builder(tasks);
    let takeover = Takeover::default();
    let service = service.on(&takeover);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let (mut draining, mut expected) = (false, true);
    let greeting = tokio::time::sleep(GREETING);
    tokio::pin!(greeting);
    loop {
        tokio::select! {
            biased;
            () = cut.cancelled() => return None,
            ended = &mut connection => match (ended, takeover.take()) {
                (Ok(()), Some(next)) => break tokio::select! {
                    biased;
                    () = cut.cancelled() => None,
                    ended = next => ended,
                },
                (ended, _) => return Ended::of(&seen, ended.err()),
            },
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut greeting, if expected => {
                expected = false;
                if !seen.has_greeted() {
                    return Some(Ended::Silent);
                }
            }
        }
    }
}

fn builder(tasks: Owned) -> auto::Builder<Owned> {
    let mut builder = auto::Builder::new(tasks);
    builder
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(CONNECTION_CALLS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING)
        .max_buf_size(HEADER_LIST_BYTES_MAX as usize);
    builder
}

/// Spawns the calls of a connection where its server waits for them. They end with their
/// connection: a call whose connection is gone is dropped by it.
#[derive(Clone)]
struct Owned(TaskTracker);

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
