//! Links to other peers: one that this peer opens to each peer it calls, and those that others
//! open to it.
//!
//! A link is opened at the first call and kept while it is used. Everyone who wants the same peer
//! waits for the same attempt, each until its own deadline, and the attempt goes on when they have
//! given up: the next one finds it made. A link that ended is forgotten, so that the next call
//! makes a new one. A link through a third peer makes way for one on a direct connection as soon as
//! there is one: calls from then on go there, those in flight end where they are. Beside a link
//! there may be a lane, a second stream to the same peer: which link it belongs to is told by its
//! first bytes, and believed only of the peer that opened the link. Nothing here chooses a peer or
//! looks into a call.

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
    ports::{Invoke, Reach},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::inbound::CALLS_PER_PEER_MAX;
use self::inbound::Inbound;
use crate::{ByteStream, SwarmHandle};

mod inbound;
#[cfg(test)]
mod tests;

/// Links that this peer opens, one to a peer. Beyond it the one unused for longest is closed. Its
/// stream keeps a connection of some 100 KB alive, so this is 50 MB.
const LINKS_MAX: usize = 512;

/// How long an attempt to open a link may take, whoever waits for it.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long a link without calls is kept.
const LINK_IDLE: Duration = Duration::from_mins(2);

/// How often a relayed link looks for a direct connection.
const DIRECT_LOOK: Duration = Duration::from_millis(250);

/// How long it rests after one that gave no stream.
const DIRECT_REST: Duration = Duration::from_secs(5);

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

    /// Whether `stream` goes through a third peer.
    fn is_relayed(stream: &Self::Stream) -> bool;

    /// Whether a stream to `peer` that is opened now need not.
    fn has_direct(&self, peer: PeerId) -> bool;
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

    fn is_relayed(stream: &ByteStream) -> bool {
        stream.is_relayed()
    }

    fn has_direct(&self, peer: PeerId) -> bool {
        Self::has_direct(self, peer)
    }
}

/// All links of a peer and the tasks that drive them. [`Reach`] gives the link to a peer.
///
/// [`LinkPool::shutdown`] ends them in order; dropping the pool ends them at once.
pub struct LinkPool<O: OpenStream = SwarmHandle>(Arc<Pool<O>>);

struct Pool<O: OpenStream> {
    opener: O,
    state: Mutex<State<O::Stream>>,
    tasks: TaskTracker,
    /// Links take no more calls.
    drain: CancellationToken,
    /// Links end.
    stop: CancellationToken,
}

struct State<S> {
    outbound: HashMap<PeerId, Outbound>,
    inbound: HashMap<PeerId, Vec<Inbound<S>>>,
    inbound_count: usize,
    /// Streams that have not said yet what they are.
    arriving: HashMap<PeerId, usize>,
    /// Numbers links, so that one that ends is not taken for the one after it.
    next: u64,
}

enum Outbound {
    Opening(watch::Receiver<Option<Opened>>),
    Open { link: Arc<Link>, number: u64, used: Instant },
}

type Opened = Result<Arc<Link>, Failure>;

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
            state: Mutex::new(State::default()),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Answers with `handler` the calls that `peer` makes on a stream it opened, or takes the
    /// stream as the lane of such a link. A stream beyond what a peer may have is dropped, which
    /// the other side sees as a link that was lost before any call.
    pub fn serve_inbound(&self, peer: PeerId, stream: O::Stream, handler: Arc<dyn Invoke>) {
        self.0.take(peer, stream, handler);
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
        self.carry(peer, number, stream, Some(report)).await;
    }

    /// One outbound link on its stream, to its end.
    fn carry(
        self: Arc<Self>,
        peer: PeerId,
        number: u64,
        stream: O::Stream,
        report: Option<watch::Sender<Option<Opened>>>,
    ) -> BoxFuture<'static, ()> {
        let relayed = O::is_relayed(&stream);
        let settings = LinkSettings {
            peer: Some(peer),
            link_idle: Some(LINK_IDLE),
            ..LinkSettings::default()
        };
        let pool = self.clone();
        let lane = Box::new(move || {
            let until = Instant::now() + OPEN_MAX;
            async move { pool.opener.open_stream(peer, until).await.ok() }.boxed()
        });
        let (link, driver) = link::client_with_lane(stream, settings, lane);
        let link = Arc::new(link);
        let open = Outbound::Open { link: link.clone(), number, used: Instant::now() };
        self.state.lock().outbound.insert(peer, open);
        if let Some(report) = report {
            report.send_replace(Some(Ok(link.clone())));
        }
        async move {
            let closing = async {
                tokio::select! {
                    () = self.drain.cancelled() => {}
                    stream = self.direct(peer), if relayed => self.replace(peer, number, stream),
                }
                link.close();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                end = driver => tracing::debug!(%peer, %end, "a link ended"),
                () = self.stop.cancelled() => {}
                () = closing => {}
            }
            let mut state = self.state.lock();
            if state.has_link(peer, number) {
                state.outbound.remove(&peer);
            }
        }
        .boxed()
    }

    /// A stream to `peer` on a direct connection, once there is one.
    async fn direct(&self, peer: PeerId) -> O::Stream {
        loop {
            tokio::time::sleep(DIRECT_LOOK).await;
            if !self.opener.has_direct(peer) {
                continue;
            }
            match self.opener.open_stream(peer, Instant::now() + OPEN_MAX).await {
                Ok(stream) if !O::is_relayed(&stream) => return stream,
                Ok(_) | Err(_) => tokio::time::sleep(DIRECT_REST).await,
            }
        }
    }

    /// Puts a link on `stream` in the place of the one of that number, if it is still there.
    fn replace(self: &Arc<Self>, peer: PeerId, number: u64, stream: O::Stream) {
        let next = {
            let mut state = self.state.lock();
            if !state.has_link(peer, number) || self.drain.is_cancelled() {
                return;
            }
            state.next += 1;
            state.next
        };
        tracing::debug!(%peer, "calls go over a direct connection from now on");
        self.tasks.spawn(self.clone().carry(peer, next, stream, None));
    }
}

impl<S> Default for State<S> {
    fn default() -> Self {
        Self {
            outbound: HashMap::new(),
            inbound: HashMap::new(),
            inbound_count: 0,
            arriving: HashMap::new(),
            next: 0,
        }
    }
}

impl<S> State<S> {
    /// Whether the link to `peer` that calls use is the one of that number.
    fn has_link(&self, peer: PeerId, number: u64) -> bool {
        let link = self.outbound.get(&peer);
        matches!(link, Some(Outbound::Open { number: n, .. }) if *n == number)
    }

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
