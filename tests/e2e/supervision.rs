//! What operators do to plugins that run, and what the configuration says of those that shall.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, time::Duration};

use protocol::proto::{
    admin::Plugin,
    identity::{CreateRequest, identity_client::IdentityClient},
};
use rustix::process::{Pid, Signal, kill_process};
use testnet::{Must, NodeSetup, client::Caller, cluster::World, packages};
use tonic::{Code, Request};

use crate::support::{COUNTER, KNOWN_WITHIN, spread, timed};

fn all_run(plugin: &Plugin, count: usize) -> bool {
    let running = plugin.instances.iter().filter(|one| one.state == "running").count();
    running == count && plugin.instances.len() == count
}

#[tokio::test]
async fn a_plugin_is_scaled_up_shares_its_calls_and_is_scaled_down() {
    let world = World::new().must();
    let mut node = NodeSetup::peer(world.path(), "t-scale", "n").start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    let cli = node.cli().must();
    let scaled = cli.run(["--json", "plugin", "scale", "counter", "3"]).await.must().json().must();
    let pids: std::collections::BTreeSet<_> = scaled["instances"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["pid"].as_u64())
        .collect();
    assert_eq!(pids.len(), 3, "{scaled}");

    // Each of them gets its share: 60 calls miss one of three about never.
    let answered = spread(&node, 60).await.must();
    assert_eq!(answered.len(), 3, "{answered:?}");
    assert!(answered.values().all(|count| *count >= 5), "{answered:?}");

    // The number outlives the node.
    node.stop().await.must();
    node.restart().await.must();
    node.plugin_until("counter", KNOWN_WITHIN, |it| all_run(it, 3)).await.must();

    let cli = node.cli().must();
    let told = cli.run(["plugin", "scale", "counter", "1"]).await.must().success().must();
    assert!(told.contains("counter has 1 instance"), "{told}");
    assert_eq!(node.plugin("counter").await.must().instances.len(), 1);
    assert_eq!(spread(&node, 10).await.must().len(), 1);

    let before = node.plugin("counter").await.must();
    cli.run(["plugin", "restart", "counter"]).await.must().success().must();
    let after = node.plugin("counter").await.must();
    assert_ne!(after.pid, before.pid);
    assert_eq!((after.restarts, after.crashes), (before.restarts + 1, 0));
    cli.run(["plugin", "reload", "counter"]).await.must().success().must();
    assert_ne!(node.plugin("counter").await.must().pid, after.pid);
    let absent = cli.run(["plugin", "scale", "nobody", "2"]).await.must();
    assert_eq!(absent.code, Some(4), "{}", absent.report());
}

