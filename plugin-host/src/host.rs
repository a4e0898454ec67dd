//! The host: owns every supervisor, and what was loaded.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use protocol::{
    id::InstanceId,
    ports::{Reach, Store, StoreError},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    channel::Channels,
    config::{HostConfig, NamespacePolicy},
    lifecycle::State,
    logs::{LogStream, Logs},
    plan::{self, Paths, SOCKET_PATH_BYTES_MAX},
    plugin::{self, Context, TAIL_LINES},
    process::Spawner,
    source::{self, Program},
    status::{
        HostError, HostEvent, LoadError, LoadRequest, MeshDoor, PluginStatus, Source,
        UnknownPlugin, UnloadError,
    },
};

/// Events the node may be behind. Each plugin causes two per run; a node that is further behind
/// holds supervisors up, which is right: nobody could be told.
const EVENTS: usize = 256;

/// Where the store keeps what is loaded, by name.
const LOADED: &str = "plugin-host/loaded/";

/// The plugin host. Clones are the same host. Dropping the last one ends every plugin at once;
/// [`Host::shutdown`] lets them finish.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<HostConfig>,
    store: Arc<dyn Store>,
    door: Arc<dyn MeshDoor>,
    spawner: Spawner,
    channels: Arc<Channels>,
    events: mpsc::Sender<HostEvent>,
    plugins: Mutex<BTreeMap<String, Entry>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

#[derive(Clone)]
struct Entry {
    status: Arc<Mutex<PluginStatus>>,
    logs: Logs,
    stop: CancellationToken,
    /// Cancelled when its supervisor has ended and nothing of it is left.
    ended: CancellationToken,
    ready_since: Arc<Mutex<Option<Instant>>>,
    /// Unloaded: it must not be loaded again by itself.
    unloaded: Arc<AtomicBool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// What is remembered of a loaded plugin. Version 1; fields may be added with defaults.
#[derive(Serialize, Deserialize)]
struct Loaded {
    v: u32,
    source: Source,
    name: Option<String>,
}

impl Host {
    /// Prepares the run directory, removes what an earlier host left in it, and begins to load
    /// again what was loaded before, without waiting for it. Must be called within a tokio
    /// runtime.
    pub async fn start(
        config: HostConfig,
        store: Arc<dyn Store>,
        door: Arc<dyn MeshDoor>,
    ) -> Result<(Self, mpsc::Receiver<HostEvent>), HostError> {
        let directory = config.run_dir.join("plugins");
        let shortest = Paths::new(&config, "x").longest();
        if shortest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(HostError::RunDirTooLong {
                path: config.run_dir,
                max: SOCKET_PATH_BYTES_MAX,
            });
        }
        // Processes of an earlier host have ended with it; its sockets have not.
        let _ = fs::remove_dir_all(&directory);
        plugin::private_directory(&directory)
            .map_err(|cause| HostError::RunDir { path: directory, cause })?;
        let loaded = read_loaded(Arc::clone(&store), config.plugins_max).await?;
        if config.namespaces == NamespacePolicy::Off {
            tracing::warn!(
                "plugins run WITHOUT namespaces, as configured: they see this machine's files, \
                 processes and network"
            );
        }
        let (events, receiver) = mpsc::channel(EVENTS);
        let host = Self {
            inner: Arc::new(Inner {
                config: Arc::new(config),
                store,
                door,
                spawner: Spawner::start().map_err(HostError::Spawner)?,
                channels: Arc::new(Channels::default()),
                events,
                plugins: Mutex::new(BTreeMap::new()),
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
            }),
        };
        for (name, loaded) in loaded {
            let request = LoadRequest { source: loaded.source, name: loaded.name, wait: false };
            if let Err(error) = host.begin(&request, true).await {
                tracing::error!(plugin = %name, %error, "cannot load the plugin again");
                host.inner.note_unloadable(&name, &request.source, &error.to_string());
            }
        }
        Ok((host, receiver))
    }

