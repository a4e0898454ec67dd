//! What a peer shows of itself: one immutable snapshot, replaced whole, read without a lock.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use multiaddr::Multiaddr;
use protocol::id::PeerId;

/// A peer and its neighbours at one moment.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// This peer.
    pub id: PeerId,
    /// Concrete addresses it listens on; never `0.0.0.0`.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others are known to reach it.
    pub external: Vec<Multiaddr>,
    /// Connected peers of the same network, by id.
    pub peers: Vec<NeighbourView>,
    /// Whether any peer of the network is connected.
    pub joined: bool,
    /// Peers it could dial, connected or not.
    pub known: usize,
    /// Totals since the start.
    pub counters: Counters,
}

impl PeerView {
    /// The view of a peer that has just been made.
    pub(super) fn new(id: PeerId) -> Self {
        Self {
            id,
            listen: Vec::new(),
            external: Vec::new(),
            peers: Vec::new(),
            joined: false,
            known: 0,
            counters: Counters::default(),
        }
    }

    /// The neighbour called `peer`.
    pub fn neighbour(&self, peer: PeerId) -> Option<&NeighbourView> {
        self.peers.iter().find(|neighbour| neighbour.id == peer)
    }
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct NeighbourView {
    /// Its id.
    pub id: PeerId,
    /// What it calls itself: program, version, name. Not trusted.
    pub agent: String,
    /// The last measured time there and back.
    pub rtt: Option<Duration>,
    /// Its connections, oldest first.
    pub connections: Vec<ConnectionView>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// The other side's address.
    pub address: Multiaddr,
    /// What carries it.
    pub transport: Transport,
    /// Whether the other side opened it.
    pub inbound: bool,
    /// When it was established.
    pub since: SystemTime,
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TCP, secured by Noise.
    Tcp,
    /// Another peer that relays.
    Relay,
    /// Something else.
    Other,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Relay => "relay",
            Self::Other => "other",
        })
    }
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections established.
    pub established: u64,
    /// Connections ended.
    pub closed: u64,
    /// Dials begun.
    pub dials: u64,
    /// Dials that reached nobody.
    pub dials_failed: u64,
    /// Connections of others refused by a limit.
    pub refused: u64,
    /// Gossip messages received.
    pub gossip_received: u64,
    /// Gossip messages that nobody had room for.
    pub gossip_dropped: u64,
}
