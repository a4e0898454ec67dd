//! What the swarm speaks, and how each protocol is set up.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId, StreamProtocol,
    allow_block_list::{self, BlockedPeers},
    autonat, connection_limits, dcutr, gossipsub, identify,
    identity::Keypair,
    kad, mdns, memory_connection_limits, ping, relay, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};
use protocol::limits::{ADVERT_BYTES_MAX, PROVIDER_TTL_SECONDS};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{
    Inbound,
    guard::ReachabilityServer,
    records::Records,
    registry_codec,
    streams::{self, Ports},
};
use crate::config::PeerConfig;

/// Peers that a DHT lookup asks at the same time. Go's choice; the library's own is 3.
const LOOKUP_PARALLELISM: usize = 10;

/// DHT packets: 64 providers with their addresses and 20 closer peers with theirs are about
/// 40 KiB.
const KAD_PACKET_BYTES_MAX: usize = 256 * 1024;

/// How often the DHT's routing table is filled anew by itself.
const KAD_REFRESH: Duration = Duration::from_mins(2);

/// One gossip frame: an advert and what surrounds it, or a handful of control messages.
const GOSSIP_BYTES_MAX: usize = 8 * 1024;

/// How long a gossip message may wait for its turn on a connection: older news is superseded.
const GOSSIP_PATIENCE: Duration = Duration::from_secs(2);

/// How often a connection is probed, and how long the answer may take. Two silences in a row end
/// the connection, so a cut cable is noticed within 20 s; a killed process is noticed at once.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Registry requests on one connection at once; more are not answered.
const REQUESTS_MAX: usize = 64;

/// How long a registry request may take, whatever its caller's deadline.
const REQUEST_MAX: Duration = Duration::from_secs(15);

// A gossip frame carries the largest advert, its signature and key with room to spare.
const _: () = assert!(GOSSIP_BYTES_MAX >= 2 * ADVERT_BYTES_MAX);

/// Everything the swarm speaks. Limits come first: what they refuse reaches nobody else.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) streams: streams::Behaviour,
    pub(super) identify: identify::Behaviour,
    ping: ping::Behaviour,
    relay_client: relay::client::Behaviour,
    relay_server: Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    reachability: autonat::v2::client::Behaviour,
    reachability_server: ReachabilityServer,
    pub(super) kad: Toggle<kad::Behaviour<Records>>,
    pub(super) gossip: Toggle<gossipsub::Behaviour>,
    pub(super) registry: request_response::Behaviour<registry_codec::Codec>,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// The protocol version that peers of `network` tell each other.
pub(super) fn identity_of(network: &str) -> String {
    format!("/blackhole/{network}/1")
}

/// The topic on which peers of `network` announce what they offer.
pub(super) fn topic(network: &str) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(format!("bh1/{network}/0"))
}

impl Behaviour {
    /// Sets everything up for `config`.
    pub(super) fn new(
        key: &Keypair,
        relay_client: relay::client::Behaviour,
        config: &PeerConfig,
        records: Records,
        ports: Arc<Ports>,
        inbound: mpsc::Sender<Inbound>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let local = key.public().to_peer_id();
        let network = config.network.as_str();
        let kad =
            config.dht.then(|| kad(local, network, config.dht_server, records)).transpose()?;
        let gossip = config.gossip.then(|| gossip(key, network)).transpose()?;
        let mdns = config.mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), local));
        let relay_server = config.relay_server.then(|| relay_server(local, config));
        Ok(Self {
            limits: limits(config),
            memory: memory_connection_limits::Behaviour::with_max_bytes(
                config.limits.memory_bytes_max,
            ),
            blocked: allow_block_list::Behaviour::default(),
            streams: streams::Behaviour::new(ports, inbound),
            identify: identify(key, config),
            ping: ping::Behaviour::new(
                ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_EVERY),
            ),
            relay_client,
            relay_server: relay_server.into(),
            dcutr: dcutr::Behaviour::new(local),
            reachability: autonat::v2::client::Behaviour::default(),
            reachability_server: ReachabilityServer::default(),
            kad: kad.into(),
            gossip: gossip.into(),
            registry: request_response::Behaviour::new(
                [(registry_codec::PROTOCOL, request_response::ProtocolSupport::Full)],
                request_response::Config::default()
                    .with_request_timeout(REQUEST_MAX)
                    .with_max_concurrent_streams(REQUESTS_MAX),
            ),
            mdns: mdns.transpose()?.into(),
        })
    }
}

