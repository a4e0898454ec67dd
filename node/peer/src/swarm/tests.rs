//! Whole peers on loopback, in one process: real sockets, real time.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Empty, Full};
use multiaddr::{Multiaddr, Protocol};
use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Ran, Reason},
    id::{NodeKey, PeerId},
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reach as _, Reply, Store, StoreError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, broadcast, mpsc, watch},
    time::timeout,
};
use tracing_subscriber::EnvFilter;

use super::*;
use crate::{config::PeerConfig, links::LinkPool};

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store that lasts as long as the test, and says when it was written to.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>, watch::Sender<()>);

impl Store for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut entries = self.0.lock();
        for (key, value) in changes {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
        self.1.send_replace(());
        Ok(())
    }

    fn scan(&self, prefix: &[u8], most: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let entries = self.0.lock();
        let of_prefix = entries.range(prefix.to_vec()..).take_while(|(k, _)| k.starts_with(prefix));
        Ok(of_prefix.take(most).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

impl Memory {
    /// Waits until something is written under `prefix`.
    async fn written(&self, prefix: &[u8]) {
        let mut writes = self.1.subscribe();
        let search = async {
            while self.scan(prefix, 1).expect("read").is_empty() {
                writes.changed().await.expect("the store is there");
            }
        };
        timeout(PATIENCE, search).await.expect("written");
    }
}

/// A store that cannot be read.
struct Damaged;

impl Store for Damaged {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Err(StoreError { action: "read", cause: "checksum mismatch".into() })
    }

    fn write(&self, _: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        Ok(())
    }

    fn scan(&self, _: &[u8], _: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        Err(StoreError { action: "read", cause: "checksum mismatch".into() })
    }
}

/// A peer of a test. Its events are kept so that waiting for one never misses it.
struct TestPeer {
    handle: SwarmHandle,
    inbound: mpsc::Receiver<Inbound>,
    changes: watch::Receiver<u64>,
    seen: Arc<Mutex<Vec<String>>>,
    news: broadcast::Sender<()>,
    tasks: SwarmTasks,
    pump: tokio::task::JoinHandle<()>,
    store: Arc<Memory>,
}

fn config(seed: u8, listen: &[&str]) -> PeerConfig {
    let network = "test".parse().expect("a network name");
    let mut config = PeerConfig::new(NodeKey::from_seed([seed; 32]), network);
    config.name = format!("peer {seed}");
    config.listen = listen.iter().map(|text| text.parse().expect("a multiaddr")).collect();
    config
}

impl TestPeer {
    async fn start(config: PeerConfig) -> Self {
        Self::with_store(config, Arc::default()).await
    }

    async fn with_store(config: PeerConfig, store: Arc<Memory>) -> Self {
        let logs = tracing_subscriber::fmt().with_test_writer();
        let _ = logs.with_env_filter(EnvFilter::from_default_env()).try_init();
        let (version, changes) = watch::channel(0);
        let running = start(&config, store.clone(), Arc::new(version)).await;
        let Running { handle, mut events, inbound, tasks } = running.expect("started");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (news, _) = broadcast::channel(1_024);
        let pump = tokio::spawn({
            let (seen, news, handle) = (seen.clone(), news.clone(), handle.clone());
            async move {
                while let Some(event) = events.recv().await {
                    let text = match event {
                        SwarmEvent::Gossip { data, token, .. } => {
                            handle.report(token, Verdict::Accept);
                            format!("Gossip {}", String::from_utf8_lossy(&data))
                        }
                        SwarmEvent::Request { data, reply, peer } => {
                            let _ = reply.send([b"echo ", &data[..]].concat());
                            format!("Request from {peer}")
                        }
                        event => format!("{event:?}"),
                    };
                    seen.lock().push(text);
                    let _ = news.send(());
                }
            }
        });
        Self { handle, inbound, changes, seen, news, tasks, pump, store }
    }

    fn id(&self) -> PeerId {
        self.handle.local_id()
    }

    /// Its address over `transport`, with its id.
    fn address(&self, transport: Transport) -> Multiaddr {
        let view = self.handle.view();
        let of_transport = view.listen.iter().find(|a| address::transport(a) == transport);
        of_transport.expect("listens").clone().with(Protocol::P2p(self.id().inner()))
    }

    /// Waits until an event's text satisfies `wanted`, counting those that came before.
    async fn event(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut news = self.news.subscribe();
        let search = async {
            loop {
                if let Some(found) = self.seen.lock().iter().find(|text| wanted(text)) {
                    return found.clone();
                }
                let _ = news.recv().await;
            }
        };
        let found = timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("not among {:#?}", self.seen.lock()))
    }

    /// Waits until the view satisfies `wanted`.
    async fn view(&self, wanted: impl Fn(&PeerView) -> bool) -> Arc<PeerView> {
        let mut changes = self.changes.clone();
        let search = async {
            loop {
                let view = self.handle.view();
                if wanted(&view) {
                    return view;
                }
                changes.changed().await.expect("the swarm runs");
            }
        };
        let found = timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("never seen; now {:#?}", self.handle.view()))
    }

    /// Ends without a goodbye, as a killed process does as far as others can see.
    async fn kill(self) -> Arc<Memory> {
        drop(self.tasks);
        drop(self.handle);
        let _ = self.pump.await;
        self.store
    }

    /// Ends as it should.
    async fn stop(self) -> Arc<Memory> {
        self.handle.shut_down().await;
        drop(self.handle);
        timeout(PATIENCE, self.tasks.join()).await.expect("ends");
        self.store
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// `count` peers, of which all but the first join through the first.
async fn mesh(count: u8) -> Vec<TestPeer> {
    let first = TestPeer::start(config(1, &[TCP, QUIC])).await;
    let door = first.address(Transport::Tcp);
    let mut peers = vec![first];
    for seed in 2..=count {
        let mut config = config(seed, &[TCP, QUIC]);
        config.bootstrap = vec![door.clone()];
        peers.push(TestPeer::start(config).await);
    }
    for peer in &peers {
        peer.view(|view| view.peers.len() == usize::from(count) - 1).await;
    }
    peers
}

async fn pair(listen: &str, transport: Transport) -> (TestPeer, TestPeer) {
    let a = TestPeer::start(config(1, &[listen])).await;
    let mut b = config(2, &[]);
    b.bootstrap = vec![a.address(transport)];
    let b = TestPeer::start(b).await;
    b.event(|text| text.contains("PeerConnected")).await;
    a.event(|text| text.contains("PeerConnected")).await;
    (a, b)
}

async fn talks_both_ways(listen: &str, transport: Transport) {
    let (mut a, b) = pair(listen, transport).await;
    let view = b.view(|view| view.joined).await;
    assert_eq!(view.peers[0].connections[0].transport, transport);
    assert!(!view.peers[0].connections[0].inbound);
    let mut there = b.handle.open_stream(a.id(), soon()).await.expect("opened");
    let Inbound { peer, stream: mut here } = a.inbound.recv().await.expect("arrives");
    assert_eq!(peer, b.id());
    there.write_all(b"ping").await.expect("written");
    there.flush().await.expect("flushed");
    let mut word = [0; 4];
    here.read_exact(&mut word).await.expect("read");
    assert_eq!(&word, b"ping");
    here.write_all(b"pong").await.expect("written");
    here.shutdown().await.expect("closed");
    let mut rest = Vec::new();
    there.read_to_end(&mut rest).await.expect("read");
    assert_eq!(rest, b"pong");

    // The accepting side opens, too: no dial is needed.
    let mut b = b;
    let _there = a.handle.open_stream(b.id(), soon()).await.expect("opened");
    assert_eq!(b.inbound.recv().await.expect("arrives").peer, a.id());
}

#[tokio::test]
async fn two_peers_talk_over_tcp() {
    talks_both_ways(TCP, Transport::Tcp).await;
}

#[tokio::test]
async fn two_peers_talk_over_quic() {
    talks_both_ways(QUIC, Transport::Quic).await;
}

async fn burst(listen: &str, transport: Transport) {
    let (mut a, b) = pair(listen, transport).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        let (handle, a) = (b.handle.clone(), a.id());
        tasks.spawn(async move {
            let mut stream = handle.open_stream(a, soon()).await.map_err(|f| f.reason)?;
            stream.write_all(&number.to_le_bytes()).await.expect("written");
            stream.flush().await.expect("flushed");
            Ok::<_, Reason>(stream)
        });
    }
    let outcomes = timeout(PATIENCE, tasks.join_all()).await.expect("none hangs");
    let opened = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(outcomes.iter().all(|o| o.as_ref().err().is_none_or(|reason| *reason == Reason::Busy)));
    let mut numbers = HashSet::new();
    for _ in 0..opened {
        let mut stream = timeout(PATIENCE, a.inbound.recv()).await.expect("arrives");
        let mut number = [0; 4];
        let stream = &mut stream.as_mut().expect("arrives").stream;
        stream.read_exact(&mut number).await.expect("read");
        numbers.insert(u32::from_le_bytes(number));
    }
    assert_eq!(numbers.len(), opened, "every opened stream arrived");
    assert_eq!(opened, 200, "two hundred fit");
}

