//! Calls through a whole router, over providers that behave as they are told.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use blackhole_router::{
    Breaking, Candidate, Declaration, Declared, EXPLAIN, Event, Hedging, LEGS, Limit, Lookup,
    Method, Policies, Policy, Ports, Requirement, Retries, Router, Settings, Standing, Table,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};
use proptest::{collection::vec, prelude::*};
use protocol::{
    failure::{Failure, Ran, Reason},
    id::{InstanceId, NodeKey, PeerId},
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reach, Reply},
    service::{MethodPath, ServiceName},
};
use tokio::sync::mpsc;

/// What a provider does with the calls that reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Reads the request and answers with it.
    Answer,
    /// Answers without a body.
    TrailersOnly,
    /// Cannot be reached.
    Unreachable,
    /// Reaching it takes forever.
    Vanished,
    /// Reads the request, then turns out not to have begun.
    NotStarted,
    /// Turns out not to have begun, the first time.
    Stale,
    /// May have begun.
    Unknown,
    /// Refuses for good.
    Failed,
    /// Begins, and is never heard of again.
    Hang,
    /// Sends a chunk now and then, without end.
    Trickle,
    /// Always has another chunk ready.
    Flood,
}

use Manner::{
    Answer, Failed, Flood, Hang, NotStarted, Stale, TrailersOnly, Trickle, Unknown, Unreachable,
    Vanished,
};

/// All providers, and what happened to them.
#[derive(Clone, Default)]
struct World {
    plugins: Arc<Mutex<HashMap<InstanceId, Manner>>>,
    peers: Arc<Mutex<HashMap<PeerId, Manner>>>,
    /// Attempts in order: when, and at whom.
    attempts: Arc<Mutex<Vec<(Instant, Manner)>>>,
    /// Calls that were not dropped.
    alive: Arc<AtomicUsize>,
    lookups: Arc<AtomicUsize>,
}

struct Provider {
    world: World,
    manner: Manner,
}

impl World {
    fn reached(
        &self,
        manner: Option<Manner>,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        let world = self.clone();
        async move {
            match manner {
                Some(Unreachable) | None => {
                    world.attempts.lock().push((Instant::now(), Unreachable));
                    Err(Failure::not_started(Reason::Unreachable, "nobody there"))
                }
                Some(Vanished) => {
                    world.attempts.lock().push((Instant::now(), Vanished));
                    std::future::pending().await
                }
                Some(manner) => Ok(Arc::new(Provider { world, manner }) as Arc<dyn Invoke>),
            }
        }
        .boxed()
    }
}

impl Reach<InstanceId> for World {
    fn reach(
        &self,
        target: InstanceId,
        _: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        self.reached(self.plugins.lock().get(&target).copied())
    }
}

impl Reach<PeerId> for World {
    fn reach(
        &self,
        target: PeerId,
        _: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        self.reached(self.peers.lock().get(&target).copied())
    }
}

impl Lookup for World {
    fn lookup(&self, _: ServiceName, _: Instant) -> BoxFuture<'static, bool> {
        self.lookups.fetch_add(1, SeqCst);
        async { false }.boxed()
    }
}

/// Methods whose name says so may run twice.
impl Declared for World {
    fn of(&self, path: MethodPath, _: Instant) -> BoxFuture<'static, Declaration> {
        let may_run_twice = path.method() == "Get";
        std::future::ready(Declaration { may_run_twice, cacheable: false }).boxed()
    }
}

