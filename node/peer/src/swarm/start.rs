//! Starting the swarm: the store is read, the addresses are bound, the task begins.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder, TransportError,
    core::{transport::ListenerId, upgrade::Version},
    identity, noise,
    swarm::{self, SwarmEvent as Libp2pEvent},
    tcp, yamux,
};
use protocol::{id::NodeKey, ports::Store};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    COMMANDS_MAX, Counters, EVENTS_MAX, INBOUND_MAX, Inbound, LOOKUPS_MAX, PeerView, SwarmEvent,
    SwarmHandle, Transport, VERDICTS_MAX,
    actor::{Actor, Ends, Reach, TICK},
    address,
    behaviour::{Behaviour, BehaviourEvent},
    book::Book,
    dials::Dials,
    handle::Shared,
    joining::Joining,
    lookups::Lookups,
    messages::Exchanges,
    persist::{self, Restored},
    records::{Records, unix_millis},
    streams::Ports,
};
use crate::config::PeerConfig;

/// How long binding may take until every address is listened on.
const LISTENING_MAX: Duration = Duration::from_secs(5);

/// How long an idle connection lives that is not kept.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// How long setting up one connection may take, all addresses of a stage together.
const CONNECTING_MAX: Duration = Duration::from_secs(10);

/// QUIC: a probe when nothing was sent for this long, and the end when nothing came for three.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Inbound streams of one connection that negotiate at once: those of ours that wait to learn
/// whether their opener belongs here, and others besides.
const NEGOTIATING_MAX: usize = 256;

/// Events of behaviours that wait for one connection, and of one connection for behaviours.
const HANDLER_EVENTS_MAX: usize = 64;

/// Why a peer did not start. Nothing was changed, and nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address}: the port is in use. Stop the program that has it (another \
         peer?), or choose another address with --listen"
    )]
    PortInUse {
        /// The address as configured.
        address: Multiaddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    BadAddress {
        /// The address as configured.
        address: Multiaddr,
        /// Why, and what would do.
        cause: String,
    },
    /// The store could not be read.
    #[error(
        "cannot read what was stored: {0}. Move the data directory's store away to start afresh"
    )]
    Store(#[source] protocol::ports::StoreError),
    /// The network could not be set up.
    #[error("cannot set up the network: {0}")]
    Network(String),
}

/// A running swarm. Dropping it ends it without saying goodbye.
pub(crate) struct Running {
    pub(crate) handle: SwarmHandle,
    pub(crate) events: mpsc::Receiver<SwarmEvent>,
    pub(crate) inbound: mpsc::Receiver<Inbound>,
    pub(crate) tasks: SwarmTasks,
}

/// The tasks of a swarm.
pub(crate) struct SwarmTasks {
    actor: AbortOnDropHandle<()>,
    writer: JoinHandle<()>,
    connections: TaskTracker,
}

impl SwarmTasks {
    /// Waits until the swarm has ended and everything is written.
    pub(crate) async fn join(self) {
        let _ = self.actor.await;
        let _ = self.writer.await;
        self.connections.close();
        // Connections that the other side holds open end with the process.
        if timeout(Duration::from_secs(1), self.connections.wait()).await.is_err() {
            tracing::debug!(left = self.connections.len(), "connections outlive the swarm");
        }
    }
}

