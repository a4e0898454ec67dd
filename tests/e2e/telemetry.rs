//! The built-in telemetry service, pages of single plugins, and what SIGHUP changes.

use std::{fs, path::PathBuf};

use protocol::proto::telemetry::{
    ReadRequest, Sample, TextRequest, WatchRequest, telemetry_client::TelemetryClient,
};
use serde_json::Value;
use testnet::{
    Must, Node, NodeSetup,
    client::{Caller, get},
    cluster::World,
    packages,
    process::Signal,
    until,
};
use tonic::{Code, transport::Channel};

use crate::support::{COUNTER, KNOWN_WITHIN, add, timed};

/// A node that is configured by the file that comes with it.
async fn node(world: &World, text: &str) -> (Node, PathBuf) {
    let file = world.path().join("n.yaml");
    fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-telemetry", "n").with(["--config", path]);
    (setup.start().await.must(), file)
}

async fn telemetry(node: &Node) -> TelemetryClient<Channel> {
    node.plugin_until("telemetry", KNOWN_WITHIN, |it| it.state == "running").await.must();
    let telemetry = TelemetryClient::new(Caller::of(&node.ready().grpc).must().channel());
    until("calls find it", KNOWN_WITHIN, || async {
        match telemetry.clone().read(timed(ReadRequest {})).await {
            Err(status) if status.code() == Code::Unavailable => Err(status.to_string()),
            _ => Ok(()),
        }
    })
    .await
    .must();
    telemetry
}

fn pid_in(sample: &Sample, plugin: &str) -> Option<u32> {
    sample.plugins.iter().find(|it| it.name == plugin).map(|it| it.pid)
}

#[tokio::test]
async fn telemetry_tells_figures_from_its_jail_once_and_as_they_change() {
    let world = World::new().must();
    let (node, _) = node(&world, "services: { telemetry: { enabled: true } }\n").await;
    let counter = node.load(&packages::plugin("counter").must()).await.must();
    let mut telemetry = telemetry(&node).await;
    let sample = telemetry.read(timed(ReadRequest {})).await.must().into_inner();
    let of_node = sample.node.clone().expect("told");
    assert_eq!((of_node.pid, of_node.name.as_str()), (node.process().pid(), node.name()));
    assert!(of_node.memory_bytes > 0 && of_node.cpu_seconds > 0.0, "{of_node:?}");
    assert_eq!(pid_in(&sample, "counter"), Some(counter.pid), "{sample:#?}");
    let own = node.plugin("telemetry").await.must();
    assert_eq!(pid_in(&sample, "telemetry"), Some(own.pid), "{sample:#?}");
    assert!(own.layers.iter().any(|layer| layer == "private-root"), "{:?}", own.layers);
    let limit = own.mechanisms.iter().find(|it| it.resource == "memory").map(|it| &it.limit[..]);
    assert_eq!(limit, Some("256 MiB"), "its default is in force");

    let mut watch = telemetry.watch(WatchRequest { interval_ms: 100 }).await.must().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(watch.message().await.must().expect("without end"));
    }
    assert!(seen.iter().all(|sample| sample.interval_ms == 100), "{seen:#?}");
    assert!(seen.is_sorted_by(|a, b| a.timestamp < b.timestamp), "{seen:#?}");
    node.unload("counter").await.must();
    until("the watch tells that it is gone", KNOWN_WITHIN, || async {
        let mut telemetry = telemetry.clone();
        let sample = telemetry.read(timed(ReadRequest {})).await.map_err(|it| it.to_string())?;
        pid_in(sample.get_ref(), "counter").map_or(Ok(()), |pid| Err(format!("{pid}")))
    })
    .await
    .must();
    let too_often = telemetry.watch(WatchRequest { interval_ms: 1 }).await.expect_err("refused");
    assert_eq!(too_often.code(), Code::InvalidArgument, "{too_often}");

    let text = telemetry.text(timed(TextRequest::default())).await.must().into_inner().text;
    let (_, page) = get(&node.ready().metrics, "/metrics").await.must();
    let families = |page: &str| -> Vec<String> {
        page.lines().filter(|line| line.starts_with("# TYPE")).map(str::to_owned).collect()
    };
    assert_eq!(families(&text), families(&page), "one page, by two ways");
    // A watch that is open does not hold up the end of its service.
    let restarted = node.cli().must().run(["plugin", "restart", "telemetry"]).await.must();
    restarted.success().must();
    // What was said before its end comes first; an end by force would be an error.
    while watch.message().await.must().is_some() {}
    assert!(node.plugin("telemetry").await.must().crashes == 0);
}

#[tokio::test]
async fn telemetry_within_the_node_tells_the_same() {
    let world = World::new().must();
    let text = "services: { telemetry: { isolation: thread } }\n";
    let (node, _) = node(&world, text).await;
    let sample = telemetry(&node).await.read(timed(ReadRequest {})).await.must().into_inner();
    assert_eq!(sample.node.expect("told").pid, node.process().pid());
    assert_eq!(pid_in(&node_only(sample.plugins), "telemetry"), Some(0), "it has no process");
}

