//! Several discoveries in one process, on a network of function calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dht_registry::{Limits, ServiceOffer, Settings};
use futures::future::BoxFuture;
use protocol::{id::NodeKey, limits::LOOKUP_MILLIS_MAX};
use tokio::task::JoinSet;

use super::*;
use crate::swarm::Verdict;

mod whole;

/// What joins the peers of one test.
#[derive(Default)]
struct Hub {
    peers: BTreeMap<PeerId, Discovery<Net>>,
    providers: BTreeMap<[u8; 32], BTreeSet<PeerId>>,
    verdicts: Vec<Verdict>,
    penalised: Vec<PeerId>,
}

/// One peer's side of the hub.
#[derive(Clone)]
struct Net {
    hub: Arc<Mutex<Hub>>,
    local: PeerId,
    gossips: bool,
    /// Whether the DHT answers at all.
    finds: bool,
}

impl Net {
    fn hub<R>(&self, read: impl FnOnce(&mut Hub) -> R) -> R {
        read(&mut self.hub.lock().expect("no test panics while it holds the hub"))
    }
}

impl Network for Net {
    type Token = ();

    fn provide(&self, key: [u8; 32]) -> BoxFuture<'static, ()> {
        let local = self.local;
        self.hub(|hub| hub.providers.entry(key).or_default().insert(local));
        Box::pin(async {})
    }

    fn stop_providing(&self, key: [u8; 32]) -> BoxFuture<'static, ()> {
        let local = self.local;
        self.hub(|hub| hub.providers.entry(key).or_default().remove(&local));
        Box::pin(async {})
    }

    fn find_providers(&self, key: [u8; 32], _: Instant) -> BoxFuture<'static, Vec<PeerId>> {
        let found = self.hub(|hub| hub.providers.get(&key).cloned().unwrap_or_default());
        let finds = self.finds;
        Box::pin(async move {
            if !finds {
                std::future::pending::<()>().await;
            }
            found.into_iter().collect()
        })
    }

    fn publish(&self, data: Vec<u8>) -> BoxFuture<'static, bool> {
        let from = self.local;
        let others: Vec<_> = self.hub(|hub| {
            let others = hub.peers.iter().filter(|(peer, _)| **peer != from);
            others.map(|(_, discovery)| discovery.clone()).collect()
        });
        let gossips = self.gossips;
        Box::pin(async move {
            if gossips {
                for other in &others {
                    other.tell(News::Gossip { from, data: data.clone(), token: () }).await;
                }
            }
            gossips && !others.is_empty()
        })
    }

    fn penalise(&self, peer: PeerId) -> BoxFuture<'static, ()> {
        self.hub(|hub| hub.penalised.push(peer));
        Box::pin(async {})
    }

    fn report(&self, (): (), verdict: Verdict) {
        self.hub(|hub| hub.verdicts.push(verdict));
    }

    fn request(
        &self,
        peer: PeerId,
        data: Vec<u8>,
        _: Instant,
    ) -> BoxFuture<'static, Result<Vec<u8>, Failure>> {
        let (from, asked) = (self.local, self.hub(|hub| hub.peers.get(&peer).cloned()));
        Box::pin(async move {
            let unreachable = || Failure::not_started(Reason::Unreachable, "no such peer");
            let (reply, answer) = oneshot::channel();
            let asked = asked.ok_or_else(unreachable)?;
            asked.tell(News::Requested { peer: from, data, reply }).await;
            answer.await.map_err(|_| unreachable())
        })
    }
}

struct Described;

impl LocalDescriptors for Described {
    fn descriptors(&self, service: &ServiceName) -> Option<Bytes> {
        (service.as_str() == "demo.v1.A").then(|| Bytes::from_static(b"descriptors"))
    }
}

/// A test's world.
struct World {
    hub: Arc<Mutex<Hub>>,
    tasks: JoinSet<()>,
    gossips: bool,
    finds: bool,
}

