//! `blackhole.plugin.v1.Lifecycle`: what a node asks a plugin about itself.
//!
//! Answers what the builder knows. What the author did not offer is UNIMPLEMENTED, and the node
//! does not ask again; state is not offered yet, so the node treats the plugin as stateless.

use std::{collections::HashMap, time::Duration};

use protocol::proto::plugin::lifecycle_server::{Lifecycle, LifecycleServer};
use protocol::proto::plugin::{
    ConfigureRequest, ConfigureResponse, DescribeRequest, DescribeResponse, DrainRequest,
    DrainResponse, ExportStateRequest, ImportStateResponse, Metric, MetricsRequest,
    MetricsResponse, StateChunk,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Answer, Figures, Plugin, Stream,
    plugin::{Configure, Drain, Metrics},
};

/// The service that describes this plugin.
pub(crate) fn service(plugin: &Plugin) -> LifecycleServer<impl Lifecycle + use<>> {
    LifecycleServer::new(Described {
        told: DescribeResponse {
            name: plugin.name.clone(),
            version: plugin.version.clone(),
            description: plugin.description.clone(),
            capabilities: plugin.capabilities.clone(),
            dependencies: plugin.dependencies.clone(),
            stateful: false,
        },
        configure: plugin.configure.clone(),
        metrics: plugin.metrics.clone(),
        figures: plugin.figures.clone(),
        drain: plugin.drain.clone(),
    })
}

struct Described {
    told: DescribeResponse,
    configure: Option<Configure>,
    metrics: Option<Metrics>,
    figures: Option<Figures>,
    drain: Option<Drain>,
}

fn stateless<T>() -> Answer<T> {
    Err(Status::unimplemented("this plugin keeps no state that it could hand over"))
}

#[tonic::async_trait]
impl Lifecycle for Described {
    type ExportStateStream = Stream<StateChunk>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        Ok(Response::new(self.told.clone()))
    }

    async fn configure(&self, request: Request<ConfigureRequest>) -> Answer<ConfigureResponse> {
        let Some(configure) = &self.configure else {
            return Err(Status::unimplemented("this plugin takes no configuration"));
        };
        match configure(&request.into_inner().configuration) {
            Ok(()) => Ok(Response::new(ConfigureResponse {})),
            Err(reason) => Err(Status::invalid_argument(reason)),
        }
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Answer<DrainResponse> {
        let Some(drain) = &self.drain else {
            return Err(Status::unimplemented("this plugin drains when it receives SIGTERM"));
        };
        let within = Duration::from_millis(request.into_inner().deadline_ms);
        drain(within).await.map_err(Status::internal)?;
        Ok(Response::new(DrainResponse {}))
    }

    async fn export_state(&self, _: Request<ExportStateRequest>) -> Answer<Stream<StateChunk>> {
        stateless()
    }

    async fn import_state(&self, _: Request<Streaming<StateChunk>>) -> Answer<ImportStateResponse> {
        stateless()
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        if self.metrics.is_none() && self.figures.is_none() {
            return Err(Status::unimplemented("this plugin has no figures of its own"));
        }
        let mut told = self.figures.as_ref().map(Figures::read).unwrap_or_default();
        let computed = self.metrics.as_ref().map(|compute| compute()).unwrap_or_default();
        let labels = HashMap::new;
        told.extend(computed.into_iter().map(|(name, value)| Metric {
            name,
            value,
            labels: labels(),
        }));
        Ok(Response::new(MetricsResponse { metrics: told }))
    }
}
