//! The node's figures at a moment, in the telemetry contract's words.

use plugin_host::PluginStatus;
use protocol::proto::telemetry::{MeshFigures, NodeFigures, PluginFigures, Sample};

use crate::{
    admin::{Node, show},
    usage::Usage,
};

/// All of them.
pub fn sample(node: &Node) -> Sample {
    let instances = node.host.list().into_iter().flat_map(|plugin| plugin.instances);
    Sample {
        timestamp: show::time(Some(std::time::SystemTime::now())),
        node: Some(NodeFigures {
            peer_id: node.ready.peer_id.clone(),
            name: node.ready.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: node.began.elapsed().as_millis() as u64,
            memory_bytes: Usage::memory_bytes(),
            cpu_percent: node.usage.cpu_percent(),
            cpu_seconds: Usage::cpu_seconds(),
            threads: Usage::threads(),
            open_files: Usage::open_files(),
        }),
        mesh: Some(mesh(node)),
        plugins: instances.map(plugin).collect(),
        interval_ms: 0,
    }
}

fn mesh(node: &Node) -> MeshFigures {
    let view = node.knowledge.peer().view();
    let offers = node.knowledge.offers();
    MeshFigures {
        joined: view.joined,
        peers: view.peers.len() as u32,
        peers_known: view.known as u32,
        services: offers.len() as u32,
        providers: offers.values().map(Vec::len).sum::<usize>() as u32,
    }
}

fn plugin(it: PluginStatus) -> PluginFigures {
    PluginFigures {
        state: it.state.to_string(),
        name: it.name,
        number: it.number,
        healthy: it.healthy,
        pid: it.pid.unwrap_or(0),
        memory_bytes: it.memory_bytes,
        memory_limit_bytes: it.memory_limit_bytes.unwrap_or(0),
        cpu_percent: it.cpu_percent,
        cpu_seconds: it.cpu_seconds,
        threads: it.threads,
        open_files: it.open_files,
        uptime_ms: it.uptime.map_or(0, |uptime| uptime.as_millis() as u64),
        restarts: it.restarts,
        crashes: it.crashes,
        disk_bytes: it.disk_bytes,
    }
}
