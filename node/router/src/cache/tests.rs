//! Calls through a whole router over one plugin that counts what it is asked.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures::{FutureExt as _, future::BoxFuture};
use http::HeaderName;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};
use proptest::{collection::vec, prelude::*};
use protocol::{
    failure::Reason,
    id::{InstanceId, NodeKey, PeerId},
    ports::{CallHead, Caller, Invoke, Locality, Reach},
    service::ServiceName,
};

use super::*;
use crate::{Candidate, Declaration, Declared, Lookup, Ports, Router, Settings, Standing, Table};

/// Answers with how often it was asked, and what it was told to say beside that.
#[derive(Clone, Default)]
struct Plugin {
    asked: Arc<AtomicUsize>,
    /// Of the last call.
    question: Arc<Mutex<Bytes>>,
    says: Arc<Mutex<HeaderMap>>,
    status: Arc<Mutex<&'static str>>,
    padding: Arc<AtomicUsize>,
}

impl Plugin {
    fn say(&self, cache_control: &'static str) {
        self.says.lock().insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }
}

impl Invoke for Plugin {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let plugin = self.clone();
        async move {
            *plugin.question.lock() = call.body.collect().await?.to_bytes();
            let count = plugin.asked.fetch_add(1, SeqCst) + 1;
            let padding = "x".repeat(plugin.padding.load(SeqCst));
            let message = Bytes::from(format!("{count}{padding}"));
            let status = HeaderValue::from_static(*plugin.status.lock());
            let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status)]);
            let frames = [Frame::data(message), Frame::trailers(trailers)];
            let body = Body::new(StreamBody::new(stream::iter(frames.map(Ok))));
            Ok(Reply { metadata: plugin.says.lock().clone(), body })
        }
        .boxed()
    }
}

impl<T> Reach<T> for Plugin {
    fn reach(&self, _: T, _: Instant) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>> {
        let plugin: Arc<dyn Invoke> = Arc::new(self.clone());
        async move { Ok(plugin) }.boxed()
    }
}

impl Lookup for Plugin {
    fn lookup(&self, _: ServiceName, _: Instant) -> BoxFuture<'static, bool> {
        async { false }.boxed()
    }
}

impl Declared for Plugin {
    fn of(&self, path: MethodPath, _: Instant) -> BoxFuture<'static, Declaration> {
        let cacheable = path.method() == "Get";
        async move { Declaration { may_run_twice: cacheable, cacheable } }.boxed()
    }
}

fn peer() -> PeerId {
    NodeKey::from_seed([0; 32]).peer_id()
}

/// A router over a plugin that says `cache_control`, its status OK.
fn world(cache_control: &'static str) -> (Router, Plugin, Registry) {
    let plugin = Plugin { status: Arc::new(Mutex::new("0")), ..Plugin::default() };
    plugin.say(cache_control);
    let port = Arc::new(plugin.clone());
    let ports =
        Ports { plugins: port.clone(), peers: port.clone(), lookup: port.clone(), declared: port };
    let mut registry = Registry::default();
    let router = Router::new(peer(), ports, Settings::default(), &mut registry);
    let candidate = Candidate {
        peer: peer(),
        local: true,
        instance: InstanceId(1),
        plugin: "counter".into(),
        version: "1.0.0".into(),
        labels: BTreeMap::new(),
        load_percent: 0,
        standing: Standing::Healthy,
    };
    router.publish(Table::new([("demo.v1.Counter".parse().expect("a name"), candidate)]));
    (router, plugin, registry)
}

fn head(method: &str) -> CallHead {
    CallHead {
        path: format!("/demo.v1.Counter/{method}").parse().expect("a method"),
        metadata: HeaderMap::new(),
        deadline: None,
        locality: Locality::PreferLocal,
        caller: Caller::Client,
    }
}

fn with(name: &'static str, value: &'static str) -> CallHead {
    let mut head = head("Get");
    head.metadata.insert(name, HeaderValue::from_static(value));
    head
}

fn body(chunks: &[&'static [u8]]) -> Body {
    let frames: Vec<_> =
        chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))).collect();
    Body::new(StreamBody::new(stream::iter(frames)))
}