impl World {
    fn new() -> Self {
        Self { hub: Arc::default(), tasks: JoinSet::new(), gossips: true, finds: true }
    }

    fn start(&mut self, n: u8) -> Node {
        let key = NodeKey::from_seed([n; 32]);
        let id = key.peer_id();
        let net =
            Net { hub: Arc::clone(&self.hub), local: id, gossips: self.gossips, finds: self.finds };
        let settings = Settings {
            key,
            network: NetworkName::default(),
            boot: now(),
            chance: n.into(),
            limits: Limits::default(),
        };
        let changes = Arc::new(watch::Sender::new(0));
        let (discovery, task) = Discovery::new(Setup {
            settings,
            network: net.clone(),
            descriptors: Arc::new(Described),
            changes: Arc::clone(&changes),
            clock: now,
        });
        self.tasks.spawn(task);
        net.hub(|hub| hub.peers.insert(id, discovery.clone()));
        Node { id, discovery, changes, net }
    }
}

struct Node {
    id: PeerId,
    discovery: Discovery<Net>,
    changes: Arc<watch::Sender<u64>>,
    net: Net,
}

impl Node {
    async fn offers(&self, instance: u64, name: &str) {
        let offer = Offer {
            instance: InstanceId(instance),
            plugin: "demo".into(),
            version: "1.0.0".parse().expect("version"),
            services: vec![ServiceOffer { name: service(name), schema: [1; 32] }],
            labels: BTreeMap::new(),
            isolation: "process".into(),
            price: None,
        };
        self.discovery.announce(offer).await.expect("an offer like any other");
    }

    fn providers(&self, name: &str) -> Vec<PeerId> {
        let directory = self.discovery.directory();
        directory.providers(&service(name)).iter().map(|entry| entry.peer).collect()
    }

    /// Waits until exactly `peers` are known to provide `name`.
    async fn sees(&self, name: &str, peers: &[PeerId]) {
        let mut changes = self.changes.subscribe();
        let seen = async {
            while self.providers(name) != peers {
                changes.changed().await.expect("the node still runs");
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), seen).await;
        in_time.unwrap_or_else(|_| panic!("{name}: {:?}, not {peers:?}", self.providers(name)));
    }
}

