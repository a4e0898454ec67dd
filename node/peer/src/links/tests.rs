//! The pool over streams in memory, with an opener that does as it is told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::{BodyExt as _, Empty, Full};
use protocol::{
    failure::Ran,
    frame::{Decoder, Frame, LANE_PREFACE_BYTES, PREFACE_BYTES, lane_preface, preface},
    id::NodeKey,
    ports::{Body, Call, CallHead, Caller, Locality, Reply},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    sync::oneshot,
    sync::watch,
};
use tokio_util::either::Either;

use super::{inbound::*, *};

const LONG: Duration = Duration::from_secs(20);

fn peer(seed: u8) -> PeerId {
    NodeKey::from_seed([seed; 32]).peer_id()
}

fn soon() -> Instant {
    Instant::now() + LONG
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

fn call() -> Call {
    let head = CallHead {
        path: "/test.v1.Test/Call".parse().expect("a path"),
        metadata: HeaderMap::new(),
        deadline: None,
        locality: Locality::Any,
        caller: Caller::Client,
    };
    Call { head, body: Body::new(Empty::new().map_err(|never| match never {})) }
}

/// Answers with its own name once it is let, and tells who called.
struct Named {
    name: &'static str,
    gate: watch::Receiver<bool>,
}

impl Invoke for Named {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let (name, mut gate) = (self.name, self.gate.clone());
        async move {
            gate.wait_for(|open| *open).await.expect("the test holds the gate");
            let text = match call.head.caller {
                Caller::Peer(peer) => format!("{name} to {peer}"),
                other => format!("{name} to {other:?}"),
            };
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            Ok(Reply { metadata: HeaderMap::new(), body: Body::new(body) })
        }
        .boxed()
    }
}

fn named(name: &'static str) -> Arc<dyn Invoke> {
    let (_, gate) = watch::channel(true);
    Arc::new(Named { name, gate })
}

async fn ask(invoke: &dyn Invoke) -> Result<String, Failure> {
    let reply = within("a reply", invoke.invoke(call())).await?;
    let bytes = within("a body", reply.body.collect()).await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

/// Tells of each call and answers none.
struct Never(mpsc::Sender<Call>);

impl Invoke for Never {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        self.0.try_send(call).expect("the test listens");
        std::future::pending().boxed()
    }
}

/// A direct stream, or one through a third peer.
type TestStream = Either<DuplexStream, DuplexStream>;

/// Hands each request for a stream to the test, which answers when it likes.
struct Opener {
    direct: Arc<AtomicBool>,
    requests: mpsc::Sender<(PeerId, oneshot::Sender<Result<TestStream, Failure>>)>,
    opened: Arc<AtomicUsize>,
}

impl OpenStream for Opener {
    type Stream = TestStream;

    fn is_relayed(stream: &TestStream) -> bool {
        matches!(stream, Either::Right(_))
    }

    fn has_direct(&self, _: PeerId) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    async fn open_stream(&self, peer: PeerId, _: Instant) -> Result<TestStream, Failure> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.requests.send((peer, reply)).await.expect("the test listens");
        answer.await.expect("the test answers")
    }
}

struct World {
    pool: LinkPool<Opener>,
    requests: mpsc::Receiver<(PeerId, oneshot::Sender<Result<TestStream, Failure>>)>,
    opened: Arc<AtomicUsize>,
    /// Whether there is a direct connection.
    direct: Arc<AtomicBool>,
}

impl World {
    fn new() -> Self {
        let (sender, requests) = mpsc::channel(64);
        let opened = Arc::new(AtomicUsize::new(0));
        let direct = Arc::new(AtomicBool::new(true));
        let (count, found) = (opened.clone(), direct.clone());
        let pool = LinkPool::new(Opener { direct: found, requests: sender, opened: count });
        Self { pool, requests, opened, direct }
    }

    /// Answers the next request with a stream and returns its other end.
    async fn connect(&mut self) -> DuplexStream {
        self.connect_by(Either::Left).await
    }