fn node_only(plugins: Vec<protocol::proto::telemetry::PluginFigures>) -> Sample {
    Sample { plugins, ..Sample::default() }
}

#[tokio::test]
async fn without_the_grant_the_node_tells_nothing_and_says_why() {
    let world = World::new().must();
    let text = "services: { telemetry: {} }\n\
                plugins: { deny: ['call:blackhole.telemetry.v1.Figures'] }\n";
    let (node, _) = node(&world, text).await;
    let refused = telemetry(&node).await.read(timed(ReadRequest {})).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let denied = node.plugin("telemetry").await.must().permissions_denied;
    assert!(denied.iter().any(|it| it.contains("blackhole.telemetry.v1.Figures")), "{denied:?}");
}

#[tokio::test]
async fn every_plugin_has_a_health_page_and_a_metrics_page_of_its_own() {
    let world = World::new().must();
    let (node, _) = node(&world, "{}\n").await;
    node.load(&packages::plugin("counter").must()).await.must();
    node.load(&packages::plugin("echo").must()).await.must();
    add(&node, "x").await.must();
    for asked in ["counter", COUNTER] {
        let (code, body) = get(&node.ready().http, &format!("/health/{asked}")).await.must();
        assert_eq!(code, 200, "{body}");
        let health: Value = serde_json::from_str(&body).must();
        for key in ["service", "status", "version", "uptime"] {
            assert!(!health[key].is_null(), "`{key}` is not in: {health:#}");
        }
        let (code, page) = get(&node.ready().metrics, &format!("/metrics/{asked}")).await.must();
        assert_eq!(code, 200, "{page}");
        for figure in [
            "blackhole_plugin_up{",
            "blackhole_plugin_memory_bytes{",
            "blackhole_plugin_memory_limit_bytes{",
            "blackhole_plugin_cpu_seconds_total{",
            "blackhole_plugin_threads{",
            "blackhole_plugin_open_files{",
            "blackhole_plugin_restarts{",
            "blackhole_plugin_uptime_seconds{",
            "blackhole_plugin_logs_lost_total{",
            "blackhole_calls_total{",
        ] {
            assert!(page.contains(figure), "`{figure}` is not in:\n{page}");
        }
        assert!(!page.contains("\"echo\"") && page.ends_with("# EOF\n"), "{page}");
    }
    let (code, body) = get(&node.ready().metrics, "/metrics/nobody").await.must();
    assert_eq!(code, 404, "{body}");
    let (_, page) = get(&node.ready().metrics, "/metrics").await.must();
    for figure in ["blackhole_node_cpu_seconds_total ", "blackhole_mesh_peers "] {
        assert!(page.contains(figure), "`{figure}` is not in:\n{page}");
    }
}

#[tokio::test]
async fn sighup_hands_on_what_the_file_says_now_and_changes_the_log_level() {
    let text = |interval: &str, level: &str| {
        format!(
            "services: {{ telemetry: {{ settings: {{ interval: {interval} }} }} }}\n\
             monitoring: {{ logLevel: {level} }}\n"
        )
    };
    let world = World::new().must();
    let (node, file) = node(&world, &text("200ms", "warn")).await;
    let telemetry = telemetry(&node).await;
    let interval = || async {
        let mut telemetry = telemetry.clone();
        let watch = telemetry.watch(WatchRequest::default()).await.map_err(|it| it.to_string())?;
        let sample = watch.into_inner().message().await.map_err(|it| it.to_string())?;
        sample.map(|it| it.interval_ms).ok_or_else(|| "it ended".to_owned())
    };
    assert_eq!(interval().await, Ok(200));
    let cli = node.cli().must();
    let level = async || cli.run(["log", "level"]).await.must().success().must();
    assert_eq!(level().await.trim(), "warn");

    // What is wrong changes nothing, and is said.
    fs::write(&file, "monitoring: { logLevel: [] }\n").expect("written");
    let mark = node.process().output().mark();
    node.process().signal(Signal::HUP).must();
    let warned = node.event_after(mark, "warning", KNOWN_WITHIN).await.must();
    let said = warned["message"].as_str().unwrap_or_default();
    assert!(said.contains("stays as it was") && said.contains("logLevel"), "{said}");
    assert_eq!((interval().await, level().await.trim()), (Ok(200), "warn"));

    fs::write(&file, text("3s", "debug")).expect("written");
    node.process().signal(Signal::HUP).must();
    until("its configuration has arrived", KNOWN_WITHIN, || async {
        let now = interval().await?;
        if now == 3_000 { Ok(()) } else { Err(format!("{now} ms")) }
    })
    .await
    .must();
    assert_eq!(level().await.trim(), "debug");
    assert_eq!(node.plugin("telemetry").await.must().restarts, 0);

    let told = cli.run(["log", "level", "error"]).await.must().success().must();
    assert_eq!(told.trim(), "error (was debug)");
    let refused = cli.run(["log", "level", "peer=loud"]).await.must();
    assert_ne!(refused.code, Some(0), "{}", refused.report());
    assert!(refused.err.contains("peer=loud"), "{}", refused.report());
    assert_eq!(level().await.trim(), "error");
}
