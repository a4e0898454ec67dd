//! What can be seen of a running node: health, metrics, logs, descriptors.

use std::time::Duration;

use protocol::proto::admin::PluginLogsRequest;
use serde_json::Value;
use testnet::{Must, NodeSetup, client::get, cluster::World, packages, until};

use crate::support::{COUNTER, add, pair_with};

#[tokio::test]
async fn health_has_the_papers_shape_with_numbers_beside_it() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-observe", "n").start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    let (code, body) = get(&node.ready().http, "/health").await.must();
    assert_eq!(code, 200, "{body}");
    let health: Value = serde_json::from_str(&body).must();
    for key in ["status", "version", "uptime", "orchestrator", "services"] {
        assert!(!health[key].is_null(), "`{key}` is not in: {health:#}");
    }
    assert_eq!(health["status"], "healthy", "{health:#}");
    assert_eq!(health["orchestrator"]["pid"], node.process().pid(), "{health:#}");
    let counter = &health["services"]["counter"];
    for key in ["status", "pid", "restarts", "memory", "cpu"] {
        assert!(!counter[key].is_null(), "`{key}` is not in: {counter:#}");
    }
    assert_eq!(counter["pid"], node.plugin("counter").await.must().pid, "{counter:#}");

    let (code, _) = get(&node.ready().http, "/no/such/path").await.must();
    assert_eq!(code, 404);
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_count_calls() {
    let cluster = pair_with("counter", COUNTER).await.must();
    let a = cluster.peer("a").must();
    let total = |text: &str| -> f64 {
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(COUNTER));
        let calls = lines.filter(|line| line.contains("calls"));
        calls.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let (code, before) = get(&a.ready().metrics, "/metrics").await.must();
    assert_eq!(code, 200);
    assert!(before.contains("# TYPE") && before.contains("# HELP"), "{before}");
    for _ in 0..5 {
        add(a, "x").await.must();
    }
    let (_, after) = get(&a.ready().metrics, "/metrics").await.must();
    assert!(total(&after) >= total(&before) + 5.0, "{after}");
}

#[tokio::test]
async fn what_a_plugin_prints_is_kept_as_structured_lines() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-observe", "n").start().await.must();
    let dir = packages::misfit(world.path(), "talker", &["flood-logs=20"], "").must();
    let plugin = node.load(&dir).await.must();
    let lines = until("its lines are kept", Duration::from_secs(20), || async {
        let mut admin = node.admin().map_err(|error| error.to_string())?;
        let request = PluginLogsRequest { name: "talker".into(), ..PluginLogsRequest::default() };
        let stream = admin.plugin_logs(request).await.map_err(|error| error.to_string())?;
        let mut stream = stream.into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await.map_err(|error| error.to_string())? {
            lines.push(line);
        }
        let printed = lines.iter().filter(|line| line.stream != "supervisor").count();
        if printed >= 20 { Ok(lines) } else { Err(format!("{printed} lines: {lines:?}")) }
    })
    .await
    .must();
    for line in &lines {
        assert!(!line.timestamp.is_empty() && !line.level.is_empty(), "{line:?}");
        assert_eq!(line.service, "talker", "{line:?}");
        assert_eq!(line.node_id, node.name(), "{line:?}");
        assert!(serde_json::from_str::<Value>(&line.fields_json).is_ok(), "{line:?}");
    }
    assert!(lines.iter().any(|line| line.pid == plugin.pid), "{lines:?}");
    assert!(lines.iter().any(|line| line.stream == "supervisor"), "{lines:?}");
}

#[tokio::test]
async fn the_nodes_own_output_is_one_json_object_a_line() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-observe", "n").start().await.must();
    node.load(&packages::plugin("counter").must()).await.must();
    node.stop().await.must();
    let printed = std::fs::read_to_string(world.path().join("n").join("n.out.log")).must();
    assert!(printed.lines().count() >= 3, "{printed}");
    for line in printed.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(object.is_object(), "{line}");
    }
}
