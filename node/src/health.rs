//! The node's health as `GET /health` tells it.

use std::{sync::Arc, time::SystemTime};

use futures::future::BoxFuture;
use gateway::{HealthReport, HealthSource, NodeHealth, PluginCondition, PluginHealth, ProcessUse};
use plugin_host::{PluginStatus, State};

use crate::{
    admin::{Node, show},
    usage::Usage,
};

/// Asks the node's parts each time; nothing is kept.
pub struct Health(pub Arc<Node>);

impl HealthSource for Health {
    fn report(&self) -> BoxFuture<'static, HealthReport> {
        let node = Arc::clone(&self.0);
        Box::pin(async move { report(&node) })
    }
}

fn report(node: &Node) -> HealthReport {
    let services: std::collections::BTreeMap<_, _> =
        node.host.list().into_iter().map(|it| (it.name.clone(), plugin(it))).collect();
    let ill: Vec<&str> = services
        .iter()
        .filter(|(_, it)| {
            use PluginCondition::{CrashLoop, Failed, Unhealthy};
            matches!(it.condition, Unhealthy | Failed | CrashLoop)
        })
        .map(|(name, _)| name.as_str())
        .collect();
    let status = match ill.as_slice() {
        [] => NodeHealth::Healthy,
        names => NodeHealth::Unhealthy(format!("not healthy: {}", names.join(", "))),
    };
    HealthReport {
        status,
        version: env!("CARGO_PKG_VERSION").into(),
        uptime: node.began.elapsed(),
        orchestrator: ProcessUse {
            pid: std::process::id(),
            memory_bytes: Usage::memory_bytes(),
            cpu_percent: node.usage.cpu_percent(),
        },
        services,
    }
}

fn plugin(it: PluginStatus) -> PluginHealth {
    let condition = match (it.state, it.healthy) {
        (State::Running, true) => PluginCondition::Healthy,
        (State::Running, false) | (State::Unhealthy, _) => PluginCondition::Unhealthy,
        (State::Discovered | State::Loaded | State::Initialised, _) => PluginCondition::Starting,
        (State::Draining, _) => PluginCondition::Draining,
        (State::Stopped, _) => PluginCondition::Stopped,
        (State::Failed, _) => PluginCondition::Failed,
        (State::CrashLoop, _) => PluginCondition::CrashLoop,
    };
    PluginHealth {
        condition,
        reason: (!it.reason.is_empty()).then_some(it.reason),
        version: it.version,
        uptime: it.uptime,
        process: it.pid.map(|pid| ProcessUse {
            pid,
            memory_bytes: it.memory_bytes,
            cpu_percent: it.cpu_percent,
        }),
        memory_limit_bytes: it.memory_limit_bytes,
        restarts: it.restarts,
        last_health_check: it.last_health_check.map(|at: SystemTime| show::time(Some(at))),
        offers: it.services.iter().map(ToString::to_string).collect(),
    }
}