/// The answer's first byte, which counts what reached the plugin, and its age where it was kept.
async fn ask(router: &dyn Invoke, head: CallHead, chunks: &[&'static [u8]]) -> (u8, Option<u64>) {
    let reply = router.invoke(Call { head, body: body(chunks) }).await.expect("an answer");
    let age = reply.metadata.get(AGE).map(|age| age.to_str().expect("text").parse());
    let age = age.transpose().expect("a number");
    let body = reply.body.collect().await.expect("a body");
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    assert!(status.is_some(), "an answer has its status");
    (body.to_bytes()[0], age)
}

/// Calls until the method is known and one answer is kept; that one is the second.
async fn warm(router: &Router) {
    assert_eq!(ask(router, head("Get"), &[b"q"]).await, (b'1', None));
    assert_eq!(ask(router, head("Get"), &[b"q"]).await, (b'2', None));
}

#[tokio::test]
async fn an_answer_that_says_how_long_it_holds_is_given_again_with_its_age_and_counted() {
    let (router, plugin, registry) = world("max-age=60");
    warm(&router).await;
    for _ in 0..3 {
        assert_eq!(ask(&router, head("Get"), &[b"q"]).await, (b'2', Some(0)));
    }
    assert_eq!(ask(&router, head("Get"), &[b"", b"q"]).await.0, b'2', "however it is cut");
    assert_eq!(plugin.asked.load(SeqCst), 2);
    let mut told = String::new();
    text::encode(&mut told, &registry).expect("metrics");
    for line in [
        "blackhole_calls_recalled_total{service=\"demo.v1.Counter\"} 4",
        "blackhole_calls_total{service=\"demo.v1.Counter\",caller=\"client\",code=\"0\"} 6",
        "blackhole_calls_in_flight{service=\"demo.v1.Counter\"} 0",
    ] {
        assert!(told.contains(line), "{line} is not in:\n{told}");
    }
    let (answering, traced) = router.trace(Call { head: head("Get"), body: body(&[b"q"]) });
    answering.await.expect("an answer");
    let steps = traced.steps();
    assert!(
        matches!(steps[..], [ref one] if one.what.to_string().contains("kept for")),
        "{steps:?}"
    );
}

#[tokio::test]
async fn another_question_another_caller_or_other_metadata_is_another_answer() {
    let (router, _, _) = world("max-age=60");
    warm(&router).await;
    let plugin = CallHead { caller: Caller::Plugin("kv".into()), ..head("Get") };
    let near = CallHead { locality: Locality::Local, ..head("Get") };
    let mut count = b'2';
    for (head, question) in [
        (head("Get"), &b"r"[..]),
        (plugin, b"q"),
        (near, b"q"),
        (with("bh-tenant", "a"), b"q"),
        (with("authorization", "Bearer x"), b"q"),
        (with("grpc-accept-encoding", "gzip"), b"q"),
        (with("bh-version", "^1"), b"q"),
    ] {
        count += 1;
        assert_eq!(ask(&router, head.clone(), &[question]).await, (count, None), "{head:?}");
    }
    for head in [with("traceparent", "00-1-2-01"), with("bh-priority", "low")] {
        assert_eq!(ask(&router, head.clone(), &[b"q"]).await.0, b'2', "{head:?}");
    }
}

#[tokio::test]
async fn a_caller_may_ask_anew_and_what_it_is_told_then_counts() {
    let (router, _, _) = world("max-age=60");
    warm(&router).await;
    assert_eq!(ask(&router, with("cache-control", "no-store"), &[b"q"]).await, (b'3', None));
    assert_eq!(ask(&router, head("Get"), &[b"q"]).await.0, b'2', "it was not kept");
    assert_eq!(ask(&router, with("cache-control", "no-cache"), &[b"q"]).await, (b'4', None));
    assert_eq!(ask(&router, head("Get"), &[b"q"]).await.0, b'4', "it was");
}

#[tokio::test]
async fn what_may_not_be_repeated_is_asked_each_time() {
    let always = [(b'1', None), (b'2', None), (b'3', None)];
    let thrice = async |router: &dyn Invoke, method: &str| {
        [
            ask(router, head(method), &[b"q"]).await,
            ask(router, head(method), &[b"q"]).await,
            ask(router, head(method), &[b"q"]).await,
        ]
    };
    let (router, _, _) = world("max-age=60");
    assert_eq!(thrice(&router, "Add").await, always, "a method that declares nothing");
    let (router, plugin, _) = world("max-age=60");
    *plugin.status.lock() = "5";
    assert_eq!(thrice(&router, "Get").await, always, "an error");
    let (router, plugin, _) = world("max-age=60");
    plugin.padding.store(2 << 20, SeqCst);
    assert_eq!(thrice(&router, "Get").await, always, "a large answer");
    let (router, _, _) = world("max-age=60, private");
    assert_eq!(thrice(&router, "Get").await, always, "an answer for its caller alone");
    let (router, _, _) = world("max-age=60");
    assert_eq!(thrice(&*router.local_only(), "Get").await, always, "calls of another peer");
    let (router, plugin, _) = world("max-age=60");
    plugin.say("no-store");
    assert_eq!(thrice(&router, "Get").await, always, "an answer that forbids it");
}

#[tokio::test]
async fn a_question_too_large_to_be_read_first_reaches_the_plugin_whole() {
    const PIECE: &[u8] = &[7; 10_000];
    let (router, plugin, _) = world("max-age=60");
    warm(&router).await;
    for count in [b'3', b'4'] {
        assert_eq!(ask(&router, head("Get"), &[PIECE, PIECE, b"end"]).await, (count, None));
        assert_eq!(*plugin.question.lock(), [PIECE, PIECE, b"end"].concat());
    }
    let crumbs = [&b"c"[..]; 100];
    for count in [b'5', b'6'] {
        assert_eq!(ask(&router, head("Get"), &crumbs).await, (count, None));
        assert_eq!(*plugin.question.lock(), crumbs.concat());
    }
}

#[tokio::test]
async fn a_caller_who_breaks_off_or_is_late_with_its_question_is_answered_with_that() {
    let (router, plugin, _) = world("max-age=60");
    warm(&router).await;
    let lost = || Failure::unknown(Reason::Cancelled, "the caller went away");
    let broken = stream::iter([Ok(Frame::data(Bytes::from_static(b"q"))), Err(lost())]);
    let call = Call { head: head("Get"), body: Body::new(StreamBody::new(broken)) };
    let failure = router.invoke(call).await.err().expect("broken off");
    assert_eq!(failure.reason, Reason::Cancelled);
    let head = CallHead { deadline: Some(Instant::now()), ..head("Get") };
    let call = Call { head, body: Body::new(StreamBody::new(stream::pending())) };
    let failure = router.invoke(call).await.err().expect("too late");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::DeadlineExceeded));
    assert_eq!(plugin.asked.load(SeqCst), 2);
}

