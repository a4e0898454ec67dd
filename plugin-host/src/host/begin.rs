//! From a request to supervisors: everything that is checked before there is a process.

use std::sync::Arc;

use protocol::{
    manifest::{Isolation, Manifest, Permission, Resources, Restart, RestartWhen},
    ports::Store,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Host, Inner,
    entry::{Entry, Instance, Life},
    loaded::{self, Loaded},
};
use crate::{
    allowance::Allowance,
    config::{GroupConfig, NamespacePolicy},
    level,
    lifecycle::State,
    logs::Logs,
    order, part,
    permissions::{Access, Counts, Granted, meet},
    plan::{self, Paths, SOCKET_PATH_BYTES_MAX},
    plugin::{self, Context, ORDERS, Phase},
    seat::Seat,
    siblings::Group,
    source::{self, Program},
    status::{LoadError, PluginStatus, Source},
};

/// Instances of one plugin: each is a process, and a script in a loop must end somewhere.
pub(super) const INSTANCES_MAX: u32 = 1_000;

/// Whether the first start led to readiness.
pub(super) type Outcome = Result<(), String>;

/// A plugin's part of the node's configuration, where it has one.
pub(super) type Part = Option<Arc<serde_json::Value>>;

/// Something that can be loaded, looked at.
pub(super) struct Resolved {
    pub(super) program: Arc<Program>,
    pub(super) loaded: Loaded,
}

impl Resolved {
    pub(super) fn name(&self) -> &str {
        self.program.manifest.name.as_str()
    }

    pub(super) fn instances(&self) -> u32 {
        self.loaded.instances.or(self.program.manifest.instances).unwrap_or(1)
    }
}

impl Host {
    /// Looks at what is to be loaded.
    pub(super) async fn resolve(&self, loaded: Loaded) -> Result<Resolved, LoadError> {
        let mut loaded = loaded;
        loaded.source = absolute(loaded.source)?;
        let defaults = self.inner.config.defaults();
        let least = self.inner.config.isolation_min;
        let resolved = tokio::task::spawn_blocking(move || {
            let name = loaded.name.as_deref();
            let mut program = source::resolve(&loaded.source, name, &defaults, least)?;
            loaded.overrides.apply(&mut program.manifest);
            program.state = loaded.overrides.state;
            if let Some(code) = &loaded.code {
                program.manifest.isolation = code.level();
                program.code = Some(code.clone());
            }
            Ok(Resolved { program: Arc::new(program), loaded })
        });
        resolved.await.map_err(|_| LoadError::ShuttingDown)?
    }

    /// Takes a place among the plugins, and starts the supervisors. One that has ended makes room
    /// for another of its name. The answer comes when every instance is ready or one has failed;
    /// then nothing of a plugin that was not `proven` is left.
    pub(super) fn enter(
        &self,
        resolved: Resolved,
        proven: bool,
        keep: bool,
    ) -> Result<oneshot::Receiver<Outcome>, LoadError> {
        let inner = &self.inner;
        inner.check(&resolved)?;
        let name = resolved.name().to_owned();
        let count = resolved.instances();
        let mut plugins = inner.plugins.lock();
        if inner.is_closing() {
            return Err(LoadError::ShuttingDown);
        }
        match plugins.get(&name) {
            Some(there) if !there.has_ended() => return Err(LoadError::AlreadyLoaded(name)),
            Some(there) => there.life.end(),
            None => {}
        }
        let others = plugins.iter().filter(|(other, _)| **other != name);
        let taken: usize = others.map(|(_, entry)| entry.instances.len()).sum();
        if taken + count as usize > inner.config.plugins_max {
            return Err(LoadError::TooMany(inner.config.plugins_max));
        }
        let logs = Logs::new(&inner.config.node_id, &name, inner.config.log_records_kept);
        let access = inner.access(&name, &resolved.program.manifest.permissions, &logs);
        let part = watch::Sender::new(inner.part(&resolved).map(Arc::new));
        let mut instances = Vec::new();
        let mut firsts = Vec::new();
        for number in 1..=count {
            let (seen, wish) = (part.subscribe(), &resolved.loaded.limits);
            let (instance, first) = self.start_instance(
                &resolved.program,
                number,
                (&logs, &access),
                seen,
                proven,
                wish,
            );
            instances.push(instance);
            firsts.push(first);
        }
        let entry = Entry {
            program: Some(Arc::clone(&resolved.program)),
            loaded: resolved.loaded,
            keep,
            logs,
            part: Arc::new(part),
            access,
            instances,
            life: Life::default(),
        };
        plugins.insert(name.clone(), entry.clone());
        drop(plugins);
        let (outcome, answer) = oneshot::channel();
        let store = Arc::clone(&inner.store);
        inner.tasks.spawn(async move {
            // Whoever loaded it may not wait.
            let _ = outcome.send(settle(&store, &name, &entry, firsts, proven).await);
        });
        Ok(answer)
    }

