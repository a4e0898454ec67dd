//! Whole peers through the public face of the crate: offers travel, calls follow them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_peer::{LocalDescriptors, Notice, Peer, PeerConfig, Ports};
use bytes::Bytes;
use dht_registry::{Offer, ServiceOffer};
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use protocol::{
    failure::Failure,
    id::{InstanceId, NodeKey},
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply, Store, StoreError},
    service::ServiceName,
};
use tokio::time::timeout;

/// Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Store for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.lock().insert(key, value),
                None => self.0.lock().remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], most: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let entries = self.0.lock();
        let found = entries.iter().filter(|(key, _)| key.starts_with(prefix)).take(most);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Answers every call with its caller and what was said.
struct Parrot;

impl Invoke for Parrot {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        Box::pin(async move {
            let said = call.body.collect().await?.to_bytes();
            let Caller::Peer(caller) = call.head.caller else { panic!("a peer calls") };
            let answer = format!("{caller} said {}", String::from_utf8_lossy(&said));
            Ok(Reply { metadata: HeaderMap::new(), body: body(answer) })
        })
    }
}

impl LocalDescriptors for Parrot {
    fn descriptors(&self, service: &ServiceName) -> Option<Bytes> {
        (service.as_str() == "test.v1.Parrot").then(|| Bytes::from_static(b"descriptors"))
    }
}

fn body(text: String) -> Body {
    Body::new(Full::from(text).map_err(|never| match never {}))
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn config(seed: u8) -> PeerConfig {
    let network = "facade".parse().expect("a network name");
    let mut config = PeerConfig::new(NodeKey::from_seed([seed; 32]), network);
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        config.listen.push(listen.parse().expect("a multiaddr"));
    }
    config
}

async fn start(config: PeerConfig) -> Peer {
    let ports = Ports {
        store: Arc::new(Memory::default()),
        inbound: Arc::new(Parrot),
        descriptors: Arc::new(Parrot),
    };
    Peer::start(config, ports).await.expect("started")
}

/// `count` peers of one network, the others joining through the first.
async fn mesh(count: u8) -> Vec<Peer> {
    let mut peers = vec![start(config(1)).await];
    let door = peers[0].view().listen[0].clone();
    for seed in 2..=count {
        let mut config = config(seed);
        config.bootstrap = vec![door.clone()];
        peers.push(start(config).await);
    }
    peers
}

async fn until(peer: &Peer, wanted: impl Fn(&Peer) -> bool) {
    let mut changes = peer.changes();
    let search = async {
        while !wanted(peer) {
            changes.changed().await.expect("it runs");
        }
    };
    timeout(PATIENCE, search).await.expect("it comes to pass");
}

fn service() -> ServiceName {
    "test.v1.Parrot".parse().expect("a service name")
}

fn offer() -> Offer {
    Offer {
        instance: InstanceId(7),
        plugin: "parrot".into(),
        version: "1.2.3".parse().expect("a version"),
        services: vec![ServiceOffer { name: service(), schema: [1; 32] }],
        labels: BTreeMap::new(),
        isolation: "none".into(),
        price: None,
    }
}

fn provided(peer: &Peer) -> bool {
    !peer.directory().providers(&service()).is_empty()
}

#[tokio::test]
async fn an_offer_reaches_everybody_and_is_called_and_withdrawn() {
    let peers = mesh(4).await;
    peers[1].announce(offer()).await.expect("announced");
    for peer in &peers {
        until(peer, provided).await;
    }
    let head = CallHead {
        path: "/test.v1.Parrot/Say".parse().expect("a path"),
        metadata: HeaderMap::new(),
        deadline: Some(soon()),
        locality: Locality::Any,
        caller: Caller::Client,
    };
    let link = peers[3].links().reach(peers[1].id(), soon()).await.expect("reached");
    let reply = link.invoke(Call { head, body: body("hello".into()) }).await.expect("answered");
    let said = reply.body.collect().await.expect("whole").to_bytes();
    assert_eq!(said, format!("{} said hello", peers[3].id()));

    let described = peers[2].descriptors(peers[1].id(), service(), soon()).await;
    assert_eq!(described.expect("described"), "descriptors");

    peers[1].withdraw(InstanceId(7)).await;
    for peer in &peers {
        until(peer, |peer| !provided(peer)).await;
    }
    for peer in &peers {
        peer.shutdown().await;
    }
}

#[tokio::test]
async fn a_newcomer_finds_what_was_offered_before_it_came() {
    let peers = mesh(3).await;
    peers[2].announce(offer()).await.expect("announced");
    until(&peers[1], provided).await;
    let mut late = config(9);
    late.bootstrap = vec![peers[1].view().listen[0].clone()];
    let late = start(late).await;
    let mut notices = late.notices();
    let joined = async {
        loop {
            if let Notice::Joined { through } = notices.recv().await.expect("it runs") {
                return through;
            }
        }
    };
    timeout(PATIENCE, joined).await.expect("joined");
    until(&late, provided).await;
    assert!(late.lookup(service(), soon()).await);
}

#[tokio::test]
async fn a_peer_that_stops_takes_its_offers_along() {
    let peers = mesh(3).await;
    peers[2].announce(offer()).await.expect("announced");
    for peer in &peers {
        until(peer, provided).await;
    }
    peers[2].shutdown().await;
    for peer in &peers[..2] {
        until(peer, |peer| !provided(peer)).await;
    }
}
