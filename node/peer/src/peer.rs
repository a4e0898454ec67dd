//! The facade: starts the swarm, discovery and the links, and holds them together.
//!
//! Two small tasks carry what the swarm reports: one hands news to discovery and notices to people,
//! the other hands streams that others opened to the links. Neither decides anything.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use dht_registry::{Directory, Offer, OfferRefused};
use multiaddr::Multiaddr;
use parking_lot::Mutex;
use protocol::{
    failure::Failure,
    id::{InstanceId, PeerId},
    ports::{Invoke, Reach, Store, StoreError},
    service::ServiceName,
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};

use crate::{
    PeerConfig, PeerView, StartError, SwarmEvent, SwarmHandle,
    discovery::{Discovery, LocalDescriptors, News, Setup},
    links::LinkPool,
    swarm::{self, Inbound, Running, SwarmTasks},
};

/// Notices that wait for a slow reader; older ones are lost to it, and it is told how many.
const NOTICES_MAX: usize = 256;

/// How long calls of other peers may still take when this peer stops.
const CALLS_GRACE: Duration = Duration::from_secs(3);

/// Where the time of the last start is kept.
const BOOT_KEY: &[u8] = b"boot";

/// What a peer is given: where it keeps things, who answers calls, what services look like.
pub struct Ports {
    /// Keeps what must outlive the process.
    pub store: Arc<dyn Store>,
    /// Answers the calls of other peers; their callers are [`protocol::ports::Caller::Peer`].
    pub inbound: Arc<dyn Invoke>,
    /// Describes the services of this node.
    pub descriptors: Arc<dyn LocalDescriptors>,
}

/// Something a person may want to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A concrete address is listened on.
    Listening(Multiaddr),
    /// The first peer of the network was met.
    Joined {
        /// That peer.
        through: PeerId,
    },
    /// A bootstrap address did not answer; it will be tried again.
    BootstrapUnreachable {
        /// The address as configured.
        address: Multiaddr,
        /// Why, in one sentence.
        error: String,
        /// When it is tried next.
        retry_in: Duration,
    },
    /// A peer of another network, or of another version, was met and sent away.
    Foreign {
        /// That peer.
        peer: PeerId,
        /// Where it was met.
        address: Multiaddr,
        /// What it speaks, and what this peer speaks, in one sentence.
        reason: String,
    },
}

/// A running peer. Dropping it ends it without a goodbye; [`Peer::shutdown`] ends it in order.
pub struct Peer {
    swarm: SwarmHandle,
    discovery: Discovery,
    links: Arc<LinkPool>,
    changes: Arc<watch::Sender<u64>>,
    notices: broadcast::Sender<Notice>,
    /// Subscribed before anything happened, for whoever asks first.
    first_notices: Mutex<Option<broadcast::Receiver<Notice>>>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    /// Discovery, news and streams.
    own: JoinSet<()>,
    swarm: SwarmTasks,
}

impl Peer {
    /// Starts a peer; returns when it listens. It joins its network by itself and says so in
    /// [`Peer::notices`].
    pub async fn start(config: PeerConfig, ports: Ports) -> Result<Self, StartError> {
        let boot = boot(ports.store.clone()).await?;
        let changes = Arc::new(watch::Sender::new(0));
        let running = swarm::start(&config, ports.store, changes.clone()).await?;
        let Running { handle, events, inbound, tasks } = running;
        let settings = dht_registry::Settings {
            key: config.key.clone(),
            network: config.network.clone(),
            boot,
            chance: rand::random(),
            limits: dht_registry::Limits::default(),
        };
        let (discovery, discovering) = Discovery::new(Setup {
            settings,
            network: handle.clone(),
            descriptors: ports.descriptors,
            changes: changes.clone(),
            clock: unix_millis,
        });
        let links = Arc::new(LinkPool::new(handle.clone()));
        let (notices, first_notices) = broadcast::channel(NOTICES_MAX);
        let mut own = JoinSet::new();
        own.spawn(discovering);
        own.spawn(carry_news(events, discovery.clone(), notices.clone()));
        own.spawn(carry_streams(inbound, links.clone(), ports.inbound));
        Ok(Self {
            swarm: handle,
            discovery,
            links,
            changes,
            notices,
            first_notices: Mutex::new(Some(first_notices)),
            tasks: Mutex::new(Some(Tasks { own, swarm: tasks })),
        })
    }

    /// This peer.
    pub fn id(&self) -> PeerId {
        self.swarm.local_id()
    }

    /// The peer and its neighbours as they are now.
    pub fn view(&self) -> Arc<PeerView> {
        self.swarm.view()
    }

    /// Who offers what, as known now, this node included.
    pub fn directory(&self) -> Arc<Directory> {
        self.discovery.directory()
    }

