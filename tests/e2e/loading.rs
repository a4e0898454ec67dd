//! Loading a plugin: what works, what is refused with a reason, and that refusals leave nothing.

use std::{fs, path::Path, time::Duration};

use protocol::proto::admin::{PluginListRequest, plugin_load_request::From};
use testnet::{Cluster, Must, Node, NodeSetup, cluster::World, packages};

use crate::support::{COUNTER, KNOWN_WITHIN, add};

/// What was refused has left nothing after this long.
const GONE_WITHIN: Duration = Duration::from_secs(1);

async fn lone(world: &World) -> Node {
    NodeSetup::peer(world.path(), "t-load", "n").start().await.must()
}

/// How many plugins `node` lists.
async fn loaded(node: &Node) -> usize {
    let list = node.admin().must().plugin_list(PluginListRequest {}).await.must();
    list.into_inner().plugins.len()
}

/// Tries to load `path`; the refusal as the node words it. Nothing must be left of it.
async fn refused(node: &Node, path: &Path) -> String {
    let error = node.load(path).await.expect_err("refused");
    // The zygote, which makes jails, stays as long as the node; a launcher of a jail would be one
    // more of its kind. Between fork and exec a process bears its parent's name.
    let begun = std::time::Instant::now();
    loop {
        let children: Vec<_> =
            node.children().into_iter().filter(testnet::residue::Seen::still_runs).collect();
        let (launchers, others): (Vec<_>, Vec<_>) =
            children.iter().partition(|seen| seen.command.ends_with(" __launch"));
        if others.is_empty() && launchers.len() <= 1 {
            break;
        }
        assert!(begun.elapsed() < GONE_WITHIN, "left behind: {children:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    format!("{error:#}")
}

#[tokio::test]
async fn all_first_party_plugins_load_and_tell_what_they_serve() {
    let world = World::new().must();
    let node = lone(&world).await;
    for (name, dir) in packages::first_party().must() {
        let plugin = node.load(&dir).await.must();
        assert_eq!((plugin.name.as_str(), plugin.state.as_str()), (name, "running"));
        assert!(plugin.pid > 0 && plugin.healthy, "{plugin:?}");
        assert!(plugin.services.iter().any(|service| service.starts_with("demo.v1.")));
        for layer in ["user", "pid", "mount", "no-new-privs"] {
            let in_force = plugin.layers.iter().any(|known| known.contains(layer));
            assert!(in_force, "{layer} is not among {:?}", plugin.layers);
        }
    }
    // The manifest of the paper, word for word, is echo's.
    let manifest = fs::read_to_string(packages::plugin("echo").must().join("plugin.yaml"));
    assert!(manifest.expect("there").contains("description: Simple echo plugin for testing"));
}

#[tokio::test]
async fn what_does_not_exist_is_refused_by_its_path() {
    let world = World::new().must();
    let node = lone(&world).await;
    let nowhere = world.path().join("nowhere");
    assert!(refused(&node, &nowhere).await.contains("nowhere"));

    let empty = world.path().join("empty");
    fs::create_dir(&empty).expect("created");
    let told = refused(&node, &empty).await;
    assert!(told.contains("plugin.yaml"), "{told}");

    let hollow = world.path().join("hollow");
    fs::create_dir(&hollow).expect("created");
    fs::write(hollow.join("plugin.yaml"), "name: hollow\nversion: 1.0.0\n").expect("written");
    let told = refused(&node, &hollow).await;
    assert!(told.contains("hollow") && !told.contains("panicked"), "{told}");
    assert_eq!(loaded(&node).await, 0);
}

#[tokio::test]
async fn a_manifest_with_mistakes_is_refused_with_all_of_them() {
    let world = World::new().must();
    let node = lone(&world).await;
    let dir = world.path().join("wrong");
    fs::create_dir(&dir).expect("created");
    let text = "name: Wrong Name\nversion: one\nisolaton: process\n";
    fs::write(dir.join("plugin.yaml"), text).expect("written");
    let told = refused(&node, &dir).await;
    for word in ["name", "version", "isolaton"] {
        assert!(told.contains(word), "`{word}` is not in: {told}");
    }
    assert_eq!(loaded(&node).await, 0);
}

#[tokio::test]
async fn an_isolation_level_that_is_not_there_is_refused_and_never_weakened() {
    let world = World::new().must();
    let node = lone(&world).await;
    let dir = packages::variant(world.path(), "boxed", "counter", "isolation: vm").must();
    let told = refused(&node, &dir).await;
    assert!(told.contains("vm"), "{told}");
    assert_eq!(loaded(&node).await, 0);
}

#[tokio::test]
async fn a_plugin_that_never_becomes_ready_is_ended_at_its_deadline_with_its_last_words() {
    let world = World::new().must();
    let node = lone(&world).await;
    for (name, tricks) in [
        ("slow", &["flood-logs=3", "never-ready"][..]),
        ("deaf", &["flood-logs=3", "never-listen"]),
        ("mad", &["flood-logs=3", "garbage"]),
    ] {
        let dir = packages::misfit(world.path(), name, tricks, "start_timeout: 2s").must();
        let told = refused(&node, &dir).await;
        assert!(told.contains("2s") || told.contains("2 s"), "names the deadline: {told}");
        assert!(told.contains("misfit") || told.contains("flood"), "its last lines: {told}");
    }
}

#[tokio::test]
async fn a_plugin_that_dies_at_start_is_told_with_how_it_died() {
    let world = World::new().must();
    let node = lone(&world).await;
    let lines = "restart: {policy: never}";
    let dir = packages::misfit(world.path(), "early", &["exit-at-start=7"], lines).must();
    let told = refused(&node, &dir).await;
    assert!(told.contains('7'), "{told}");
    let dir = packages::misfit(world.path(), "crash", &["crash-at-start"], lines).must();
    let told = refused(&node, &dir).await;
    assert!(told.to_lowercase().contains("signal") || told.contains("SIGABRT"), "{told}");
}

#[tokio::test]
async fn a_plugin_that_keeps_crashing_is_held_and_says_so() {
    let world = World::new().must();
    let node = lone(&world).await;
    let lines = "restart: {policy: always, max_restarts: 2, window: 5m, backoff: 100ms}\n\
                 start_timeout: 5s";
    let dir = packages::misfit(world.path(), "loop", &["crash-after=200"], lines).must();
    let _ = node.load(&dir).await;
    let held = node.plugin_until("loop", KNOWN_WITHIN, |plugin| plugin.state == "crash-loop").await;
    let held = held.must();
    assert!(held.crashes >= 3, "{held:?}");
    assert!(!held.reason.is_empty(), "{held:?}");
    assert_eq!(held.pid, 0, "{held:?}");
    assert!(!held.announced, "{held:?}");
}

#[tokio::test]
async fn loading_twice_is_refused_and_changes_nothing() {
    let world = World::new().must();
    let node = lone(&world).await;
    let dir = packages::plugin("counter").must();
    let first = node.load(&dir).await.must();
    let told = format!("{:#}", node.load(&dir).await.expect_err("it is loaded"));
    assert!(told.contains("counter"), "{told}");
    assert_eq!(node.plugin("counter").await.must().pid, first.pid);

    // Under another name it is another plugin.
    let path = dir.to_str().expect("UTF-8").to_owned();
    let second = node.load_from(From::Path(path), "counter-2").await.must();
    assert_eq!(second.name, "counter-2");
    assert_ne!(second.pid, first.pid);
    assert_eq!(loaded(&node).await, 2);
}

#[tokio::test]
async fn one_plugins_misdeeds_are_its_own() {
    let cluster = Cluster::start(&["a", "e"]).await.must();
    let [a, e] = ["a", "e"].map(|name| cluster.peer(name).must());
    a.load(&packages::plugin("counter").must()).await.must();
    let restart = "restart: {policy: never}";
    for (name, tricks) in [
        ("crasher", &["crash-after=100"][..]),
        ("flooder", &["flood-logs=0"]),
        ("eater", &["eat-memory=64"]),
        ("leaker", &["leak-descriptors=0"]),
        ("breeder", &["fork=20"]),
    ] {
        let dir = packages::misfit(cluster.dir(), name, tricks, restart).must();
        // Whether it gets ready is its own affair.
        let _ = a.load(&dir).await;
    }
    cluster.all_see(COUNTER, &["a"], KNOWN_WITHIN).await.must();
    for _ in 0..50 {
        add(e, "calm").await.must();
    }
    assert_eq!(a.plugin("counter").await.must().crashes, 0);
    assert!(a.plugin("flooder").await.must().logs_lost > 0, "a flood is bounded and counted");
    let held = a.plugin_until("crasher", KNOWN_WITHIN, |plugin| plugin.crashes > 0).await.must();
    assert_ne!(held.state, "running");
    // A clean stop takes all of it away, children of children included.
    let residue = cluster.stop().await.must();
    assert!(residue.is_empty(), "{residue}");
}

#[tokio::test]
async fn a_plugin_that_ignores_sigterm_is_ended_after_its_grace() {
    let world = World::new().must();
    let node = lone(&world).await;
    let dir = packages::misfit(world.path(), "deaf", &["ignore-sigterm"], "stop_grace: 1s").must();
    let plugin = node.load(&dir).await.must();
    let begun = std::time::Instant::now();
    node.unload("deaf").await.must();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!Path::new(&format!("/proc/{}", plugin.pid)).exists());
    assert_eq!(loaded(&node).await, 0);
}

#[tokio::test]
async fn what_was_loaded_is_loaded_again_after_a_restart() {
    let world = World::new().must();
    let mut node = lone(&world).await;
    node.load(&packages::plugin("counter").must()).await.must();
    node.load(&packages::plugin("kv").must()).await.must();
    node.unload("kv").await.must();
    node.stop().await.must();
    node.restart().await.must();
    let running = |plugin: &protocol::proto::admin::Plugin| plugin.state == "running";
    node.plugin_until("counter", KNOWN_WITHIN, running).await.must();
    add(&node, "x").await.must();
    assert!(node.plugin("kv").await.is_err(), "what was unloaded stays unloaded");
}
