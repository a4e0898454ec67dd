//! The `blackhole` command against real nodes: what it prints, for people and for programs, and
//! its exit codes.

use std::{fs, process::Stdio, time::Duration};

use serde_json::{Value, json};
use testnet::{Cluster, Must, NodeSetup, client::Cli, cluster::World, packages};

use crate::support::{COUNTER, KNOWN_WITHIN, add, pair_with};

#[tokio::test]
async fn a_plugins_whole_life_by_command() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let cli = cluster.peer("a").must().cli().must();
    let dir = packages::plugin("counter").must();
    let dir = dir.to_str().expect("UTF-8");

    let loaded = cli.run(["--json", "plugin", "load", dir, "--wait"]).await.must().json().must();
    assert_eq!(loaded["state"], "running", "{loaded}");
    let listed = cli.run(["--json", "plugin", "list"]).await.must().json().must();
    assert!(listed.to_string().contains("\"counter\""), "{listed}");
    let info = cli.run(["--json", "plugin", "info", "counter"]).await.must().json().must();
    assert_eq!(info["name"], "counter", "{info}");
    let people = cli.run(["plugin", "info", "counter"]).await.must().success().must();
    assert!(people.contains(COUNTER) && people.contains("running"), "{people}");
    cli.run(["plugin", "logs", "counter"]).await.must().success().must();

    cluster.all_see(COUNTER, &["a"], KNOWN_WITHIN).await.must();
    let other = cluster.peer("b").must().cli().must();
    let services = other.run(["services"]).await.must().success().must();
    assert!(services.contains(COUNTER), "{services}");
    let described = other.run(["describe", COUNTER]).await.must().success().must();
    for word in ["Add", "Get", "Watch", "AddRequest", "amount"] {
        assert!(described.contains(word), "`{word}` is not in:\n{described}");
    }
    let call = ["--json", "call", "demo.v1.Counter/Add", "-d", r#"{"amount": 2}"#];
    let called = other.run(call).await.must().json().must();
    assert!(called["value"] == json!("2") || called["value"] == json!(2), "{called}");
    let explained = other.run(["explain", COUNTER]).await.must().success().must();
    assert!(!explained.trim().is_empty());
    let queried = other.run(["--json", "registry", "query", COUNTER]).await.must().json().must();
    let a = cluster.peer("a").must().peer_id();
    assert!(queried.to_string().contains(a), "{queried}");
    let peers = other.run(["--json", "peers"]).await.must().json().must();
    assert!(peers.to_string().contains(a), "{peers}");

    cli.run(["plugin", "unload", "counter"]).await.must().success().must();
    cluster.all_see(COUNTER, &[], Duration::from_secs(5)).await.must();
}

#[tokio::test]
async fn what_goes_wrong_has_a_code_and_a_sentence() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-cli", "n").start().await.must();
    let cli = node.cli().must();
    let codes: [(&[&str], i32, &str); 8] = [
        (&["plugin", "info", "nobody"], 4, "nobody"),
        (&["plugin", "unload", "nobody"], 4, "nobody"),
        (&["plugin", "load", "/nowhere/at/all", "--wait"], 4, "/nowhere/at/all"),
        (&["call", "demo.v1.Nobody/Call"], 4, "demo.v1.Nobody"),
        (&["describe", "demo.v1.Nobody"], 4, "demo.v1.Nobody"),
        (&["plugin"], 2, "Usage"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["call", "no-slash"], 2, "no-slash"),
    ];
    for (arguments, code, word) in codes {
        let outcome = testnet::client::run(cli.command(arguments)).await.must();
        assert_eq!(outcome.code, Some(code), "{}", outcome.report());
        assert!(outcome.err.contains(word), "`{word}` is not in: {}", outcome.report());
        assert!(outcome.out.is_empty(), "errors are no output: {}", outcome.report());
    }
}

