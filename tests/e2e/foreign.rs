//! Programs that nobody here changed, as plugins and as clients.

use testnet::{
    Cluster, Must, NodeSetup,
    client::Cli,
    cluster::World,
    foreign::{CLOCK, Foreign, GREETER},
    packages, until,
};

use crate::support::{COUNTER, ECHO, KNOWN_WITHIN};

/// All checks of the grpcio client passed.
async fn passes(foreign: &Foreign, address: &str, services: &[&str]) {
    let said = foreign.check(address, services).await.must();
    let report = said.report();
    let last = said.out.lines().last().unwrap_or_default();
    assert!(said.code == Some(0) && last.ends_with(", 0 failed"), "{report}");
}

#[tokio::test]
async fn a_grpcio_client_sees_no_difference_through_another_peer() {
    let foreign = Foreign::ready().must();
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    b.load(&packages::plugin("echo").must()).await.must();
    b.load_from(foreign.greeter().must(), "greeter").await.must();
    b.load_from(foreign.clock().must(), "clock").await.must();
    for service in [ECHO, GREETER, CLOCK] {
        cluster.all_see(service, &["b"], KNOWN_WITHIN).await.must();
    }
    for node in [b, a] {
        passes(&foreign, &node.ready().grpc, &["echo", "greeter", "clock"]).await;
    }
    let sockets = format!("unix:{}", a.ready().mesh.display());
    passes(&foreign, &sockets, &["echo"]).await;
}

#[tokio::test]
async fn json_names_are_the_servers_own() {
    let foreign = Foreign::ready().must();
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-foreign", "n").start().await.must();
    node.load_from(foreign.clock().must(), "clock").await.must();
    let told = foreign.grpcurl(&[], &node.ready().grpc, &["clock.v1.Clock/Now"]).await.must();
    let told = told.json().must();
    // As grpcurl shows it when it asks the server directly.
    assert!(told["unixMs"].is_string(), "{told}");
}

#[tokio::test]
async fn an_answer_that_its_plugin_says_holds_is_given_again_at_the_callers_node() {
    let foreign = Foreign::ready().must();
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    b.load_from(foreign.clock().must(), "clock").await.must();
    cluster.all_see(CLOCK, &["b"], KNOWN_WITHIN).await.must();
    let question = r#"{"zone": "UTC", "key": "cached"}"#;
    let flags = ["-H", "x-fresh: 600", "-d", question];
    let now = || foreign.grpcurl(&flags, &a.ready().grpc, &["clock.v1.Clock/Now"]);
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(now().await.must().json().must()["unixMs"].to_string());
    }
    // The first one tells that answers may be kept, the second one is.
    assert_ne!(told[0], told[1]);
    assert_eq!(told[1..], [&told[1]; 4].map(String::clone));
    let outcome = ["-d", r#"{"key": "cached"}"#];
    let outcome =
        foreign.grpcurl(&outcome, &a.ready().grpc, &["clock.v1.Clock/Outcome"]).await.must();
    assert_eq!(outcome.json().must()["begun"], 2);

    let explain = ["explain", "clock.v1.Clock/Now", "--call", "-H", "x-fresh:600", "-d", question];
    let cli = a.cli().must();
    cli.run(explain).await.must().success().must();
    let told = cli.run(explain).await.must().success().must();
    assert!(told.contains("was answered by this node, which kept an earlier answer"), "{told}");
}