#[tokio::test]
async fn a_group_of_the_configuration_falls_and_rises_together() {
    let world = World::new().must();
    let file = world.path().join("groups.yaml");
    let text = "groups:\n  pair:\n    strategy: one-for-all\n    members: [counter, echo]\n";
    fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-group", "n").with(["--config", path]);
    let node = setup.start().await.must();
    let counter = node.load(&packages::plugin("counter").must()).await.must();
    let echo = node.load(&packages::plugin("echo").must()).await.must();
    assert_eq!((echo.group.as_str(), echo.strategy.as_str()), ("pair", "one-for-all"));
    let listed = node.cli().must().run(["plugin", "list"]).await.must().success().must();
    assert!(listed.contains("GROUP") && listed.contains("pair"), "{listed}");

    let pid = i32::try_from(counter.pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it runs");
    for before in [&counter, &echo] {
        let again = |it: &Plugin| it.state == "running" && it.pid != before.pid;
        node.plugin_until(&before.name, KNOWN_WITHIN, again).await.must();
    }
    let echo = node.plugin("echo").await.must();
    assert_eq!((echo.restarts, echo.crashes), (1, 0), "it was recalled, and did not crash");
}

#[tokio::test]
async fn a_service_answers_on_its_own_port_and_socket_and_nothing_else_does() {
    let world = World::new().must();
    let file = world.path().join("services.yaml");
    let socket = world.path().join("identity.sock");
    let port =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let text = format!(
        "services:\n  identity:\n    port: {port}\n    unix_socket: {}\n    instances: 1\n    \
         restart_policy: always\n  ledger:\n    enabled: false\n",
        socket.display()
    );
    fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-service", "n").with(["--config", path]);
    let node = setup.start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    node.plugin_until("identity", KNOWN_WITHIN, |it| all_run(it, 1)).await.must();
    let ledger = node.plugin("ledger").await.must();
    assert_eq!((ledger.state.as_str(), ledger.reason.as_str()), ("stopped", "disabled"));

    let mode = fs::metadata(&socket).expect("bound").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let by_port = Caller::of(&format!("127.0.0.1:{port}")).must().channel();
    let by_socket = Caller::of_socket(&socket).must().channel();
    for (channel, name) in [(by_port, "ada"), (by_socket, "bob")] {
        let create = CreateRequest { name: name.into() };
        let made = IdentityClient::new(channel.clone()).create(timed(create)).await.must();
        assert_eq!(made.into_inner().name, name);
        let mut counter = plugins::demo::counter_client::CounterClient::new(channel);
        let mut request = Request::new(plugins::demo::AddRequest::default());
        request.set_timeout(Duration::from_secs(5));
        let refused = counter.add(request).await.expect_err(COUNTER);
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
}

#[tokio::test]
async fn dependencies_start_first_and_gaps_and_circles_are_refused_by_name() {
    let world = World::new().must();
    let mut node = NodeSetup::peer(world.path(), "t-needs", "n").start().await.must();
    let needing = |name: &str, needs: &str| {
        let lines = format!("dependencies: {needs}\nrestart: {{ policy: always }}");
        packages::variant(world.path(), name, "counter", &lines).must()
    };
    let web = needing("web", "[\"ledger >=1.0, <2\"]");
    let refusal = async |node: &testnet::Node, path: &std::path::Path| {
        let path = path.to_str().expect("UTF-8");
        let outcome = node.cli().must().run(["plugin", "load", path, "--wait"]).await.must();
        outcome.failure().must()
    };
    let gap = refusal(&node, &web).await;
    assert!(gap.contains("ledger >=1.0, <2 is needed and not loaded"), "{gap}");
    let itself = refusal(&node, &needing("narcissus", "[narcissus]")).await;
    assert!(itself.contains("narcissus"), "{itself}");

    // `ledger` is slow to be ready; whoever needs it is started after it all the same.
    let slow = packages::misfit(world.path(), "ledger", &["slow-start=1500"], "").must();
    node.load(&slow).await.must();
    node.load(&web).await.must();
    let late = needing("late", "[\"ledger >=3\"]");
    let version = refusal(&node, &late).await;
    assert!(version.contains("ledger") && version.contains("1.0.0"), "{version}");
    let held = node.cli().must().run(["plugin", "unload", "ledger"]).await.must();
    let held = held.failure().must();
    assert!(held.contains("ledger is needed by web"), "{held}");

    // A node that comes up keeps the order, without anybody who waits.
    node.stop().await.must();
    node.restart().await.must();
    node.plugin_until("web", KNOWN_WITHIN, |it| it.state == "running").await.must();
    let events = node.process().output().tail(1_000);
    let running = |name: &str| {
        events.iter().position(|line| {
            let event: serde_json::Value = serde_json::from_str(&line.text).unwrap_or_default();
            event["name"] == name && event["state"] == "running"
        })
    };
    let (first, second) = (running("ledger"), running("web"));
    assert!(first.is_some() && first < second, "{first:?} {second:?}: {events:#?}");

    // A circle closes when what is needed comes to need whoever needs it.
    fs::write(
        slow.join("plugin.yaml"),
        "name: ledger\nversion: 1.0.0\nentrypoint: ./misfit\ndependencies: [web]\n",
    )
    .expect("written");
    let circle = node.cli().must().run(["plugin", "reload", "ledger"]).await.must();
    let circle = circle.failure().must();
    assert!(circle.contains("ledger") && circle.contains("web"), "{circle}");
    assert_eq!(node.plugin("ledger").await.must().state, "running", "it runs on as it was");
}