    /// Loads a plugin. With `wait`, returns when it is ready or has failed; nothing of a plugin
    /// that failed is left running, and its status and log tell why.
    ///
    /// A plugin that became ready is loaded again when the node starts again.
    pub async fn load(&self, request: LoadRequest) -> Result<PluginStatus, LoadError> {
        let (name, outcome) = self.begin(&request, false).await?;
        if !request.wait {
            return self.status_of(&name);
        }
        match outcome.await {
            Ok(Ok(())) => self.status_of(&name),
            Ok(Err(reason)) => Err(self.not_started(&name, reason)),
            Err(_) => Err(LoadError::ShuttingDown),
        }
    }

    fn status_of(&self, name: &str) -> Result<PluginStatus, LoadError> {
        self.info(name).map_err(|_| LoadError::Invalid(format!("{name} was unloaded meanwhile")))
    }

    fn not_started(&self, name: &str, reason: String) -> LoadError {
        let tail = self.logs(name).map(|logs| logs.tail(0)).unwrap_or_default();
        let said: Vec<_> = tail
            .iter()
            .filter(|record| record.stream != LogStream::Supervisor)
            .map(|record| (**record).clone())
            .collect();
        let tail = said[said.len().saturating_sub(TAIL_LINES)..].to_vec();
        LoadError::NotStarted { name: name.into(), reason, tail }
    }

    /// Checks the request and starts its supervisor.
    async fn begin(
        &self,
        request: &LoadRequest,
        proven: bool,
    ) -> Result<(String, oneshot::Receiver<Outcome>), LoadError> {
        let inner = &self.inner;
        let (source, name) = (absolute(request.source.clone())?, request.name.clone());
        let loaded = Loaded { v: 1, source: source.clone(), name: name.clone() };
        let start_timeout = inner.config.start_timeout;
        let resolved = tokio::task::spawn_blocking(move || {
            source::resolve(&source, name.as_deref(), start_timeout)
        });
        let program = resolved.await.map_err(|_| LoadError::ShuttingDown)??;
        let name = program.manifest.name.to_string();
        inner.check(&program)?;
        let entry = inner.enter(&name, &program)?;
        let (first, told) = oneshot::channel();
        let context = Context {
            config: Arc::clone(&inner.config),
            program,
            spawner: inner.spawner.clone(),
            channels: Arc::clone(&inner.channels),
            door: Arc::clone(&inner.door),
            events: inner.events.clone(),
            logs: entry.logs.clone(),
            status: Arc::clone(&entry.status),
            ready_since: Arc::clone(&entry.ready_since),
            stop: entry.stop.clone(),
            proven,
        };
        let ended = entry.ended.clone();
        inner.tasks.spawn(async move {
            plugin::supervise(context, first).await;
            ended.cancel();
        });
        let (outcome, answer) = oneshot::channel();
        let store = Arc::clone(&inner.store);
        let remembered = remember_when_ready(store, name.clone(), loaded, entry.unloaded, told);
        inner.tasks.spawn(async move {
            // Whoever loaded it may not wait.
            let _ = outcome.send(remembered.await);
        });
        Ok((name, answer))
    }

    /// Unloads a plugin: new calls go elsewhere at once, those in flight finish within the grace,
    /// then it ends. Returns when nothing of it is left.
    pub async fn unload(&self, name: &str) -> Result<(), UnloadError> {
        let unknown = || UnknownPlugin(name.into());
        let entry = self.inner.plugins.lock().get(name).cloned().ok_or_else(unknown)?;
        entry.unloaded.store(true, Ordering::SeqCst);
        entry.stop.cancel();
        // Out of the store before it has ended: a node that dies now must not load it again.
        let forgotten = write(&self.inner.store, name, None).await;
        entry.ended.cancelled().await;
        let mut plugins = self.inner.plugins.lock();
        if plugins.get(name).is_some_and(|now| Arc::ptr_eq(&now.status, &entry.status)) {
            plugins.remove(name);
        }
        drop(plugins);
        forgotten?;
        Ok(())
    }

