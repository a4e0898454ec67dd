//! Streams for calls: our own behaviour, because the published one opens one stream at a time,
//! drops bursts without a word and may pick a relayed connection.
//!
//! Messages travel past the swarm's task. An opener picks a connection from the [`Ports`] table
//! and asks its handler straight away; any number of upgrades run side by side. The acceptor
//! answers with one byte: taken, or refused and why. So a refusal is always explicit, an opened
//! stream is known to be alive at the other end, and a burst is never lost.
//!
//! Each connection carries at most [`STREAMS_MAX`] streams of ours in each direction: yamux closes
//! the whole connection at the 513th.

mod handler;
mod opening;
mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure, ListenFailure},
    },
};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, mpsc, watch};

pub(super) use self::opening::OpenError;
pub use self::stream::ByteStream;
use self::{handler::Handler, opening::OpenRequest};
use super::{Transport, address};

/// Streams of ours on one connection, in each direction. Twice this leaves 64 of yamux's 512 for
/// every other protocol.
pub(super) const STREAMS_MAX: usize = 224;

const _: () = assert!(2 * STREAMS_MAX + 64 <= 512);

/// Requests that wait for one connection's handler. The gate admits no more, so a place is always
/// free for whoever holds a permit.
const OPENS_MAX: usize = STREAMS_MAX;

/// A stream that another peer opened.
pub struct Inbound {
    /// Who opened it, proved by its key and known to be of this network.
    pub peer: protocol::id::PeerId,
    /// The stream.
    pub stream: ByteStream,
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The connections on which streams can be opened, by peer. Written by the swarm's task, read by
/// openers.
#[derive(Default)]
pub(super) struct Ports(RwLock<HashMap<PeerId, Vec<Arc<Port>>>>);

impl Ports {
    /// The connections to `peer`, best first: direct before relayed, then the oldest, on which
    /// both sides agree that it works.
    pub(super) fn of(&self, peer: &PeerId) -> Vec<Arc<Port>> {
        let mut ports = self.0.read().get(peer).cloned().unwrap_or_default();
        ports.sort_by_key(|port| (port.transport == Transport::Relay, port.since));
        ports
    }

    /// Whether there is a connection to `peer` that no third peer carries.
    pub(super) fn has_direct(&self, peer: &PeerId) -> bool {
        let ports = self.0.read();
        let mut of_peer = ports.get(peer).into_iter().flatten();
        of_peer.any(|port| port.transport != Transport::Relay)
    }

    fn insert(&self, peer: PeerId, port: Arc<Port>) {
        self.0.write().entry(peer).or_default().push(port);
    }

    fn remove(&self, peer: &PeerId, connection: ConnectionId) {
        let mut ports = self.0.write();
        if let Some(of_peer) = ports.get_mut(peer) {
            of_peer.retain(|port| port.connection != connection);
            if of_peer.is_empty() {
                ports.remove(peer);
            }
        }
    }
}

/// One connection as openers see it.
pub(super) struct Port {
    connection: ConnectionId,
    transport: Transport,
    since: Instant,
    /// Streams that this side may still open.
    gate: Arc<Semaphore>,
    opens: mpsc::Sender<OpenRequest>,
}

/// What a connection's handler and this behaviour share.
struct Acceptor {
    peer: protocol::id::PeerId,
    /// Whether the connection goes through a third peer.
    relayed: bool,
    /// Whether the peer is known to be of this network. Streams that come earlier wait for it.
    admitted: watch::Sender<bool>,
    /// Whether the connection is kept although it is idle.
    keep: AtomicBool,
    /// Streams that the other side may still open.
    gate: Arc<Semaphore>,
    sink: mpsc::Sender<Inbound>,
}

/// The behaviour: hands each connection a handler, and keeps the [`Ports`] table.
pub(super) struct Behaviour {
    ports: Arc<Ports>,
    sink: mpsc::Sender<Inbound>,
    connections: HashMap<ConnectionId, Connection>,
}

struct Connection {
    peer: PeerId,
    acceptor: Arc<Acceptor>,
    /// Until the connection is established; then it is in the [`Ports`] table.
    port: Option<Arc<Port>>,
}

impl Behaviour {
    /// A behaviour that fills `ports` and sends what others open to `sink`.
    pub(super) fn new(ports: Arc<Ports>, sink: mpsc::Sender<Inbound>) -> Self {
        Self { ports, sink, connections: HashMap::new() }
    }

    /// Lets `peer` open streams: it is of this network.
    pub(super) fn admit(&mut self, peer: &PeerId) {
        for acceptor in self.of(peer) {
            acceptor.admitted.send_replace(true);
        }
    }

    /// Keeps the connections to `peer` although they are idle, or stops keeping them.
    pub(super) fn keep(&mut self, peer: &PeerId, keep: bool) {
        for acceptor in self.of(peer) {
            acceptor.keep.store(keep, Ordering::Relaxed);
        }
    }

    fn of(&self, peer: &PeerId) -> impl Iterator<Item = &Arc<Acceptor>> {
        let peer = *peer;
        let of_peer = self.connections.values().filter(move |connection| connection.peer == peer);
        of_peer.map(|connection| &connection.acceptor)
    }

    fn handler(&mut self, id: ConnectionId, peer: PeerId, transport: Transport) -> Handler {
        let (opens, requests) = mpsc::channel(OPENS_MAX);
        let acceptor = Arc::new(Acceptor {
            peer: peer.into(),
            relayed: transport == Transport::Relay,
            admitted: watch::Sender::new(false),
            keep: AtomicBool::new(false),
            gate: Arc::new(Semaphore::new(STREAMS_MAX)),
            sink: self.sink.clone(),
        });
        let port = Arc::new(Port {
            connection: id,
            transport,
            since: Instant::now(),
            gate: Arc::new(Semaphore::new(STREAMS_MAX)),
            opens,
        });
        let connection = Connection { peer, acceptor: acceptor.clone(), port: Some(port) };
        self.connections.insert(id, connection);
        Handler::new(acceptor, requests)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // The listener's own address tells what carries the connection; a relayed remote's
        // address is only its id.
        Ok(self.handler(id, peer, address::transport(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, address::transport(remote)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                ..
            }) => {
                let connection = self.connections.get_mut(&connection_id);
                if let Some(port) = connection.and_then(|connection| connection.port.take()) {
                    self.ports.insert(peer_id, port);
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.connections.remove(&connection_id);
                self.ports.remove(&peer_id, connection_id);
            }
            // A later behaviour refused the connection.
            FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.connections.remove(&connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