#[tokio::test]
async fn foreign_plugins_are_supervised_and_leave_nothing() {
    let foreign = Foreign::ready().must();
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-foreign", "n").start().await.must();
    for (name, from) in [("greeter", foreign.greeter().must()), ("clock", foreign.clock().must())] {
        let before = node.load_from(from, name).await.must();
        assert!(!before.services.is_empty(), "by reflection: {before:?}");
        let pid = rustix::process::Pid::from_raw(before.pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        let again = |plugin: &protocol::proto::admin::Plugin| {
            plugin.state == "running" && plugin.pid != before.pid
        };
        node.plugin_until(name, KNOWN_WITHIN, again).await.must();
    }
    assert!(node.stop().await.must().success());
    let residue = node.residue();
    assert!(residue.is_empty(), "{residue}");
}

#[tokio::test]
async fn a_grpcio_server_under_its_nodes_certificate_is_called_over_tls() {
    let foreign = Foreign::ready().must();
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-foreign", "n").start().await.must();
    let loaded = node.load_from(foreign.greeter_with_tls().must(), "greeter").await.must();
    passes(&foreign, &node.ready().grpc, &["greeter"]).await;
    let cli = Cli::of(&node.ready().admin).must();
    let info = cli.run(["plugin", "info", "greeter", "--json"]).await.must().json().must();
    let shown = info["certificate"]["sha256"].as_str().expect("its certificate");
    assert_eq!(shown, loaded.certificate_sha256);
    let expires = info["certificate"]["expires"].as_str().expect("when it runs out");
    assert!(expires.ends_with('Z'), "{expires}");
    let text = cli.run(["plugin", "info", "greeter"]).await.must().success().must();
    assert!(text.contains(&format!("SHA-256 {shown}")) && text.contains(expires), "{text}");

    node.unload("greeter").await.must();
    assert!(!node.setup().run_dir().join("plugins").join("greeter").exists());
    assert!(node.stop().await.must().success());
    let residue = node.residue();
    assert!(residue.is_empty(), "{residue}");
}

#[tokio::test]
async fn two_servers_on_one_port_do_not_meet() {
    // Each has a network of its own, so the port in its manifest is its own too.
    let foreign = Foreign::ready().must();
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-foreign", "n").start().await.must();
    let from = foreign.clock().must();
    let first = node.load_from(from.clone(), "clock-1").await.must();
    let second = node.load_from(from, "clock-2").await.must();
    assert_ne!(first.pid, second.pid);
    for _ in 0..10 {
        let address = &node.ready().grpc;
        foreign.grpcurl(&[], address, &["clock.v1.Clock/Now"]).await.must().success().must();
    }
}

#[tokio::test]
async fn grpcurl_lists_describes_and_calls_the_whole_mesh_at_any_peer() {
    let foreign = Foreign::ready().must();
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    a.load(&packages::plugin("kv").must()).await.must();
    b.load(&packages::plugin("counter").must()).await.must();
    b.load(&packages::plugin("echo").must()).await.must();
    cluster.all_see(COUNTER, &["b"], KNOWN_WITHIN).await.must();
    cluster.all_see(ECHO, &["b"], KNOWN_WITHIN).await.must();
    let address = &a.ready().grpc;
    let ask =
        |flags: &'static [&str], words: &'static [&str]| foreign.grpcurl(flags, address, words);

    until("grpcurl lists the mesh", KNOWN_WITHIN, || async {
        let listed = ask(&[], &["list"]).await.and_then(testnet::client::Outcome::success);
        let listed = listed.map_err(|error| error.to_string())?;
        let wanted = [COUNTER, ECHO, "demo.v1.Kv", "demo.v1.Probe"];
        let all = wanted.iter().all(|service| listed.lines().any(|line| line == *service));
        if all { Ok(()) } else { Err(listed) }
    })
    .await
    .must();
    let methods = ask(&[], &["list", COUNTER]).await.must().success().must();
    assert!(methods.contains("demo.v1.Counter.Watch"), "{methods}");
    let described = ask(&[], &["describe", "demo.v1.AddRequest"]).await.must().success().must();
    assert!(described.contains("int64 amount"), "{described}");
    let call = ask(&["-d", r#"{"name": "g", "amount": 3}"#], &["demo.v1.Counter/Add"]).await;
    assert_eq!(call.must().json().must()["value"], "3");
    let healthy =
        ask(&["-d", r#"{"service": "demo.v1.Counter"}"#], &["grpc.health.v1.Health/Check"]);
    assert_eq!(healthy.await.must().json().must()["status"], "SERVING");
    let failed = ask(&["-d", r#"{"code": 9, "message": "not now"}"#], &["demo.v1.Probe/Fail"]);
    let complaint = failed.await.must().failure().must();
    assert!(complaint.contains("FailedPrecondition") && complaint.contains("not now"));
}
