//! Calls in frames, to a plugin whose socket takes them.
//!
//! A plugin says so with a header in its answer to the host's question after its health; nobody
//! else is ever sent a frame. Where its socket does not answer the link's preface after all (a
//! proxy may have passed the header on), the run is served in HTTP/2 to its end.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use link::{Link, LinkSettings, Reconnecting};
use protocol::{
    failure::{Failure, Ran, Reason},
    frame::ANNOUNCEMENT,
    ports::{Body, Call, Invoke, Reply},
};
use tokio::time::timeout_at;

use super::{CONNECT_PATIENCE, Guard, Inner, Tasks, remove_hop_by_hop};

/// The plugin's link, and whether it may have one.
#[derive(Default)]
pub(super) struct Framed {
    announced: AtomicBool,
    /// It was tried, and the socket takes none, whatever its answers say.
    refused: AtomicBool,
    link: Reconnecting,
}

/// Why there is no link.
enum NoLink {
    /// Nobody takes connections.
    Unreachable(String),
    /// Somebody does, who speaks no frames.
    NotSpoken,
}

impl Framed {
    /// Notes what an HTTP/2 answer says of the socket, and takes it out.
    pub(super) fn note(&self, answer: &mut HeaderMap) {
        let (name, value) = ANNOUNCEMENT;
        if answer.remove(name).is_some_and(|told| told == value) {
            self.announced.store(true, Ordering::Release);
        }
    }

    pub(super) fn close(&self) {
        self.link.close();
    }
}

impl Inner {
    /// The plugin's link; `None` where it is to be called in HTTP/2.
    pub(super) async fn framed(&self, deadline: Option<Instant>) -> Result<Option<Link>, Failure> {
        let framed = &self.framed;
        if !framed.announced.load(Ordering::Acquire) || framed.refused.load(Ordering::Acquire) {
            return Ok(None);
        }
        let patience = Instant::now() + CONNECT_PATIENCE;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        match timeout_at(until.into(), self.framed.link.get(self.open_link())).await {
            Ok(Ok(link)) => Ok(Some(link)),
            Ok(Err(NoLink::NotSpoken)) => {
                tracing::warn!(plugin = %self.plugin, "its socket takes no frames after all");
                self.framed.refused.store(true, Ordering::Release);
                Ok(None)
            }
            Ok(Err(NoLink::Unreachable(why))) => {
                let message = format!("plugin {} cannot be reached: {why}", self.plugin);
                Err(Failure::not_started(Reason::Unreachable, message))
            }
            Err(_) => Err(self.does_not_accept(deadline)),
        }
    }

    /// The link, where it is there already: the way of nearly all calls.
    pub(super) fn framed_now(&self) -> Option<Link> {
        self.framed.link.current()
    }

    async fn open_link(&self) -> Result<Link, NoLink> {
        if self.closing.is_cancelled() {
            return Err(NoLink::Unreachable("it has ended".into()));
        }
        let stream = self.address.connect().await;
        let stream = stream.map_err(|error| NoLink::Unreachable(error.to_string()))?;
        // Also where it closed the connection: so does whoever is sent what it does not speak, and
        // whoever has ended is found so by the next connection.
        let made = link::connect(stream, LinkSettings::within_machine()).await;
        let (link, driver) = made.map_err(|_| NoLink::NotSpoken)?;
        let tasks = Tasks::new(&self.tasks, &self.closing);
        let plugin = self.plugin.clone();
        hyper::rt::Executor::execute(&tasks, async move {
            let end = driver.await;
            tracing::debug!(%plugin, %end, "a link ended");
        });
        Ok(link)
    }
}

/// Sends `call` over `link`. `guard` is held until its answer has ended.
pub(super) fn invoke(
    link: &Link,
    mut call: Call,
    guard: Guard,
) -> BoxFuture<'static, Result<Reply, Failure>> {
    remove_hop_by_hop(&mut call.head.metadata);
    let answering = link.invoke(call);
    Box::pin(async move {
        let plugin = &guard.inner.plugin;
        let mut reply = answering.await.map_err(|failure| located(failure, plugin))?;
        remove_hop_by_hop(&mut reply.metadata);
        let told = reply.metadata.contains_key("grpc-status");
        Ok(Reply {
            metadata: reply.metadata,
            body: Body::new(Answer { body: reply.body, told, guard }),
        })
    })
}

/// A link knows only that its other side is gone; here that is the plugin.
fn located(failure: Failure, plugin: &str) -> Failure {
    if failure.reason != Reason::PeerLost {
        return failure;
    }
    let reason =
        if failure.ran == Ran::NotStarted { Reason::Unreachable } else { Reason::PluginLost };
    let message = format!("plugin {plugin} ended, or closed its connection: {}", failure.message);
    Failure::new(failure.ran, reason, message)
}

/// An answer that ends with a status.
struct Answer {
    body: Body,
    told: bool,
    guard: Guard,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        Pin::new(&mut this.body).poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) => {
                this.told |=
                    frame.trailers_ref().is_some_and(|map| map.contains_key("grpc-status"));
                Some(Ok(frame))
            }
            Some(Err(failure)) => Some(Err(located(failure, &this.guard.inner.plugin))),
            None if this.told => None,
            None => {
                this.told = true;
                let plugin = &this.guard.inner.plugin;
                let message = format!("plugin {plugin} answered without a status");
                Some(Err(Failure::failed(Reason::Malformed, message)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.told && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