/// Counts itself among the living.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Invoke for Provider {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let (world, manner) = (self.world.clone(), self.manner);
        async move {
            let alive = Alive::new(&world.alive);
            let stale =
                manner == Stale && !world.attempts.lock().iter().any(|(_, one)| *one == Stale);
            world.attempts.lock().push((Instant::now(), manner));
            let request = call.body.collect().await?.to_bytes();
            match manner {
                _ if stale => Err(Failure::not_started(Reason::PeerLost, "it was gone already")),
                NotStarted => Err(Failure::not_started(Reason::Busy, "it has enough to do")),
                Unknown => Err(Failure::unknown(Reason::PeerLost, "lost on the way")),
                Failed => Err(Failure::failed(Reason::Refused, "you may not")),
                Hang => std::future::pending().await,
                TrailersOnly => {
                    let mut metadata = HeaderMap::new();
                    metadata.insert("grpc-status", HeaderValue::from_static("5"));
                    Ok(Reply { metadata, body: frames(Vec::new()) })
                }
                Trickle => {
                    let ticks = stream::unfold(alive, |alive| async {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Some((Ok(Frame::data(Bytes::from_static(b"tick"))), alive))
                    });
                    Ok(Reply {
                        metadata: HeaderMap::new(),
                        body: Body::new(StreamBody::new(ticks)),
                    })
                }
                Flood => {
                    let chunks = stream::repeat_with(move || {
                        let _ = &alive;
                        Ok(Frame::data(Bytes::from_static(b"more")))
                    });
                    Ok(Reply {
                        metadata: HeaderMap::new(),
                        body: Body::new(StreamBody::new(chunks)),
                    })
                }
                _ => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    let frames = frames(vec![Frame::data(request), Frame::trailers(trailers)]);
                    Ok(Reply { metadata: HeaderMap::new(), body: frames })
                }
            }
        }
        .boxed()
    }
}

fn frames(frames: Vec<Frame<Bytes>>) -> Body {
    Body::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok))))
}

fn peer(number: u8) -> PeerId {
    NodeKey::from_seed([number; 32]).peer_id()
}

fn service() -> ServiceName {
    "demo.v1.Counter".parse().expect("a service name")
}

fn candidate(number: u8, local: bool) -> Candidate {
    Candidate {
        peer: if local { peer(0) } else { peer(number) },
        local,
        instance: InstanceId(number.into()),
        plugin: "counter".into(),
        version: "1.0.0".into(),
        labels: BTreeMap::new(),
        load_percent: 0,
        standing: Standing::Healthy,
    }
}

/// A router over local and remote providers of these manners, numbered from 1; remote ones after
/// local ones.
fn router(local: &[Manner], remote: &[Manner], settings: Settings) -> (Router, World, Registry) {
    let world = World::default();
    let mut offers = Vec::new();
    for (number, manner) in (1..).zip(local.iter().chain(remote)) {
        let is_local = usize::from(number) <= local.len();
        offers.push((service(), candidate(number, is_local)));
        if is_local {
            world.plugins.lock().insert(InstanceId(number.into()), *manner);
        } else {
            world.peers.lock().insert(peer(number), *manner);
        }
    }
    let ports = Ports {
        plugins: Arc::new(world.clone()),
        peers: Arc::new(world.clone()),
        lookup: Arc::new(world.clone()),
        declared: Arc::new(world.clone()),
    };
    let mut registry = Registry::default();
    let router = Router::new(peer(0), ports, settings, &mut registry);
    router.publish(Table::new(offers));
    (router, world, registry)
}

fn call(locality: Locality, deadline: Option<Duration>, request: Body) -> Call {
    let head = CallHead {
        path: "/demo.v1.Counter/Add".parse().expect("a method"),
        metadata: HeaderMap::new(),
        deadline: deadline.map(|time| Instant::now() + time),
        locality,
        caller: Caller::Client,
    };
    Call { head, body: request }
}

fn small() -> Body {
    frames(vec![Frame::data(Bytes::from_static(b"he")), Frame::data(Bytes::from_static(b"llo"))])
}

async fn answer(router: &dyn Invoke, call: Call) -> Result<Bytes, Failure> {
    Ok(router.invoke(call).await?.body.collect().await?.to_bytes())
}

const SECOND: Option<Duration> = Some(Duration::from_secs(1));

#[tokio::test]
async fn a_call_that_did_not_start_goes_to_the_next_with_its_request_whole() {
    let (router, world, _) = router(&[NotStarted], &[Answer], Settings::default());
    let answer = answer(&router, call(Locality::PreferLocal, None, small())).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"hello")));
    assert_eq!(world.attempts.lock().len(), 2);
}

