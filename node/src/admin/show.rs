//! What the node's parts say, in the admin contract's words.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use plugin_host::{LogFilter, LogRecord, PluginStatus, State, permissions::Counts};
use protocol::{manifest::permission::Kind, proto::admin as api};
use router::{Explained, Explanation};

use super::{Node, probe::probe};
use crate::{knowledge::Offer, usage::Usage};

/// The node itself.
pub fn status(node: &Node) -> api::StatusResponse {
    let view = node.knowledge.peer().view();
    let plugins = node.host.list();
    api::StatusResponse {
        peer_id: node.ready.peer_id.clone(),
        name: node.ready.name.clone(),
        network: node.ready.network.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_ms: node.began.elapsed().as_millis() as u64,
        listen: view.listen.iter().map(|it| format!("{it}/p2p/{}", view.id)).collect(),
        external: view.external.iter().map(ToString::to_string).collect(),
        grpc: node.ready.grpc.clone().unwrap_or_default(),
        http: node.ready.http.clone().unwrap_or_default(),
        metrics: node.ready.metrics.clone().unwrap_or_default(),
        admin_socket: node.ready.admin.clone().unwrap_or_default(),
        mesh_socket: node.ready.mesh.clone().unwrap_or_default(),
        data_dir: node.settings.data_dir.display().to_string(),
        run_dir: node.settings.run_dir.display().to_string(),
        labels: node.settings.labels.clone().into_iter().collect(),
        memory_bytes: Usage::memory_bytes(),
        cpu_percent: node.usage.cpu_percent(),
        peers: view.peers.len() as u32,
        services: node.knowledge.offers().len() as u32,
        joined: view.joined,
        plugins: plugins.into_iter().map(|it| plugin(node, it)).collect(),
        warnings: warnings(node),
    }
}

/// What is not in force, runs reduced, or cannot be reached.
fn warnings(node: &Node) -> Vec<String> {
    let unreachable = node.unreachable.lock();
    let bootstraps = unreachable
        .iter()
        .map(|(address, why)| format!("bootstrap {address} does not answer: {why}; still trying"));
    let mut warnings = node.settings.warnings.clone();
    warnings.extend(bootstraps);
    let settings = &node.settings;
    let layers = [
        ("namespaces", settings.namespaces),
        ("landlock", settings.landlock),
        ("seccomp", settings.seccomp),
    ];
    for (layer, _) in layers.into_iter().filter(|(_, required)| !required) {
        warnings.push(format!("plugins run without {layer} (plugins.{layer}: off)"));
    }
    warnings
}

/// Everything probed now.
pub async fn health(node: &Node) -> api::HealthResponse {
    let check = |name: &str, healthy, detail: String| api::HealthCheck {
        name: name.into(),
        healthy,
        detail,
    };
    let database = node.database.clone();
    let store = tokio::task::spawn_blocking(move || database.check()).await;
    let mut checks = vec![match store {
        Ok(Ok(())) => check("store", true, "writes and reads".into()),
        Ok(Err(error)) => check("store", false, format!("{error}; is the disk full?")),
        Err(_) => check("store", false, "the check broke off".into()),
    }];
    let view = node.knowledge.peer().view();
    let alone = node.settings.bootstrap.is_empty();
    let mesh = match (view.peers.len(), alone) {
        (0, true) => "no peers, and none were asked for".into(),
        (0, false) => {
            "no peer reached; check the bootstrap addresses with `blackhole doctor`".into()
        }
        (count, _) => format!("{count} peers connected"),
    };
    checks.push(check("mesh", !view.peers.is_empty() || alone, mesh));
    // Every process by itself; what was stopped on purpose is not ill.
    let instances: Vec<PluginStatus> =
        node.host.list().into_iter().flat_map(|plugin| plugin.instances).collect();
    let asked: Vec<_> = instances.iter().filter(|it| it.state != State::Stopped).collect();
    let probes = asked.iter().map(|plugin| probe(&node.host, plugin));
    for (plugin, probed) in asked.iter().zip(futures::future::join_all(probes).await) {
        let healthy = probed.is_ok();
        let detail = probed.err().unwrap_or_else(|| "answers".into());
        let name = match plugin.number {
            1 => format!("plugin {}", plugin.name),
            number => format!("plugin {}/{number}", plugin.name),
        };
        checks.push(check(&name, healthy, detail));
    }
    api::HealthResponse { healthy: checks.iter().all(|check| check.healthy), checks }
}

