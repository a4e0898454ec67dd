//! `kill -9` of a node while it loads, unloads and scales plugins: no survivor a second later, and
//! the next start is clean.

use std::time::Duration;

use protocol::proto::admin::{self, plugin_load_request::From};
use testnet::{Must, NodeSetup, cluster::World, packages, residue, until};

/// The promise: no plugin process is alive this long after its node was killed.
const ORPHANS_GONE_WITHIN: Duration = Duration::from_secs(1);

/// How long a plugin may take to run again.
const AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// What the node is doing when it is killed.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Loading,
    Scaling,
    Unloading,
}

/// Milliseconds after it began: before, in, and after the middle of things. A start takes single
/// milliseconds where nothing else runs, and hundreds where much does.
const MOMENTS: [u64; 5] = [0, 4, 15, 60, 250];

#[tokio::test]
async fn a_node_killed_in_the_midst_of_things_leaves_nobody_and_starts_cleanly() {
    let world = World::new().must();
    let setup = NodeSetup::peer(world.path(), "t-killed", "n");
    let mut node = setup.clone().start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    let tricks = ["double-fork", "ignore-sigterm", "fork=3"];
    let culprit = packages::misfit(world.path(), "culprit", &tricks, "stop_grace: 200ms").must();
    for moment in MOMENTS {
        for doing in [Doing::Loading, Doing::Scaling, Doing::Unloading] {
            let what = format!("{doing:?}, {moment} ms");
            if !matches!(doing, Doing::Loading) {
                node.load(&culprit).await.must();
            }
            let mut admin = node.admin().must();
            let path = culprit.to_str().expect("UTF-8").to_owned();
            let asked = tokio::spawn(async move {
                // Whether it is answered is not the question: the node is killed meanwhile.
                let name = String::from("culprit");
                match doing {
                    Doing::Loading => drop(admin.plugin_load(load(path)).await),
                    Doing::Scaling => {
                        let scale = admin::PluginScaleRequest { name, instances: 8 };
                        drop(admin.plugin_scale(scale).await);
                    }
                    Doing::Unloading => {
                        drop(admin.plugin_unload(admin::PluginUnloadRequest { name }).await);
                    }
                }
            });
            tokio::time::sleep(Duration::from_millis(moment)).await;
            let children = node.kill().await.must();
            until(&format!("{what}: nobody is left"), ORPHANS_GONE_WITHIN, || async {
                let alive: Vec<_> = children.iter().filter(|child| child.still_runs()).collect();
                let named = residue::processes(world.path());
                let left = format!("{alive:?} {named:?}");
                if alive.is_empty() && named.is_empty() { Ok(()) } else { Err(left) }
            })
            .await
            .must();
            asked.await.must();
            node.restart().await.must();
            node.plugin_until("counter", AGAIN_WITHIN, |it| it.state == "running").await.must();
            // It may or may not have been loaded, or unloaded, before the end came.
            if node.plugin("culprit").await.is_ok() {
                node.unload("culprit").await.must();
            }
            println!("{what}: {} processes then, none a second later", children.len());
        }
    }
    let plugins = setup.run_dir().join("plugins");
    let left: Vec<_> = residue::files(&plugins.join("culprit"));
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn control_groups_of_a_killed_node_go_with_the_next_host_and_those_of_the_living_stay() {
    let world = World::new().must();
    let counter = packages::plugin("counter").must();
    let start =
        async |name: &str| NodeSetup::peer(world.path(), "t-groups", name).start().await.must();
    let (dead, alive) = (start("dead").await, start("alive").await);
    let of_dead = residue::groups_of_node(dead.load(&counter).await.must().pid);
    let of_alive = residue::groups_of_node(alive.load(&counter).await.must().pid);
    // Where control groups cannot be used there are none of either.
    assert_eq!(of_dead.is_empty(), of_alive.is_empty(), "{of_dead:?} {of_alive:?}");
    assert!(of_dead.iter().all(|group| !of_alive.contains(group)), "{of_dead:?} {of_alive:?}");
    let children = dead.kill().await.must();
    until("nobody of it is left", ORPHANS_GONE_WITHIN, || async {
        let left: Vec<_> = children.iter().filter(|child| child.still_runs()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
    .must();
    let next = start("next").await;
    let left: Vec<_> = of_dead.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    let gone: Vec<_> = of_alive.iter().filter(|group| !group.exists()).collect();
    assert!(gone.is_empty(), "{gone:?}");
    // Nothing was pulled away from under the other.
    alive.load(&packages::plugin("echo").must()).await.must();
    assert_eq!(alive.plugin("counter").await.must().restarts, 0);
    for node in [alive, next] {
        assert!(node.stop().await.must().success());
    }
    let left: Vec<_> = of_alive.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn load(path: String) -> admin::PluginLoadRequest {
    admin::PluginLoadRequest {
        from: Some(From::Path(path)),
        instances: 4,
        ..admin::PluginLoadRequest::default()
    }
}
