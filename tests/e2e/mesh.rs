//! Finding, spreading, failing over: what the mesh does with providers that come and go.

use std::time::{Duration, Instant};

use plugins::demo::GetRequest;
use protocol::proto::admin;
use testnet::{Cluster, Must, Node, packages, until};
use tonic::Code;

use crate::support::{
    AT_ONCE, COUNTER, KNOWN_WITHIN, add, counter, pair_with, quick, spread, timed,
};

/// Loads the counter on every named peer and waits until all know all of them.
async fn counters(cluster: &Cluster, names: &[&str]) {
    let dir = packages::plugin("counter").must();
    for name in names {
        cluster.peer(name).must().load(&dir).await.must();
    }
    cluster.all_see(COUNTER, names, KNOWN_WITHIN).await.must();
}

async fn explain(node: &Node, service: &str) -> admin::ExplainResponse {
    let request = admin::ExplainRequest { service: service.into(), locality: String::new() };
    node.admin().must().explain(request).await.must().into_inner()
}

#[tokio::test]
async fn two_peers_call_each_other_knowing_one_address_only() {
    // No bootstrap node: `b` is told where `a` is, `a` is told nothing.
    let world = testnet::cluster::World::new().must();
    let a = testnet::NodeSetup::peer(world.path(), "t-pair", "a").start().await.must();
    let b = testnet::NodeSetup::peer(world.path(), "t-pair", "b")
        .through([a.address("tcp").must()])
        .start()
        .await
        .must();
    b.joined(KNOWN_WITHIN).await.must();
    a.load(&packages::plugin("counter").must()).await.must();
    b.load(&packages::plugin("kv").must()).await.must();
    a.sees("demo.v1.Kv", &[b.peer_id()], KNOWN_WITHIN).await.must();
    b.sees(COUNTER, &[a.peer_id()], KNOWN_WITHIN).await.must();
    assert_eq!(add(&b, "x").await.must().value, 1);
    let mut kv = plugins::demo::kv_client::KvClient::new(
        testnet::client::Caller::of(&a.ready().grpc).must().channel(),
    );
    kv.put(timed(plugins::demo::PutRequest { key: "k".into(), value: b"v".to_vec() })).await.must();
    let fetched = kv.get(timed(plugins::demo::FetchRequest { key: "k".into() })).await.must();
    assert_eq!(fetched.into_inner().value, b"v");
}

