//! Links to other peers: one that this peer opens to each peer it calls, and those that others
//! open to it.
//!
//! A link is opened at the first call and kept while it is used. Everyone who wants the same peer
//! waits for the same attempt, each until its own deadline, and the attempt goes on when they have
//! given up: the next one finds it made. A link that ended is forgotten, so that the next call
//! makes a new one. Nothing here chooses a peer or looks into a call.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt as _, ready};
use link::{Link, LinkSettings};
use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Reason},
    id::PeerId,
    ports::{Caller, Invoke, Reach},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{ByteStream, SwarmHandle};

#[cfg(test)]
mod tests;

/// Links that this peer opens, one to a peer. Beyond it the one unused for longest is closed. Its
/// stream keeps a connection of some 100 KB alive, so this is 50 MB.
const LINKS_MAX: usize = 512;

/// Links that all peers together may have opened to this one.
const INBOUND_MAX: usize = 1_024;

/// Links that one peer may have opened to this one and that take calls. It needs one; more arise
/// when its connection broke without this side's knowing. The newest are the ones it uses, so the
/// oldest is drained for a new one.
const INBOUND_PER_PEER_MAX: usize = 4;

/// Links of one peer that are being drained; while there are so many it gets no new one.
const DRAINING_PER_PEER_MAX: usize = 4;

/// How long an attempt to open a link may take, whoever waits for it.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long a link without calls is kept.
const LINK_IDLE: Duration = Duration::from_mins(2);

/// How long the calls of a link that is drained in favour of a newer one may still take.
const DRAIN_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(INBOUND_PER_PEER_MAX + DRAINING_PER_PEER_MAX < INBOUND_MAX);

/// Opens streams for calls to other peers. The swarm's handle does.
pub trait OpenStream: Send + Sync + 'static {
    /// An ordered stream of bytes.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a stream to `peer`, connecting where needed, by `deadline`. Fails with
    /// [`protocol::failure::Ran::NotStarted`] only.
    fn open_stream(
        &self,
        peer: PeerId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Stream, Failure>> + Send;
}

impl OpenStream for SwarmHandle {
    type Stream = ByteStream;

    fn open_stream(
        &self,
        peer: PeerId,
        deadline: Instant,
    ) -> impl Future<Output = Result<ByteStream, Failure>> + Send {
        Self::open_stream(self, peer, deadline)
    }
}

/// All links of a peer and the tasks that drive them. [`Reach`] gives the link to a peer.
///
/// [`LinkPool::shutdown`] ends them in order; dropping the pool ends them at once.
pub struct LinkPool<O: OpenStream = SwarmHandle>(Arc<Pool<O>>);

struct Pool<O> {
    opener: O,
    state: Mutex<State>,
    tasks: TaskTracker,
    /// Links take no more calls.
    drain: CancellationToken,
    /// Links end.
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    outbound: HashMap<PeerId, Outbound>,
    inbound: HashMap<PeerId, Vec<Inbound>>,
    inbound_count: usize,
    /// Numbers links, so that one that ends is not taken for the one after it.
    next: u64,
}

enum Outbound {
    Opening(watch::Receiver<Option<Opened>>),
    Open { link: Arc<Link>, number: u64, used: Instant },
}

type Opened = Result<Arc<Link>, Failure>;

struct Inbound {
    number: u64,
    drain: CancellationToken,
}

impl<O: OpenStream> Reach<PeerId> for LinkPool<O> {
    fn reach(
        &self,
        peer: PeerId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        let mut opening = match self.0.find(peer) {
            Ok(Found::Open(link)) => {
                let link: Arc<dyn Invoke> = link;
                return ready(Ok(link)).boxed();
            }
            Ok(Found::Opening(opening)) => opening,
            Err(failure) => return ready(Err(failure.at(peer))).boxed(),
        };
        let late = move || {
            let message = "no connection to the peer was made before the caller's deadline";
            Failure::not_started(Reason::Unreachable, message).at(peer)
        };
        async move {
            let opened = timeout_at(deadline.into(), opening.wait_for(Option::is_some)).await;
            match opened {
                Ok(Ok(opened)) => match &*opened {
                    Some(Ok(link)) => Ok(link.clone() as Arc<dyn Invoke>),
                    Some(Err(failure)) => Err(failure.clone()),
                    None => Err(late()),
                },
                Ok(Err(_)) => Err(shutting_down().at(peer)),
                Err(_) => Err(late()),
            }
        }
        .boxed()
    }
}

