//! `blackhole.plugin.v1.Lifecycle`: what a node asks a plugin about itself.
//!
//! Answers what the builder knows. State, configuration and metrics of its own are not offered
//! yet: UNIMPLEMENTED tells the node to treat the plugin as stateless.

use protocol::proto::plugin::lifecycle_server::{Lifecycle, LifecycleServer};
use protocol::proto::plugin::{
    ConfigureRequest, ConfigureResponse, DescribeRequest, DescribeResponse, DrainRequest,
    DrainResponse, ExportStateRequest, ImportStateResponse, MetricsRequest, MetricsResponse,
    StateChunk,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{Answer, Plugin, Stream};

/// The service that describes this plugin.
pub(crate) fn service(plugin: &Plugin) -> LifecycleServer<impl Lifecycle + use<>> {
    LifecycleServer::new(Described(DescribeResponse {
        name: plugin.name.clone(),
        version: plugin.version.clone(),
        description: plugin.description.clone(),
        capabilities: plugin.capabilities.clone(),
        dependencies: Vec::new(),
        stateful: false,
    }))
}

struct Described(DescribeResponse);

fn stateless<T>() -> Answer<T> {
    Err(Status::unimplemented("this plugin keeps no state that it could hand over"))
}

#[tonic::async_trait]
impl Lifecycle for Described {
    type ExportStateStream = Stream<StateChunk>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        Ok(Response::new(self.0.clone()))
    }

    async fn configure(&self, _: Request<ConfigureRequest>) -> Answer<ConfigureResponse> {
        Err(Status::unimplemented("this plugin takes no configuration"))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Answer<DrainResponse> {
        Err(Status::unimplemented("this plugin drains when it receives SIGTERM"))
    }

    async fn export_state(&self, _: Request<ExportStateRequest>) -> Answer<Stream<StateChunk>> {
        stateless()
    }

    async fn import_state(&self, _: Request<Streaming<StateChunk>>) -> Answer<ImportStateResponse> {
        stateless()
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        Ok(Response::new(MetricsResponse::default()))
    }
}
