//! What a peer needs to know before it starts. Data only: nothing here binds, dials or reads.

use std::collections::BTreeMap;

use multiaddr::Multiaddr;
use protocol::id::{NetworkName, NodeKey};

/// How a peer takes part in its network.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each switches one protocol")]
pub struct PeerConfig {
    /// The key that proves the peer; its id follows from it.
    pub key: NodeKey,
    /// The network; peers of other networks are refused.
    pub network: NetworkName,
    /// A name for people, shown to other peers. Not unique, not trusted.
    pub name: String,
    /// Addresses to listen on. None: the peer only dials.
    pub listen: Vec<Multiaddr>,
    /// Peers to join through. None: the peer waits to be found, or joins from what it remembers.
    pub bootstrap: Vec<Multiaddr>,
    /// Addresses under which others reach this peer, known by its operator. None: on a private
    /// network the listen addresses are taken; elsewhere other peers' tests decide.
    pub external: Vec<Multiaddr>,
    /// Whether peers of the same link are looked for by multicast DNS.
    pub mdns: bool,
    /// Whether the DHT is used at all. Without it services are found by gossip only.
    pub dht: bool,
    /// Whether gossip is used at all. Without it services are found by the DHT only.
    pub gossip: bool,
    /// Whether this peer relays for peers that cannot be reached directly.
    pub relay_server: bool,
    /// Whether this peer keeps DHT records for others even before it knows that it is reachable.
    pub dht_server: bool,
    /// What the operator says about this peer: region, role, hardware.
    pub labels: BTreeMap<String, String>,
    /// How much strangers may cost.
    pub limits: PeerLimits,
}

impl PeerConfig {
    /// A peer of `network` that listens nowhere and knows nobody, with everything switched on
    /// that needs no permission: DHT (as a server), gossip, relay server; no multicast DNS.
    pub fn new(key: NodeKey, network: NetworkName) -> Self {
        Self {
            key,
            network,
            name: String::new(),
            listen: Vec::new(),
            bootstrap: Vec::new(),
            external: Vec::new(),
            mdns: false,
            dht: true,
            gossip: true,
            relay_server: true,
            dht_server: true,
            labels: BTreeMap::new(),
            limits: PeerLimits::default(),
        }
    }
}

/// Bounds on what others may make this peer hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLimits {
    /// Connections that others opened. Each may buffer up to 15 MB at worst.
    pub incoming_max: u32,
    /// Connections that this peer opened.
    pub outgoing_max: u32,
    /// Connections to one peer: a relayed one, a direct one, and the pair that arises when both
    /// sides dial at once.
    pub per_peer_max: u32,
    /// Connections that are being set up, in each direction.
    pub pending_max: u32,
    /// Neighbours whose idle connections are kept, so that gossip reaches everybody of a small
    /// network and a death is noticed. Beyond it idle connections are closed.
    pub neighbours_max: usize,
    /// Resident memory of the process, in bytes, above which no connection is accepted or opened.
    pub memory_bytes_max: usize,
    /// Bytes that one relayed connection may carry, both ways together.
    pub relay_bytes_max: u64,
    /// How long one relayed connection may last, in seconds.
    pub relay_seconds_max: u64,
    /// Relayed connections at once.
    pub relay_circuits_max: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            incoming_max: 384,
            outgoing_max: 384,
            per_peer_max: 4,
            pending_max: 128,
            neighbours_max: 64,
            memory_bytes_max: 2 << 30,
            relay_bytes_max: 256 << 20,
            relay_seconds_max: 30 * 60,
            relay_circuits_max: 128,
        }
    }
}
