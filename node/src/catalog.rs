//! The mesh as the gateway's reflection and health tell it.

use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use gateway::Catalog;
use protocol::{
    failure::{Failure, Reason},
    service::ServiceName,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::knowledge::Knowledge;

/// Everything [`Knowledge`] knows, for programs.
pub struct MeshCatalog {
    knowledge: Knowledge,
    stop: CancellationToken,
    routes: watch::Receiver<u64>,
}

impl MeshCatalog {
    /// Serving until `stop`; `routes` changes whenever the routing table does.
    pub fn new(
        knowledge: Knowledge,
        routes: watch::Receiver<u64>,
        stop: CancellationToken,
    ) -> Self {
        Self { knowledge, stop, routes }
    }
}

impl Catalog for MeshCatalog {
    fn services(&self) -> Vec<ServiceName> {
        self.knowledge.offers().into_keys().collect()
    }

    fn is_offered(&self, service: &ServiceName) -> bool {
        self.knowledge.is_offered(service)
    }

    fn descriptors(
        &self,
        service: ServiceName,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let knowledge = self.knowledge.clone();
        Box::pin(async move {
            let describe = knowledge.describe(service);
            match tokio::time::timeout_at(deadline.into(), describe).await {
                Ok(described) => described.map(|(_, bytes)| bytes),
                Err(_) => Err(Failure::failed(
                    Reason::DeadlineExceeded,
                    "no provider told its interface in time",
                )),
            }
        })
    }

    fn is_serving(&self) -> bool {
        !self.stop.is_cancelled()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.routes.clone()
    }
}