    /// Starts the supervisor of one instance.
    pub(super) fn start_instance(
        &self,
        program: &Arc<Program>,
        number: u32,
        (logs, access): (&Logs, &Arc<Access>),
        part: watch::Receiver<Part>,
        proven: bool,
        wish: &Resources,
    ) -> (Instance, oneshot::Receiver<Outcome>) {
        let inner = &self.inner;
        let plugin = program.manifest.name.as_str();
        let group = inner.group_of(&program.manifest);
        let seat = Seat::new(plugin, number, group.as_ref().map(|group| group.name()));
        let resources = wish.over(&program.manifest.resources);
        let allowance = Allowance::new(seat.clone(), Arc::clone(&inner.warden), resources);
        access.set_bandwidth(allowance.network_bandwidth());
        let mut status = inner.first_status(program, &allowance, access);
        status.number = number;
        status.group = group.as_ref().map(|it| (it.name().to_owned(), it.strategy()));
        let (orders, told) = mpsc::channel(ORDERS);
        let (phase, seen) = watch::channel(Phase::FIRST);
        let instance = Instance {
            key: seat.key(),
            status: Arc::new(parking_lot::Mutex::new(status)),
            ready_since: Arc::default(),
            orders,
            phase: seen,
            group: group.clone(),
            allowance: allowance.clone(),
            stop: inner.closing.child_token(),
            ended: CancellationToken::new(),
        };
        let context = Context {
            config: Arc::clone(&inner.config),
            program: Arc::clone(program),
            seat,
            allowance,
            spawner: inner.spawner.clone(),
            guests: Arc::clone(&inner.guests),
            channels: Arc::clone(&inner.channels),
            door: Arc::clone(&inner.door),
            events: inner.events.clone(),
            transitions: inner.transitions.clone(),
            logs: logs.clone(),
            floods: inner.floods.clone(),
            turns: inner.turns.clone(),
            carriers: inner.carriers.clone(),
            access: Arc::clone(access),
            authority: Arc::clone(&inner.authority),
            lookups: inner.lookups.clone(),
            status: Arc::clone(&instance.status),
            phase,
            ready_since: Arc::clone(&instance.ready_since),
            stop: instance.stop.clone(),
            starts: Arc::clone(&inner.starts),
            epoch: inner.epoch,
            roll: Arc::clone(&inner.roll),
            group: group.clone(),
            part,
            restart: program.manifest.restart.over(&inner.config.restart),
            proven,
        };
        if let Some(group) = group {
            group.join(instance.member(plugin));
        }
        let (first, answer) = oneshot::channel();
        let ended = instance.ended.clone();
        let supervised = async move {
            plugin::supervise(context, told, first).await;
            ended.cancel();
        };
        inner.tasks.spawn_on(supervised, inner.supervision.handle());
        (instance, answer)
    }
}

/// Waits for the first start of every instance. One that became ready is remembered; one that was
/// loaded just now and failed leaves nothing running.
async fn settle(
    store: &Arc<dyn Store>,
    name: &str,
    entry: &Entry,
    firsts: Vec<oneshot::Receiver<Outcome>>,
    proven: bool,
) -> Outcome {
    let ended = |_| Err("its supervisor has ended".into());
    let starts = firsts.into_iter().map(|first| async { first.await.unwrap_or_else(ended) });
    if let Err(reason) = futures::future::try_join_all(starts).await {
        if !proven {
            entry.end().await;
        }
        return Err(reason);
    }
    if !entry.keep || proven {
        return Ok(());
    }
    if let Err(error) = entry.loaded.remember(store, name).await {
        tracing::error!(plugin = %name, %error, "it will not be loaded again by itself");
    }
    // Unloaded meanwhile: whoever writes last must know.
    if entry.life.has_ended()
        && let Err(error) = loaded::forget(store, name).await
    {
        tracing::error!(plugin = %name, %error, "it will be loaded again by itself");
    }
    Ok(())
}

