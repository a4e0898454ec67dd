//! The bootstrap peer: gives newcomers their first contacts, keeps DHT records, and relays.
//!
//! It is a peer like any other, with other settings: always a DHT server and a relay, with room
//! for many short visits. It refuses to be more: no gateway, no plugins, no calls. A network that
//! has met goes on without it, since peers connect to each other and remember where they were.

#![forbid(unsafe_code)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use peer::{LocalDescriptors, Peer, PeerConfig, PeerLimits, Ports, StartError};
use protocol::{
    failure::Failure,
    ports::{Call, Invoke, Reply, Store},
    service::ServiceName,
};

/// Visitors at once. A newcomer stays for a minute unless it becomes a neighbour, so this serves
/// some 2000 arrivals a minute; at 100 KB each it is 200 MB.
const INCOMING_MAX: u32 = 2_048;

/// How long one relayed connection may last.
const RELAY_MAX: Duration = Duration::from_hours(1);

/// Relayed connections at once.
const RELAY_CIRCUITS_MAX: usize = 512;

/// `config` with what makes a peer a bootstrap peer.
pub fn profile(config: PeerConfig) -> PeerConfig {
    let mut labels = config.labels;
    labels.entry("role".into()).or_insert_with(|| "bootstrap".into());
    PeerConfig {
        dht: true,
        gossip: true,
        dht_server: true,
        relay_server: true,
        labels,
        limits: PeerLimits {
            incoming_max: config.limits.incoming_max.max(INCOMING_MAX),
            relay_seconds_max: config.limits.relay_seconds_max.max(RELAY_MAX.as_secs()),
            relay_circuits_max: config.limits.relay_circuits_max.max(RELAY_CIRCUITS_MAX),
            ..config.limits
        },
        ..config
    }
}

/// Starts a bootstrap peer that keeps what it learns in `store`; returns when it listens.
///
/// # Errors
///
/// As [`Peer::start`]: a port in use, an address that cannot be listened on, a damaged store.
pub async fn start(config: PeerConfig, store: Arc<dyn Store>) -> Result<Peer, StartError> {
    let ports = Ports { store, inbound: Arc::new(NoPlugins), descriptors: Arc::new(NoPlugins) };
    Peer::start(profile(config), ports).await
}

/// Answers every call: nothing is offered here.
struct NoPlugins;

impl Invoke for NoPlugins {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        Box::pin(ready(Err(Failure::not_available(call.head.path.service()))))
    }
}

impl LocalDescriptors for NoPlugins {
    fn descriptors(&self, _service: &ServiceName) -> Option<Bytes> {
        None
    }
}

#[cfg(test)]
mod tests {
    use protocol::{id::NodeKey, ports::StoreError};

    use super::*;

    struct Nothing;

    impl Store for Nothing {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }

        fn write(&self, _: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
            Ok(())
        }

        fn scan(&self, _: &[u8], _: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
            Ok(Vec::new())
        }
    }

    fn config(seed: u8) -> PeerConfig {
        let mut config =
            PeerConfig::new(NodeKey::from_seed([seed; 32]), "test".parse().expect("ok"));
        config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a multiaddr")];
        config
    }

    #[test]
    fn the_profile_serves_whatever_the_config_said() {
        let mut modest = config(1);
        (modest.dht, modest.dht_server, modest.relay_server) = (false, false, false);
        modest.limits.memory_bytes_max = 7;
        let profile = profile(modest);
        assert!(profile.dht && profile.dht_server && profile.relay_server);
        assert_eq!(profile.limits.memory_bytes_max, 7, "the operator's bound stands");
        assert_eq!(profile.labels["role"], "bootstrap");
    }

    #[tokio::test]
    async fn two_newcomers_meet_through_it() {
        let bootstrap = start(config(1), Arc::new(Nothing)).await.expect("started");
        let door = bootstrap.view().listen[0].clone();
        let mut peers = Vec::new();
        for seed in [2, 3] {
            let mut config = config(seed);
            config.bootstrap = vec![door.clone()];
            peers.push(start(config, Arc::new(Nothing)).await.expect("started"));
        }
        for peer in &peers {
            let mut changes = peer.changes();
            while peer.view().peers.len() < 2 {
                changes.changed().await.expect("it runs");
            }
        }
        for peer in &peers {
            peer.shutdown().await;
        }
        bootstrap.shutdown().await;
    }
}
