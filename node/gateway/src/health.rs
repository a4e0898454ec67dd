//! `grpc.health.v1` for the whole mesh: "" is this node, any other name is a service of the mesh.

use std::{pin::Pin, sync::Arc};

use axum::Router;
use futures::{Stream, stream};
use protocol::service::ServiceName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::{
    bounds::{OWN_STREAMS_MAX, QUESTION_BYTES_MAX},
    catalog::Catalog,
    grpc::busy,
};

/// The health service: its name and what answers it.
pub(crate) fn routes(catalog: Arc<dyn Catalog>) -> ([ServiceName; 1], Router) {
    let streams = Arc::new(Semaphore::new(OWN_STREAMS_MAX));
    let server = HealthServer::new(MeshHealth { catalog, streams })
        .max_decoding_message_size(QUESTION_BYTES_MAX);
    let name = "grpc.health.v1.Health".parse().expect("a service name");
    ([name], Routes::new(server).into_axum_router())
}

struct MeshHealth {
    catalog: Arc<dyn Catalog>,
    streams: Arc<Semaphore>,
}

/// What is known of `service`; `None` for a service that nobody offers.
fn status(catalog: &dyn Catalog, service: &str) -> Option<ServingStatus> {
    if service.is_empty() {
        let serving = catalog.is_serving();
        return Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing });
    }
    let service: ServiceName = service.parse().ok()?;
    // Health and reflection themselves are always here.
    let offered = service.is_infrastructure() || catalog.is_offered(&service);
    offered.then_some(ServingStatus::Serving)
}

#[tonic::async_trait]
impl Health for MeshHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&*self.catalog, &service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found(format!("service {service} not available"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| busy())?;
        let watcher = Watcher {
            service: request.into_inner().service,
            changes: self.catalog.changes(),
            catalog: Arc::clone(&self.catalog),
            last: None,
            _permit: permit,
        };
        Ok(Response::new(Box::pin(stream::unfold(watcher, Watcher::next))))
    }
}

/// One open watch.
struct Watcher {
    service: String,
    catalog: Arc<dyn Catalog>,
    changes: watch::Receiver<u64>,
    /// What was last said.
    last: Option<ServingStatus>,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// Waits for a status that differs from the last one.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            self.changes.mark_unchanged();
            let now = status(&*self.catalog, &self.service);
            // The protocol keeps a watch of an unknown service open.
            let now = now.unwrap_or(ServingStatus::ServiceUnknown);
            if self.last != Some(now) {
                self.last = Some(now);
                return Some((Ok(HealthCheckResponse { status: now.into() }), self));
            }
            self.changes.changed().await.ok()?;
        }
    }
}