    async fn connect_by(&mut self, way: fn(DuplexStream) -> TestStream) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (_, reply) = within("a request", self.requests.recv()).await.expect("asked");
        assert!(reply.send(Ok(way(near))).is_ok(), "the pool waits");
        far
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

fn serve(stream: DuplexStream, handler: Arc<dyn Invoke>) -> tokio::task::JoinHandle<link::LinkEnd> {
    let settings = LinkSettings::default();
    tokio::spawn(link::serve(stream, settings, Caller::Peer(peer(1)), handler))
}

fn failure(reached: Result<Arc<dyn Invoke>, Failure>) -> Failure {
    reached.err().expect("a failure")
}

#[tokio::test]
async fn everyone_who_wants_a_peer_at_once_shares_one_attempt() {
    let mut world = World::new();
    let waiting: Vec<_> = (0..50).map(|_| world.pool.reach(peer(2), soon())).collect();
    let far = world.connect().await;
    let _server = serve(far, named("b"));
    for reached in waiting {
        let link = within("a link", reached).await.expect("reached");
        assert_eq!(ask(&*link).await, Ok(format!("b to {}", peer(1))));
    }
    let again = within("a link", world.pool.reach(peer(2), soon())).await.expect("reached");
    ask(&*again).await.expect("answered");
    assert_eq!(world.opened(), 1);
}

#[tokio::test]
async fn a_link_that_ended_is_replaced() {
    let mut world = World::new();
    let reached = world.pool.reach(peer(2), soon());
    let server = serve(world.connect().await, named("first"));
    let link = within("a link", reached).await.expect("reached");
    ask(&*link).await.expect("answered");
    server.abort();
    let lost = loop {
        // The link is used until this side has noticed.
        match ask(&*link).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(failure) => break failure,
        }
    };
    assert_eq!((lost.reason, lost.peer), (Reason::PeerLost, Some(peer(2))));
    let reached = world.pool.reach(peer(2), soon());
    let _server = serve(world.connect().await, named("second"));
    let link = within("a link", reached).await.expect("reached");
    assert_eq!(ask(&*link).await, Ok(format!("second to {}", peer(1))));
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn an_unreachable_peer_is_not_started_and_tried_again_next_time() {
    let mut world = World::new();
    for _ in 0..2 {
        let reached = world.pool.reach(peer(2), soon());
        let (asked, reply) = within("a request", world.requests.recv()).await.expect("asked");
        assert_eq!(asked, peer(2));
        let refused = Failure::not_started(Reason::Unreachable, "nobody there");
        assert!(reply.send(Err(refused.clone())).is_ok(), "the pool waits");
        assert_eq!(failure(within("a failure", reached).await), refused.at(peer(2)));
    }
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn a_caller_gives_up_at_its_deadline_and_the_attempt_goes_on() {
    let mut world = World::new();
    let hasty = world.pool.reach(peer(2), Instant::now() + Duration::from_millis(30));
    let late = failure(within("a failure", hasty).await);
    assert_eq!((late.ran, late.reason), (Ran::NotStarted, Reason::Unreachable));
    assert_eq!(late.peer, Some(peer(2)));
    let patient = world.pool.reach(peer(2), soon());
    let _server = serve(world.connect().await, named("b"));
    within("a link", patient).await.expect("reached");
    assert_eq!(world.opened(), 1);
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_keeps_nobody_from_another() {
    let mut world = World::new();
    let stuck = world.pool.reach(peer(2), soon());
    let (_, _held) = within("a request", world.requests.recv()).await.expect("asked");
    let other = world.pool.reach(peer(3), soon());
    let _server = serve(world.connect().await, named("c"));
    let link = within("a link", other).await.expect("reached");
    assert_eq!(ask(&*link).await, Ok(format!("c to {}", peer(1))));
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn calls_leave_a_relayed_link_within_a_second_of_a_direct_connection() {
    let mut world = World::new();
    world.direct.store(false, Ordering::Relaxed);
    let reached = world.pool.reach(peer(2), soon());
    let (open, gate) = watch::channel(false);
    let relayed = world.connect_by(Either::Right).await;
    let _relayed = serve(relayed, Arc::new(Named { name: "relayed", gate }));
    let link = within("a link", reached).await.expect("reached");
    let in_flight = tokio::spawn(async move { ask(&*link).await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.opened(), 1, "there is nothing better");

    world.direct.store(true, Ordering::Relaxed);
    let found = tokio::time::Instant::now();
    let _direct = serve(world.connect().await, named("direct"));
    tokio::task::yield_now().await;
    assert!(found.elapsed() < Duration::from_secs(1), "{:?}", found.elapsed());
    let link = within("a link", world.pool.reach(peer(2), soon())).await.expect("reached");
    assert_eq!(ask(&*link).await, Ok(format!("direct to {}", peer(1))));
    open.send(true).expect("the handler waits");
    let ended = within("the call in flight", in_flight).await.expect("no panic");
    assert_eq!(ended, Ok(format!("relayed to {}", peer(1))));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.opened(), 2, "a direct link stays");
}

#[tokio::test(start_paused = true)]
async fn a_direct_connection_that_gives_no_stream_is_not_asked_over_and_over() {
    let mut world = World::new();
    world.direct.store(false, Ordering::Relaxed);
    let reached = world.pool.reach(peer(2), soon());
    let _server = serve(world.connect_by(Either::Right).await, named("relayed"));
    let link = within("a link", reached).await.expect("reached");
    world.direct.store(true, Ordering::Relaxed);
    let mut held = Vec::new();
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        held.push(world.connect_by(Either::Right).await);
    }
    assert!(began.elapsed() >= 3 * DIRECT_REST);
    assert_eq!(ask(&*link).await, Ok(format!("relayed to {}", peer(1))));
}

#[tokio::test]
async fn a_lane_is_taken_from_the_peer_that_opened_its_link_only() {
    let world = World::new();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
    far.write_all(&preface()).await.expect("written");
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let number = loop {
        within("bytes", far.read_buf(&mut input)).await.expect("read");
        if input.len() > PREFACE_BYTES {
            let mut frames = input.split_off(PREFACE_BYTES);
            let Ok(Some(Frame::Lanes(number))) = decoder.decode(&mut frames) else {
                panic!("an offer")
            };
            break number;
        }
    };
    let lane = async |from: u8, number: u64| {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        world.pool.serve_inbound(peer(from), Either::Left(near), named("here"));
        far.write_all(&lane_preface(number)).await.expect("written");
        let mut answer = [0; LANE_PREFACE_BYTES];
        let read = within("an answer", far.read_exact(&mut answer)).await;
        (read.is_ok(), far)
    };
    let (stranger, _) = lane(8, number).await;
    let (unknown, _) = lane(7, number + 1).await;
    let (taken, _lane) = lane(7, number).await;
    let (again, _) = lane(7, number).await;
    assert_eq!((stranger, unknown, taken, again), (false, false, true, false));
}

#[tokio::test]
async fn streams_that_say_nothing_are_bounded_for_each_peer() {
    let world = World::new();
    let mut silent = Vec::new();
    for _ in 0..ARRIVING_PER_PEER_MAX {
        let (near, far) = tokio::io::duplex(64);
        world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
        silent.push(far);
    }
    let (near, mut far) = tokio::io::duplex(64);
    world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
    let read = within("the end", far.read(&mut [0])).await;
    assert_eq!(read.expect("read"), 0, "one too many is dropped");
    let (near, far) = tokio::io::duplex(64 * 1024);
    world.pool.serve_inbound(peer(8), Either::Left(near), named("here"));
    let (link, driver) = link::client(far, LinkSettings::default());
    let _driver = tokio::spawn(driver);
    ask(&link).await.expect("another peer is not concerned");
}

#[tokio::test]
async fn inbound_calls_come_from_the_peer_that_opened_the_stream() {
    let world = World::new();
    let (near, far) = tokio::io::duplex(64 * 1024);
    world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
    let (link, driver) = link::client(far, LinkSettings::default());
    let driver = tokio::spawn(driver);
    assert_eq!(ask(&link).await, Ok(format!("here to {}", peer(7))));
    drop(link);
    within("the driver", driver).await.expect("no panic");
}

#[tokio::test]
async fn a_peer_with_too_many_inbound_links_loses_the_oldest_first() {
    let world = World::new();
    let mut links = Vec::new();
    for _ in 0..=INBOUND_PER_PEER_MAX {
        let (near, far) = tokio::io::duplex(64 * 1024);
        world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
        let (link, driver) = link::client(far, LinkSettings::default());
        links.push((link, tokio::spawn(driver)));
    }
    let (_, oldest) = links.remove(0);
    within("the oldest link's end", oldest).await.expect("no panic");
    for (link, _) in &links {
        ask(link).await.expect("the newer ones answer");
    }
    let (near, far) = tokio::io::duplex(64 * 1024);
    world.pool.serve_inbound(peer(8), Either::Left(near), named("here"));
    let (link, driver) = link::client(far, LinkSettings::default());
    let _driver = tokio::spawn(driver);
    ask(&link).await.expect("another peer is not concerned");
}

#[tokio::test]
async fn a_peer_cannot_pile_up_links_that_are_being_drained() {
    let world = World::new();
    let (begun, mut calls) = mpsc::channel(16);
    let handler: Arc<dyn Invoke> = Arc::new(Never(begun));
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..INBOUND_PER_PEER_MAX + DRAINING_PER_PEER_MAX + 3 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        world.pool.serve_inbound(peer(7), Either::Left(near), handler.clone());
        let (link, driver) = link::client(far, LinkSettings::default());
        let driver = tokio::spawn(driver);
        let mut answer = link.invoke(call());
        tokio::select! {
            answer = within("a refusal", &mut answer) => {
                assert_eq!(answer.err().expect("lost").reason, Reason::PeerLost);
                refused += 1;
            }
            _ = calls.recv() => held.push((link, driver, answer)),
        }
    }
    assert_eq!((held.len(), refused), (INBOUND_PER_PEER_MAX + DRAINING_PER_PEER_MAX, 3));
}

#[tokio::test]
async fn all_links_of_one_peer_have_together_as_many_calls_as_one_and_others_are_not_concerned() {
    let world = World::new();
    let (begun, mut calls) = mpsc::channel(CALLS_PER_PEER_MAX + 2);
    let handler: Arc<dyn Invoke> = Arc::new(Never(begun));
    let open = |seed| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        world.pool.serve_inbound(peer(seed), Either::Left(near), handler.clone());
        let (link, driver) = link::client(far, LinkSettings::default());
        (link, tokio::spawn(driver))
    };
    let (first, _driver) = open(7);
    let mut held: Vec<_> = (0..CALLS_PER_PEER_MAX).map(|_| first.invoke(call())).collect();
    for _ in 0..CALLS_PER_PEER_MAX {
        within("a call", calls.recv()).await.expect("the handler lives");
    }
    let (second, _driver) = open(7);
    let refused = within("a refusal", second.invoke(call())).await.err().expect("refused");
    assert_eq!((refused.ran, refused.reason), (Ran::NotStarted, Reason::Busy), "{refused}");
    let (other, _driver) = open(8);
    let _of_another = other.invoke(call());
    within("another peer's call", calls.recv()).await.expect("the handler lives");

    held.pop();
    // The place is free once the far side has heard of it: until then the call is refused.
    within("the place of a call that was cancelled", async {
        loop {
            let mut answer = second.invoke(call());
            tokio::select! {
                answer = &mut answer => drop(answer.err().expect("nothing answers")),
                _ = calls.recv() => break,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn shutdown_finishes_calls_refuses_new_ones_and_leaves_no_task() {
    let mut world = World::new();
    let reached = world.pool.reach(peer(2), soon());
    let (open, gate) = watch::channel(false);
    let _server = serve(world.connect().await, Arc::new(Named { name: "slow", gate }));
    let link = within("a link", reached).await.expect("reached");
    let answer = tokio::spawn(async move { ask(&*link).await });
    let (near, far) = tokio::io::duplex(64 * 1024);
    world.pool.serve_inbound(peer(7), Either::Left(near), named("here"));
    let (inbound, driver) = link::client(far, LinkSettings::default());
    let driver = tokio::spawn(driver);
    ask(&inbound).await.expect("answered");

    let pool = Arc::new(world.pool);
    let stopping = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown(LONG).await }
    });
    within("the drained inbound link", driver).await.expect("no panic");
    let refused = failure(pool.reach(peer(3), soon()).await);
    assert_eq!((refused.ran, refused.reason), (Ran::NotStarted, Reason::Unreachable));
    assert!(!stopping.is_finished(), "a call is in flight");
    open.send(true).expect("the handler waits");
    assert_eq!(
        within("the call", answer).await.expect("no panic"),
        Ok(format!("slow to {}", peer(1)))
    );
    within("shutdown", stopping).await.expect("no panic");
    assert!(pool.0.tasks.is_empty());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_calls_beyond_its_grace() {
    let mut world = World::new();
    let reached = world.pool.reach(peer(2), soon());
    let (_open, gate) = watch::channel(false);
    let _server = serve(world.connect().await, Arc::new(Named { name: "never", gate }));
    let link = within("a link", reached).await.expect("reached");
    let answer = tokio::spawn(link.invoke(call()));
    within("shutdown", world.pool.shutdown(Duration::from_millis(20))).await;
    assert!(world.pool.0.tasks.is_empty());
    let lost = within("the call", answer).await.expect("no panic").err().expect("lost");
    assert_eq!(lost.reason, Reason::PeerLost);
}

#[tokio::test]
async fn dropping_the_pool_ends_its_tasks() {
    let mut world = World::new();
    let reached = world.pool.reach(peer(2), soon());
    let _server = serve(world.connect().await, named("b"));
    within("a link", reached).await.expect("reached");
    let tasks = world.pool.0.tasks.clone();
    drop(world);
    tasks.close();
    within("the tasks' end", tasks.wait()).await;
}