#[test]
fn an_answer_is_gone_when_its_time_is_over_and_all_of_them_have_a_bound() {
    let cache = Cache::new();
    let kept = |until, bytes: usize| {
        let message = Bytes::from(vec![0; bytes]);
        let (metadata, trailers) = Default::default();
        Arc::new(Kept { metadata, message, trailers, since: 0, until })
    };
    let key = |number: u32| -> Key { number.to_be_bytes().into() };
    cache.answers.insert(key(0), kept(100, 1));
    assert!(cache.recall(&key(0), 99).is_some());
    assert!(cache.recall(&key(0), 100).is_none());
    for number in 1..200 {
        cache.answers.insert(key(number), kept(100, 1 << 20));
    }
    cache.answers.run_pending_tasks();
    let held = cache.answers.weighted_size();
    assert!((KEPT_BYTES_MAX / 2..=KEPT_BYTES_MAX).contains(&held), "{held} bytes are kept");
    assert!(cache.recall(&key(199), 0).is_some(), "the newest");
    assert!(cache.recall(&key(1), 0).is_none(), "the oldest");
}

proptest! {
    #[test]
    fn no_two_questions_have_one_key(
        one in (vec(("[a-c]{1,2}", "[a-c]{0,2}"), 0..3), "[a-c]{0,2}"),
        other in (vec(("[a-c]{1,2}", "[a-c]{0,2}"), 0..3), "[a-c]{0,2}"),
    ) {
        let key = |(metadata, message): &(Vec<(String, String)>, String)| {
            let mut head = head("Get");
            for (name, value) in metadata {
                let name: HeaderName = name.parse().expect("a name");
                head.metadata.append(name, value.parse().expect("a value"));
            }
            question::key(&head, [Bytes::from(message.clone())].iter())
        };
        // Only the order of different names means nothing.
        let sorted = |(metadata, message): &(Vec<(String, String)>, String)| {
            let mut metadata = metadata.clone();
            metadata.sort_by(|(one, _), (other, _)| one.cmp(other));
            (metadata, message.clone())
        };
        prop_assert_eq!(key(&one) == key(&other), sorted(&one) == sorted(&other));
    }
}
