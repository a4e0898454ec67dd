//! A node that answers without having anything: the admin API, and one service of the mesh, on a
//! socket in a directory of its own.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use protocol::proto::admin::{
    admin_server::{Admin, AdminServer},
    *,
};
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, server::NamedService};

use crate::{commands::call::Untouched, schema::tests::descriptors};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

/// What the fake node was asked.
#[derive(Default, Clone)]
pub struct Seen {
    pub loads: Arc<Mutex<Vec<PluginLoadRequest>>>,
    pub explained: Arc<Mutex<Vec<ExplainRequest>>>,
    pub logs: Arc<Mutex<Vec<PluginLogsRequest>>>,
    pub called_with: Arc<Mutex<MetadataMap>>,
}

#[derive(Clone)]
struct FakeNode {
    seen: Seen,
    healthy: bool,
}

fn counter() -> Plugin {
    Plugin {
        name: "counter".into(),
        state: "running".into(),
        healthy: true,
        pid: 42,
        services: vec!["demo.v1.Counter".into()],
        ..Plugin::default()
    }
}

fn known(name: &str) -> Result<(), Status> {
    let known = name == "counter";
    if known { Ok(()) } else { Err(Status::not_found(format!("no plugin is called `{name}`"))) }
}

#[tonic::async_trait]
impl Admin for FakeNode {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let name = "alpha".into();
        let plugins = vec![Plugin { healthy: self.healthy, ..counter() }];
        Ok(Response::new(StatusResponse { name, plugins, ..StatusResponse::default() }))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        let check = HealthCheck {
            name: "store".into(),
            healthy: self.healthy,
            detail: "written and read".into(),
        };
        Ok(Response::new(HealthResponse { healthy: self.healthy, checks: vec![check] }))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        Ok(Response::new(StopResponse {}))
    }

    async fn plugin_load(
        &self,
        request: Request<PluginLoadRequest>,
    ) -> Result<Response<PluginLoadResponse>, Status> {
        self.seen.loads.lock().expect("unpoisoned").push(request.into_inner());
        Ok(Response::new(PluginLoadResponse { plugin: Some(counter()) }))
    }

    async fn plugin_list(
        &self,
        _: Request<PluginListRequest>,
    ) -> Result<Response<PluginListResponse>, Status> {
        Ok(Response::new(PluginListResponse { plugins: vec![counter()] }))
    }

    async fn plugin_info(
        &self,
        request: Request<PluginInfoRequest>,
    ) -> Result<Response<Plugin>, Status> {
        known(&request.get_ref().name)?;
        Ok(Response::new(counter()))
    }

    type PluginLogsStream = Answers<LogLine>;

    async fn plugin_logs(
        &self,
        request: Request<PluginLogsRequest>,
    ) -> Result<Response<Answers<LogLine>>, Status> {
        known(&request.get_ref().name)?;
        self.seen.logs.lock().expect("unpoisoned").push(request.into_inner());
        let line = |message: &str| LogLine {
            message: message.into(),
            level: "info".into(),
            fields_json: "{}".into(),
            ..LogLine::default()
        };
        let lines = [Ok(line("first")), Ok(line("second"))];
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }

    async fn plugin_unload(
        &self,
        request: Request<PluginUnloadRequest>,
    ) -> Result<Response<PluginUnloadResponse>, Status> {
        known(&request.get_ref().name)?;
        Ok(Response::new(PluginUnloadResponse {}))
    }

    async fn plugin_restart(
        &self,
        request: Request<PluginRestartRequest>,
    ) -> Result<Response<Plugin>, Status> {
        known(&request.get_ref().name)?;
        Ok(Response::new(counter()))
    }

    async fn plugin_reload(
        &self,
        request: Request<PluginReloadRequest>,
    ) -> Result<Response<Plugin>, Status> {
        known(&request.get_ref().name)?;
        Ok(Response::new(counter()))
    }

    async fn plugin_scale(
        &self,
        request: Request<PluginScaleRequest>,
    ) -> Result<Response<Plugin>, Status> {
        known(&request.get_ref().name)?;
        let count = request.get_ref().instances;
        let one = |number| Plugin { number, ..counter() };
        Ok(Response::new(Plugin { instances: (1..=count).map(one).collect(), ..counter() }))
    }

    async fn plugin_limit(
        &self,
        request: Request<PluginLimitRequest>,
    ) -> Result<Response<Plugin>, Status> {
        known(&request.get_ref().name)?;
        Ok(Response::new(counter()))
    }

    async fn services(
        &self,
        _: Request<ServicesRequest>,
    ) -> Result<Response<ServicesResponse>, Status> {
        let provider =
            Provider { peer_id: PEER.into(), peer_name: "beta".into(), ..Provider::default() };
        let service = Service { name: "demo.v1.Counter".into(), providers: vec![provider] };
        Ok(Response::new(ServicesResponse { services: vec![service] }))
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let service = request.into_inner().service;
        if service != "demo.v1.Counter" {
            return Err(Status::not_found(format!("service {service} not available")));
        }
        let descriptor_set = descriptors().into();
        Ok(Response::new(DescribeResponse { descriptor_set, provider: PEER.into() }))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersResponse>, Status> {
        let peer = Peer { peer_id: PEER.into(), ..Peer::default() };
        Ok(Response::new(PeersResponse { peers: vec![peer] }))
    }

    async fn registry_query(
        &self,
        request: Request<RegistryQueryRequest>,
    ) -> Result<Response<RegistryQueryResponse>, Status> {
        let here = request.get_ref().service == "demo.v1.Counter";
        let in_dht = if here { vec![PEER.into()] } else { Vec::new() };
        Ok(Response::new(RegistryQueryResponse { in_dht, ..RegistryQueryResponse::default() }))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        self.seen.explained.lock().expect("unpoisoned").push(request.into_inner());
        let verdict = "peer beta is chosen".into();
        Ok(Response::new(ExplainResponse { verdict, ..ExplainResponse::default() }))
    }

    async fn log_level(
        &self,
        request: Request<LogLevelRequest>,
    ) -> Result<Response<LogLevelResponse>, Status> {
        let before = "info".to_owned();
        let level = match request.into_inner().level {
            level if level.is_empty() => before.clone(),
            level => level,
        };
        Ok(Response::new(LogLevelResponse { level, before }))
    }

    async fn trace(
        &self,
        request: Request<TraceRequest>,
    ) -> Result<Response<TraceResponse>, Status> {
        let request = request.into_inner();
        // Zero is what an empty request asks for.
        let code = if request.message.is_empty() { 14 } else { 0 };
        let step = TraceStep {
            kind: "ended".into(),
            text: format!("as {} was asked", request.method),
            ..TraceStep::default()
        };
        let verdict = "peer beta answered".into();
        Ok(Response::new(TraceResponse {
            steps: vec![step],
            code,
            verdict,
            ..TraceResponse::default()
        }))
    }
}