#[tokio::test]
async fn two_hundred_streams_opened_at_once_over_tcp_all_arrive() {
    burst(TCP, Transport::Tcp).await;
}

#[tokio::test]
async fn two_hundred_streams_opened_at_once_over_quic_all_arrive() {
    burst(QUIC, Transport::Quic).await;
}

#[tokio::test]
async fn a_full_queue_refuses_streams_as_busy_and_the_connection_survives() {
    let (a, b) = pair(TCP, Transport::Tcp).await;
    let id = a.id();
    // Nobody takes what arrives at `a`, and this side holds every place of the connection.
    let mut held = Vec::new();
    for _ in 0..streams::STREAMS_MAX {
        held.push(b.handle.open_stream(id, soon()).await.expect("opened"));
    }
    let brief = Instant::now() + Duration::from_millis(300);
    let failure = b.handle.open_stream(id, brief).await.err().expect("no place");
    assert_eq!(failure.ran, Ran::NotStarted);
    held.clear();
    drop(a.inbound);
    let failure = b.handle.open_stream(id, soon()).await.err().expect("nobody takes it");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Busy));
    assert_eq!(b.handle.view().peers.len(), 1, "the connection survived");
}

#[tokio::test]
async fn a_stream_is_opened_to_a_peer_that_is_known_and_not_connected() {
    let a = TestPeer::start(config(1, &[TCP])).await;
    let b = TestPeer::start(config(2, &[TCP])).await;
    b.handle.dial(a.address(Transport::Tcp)).await.expect("dialled");
    b.event(|text| text.contains("PeerConnected")).await;
    let (id, memory) = (a.id(), a.address(Transport::Tcp));
    drop(memory);
    // `c` knows `a` only through `b`.
    let mut c = config(3, &[]);
    c.bootstrap = vec![b.address(Transport::Tcp)];
    let c = TestPeer::start(c).await;
    c.event(|text| text.contains("Joined")).await;
    c.handle.open_stream(id, soon()).await.expect("found and dialled");
}

