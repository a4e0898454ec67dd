//! The handle: how the rest of the peer tells the swarm what to do.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use multiaddr::Multiaddr;
use protocol::{
    failure::{Failure, Reason},
    id::PeerId,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout_at,
};

use super::{
    ByteStream, LOOKUP_GRACE, MessageToken, PeerView, Verdict,
    streams::{OpenError, Ports},
};

/// Times that opening a stream may find its connection gone and ask for another.
const REOPENS_MAX: usize = 3;

/// Tells the swarm what to do. Clones are cheap and speak to the same swarm.
///
/// Every method gives up at its deadline. When the swarm has ended they fail at once.
#[derive(Clone)]
pub struct SwarmHandle {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) local: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) verdicts: mpsc::Sender<(MessageToken, Verdict)>,
    pub(super) ports: Arc<Ports>,
    pub(super) view: Arc<ArcSwap<PeerView>>,
    pub(super) lookups: Arc<Semaphore>,
}

/// What the swarm's task is told.
pub(super) enum Command {
    Provide([u8; 32]),
    StopProviding([u8; 32]),
    /// Providers are sent as they are found; the end of the channel is the end of the lookup.
    FindProviders([u8; 32], mpsc::Sender<Vec<libp2p::PeerId>>),
    Publish(Vec<u8>, oneshot::Sender<bool>),
    Connect(libp2p::PeerId, oneshot::Sender<Result<(), String>>),
    Dial(Multiaddr, oneshot::Sender<Result<(), String>>),
    Request(libp2p::PeerId, Vec<u8>, oneshot::Sender<Result<Vec<u8>, Failure>>),
    Penalise(libp2p::PeerId),
    Shutdown,
}

impl SwarmHandle {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// This peer.
    pub fn local_id(&self) -> PeerId {
        self.shared.local
    }

    /// The peer and its neighbours as they are now.
    pub fn view(&self) -> Arc<PeerView> {
        self.shared.view.load_full()
    }

    /// Announces this peer in the DHT under `key`, now and again until told to stop.
    pub async fn provide(&self, key: [u8; 32]) {
        self.tell(Command::Provide(key)).await;
    }

    /// Stops announcing this peer under `key`. Records that others hold expire by themselves.
    pub async fn stop_providing(&self, key: [u8; 32]) {
        self.tell(Command::StopProviding(key)).await;
    }

    /// The peers announced under `key`, as far as they are found by `deadline`; empty when there
    /// are none. Returns soon after the first was found. This peer is never among them.
    pub async fn find_providers(&self, key: [u8; 32], deadline: Instant) -> Vec<PeerId> {
        let lookup = async {
            let _permit = self.shared.lookups.acquire().await.ok()?;
            let (sender, found) = mpsc::channel(32);
            self.shared.commands.send(Command::FindProviders(key, sender)).await.ok()?;
            Some(collect(found, deadline).await)
        };
        let found = timeout_at(deadline.into(), lookup).await.ok().flatten().unwrap_or_default();
        found.into_iter().map(PeerId::from).filter(|peer| *peer != self.shared.local).collect()
    }

    /// Gossips `data` to the network; false when nobody is there to take it, or it is larger than
    /// gossip carries.
    pub async fn publish(&self, data: Vec<u8>) -> bool {
        self.ask(|reply| Command::Publish(data, reply)).await.unwrap_or(false)
    }

    /// Says what becomes of a gossip message. When verdicts pile up it is dropped, which ignores
    /// the message.
    pub fn report(&self, token: MessageToken, verdict: Verdict) {
        if self.shared.verdicts.try_send((token, verdict)).is_err() {
            tracing::debug!("too many verdicts wait; one was dropped");
        }
    }

    /// Sends `peer` away for a minute: it sent what no honest peer sends.
    pub async fn penalise(&self, peer: PeerId) {
        self.tell(Command::Penalise(peer.inner())).await;
    }

    /// Asks `peer` over `/blackhole/registry/1`, connecting first where needed.
    pub async fn request(
        &self,
        peer: PeerId,
        data: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let late = || Failure::unknown(Reason::Unreachable, "the peer did not answer in time");
        let exchange = async {
            if self.shared.ports.of(&peer.inner()).is_empty() {
                self.connect(peer, deadline).await?;
            }
            self.ask(|reply| Command::Request(peer.inner(), data, reply))
                .await
                .unwrap_or_else(|| Err(ended()))
        };
        let outcome = timeout_at(deadline.into(), exchange).await;
        outcome.unwrap_or_else(|_| Err(late())).map_err(|failure| failure.at(peer))
    }