#[tokio::test]
async fn local_is_first_and_remote_when_it_cannot() {
    let (router, world, _) = router(&[Answer], &[Answer, Answer], Settings::default());
    for _ in 0..20 {
        answer(&router, call(Locality::PreferLocal, None, small())).await.expect("an answer");
    }
    let explained = router.explain(&service(), Locality::PreferLocal, &Requirement::default());
    assert!(explained.candidates[0].candidate.local);
    assert!(explained.to_string().contains("on this node"), "{explained}");

    world.plugins.lock().clear();
    answer(&router, call(Locality::PreferLocal, None, small())).await.expect("from elsewhere");
    let reached = world.attempts.lock().len();
    answer(&router, call(Locality::PreferLocal, None, small())).await.expect("from elsewhere");
    assert_eq!(world.attempts.lock().len(), reached + 1, "who has just failed is not tried first");
}

#[tokio::test]
async fn a_refusal_for_good_is_returned_at_once_and_names_the_peer() {
    let (router, world, _) = router(&[], &[Failed, Failed], Settings::default());
    let failure = answer(&router, call(Locality::Any, None, small())).await.expect_err("refused");
    assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::Refused));
    assert!(failure.peer.is_some());
    assert_eq!(world.attempts.lock().len(), 1);
}

#[tokio::test]
async fn a_service_that_nobody_offers_is_looked_up_once_and_then_said_to_be_missing() {
    let (router, world, _) = router(&[], &[], Settings::default());
    let failure = answer(&router, call(Locality::Any, None, small())).await.expect_err("missing");
    assert_eq!(failure.message, "service demo.v1.Counter not available");
    assert_eq!(failure.reason, Reason::NotAvailable);
    assert_eq!(world.lookups.load(SeqCst), 1);
}

#[tokio::test]
async fn calls_from_other_peers_stay_here_and_look_nothing_up() {
    let (router, world, _) = router(&[], &[Answer], Settings::default());
    let local = router.local_only();
    let failure =
        answer(&*local, call(Locality::Any, None, small())).await.expect_err("nobody here");
    assert_eq!(failure.reason, Reason::NotAvailable);
    assert_eq!((world.attempts.lock().len(), world.lookups.load(SeqCst)), (0, 0));
}

/// Finds a provider, and the table with it is published a moment later.
struct Finds {
    begun: mpsc::Sender<()>,
}

impl Lookup for Finds {
    fn lookup(&self, _: ServiceName, _: Instant) -> BoxFuture<'static, bool> {
        let begun = self.begun.clone();
        async move {
            begun.send(()).await.expect("the test waits");
            true
        }
        .boxed()
    }
}

#[tokio::test]
async fn what_a_lookup_finds_is_used_as_soon_as_the_table_has_it() {
    let world = World::default();
    world.peers.lock().insert(peer(1), Answer);
    let (begun, mut looking) = mpsc::channel(1);
    let ports = Ports {
        plugins: Arc::new(world.clone()),
        peers: Arc::new(world.clone()),
        lookup: Arc::new(Finds { begun }),
        declared: Arc::new(world.clone()),
    };
    let router = Router::new(peer(0), ports, Settings::default(), &mut Registry::default());
    let answering = answer(&router, call(Locality::Any, None, small()));
    let publishing = async {
        looking.recv().await.expect("a lookup");
        tokio::task::yield_now().await;
        router.publish(Table::new([(service(), candidate(1, false))]));
    };
    let (answer, ()) = tokio::join!(answering, publishing);
    assert_eq!(answer, Ok(Bytes::from_static(b"hello")));
}

#[tokio::test]
async fn a_dead_connection_to_the_only_provider_is_replaced() {
    let (router, world, _) = router(&[], &[Stale], Settings::default());
    answer(&router, call(Locality::Any, None, small())).await.expect("over a fresh connection");
    assert_eq!(world.attempts.lock().len(), 2);
}

#[tokio::test]
async fn one_that_cannot_be_reached_leaves_time_for_another() {
    let (router, _, _) = router(&[Vanished], &[Answer], Settings::default());
    let answer = answer(&router, call(Locality::PreferLocal, SECOND, small())).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"hello")));
}