/// `demo.v1.Counter`, as a service of the mesh behind the same socket. `AddRequest{amount}` and
/// `AddReply{count}` have the same bytes, so that it can answer with what it was sent.
#[derive(Clone)]
struct FakeService(Seen);

impl NamedService for FakeService {
    const NAME: &'static str = "demo.v1.Counter";
}

impl tower::Service<http::Request<tonic::body::Body>> for FakeService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (seen, path) = (self.0.clone(), request.uri().path().to_owned());
        let handler = tower::service_fn(move |request: Request<Streaming<Bytes>>| {
            let (seen, path) = (seen.clone(), path.clone());
            async move { serve(&seen, &path, request).await }
        });
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(Untouched).streaming(handler, request).await)
        })
    }
}

async fn serve(
    seen: &Seen,
    path: &str,
    request: Request<Streaming<Bytes>>,
) -> Result<Response<Answers<Bytes>>, Status> {
    let metadata = request.metadata().clone();
    *seen.called_with.lock().expect("unpoisoned") = metadata.clone();
    if metadata.contains_key("hang") {
        std::future::pending::<()>().await;
    }
    let mut requests = request.into_inner();
    let answers: Answers<Bytes> = match path.rsplit('/').next() {
        Some("Chat") => Box::pin(requests),
        Some("Sum") => {
            let mut number = 0;
            while requests.message().await?.is_some() {
                number += 1;
            }
            Box::pin(tokio_stream::once(Ok(Bytes::from(vec![0x08, number]))))
        }
        _ if metadata.contains_key("fail") => {
            return Err(Status::unavailable("service demo.v1.Counter not available"));
        }
        _ => {
            let first = requests.message().await?.unwrap_or_default();
            let times = if path.ends_with("Watch") { 2 } else { 1 };
            Box::pin(tokio_stream::iter(vec![Ok(first); times]))
        }
    };
    let mut response = Response::new(answers);
    response.metadata_mut().insert("served-by", "fake".parse().expect("a value"));
    Ok(response)
}

/// A node on a socket in a directory of its own; both end with it.
pub struct Running {
    pub directory: tempfile::TempDir,
    pub seen: Seen,
    _serving: JoinSet<()>,
}

pub fn start(healthy: bool) -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(directory.path().join("admin.sock")).expect("bound");
    let seen = Seen::default();
    let node = FakeNode { seen: seen.clone(), healthy };
    let router = tonic::transport::Server::builder()
        .add_service(AdminServer::new(node))
        .add_service(FakeService(seen.clone()));
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        router.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("served");
    });
    Running { directory, seen, _serving: serving }
}