#[tokio::test]
async fn opening_a_stream_to_a_dead_peer_fails_in_time_and_has_not_started() {
    let (a, b) = pair(TCP, Transport::Tcp).await;
    let dead = a.id();
    drop(a.kill().await);
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(5);
    let failure = b.handle.open_stream(dead, deadline).await.err().expect("nobody is there");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Unreachable));
    assert_eq!(failure.peer, Some(dead));
    assert!(Instant::now() <= deadline + Duration::from_millis(100));
    let reported = format!("{:?}", SwarmEvent::PeerDisconnected { peer: dead, abrupt: true });
    b.event(|text| text == reported).await;
    let unknown = NodeKey::from_seed([99; 32]).peer_id();
    let failure = b.handle.open_stream(unknown, deadline).await.err().expect("unknown");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Unreachable));
}

#[tokio::test]
async fn a_killed_peer_is_noticed_at_once_and_a_stopped_one_too() {
    for transport in [TCP, QUIC] {
        let kind = if transport == TCP { Transport::Tcp } else { Transport::Quic };
        let (a, b) = pair(transport, kind).await;
        drop(b.kill().await);
        let begun = Instant::now();
        a.event(|text| text.contains("PeerDisconnected")).await;
        assert!(begun.elapsed() < Duration::from_secs(8), "{transport}: {:?}", begun.elapsed());
        a.view(|view| view.peers.is_empty() && !view.joined).await;
    }
}

