//! Calls that come in frames, from programs with an SDK: the same services, bounds and words as
//! over HTTP/2.

use std::sync::Arc;

use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, Caller, Invoke, Reply},
};
use tokio_util::sync::CancellationToken;

use crate::{grpc::Grpc, wire::Stream};

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
            let (parts, body) = grpc.answer_call(call).await.into_parts();
            let body = body.map_err(|error| {
                Failure::unknown(Reason::Internal, format!("the answer broke off: {error}"))
            });
            Ok(Reply { metadata: parts.headers, body: Body::new(body) })
        })
    }
}
