//! One gRPC request, from its head to its answer: admitted, dispatched, carried.

use std::{
    collections::HashMap,
    convert::Infallible,
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::Router;
use bytes::Bytes;
use futures::future::{BoxFuture, poll_fn};
use http::{HeaderValue, Method, Request, Response, Version, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use protocol::{
    failure::{Failure, Reason},
    ports::{self, Call, Caller, Invoke, Reply},
    service::ServiceName,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use crate::{
    bounds::CALLS_MAX,
    catalog::Catalog,
    health,
    meters::Meters,
    reflection,
    rescue::{self, GRPC_STATUS},
    stream::{Download, Upload, Verdict},
    translate,
};

/// What a gRPC listener serves: every service of the mesh, reflection and health for the whole of
/// it, and services that the node adds. Cheap to clone; listeners that share one also share its
/// bound on calls in progress.
#[derive(Clone)]
pub struct Grpc {
    invoke: Arc<dyn Invoke>,
    /// Services answered here, by name.
    own: Arc<HashMap<String, Router>>,
    calls: Arc<Semaphore>,
    catalog: Arc<dyn Catalog>,
    meters: Meters,
}

impl Grpc {
    /// Serves `catalog`'s mesh through `invoke`.
    pub fn new(invoke: Arc<dyn Invoke>, catalog: Arc<dyn Catalog>) -> Self {
        let own = Self {
            invoke,
            own: Arc::default(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            catalog: Arc::clone(&catalog),
            meters: Meters::default(),
        };
        let (reflected, reflection) = reflection::routes(Arc::clone(&catalog));
        let (watched, health) = health::routes(catalog);
        own.with_routes(reflected, &reflection).with_routes(watched, &health)
    }

    /// Carries calls through `invoke` instead; everything else, and the bound on calls in
    /// progress, stays shared.
    pub fn through(mut self, invoke: Arc<dyn Invoke>) -> Self {
        self.invoke = invoke;
        self
    }

    /// Counts connections in `meters`.
    pub fn metered(mut self, meters: Meters) -> Self {
        self.meters = meters;
        self
    }

    /// Also answers `services` here, by `routes` (tonic's `Routes::into_axum_router`). They are
    /// not part of the mesh and hide mesh services of the same name on this listener.
    pub fn with_routes(
        mut self,
        services: impl IntoIterator<Item = ServiceName>,
        routes: &Router,
    ) -> Self {
        let own = Arc::make_mut(&mut self.own);
        own.extend(services.into_iter().map(|service| (service.to_string(), routes.clone())));
        self
    }

    /// Answers a request over HTTP/2.
    pub(crate) async fn answer<B>(self, caller: Caller, request: Request<B>) -> Response<Outgoing>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (parts, incoming) = request.into_parts();
        if let Err(refusal) = translate::admit(&parts) {
            return rescue::refuse(&refusal).map(Outgoing::Own);
        }
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(failure) => return rescue::answer(&failure).map(Outgoing::Own),
        };
        if let Some(routes) = self.own_routes(parts.uri.path()) {
            let request = Request::from_parts(parts, incoming);
            let Ok(response) = routes.oneshot(request).await;
            return response.map(Outgoing::Own);
        }
        match translate::head(parts, caller, Instant::now()) {
            Ok(head) => self.carry(head, incoming, permit).await,
            Err(refusal) => rescue::refuse(&refusal).map(Outgoing::Own),
        }
    }

    /// Answers a call that did not come over HTTP/2, or was not gRPC there; what its metadata
    /// wishes has not been read.
    pub(crate) async fn answer_call(self, call: Call) -> Response<Outgoing> {
        let permit = match self.permit() {
            Ok(permit) => permit,
            Err(failure) => return rescue::answer(&failure).map(Outgoing::Own),
        };
        if let Some(routes) = self.own_routes(call.head.path.as_str()) {
            let Ok(response) = routes.oneshot(request(call)).await;
            return response.map(Outgoing::Own);
        }
        match translate::wishes(call.head) {
            Ok(head) => self.carry(head, call.body, permit).await,
            Err(refusal) => rescue::refuse(&refusal).map(Outgoing::Own),
        }
    }

    /// Where connections are counted.
    pub fn meters(&self) -> Meters {
        self.meters.clone()
    }

    /// What the mesh offers.
    pub(crate) fn catalog(&self) -> Arc<dyn Catalog> {
        Arc::clone(&self.catalog)
    }

    /// A place among the calls in progress.
    fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            let message = format!("{CALLS_MAX} calls are in progress here; try again later");
            Failure::not_started(Reason::Busy, message)
        })
    }

    /// Who answers `path` here, if it is not part of the mesh.
    fn own_routes(&self, path: &str) -> Option<Router> {
        let (service, _) = path.strip_prefix('/')?.split_once('/')?;
        self.own.get(service).cloned()
    }

    async fn carry<B>(
        self,
        head: ports::CallHead,
        incoming: B,
        permit: OwnedSemaphorePermit,
    ) -> Response<Outgoing>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (upload, mut verdict) = Upload::new(incoming);
        let carried = self.invoke.invoke(Call { head, body: ports::Body::new(upload) });
        let outcome = tokio::select! {
            biased;
            refused = poll_fn(|cx| verdict.poll(cx)) => Err(refused),
            outcome = carried => outcome,
        };
        // It may have failed because the messages were refused just now: then that counts.
        let outcome = verdict.now().map_or(outcome, Err);
        match outcome {
            Ok(reply) => respond(reply, verdict, permit),
            Err(failure) => rescue::answer(&failure).map(Outgoing::Own),
        }
    }
}

/// A call for those who speak HTTP.
fn request(call: Call) -> Request<ports::Body> {
    let mut request = Request::new(call.body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    if let Ok(uri) = call.head.path.as_str().parse() {
        *request.uri_mut() = uri;
    }
    *request.headers_mut() = call.head.metadata;
    request
}

fn respond(reply: Reply, verdict: Verdict, permit: OwnedSemaphorePermit) -> Response<Outgoing> {
    let Reply { mut metadata, body } = reply;
    translate::strip_hop_by_hop(&mut metadata);
    rescue::strip_reserved(&mut metadata);
    let grpc = HeaderValue::from_static("application/grpc");
    metadata.entry(CONTENT_TYPE).or_insert(grpc);
    let body = if metadata.contains_key(GRPC_STATUS) {
        // Trailers-only: the status is in the head, and nothing may follow it.
        Outgoing::Own(axum::body::Body::empty())
    } else {
        Outgoing::Mesh(Download::new(body, verdict, permit))
    };
    let mut response = Response::new(body);
    *response.headers_mut() = metadata;
    response
}

/// The body of an answer.
pub(crate) enum Outgoing {
    /// From the mesh.
    Mesh(Download),
    /// From here: a refusal, or one of the services answered here.
    Own(axum::body::Body),
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.get_mut() {
            Self::Mesh(body) => Pin::new(body).poll_frame(cx),
            Self::Own(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Mesh(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Mesh(body) => body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

/// [`Grpc`] for the connections of one listener: all of them are the same caller.
#[derive(Clone)]
pub(crate) struct GrpcService {
    pub(crate) grpc: Grpc,
    pub(crate) caller: Caller,
}

impl hyper::service::Service<Request<Incoming>> for GrpcService {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (grpc, caller) = (self.grpc.clone(), self.caller.clone());
        Box::pin(async move { Ok(grpc.answer(caller, request).await) })
    }
}

/// Asked of services answered here when too many of their streams are open.
pub(crate) fn busy() -> tonic::Status {
    tonic::Status::resource_exhausted("too many streams of this service are open; try again later")
}
