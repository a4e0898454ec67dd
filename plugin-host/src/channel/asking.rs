//! A channel as the gRPC library wants it, for the host's own questions to a plugin.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use protocol::{
    failure::{Failure, Reason},
    ports::{Body, Call, CallHead, Caller, Locality},
    service::InvalidMethodPath,
};

use super::{Channel, Inner};

/// A channel as the gRPC library wants it, for the host's own questions to a plugin.
#[derive(Clone)]
pub(crate) struct Asking {
    channel: Arc<Channel>,
    deadline: Instant,
}

impl Asking {
    pub(crate) fn until(channel: &Arc<Channel>, deadline: Instant) -> Self {
        Self { channel: Arc::clone(channel), deadline }
    }
}

/// One question on its way, until its answer begins.
struct Question(Arc<Inner>);

impl Question {
    fn begin(channel: &Channel) -> Self {
        channel.inner.asked.fetch_add(1, Ordering::AcqRel);
        channel.inner.asking.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&channel.inner))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::AcqRel);
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Asking {
    type Response = http::Response<Body>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let channel = Arc::clone(&self.channel);
        let deadline = self.deadline;
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path().parse();
            let path = path.map_err(|error: InvalidMethodPath| {
                Failure::failed(Reason::Malformed, error.to_string())
            })?;
            let body = body
                .map_err(|status| Failure::failed(Reason::Internal, status.message().to_owned()));
            let head = CallHead {
                path,
                metadata: parts.headers,
                deadline: Some(deadline),
                locality: Locality::Local,
                caller: Caller::Operator,
            };
            let _question = Question::begin(&channel);
            let answer = channel.invoke_carried(Call { head, body: Body::new(body) });
            let reply = answer.await?;
            let mut response = http::Response::new(reply.body);
            *response.headers_mut() = reply.metadata;
            Ok(response)
        })
    }
}