#[tokio::test]
async fn too_much_sent_means_no_second_attempt_and_says_so() {
    let (router, world, _) = router(&[NotStarted], &[Answer], Settings::default());
    let large = frames(vec![Frame::data(vec![0; 4 * 1024 * 1024 + 1].into())]);
    let failure =
        answer(&router, call(Locality::PreferLocal, None, large)).await.expect_err("not repeated");
    assert_eq!(failure.ran, Ran::NotStarted);
    assert!(failure.message.contains("more of the request had been sent"), "{failure}");
    assert_eq!(world.attempts.lock().len(), 1);
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_began_and_cancels_it() {
    let (router, world, _) = router(&[], &[Hang, Answer], Settings::default());
    world.peers.lock().insert(peer(2), Hang);
    let deadline = Some(Duration::from_millis(50));
    let began = Instant::now();
    let failure =
        answer(&router, call(Locality::Any, deadline, small())).await.expect_err("too late");
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(world.attempts.lock().len(), 1);
    assert_eq!(world.alive.load(SeqCst), 0, "the call was cancelled");
}

#[tokio::test]
async fn the_deadline_ends_a_stream_that_never_ends() {
    for manner in [Trickle, Flood] {
        let (router, world, _) = router(&[manner], &[], Settings::default());
        let deadline = Some(Duration::from_millis(100));
        let call = call(Locality::Local, deadline, small());
        let mut body = router.invoke(call).await.expect("it begins").body;
        let mut chunks = 0;
        let failure = loop {
            match body.frame().await.expect("a status") {
                Ok(_) => chunks += 1,
                Err(failure) => break failure,
            }
        };
        assert!(chunks > 0);
        assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::DeadlineExceeded));
        assert_eq!(world.alive.load(SeqCst), 0, "{manner:?} was cancelled");
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_call_past_its_deadline_is_not_attempted() {
    let (router, world, _) = router(&[Answer], &[], Settings::default());
    let late = call(Locality::Local, Some(Duration::ZERO), small());
    let failure = answer(&router, late).await.expect_err("too late");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::DeadlineExceeded));
    assert_eq!(world.attempts.lock().len(), 0);
}

#[tokio::test]
async fn without_a_deadline_progress_keeps_a_call_alive_and_silence_ends_it() {
    let settings = Settings { idle: Duration::from_millis(200), ..Settings::default() };
    let (router, world, _) = router(&[Trickle], &[], settings);
    let mut body =
        router.invoke(call(Locality::Local, None, small())).await.expect("it begins").body;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(600) {
        body.frame().await.expect("a tick").expect("no failure");
    }

    world.plugins.lock().insert(InstanceId(1), Hang);
    let failure = answer(&router, call(Locality::Local, None, small())).await.expect_err("silence");
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
    assert!(failure.message.contains("no progress"), "{failure}");
}

#[tokio::test]
async fn messages_of_the_caller_are_progress_too() {
    let settings = Settings { idle: Duration::from_millis(200), ..Settings::default() };
    let (router, _, _) = router(&[Answer], &[], settings);
    let request = stream::unfold(0, |sent| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        (sent < 10).then(|| (Ok(Frame::data(Bytes::from_static(b"x"))), sent + 1))
    });
    let request = Body::new(StreamBody::new(request));
    let answer = answer(&router, call(Locality::Local, None, request)).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"xxxxxxxxxx")));
}

