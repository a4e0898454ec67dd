//! What travels with a call without its author's doing: the trace it belongs to, its tenant, its
//! baggage, and until when its caller waits.
//!
//! A service's methods, and the streams that they answer with, run in the context of their call;
//! what they call through [`mesh()`](crate::mesh()) or [`mesh_link`](crate::mesh_link) takes it
//! along. What an author says for a call himself stands, but no call outlives its caller's
//! deadline.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Instant,
};

use futures::{FutureExt as _, future::Either, future::Map};
use http::{HeaderMap, HeaderName};
use protocol::timeout::{self, GRPC_TIMEOUT};
use tokio::task::futures::TaskLocalFuture;
use tonic::body::Body;
use tower::Service;

/// Names the tenant that a call is made for.
pub const TENANT: HeaderName = HeaderName::from_static("bh-tenant");

/// Metadata that travels. Sources: W3C *Trace Context* and *Baggage*.
const TRAVELS: [HeaderName; 4] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    TENANT,
];

tokio::task_local! {
    static CURRENT: Arc<CallContext>;
}

/// The context of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallContext {
    metadata: HeaderMap,
    deadline: Option<Instant>,
}

impl CallContext {
    /// Of the call that is served here; the empty one outside of any, and in tasks that were
    /// spawned without [`scope`](Self::scope).
    pub fn current() -> Self {
        CURRENT.try_with(|context| CallContext::clone(context)).unwrap_or_default()
    }

    /// Runs `work`, such as a task about to be spawned, in this context.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::new(self), work)
    }

    /// When the caller gives up.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The tenant that the call is made for, where that is text.
    pub fn tenant(&self) -> Option<&str> {
        self.metadata.get(TENANT)?.to_str().ok()
    }

    /// The trace that the call belongs to, as in W3C *Trace Context*, where that is text.
    pub fn traceparent(&self) -> Option<&str> {
        self.metadata.get(&TRAVELS[0])?.to_str().ok()
    }

    /// What travels of a call with these `headers`; `None` where nothing does.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut context = Self::default();
        for name in TRAVELS {
            for value in headers.get_all(&name) {
                context.metadata.append(name.clone(), value.clone());
            }
        }
        let left = headers.get(GRPC_TIMEOUT).and_then(|left| timeout::read(left.as_bytes()));
        context.deadline = left.and_then(|left| Instant::now().checked_add(left));
        (context != Self::default()).then_some(context)
    }

    fn add_to(&self, headers: &mut HeaderMap, now: Instant) {
        for name in self.metadata.keys() {
            if headers.contains_key(name) {
                continue;
            }
            for value in self.metadata.get_all(name) {
                // Taken from a map that has room for as much.
                let _ = headers.try_append(name.clone(), value.clone());
            }
        }
        let Some(deadline) = self.deadline else { return };
        let left = deadline.saturating_duration_since(now);
        let own = headers.get(GRPC_TIMEOUT).and_then(|own| timeout::read(own.as_bytes()));
        if own.is_none_or(|own| left < own) {
            headers.insert(GRPC_TIMEOUT, timeout::write(left));
        }
    }
}

/// Adds the context of the call that is served here to one that is about to be made.
pub(crate) fn take_along(headers: &mut HeaderMap) {
    let _ = CURRENT.try_with(|context| context.add_to(headers, Instant::now()));
}

/// A service whose calls run in their contexts.
#[derive(Debug, Clone)]
pub(crate) struct InContext<S>(pub(crate) S);

type Answered = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for InContext<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<
        S::Future,
        TaskLocalFuture<Arc<CallContext>, Map<S::Future, fn(Answered) -> Answered>>,
    >;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match CallContext::of(request.headers()) {
            None => Either::Left(self.0.call(request)),
            Some(context) => {
                let context = Arc::new(context);
                let call = || self.0.call(request);
                let answering = CURRENT.sync_scope(Arc::clone(&context), call);
                let keep: fn(Answered) -> Answered = stay;
                Either::Right(CURRENT.scope(context, answering.map(keep)))
            }
        }
    }
}

/// Keeps the stream of an answer in the context in which the answer was given.
fn stay(answered: Answered) -> Answered {
    let context = CURRENT.with(Arc::clone);
    answered.map(|response| response.map(|body| Body::new(Kept { context, body })))
}

struct Kept {
    context: Arc<CallContext>,
    body: Body,
}

impl http_body::Body for Kept {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, tonic::Status>>> {
        let Self { context, body } = &mut *self;
        CURRENT.sync_scope(Arc::clone(context), || Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = of.iter().map(|(name, value)| {
            (HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn what_the_author_says_stands_and_the_rest_is_added() {
        let came = headers(&[("traceparent", "00-a"), ("bh-tenant", "blue"), ("x-own", "1")]);
        let context = CallContext::of(&came).expect("something travels");
        assert_eq!((context.tenant(), context.traceparent()), (Some("blue"), Some("00-a")));
        let mut goes = headers(&[("bh-tenant", "red")]);
        context.add_to(&mut goes, Instant::now());
        assert_eq!(goes, headers(&[("bh-tenant", "red"), ("traceparent", "00-a")]));
    }

    #[test]
    fn a_call_waits_no_longer_than_its_caller() {
        let now = Instant::now();
        let deadline = Some(now + Duration::from_secs(2));
        let context = CallContext { deadline, ..CallContext::default() };
        for (own, goes) in [(None, 2), (Some(1), 1), (Some(5), 2)] {
            let mut headers = HeaderMap::new();
            if let Some(seconds) = own {
                headers.insert(GRPC_TIMEOUT, timeout::write(Duration::from_secs(seconds)));
            }
            context.add_to(&mut headers, now);
            let told = timeout::read(headers[GRPC_TIMEOUT].as_bytes());
            assert_eq!(told, Some(Duration::from_secs(goes)), "own {own:?}");
        }
    }

    #[tokio::test]
    async fn methods_and_their_streams_run_in_the_context_of_their_call() {
        let telling = tower::service_fn(|_: http::Request<Body>| async {
            let head = CallContext::current();
            let stream = futures::stream::once(async move {
                let both = [head, CallContext::current()];
                let told = both.map(|one| one.tenant().unwrap_or("none").to_owned()).join(" ");
                Ok::<_, tonic::Status>(http_body::Frame::data(bytes::Bytes::from(told)))
            });
            let body = Body::new(http_body_util::StreamBody::new(stream));
            Ok::<_, Infallible>(http::Response::new(body))
        });
        let mut service = InContext(telling);
        for (came, told) in
            [(headers(&[("bh-tenant", "blue")]), "blue blue"), (HeaderMap::new(), "none none")]
        {
            let mut request = http::Request::new(Body::empty());
            *request.headers_mut() = came;
            let Ok(response) = service.call(request).await;
            let body = response.into_body().collect().await.expect("told").to_bytes();
            assert_eq!(body, told);
        }
    }
}