#[tokio::test]
async fn a_service_is_in_the_dht_under_its_name() {
    let cluster = Cluster::start(&["a", "b", "c"]).await.must();
    counters(&cluster, &["a"]).await;
    let [a, c] = ["a", "c"].map(|name| cluster.peer(name).must());
    until("c's look-up in the DHT names a", KNOWN_WITHIN, || async {
        let mut admin = c.admin().map_err(|error| error.to_string())?;
        let request = admin::RegistryQueryRequest { service: COUNTER.into() };
        let found = admin.registry_query(request).await.map_err(|error| error.to_string())?;
        let found = found.into_inner();
        if found.in_dht.iter().any(|id| id == a.peer_id()) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await
    .must();
}

#[tokio::test]
async fn a_local_provider_is_preferred_and_remote_ones_are_spread_over() {
    let cluster = Cluster::start(&["a", "b", "e"]).await.must();
    counters(&cluster, &["a", "b"]).await;
    let [a, b, e] = ["a", "b", "e"].map(|name| cluster.peer(name).must());
    let at_a = a.plugin("counter").await.must().instance;
    let at_b = b.plugin("counter").await.must().instance;
    assert_ne!(at_a, at_b);

    // Who has one asks its own; who has none asks all alike.
    assert_eq!(spread(a, 10).await.must().keys().collect::<Vec<_>>(), [&at_a]);
    assert_eq!(spread(b, 10).await.must().keys().collect::<Vec<_>>(), [&at_b]);
    let seen = spread(e, 40).await.must();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.values().all(|count| *count >= 8), "spread over both: {seen:?}");

    // The caller may say otherwise.
    let mut anywhere = 0;
    for _ in 0..40 {
        let mut request = timed(plugins::demo::AddRequest { name: "any".into(), amount: 1 });
        request.metadata_mut().insert("bh-locality", "any".parse().expect("a word"));
        let answered = counter(a).add(request).await.must().into_inner();
        anywhere += u32::from(answered.instance == at_b);
    }
    assert!(anywhere > 0, "`any` goes to others too");
    let mut request = timed(GetRequest { name: "any".into() });
    request.metadata_mut().insert("bh-peer", b.peer_id().parse().expect("an id"));
    assert_eq!(counter(a).get(request).await.must().into_inner().instance, at_b);
    let mut request = timed(GetRequest { name: "any".into() });
    request.metadata_mut().insert("bh-locality", "local".parse().expect("a word"));
    let refused = counter(e).get(request).await.expect_err("e has none");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

#[tokio::test]
async fn explain_tells_what_a_call_then_does() {
    let cluster = Cluster::start(&["a", "e"]).await.must();
    counters(&cluster, &["a", "e"]).await;
    let e = cluster.peer("e").must();
    let told = explain(e, COUNTER).await;
    let first = told.candidates.first().and_then(|first| first.provider.clone());
    let first = first.expect("a candidate");
    assert!(first.local, "{told:?}");
    assert_eq!(told.candidates.len(), 2, "{told:?}");
    assert!(!told.verdict.is_empty());
    assert!(told.candidates.iter().all(|candidate| !candidate.why.is_empty()), "{told:?}");
    assert_eq!(add(e, "x").await.must().instance, first.instance);
}

#[tokio::test]
async fn a_killed_plugin_is_restarted_and_no_later_call_notices() {
    let cluster = pair_with("counter", COUNTER).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    let before = b.plugin("counter").await.must();
    assert!(before.pid > 0);
    let pid = rustix::process::Pid::from_raw(before.pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let after = b
        .plugin_until("counter", Duration::from_secs(30), |plugin| {
            plugin.state == "running" && plugin.pid != before.pid && plugin.announced
        })
        .await
        .must();
    assert_eq!(after.restarts, before.restarts + 1, "{after:?}");
    assert_eq!(after.crashes, before.crashes + 1, "{after:?}");
    assert_ne!(after.instance, before.instance, "a new run is a new instance");
    assert!(!after.last_restart.is_empty());
    until("a's calls arrive again", KNOWN_WITHIN, || async {
        add(a, "x").await.map_err(|status| status.to_string())
    })
    .await
    .must();
}

#[tokio::test]
async fn the_call_after_a_peers_death_is_answered_by_another() {
    let cluster = Cluster::start(&["a", "d", "e"]).await.must();
    counters(&cluster, &["a", "d"]).await;
    let [a, d, e] = ["a", "d", "e"].map(|name| cluster.peer(name).must());
    let survivor = d.plugin("counter").await.must().instance;
    // Both links are warm.
    assert_eq!(spread(e, 20).await.must().len(), 2);
    a.kill().await.must();
    for call in 0..20 {
        let start = Instant::now();
        let count = add(e, "after").await;
        let count = count.unwrap_or_else(|status| panic!("call {call} after the kill: {status}"));
        assert_eq!(count.instance, survivor, "call {call}");
        assert!(start.elapsed() < Duration::from_secs(2), "call {call}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_peer_that_stands_still_does_not_stop_the_others() {
    let cluster = Cluster::start(&["a", "d", "e"]).await.must();
    counters(&cluster, &["a", "d"]).await;
    let [a, d, e] = ["a", "d", "e"].map(|name| cluster.peer(name).must());
    let survivor = d.plugin("counter").await.must().instance;
    assert_eq!(spread(e, 20).await.must().len(), 2);
    a.pause().must();
    // Calls that were sent to it may be lost. Soon none is sent there any more.
    until("ten calls in a row are answered quickly by d", Duration::from_mins(1), || async {
        for _ in 0..10 {
            let start = Instant::now();
            let count = add(e, "still").await.map_err(|status| status.to_string())?;
            if count.instance != survivor || start.elapsed() > AT_ONCE {
                return Err(format!("{count:?} after {:?}", start.elapsed()));
            }
        }
        Ok(())
    })
    .await
    .must();
    a.resume().must();
    until("a answers again", Duration::from_mins(1), || async {
        let seen = spread(e, 20).await.map_err(|error| error.to_string())?;
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
    .must();
}

#[tokio::test]
async fn a_restarted_peer_is_the_same_and_announces_again_by_itself() {
    let mut cluster = Cluster::start(&["a", "e"]).await.must();
    counters(&cluster, &["a"]).await;
    let id = cluster.peer("a").must().peer_id().to_owned();
    cluster.peer("a").must().kill().await.must();
    cluster.peer_mut("a").must().restart().await.must();
    let [a, e] = ["a", "e"].map(|name| cluster.peer(name).must());
    assert_eq!(a.peer_id(), id);
    let announced = |plugin: &admin::Plugin| plugin.state == "running" && plugin.announced;
    a.plugin_until("counter", KNOWN_WITHIN, announced).await.must();
    e.sees(COUNTER, &[&id], KNOWN_WITHIN).await.must();
    until("e's call arrives", KNOWN_WITHIN, || async {
        add(e, "x").await.map_err(|status| status.to_string())
    })
    .await
    .must();
}

#[tokio::test]
async fn an_unloaded_plugin_is_gone_from_every_list_within_five_seconds() {
    let cluster = Cluster::start(&["a", "b", "c", "e"]).await.must();
    counters(&cluster, &["a"]).await;
    let e = cluster.peer("e").must();
    add(e, "x").await.must();
    let a = cluster.peer("a").must();
    let pid = a.plugin("counter").await.must().pid;
    a.unload("counter").await.must();
    cluster.all_see(COUNTER, &[], Duration::from_secs(5)).await.must();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its process is gone");
    let refused = quick(AT_ONCE, add(e, "x")).await.must().expect_err("nobody offers it");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let sentence = refused.message();
    assert!(sentence.contains(COUNTER) && sentence.contains("not available"), "{sentence}");
    let unknown = a.plugin("counter").await.expect_err("unloaded");
    assert!(unknown.to_string().contains("counter"), "{unknown}");
}

#[tokio::test]
async fn a_service_that_nobody_ever_offered_is_refused_and_then_at_once() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let a = cluster.peer("a").must();
    // The first call may ask the DHT, within its bound; what it learnt is remembered.
    let bound = Duration::from_millis(protocol::limits::LOOKUP_MILLIS_MAX) + AT_ONCE;
    let refused = quick(bound, add(a, "x")).await.must().expect_err("nobody offers it");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let refused = quick(AT_ONCE, add(a, "x")).await.must().expect_err("nobody offers it");
    assert!(refused.message().contains(COUNTER), "{refused}");
    assert!(refused.message().contains("not available"), "{refused}");

    // What is offered after that is found.
    counters(&cluster, &["b"]).await;
    add(a, "x").await.must();
}

#[tokio::test]
async fn without_the_bootstrap_node_peers_find_each_other_and_others_join() {
    let mut cluster = Cluster::start(&["a", "b", "e"]).await.must();
    cluster.acquainted(KNOWN_WITHIN).await.must();
    cluster.kill_bootstrap().await.must();
    counters(&cluster, &["a"]).await;
    add(cluster.peer("e").must(), "x").await.must();
    let through = cluster.peer("b").must().ready().listen.clone();
    let mut sixth = cluster.setup("f");
    sixth.bootstrap = through;
    let f = cluster.add(sixth).await.must();
    until("f finds a's counter", KNOWN_WITHIN, || async {
        add(f, "x").await.map_err(|status| status.to_string())
    })
    .await
    .must();
}

#[tokio::test]
async fn a_restarted_peer_finds_its_network_without_any_bootstrap_node() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await.must();
    counters(&cluster, &["a"]).await;
    // It has met the others before everything it was told of dies.
    cluster.acquainted(KNOWN_WITHIN).await.must();
    cluster.kill_bootstrap().await.must();
    cluster.peer("c").must().stop().await.must();
    cluster.peer_mut("c").must().restart().await.must();
    let c = cluster.peer("c").must();
    c.joined(Duration::from_mins(1)).await.must();
    until("c finds a's counter", Duration::from_mins(1), || async {
        add(c, "x").await.map_err(|status| status.to_string())
    })
    .await
    .must();
}

#[tokio::test]
async fn a_peer_that_leaves_cleanly_is_gone_at_once() {
    let cluster = Cluster::start(&["a", "d", "e"]).await.must();
    counters(&cluster, &["a", "d"]).await;
    let [a, d, e] = ["a", "d", "e"].map(|name| cluster.peer(name).must());
    assert!(a.stop().await.must().success());
    e.sees(COUNTER, &[d.peer_id()], Duration::from_secs(5)).await.must();
    let survivor = d.plugin("counter").await.must().instance;
    assert_eq!(spread(e, 10).await.must().keys().collect::<Vec<_>>(), [&survivor]);
}