impl<O: OpenStream> LinkPool<O> {
    /// No links yet; `opener` opens their streams.
    pub fn new(opener: O) -> Self {
        Self(Arc::new(Pool {
            opener,
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Answers with `handler` the calls that `peer` makes on a stream it opened. A stream beyond
    /// what a peer may have is dropped, which the other side sees as a link that was lost before
    /// any call.
    pub fn serve_inbound<S>(&self, peer: PeerId, stream: S, handler: Arc<dyn Invoke>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let pool = &self.0;
        let Some((number, drain)) = pool.admit(peer) else {
            tracing::debug!(%peer, "refused a link: the peer has too many");
            return;
        };
        let settings = LinkSettings { peer: Some(peer), ..LinkSettings::default() };
        let drained = drain.clone().cancelled_owned();
        let served = link::serve_until(stream, settings, Caller::Peer(peer), handler, drained);
        let pool = pool.clone();
        self.0.tasks.spawn(async move {
            let patience = async {
                drain.cancelled().await;
                tokio::time::sleep(DRAIN_MAX).await;
            };
            tokio::select! {
                end = served => tracing::debug!(%peer, %end, "an inbound link ended"),
                () = patience => tracing::debug!(%peer, "an inbound link was not drained in time"),
                () = pool.stop.cancelled() => {}
            }
            pool.dismiss(peer, number);
        });
    }

    /// Takes no more calls, gives those in flight `grace` to end, and ends every link and task.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.drain.cancel();
        self.0.tasks.close();
        if timeout(grace, self.0.tasks.wait()).await.is_err() {
            tracing::debug!("links still had calls when the time for them was over");
        }
        self.0.stop.cancel();
        self.0.tasks.wait().await;
    }
}

impl<O: OpenStream> Drop for LinkPool<O> {
    fn drop(&mut self) {
        self.0.drain.cancel();
        self.0.stop.cancel();
    }
}

enum Found {
    Open(Arc<Link>),
    Opening(watch::Receiver<Option<Opened>>),
}

impl<O: OpenStream> Pool<O> {
    /// The link to `peer`, or the attempt to open it, begun now if there is none.
    fn find(self: &Arc<Self>, peer: PeerId) -> Result<Found, Failure> {
        let mut state = self.state.lock();
        match state.outbound.get_mut(&peer) {
            Some(Outbound::Open { link, used, .. }) if !link.is_closed() => {
                *used = Instant::now();
                return Ok(Found::Open(link.clone()));
            }
            // An attempt whose task is gone will never report.
            Some(Outbound::Opening(opening)) if opening.has_changed().is_ok() => {
                return Ok(Found::Opening(opening.clone()));
            }
            _ => {}
        }
        if self.drain.is_cancelled() {
            return Err(shutting_down());
        }
        state.make_room(peer)?;
        state.next += 1;
        let (report, opening) = watch::channel(None);
        state.outbound.insert(peer, Outbound::Opening(opening.clone()));
        let number = state.next;
        drop(state);
        self.tasks.spawn(self.clone().drive(peer, number, report));
        Ok(Found::Opening(opening))
    }

    /// One outbound link, from the attempt to open it to its end.
    async fn drive(
        self: Arc<Self>,
        peer: PeerId,
        number: u64,
        report: watch::Sender<Option<Opened>>,
    ) {
        let opened = tokio::select! {
            opened = self.opener.open_stream(peer, Instant::now() + OPEN_MAX) => opened,
            () = self.drain.cancelled() => Err(shutting_down()),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(failure) => {
                self.state.lock().outbound.remove(&peer);
                report.send_replace(Some(Err(failure.at(peer))));
                return;
            }
        };
        let settings = LinkSettings {
            peer: Some(peer),
            link_idle: Some(LINK_IDLE),
            ..LinkSettings::default()
        };
        let (link, driver) = link::client(stream, settings);
        let link = Arc::new(link);
        let open = Outbound::Open { link: link.clone(), number, used: Instant::now() };
        self.state.lock().outbound.insert(peer, open);
        report.send_replace(Some(Ok(link.clone())));
        drop(report);
        let drain = async {
            self.drain.cancelled().await;
            link.close();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = driver => tracing::debug!(%peer, %end, "a link ended"),
            () = self.stop.cancelled() => {}
            () = drain => {}
        }
        let mut state = self.state.lock();
        let same =
            |link: &Outbound| matches!(link, Outbound::Open { number: n, .. } if *n == number);
        if state.outbound.get(&peer).is_some_and(same) {
            state.outbound.remove(&peer);
        }
    }

    /// A place for one more link of `peer`, if there is one.
    fn admit(&self, peer: PeerId) -> Option<(u64, CancellationToken)> {
        let mut state = self.state.lock();
        let links = state.inbound.get(&peer).map_or(&[][..], Vec::as_slice);
        let taking: Vec<_> = links.iter().filter(|link| !link.drain.is_cancelled()).collect();
        let draining = links.len() - taking.len();
        let full = state.inbound_count >= INBOUND_MAX || self.drain.is_cancelled();
        if full || draining >= DRAINING_PER_PEER_MAX {
            return None;
        }
        if taking.len() >= INBOUND_PER_PEER_MAX
            && let Some(oldest) = taking.first()
        {
            oldest.drain.cancel();
        }
        state.next += 1;
        state.inbound_count += 1;
        let (number, drain) = (state.next, self.drain.child_token());
        state.inbound.entry(peer).or_default().push(Inbound { number, drain: drain.clone() });
        Some((number, drain))
    }

    fn dismiss(&self, peer: PeerId, number: u64) {
        let mut state = self.state.lock();
        let Some(links) = state.inbound.get_mut(&peer) else { return };
        let before = links.len();
        links.retain(|link| link.number != number);
        let gone = before - links.len();
        if links.is_empty() {
            state.inbound.remove(&peer);
        }
        state.inbound_count -= gone;
    }
}

impl State {
    /// Makes sure that a link to `peer` can be kept: closes the one unused for longest if need be.
    fn make_room(&mut self, peer: PeerId) -> Result<(), Failure> {
        if self.outbound.len() < LINKS_MAX || self.outbound.contains_key(&peer) {
            return Ok(());
        }
        let unused = self.outbound.iter().filter_map(|(peer, outbound)| match outbound {
            Outbound::Open { link, used, .. } if link.calls_in_flight() == 0 => {
                Some((*used, *peer))
            }
            _ => None,
        });
        let Some((_, oldest)) = unused.min() else {
            let message = format!("all {LINKS_MAX} links to peers have calls in flight");
            return Err(Failure::not_started(Reason::Busy, message));
        };
        if let Some(Outbound::Open { link, .. }) = self.outbound.remove(&oldest) {
            link.close();
        }
        Ok(())
    }
}

fn shutting_down() -> Failure {
    Failure::not_started(Reason::Unreachable, "this peer is shutting down")
}