    /// All plugins, by name.
    pub fn list(&self) -> Vec<PluginStatus> {
        let entries: Vec<Entry> = self.inner.plugins.lock().values().cloned().collect();
        entries.iter().map(Entry::status).collect()
    }

    /// One plugin.
    pub fn info(&self, name: &str) -> Result<PluginStatus, UnknownPlugin> {
        let entry = self.inner.plugins.lock().get(name).cloned();
        entry.map(|entry| entry.status()).ok_or_else(|| UnknownPlugin(name.into()))
    }

    /// A plugin's log.
    pub fn logs(&self, name: &str) -> Result<Logs, UnknownPlugin> {
        let entry = self.inner.plugins.lock().get(name).cloned();
        entry.map(|entry| entry.logs).ok_or_else(|| UnknownPlugin(name.into()))
    }

    /// Calls to plugins that are ready.
    pub fn channels(&self) -> Arc<dyn Reach<InstanceId>> {
        Arc::clone(&self.inner.channels) as Arc<dyn Reach<InstanceId>>
    }

    /// Drains and ends every plugin, and returns when nothing of them is left. They stay loaded
    /// in the store. The receiver of events must be read meanwhile, or dropped.
    pub async fn shutdown(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// Whether the first start led to readiness.
type Outcome = Result<(), String>;

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
    fn check(&self, program: &Program) -> Result<(), LoadError> {
        let name = program.manifest.name.as_str();
        plan::check(&self.config, program).map_err(LoadError::Invalid)?;
        let longest = Paths::new(&self.config, name).longest();
        let bytes = longest.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(LoadError::Invalid(format!(
                "{} has {bytes} bytes, and a socket's path may have {SOCKET_PATH_BYTES_MAX}: \
                 choose a shorter name or a shorter --run-dir",
                longest.display()
            )));
        }
        let plugins = self.plugins.lock();
        for dependency in &program.manifest.dependencies {
            let wanted = dependency.name.as_str();
            let found = plugins.get(wanted).map(Entry::status);
            let there = found.as_ref().filter(|status| status.state.is_alive());
            let version = there.and_then(|status| semver::Version::parse(&status.version).ok());
            match version {
                Some(version) if dependency.version.matches(&version) => {}
                Some(version) => {
                    return Err(LoadError::Invalid(format!(
                        "dependencies: {wanted} {} is needed, and {version} is loaded",
                        dependency.version
                    )));
                }
                None => {
                    return Err(LoadError::Invalid(format!(
                        "dependencies: {wanted} {} is needed and not loaded: load it first",
                        dependency.version
                    )));
                }
            }
        }
        Ok(())
    }

    /// Takes a place among the plugins. One that has ended makes room for another of its name.
    fn enter(&self, name: &str, program: &Program) -> Result<Entry, LoadError> {
        let mut plugins = self.plugins.lock();
        if self.closing.is_cancelled() {
            return Err(LoadError::ShuttingDown);
        }
        match plugins.get(name) {
            Some(there) if !there.ended.is_cancelled() => {
                return Err(LoadError::AlreadyLoaded(name.into()));
            }
            None if plugins.len() >= self.config.plugins_max => {
                return Err(LoadError::TooMany(self.config.plugins_max));
            }
            Some(_) | None => {}
        }
        let entry = self.entry(name, State::Discovered, &program.source);
        {
            let mut status = entry.status.lock();
            status.version = program.manifest.version.to_string();
            status.warnings = plan::warnings(&self.config, program);
            let asked = program.manifest.resources.memory_mb;
            let limit = asked.filter(|_| self.config.memory_limits);
            status.memory_limit_bytes = limit.map(|mb| mb << 20);
        }
        plugins.insert(name.into(), entry.clone());
        Ok(entry)
    }