    /// Opens a stream for calls to `peer`, connecting first where needed: over a direct connection
    /// if there is one, over a relayed one otherwise. The other side has taken the stream when
    /// this returns. Fails with [`protocol::failure::Ran::NotStarted`] only.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        deadline: Instant,
    ) -> Result<ByteStream, Failure> {
        let mut last = None;
        for _ in 0..REOPENS_MAX {
            match self.open_on_any(peer, deadline).await {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(OpenError::Lost(error))) => last = Some(OpenError::Lost(error)),
                Some(Err(error)) => return Err(refused(&error).at(peer)),
                None => {}
            }
            self.connect(peer, deadline).await.map_err(|failure| failure.at(peer))?;
        }
        let last = last.unwrap_or(OpenError::Late);
        Err(refused(&last).at(peer))
    }

    /// Whether there is a connection to `peer` that no third peer carries.
    pub fn has_direct(&self, peer: PeerId) -> bool {
        self.shared.ports.has_direct(&peer.inner())
    }

    /// Connects to `address`; an error says in one sentence why it could not be.
    pub async fn dial(&self, address: Multiaddr) -> Result<(), String> {
        let answer = self.ask(|reply| Command::Dial(address, reply)).await;
        answer.unwrap_or_else(|| Err(ENDED.into()))
    }

    /// Tells the swarm to close its connections and end.
    pub(crate) async fn shut_down(&self) {
        self.tell(Command::Shutdown).await;
    }

    /// Tries the connections to `peer`, best first, each with a fair part of the time that is
    /// left. `None` when there is no connection.
    async fn open_on_any(
        &self,
        peer: PeerId,
        deadline: Instant,
    ) -> Option<Result<ByteStream, OpenError>> {
        let ports = self.shared.ports.of(&peer.inner());
        let mut last = None;
        for (tried, port) in ports.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let part = left / (ports.len() - tried) as u32;
            match port.open(Instant::now() + part).await {
                Err(error @ (OpenError::Lost(_) | OpenError::Late)) => last = Some(Err(error)),
                outcome => return Some(outcome),
            }
        }
        last
    }

    async fn connect(&self, peer: PeerId, deadline: Instant) -> Result<(), Failure> {
        let answer = self.ask(|reply| Command::Connect(peer.inner(), reply));
        let error = match timeout_at(deadline.into(), answer).await {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(error))) => error,
            Ok(None) => return Err(ended()),
            Err(_) => "it did not answer in time".to_owned(),
        };
        Err(Failure::not_started(
            Reason::Unreachable,
            format!("the peer could not be reached: {error}"),
        ))
    }

    async fn tell(&self, command: Command) {
        // An error means that the swarm has ended, and with it what was asked for.
        let _ = self.shared.commands.send(command).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl std::fmt::Debug for SwarmHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SwarmHandle({})", self.shared.local)
    }
}

const ENDED: &str = "this peer is shutting down";

fn ended() -> Failure {
    Failure::not_started(Reason::Unreachable, ENDED)
}

fn refused(error: &OpenError) -> Failure {
    let reason = match error {
        OpenError::Busy => Reason::Busy,
        OpenError::Refused => Reason::Refused,
        OpenError::Unsupported | OpenError::Lost(_) | OpenError::Late => Reason::Unreachable,
    };
    Failure::not_started(reason, format!("no stream to the peer could be opened: {error}"))
}

/// Gathers what a lookup finds until it ends, the deadline passes, or [`LOOKUP_GRACE`] after the
/// first finding.
async fn collect(
    mut found: mpsc::Receiver<Vec<libp2p::PeerId>>,
    deadline: Instant,
) -> HashSet<libp2p::PeerId> {
    let mut providers = HashSet::new();
    // A little before the deadline, so that what was found is returned rather than lost.
    let mut until = deadline.checked_sub(Duration::from_millis(10)).unwrap_or(deadline);
    while let Ok(Some(more)) = timeout_at(until.into(), found.recv()).await {
        if providers.is_empty() && !more.is_empty() {
            until = until.min(Instant::now() + LOOKUP_GRACE);
        }
        providers.extend(more);
    }
    providers
}
