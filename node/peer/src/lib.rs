//! The peer: the one owner of the swarm.
//!
//! Owns everything that touches the network of peers: connections, the DHT, gossip, relaying, NAT
//! traversal, the streams that calls travel on, and the task that drives them. Hands out snapshots
//! ([`PeerView`]), byte streams and facts; performs what the registry decides. Refuses to choose
//! providers (the router does), to look inside calls, and to touch the disk from the swarm's task:
//! what must last goes through a bounded write-behind queue to a thread that may block.
//!
//! No type of libp2p leaves this crate except addresses ([`multiaddr::Multiaddr`]).

#![forbid(unsafe_code)]

mod config;
mod discovery;
mod links;
mod peer;
mod swarm;

pub use config::{PeerConfig, PeerLimits};
pub use discovery::LocalDescriptors;
pub use links::CALLS_PER_PEER_MAX;
pub use peer::{Notice, Peer, Ports};
pub use swarm::{
    ByteStream, ConnectionView, Counters, Inbound, MessageToken, NeighbourView, PeerView,
    StartError, SwarmEvent, SwarmHandle, Transport, Verdict,
};
