//! The node itself: status and health.

use std::fmt::Write;

use protocol::proto::admin::{HealthCheck, HealthResponse, Peer, Plugin, StatusResponse};
use serde_json::{Value, json};

use super::{Facts, labels, mesh, plugin, text_or_null};
use crate::{
    terminal::{Table, Tone, clean, paint},
    units::{count, size, span},
};

/// The node's status; with its connections, also everything else that is known.
pub fn status(status: &StatusResponse, peers: Option<&[Peer]>, colour: bool) -> String {
    let mut facts = Facts::new();
    facts.add("node", format!("{} ({})", status.name, status.peer_id));
    let mesh = match (status.joined, status.peers as usize) {
        (false, _) => "no peer met yet".to_owned(),
        (true, peers) => count(peers, "peer"),
    };
    facts.add("network", format!("{}, {mesh}", status.network));
    let uptime = span(status.uptime_ms);
    facts.add("version", format!("{}, pid {}, up {uptime}", status.version, status.pid));
    facts.list("listen", &status.listen);
    facts.list("external", &status.external);
    let off = |address: &String| if address.is_empty() { "off".into() } else { address.clone() };
    facts.add("grpc", off(&status.grpc));
    facts.add("http", off(&status.http));
    facts.add("metrics", off(&status.metrics));
    facts.add("services", format!("{} known in the mesh", status.services));
    facts.add("plugins", plugins_in_short(&status.plugins));
    facts.add(
        "resources",
        format!("{} memory, {:.1} % of one core", size(status.memory_bytes), status.cpu_percent),
    );
    if peers.is_some() {
        facts.add("labels", labels(&status.labels));
        facts.add("data", &status.data_dir);
        facts.add("run", &status.run_dir);
        facts.add("admin", &status.admin_socket);
        facts.add("mesh", &status.mesh_socket);
    }
    let mut text = facts.text(colour);
    for warning in &status.warnings {
        let warning = format!("warning: {}", clean(warning));
        text.push('\n');
        text.push_str(&paint(colour, Tone::Warn, &warning));
    }
    if let Some(peers) = peers {
        let _ = write!(text, "\n\n{}", plugin::list(&status.plugins, colour));
        let _ = write!(text, "\n\n{}", mesh::peers(peers, colour));
    }
    text
}