#[tokio::test]
async fn dropping_the_answer_cancels_the_call_and_ends_its_count() {
    let (router, world, registry) = router(&[Trickle], &[], Settings::default());
    let reply = router.invoke(call(Locality::Local, None, small())).await.expect("it begins");
    let in_flight = || {
        let explained = router.explain(&service(), Locality::Local, &Requirement::default());
        explained.candidates[0].in_flight
    };
    assert_eq!((in_flight(), world.alive.load(SeqCst)), (1, 1));
    drop(reply);
    assert_eq!((in_flight(), world.alive.load(SeqCst)), (0, 0));
    assert!(page(&registry).contains(r#"caller="client",code="1"} 1"#), "counted as cancelled");
}

fn page(registry: &Registry) -> String {
    let mut page = String::new();
    text::encode(&mut page, registry).expect("text");
    page
}

#[tokio::test]
async fn calls_are_counted_by_service_caller_and_code_and_strangers_names_are_not() {
    let (router, _, registry) = router(&[TrailersOnly], &[], Settings::default());
    answer(&router, call(Locality::Local, None, small())).await.expect("an answer");
    let mut stranger = call(Locality::Any, None, small());
    stranger.head.path = "/made.up.Name/Method".parse().expect("a method");
    answer(&router, stranger).await.expect_err("nobody offers it");
    let page = page(&registry);
    for line in [
        r#"blackhole_calls_total{service="demo.v1.Counter",caller="client",code="5"} 1"#,
        r#"blackhole_calls_total{service="(other)",caller="client",code="14"} 1"#,
        r#"blackhole_call_seconds_count{service="demo.v1.Counter"} 1"#,
        r#"blackhole_calls_in_flight{service="demo.v1.Counter"} 0"#,
        r#"blackhole_call_attempts_total{service="demo.v1.Counter",outcome="answered"} 1"#,
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("made.up"));
}

#[tokio::test]
async fn calls_spread_evenly_over_all_providers() {
    let (router, world, _) = router(&[Answer], &[Answer, Answer], Settings::default());
    for _ in 0..600 {
        let locality = Locality::Any;
        answer(&router, call(locality, None, small())).await.expect("an answer");
    }
    // Manners are alike, so count by explaining: each must come first about as often.
    let mut first = HashMap::<InstanceId, u32>::new();
    for _ in 0..600 {
        let explained = router.explain(&service(), Locality::Any, &Requirement::default());
        *first.entry(explained.candidates[0].candidate.instance).or_default() += 1;
    }
    assert_eq!(world.attempts.lock().len(), 600);
    assert!(first.len() == 3 && first.values().all(|count| *count > 120), "{first:?}");
}

fn any_manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        3 => Just(NotStarted),
        2 => Just(Unreachable),
        1 => Just(Vanished),
        1 => Just(Stale),
        2 => Just(Answer),
        1 => Just(TrailersOnly),
        2 => Just(Unknown),
        1 => Just(Failed),
        1 => Just(Hang),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever providers do: nothing is attempted after something that may have run, nothing
    /// after the deadline, nothing more often than allowed, and every call ends in time.
    #[test]
    fn nothing_that_may_have_run_is_repeated(
        local in vec(any_manner(), 0..3),
        remote in vec(any_manner(), 0..4),
        deadline_millis in 1..60_u64,
        any_locality: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let (router, world, _) = router(&local, &remote, Settings::default());
            let locality = if any_locality { Locality::Any } else { Locality::PreferLocal };
            let deadline = Duration::from_millis(deadline_millis);
            let call = call(locality, Some(deadline), small());
            let due = call.head.deadline.expect("it was set");
            let began = Instant::now();
            let outcome = answer(&router, call).await;
            prop_assert!(began.elapsed() < deadline + Duration::from_millis(500));

            let attempts = world.attempts.lock().clone();
            prop_assert!(attempts.len() <= 3, "{attempts:?}");
            let may_have_run =
                |manner: &Manner| !matches!(manner, NotStarted | Stale | Unreachable | Vanished);
            for (position, (at, manner)) in attempts.iter().enumerate() {
                prop_assert!(*at <= due, "attempted after the deadline");
                if may_have_run(manner) {
                    prop_assert_eq!(position, attempts.len() - 1, "repeated: {:?}", attempts);
                }
            }
            let last = attempts.last().map(|(_, manner)| *manner);
            match outcome {
                Ok(_) => prop_assert!(matches!(last, Some(Answer | TrailersOnly | Stale))),
                Err(failure) if failure.ran == Ran::NotStarted => {
                    prop_assert!(!last.is_some_and(|last| may_have_run(&last)));
                }
                Err(_) => prop_assert!(last.is_some_and(|last| may_have_run(&last))),
            }
            prop_assert_eq!(world.alive.load(SeqCst), 0, "every call is over");
            Ok(())
        })?;
    }
}

