//! `kill -9` at any moment, and clean ends: what is left.

use std::time::{Duration, Instant};

use testnet::{
    Cluster, Must, NodeSetup, cluster::World, packages, residue, residue::Residue, until,
};

use crate::support::{COUNTER, KNOWN_WITHIN, add};

/// The promise: no plugin process is alive this long after its node was killed.
const ORPHANS_GONE_WITHIN: Duration = Duration::from_secs(1);

/// Moments of a node's life, in milliseconds after its process was started. They are spread over
/// start-up, loading and serving; `BH_CRASH_MOMENTS` brings other ones, separated by commas.
const MOMENTS: [u64; 8] = [0, 15, 40, 90, 160, 300, 600, 1_200];

fn moments() -> Vec<u64> {
    let given = std::env::var("BH_CRASH_MOMENTS").unwrap_or_default();
    let given: Vec<u64> = given.split(',').filter_map(|part| part.trim().parse().ok()).collect();
    if given.is_empty() { MOMENTS.to_vec() } else { given }
}

#[tokio::test]
async fn a_store_opens_after_a_kill_at_any_moment_and_no_plugin_survives() {
    let world = World::new().must();
    let setup = NodeSetup::peer(world.path(), "t-crash", "n");
    let first = setup.clone().start().await.must();
    for (_, dir) in packages::first_party().must() {
        first.load(&dir).await.must();
    }
    let id = first.peer_id().to_owned();
    drop(first);

    for moment in moments() {
        let process = setup.spawn().must();
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let children = residue::descendants(process.pid());
        process.kill().await.must();
        let killed = Instant::now();
        let alive = || children.iter().filter(|child| child.still_runs()).collect::<Vec<_>>();
        while !alive().is_empty() && killed.elapsed() < ORPHANS_GONE_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(alive().is_empty(), "killed at {moment} ms, still there: {:?}", alive());
        // One that was made while the list was taken has as long to go.
        let mut others = residue::processes(&setup.dir);
        while !others.is_empty() && killed.elapsed() < ORPHANS_GONE_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
            others = residue::processes(&setup.dir);
        }
        assert!(others.is_empty(), "killed at {moment} ms, still there: {others:?}");

        let node = setup.clone().start().await;
        let node = node.unwrap_or_else(|error| panic!("killed at {moment} ms: {error:#}"));
        assert_eq!(node.peer_id(), id, "killed at {moment} ms");
        for (name, _) in packages::first_party().must() {
            node.plugin_until(name, KNOWN_WITHIN, |plugin| plugin.state == "running").await.must();
        }
        drop(node);
    }
}

#[tokio::test]
async fn plugins_of_a_killed_node_are_gone_within_a_second_even_if_they_hide() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-crash", "n").start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    for (name, tricks) in
        [("hider", &["double-fork"][..]), ("breeder", &["fork=5"]), ("deaf", &["ignore-sigterm"])]
    {
        node.load(&packages::misfit(world.path(), name, tricks, "").must()).await.must();
    }
    let children = node.kill().await.must();
    assert!(children.len() >= 4, "{children:?}");
    let killed = Instant::now();
    until("no plugin is left", ORPHANS_GONE_WITHIN, || async {
        let left: Vec<_> = children.iter().filter(|child| child.still_runs()).collect();
        let named = residue::processes(world.path());
        if left.is_empty() && named.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} {named:?}"))
        }
    })
    .await
    .must();
    assert!(killed.elapsed() <= ORPHANS_GONE_WITHIN + Duration::from_millis(500));
}

#[tokio::test]
async fn a_clean_stop_leaves_no_process_socket_or_lock() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    for (_, dir) in packages::first_party().must() {
        cluster.peer("a").must().load(&dir).await.must();
    }
    cluster.all_see(COUNTER, &["a"], KNOWN_WITHIN).await.must();
    add(cluster.peer("b").must(), "x").await.must();
    let residue = cluster.stop().await.must();
    assert!(residue.is_empty(), "{residue}");
    for node in cluster.nodes() {
        node.event("stopped", Duration::from_secs(5)).await.must();
        assert!(!node.setup().data_dir().join("lock").exists());
    }
}

#[tokio::test]
async fn a_stop_lets_calls_finish_that_were_begun() {
    let cluster = crate::support::pair_with("echo", "demo.v1.Probe").await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    let request = plugins::demo::LingerRequest { key: "stop".into(), millis: 1_000 };
    let mut client = crate::support::probe(a);
    let call = client.linger(crate::support::timed(request));
    let stop = async {
        until("the call has begun", KNOWN_WITHIN, || async {
            let request = plugins::demo::OutcomeRequest { key: "stop".into() };
            let outcome = crate::support::probe(a).outcome(request).await;
            let outcome = outcome.map_err(|status| status.to_string())?.into_inner();
            if outcome.begun == 1 { Ok(()) } else { Err(format!("{outcome:?}")) }
        })
        .await
        .must();
        b.stop().await.must()
    };
    let (answered, ended) = tokio::join!(call, stop);
    answered.must();
    assert!(ended.success());
}

#[tokio::test]
async fn sockets_of_a_killed_node_do_not_hinder_the_next() {
    let world = World::new().must();
    let mut node = NodeSetup::peer(world.path(), "t-crash", "n").start().await.must();
    node.kill().await.must();
    assert!(!Residue::of(world.path()).sockets.is_empty(), "a killed node cannot tidy up");
    node.restart().await.must();
    node.status().await.must();
}