#[tokio::test]
async fn gossip_reaches_all_of_ten() {
    let peers = mesh(10).await;
    // Subscriptions travel after connections; a message published before is heard by fewer.
    for round in 0..50 {
        let text = format!("round {round}");
        let published = peers[3].handle.publish(text.clone().into_bytes()).await;
        let heard = async {
            for (number, peer) in peers.iter().enumerate() {
                if number != 3 {
                    peer.event(|event| *event == format!("Gossip {text}")).await;
                }
            }
        };
        if published && timeout(Duration::from_secs(2), heard).await.is_ok() {
            return;
        }
    }
    panic!("gossip never reached everybody");
}

#[tokio::test]
async fn providers_are_found_across_six_peers_after_the_bootstrap_died() {
    let mut peers = mesh(6).await;
    let key = [7; 32];
    peers[1].handle.provide(key).await;
    peers[2].handle.provide(key).await;
    let bootstrap = peers.remove(0);
    drop(bootstrap.kill().await);
    let wanted = HashSet::from([peers[0].id(), peers[1].id()]);
    // Announcing takes a moment; a lookup that comes too early finds nobody.
    let search = async {
        loop {
            let found = peers[4].handle.find_providers(key, soon()).await;
            if found.into_iter().collect::<HashSet<_>>() == wanted {
                return;
            }
        }
    };
    timeout(PATIENCE, search).await.expect("found");

    // A newcomer joins through any of them.
    let mut late = config(9, &[TCP]);
    late.bootstrap = vec![peers[3].address(Transport::Tcp)];
    let late = TestPeer::start(late).await;
    late.view(|view| view.peers.len() == 5).await;
    let found = late.handle.find_providers(key, soon()).await;
    assert!(!found.is_empty(), "the newcomer finds providers");
}

