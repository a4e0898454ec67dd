//! Calls that come in frames, from programs with an SDK: the same services, bounds and words as
//! over HTTP/2.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Method, Request, Response, Version};
use http_body_util::BodyExt as _;
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, Caller, Invoke, Reply},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{
    grpc::{Grpc, Outgoing},
    rescue,
    serve::Stream,
    translate,
};

/// What serves the links of one listener, and who makes the calls on them.
#[derive(Clone)]
pub(crate) struct Links {
    handler: Arc<dyn Invoke>,
    caller: Caller,
}

impl Links {
    pub(crate) fn new(grpc: Grpc, caller: Caller) -> Self {
        Self { handler: Arc::new(Framed(grpc)), caller }
    }
}

/// Runs one link to its end: finishes what it has once `drain` is cancelled, ends with `cut`.
pub(crate) async fn drive(
    stream: Stream,
    links: Links,
    drain: CancellationToken,
    cut: CancellationToken,
) {
    let Links { handler, caller } = links;
    let settings = stream.settings();
    let drain = drain.cancelled_owned();
    tokio::select! {
        biased;
        () = cut.cancelled() => {}
        end = link::serve_until(stream, settings, caller, handler, drain) => {
            tracing::debug!(%end, "a link ended");
        }
    }
}

struct Framed(Grpc);

impl Invoke for Framed {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let grpc = self.0.clone();
        Box::pin(async move {
            let (parts, body) = answer(grpc, call).await.into_parts();
            let body = body.map_err(|error| {
                Failure::unknown(Reason::Internal, format!("the answer broke off: {error}"))
            });
            Ok(Reply { metadata: parts.headers, body: Body::new(body) })
        })
    }
}

async fn answer(grpc: Grpc, call: Call) -> Response<Outgoing> {
    let permit = match grpc.permit() {
        Ok(permit) => permit,
        Err(failure) => return rescue::answer(&failure).map(Outgoing::Own),
    };
    if let Some(routes) = grpc.own_routes(call.head.path.as_str()) {
        let Ok(response) = routes.oneshot(request(call)).await;
        return response.map(Outgoing::Own);
    }
    match translate::wishes(call.head) {
        Ok(head) => grpc.carry(head, call.body, permit).await,
        Err(refusal) => rescue::refuse(&refusal).map(Outgoing::Own),
    }
}

/// A call for those who speak HTTP.
fn request(call: Call) -> Request<Body> {
    let mut request = Request::new(call.body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    if let Ok(uri) = call.head.path.as_str().parse() {
        *request.uri_mut() = uri;
    }
    *request.headers_mut() = call.head.metadata;
    request
}