/// Policies in which every service is routed as `policy` says.
fn by(policy: Policy) -> Settings {
    let policies = Policies { default: Arc::new(policy), ..Policies::default() };
    Settings { policies, ..Settings::default() }
}

fn get(locality: Locality, request: Body) -> Call {
    let mut call = call(locality, SECOND, request);
    call.head.path = "/demo.v1.Counter/Get".parse().expect("a method");
    call
}

#[tokio::test]
async fn what_may_have_run_is_repeated_only_where_it_is_declared_to_be_harmless() {
    let (router, world, _) = router(&[Unknown], &[Answer], Settings::default());
    let prefer = Locality::PreferLocal;
    let failure =
        answer(&router, call(prefer, SECOND, small())).await.expect_err("it may run once");
    assert_eq!((failure.ran, world.attempts.lock().len()), (Ran::Unknown, 1));

    let (router, world, _) = self::router(&[Unknown], &[Answer], Settings::default());
    let repeated = answer(&router, get(prefer, small())).await;
    assert_eq!(repeated, Ok(Bytes::from_static(b"hello")));
    assert_eq!(world.attempts.lock().len(), 2);

    let policy = Policy { idempotent: ["Add".to_owned()].into(), ..Policy::default() };
    let (router, _, _) = self::router(&[Unknown], &[Answer], by(policy));
    answer(&router, call(prefer, SECOND, small())).await.expect("the operator says it may");
}

#[tokio::test]
async fn a_late_first_attempt_gets_a_second_beside_it_and_the_loser_is_cancelled() {
    let hedging = Some(Hedging { after: Some(Duration::from_millis(20)) });
    let policy = Policy { hedging, ..Policy::default() };
    let (router, world, _) = router(&[Hang], &[Answer], by(policy));
    let answered = answer(&router, get(Locality::PreferLocal, small())).await;
    assert_eq!(answered, Ok(Bytes::from_static(b"hello")));
    assert_eq!(world.attempts.lock().len(), 2);
    assert_eq!(world.alive.load(SeqCst), 0, "the first attempt was cancelled");

    let add = call(Locality::PreferLocal, Some(Duration::from_millis(100)), small());
    let failure = answer(&router, add).await.expect_err("never beside one that may run once only");
    assert_eq!(failure.ran, Ran::Unknown);
}

#[tokio::test]
async fn a_lone_provider_that_is_busy_is_asked_again_within_the_deadline() {
    let (router, world, _) = router(&[NotStarted], &[], Settings::default());
    let prefer = Locality::PreferLocal;
    let failure = answer(&router, call(prefer, SECOND, small())).await.expect_err("busy");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Busy));
    assert_eq!(world.attempts.lock().len(), 3);
    assert!(failure.message.starts_with("3 attempts, the last: "), "{failure}");
    let detail = failure.detail.expect("what was tried");
    assert_eq!((detail.tried.len(), detail.plugin.as_deref()), (2, Some("counter")));
}

#[tokio::test]
async fn an_open_circuit_answers_at_once_and_closes_after_a_trial_that_succeeds() {
    let open = Duration::from_millis(50);
    let breaking = Breaking { failures: 3, open, open_max: open };
    let policy = Policy { breaker: Some(breaking), ..Policy::default() };
    let (router, world, _) = router(&[Unknown], &[], by(policy));
    let one = || answer(&router, call(Locality::Local, SECOND, small()));
    for _ in 0..3 {
        assert_eq!(one().await.expect_err("lost").reason, Reason::PeerLost);
    }
    let failure = one().await.expect_err("kept out");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::CircuitOpen));
    assert!(failure.message.contains("circuit open"), "{failure}");
    assert_eq!(world.attempts.lock().len(), 3);
    world.plugins.lock().insert(InstanceId(1), Answer);
    let pause = failure.detail.and_then(|detail| detail.retry_after).expect("how long");
    tokio::time::sleep(pause).await;
    one().await.expect("the trial");
    one().await.expect("closed");
}