    fn entry(&self, name: &str, state: State, source: &str) -> Entry {
        let isolation = match self.config.namespaces {
            NamespacePolicy::Required => "process",
            NamespacePolicy::Off => "process (reduced)",
        };
        let status = PluginStatus {
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
            threads: 0,
            open_files: 0,
            layers: Vec::new(),
            isolation: isolation.into(),
            source: source.into(),
            healthy: false,
            last_health_check: None,
            logs_lost: 0,
            warnings: Vec::new(),
        };
        Entry {
            status: Arc::new(Mutex::new(status)),
            logs: Logs::new(&self.config.node_id, name, self.config.log_records_kept),
            stop: self.closing.child_token(),
            ended: CancellationToken::new(),
            ready_since: Arc::new(Mutex::new(None)),
            unloaded: Arc::new(AtomicBool::new(false)),
        }
    }

    /// A plugin that was loaded and cannot even be tried stays visible.
    fn note_unloadable(&self, name: &str, source: &Source, reason: &str) {
        let source = match source {
            Source::Path(path) => path.display().to_string(),
            Source::Exec(command) => command.argv.join(" "),
        };
        let entry = self.entry(name, State::Failed, &source);
        entry.status.lock().reason = reason.into();
        entry.logs.supervisor("error", 0, format!("cannot be loaded again: {reason}"));
        entry.ended.cancel();
        self.plugins.lock().insert(name.into(), entry);
    }
}

impl Entry {
    fn status(&self) -> PluginStatus {
        let mut status = self.status.lock().clone();
        status.logs_lost = self.logs.lost();
        status.uptime = self.ready_since.lock().map(|since| since.elapsed());
        status
    }
}

/// Waits for the first start, and has a plugin that became ready loaded again at the next start
/// of the node.
async fn remember_when_ready(
    store: Arc<dyn Store>,
    name: String,
    loaded: Loaded,
    unloaded: Arc<AtomicBool>,
    told: oneshot::Receiver<Outcome>,
) -> Outcome {
    told.await.unwrap_or_else(|_| Err("its supervisor has ended".into()))?;
    let bytes = serde_json::to_vec(&loaded).map_err(|error| error.to_string())?;
    if let Err(error) = write(&store, &name, Some(bytes)).await {
        tracing::error!(plugin = %name, %error, "it will not be loaded again by itself");
    }
    // Unloaded meanwhile: whoever writes last must know.
    if unloaded.load(Ordering::SeqCst)
        && let Err(error) = write(&store, &name, None).await
    {
        tracing::error!(plugin = %name, %error, "it will be loaded again by itself");
    }
    Ok(())
}

async fn write(
    store: &Arc<dyn Store>,
    name: &str,
    value: Option<Vec<u8>>,
) -> Result<(), StoreError> {
    let store = Arc::clone(store);
    let key = format!("{LOADED}{name}").into_bytes();
    let written = tokio::task::spawn_blocking(move || store.write(vec![(key, value)]));
    written
        .await
        .unwrap_or_else(|error| Err(StoreError { action: "write", cause: error.to_string() }))
}

async fn read_loaded(
    store: Arc<dyn Store>,
    entries_max: usize,
) -> Result<Vec<(String, Loaded)>, StoreError> {
    let scanned =
        tokio::task::spawn_blocking(move || store.scan(LOADED.as_bytes(), entries_max)).await;
    let entries = scanned
        .unwrap_or_else(|error| Err(StoreError { action: "read", cause: error.to_string() }))?;
    let mut loaded = Vec::new();
    for (key, value) in entries {
        let name = String::from_utf8_lossy(&key).trim_start_matches(LOADED).to_owned();
        match serde_json::from_slice::<Loaded>(&value) {
            Ok(found) if found.v == 1 => loaded.push((name, found)),
            _ => tracing::error!(plugin = %name, "what was loaded is written in an unknown way"),
        }
    }
    Ok(loaded)
}