/// Where it will be found again, whatever directory the node runs in then.
fn absolute(source: Source) -> Result<Source, LoadError> {
    match source {
        Source::Path(path) => match std::path::absolute(&path) {
            Ok(path) => Ok(Source::Path(path)),
            Err(error) => Err(LoadError::Unreadable { path, cause: error.to_string() }),
        },
        exec @ Source::Exec(_) => Ok(exec),
    }
}

impl Inner {
    /// What depends on this host and its other plugins.
    pub(super) fn check(&self, resolved: &Resolved) -> Result<(), LoadError> {
        let program = &resolved.program;
        let granted = self.granted(program);
        plan::check(&self.config, program, &granted).map_err(LoadError::Invalid)?;
        let count = resolved.instances();
        self.check_count(program, count)?;
        if program.manifest.dependencies.is_empty() {
            // Nothing that could be missing, or lead back to it.
            return Ok(());
        }
        let nodes_of = |entry: &Entry| {
            let program = entry.program.clone().filter(|_| entry.is_alive())?;
            (program.manifest.name.as_str() != resolved.name()).then_some(program)
        };
        let mut others: Vec<Arc<Program>> =
            self.plugins.lock().values().filter_map(nodes_of).collect();
        others.push(Arc::clone(program));
        let plan = order::plan(&nodes(&others));
        let own = others.len() - 1;
        match plan.refused.into_iter().find(|(place, _)| *place == own) {
            Some((_, refusal)) => Err(LoadError::Invalid(refusal.to_string())),
            None => Ok(()),
        }
    }

    /// What is handed to it as its own configuration.
    fn part(&self, resolved: &Resolved) -> Option<serde_json::Value> {
        let given = resolved.loaded.overrides.part.clone();
        given.or_else(|| {
            let manifest = &resolved.program.manifest;
            part::whole(manifest.config.as_ref(), self.parts.lock().get(manifest.name.as_str()))
        })
    }

    /// What `program` would be granted now.
    fn granted(&self, program: &Program) -> Granted {
        let manifest = &program.manifest;
        meet(&manifest.permissions, &self.config.permissions.of(manifest.name.as_str()))
    }

    /// What `plugin` may do from now on. What it does not get of what it asked for is logged.
    fn access(&self, plugin: &str, asked: &[Permission], logs: &Logs) -> Arc<Access> {
        let policy = self.config.permissions.of(plugin);
        Arc::new(Access::new(plugin, asked, policy, logs.clone()))
    }

