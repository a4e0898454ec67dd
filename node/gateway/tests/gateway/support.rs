//! A gateway in front of a test's providers, and clients for it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use blackhole_gateway::{Catalog, Grpc, serve_grpc};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, CallHead, Caller, Invoke, Reply},
    service::ServiceName,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    client::Grpc as GrpcClient,
    transport::{Channel, Endpoint},
};
use tower::ServiceExt;

use crate::demo::Demo;

/// How long in-flight calls may take when a test's gateway stops.
pub const DRAIN: Duration = Duration::from_secs(5);

/// The mesh of a test: `demo.v1.Echo` is [`Demo`], everything else goes to `otherwise`.
#[derive(Clone)]
pub struct Mesh {
    pub demo: Demo,
    /// The heads of all calls, as the gateway made them.
    pub heads: Arc<Mutex<Vec<CallHead>>>,
    otherwise: Arc<Otherwise>,
}

type Otherwise = dyn Fn(Call) -> BoxFuture<'static, Result<Reply, Failure>> + Send + Sync + 'static;

impl Mesh {
    pub fn new() -> Self {
        Self::with(|call| async move { Err(Failure::not_available(call.head.path.service())) })
    }

    pub fn with<F>(otherwise: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Reply, Failure>> + Send + 'static,
    {
        Self {
            demo: Demo::default(),
            heads: Arc::default(),
            otherwise: Arc::new(move |call| otherwise(call).boxed()),
        }
    }

    pub fn last_head(&self) -> CallHead {
        self.heads.lock().expect("not poisoned").last().expect("a call").clone()
    }
}

impl Invoke for Mesh {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        self.heads.lock().expect("not poisoned").push(call.head.clone());
        if call.head.path.service().as_str() != "demo.v1.Echo" {
            return (self.otherwise)(call);
        }
        let demo = self.demo.clone();
        async move {
            let body = tonic::body::Body::new(call.body.map_err(|failure| {
                Status::new((failure.grpc_code() as i32).into(), failure.message)
            }));
            let mut request = Request::post(call.head.path.as_str()).body(body).expect("a request");
            *request.headers_mut() = call.head.metadata;
            let Ok(response) = demo.oneshot(request).await;
            let (parts, body) = response.into_parts();
            let body = body.map_err(|status| {
                Failure::unknown(Reason::PluginLost, status.message().to_owned())
            });
            Ok(Reply { metadata: parts.headers, body: Body::new(body) })
        }
        .boxed()
    }
}

/// What the mesh of a test offers.
pub struct TestCatalog {
    /// The services, with their descriptors or the failure to fetch them.
    pub offers: Mutex<BTreeMap<String, Result<Bytes, Failure>>>,
    pub serving: Mutex<bool>,
    pub changes: watch::Sender<u64>,
}

impl TestCatalog {
    pub fn new(
        offers: impl IntoIterator<Item = (&'static str, Result<Bytes, Failure>)>,
    ) -> Arc<Self> {
        let offers = offers.into_iter().map(|(name, set)| (name.to_owned(), set)).collect();
        Arc::new(Self {
            offers: Mutex::new(offers),
            serving: Mutex::new(true),
            changes: watch::Sender::new(0),
        })
    }

    /// Changes what is offered, and tells.
    pub fn change(&self, change: impl FnOnce(&Self)) {
        change(self);
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Catalog for TestCatalog {
    fn services(&self) -> Vec<ServiceName> {
        let offers = self.offers.lock().expect("not poisoned");
        offers.keys().map(|name| name.parse().expect("a service name")).collect()
    }

    fn is_offered(&self, service: &ServiceName) -> bool {
        self.offers.lock().expect("not poisoned").contains_key(service.as_str())
    }

    fn descriptors(
        &self,
        service: ServiceName,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let offers = self.offers.lock().expect("not poisoned");
        let set = offers.get(service.as_str()).cloned();
        async move { set.unwrap_or_else(|| Err(Failure::not_available(service))) }.boxed()
    }

    fn is_serving(&self) -> bool {
        *self.serving.lock().expect("not poisoned")
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A gateway on a port of its own.
pub struct Gateway {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    pub served: JoinHandle<()>,
}

impl Gateway {
    pub async fn start(mesh: &Mesh) -> Self {
        Self::start_with(Grpc::new(Arc::new(mesh.clone()), TestCatalog::new([])), DRAIN).await
    }

    pub async fn start_with(grpc: Grpc, drain: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve_grpc(listener, grpc, Caller::Client, stop.clone(), drain));
        Self { address, stop, served }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("an address")
    }

    pub async fn channel(&self) -> Channel {
        self.endpoint().connect().await.expect("the gateway accepts")
    }

    pub async fn client(&self) -> GrpcClient<Channel> {
        client(self.channel().await).await
    }

    /// Stops it and waits until everything has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("it ends in order");
    }

    /// An HTTP/2 request, byte for byte.
    pub async fn raw(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let client: Client<_, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        client.request(request).await.expect("an answer")
    }

    /// A gRPC request to `path` with this body, byte for byte.
    pub fn request(&self, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.into()))
            .expect("a request")
    }
}

/// A client over `channel`, ready for a call.
pub async fn client(channel: Channel) -> GrpcClient<Channel> {
    let mut client = GrpcClient::new(channel)
        .max_decoding_message_size(32 << 20)
        .max_encoding_message_size(32 << 20);
    client.ready().await.expect("connected");
    client
}

/// A gRPC message on the wire.
pub fn message(flags: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&[flags], length.as_slice(), payload].concat().into()
}

/// The whole answer: its body and its trailers.
pub async fn collect(response: http::Response<Incoming>) -> (Bytes, HeaderMap) {
    let body = response.into_body().collect().await.expect("a whole answer");
    let trailers = body.trailers().cloned().unwrap_or_default();
    (body.to_bytes(), trailers)
}

/// Any stream a client can speak over.
pub fn io<S>(stream: S) -> TokioIo<S> {
    TokioIo::new(stream)
}
