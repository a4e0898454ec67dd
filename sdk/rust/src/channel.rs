//! The way to a peer in frames: what generated clients take instead of HTTP/2.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, combinators::MapErr};
use link::{Link, LinkEnd, LinkSettings, Reconnecting};
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply},
    timeout::{self, GRPC_TIMEOUT},
};
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Status};

use crate::context;

/// How long connecting may take where the call has no earlier deadline.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a peer's socket that carries calls in frames, at a fraction of what HTTP/2
/// costs. Give it to any generated client: `CounterClient::new(LinkChannel::unix(path))`.
///
/// It connects at the first call and again whenever the connection was lost. Make one, and clone
/// it as often as needed: all clones share the connection. Must be used inside a runtime.
#[derive(Clone)]
pub struct LinkChannel(Arc<Shared>);

struct Shared {
    target: Target,
    link: Reconnecting,
}

#[derive(Clone)]
enum Target {
    Unix(PathBuf),
    Tcp(String),
}

impl LinkChannel {
    /// To the socket at `path`, such as a peer's `mesh.sock`.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::to(Target::Unix(path.into()))
    }

    /// To `address`, as `host:port`: a peer's gRPC listener.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self::to(Target::Tcp(address.into()))
    }

    fn to(target: Target) -> Self {
        Self(Arc::new(Shared { target, link: Reconnecting::default() }))
    }
}

impl Shared {
    async fn link(&self, deadline: Option<Instant>) -> Result<Link, Failure> {
        let patience = Instant::now() + CONNECT_PATIENCE;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let opening = self.link.get(self.target.open());
        let unreachable = |why: String| {
            let whom = self.target.shown();
            Failure::not_started(Reason::Unreachable, format!("cannot reach {whom}: {why}"))
        };
        match tokio::time::timeout_at(until.into(), opening).await {
            Ok(opened) => opened.map_err(unreachable),
            Err(_) => Err(unreachable("it does not answer".into())),
        }
    }
}

impl Target {
    fn shown(&self) -> String {
        match self {
            Self::Unix(path) => Path::display(path).to_string(),
            Self::Tcp(address) => address.clone(),
        }
    }

    async fn open(&self) -> Result<Link, String> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
                open(link::connect(stream, LinkSettings::within_machine()).await)
            }
            Self::Tcp(address) => {
                let stream =
                    TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                open(link::connect(stream, LinkSettings::default()).await)
            }
        }
    }
}

/// Spawns the driver of a link. It ends after the last call, once the channel is gone.
fn open(
    made: Result<(Link, impl Future<Output = LinkEnd> + Send + 'static), LinkEnd>,
) -> Result<Link, String> {
    let (link, driver) = made.map_err(|end| end.to_string())?;
    drop(tokio::spawn(driver));
    Ok(link)
}

impl tower::Service<http::Request<tonic::body::Body>> for LinkChannel {
    type Response = http::Response<ReplyBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        context::take_along(request.headers_mut());
        let shared = Arc::clone(&self.0);
        let call = match call_of(request) {
            Ok(call) => call,
            Err(status) => return Box::pin(std::future::ready(Err(status))),
        };
        if let Some(link) = shared.link.current() {
            return Box::pin(answer(link.invoke(call)));
        }
        Box::pin(async move {
            let link = shared.link(call.head.deadline).await.map_err(|lost| status_of(&lost))?;
            answer(link.invoke(call)).await
        })
    }
}

async fn answer(
    answering: BoxFuture<'static, Result<Reply, Failure>>,
) -> Result<http::Response<ReplyBody>, Status> {
    let reply = answering.await.map_err(|failure| status_of(&failure))?;
    let mut response = http::Response::new(ReplyBody(reply.body.map_err(owned)));
    *response.headers_mut() = reply.metadata;
    Ok(response)
}

fn call_of(request: http::Request<tonic::body::Body>) -> Result<Call, Status> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().parse();
    let path = path.map_err(|_| Status::unimplemented("the path names no method"))?;
    let mut metadata = parts.headers;
    let left = metadata.remove(GRPC_TIMEOUT).and_then(|left| timeout::read(left.as_bytes()));
    let deadline = left.and_then(|left| Instant::now().checked_add(left));
    let body = body.map_err(|status: Status| Failure::unknown(Reason::Cancelled, status.message()));
    let head = CallHead {
        path,
        metadata,
        deadline,
        locality: Locality::default(),
        // Known to the peer from the socket, whatever is said here.
        caller: Caller::Client,
    };
    Ok(Call { head, body: Body::new(body) })
}

/// An answer's messages and trailers.
pub struct ReplyBody(MapErr<Body, fn(Failure) -> Status>);

impl http_body::Body for ReplyBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that a body's error is mapped with")]
fn owned(failure: Failure) -> Status {
    status_of(&failure)
}

/// A failure of the link itself, in gRPC's words. What fails beyond the peer comes as a status.
pub(crate) fn status_of(failure: &Failure) -> Status {
    let code = i32::try_from(failure.grpc_code()).map_or(Code::Unknown, Code::from_i32);
    let mut status = Status::new(code, failure.to_string());
    let source: Arc<dyn Error + Send + Sync> = Arc::new(failure.clone());
    status.set_source(source);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_told_when_it_is_called() {
        let channel = LinkChannel::unix("/nowhere/mesh.sock");
        let failure = channel.0.link(None).await.err().expect("nobody");
        assert_eq!(failure.ran, protocol::failure::Ran::NotStarted);
        assert_eq!(status_of(&failure).code(), Code::Unavailable);
    }
}