fn limits(config: &PeerConfig) -> connection_limits::Behaviour {
    let limits = &config.limits;
    connection_limits::Behaviour::new(
        connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(limits.pending_max))
            .with_max_pending_outgoing(Some(limits.pending_max))
            .with_max_established_incoming(Some(limits.incoming_max))
            .with_max_established_outgoing(Some(limits.outgoing_max))
            .with_max_established(Some(limits.incoming_max.saturating_add(limits.outgoing_max)))
            .with_max_established_per_peer(Some(limits.per_peer_max)),
    )
}

fn identify(key: &Keypair, config: &PeerConfig) -> identify::Behaviour {
    let version = env!("CARGO_PKG_VERSION");
    // Others show the name to people: one line of bounded length.
    let name: String = config.name.chars().filter(|c| !c.is_control()).take(64).collect();
    let settings = identify::Config::new(identity_of(config.network.as_str()), key.public())
        .with_agent_version(format!("blackhole/{version} {name}").trim_end().to_owned())
        .with_push_listen_addr_updates(true);
    identify::Behaviour::new(settings)
}

fn kad(
    local: PeerId,
    network: &str,
    server: bool,
    records: Records,
) -> Result<kad::Behaviour<Records>, Box<dyn std::error::Error + Send + Sync>> {
    let name = StreamProtocol::try_from_owned(format!("/blackhole/{network}/kad/1.0.0"))?;
    let ttl = Duration::from_secs(PROVIDER_TTL_SECONDS);
    let mut config = kad::Config::new(name);
    config
        .set_parallelism(LOOKUP_PARALLELISM.try_into()?)
        .set_query_timeout(super::LOOKUP_MAX)
        .set_provider_record_ttl(Some(ttl))
        .set_provider_publication_interval(Some(ttl / 3))
        // No value records: nothing to replicate, publish or cache.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_record_ttl(None)
        .set_caching(kad::Caching::Disabled)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_max_packet_size(KAD_PACKET_BYTES_MAX)
        .set_substreams_timeout(Duration::from_secs(5))
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_periodic_bootstrap_interval(Some(KAD_REFRESH));
    let mut kad = kad::Behaviour::with_config(local, records, config);
    if server {
        kad.set_mode(Some(kad::Mode::Server));
    }
    Ok(kad)
}

fn gossip(
    key: &Keypair,
    network: &str,
) -> Result<gossipsub::Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    // The same news is the same message, whoever brings it and however often.
    let id = |message: &gossipsub::Message| {
        gossipsub::MessageId::new(&Sha256::digest(&message.data)[..20])
    };
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(id)
        .flood_publish(false)
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .mesh_n_low(4)
        .mesh_n(6)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .heartbeat_initial_delay(Duration::from_millis(200))
        .heartbeat_interval(Duration::from_secs(1))
        .duplicate_cache_time(Duration::from_mins(2))
        .publish_queue_duration(GOSSIP_PATIENCE)
        .forward_queue_duration(GOSSIP_PATIENCE)
        .build()?;
    let signed = gossipsub::MessageAuthenticity::Signed(key.clone());
    let mut gossip = gossipsub::Behaviour::new(signed, config)?;
    gossip.subscribe(&topic(network))?;
    Ok(gossip)
}

fn relay_server(local: PeerId, config: &PeerConfig) -> relay::Behaviour {
    let limits = &config.limits;
    let settings = relay::Config {
        max_circuits: limits.relay_circuits_max,
        max_circuit_bytes: limits.relay_bytes_max,
        max_circuit_duration: Duration::from_secs(limits.relay_seconds_max),
        ..relay::Config::default()
    };
    relay::Behaviour::new(local, settings)
}