#[tokio::test]
async fn without_a_node_commands_say_so_and_what_to_do() {
    let world = World::new().must();
    let cli = Cli::of(&world.path().join("admin.sock")).must();
    for arguments in [&["status"][..], &["plugin", "list"], &["services"], &["stop"]] {
        let outcome = testnet::client::run(cli.command(arguments)).await.must();
        assert_eq!(outcome.code, Some(3), "{}", outcome.report());
        let told = &outcome.err;
        assert!(told.contains("admin.sock") && told.contains("start"), "{}", outcome.report());
    }
}

#[tokio::test]
async fn status_and_health_tell_people_and_programs_the_same() {
    let cluster = pair_with("counter", COUNTER).await.must();
    let b = cluster.peer("b").must();
    let cli = b.cli().must();
    let people = cli.run(["status", "--detailed"]).await.must().success().must();
    let programs = cli.run(["--json", "status", "--detailed"]).await.must().json().must();
    assert_eq!(programs["peer_id"], b.peer_id(), "{programs}");
    for word in [b.peer_id(), "counter"] {
        assert!(people.contains(word), "`{word}` is not in:\n{people}");
    }
    cli.run(["health"]).await.must().success().must();
    let health = cli.run(["--json", "health", "--check-all"]).await.must().json().must();
    assert_eq!(health["healthy"], true, "{health}");

    // A plugin that hangs is found, and the exit code says so.
    let lines = "restart: {policy: never}";
    let frozen = packages::misfit(cluster.dir(), "frozen", &[], lines).must();
    b.load(&frozen).await.must();
    let freeze = r#"{"trick": "freeze"}"#;
    let call = ["call", "demo.v1.Misfit/Misbehave", "-d", freeze, "--timeout", "1s"];
    let outcome = cli.run(call).await.must();
    assert_ne!(outcome.code, Some(0), "{}", outcome.report());
    let outcome = cli.run(["health", "--check-all"]).await.must();
    assert_eq!(outcome.code, Some(5), "{}", outcome.report());
    let told = format!("{}{}", outcome.out, outcome.err);
    assert!(told.contains("frozen"), "{}", outcome.report());
}

