//! The host: owns every supervisor, and what was loaded.
//!
//! [`Host`] is the one plugin manager there is: the admin service, the command line through it,
//! and applications that embed a node all load, unload, reload, restart, scale, list and watch
//! plugins through its methods, and call them through [`Host::channels`].

mod begin;
mod change;
mod entry;
mod loaded;
mod recover;

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use protocol::{
    id::InstanceId,
    ports::{Reach, Store},
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    allowance::Warden,
    channel::Channels,
    config::{HostConfig, NamespacePolicy},
    egress::Lookups,
    level::Guests,
    logs::{Floods, LogStream, Logs},
    order,
    part::Parts,
    plan::{Paths, SOCKET_PATH_BYTES_MAX},
    plugin::{self, TAIL_LINES},
    roll::Roll,
    siblings::Group,
    source::Program,
    spawner::Spawner,
    status::{
        HostError, HostEvent, LoadError, LoadRequest, MeshDoor, PluginStatus, Transition,
        UnknownPlugin, UnloadError,
    },
    supervision::Supervision,
    tls::Authority,
    turns::Turns,
};
use begin::nodes;
use entry::Entry;
use loaded::Loaded;

/// Events the node may be behind. Each plugin causes two per run; a node that is further behind
/// holds supervisors up, which is right: nobody could be told.
const EVENTS: usize = 256;

/// Transitions a watcher may be behind before it misses some: a thousand plugins that start take
/// three each.
const TRANSITIONS: usize = 4_096;

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
    authority: Arc<Authority>,
    lookups: Lookups,
    floods: Floods,
    turns: Turns,
    carriers: Handle,
    supervision: Supervision,
    events: mpsc::Sender<HostEvent>,
    transitions: broadcast::Sender<Transition>,
    plugins: Mutex<BTreeMap<String, Entry>>,
    groups: Mutex<BTreeMap<String, Arc<Group>>>,
    /// The operator's word to each plugin, as it is now.
    parts: Mutex<Parts>,
    roll: Arc<Roll>,
    starts: Arc<Semaphore>,
    warden: Arc<Warden>,
    guests: Arc<Guests>,
    epoch: Instant,
    tasks: TaskTracker,
    /// Nothing new is taken.
    draining: AtomicBool,
    closing: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
        self.supervision.end(self.tasks.clone());
    }
}

