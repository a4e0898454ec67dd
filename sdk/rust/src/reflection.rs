//! Server reflection, built when somebody first asks for it: it takes longer than all else that a
//! plugin does before it is ready, most plugins are asked in one version, and many never.

use std::{
    convert::Infallible,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use prost::{DecodeError, Message as _};
use prost_types::FileDescriptorSet;
use tonic::{Status, body::Body, server::NamedService, service::Routes};
use tonic_reflection::server::{Builder, Error};
use tower::Service;

use crate::Plugin;

/// Name of the reflection service that nearly all clients ask for.
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";

/// Adds reflection in both versions. It names the author's services, health and itself.
pub(crate) fn add(routes: Routes, plugin: &Plugin) -> Routes {
    let described = Described {
        services: plugin.services.clone().into(),
        sets: plugin.descriptors.clone().into(),
    };
    let alpha = described.clone();
    routes
        .add_service(Late::new(move || described.builder()?.build_v1()))
        .add_service(Late::new(move || alpha.builder()?.build_v1alpha()))
}

/// The full names of the services that an encoded `FileDescriptorSet` describes. Reads nothing
/// else of it: that is for later.
pub(crate) fn services(encoded: &[u8]) -> Result<impl Iterator<Item = String>, DecodeError> {
    let set = names::Set::decode(encoded)?;
    Ok(set.file.into_iter().flat_map(|names::File { package, service }| {
        service.into_iter().map(move |names::Service { name }| match package.as_str() {
            "" => name,
            package => format!("{package}.{name}"),
        })
    }))
}

/// The names in a `google.protobuf.FileDescriptorSet`; tags as in descriptor.proto.
mod names {
    #[derive(prost::Message)]
    pub(super) struct Set {
        #[prost(message, repeated, tag = "1")]
        pub(super) file: Vec<File>,
    }

    #[derive(prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(message, repeated, tag = "6")]
        pub(super) service: Vec<Service>,
    }

    #[derive(prost::Message)]
    pub(super) struct Service {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }
}

/// What there is to reflect.
#[derive(Clone)]
struct Described {
    services: Arc<[&'static str]>,
    sets: Arc<[Vec<u8>]>,
}

impl Described {
    fn builder(&self) -> Result<Builder<'static>, Error> {
        let mut builder = Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health")
            .with_service_name(REFLECTION);
        for encoded in self.sets.iter() {
            let set = FileDescriptorSet::decode(encoded.as_slice())?;
            builder = builder.register_file_descriptor_set(set);
        }
        Ok(self.services.iter().fold(builder, |builder, name| builder.with_service_name(*name)))
    }
}

/// What makes a service.
type Make<S> = Box<dyn FnOnce() -> Result<S, Status> + Send>;

/// A service that is made for its first request. Clones share it.
struct Late<S>(Arc<LazyLock<Result<S, Status>, Make<S>>>);

impl<S> Late<S> {
    fn new(make: impl FnOnce() -> Result<S, Error> + Send + 'static) -> Self {
        let unfit =
            |error| Status::internal(format!("the descriptor sets do not fit together: {error}"));
        Self(Arc::new(LazyLock::new(Box::new(move || make().map_err(unfit)))))
    }
}

impl<S> Clone for Late<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: NamedService> NamedService for Late<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Late<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // What tonic generates always is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &**self.0 {
            Ok(service) => service.clone().call(request).boxed(),
            Err(status) => std::future::ready(Ok(status.clone().into_http())).boxed(),
        }
    }
}