fn plugins_in_short(plugins: &[Plugin]) -> String {
    let mut states: Vec<(&str, usize)> = Vec::new();
    for plugin in plugins {
        match states.iter_mut().find(|(state, _)| *state == plugin.state) {
            Some((_, number)) => *number += 1,
            None => states.push((&plugin.state, 1)),
        }
    }
    let parts: Vec<String> = states.iter().map(|(state, n)| format!("{n} {state}")).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

/// The status as JSON; `connections` only when they were asked for.
pub fn status_document(status: &StatusResponse, peers: Option<&[Peer]>) -> Value {
    let mut document = json!({
        "peer_id": status.peer_id,
        "name": status.name,
        "network": status.network,
        "version": status.version,
        "pid": status.pid,
        "uptime_ms": status.uptime_ms,
        "listen": status.listen,
        "external": status.external,
        "grpc": text_or_null(&status.grpc),
        "http": text_or_null(&status.http),
        "metrics": text_or_null(&status.metrics),
        "admin_socket": text_or_null(&status.admin_socket),
        "mesh_socket": text_or_null(&status.mesh_socket),
        "data_dir": status.data_dir,
        "run_dir": status.run_dir,
        "labels": status.labels,
        "memory_bytes": status.memory_bytes,
        "cpu_percent": status.cpu_percent,
        "peers": status.peers,
        "services": status.services,
        "joined": status.joined,
        "plugins": status.plugins.iter().map(plugin::document).collect::<Vec<_>>(),
        "warnings": status.warnings,
    });
    if let Some(peers) = peers {
        document["connections"] = mesh::peers_document(peers)["peers"].take();
    }
    document
}

/// What was last seen, as a health report: for `health` without probing.
pub fn last_seen(status: &StatusResponse) -> HealthResponse {
    let check = |name: String, healthy, detail: String| HealthCheck { name, healthy, detail };
    let mesh = if status.joined {
        count(status.peers as usize, "peer") + " connected"
    } else {
        "no peer met yet".into()
    };
    let mut checks = vec![
        check("node".into(), true, format!("answers, up {}", span(status.uptime_ms))),
        check("mesh".into(), true, mesh),
    ];
    for plugin in &status.plugins {
        // One that was stopped on purpose is not ill; one that was never seen ready is not well.
        let healthy = plugin.state == "stopped" || (plugin.healthy && plugin.state != "failed");
        let mut detail = plugin.state.clone();
        if !plugin.reason.is_empty() {
            detail = format!("{detail}: {}", plugin.reason);
        }
        if !healthy {
            detail = format!("{detail}; see `blackhole plugin logs {}`", plugin.name);
        }
        checks.push(check(format!("plugin {}", plugin.name), healthy, detail));
    }
    HealthResponse { healthy: checks.iter().all(|check| check.healthy), checks }
}

/// A health report.
pub fn health(report: &HealthResponse, colour: bool) -> String {
    let mut table = Table::new(colour, &["CHECK", "STATE", "DETAIL"]);
    for check in &report.checks {
        let (state, tone) =
            if check.healthy { ("ok", Tone::Good) } else { ("unhealthy", Tone::Bad) };
        table.row([
            (check.name.clone(), None),
            (state.into(), Some(tone)),
            (check.detail.clone(), None),
        ]);
    }
    let ill = report.checks.iter().filter(|check| !check.healthy).count();
    let (verdict, tone) = if report.healthy {
        ("healthy".to_owned(), Tone::Good)
    } else {
        (format!("unhealthy: {} failed", count(ill, "check")), Tone::Bad)
    };
    format!("{}\n{}", table.text(), paint(colour, tone, &verdict))
}

/// A health report as JSON.
pub fn health_document(report: &HealthResponse) -> Value {
    let checks = report
        .checks
        .iter()
        .map(|check| json!({"name": check.name, "healthy": check.healthy, "detail": check.detail}));
    json!({"healthy": report.healthy, "checks": checks.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StatusResponse {
        StatusResponse {
            peer_id: "12D3KooWA".into(),
            name: "alpha".into(),
            network: "local".into(),
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 61_000,
            listen: vec!["/ip4/127.0.0.1/tcp/4001".into(), "/ip4/127.0.0.1/udp/4001".into()],
            grpc: "127.0.0.1:9090".into(),
            memory_bytes: 34_000_000,
            peers: 1,
            services: 2,
            joined: true,
            warnings: vec!["bootstrap /ip4/192.0.2.1 unreachable".into()],
            data_dir: "/d".into(),
            ..StatusResponse::default()
        }
    }

    #[test]
    fn the_status_is_short() {
        let expected = "\
node       alpha (12D3KooWA)
network    local, 1 peer
version    0.1.0, pid 7, up 1m 1s
listen     /ip4/127.0.0.1/tcp/4001
           /ip4/127.0.0.1/udp/4001
grpc       127.0.0.1:9090
http       off
metrics    off
services   2 known in the mesh
plugins    none
resources  34.0 MB memory, 0.0 % of one core
warning: bootstrap /ip4/192.0.2.1 unreachable";
        assert_eq!(status(&sample(), None, false), expected);
    }

    #[test]
    fn details_add_directories_plugins_and_connections() {
        let text = status(&sample(), Some(&[]), false);
        assert!(text.contains("\ndata       /d\n"), "{text}");
        assert!(text.contains("no plugins loaded"), "{text}");
        assert!(text.contains("no peers connected"), "{text}");
        let document = status_document(&sample(), Some(&[]));
        assert_eq!(document["connections"], json!([]));
        assert_eq!(document["http"], Value::Null);
        assert!(status_document(&sample(), None).get("connections").is_none());
    }

    #[test]
    fn a_failed_plugin_makes_the_node_unhealthy_and_a_stopped_one_does_not() {
        let plugin = |state: &str, healthy| Plugin {
            name: "kv".into(),
            state: state.into(),
            healthy,
            ..Plugin::default()
        };
        let report = |plugin| last_seen(&StatusResponse { plugins: vec![plugin], ..sample() });
        assert!(report(plugin("running", true)).healthy);
        assert!(report(plugin("stopped", false)).healthy);
        assert!(!report(plugin("running", false)).healthy);
        let failed = report(plugin("failed", true));
        assert!(!failed.healthy);
        let text = health(&failed, false);
        assert!(text.ends_with("unhealthy: 1 check failed"), "{text}");
        assert!(text.contains("blackhole plugin logs kv"), "{text}");
    }
}