/// Starts a swarm; returns when it listens. `changes` counts the changes of its view.
pub(crate) async fn start(
    config: &PeerConfig,
    store: Arc<dyn Store>,
    changes: Arc<watch::Sender<u64>>,
) -> Result<Running, StartError> {
    probe(&config.listen)?;
    let reader = store.clone();
    let restored = tokio::task::spawn_blocking(move || persist::restore(&*reader)).await;
    let restored = restored.map_err(|error| StartError::Network(error.to_string()))?;
    let Restored { records, peers } = restored.map_err(StartError::Store)?;

    let key = keypair(&config.key);
    let local = key.public().to_peer_id();
    let now = unix_millis();
    let mut kept = Records::new(local);
    for (key, record) in records {
        kept.restore(key, record, now);
    }
    let mut book = Book::new(local);
    for (peer, addresses, met) in peers {
        book.restore(peer, addresses, met);
    }

    let ports = Arc::new(Ports::default());
    let (inbound_sender, inbound) = mpsc::channel(INBOUND_MAX);
    let connections = TaskTracker::new();
    let mut swarm = build(config, key, kept, &ports, inbound_sender, &connections)?;
    let early = listen(&mut swarm, config).await?;
    for address in &config.external {
        swarm.add_external_address(address::without_peer(address.clone()));
    }

    let (commands, commands_end) = mpsc::channel(COMMANDS_MAX);
    let (verdicts, verdicts_end) = mpsc::channel(VERDICTS_MAX);
    let (events_sender, events) = mpsc::channel(EVENTS_MAX);
    let view = Arc::new(ArcSwap::from_pointee(PeerView::new(local.into())));
    let (writer, writer_task) = persist::writer(store);
    let ends = Ends {
        commands: commands_end,
        verdicts: verdicts_end,
        events: events_sender,
        view: view.clone(),
        changes,
        writer,
    };
    let mut actor = actor(config, swarm, book, ends)?;
    for event in early {
        actor.on_swarm(event);
    }
    actor.publish_view();
    let handle = SwarmHandle::new(Shared {
        local: local.into(),
        commands,
        verdicts,
        ports,
        view,
        lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
    });
    let actor = AbortOnDropHandle::new(tokio::spawn(actor.run()));
    let tasks = SwarmTasks { actor, writer: writer_task, connections };
    Ok(Running { handle, events, inbound, tasks })
}

fn actor(
    config: &PeerConfig,
    swarm: Swarm<Behaviour>,
    book: Book,
    ends: Ends,
) -> Result<Actor, StartError> {
    let now = Instant::now();
    let local = *swarm.local_peer_id();
    let kad = format!("/blackhole/{}/kad/1.0.0", config.network);
    let kad_protocol = libp2p::StreamProtocol::try_from_owned(kad)
        .map_err(|error| StartError::Network(error.to_string()))?;
    Ok(Actor {
        swarm,
        network: config.network.clone(),
        kad_protocol,
        neighbours_max: config.limits.neighbours_max,
        peers: std::collections::HashMap::new(),
        book,
        joining: Joining::new(config.bootstrap.clone(), local, now),
        dials: Dials::default(),
        lookups: Lookups::default(),
        exchanges: Exchanges::default(),
        shunned: std::collections::HashMap::new(),
        partings: std::collections::VecDeque::new(),
        silent: std::collections::HashSet::new(),
        joined: false,
        look_around_at: None,
        provide_at: None,
        counters: Counters::default(),
        dirty: true,
        stale: false,
        outbox: std::collections::VecDeque::new(),
        reach: Reach::new(config, now),
        ends,
        expire_at: now + TICK,
    })
}

fn keypair(key: &NodeKey) -> identity::Keypair {
    identity::Keypair::ed25519_from_bytes(key.seed()).expect("32 bytes are an ed25519 secret")
}

fn build(
    config: &PeerConfig,
    key: identity::Keypair,
    records: Records,
    ports: &Arc<Ports>,
    inbound: mpsc::Sender<Inbound>,
    tracker: &TaskTracker,
) -> Result<Swarm<Behaviour>, StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Network(error.to_string());
    let tracker = tracker.clone();
    let executor = move |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        tracker.spawn(task);
    };
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .map_err(|error| failed(&error))?
        .with_quic_config(|mut quic| {
            quic.keep_alive_interval = QUIC_KEEP_ALIVE;
            quic.max_idle_timeout = 3 * QUIC_KEEP_ALIVE.as_millis() as u32;
            quic
        })
        .with_dns()
        .map_err(|error| failed(&error))?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|error| failed(&error))?
        .with_behaviour(|key, relay| {
            Behaviour::new(key, relay, config, records, ports.clone(), inbound)
        })
        .map_err(|error| failed(&error))?
        .with_swarm_config(|_| {
            let buffer = NonZeroUsize::new(HANDLER_EVENTS_MAX).expect("not zero");
            swarm::Config::with_executor(executor)
                .with_idle_connection_timeout(IDLE_MAX)
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
                .with_notify_handler_buffer_size(buffer)
                .with_per_connection_event_buffer_size(HANDLER_EVENTS_MAX)
        })
        .with_connection_timeout(CONNECTING_MAX)
        .build();
    Ok(swarm)
}