    /// Whether `count` instances of `program` can be had.
    pub(super) fn check_count(&self, program: &Program, count: u32) -> Result<(), LoadError> {
        let refuse = |text: String| Err(LoadError::Invalid(text));
        if count == 0 || count > INSTANCES_MAX {
            return refuse(format!("instances: {count} is not from 1 to {INSTANCES_MAX}"));
        }
        let name = program.manifest.name.as_str();
        if program.state && count > 1 {
            return refuse(format!(
                "instances: {name} keeps state in a directory that only one process may write"
            ));
        }
        if let Some(port) = program.manifest.listen.port()
            && count > 1
            && plan::shares_network(&self.config, &self.granted(program))
        {
            return refuse(format!(
                "instances: {name} listens on TCP port {port} of the node's own network, which \
                 only one can; let it listen on a Unix socket, or in a network of its own"
            ));
        }
        let longest = Paths::new(&self.config, &Seat::new(name, count, None).key()).longest();
        let bytes = longest.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return refuse(format!(
                "{} has {bytes} bytes, and a socket's path may have {SOCKET_PATH_BYTES_MAX}: \
                 choose a shorter name or a shorter --run-dir",
                longest.display()
            ));
        }
        Ok(())
    }

    /// The group that the operator put a plugin into, else the one that its manifest names.
    fn group_of(&self, manifest: &Manifest) -> Option<Arc<Group>> {
        let plugin = manifest.name.as_str();
        let given = self
            .config
            .groups
            .iter()
            .find(|(_, group)| group.members.iter().any(|member| member == plugin));
        let name = match given {
            Some((name, _)) => name.as_str(),
            None => manifest.group.as_ref()?.as_str(),
        };
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(name) {
            return Some(Arc::clone(group));
        }
        let config = self.config.groups.get(name).cloned();
        let config = config.unwrap_or_else(|| GroupConfig {
            // Whether an end counts is each member's own policy.
            restart: Restart { when: RestartWhen::Always, ..self.config.restart.clone() },
            ..GroupConfig::default()
        });
        let (group, work) = Group::new(name, config, self.closing.clone());
        self.tasks.spawn(work);
        groups.insert(name.into(), Arc::clone(&group));
        Some(group)
    }

    pub(super) fn blank(&self, name: &str, state: State, source: &str) -> PluginStatus {
        let isolation = match self.config.namespaces {
            NamespacePolicy::Required => "process",
            NamespacePolicy::Off => "process (reduced)",
        };
        PluginStatus {
            name: name.into(),
            version: "0.0.0".into(),
            state,
            reason: String::new(),
            pid: None,
            instance: None,
            services: Vec::new(),
            restarts: 0,
            crashes: 0,
            last_restart: None,
            uptime: None,
            memory_bytes: 0,
            memory_limit_bytes: None,
            cpu_percent: 0.0,
            cpu_seconds: 0.0,
            threads: 0,
            open_files: 0,
            disk_bytes: 0,
            mechanisms: Vec::new(),
            over_limit: 0,
            layers: Vec::new(),
            isolation: isolation.into(),
            source: source.into(),
            healthy: false,
            last_health_check: None,
            logs_lost: 0,
            warnings: Vec::new(),
            described: None,
            metrics: Vec::new(),
            figures_refused: 0,
            certificate: None,
            asked: Vec::new(),
            granted: Granted::default(),
            counts: Counts::default(),
            group: None,
            number: 1,
            instances: Vec::new(),
        }
    }

    /// The status of an instance of `program` that was not started yet.
    fn first_status(
        &self,
        program: &Program,
        allowance: &Allowance,
        access: &Access,
    ) -> PluginStatus {
        let manifest = &program.manifest;
        let mut status = self.blank(manifest.name.as_str(), State::Discovered, &program.source);
        status.version = manifest.version.to_string();
        status.warnings = plan::warnings(&self.config, program, access.granted());
        status.memory_limit_bytes = allowance.memory_limit();
        status.mechanisms = level::mechanisms(manifest.isolation, allowance);
        if manifest.isolation != Isolation::Process {
            status.isolation = manifest.isolation.to_string();
        }
        status
    }

    /// A plugin that is not started at all stays visible, with the reason.
    pub(super) fn note(&self, name: &str, loaded: Loaded, state: State, reason: &str) {
        let source = match &loaded.source {
            Source::Path(path) => path.display().to_string(),
            Source::Exec(command) => command.argv.join(" "),
        };
        let mut status = self.blank(name, state, &source);
        status.reason = reason.into();
        let logs = Logs::new(&self.config.node_id, name, self.config.log_records_kept);
        let level = if state == State::Failed { "error" } else { "info" };
        logs.supervisor(level, 0, format!("not started: {reason}"));
        let ended = CancellationToken::new();
        ended.cancel();
        let instance = Instance {
            key: name.into(),
            status: Arc::new(parking_lot::Mutex::new(status)),
            ready_since: Arc::default(),
            orders: mpsc::channel(1).0,
            phase: watch::channel(Phase { state, ..Phase::FIRST }).1,
            group: None,
            allowance: Allowance::new(
                Seat::new(name, 1, None),
                Arc::clone(&self.warden),
                Resources::default(),
            ),
            stop: CancellationToken::new(),
            ended,
        };
        let access = self.access(name, &[], &logs);
        let entry = Entry {
            program: None,
            loaded,
            keep: false,
            logs,
            part: Arc::new(watch::Sender::new(None)),
            access,
            instances: vec![instance],
            life: Life::default(),
        };
        self.plugins.lock().insert(name.into(), entry);
    }
}

/// What [`order::plan`] needs of each.
pub(super) fn nodes(programs: &[Arc<Program>]) -> Vec<order::Node<'_>> {
    let manifests = programs.iter().map(|program| &program.manifest);
    manifests
        .map(|manifest| order::Node {
            name: manifest.name.as_str(),
            version: &manifest.version,
            needs: &manifest.dependencies,
        })
        .collect()
}