    /// A number that changes whenever the view or the directory has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What happens from now on that a person may want to read. The first to ask also hears what
    /// happened since the start.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.first_notices.lock().take().unwrap_or_else(|| self.notices.subscribe())
    }

    /// Offers `offer` to the mesh until it is withdrawn. The directory has it when this returns;
    /// other peers follow.
    pub async fn announce(&self, offer: Offer) -> Result<(), OfferRefused> {
        self.discovery.announce(offer).await
    }

    /// Offers an instance no longer.
    pub async fn withdraw(&self, instance: InstanceId) {
        self.discovery.withdraw(instance).await;
    }

    /// Says how busy this node is, 0 to 100, for other peers' routers.
    pub fn set_load(&self, load: u8) {
        self.discovery.set_load(load);
    }

    /// Looks `service` up in the DHT unless it is known. True when the directory has it.
    pub async fn lookup(&self, service: ServiceName, deadline: Instant) -> bool {
        self.discovery.lookup(service, deadline).await
    }

    /// Who the DHT says provides `service`, whatever is known here.
    pub async fn query_dht(&self, service: ServiceName, deadline: Instant) -> Vec<PeerId> {
        self.discovery.query_dht(&service, deadline).await
    }

    /// What `service` looks like, asked of a peer that offers it: a `FileDescriptorSet`.
    pub async fn descriptors(
        &self,
        peer: PeerId,
        service: ServiceName,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        self.discovery.descriptors(peer, service, deadline).await
    }

    /// The way to other peers' plugins.
    pub fn links(&self) -> Arc<dyn Reach<PeerId>> {
        self.links.clone()
    }

    /// Connects to `address`; an error says in one sentence why it could not be.
    pub async fn dial(&self, address: Multiaddr) -> Result<(), String> {
        self.swarm.dial(address).await
    }

    /// Withdraws every offer, lets calls in flight end, closes every connection, writes what is
    /// unwritten and ends every task. Takes a few seconds at most. A second call does nothing.
    pub async fn shutdown(&self) {
        let Some(Tasks { mut own, swarm }) = self.tasks.lock().take() else { return };
        self.discovery.leave().await;
        self.links.shutdown(CALLS_GRACE).await;
        self.swarm.shut_down().await;
        swarm.join().await;
        own.shutdown().await;
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({})", self.id())
    }
}

/// Hands news to discovery and notices to people, until the swarm ends.
async fn carry_news(
    mut events: mpsc::Receiver<SwarmEvent>,
    discovery: Discovery,
    notices: broadcast::Sender<Notice>,
) {
    while let Some(event) = events.recv().await {
        match News::of(event) {
            Ok(news) => discovery.tell(news).await,
            Err(event) => {
                if let Some(notice) = Notice::of(event) {
                    // An error means that nobody listens.
                    let _ = notices.send(notice);
                }
            }
        }
    }
}

/// Hands streams that others opened to the links, until the swarm ends.
async fn carry_streams(
    mut inbound: mpsc::Receiver<Inbound>,
    links: Arc<LinkPool>,
    handler: Arc<dyn Invoke>,
) {
    while let Some(Inbound { peer, stream }) = inbound.recv().await {
        links.serve_inbound(peer, stream, handler.clone());
    }
}

impl Notice {
    fn of(event: SwarmEvent) -> Option<Self> {
        match event {
            SwarmEvent::Listening(address) => Some(Self::Listening(address)),
            SwarmEvent::Joined { through } => Some(Self::Joined { through }),
            SwarmEvent::BootstrapUnreachable { address, error, retry_in } => {
                Some(Self::BootstrapUnreachable { address, error, retry_in })
            }
            SwarmEvent::Foreign { peer, address, reason } => {
                Some(Self::Foreign { peer, address, reason })
            }
            SwarmEvent::PeerConnected(_)
            | SwarmEvent::PeerDisconnected { .. }
            | SwarmEvent::Gossip { .. }
            | SwarmEvent::Request { .. } => None,
        }
    }
}

/// The time of this start, later than every start before, whatever the clock says.
async fn boot(store: Arc<dyn Store>) -> Result<u64, StartError> {
    let read_and_write = move || -> Result<u64, StoreError> {
        let last = store.get(BOOT_KEY)?.and_then(|bytes| bytes.try_into().ok());
        let boot = unix_millis().max(last.map_or(0, u64::from_le_bytes).saturating_add(1));
        store.write(vec![(BOOT_KEY.to_vec(), Some(boot.to_le_bytes().to_vec()))])?;
        Ok(boot)
    };
    let boot = tokio::task::spawn_blocking(read_and_write).await;
    boot.map_err(|error| StartError::Network(error.to_string()))?.map_err(StartError::Store)
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