/// Listens on every configured address, and waits until each has become concrete. Returns the
/// events that came meanwhile.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    config: &PeerConfig,
) -> Result<Vec<Libp2pEvent<BehaviourEvent>>, StartError> {
    let mut waiting: Vec<(ListenerId, &Multiaddr)> = Vec::new();
    for address in &config.listen {
        let listener = swarm.listen_on(address.clone()).map_err(|error| bad(address, error))?;
        // A relayed address becomes concrete when the relay grants it, which may be never.
        if address::transport(address) != Transport::Relay {
            waiting.push((listener, address));
        }
    }
    let mut early = Vec::new();
    let bound = async {
        while !waiting.is_empty() {
            let event = swarm.select_next_some().await;
            match &event {
                Libp2pEvent::NewListenAddr { listener_id, .. } => {
                    waiting.retain(|(listener, _)| listener != listener_id);
                }
                Libp2pEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    if let Some((_, address)) = waiting.iter().find(|(id, _)| id == listener_id) {
                        return Err(StartError::BadAddress {
                            address: (*address).clone(),
                            cause: error.to_string(),
                        });
                    }
                }
                _ => {}
            }
            early.push(event);
        }
        Ok(())
    };
    let Ok(outcome) = timeout(LISTENING_MAX, bound).await else {
        let address = waiting[0].1.clone();
        let cause = "no network interface has such an address".into();
        return Err(StartError::BadAddress { address, cause });
    };
    outcome?;
    Ok(early)
}

/// Finds ports that are taken. The swarm itself would share a TCP port with any other program of
/// the same user, without a word.
fn probe(addresses: &[Multiaddr]) -> Result<(), StartError> {
    for address in addresses {
        let Some((transport, socket)) = address::socket(address) else { continue };
        if socket.port() == 0 {
            continue;
        }
        let outcome = match transport {
            Transport::Tcp => TcpListener::bind(socket).map(drop),
            _ => UdpSocket::bind(socket).map(drop),
        };
        outcome.map_err(|error| bad_io(address, socket, &error))?;
    }
    Ok(())
}

fn bad_io(address: &Multiaddr, socket: SocketAddr, error: &std::io::Error) -> StartError {
    let address = address.clone();
    match error.kind() {
        std::io::ErrorKind::AddrInUse => StartError::PortInUse { address },
        std::io::ErrorKind::AddrNotAvailable => StartError::BadAddress {
            address,
            cause: format!("no interface of this machine has the address {}", socket.ip()),
        },
        std::io::ErrorKind::PermissionDenied => StartError::BadAddress {
            address,
            cause: format!("port {} needs more rights; choose one above 1023", socket.port()),
        },
        _ => StartError::BadAddress { address, cause: error.to_string() },
    }
}

fn bad(address: &Multiaddr, error: TransportError<std::io::Error>) -> StartError {
    match error {
        TransportError::MultiaddrNotSupported(_) => StartError::BadAddress {
            address: address.clone(),
            cause: "such an address cannot be listened on; write /ip4/IP/tcp/PORT or \
                    /ip4/IP/udp/PORT/quic-v1"
                .into(),
        },
        TransportError::Other(error) => {
            let mut text = error.to_string();
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
                text = cause.to_string();
            }
            if text.contains("in use") {
                StartError::PortInUse { address: address.clone() }
            } else {
                StartError::BadAddress { address: address.clone(), cause: text }
            }
        }
    }
}
