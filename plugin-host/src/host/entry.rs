//! A loaded plugin as its host keeps it: what it is started from, and its instances.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{begin::Part, loaded::Loaded};
use crate::{
    allowance::Allowance,
    lifecycle::State,
    logs::Logs,
    permissions::Access,
    plugin::{Order, Phase},
    siblings::{Group, Member},
    source::Program,
    status::PluginStatus,
};

/// A loaded plugin.
#[derive(Clone)]
pub(super) struct Entry {
    /// `None` where it could not even be looked at.
    pub(super) program: Option<Arc<Program>>,
    pub(super) loaded: Loaded,
    /// It is loaded again by the next host.
    pub(super) keep: bool,
    pub(super) logs: Logs,
    /// Its part of the node's configuration.
    pub(super) part: Arc<watch::Sender<Part>>,
    /// What it may do; of all its instances.
    pub(super) access: Arc<Access>,
    /// By number, from 1, without gaps. Never empty.
    pub(super) instances: Vec<Instance>,
    pub(super) life: Life,
}

/// One instance of a plugin.
#[derive(Clone)]
pub(super) struct Instance {
    pub(super) key: String,
    pub(super) status: Arc<Mutex<PluginStatus>>,
    pub(super) ready_since: Arc<Mutex<Option<Instant>>>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) group: Option<Arc<Group>>,
    pub(super) allowance: Allowance,
    pub(super) stop: CancellationToken,
    /// Cancelled when its supervisor has ended and nothing of it is left.
    pub(super) ended: CancellationToken,
}

/// From one load to its unload. Clones are the same life.
#[derive(Clone, Default)]
pub(super) struct Life(Arc<Inner>);

#[derive(Default)]
struct Inner {
    unloaded: AtomicBool,
    /// Held while the set of instances changes.
    change: tokio::sync::Mutex<()>,
}

impl Life {
    /// From now on it must not be loaded again by itself, and gets no further instances.
    pub(super) fn end(&self) {
        self.0.unloaded.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.unloaded.load(Ordering::SeqCst)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// One change at a time.
    pub(super) async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.change.lock().await
    }
}

impl Instance {
    pub(super) fn status(&self) -> PluginStatus {
        let mut status = self.status.lock().clone();
        status.uptime = self.ready_since.lock().map(|since| since.elapsed());
        status
    }

    pub(super) fn member(&self, plugin: &str) -> Member {
        Member {
            plugin: plugin.into(),
            key: self.key.clone(),
            orders: self.orders.clone(),
            phase: self.phase.clone(),
        }
    }

    /// Drains and ends it; nothing of it is left when this returns.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
        if let Some(group) = &self.group {
            group.leave(&self.orders);
        }
    }
}

impl Entry {
    /// True while an instance runs, or will again.
    pub(super) fn is_alive(&self) -> bool {
        self.instances.iter().any(|instance| instance.status.lock().state.is_alive())
    }

    /// True when every supervisor has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.instances.iter().all(|instance| instance.ended.is_cancelled())
    }

    pub(super) async fn end(&self) {
        futures::future::join_all(self.instances.iter().map(Instance::end)).await;
    }

    pub(super) fn status(&self) -> PluginStatus {
        let instances: Vec<PluginStatus> = self.instances.iter().map(Instance::status).collect();
        let mut status = together(&instances);
        status.logs_lost = self.logs.lost();
        status.asked = self.access.asked().iter().map(ToString::to_string).collect();
        status.granted = self.access.granted().clone();
        status.counts = self.access.counts();
        status.instances = instances;
        status
    }
}

/// How well an instance does; of several, the plugin shows the state of the best.
fn rank(state: State) -> u8 {
    match state {
        State::Running => 0,
        State::Unhealthy => 1,
        State::Initialised => 2,
        State::Loaded => 3,
        State::Discovered => 4,
        State::Draining => 5,
        State::CrashLoop => 6,
        State::Failed => 7,
        State::Stopped => 8,
    }
}

/// What several instances are together: the best one's state, and sums.
fn together(instances: &[PluginStatus]) -> PluginStatus {
    let best = instances.iter().min_by_key(|it| (rank(it.state), it.number));
    let mut all = best.unwrap_or(&instances[0]).clone();
    for one in instances.iter().filter(|one| one.number != all.number) {
        all.restarts += one.restarts;
        all.crashes += one.crashes;
        all.last_restart = all.last_restart.max(one.last_restart);
        all.memory_bytes += one.memory_bytes;
        all.cpu_percent += one.cpu_percent;
        all.cpu_seconds += one.cpu_seconds;
        all.threads += one.threads;
        all.open_files += one.open_files;
        all.disk_bytes += one.disk_bytes;
        all.over_limit += one.over_limit;
        if all.reason.is_empty() && !one.reason.is_empty() {
            all.reason = format!("instance {} is {}: {}", one.number, one.state, one.reason);
        }
    }
    all
}