#[tokio::test]
async fn calls_by_command_stream_and_fail_as_calls_do() {
    let cluster = pair_with("echo", crate::support::ECHO).await.must();
    let cli = cluster.peer("a").must().cli().must();
    let repeat = r#"{"text": "hi", "times": 3}"#;
    let out = cli.run(["call", "demo.v1.Echo/Repeat", "-d", repeat]).await.must().success().must();
    assert_eq!(out.matches("hi").count(), 3, "{out}");

    let file = cluster.dir().join("texts.json");
    fs::write(&file, "{\"text\": \"a\"} {\"text\": \"b\"}\n{\"text\": \"c\"}").expect("written");
    let at = format!("@{}", file.display());
    let out = cli.run(["call", "demo.v1.Echo/Join", "-d", &at]).await.must().success().must();
    assert!(out.contains("a b c"), "{out}");
    let out = cli.run(["call", "demo.v1.Echo/Chat", "-d", &at]).await.must().success().must();
    assert_eq!(out.matches("text").count(), 3, "{out}");

    let fail = r#"{"code": 5, "message": "no such thing"}"#;
    let outcome = cli.run(["call", "demo.v1.Probe/Fail", "-d", fail]).await.must();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    assert!(outcome.err.contains("no such thing"), "{}", outcome.report());
    assert!(outcome.err.to_uppercase().replace(' ', "_").contains("NOT_FOUND"));

    let inspect = ["--json", "call", "demo.v1.Probe/Inspect", "-H", "tenant:blue"];
    let seen = cli.run(inspect).await.must().json().must();
    let entries = seen["metadata"].as_array().cloned().unwrap_or_default();
    let tenant = |entry: &Value| entry["name"] == "tenant";
    assert!(entries.iter().any(tenant), "{seen}");

    let linger = r#"{"key": "cli", "millis": 60000}"#;
    let call = ["call", "demo.v1.Probe/Linger", "-d", linger, "--timeout", "300ms"];
    let outcome = cli.run(call).await.must();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    assert!(outcome.took < Duration::from_secs(10), "{}", outcome.report());

    let here = ["call", "demo.v1.Echo/Say", "-d", r#"{"text":"x"}"#, "--local"];
    let outcome = cli.run(here).await.must();
    assert_ne!(outcome.code, Some(0), "a has none: {}", outcome.report());
    let b = cluster.peer("b").must().peer_id();
    let there = ["call", "demo.v1.Echo/Say", "-d", r#"{"text":"x"}"#, "--peer", b];
    assert!(cli.run(there).await.must().success().must().contains("Echo: x"));
}

#[tokio::test]
async fn ping_measures_each_provider_and_notices_who_is_silent() {
    let cluster = pair_with("echo", crate::support::ECHO).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    a.load(&packages::plugin("echo").must()).await.must();
    cluster.all_see(crate::support::ECHO, &["a", "b"], KNOWN_WITHIN).await.must();
    let cli = a.cli().must();
    let ping = ["--json", "ping", "demo.v1.Echo", "-c", "3", "-i", "10ms", "--timeout", "10s"];
    let told = cli.run(ping).await.must().json().must();
    let providers = told["providers"].as_array().expect("a list");
    assert_eq!(providers.len(), 2, "{told}");
    for one in providers {
        assert_eq!((&one["received"], &one["loss_percent"]), (&json!(3), &json!(0.0)), "{told}");
        let figure = |name: &str| one[name].as_u64().expect("a time");
        let [least, mean, most] = ["min_us", "avg_us", "max_us"].map(figure);
        assert!(0 < least && least <= mean && mean <= most, "{told}");
    }
    let only = ["ping", "demo.v1.Echo", "-c", "1", "--peer", b.peer_id()];
    let people = cli.run(only).await.must().success().must();
    assert!(people.contains("seq=1 time=") && people.contains("MDEV"), "{people}");
    assert!(!people.contains(" here"), "one peer was asked: {people}");

    let frozen = packages::misfit(cluster.dir(), "frozen", &[], "restart: {policy: never}").must();
    a.load(&frozen).await.must();
    let freeze = r#"{"trick": "freeze"}"#;
    let call = ["call", "demo.v1.Misfit/Misbehave", "-d", freeze, "--timeout", "1s"];
    assert_ne!(cli.run(call).await.must().code, Some(0));
    let ping = ["--json", "ping", "demo.v1.Misfit", "-c", "1", "--timeout", "300ms"];
    let outcome = cli.run(ping).await.must();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    assert!(outcome.out.contains("\"loss_percent\": 100.0"), "{}", outcome.report());
    let outcome = cli.run(["ping", "demo.v1.Nobody"]).await.must();
    assert_eq!(outcome.code, Some(4), "{}", outcome.report());
}

#[tokio::test]
async fn every_call_that_bench_counts_ran_once_and_failures_are_told_apart() {
    let cluster = pair_with("counter", COUNTER).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    b.load(&packages::plugin("echo").must()).await.must();
    cluster.all_see(crate::support::ECHO, &["b"], KNOWN_WITHIN).await.must();
    let cli = a.cli().must();
    let data = r#"{"name": "bench", "amount": 1}"#;
    let bench = ["--json", "bench", "demo.v1.Counter/Add", "-d", data, "-c", "8", "-n", "300"];
    let bench = bench.into_iter().chain(["--warm-up", "0"]);
    let told = testnet::client::run(cli.command(bench)).await.must().json().must();
    assert_eq!((&told["calls"], &told["failed"]), (&json!(300), &json!(0)), "{told}");
    let steps = told["histogram"].as_array().expect("a list");
    let counted: u64 = steps.iter().filter_map(|step| step["calls"].as_u64()).sum();
    assert_eq!(counted, 300, "{told}");
    let time = |name: &str| told["latency"][name].as_u64().expect("a time");
    assert!(time("min_us") <= time("p50_us") && time("p50_us") <= time("max_us"), "{told}");
    assert_eq!(add(a, "bench").await.must().value, 301, "each ran once");

    let data = r#"{"code": 5, "message": "no such thing"}"#;
    let bench = ["--json", "bench", "demo.v1.Probe/Fail", "-d", data, "-n", "10"];
    let outcome = cli.run(bench).await.must();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    let told: Value = serde_json::from_str(&outcome.out).expect("JSON");
    let failure = &told["failures"][0];
    assert_eq!((&failure["code"], &failure["calls"]), (&json!("NOT_FOUND"), &json!(10)), "{told}");
    assert_eq!(failure["ran"], "answered", "{told}");
}

#[tokio::test]
async fn an_interrupted_bench_tells_what_it_measured() {
    let cluster = pair_with("counter", COUNTER).await.must();
    let a = cluster.peer("a").must();
    let data = r#"{"name": "cut", "amount": 1}"#;
    let bench = ["--json", "bench", "demo.v1.Counter/Add", "-d", data, "--duration", "1h"];
    let mut command = a.cli().must().command(bench.into_iter().chain(["--warm-up", "0"]));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let running = tokio::process::Command::from(command).kill_on_drop(true).spawn().must();
    testnet::until("calls are made", KNOWN_WITHIN, || async {
        let value = add(a, "cut").await.map_err(|status| status.to_string())?.value;
        if value > 200 { Ok(()) } else { Err(format!("{value} calls")) }
    })
    .await
    .must();
    let pid = running.id().expect("it runs").cast_signed();
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    let output = running.wait_with_output().await.must();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(told["answered"].as_u64() > Some(0) && told["failed"] == 0, "{told}");
}

#[tokio::test]
async fn stop_by_command_waits_until_the_node_is_gone() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-cli", "n").start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    add(&node, "x").await.must();
    node.cli().must().run(["stop"]).await.must().success().must();
    let ended = node.process().exit(Duration::from_secs(1)).await.must();
    assert!(ended.success(), "{ended}");
    let residue = node.residue();
    assert!(residue.is_empty(), "{residue}");
}

#[tokio::test]
async fn every_command_has_help_and_the_executable_answers_to_all_its_names() {
    use std::{os::unix::process::CommandExt, process::Command};
    let cli = Cli::alone().must();
    let commands: [&[&str]; 22] = [
        &[],
        &["init"],
        &["start"],
        &["stop"],
        &["status"],
        &["health"],
        &["doctor"],
        &["plugin"],
        &["plugin", "load"],
        &["plugin", "list"],
        &["plugin", "info"],
        &["plugin", "logs"],
        &["plugin", "unload"],
        &["services"],
        &["describe"],
        &["call"],
        &["peers"],
        &["registry", "query"],
        &["explain"],
        &["ping"],
        &["bench"],
        &["config", "check"],
    ];
    for command in commands {
        let words = command.iter().chain(&["--help"]);
        let help = testnet::client::run(cli.command(words)).await.must().success().must();
        assert!(help.contains("Usage"), "{command:?}: {help}");
        assert!(help.contains("--json"), "{command:?}: {help}");
    }
    let completion = cli.run(["completion", "bash"]).await.must().success().must();
    assert!(completion.contains("blackhole"));

    let executable = testnet::binaries::find("bh-peer").must();
    for (name, word) in [
        ("bh-peer", "--bootstrap"),
        ("blackhole-node", "--bootstrap"),
        ("bh-bootstrap", "--external"),
        ("blackhole", "plugin"),
    ] {
        let mut command = Command::new(&executable);
        command.arg0(name).arg("--help");
        let help = testnet::client::run(command).await.must().success().must();
        assert!(help.contains(word), "{name}: {help}");
    }
    let mut command = Command::new(&executable);
    command.args(["blackhole", "--help"]);
    assert!(testnet::client::run(command).await.must().success().must().contains("plugin"));
}
