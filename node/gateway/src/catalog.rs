//! What the gateway asks about the mesh to speak for it.

use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use protocol::{failure::Failure, service::ServiceName};
use tokio::sync::watch;

/// What the mesh offers, as this node knows it. Answers reflection and health.
pub trait Catalog: Send + Sync + 'static {
    /// Every service that somebody is known to offer, here or elsewhere; without health and
    /// reflection, which the gateway answers itself.
    fn services(&self) -> Vec<ServiceName>;

    /// Whether somebody is known to offer `service`.
    fn is_offered(&self, service: &ServiceName) -> bool;

    /// The interface of `service`: an encoded `google.protobuf.FileDescriptorSet`, at most
    /// [`protocol::limits::DESCRIPTORS_BYTES_MAX`], fetched from a provider where it is not here.
    /// Fails at `deadline`. Its owner caches: it is called for every question.
    fn descriptors(
        &self,
        service: ServiceName,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>>;

    /// Whether this node serves; false while it starts, drains, or is unwell.
    fn is_serving(&self) -> bool;

    /// Changes whenever an answer of the other methods may have.
    fn changes(&self) -> watch::Receiver<u64>;
}
