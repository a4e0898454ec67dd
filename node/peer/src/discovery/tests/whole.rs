//! Whole peers on loopback: what the fakes above promise, with a real swarm underneath.

use futures::future::BoxFuture;
use multiaddr::Multiaddr;
use protocol::ports::{Call, Invoke, Reply, Store, StoreError};

use super::*;
use crate::{Peer, PeerConfig, Ports};

/// A store that outlives the peer.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Store for Kept {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().expect("no panics").get(key).cloned())
    }

    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut kept = self.0.lock().expect("no panics");
        for (key, value) in changes {
            match value {
                Some(value) => kept.insert(key, value),
                None => kept.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], most: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let kept = self.0.lock().expect("no panics");
        let found = kept.iter().filter(|(key, _)| key.starts_with(prefix)).take(most);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// No calls are made here.
struct Nothing;

impl Invoke for Nothing {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let failure = Failure::not_available(call.head.path.service());
        Box::pin(async { Err(failure) })
    }
}

async fn start(n: u8, store: &Arc<Kept>, bootstrap: &[Multiaddr]) -> Peer {
    let key = NodeKey::from_seed([n; 32]);
    let mut config = PeerConfig::new(key, "whole".parse().expect("a name"));
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    config.bootstrap = bootstrap.to_vec();
    let ports = Ports {
        store: store.clone(),
        inbound: Arc::new(Nothing),
        descriptors: Arc::new(Described),
    };
    Peer::start(config, ports).await.expect("a free port on loopback")
}

fn address(peer: &Peer) -> Multiaddr {
    let listen = peer.view().listen[0].clone();
    listen.with_p2p(peer.id().inner()).expect("no peer is named yet")
}

async fn announce(peer: &Peer, instance: u64, name: &str) {
    let offer = Offer {
        instance: InstanceId(instance),
        plugin: "demo".into(),
        version: "1.0.0".parse().expect("version"),
        services: vec![ServiceOffer { name: service(name), schema: [1; 32] }],
        labels: BTreeMap::new(),
        isolation: "process".into(),
        price: None,
    };
    peer.announce(offer).await.expect("an offer like any other");
}

/// Waits until `holds` of the providers of `name` as `peer` sees them.
async fn sees(peer: &Peer, name: &str, holds: impl Fn(&[dht_registry::Entry]) -> bool) {
    let mut changes = peer.changes();
    let seen = async {
        while !holds(peer.directory().providers(&service(name))) {
            changes.changed().await.expect("the peer still runs");
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), seen).await;
    let directory = peer.directory();
    in_time.unwrap_or_else(|_| panic!("{name}: {:?}", directory.providers(&service(name))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_are_found_fetched_withdrawn_and_announced_again_on_a_real_network() {
    let stores = [(); 3].map(|()| Arc::new(Kept::default()));
    let a = start(101, &stores[0], &[]).await;
    let way_in = [address(&a)];
    let b = start(102, &stores[1], &way_in).await;
    let c = start(103, &stores[2], &way_in).await;

    announce(&b, 1, "demo.v1.A").await;
    for peer in [&a, &c] {
        sees(peer, "demo.v1.A", |entries| entries.len() == 1).await;
    }
    let found = async {
        while c.query_dht(service("demo.v1.A"), soon()).await != [b.id()] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("found in the DHT");
    let described = c.descriptors(b.id(), service("demo.v1.A"), soon()).await;
    assert_eq!(described.expect("described"), Bytes::from_static(b"descriptors"));

    // A plugin that goes is gone everywhere; one that comes is known everywhere.
    b.withdraw(InstanceId(1)).await;
    announce(&b, 2, "demo.v1.B").await;
    for peer in [&a, &c] {
        sees(peer, "demo.v1.A", <[_]>::is_empty).await;
        sees(peer, "demo.v1.B", |entries| entries.len() == 1).await;
    }

    // A peer that stops takes its offers with it, and has them again when it is back.
    let id = b.id();
    b.shutdown().await;
    for peer in [&a, &c] {
        sees(peer, "demo.v1.B", <[_]>::is_empty).await;
    }
    let b = start(102, &stores[1], &way_in).await;
    assert_eq!(b.id(), id);
    announce(&b, 3, "demo.v1.B").await;
    for peer in [&a, &c] {
        sees(peer, "demo.v1.B", |entries| entries.len() == 1 && !entries[0].suspect).await;
    }

    b.shutdown().await;
    a.shutdown().await;
    c.shutdown().await;
}
