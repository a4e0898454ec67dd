//! The plugin's socket speaks two dialects: HTTP/2, and frames on a link. The first byte of a
//! connection tells which.
//!
//! A node that has been told that its plugin takes frames ([`Announced`]) calls it that way; what
//! is generated for gRPC serves both.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::Stream};
use http::{HeaderName, HeaderValue, Method, Version};
use http_body_util::BodyExt as _;
use link::{Dialect, LinkSettings, Socket};
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, Caller, Invoke, Reply},
    timeout::{self, GRPC_TIMEOUT},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::Routes,
    transport::server::{Connected, Server},
};
use tower::{Service, layer::layer_fn};

use crate::{channel::status_of, context::InContext};

/// How long a connection may say nothing before its dialect is known.
const GREETING: Duration = Duration::from_secs(10);

/// Connections that speak HTTP/2 and wait to be taken over; more wait where they were accepted.
const HANDED_OVER_MAX: usize = 16;

/// Serves `routes` in both dialects on `connections`, until `drain` and the last call.
pub(crate) async fn serve<I>(
    server: Server,
    routes: Routes,
    connections: impl Stream<Item = io::Result<I>>,
    drain: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    I: Socket + Connected + AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stop = CancellationToken::new();
    let (hand_over, http) = mpsc::channel(HANDED_OVER_MAX);
    let framed = Framed(InContext(routes.clone()));
    let mut server = server.layer(layer_fn(InContext));
    let serving = server.add_routes(routes);
    let serving = serving
        .serve_with_incoming_shutdown(ReceiverStream::new(http), stop.clone().cancelled_owned());
    let serving = serving.inspect(|_| stop.cancel());
    let drained = async {
        drain.await;
        stop.cancel();
    };
    let accepting = accept(connections, framed, hand_over, stop.clone());
    let (served, (), ()) = futures::join!(serving, accepting, until(&stop, drained));
    served
}

/// Waits for `done`, no longer than for `stop`.
async fn until(stop: &CancellationToken, done: impl Future<Output = ()>) {
    tokio::select! {
        () = done => {}
        () = stop.cancelled() => {}
    }
}

/// Accepts connections until `stop`, then waits for the links among them. Dropping it ends them.
async fn accept<I>(
    connections: impl Stream<Item = io::Result<I>>,
    framed: Framed,
    hand_over: mpsc::Sender<io::Result<I>>,
    stop: CancellationToken,
) where
    I: Socket + AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handler: Arc<dyn Invoke> = Arc::new(framed);
    let mut tasks = JoinSet::new();
    let mut connections = std::pin::pin!(connections.fuse());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            connection = connections.next() => match connection {
                Some(Ok(connection)) => {
                    let (handler, stop) = (Arc::clone(&handler), stop.clone());
                    tasks.spawn(take(connection, handler, hand_over.clone(), stop));
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection was lost"),
                None => break,
            }
        }
    }
    drop(hand_over);
    while tasks.join_next().await.is_some() {}
}

/// Finds out what one connection speaks, and serves it or hands it over.
async fn take<I>(
    connection: I,
    handler: Arc<dyn Invoke>,
    hand_over: mpsc::Sender<io::Result<I>>,
    stop: CancellationToken,
) where
    I: Socket + AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let sniffed = tokio::select! {
        sniffed = tokio::time::timeout(GREETING, link::sniff(&connection)) => sniffed,
        () = stop.cancelled() => return,
    };
    match sniffed {
        Ok(Ok(Dialect::Link)) => {
            let settings = LinkSettings::within_machine();
            let drain = stop.cancelled_owned();
            // Who calls is known to the node, which lets nobody else in.
            let end = link::serve_until(connection, settings, Caller::Client, handler, drain).await;
            tracing::debug!(%end, "a link ended");
        }
        Ok(Ok(Dialect::Other)) => drop(hand_over.send(Ok(connection)).await),
        Ok(Err(error)) => tracing::debug!(%error, "a connection was lost"),
        Err(_) => tracing::debug!("a connection said nothing"),
    }
}

/// What gRPC's generated code serves, for calls that come in frames.
struct Framed(InContext<Routes>);

impl Invoke for Framed {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let Ok(uri) = http::Uri::try_from(call.head.path.as_str()) else {
            let failure = Failure::failed(Reason::Malformed, "the path is no URI path");
            return std::future::ready(Err(failure)).boxed();
        };
        let body = call.body.map_err(|failure| status_of(&failure));
        let mut request = http::Request::new(tonic::body::Body::new(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri;
        *request.headers_mut() = call.head.metadata;
        if let Some(deadline) = call.head.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            request.headers_mut().insert(GRPC_TIMEOUT, timeout::write(left));
        }
        let answering = self.0.clone().call(request);
        Box::pin(async move {
            let Ok(response) = answering.await;
            let (parts, body) = response.into_parts();
            let body = body.map_err(|status: tonic::Status| {
                Failure::unknown(Reason::PluginLost, status.message())
            });
            Ok(Reply { metadata: parts.headers, body: Body::new(body) })
        })
    }
}

/// Tells the node, with every answer of the service it wraps, that this socket takes frames.
#[derive(Clone)]
pub(crate) struct Announced<S>(pub(crate) S);

impl<S: NamedService> NamedService for Announced<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B, R> Service<http::Request<B>> for Announced<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<R>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<R>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answering = self.0.call(request);
        Box::pin(async move {
            let Ok(mut response) = answering.await;
            let (name, value) = protocol::frame::ANNOUNCEMENT;
            let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
            response.headers_mut().insert(name, value);
            Ok(response)
        })
    }
}