#[tokio::test]
async fn nothing_is_found_quickly_where_nobody_provides() {
    let peers = mesh(3).await;
    let begun = Instant::now();
    assert_eq!(peers[1].handle.find_providers([1; 32], soon()).await, []);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn registry_requests_are_answered_and_time_out() {
    let (a, b) = pair(TCP, Transport::Tcp).await;
    let answer = b.handle.request(a.id(), b"who?".to_vec(), soon()).await.expect("answered");
    assert_eq!(answer, b"echo who?");
    let answer = a.handle.request(b.id(), vec![1; 64 * 1024 + 1], soon()).await;
    assert!(answer.is_err(), "larger than a request may be");
    let unknown = NodeKey::from_seed([99; 32]).peer_id();
    let failure = a.handle.request(unknown, vec![], soon()).await.expect_err("unknown");
    assert_eq!(failure.ran, Ran::NotStarted);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    for listen in [TCP, QUIC] {
        let a = TestPeer::start(config(1, &[listen])).await;
        let taken = a.handle.view().listen[0].clone();
        let mut second = config(2, &[]);
        second.listen = vec![taken.clone()];
        let (changed, _) = watch::channel(0);
        let outcome = start(&second, Arc::new(Memory::default()), Arc::new(changed)).await;
        let error = outcome.err().expect("in use");
        assert!(
            matches!(&error, StartError::PortInUse { address } if *address == taken),
            "{error}"
        );
        assert!(error.to_string().contains("--listen"), "{error}");
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_is_named() {
    for bad in ["/ip4/127.0.0.1", "/ip4/192.0.2.1/tcp/4001", "/dns4/example.org/tcp/1"] {
        let (changed, _) = watch::channel(0);
        let store = Arc::new(Memory::default());
        let outcome = start(&config(1, &[bad]), store, Arc::new(changed)).await;
        let error = outcome.err().expect("cannot be listened on");
        assert!(matches!(error, StartError::BadAddress { .. }), "{error}");
        assert!(error.to_string().contains(bad), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_store_is_an_error_that_says_what_to_do() {
    let (changed, _) = watch::channel(0);
    let outcome = start(&config(1, &[TCP]), Arc::new(Damaged), Arc::new(changed)).await;
    let error = outcome.err().expect("damaged").to_string();
    assert!(error.contains("checksum mismatch") && error.contains("Move"), "{error}");
}

#[tokio::test]
async fn a_peer_of_another_network_is_sent_away() {
    let a = TestPeer::start(config(1, &[TCP])).await;
    let mut stranger = config(2, &[]);
    stranger.network = "elsewhere".parse().expect("a network name");
    stranger.bootstrap = vec![a.address(Transport::Tcp)];
    let stranger = TestPeer::start(stranger).await;
    let said = stranger.event(|text| text.contains("Foreign")).await;
    assert!(said.contains("network `test`") && said.contains("network `elsewhere`"), "{said}");
    a.event(|text| text.contains("Foreign")).await;
    assert!(!a.handle.view().joined && !stranger.handle.view().joined);
    let failure = stranger.handle.open_stream(a.id(), soon()).await.err().expect("refused");
    assert_eq!(failure.ran, Ran::NotStarted);
    assert!(failure.message.contains("network"), "{failure}");

    // Corrected, it is welcome at once.
    let mut friend = config(2, &[]);
    friend.bootstrap = vec![a.address(Transport::Tcp)];
    drop(stranger.kill().await);
    let friend = TestPeer::start(friend).await;
    let begun = Instant::now();
    friend.event(|text| text.contains("Joined")).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_lied_is_sent_away_and_does_not_storm_the_door() {
    let (a, b) = pair(TCP, Transport::Tcp).await;
    a.handle.penalise(b.id()).await;
    a.event(|text| text.contains("PeerDisconnected")).await;
    b.event(|text| text.contains("BootstrapUnreachable")).await;
    assert!(b.handle.view().counters.dials < 10, "{:?}", b.handle.view().counters);
    assert!(a.handle.view().peers.is_empty());
}

#[tokio::test]
async fn an_unreachable_bootstrap_is_spoken_of_and_joined_once_it_is_there() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("a multiaddr");
    let mut early = config(1, &[]);
    early.bootstrap = vec![address.clone()];
    let early = TestPeer::start(early).await;
    let said = early.event(|text| text.contains("BootstrapUnreachable")).await;
    assert!(said.contains(&port.to_string()) && said.contains("refused"), "{said}");
    let mut late = config(2, &[]);
    late.listen = vec![address];
    let late = TestPeer::start(late).await;
    let said = early.event(|text| text.contains("Joined")).await;
    assert!(said.contains(&late.id().to_string()), "{said}");
}

#[tokio::test]
async fn a_restarted_peer_joins_from_its_own_store_with_no_bootstrap_alive() {
    let mut peers = mesh(3).await;
    let key = [5; 32];
    peers[1].handle.provide(key).await;
    peers[2].store.written(b"kad/").await;
    let provider = peers[1].id();
    let store = peers.pop().expect("the third").stop().await;
    let bootstrap = peers.remove(0);
    drop(bootstrap.kill().await);
    let records = store.scan(b"kad/", 10).expect("read");
    assert_eq!(records.len(), 1, "the provider record was written");
    assert!(!store.scan(b"book/", 10).expect("read").is_empty(), "the peers were written");

    let again = TestPeer::with_store(config(3, &[TCP, QUIC]), store).await;
    // The record is there before anybody is connected.
    assert_eq!(again.handle.find_providers(key, soon()).await, [provider]);
    again.event(|text| text.contains("Joined")).await;
    again.view(|view| view.neighbour(provider).is_some()).await;
}

#[tokio::test]
async fn wildcard_addresses_are_shown_as_concrete_ones() {
    let peer =
        TestPeer::start(config(1, &["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"])).await;
    let view = peer.view(|view| view.listen.len() >= 2).await;
    for address in view.listen.iter().chain(&view.external) {
        assert!(!address.to_string().contains("0.0.0.0"), "{address}");
        assert!(!address.to_string().ends_with("/tcp/0"), "{address}");
    }
}

#[tokio::test]
async fn without_dht_and_gossip_peers_still_talk() {
    let mut a = config(1, &[TCP]);
    (a.dht, a.gossip, a.relay_server) = (false, false, false);
    let a = TestPeer::start(a).await;
    let mut b = config(2, &[]);
    b.bootstrap = vec![a.address(Transport::Tcp)];
    let b = TestPeer::start(b).await;
    b.event(|text| text.contains("Joined")).await;
    b.handle.open_stream(a.id(), soon()).await.expect("opened");
    assert_eq!(a.handle.find_providers([1; 32], soon()).await, []);
    assert!(!a.handle.publish(b"anybody?".to_vec()).await);
}

#[tokio::test]
async fn a_stopped_peer_leaves_no_task_and_its_handle_answers_at_once() {
    let (a, b) = pair(QUIC, Transport::Quic).await;
    let (handle, other) = (b.handle.clone(), a.id());
    b.stop().await;
    let failure = handle.open_stream(other, soon()).await.err().expect("stopped");
    assert_eq!(failure.ran, Ran::NotStarted);
    assert!(!handle.publish(b"anybody?".to_vec()).await);
    a.event(|text| text.contains("PeerDisconnected")).await;
}

#[tokio::test]
async fn a_lost_peer_is_found_again_when_it_comes_back() {
    let (a, b) = pair(TCP, Transport::Tcp).await;
    let (id, address) = (a.id(), a.handle.view().listen[0].clone());
    let store = a.kill().await;
    b.view(|view| view.peers.is_empty()).await;
    let mut again = config(1, &[]);
    again.listen = vec![address];
    let again = TestPeer::with_store(again, store).await;
    assert_eq!(again.id(), id);
    b.view(|view| view.neighbour(id).is_some()).await;
    b.handle.open_stream(id, soon()).await.expect("opened");
}

/// A relay, a peer that listens there only, so far as the others know, and one that is connected to
/// it through the relay.
async fn behind_a_relay() -> [TestPeer; 3] {
    let relay = TestPeer::start(config(1, &[TCP])).await;
    let circuit = relay.address(Transport::Tcp).with(Protocol::P2pCircuit);
    let mut hidden = config(2, &[]);
    hidden.listen = vec![circuit.clone()];
    let hidden = TestPeer::start(hidden).await;
    hidden.view(|view| !view.listen.is_empty()).await;
    let caller = TestPeer::start(config(3, &[TCP])).await;
    let address = circuit.with(Protocol::P2p(hidden.id().inner()));
    caller.handle.dial(address).await.expect("dialled through the relay");
    caller.view(|view| is_over(view, hidden.id(), Transport::Relay)).await;
    [relay, hidden, caller]
}

/// Whether a connection to `peer` is over `transport`.
fn is_over(view: &PeerView, peer: PeerId, transport: Transport) -> bool {
    let connections = view.neighbour(peer).map(|neighbour| &neighbour.connections);
    connections.is_some_and(|all| all.iter().any(|c| c.transport == transport))
}

#[tokio::test]
async fn a_peer_reached_through_a_relay_is_called_directly_as_soon_as_that_works() {
    let [relay, mut hidden, caller] = behind_a_relay().await;
    let id = hidden.id();
    drop(caller.handle.open_stream(id, soon()).await.expect("opened through the relay"));
    drop(hidden.inbound.recv().await.expect("arrives"));

    hidden.handle.dial(caller.address(Transport::Tcp)).await.expect("dialled");
    caller.view(|view| is_over(view, id, Transport::Tcp)).await;
    let mut there = caller.handle.open_stream(id, soon()).await.expect("opened directly");
    let mut here = hidden.inbound.recv().await.expect("arrives").stream;
    // Only a stream on the direct connection outlives the relay.
    drop(relay.kill().await);
    caller.view(|view| !is_over(view, id, Transport::Relay)).await;
    there.write_all(b"still here").await.expect("written");
    there.flush().await.expect("flushed");
    let mut word = [0; 10];
    here.read_exact(&mut word).await.expect("read");
    assert_eq!(&word, b"still here");
}

/// Large enough for a lane.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Tells of a call, and answers when the gate is open, with much.
#[derive(Clone)]
struct Gated {
    arrived: Arc<Notify>,
    gate: watch::Receiver<bool>,
}

impl Invoke for Gated {
    fn invoke(&self, _: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        self.arrived.notify_one();
        let mut gate = self.gate.clone();
        Box::pin(async move {
            gate.wait_for(|open| *open).await.expect("the test holds the gate");
            let much = Full::from(vec![7; ANSWER_BYTES]).map_err(|never| match never {});
            Ok(Reply { metadata: HeaderMap::new(), body: Body::new(much) })
        })
    }
}

/// A call on the link that calls to `peer` use now.
async fn call(links: &LinkPool, peer: PeerId) -> Result<(), Failure> {
    let head = CallHead {
        path: "/test.v1.Test/Call".parse().expect("a path"),
        metadata: HeaderMap::new(),
        deadline: Some(soon()),
        locality: Locality::Any,
        caller: Caller::Client,
    };
    let link = links.reach(peer, soon()).await?;
    let body = Body::new(Empty::new().map_err(|never| match never {}));
    let answer = link.invoke(Call { head, body }).await?.body.collect().await?.to_bytes();
    assert_eq!(answer.len(), ANSWER_BYTES);
    Ok(())
}

#[tokio::test]
async fn calls_in_flight_end_on_the_relay_and_those_after_them_go_directly() {
    let [relay, hidden, caller] = behind_a_relay().await;
    let TestPeer { handle: hidden, mut inbound, tasks: _tasks, pump: _pump, .. } = hidden;
    let id = hidden.local_id();
    let (open, gate) = watch::channel(true);
    let gated = Gated { arrived: Arc::new(Notify::new()), gate };
    let arrived = gated.arrived.clone();
    let served = Arc::new(LinkPool::new(hidden.clone()));
    let (links, arrivals) = (Arc::new(LinkPool::new(caller.handle.clone())), served.clone());
    let (came, mut relayed) = mpsc::channel(16);
    let accepting = tokio::spawn(async move {
        while let Some(Inbound { peer, stream }) = inbound.recv().await {
            came.send(stream.is_relayed()).await.expect("the test listens");
            arrivals.serve_inbound(peer, stream, Arc::new(gated.clone()));
        }
    });
    call(&links, id).await.expect("answered through the relay");
    let mut next = async || timeout(PATIENCE, relayed.recv()).await.expect("a stream is opened");
    assert_eq!((next().await, next().await), (Some(true), Some(true)), "a link and its lane");
    arrived.notified().await;

    open.send_replace(false);
    let in_flight = tokio::spawn({
        let links = links.clone();
        async move { call(&links, id).await }
    });
    arrived.notified().await;
    hidden.dial(caller.address(Transport::Tcp)).await.expect("dialled");
    assert_eq!(next().await, Some(false), "the link is replaced");
    open.send_replace(true);
    in_flight.await.expect("no panic").expect("answered where it was sent");
    // Only a link on the direct connection outlives the relay.
    drop(relay.kill().await);
    caller.view(|view| !is_over(view, id, Transport::Relay)).await;
    call(&links, id).await.expect("answered directly");
    assert_eq!(next().await, Some(false), "its lane is on the same connection");
    assert!(relayed.try_recv().is_err(), "no further stream was opened");
    accepting.abort();
}

#[tokio::test]
async fn a_peer_that_speaks_no_call_protocol_is_named_as_such() {
    use futures::StreamExt;
    use libp2p::{SwarmBuilder, identify, noise, tcp, yamux};
    let mut bare = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("tcp")
        .with_behaviour(|key| {
            identify::Behaviour::new(identify::Config::new(
                "/blackhole/test/1".into(),
                key.public(),
            ))
        })
        .expect("identify")
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    let a = TestPeer::start(config(1, &[TCP])).await;
    bare.dial(a.address(Transport::Tcp)).expect("dialled");
    let id = PeerId::from(*bare.local_peer_id());
    let bare = tokio::spawn(async move {
        loop {
            bare.select_next_some().await;
        }
    });
    a.event(|text| text.contains("PeerConnected")).await;
    let failure = a.handle.open_stream(id, soon()).await.err().expect("not spoken");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Unreachable));
    assert!(failure.message.contains("/blackhole/call/1"), "{failure}");
    let failure = a.handle.request(id, vec![1], soon()).await.expect_err("not spoken");
    assert!(failure.message.contains("registry"), "{failure}");
    bare.abort();
}