/// One plugin.
pub fn plugin(node: &Node, it: PluginStatus) -> api::Plugin {
    let announced = it.instance.is_some_and(|run| node.knowledge.is_announced(run));
    let (group, strategy) = it
        .group
        .map_or_else(Default::default, |(name, strategy)| (name, strategy.as_str().to_owned()));
    let warnings = it.warnings.clone();
    let reason = if it.reason.is_empty() { it.warnings.join("; ") } else { it.reason };
    let described = it.described.unwrap_or_default();
    let certificate = it.certificate;
    let figures = it.metrics.into_iter().map(|metric| api::Figure {
        name: metric.name,
        value: metric.value,
        labels: metric.labels.into_iter().collect(),
    });
    api::Plugin {
        name: it.name,
        version: it.version,
        state: it.state.to_string(),
        reason,
        pid: it.pid.unwrap_or(0),
        instance: it.instance.map(|run| run.to_string()).unwrap_or_default(),
        services: it.services.iter().map(ToString::to_string).collect(),
        restarts: it.restarts,
        crashes: it.crashes,
        last_restart: time(it.last_restart),
        uptime_ms: it.uptime.map_or(0, |uptime| uptime.as_millis() as u64),
        memory_bytes: it.memory_bytes,
        memory_limit_bytes: it.memory_limit_bytes.unwrap_or(0),
        cpu_percent: it.cpu_percent,
        threads: it.threads,
        open_files: it.open_files,
        layers: it.layers,
        source: it.source,
        certificate_sha256: certificate
            .as_ref()
            .map(|it| it.fingerprint.clone())
            .unwrap_or_default(),
        certificate_expires: time(certificate.map(|it| it.expires)),
        announced,
        healthy: it.healthy,
        last_health_check: time(it.last_health_check),
        isolation: it.isolation,
        logs_lost: it.logs_lost,
        permissions_asked: it.asked,
        permissions_granted: it.granted.words(),
        permissions_denied: it.granted.denied.iter().map(ToString::to_string).collect(),
        denials: denials(&it.counts),
        egress_connections: it.counts.connections,
        egress_sent_bytes: it.counts.sent_bytes,
        egress_received_bytes: it.counts.received_bytes,
        group,
        strategy,
        mechanisms: it.mechanisms.into_iter().map(mechanism).collect(),
        disk_bytes: it.disk_bytes,
        over_limit: it.over_limit,
        number: it.number,
        description: described.description,
        capabilities: described.capabilities,
        figures: figures.collect(),
        dependencies: described.dependencies,
        warnings,
        figures_refused: it.figures_refused,
        instances: it.instances.into_iter().map(|one| plugin(node, one)).collect(),
    }
}

/// Which lines are asked for, at `now`.
pub fn log_filter(request: &api::PluginLogsRequest, now: SystemTime) -> LogFilter {
    let since = (request.since_ms > 0)
        .then(|| now.checked_sub(Duration::from_millis(request.since_ms)))
        .flatten();
    LogFilter {
        since: since.map(plugin_host::logs::rfc3339),
        level: request.level.clone(),
        contains: request.contains.clone(),
        stream: request.stream.clone(),
    }
}

fn mechanism(it: plugin_host::Mechanism) -> api::Mechanism {
    let plugin_host::Mechanism { resource, limit, means } = it;
    api::Mechanism { resource: resource.into(), limit, means }
}