#[tokio::test]
async fn beyond_the_limit_calls_are_refused_at_once_those_that_matter_less_first() {
    let policy = Policy { limit: Limit { calls_max: 2, adaptive: false }, ..Policy::default() };
    let retries = Retries { attempts_max: 1, ..Retries::default() };
    let (router, _, _) = router(&[Trickle], &[], by(Policy { retries, ..policy }));
    let of = |priority: &'static str| {
        let mut call = call(Locality::Local, None, small());
        call.head.metadata.insert("bh-priority", HeaderValue::from_static(priority));
        router.invoke(call)
    };
    let first = of("low").await.expect("room");
    let refused = of("low").await.err().expect("no room");
    assert_eq!((refused.ran, refused.reason), (Ran::NotStarted, Reason::Busy));
    assert!(refused.detail.expect("a hint").retry_after.is_some());
    let second = of("high").await.expect("room for what matters");
    drop((first, second));
    of("low").await.expect("room again");
}

#[tokio::test]
async fn calls_go_only_to_versions_and_labels_that_they_ask_for() {
    let (router, world, _) = router(&[Answer], &[], Settings::default());
    let ask = |key: &'static str, value: &'static str| {
        let mut call = call(Locality::Any, SECOND, small());
        call.head.metadata.insert(key, HeaderValue::from_static(value));
        answer(&router, call)
    };
    ask("bh-version", "^1").await.expect("that version is here");
    for (key, value) in [("bh-version", "^2"), ("bh-label", "region=eu")] {
        let failure = ask(key, value).await.expect_err("nobody is like that");
        assert_eq!(failure.reason, Reason::NotAvailable);
        assert!(failure.message.contains("as asked for"), "{failure}");
    }
    let failure = ask("bh-version", "new").await.expect_err("nonsense");
    assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::Malformed));
    assert_eq!(world.attempts.lock().len(), 1);
}

#[tokio::test]
async fn one_session_stays_with_one_provider() {
    let policy = Policy { method: Method::Hash, ..Policy::default() };
    let (router, _, _) = router(&[], &[Answer, Answer, Answer], by(policy));
    let mut owners = std::collections::BTreeSet::new();
    for number in 0..20 {
        let mut owner = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let mut call = call(Locality::Any, SECOND, small());
            let key = HeaderValue::from_str(&format!("session-{number}")).expect("a key");
            call.head.metadata.insert("bh-key", key);
            let (answering, traced) = router.trace(call);
            answering.await.expect("an answer");
            owner.extend(traced.steps().into_iter().filter_map(|step| match step.what {
                Event::Chosen { instance, .. } => Some(instance),
                _ => None,
            }));
        }
        assert_eq!(owner.len(), 1);
        owners.extend(owner);
    }
    assert_eq!(owners.len(), 3, "sessions are spread");
}

#[tokio::test]
async fn a_traced_call_tells_every_step_with_its_time() {
    let (router, _, _) = router(&[NotStarted], &[Answer], Settings::default());
    let (answering, traced) = router.trace(call(Locality::PreferLocal, SECOND, small()));
    answering.await.expect("an answer").body.collect().await.expect("all of it");
    let steps = traced.steps();
    let told: Vec<String> = steps.iter().map(|step| step.what.to_string()).collect();
    let expected = [
        "2 of 2 candidates may answer",
        "chose counter on",
        "connected",
        "busy (not-started): it has enough to do",
        "chose counter on",
        "connected",
        "it answers",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    assert!(told.iter().zip(expected).all(|(told, start)| told.starts_with(start)), "{told:#?}");
    assert!(steps.is_sorted_by_key(|step| step.at));
}

#[tokio::test]
async fn the_answering_peer_says_how_long_its_own_legs_took() {
    let (router, _, _) = router(&[Answer], &[], Settings::default());
    let mut asked = call(Locality::Any, SECOND, small());
    asked.head.metadata.insert(EXPLAIN, HeaderValue::from_static("1"));
    let reply = router.local_only().invoke(asked).await.expect("an answer");
    let legs = reply.metadata[LEGS].to_str().expect("text").to_owned();
    assert!(legs.starts_with("choose=") && legs.contains("plugin="), "{legs}");
    let plain = router.local_only().invoke(call(Locality::Any, SECOND, small()));
    assert!(!plain.await.expect("an answer").metadata.contains_key(LEGS));
}