impl Host {
    /// Prepares the run directory, removes what an earlier host left in it, and begins to load
    /// again what was loaded before, in the order of dependencies, without waiting for it. Must be
    /// called within a tokio runtime.
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
        let loaded = loaded::all(Arc::clone(&store), config.plugins_max).await?;
        if config.namespaces == NamespacePolicy::Off {
            tracing::warn!(
                "plugins run WITHOUT namespaces, as configured: they see this machine's files, \
                 processes and network"
            );
        }
        let (config, warden) = warden(config).await?;
        widen_descriptor_table();
        let (events, receiver) = mpsc::channel(EVENTS);
        let host = Self {
            inner: Arc::new(Inner {
                starts: Arc::new(Semaphore::new(config.starts_max.max(1))),
                spawner: Spawner::start(config.launcher.clone(), warden.of_launchers())
                    .map_err(HostError::Spawner)?,
                warden: Arc::new(warden),
                parts: Mutex::new(config.parts.clone()),
                authority: Arc::new(Authority::of(&config.data_dir)),
                config: Arc::new(config),
                store,
                door,
                channels: Arc::new(Channels::default()),
                lookups: Lookups::default(),
                floods: Floods::default(),
                turns: Turns::default(),
                carriers: Handle::current(),
                supervision: Supervision::start().map_err(HostError::Spawner)?,
                events,
                transitions: broadcast::channel(TRANSITIONS).0,
                plugins: Mutex::new(BTreeMap::new()),
                groups: Mutex::new(BTreeMap::new()),
                roll: Arc::new(Roll::default()),
                guests: Arc::default(),
                epoch: Instant::now(),
                tasks: TaskTracker::new(),
                draining: AtomicBool::new(false),
                closing: CancellationToken::new(),
            }),
        };
        host.recover(loaded).await;
        Ok((host, receiver))
    }

    /// Loads a plugin. With `wait`, returns when all its instances are ready or one has failed;
    /// nothing of a plugin that failed is left running, and its status and log tell why.
    ///
    /// A plugin that became ready is loaded again when the node starts again.
    pub async fn load(&self, request: LoadRequest) -> Result<PluginStatus, LoadError> {
        let wait = request.wait;
        let loaded = Loaded::of(request);
        let resolved = self.resolve(loaded).await?;
        let name = resolved.name().to_owned();
        let outcome = self.enter(resolved, false, true)?;
        if !wait {
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

    /// Unloads a plugin: new calls go elsewhere at once, those in flight finish within the grace,
    /// then it ends. Returns when nothing of it is left. Refused while others depend on it.
    pub async fn unload(&self, name: &str) -> Result<(), UnloadError> {
        let entry = {
            let plugins = self.inner.plugins.lock();
            let entry = plugins.get(name).ok_or_else(|| UnknownPlugin(name.into()))?;
            let by = needing(&plugins, name);
            if entry.is_alive() && !by.is_empty() {
                return Err(UnloadError::Needed { name: name.into(), by });
            }
            entry.life.end();
            entry.clone()
        };
        for instance in &entry.instances {
            instance.stop.cancel();
        }
        // Out of the store before it has ended: a node that dies now must not load it again.
        let forgotten = loaded::forget(&self.inner.store, name).await;
        entry.end().await;
        let mut plugins = self.inner.plugins.lock();
        if plugins.get(name).is_some_and(|now| now.life.is(&entry.life)) {
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
        self.entry(name).map(|entry| entry.status())
    }

    /// A plugin's log; that of all its instances.
    pub fn logs(&self, name: &str) -> Result<Logs, UnknownPlugin> {
        self.entry(name).map(|entry| entry.logs)
    }

    /// Every step of every instance from now on. A watcher that is too far behind misses some and
    /// is told how many; the supervisors never wait for it.
    pub fn transitions(&self) -> broadcast::Receiver<Transition> {
        self.inner.transitions.subscribe()
    }

    /// Calls to plugins that are ready.
    pub fn channels(&self) -> Arc<dyn Reach<InstanceId>> {
        Arc::clone(&self.inner.channels) as Arc<dyn Reach<InstanceId>>
    }

    /// Drains and ends every plugin, those first that depend on others, and returns when nothing
    /// of them is left. They stay loaded in the store. The receiver of events must be read
    /// meanwhile, or dropped.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.draining.store(true, Ordering::SeqCst);
        let entries: Vec<Entry> = inner.plugins.lock().values().cloned().collect();
        let (programs, entries): (Vec<Arc<Program>>, Vec<Entry>) = entries
            .into_iter()
            .filter_map(|entry| entry.program.clone().map(|program| (program, entry)))
            .unzip();
        for level in order::plan(&nodes(&programs)).levels.iter().rev() {
            futures::future::join_all(level.iter().map(|place| entries[*place].end())).await;
        }
        // Whatever is in no level, and the groups.
        inner.closing.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        let warden = Arc::clone(&inner.warden);
        // Joined, so that nothing is left when this returns. It does not panic.
        let _ = tokio::task::spawn_blocking(move || warden.groups.close()).await;
    }

    fn entry(&self, name: &str) -> Result<Entry, UnknownPlugin> {
        let entry = self.inner.plugins.lock().get(name).cloned();
        entry.ok_or_else(|| UnknownPlugin(name.into()))
    }
}

impl Inner {
    fn is_closing(&self) -> bool {
        self.draining.load(Ordering::SeqCst) || self.closing.is_cancelled()
    }
}

/// Control groups, opened off the runtime's threads; what an earlier host left in them ends.
async fn warden(config: HostConfig) -> Result<(HostConfig, Warden), HostError> {
    let opened = tokio::task::spawn_blocking(move || {
        let warden = Warden::open(&config);
        (config, warden)
    });
    let (config, warden) =
        opened.await.map_err(|error| HostError::Cgroups(io::Error::other(error)))?;
    Ok((config, warden.map_err(HostError::Cgroups)?))
}

/// Those that run and depend on `name`.
fn needing(plugins: &BTreeMap<String, Entry>, name: &str) -> Vec<String> {
    let needs = |(other, entry): &(&String, &Entry)| {
        let program = entry.program.as_ref().filter(|_| entry.is_alive() && *other != name);
        program.is_some_and(|program| {
            program.manifest.dependencies.iter().any(|need| need.name.as_str() == name)
        })
    };
    plugins.iter().filter(needs).map(|(other, _)| other.clone()).collect()
}

/// Has the kernel make room for as many descriptors as a host may need. It does so by and by
/// otherwise, and each time halts whoever opens one until every processor has passed a point of
/// rest: tens of milliseconds, for all calls of a thread.
fn widen_descriptor_table() {
    use rustix::process::{Resource, getrlimit};
    const DESCRIPTORS: u64 = 1 << 15;
    let most = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let Some(highest) = i32::try_from(most).ok().and_then(|most| most.checked_sub(1)) else {
        return;
    };
    // Where it cannot be done, the table grows by and by.
    if let Ok(null) = fs::File::open("/dev/null") {
        let _ = rustix::io::fcntl_dupfd_cloexec(&null, highest);
    }
}
