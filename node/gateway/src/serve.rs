//! Listeners and their connections: accepted under bounds, owned, drained.
//!
//! Every connection and every call on it is a task of one tracker; a server's future ends only
//! when all of them have. Whatever a stranger sends ends its own connection at most.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use link::{Dialect, LinkSettings, Socket};
use protocol::ports::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
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
    grpc::{Grpc, GrpcService},
};

/// Where connections come from.
#[derive(Debug)]
pub enum Listening {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listening {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

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
    serve(listening.into(), GrpcService { grpc, caller }, Some(links), stop, drain).await;
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
    let server = Server::new(GrpcService { grpc, caller }, &stop);
    server.spawn(stream, ());
    server.finish(stop, drain).await;
}

/// Serves `routes` over HTTP/1.1 and HTTP/2 on `listening`; otherwise as [`serve_grpc`].
pub async fn serve_http(
    listening: impl Into<Listening>,
    routes: Router,
    stop: CancellationToken,
    drain: Duration,
) {
    serve(listening.into(), TowerToHyperService::new(routes), None, stop, drain).await;
}

async fn serve<S, B>(
    listening: Listening,
    service: S,
    links: Option<Links>,
    stop: CancellationToken,
    drain: Duration,
) where
    S: Serves<B>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
{
    let server = Server::new(service, &stop);
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
}

impl<B, S> Serves<B> for S where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The connections of one listener.
struct Server<S> {
    service: S,
    tasks: TaskTracker,
    /// Finish what you have.
    drain: CancellationToken,
    /// End now. Also when the server is dropped.
    cut: tokio_util::sync::DropGuard,
    /// `cut`'s token, for those who listen to it.
    cutting: CancellationToken,
}

impl<S> Server<S> {
    fn new(service: S, stop: &CancellationToken) -> Self {
        let cutting = CancellationToken::new();
        Self {
            service,
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
        let Some(links) = links else { return self.spawn(stream, slot) };
        let service = self.service.clone();
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
                Ok(Ok(Dialect::Other)) => drive(stream, service, tasks, drain, cut).await,
                Ok(Err(_)) | Err(_) => tracing::debug!("connection closed: it said nothing"),
            }
            drop(slot);
        });
    }

    /// Serves `stream` in HTTP, holding `slot` while it lasts.
    fn spawn<B, I, G>(&self, stream: I, slot: G)
    where
        S: Serves<B>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        G: Send + 'static,
    {
        let service = self.service.clone();
        let (drain, cut) = (self.drain.clone(), self.cutting.clone());
        let tasks = Owned(self.tasks.clone());
        self.tasks.spawn(async move {
            drive(stream, service, tasks, drain, cut).await;
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

/// Runs one HTTP connection to its end.
async fn drive<S, B, I>(
    stream: I,
    service: S,
    tasks: Owned,
    drain: CancellationToken,
    cut: CancellationToken,
) where
    S: Serves<B>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (stream, greeted) = Greeting::new(stream);
    let builder = builder(tasks);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let (mut draining, mut expected) = (false, true);
    let greeting = tokio::time::sleep(GREETING);
    tokio::pin!(greeting);
    loop {
        tokio::select! {
            biased;
            () = cut.cancelled() => return,
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut greeting, if expected => {
                expected = false;
                if !greeted.load(Relaxed) {
                    tracing::debug!("connection closed: it said nothing");
                    return;
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

/// A byte stream of either kind.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// How a link on it behaves.
    pub(crate) fn settings(&self) -> LinkSettings {
        match self {
            Self::Tcp(_) => LinkSettings::default(),
            Self::Unix(_) => LinkSettings::within_machine(),
        }
    }
}

impl Socket for Stream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        match self {
            Self::Tcp(stream) => stream.first_byte().await,
            Self::Unix(stream) => stream.first_byte().await,
        }
    }
}

async fn accept(listening: &Listening) -> io::Result<Stream> {
    match listening {
        Listening::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Small calls must not wait for an acknowledgement.
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        Listening::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
    }
}

/// The connection was gone before it was accepted: nothing is wrong with the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | InvalidInput)
}

macro_rules! either {
    ($stream:expr, $inner:ident => $do:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $do,
            Stream::Unix($inner) => $do,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Notes whether a connection has said anything of length: the 24 bytes of HTTP/2's preface, or
/// about a request line.
struct Greeting<I> {
    stream: I,
    bytes: usize,
    greeted: Arc<AtomicBool>,
}

const GREETING_BYTES: usize = 16;

impl<I> Greeting<I> {
    fn new(stream: I) -> (Self, Arc<AtomicBool>) {
        let greeted = Arc::new(AtomicBool::new(false));
        (Self { stream, bytes: 0, greeted: Arc::clone(&greeted) }, greeted)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Greeting<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.bytes < GREETING_BYTES {
            self.bytes += buf.filled().len() - before;
            if self.bytes >= GREETING_BYTES {
                self.greeted.store(true, Relaxed);
            }
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Greeting<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