/// Refused attempts, by kind of permission; kinds without any are left out.
fn denials(counts: &Counts) -> HashMap<String, u64> {
    let count = |kind: Kind| (kind.as_str().to_owned(), counts.denials[kind as usize]);
    Kind::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
}

/// One line of a plugin's log.
pub fn log(it: &LogRecord) -> api::LogLine {
    api::LogLine {
        timestamp: it.timestamp.clone(),
        node_id: it.node_id.clone(),
        service: it.service.clone(),
        pid: it.pid,
        level: it.level.clone(),
        message: it.message.clone(),
        fields_json: serde_json::Value::Object(it.fields.clone()).to_string(),
        stream: it.stream.as_str().into(),
    }
}

/// One provider.
pub fn provider(node: &Node, it: &Offer) -> api::Provider {
    let candidate = &it.candidate;
    let view = node.knowledge.peer().view();
    // An agent is `blackhole/0.1.0 NAME`; the name is what people gave it, and not proven.
    let agent = view.neighbour(candidate.peer).map(|it| it.agent.as_str());
    let told = agent.and_then(|agent| agent.split_once(' ')).map(|(_, name)| name);
    let peer_name =
        if candidate.local { node.ready.name.clone() } else { told.unwrap_or_default().into() };
    let expires_in_ms = it.expires.map_or(0, |at| at.saturating_sub(now_millis()));
    api::Provider {
        peer_id: candidate.peer.to_string(),
        peer_name,
        plugin: candidate.plugin.clone(),
        version: candidate.version.clone(),
        instance: candidate.instance.to_string(),
        local: candidate.local,
        connected: it.connected,
        transport: it.transport.clone().unwrap_or_default(),
        expires_in_ms,
        load_percent: candidate.load_percent.into(),
        rtt_us: it.rtt.map_or(0, |rtt| rtt.as_micros() as u64),
        labels: candidate.labels.clone().into_iter().collect(),
    }
}

/// All neighbours.
pub fn peers(node: &Node) -> api::PeersResponse {
    let view = node.knowledge.peer().view();
    let directory = node.knowledge.peer().directory();
    let connection = |it: &peer::ConnectionView| api::Connection {
        address: it.address.to_string(),
        transport: it.transport.to_string(),
        direction: if it.inbound { "in" } else { "out" }.into(),
        age_ms: it.since.elapsed().map_or(0, |age| age.as_millis() as u64),
    };
    let neighbour = |it: &peer::NeighbourView| api::Peer {
        peer_id: it.id.to_string(),
        agent: it.agent.clone(),
        connections: it.connections.iter().map(connection).collect(),
        rtt_us: it.rtt.map_or(0, |rtt| rtt.as_micros() as u64),
        services: directory.of_peer(it.id).into_iter().map(ToString::to_string).collect(),
    };
    api::PeersResponse { peers: view.peers.iter().map(neighbour).collect() }
}

/// Who would answer, and why.
pub fn explanation(node: &Node, told: &Explanation, offers: &[Offer]) -> api::ExplainResponse {
    let candidates = told.candidates.iter().map(|one| candidate(node, one, offers));
    api::ExplainResponse { candidates: candidates.collect(), verdict: told.to_string() }
}

/// One candidate as a choice saw it.
pub fn candidate(node: &Node, one: &Explained, offers: &[Offer]) -> api::Candidate {
    let same = |offer: &&Offer| {
        (offer.candidate.peer, offer.candidate.instance)
            == (one.candidate.peer, one.candidate.instance)
    };
    api::Candidate {
        provider: offers.iter().find(same).map(|offer| provider(node, offer)),
        eligible: one.eligible,
        why: one.why.clone(),
    }
}

/// RFC 3339; empty for never.
pub fn time(at: Option<SystemTime>) -> String {
    at.and_then(|at| jiff::Timestamp::try_from(at).ok())
        .map(|at| at.to_string())
        .unwrap_or_default()
}

fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