async fn connect(one: &Node, other: &Node) {
    one.discovery.tell(News::Connected(other.id)).await;
    other.discovery.tell(News::Connected(one.id)).await;
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn service(name: &str) -> ServiceName {
    name.parse().expect(name)
}

#[tokio::test]
async fn an_offer_is_known_here_at_once_and_elsewhere_soon() {
    let mut world = World::new();
    let (a, b, c) = (world.start(1), world.start(2), world.start(3));
    a.offers(1, "demo.v1.A").await;
    assert_eq!(a.providers("demo.v1.A"), [a.id], "before announce returns");
    connect(&a, &b).await;
    b.sees("demo.v1.A", &[a.id]).await;
    // c is told by b, who holds a's advert: one connection makes its view whole.
    connect(&b, &c).await;
    c.sees("demo.v1.A", &[a.id]).await;
    a.discovery.withdraw(InstanceId(1)).await;
    assert!(a.providers("demo.v1.A").is_empty());
    b.sees("demo.v1.A", &[]).await;
    c.sees("demo.v1.A", &[]).await;
}

#[tokio::test]
async fn a_service_is_found_through_the_dht_alone() {
    let mut world = World::new();
    world.gossips = false;
    let (a, b) = (world.start(1), world.start(2));
    a.offers(1, "demo.v1.A").await;
    assert!(!b.discovery.lookup(service("demo.v1.None"), soon()).await);
    // Announcing in the DHT is a chore of its own, done a moment later.
    while b.discovery.query_dht(&service("demo.v1.A"), soon()).await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(b.discovery.lookup(service("demo.v1.A"), soon()).await);
    assert_eq!(b.providers("demo.v1.A"), [a.id]);
}

#[tokio::test]
async fn a_lookup_ends_at_its_callers_deadline() {
    let mut world = World::new();
    world.finds = false;
    let a = world.start(1);
    let before = Instant::now();
    let deadline = before + Duration::from_millis(100);
    assert!(!a.discovery.lookup(service("demo.v1.A"), deadline).await);
    let taken = before.elapsed();
    assert!(taken < Duration::from_millis(LOOKUP_MILLIS_MAX), "the lookup's own end: {taken:?}");
}

#[tokio::test]
async fn descriptors_come_from_the_peer_that_has_them() {
    let mut world = World::new();
    let (a, b) = (world.start(1), world.start(2));
    let got = b.discovery.descriptors(a.id, service("demo.v1.A"), soon()).await;
    assert_eq!(got.expect("described"), Bytes::from_static(b"descriptors"));
    let missing = b.discovery.descriptors(a.id, service("demo.v1.B"), soon()).await;
    let missing = missing.expect_err("not described");
    assert_eq!((missing.reason, missing.peer), (Reason::NotAvailable, Some(a.id)));
    let nobody = NodeKey::from_seed([99; 32]).peer_id();
    let lost = b.discovery.descriptors(nobody, service("demo.v1.A"), soon()).await;
    assert_eq!(lost.expect_err("nobody there").reason, Reason::Unreachable);
}

#[tokio::test]
async fn a_forger_is_rejected_and_penalised() {
    let mut world = World::new();
    let (a, b) = (world.start(1), world.start(2));
    for n in 0..20 {
        let data = vec![n; 200];
        b.discovery.tell(News::Gossip { from: a.id, data, token: () }).await;
    }
    while b.net.hub(|hub| hub.penalised.is_empty() || hub.verdicts.len() < 20) {
        tokio::task::yield_now().await;
    }
    b.net.hub(|hub| {
        assert_eq!(hub.penalised, [a.id]);
        assert_eq!(hub.verdicts.iter().filter(|one| **one == Verdict::Reject).count(), 8);
    });
}

#[tokio::test]
async fn a_lost_peer_is_suspect_and_one_that_left_is_gone() {
    let mut world = World::new();
    let (a, b) = (world.start(1), world.start(2));
    connect(&a, &b).await;
    a.offers(1, "demo.v1.A").await;
    b.sees("demo.v1.A", &[a.id]).await;
    let mut changes = b.changes.subscribe();
    b.discovery.tell(News::Disconnected { peer: a.id, abrupt: true }).await;
    let suspect = |node: &Node| {
        node.discovery.directory().providers(&service("demo.v1.A")).iter().all(|one| one.suspect)
    };
    while !suspect(&b) {
        changes.changed().await.expect("the node still runs");
    }
    b.discovery.tell(News::Connected(a.id)).await;
    while suspect(&b) {
        changes.changed().await.expect("the node still runs");
    }
    a.discovery.leave().await;
    b.sees("demo.v1.A", &[]).await;
}

#[tokio::test]
async fn the_task_ends_after_leaving_and_everything_then_fails_at_once() {
    let mut world = World::new();
    let a = world.start(1);
    a.offers(1, "demo.v1.A").await;
    a.discovery.leave().await;
    world.tasks.join_next().await.expect("one task").expect("no panic");
    assert!(a.providers("demo.v1.A").is_empty());
    assert!(!a.discovery.lookup(service("demo.v1.A"), soon()).await);
    a.discovery.withdraw(InstanceId(1)).await;
    a.discovery.leave().await;
}

#[tokio::test]
async fn the_task_ends_when_nobody_is_left_to_speak_to_it() {
    let mut world = World::new();
    let a = world.start(1);
    a.net.hub(|hub| hub.peers.clear());
    drop(a);
    world.tasks.join_next().await.expect("one task").expect("no panic");
}
