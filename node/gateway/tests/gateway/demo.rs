//! `demo.v1.Echo`: a gRPC service written by hand on tonic, whose messages are single strings.

// Handlers are async functions, whether they wait or not.
#![allow(clippy::unused_async)]

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, future::BoxFuture, stream};
use http::{Request as HttpRequest, Response as HttpResponse};
use tokio::sync::Notify;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    metadata::{BinaryMetadataValue, MetadataMap, MetadataValue},
    server::Grpc,
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// The service, and what happened in it.
#[derive(Clone, Default)]
pub struct Demo {
    /// Handlers of `Hang` that are waiting.
    pub hanging: Arc<AtomicUsize>,
    /// Told whenever `hanging` changed.
    pub changed: Arc<Notify>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Waits while it lives.
struct Hanging(Demo);

impl Hanging {
    fn new(demo: &Demo) -> Self {
        demo.hanging.fetch_add(1, SeqCst);
        demo.changed.notify_one();
        Self(demo.clone())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, SeqCst);
        self.0.changed.notify_one();
    }
}

impl Demo {
    /// Waits until `count` handlers of `Hang` are waiting.
    pub async fn hanging_are(&self, count: usize) {
        while self.hanging.load(SeqCst) != count {
            self.changed.notified().await;
        }
    }
}

/// Answers with the caller's metadata, once as it came and once in the trailers or the error.
fn reflect_metadata(from: &MetadataMap, into: &mut MetadataMap) {
    for name in ["x-text", "x-twice"] {
        for value in from.get_all(name) {
            into.append(name, value.clone());
        }
    }
    if let Some(value) = from.get_bin("x-bytes-bin") {
        into.insert_bin("x-bytes-bin", value.clone());
    }
}

impl Demo {
    async fn unary(request: Request<String>) -> Result<Response<String>, Status> {
        let (metadata, _, message) = request.into_parts();
        let mut response = Response::new(format!("hello {message}"));
        reflect_metadata(&metadata, response.metadata_mut());
        // Claims that only the mesh may make.
        response.metadata_mut().insert("bh-ran", MetadataValue::from_static("not-started"));
        Ok(response)
    }

    async fn refuse(request: Request<String>) -> Result<Response<String>, Status> {
        let mut metadata = MetadataMap::new();
        reflect_metadata(request.metadata(), &mut metadata);
        let details = b"\x08\x05\x12\x03any".as_slice().into();
        let message = "no: 100 % of ünïcode";
        Err(Status::with_details_and_metadata(Code::FailedPrecondition, message, details, metadata))
    }

    async fn hang(self, _: Request<String>) -> Result<Response<String>, Status> {
        let _hanging = Hanging::new(&self);
        std::future::pending().await
    }

    /// Says each of the request's words, and fails at `stop`.
    async fn words(request: Request<String>) -> Result<Response<Messages>, Status> {
        let words: Vec<_> = request.into_inner().split(' ').map(str::to_owned).collect();
        let say = |word: String| match &*word {
            "stop" => Err(Status::aborted("stopped")),
            _ => Ok(word),
        };
        Ok(Response::new(Box::pin(stream::iter(words).map(say))))
    }

    async fn join(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
        let mut words = Vec::new();
        let mut messages = request.into_inner();
        while let Some(word) = messages.message().await? {
            words.push(word);
        }
        Ok(Response::new(words.join(" ")))
    }

    /// Answers each message as it comes.
    async fn chat(request: Request<Streaming<String>>) -> Result<Response<Messages>, Status> {
        let answers = request.into_inner().map(|word| Ok(format!("{}?", word?)));
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Service<HttpRequest<Body>> for Demo {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let demo = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<String, String>::default();
            let mut grpc =
                Grpc::new(codec).apply_max_message_size_config(Some(32 << 20), Some(32 << 20));
            Ok(match request.uri().path() {
                "/demo.v1.Echo/Unary" => grpc.unary(service_fn(Demo::unary), request).await,
                "/demo.v1.Echo/Refuse" => grpc.unary(service_fn(Demo::refuse), request).await,
                "/demo.v1.Echo/Hang" => {
                    grpc.unary(service_fn(move |asked| demo.clone().hang(asked)), request).await
                }
                "/demo.v1.Echo/Words" => {
                    grpc.server_streaming(service_fn(Demo::words), request).await
                }
                "/demo.v1.Echo/Join" => {
                    grpc.client_streaming(service_fn(Demo::join), request).await
                }
                "/demo.v1.Echo/Chat" => grpc.streaming(service_fn(Demo::chat), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// `x-bytes-bin`'s value in these tests: not text in any encoding.
pub fn bytes() -> BinaryMetadataValue {
    MetadataValue::from_bytes(&[0, 159, 146, 150, 255])
}
