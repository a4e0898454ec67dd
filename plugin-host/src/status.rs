//! What is asked of the host and what it answers: requests, status, events, errors.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use protocol::{
    id::InstanceId,
    manifest::{Health, Labels, Manifest, Resources, RestartWhen},
    service::ServiceName,
};

use crate::{
    contract::{Described, Metric},
    group::Strategy,
    level::Code,
    lifecycle::State,
    limits::Mechanism,
    logs::LogRecord,
    permissions::{Access, Counts, Granted},
};

/// Serves the mesh to one plugin on a socket that is the plugin's identity.
pub trait MeshDoor: Send + Sync {
    /// Begins to serve calls that arrive on `listener`, made by `plugin`, as far as
    /// [`Access::may_call`] lets them pass. Dropping the guard ends it. Called within a tokio
    /// runtime; the listener is non-blocking.
    fn open(
        &self,
        plugin: &str,
        access: Arc<Access>,
        listener: std::os::unix::net::UnixListener,
    ) -> Box<dyn Send>;
}

/// What is to be loaded.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// Where it comes from.
    pub source: Source,
    /// Instead of the name that the manifest or the executable gives.
    pub name: Option<String>,
    /// Answer when it is ready or has failed, not when it was started.
    pub wait: bool,
    /// How many processes of it share its calls, instead of what its manifest says. Remembered.
    pub instances: Option<u32>,
    /// What the operator's configuration says instead of the manifest.
    pub overrides: Overrides,
    /// The node's own code to run instead of the source's program, at level `none` or `thread`.
    pub code: Option<Code>,
}

/// What an operator says instead of a manifest; `None` leaves it to the manifest. Not remembered:
/// it is said again by whoever loads the plugin again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// When it is started again.
    pub restart: Option<RestartWhen>,
    /// What it may use.
    pub resources: Resources,
    /// How its health is probed; only interval, timeout and threshold count.
    pub health: Health,
    /// Its own part of the node's configuration, handed to it through its `Lifecycle` contract.
    pub part: Option<serde_json::Value>,
    /// It gets a directory that it may write to and that outlives it, named in `BH_PLUGIN_STATE`.
    pub state: bool,
}

impl Overrides {
    pub(crate) fn apply(&self, manifest: &mut Manifest) {
        manifest.restart.when = self.restart.or(manifest.restart.when);
        manifest.resources = self.resources.over(&manifest.resources);
        let (asked, health) = (&self.health, &mut manifest.health);
        health.interval = asked.interval.or(health.interval);
        health.timeout = asked.timeout.or(health.timeout);
        health.threshold = asked.threshold.or(health.threshold);
    }
}

impl LoadRequest {
    /// A request that leaves everything to the plugin itself and does not wait.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            name: None,
            wait: false,
            instances: None,
            overrides: Overrides::default(),
            code: None,
        }
    }
}

/// Where a plugin comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// A directory with `plugin.yaml`, a manifest file, or a bare executable.
    Path(PathBuf),
    /// A command line.
    Exec(Command),
}

/// A command line that serves gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Command {
    /// Program and arguments. A program without a slash is searched in the node's `PATH`.
    pub argv: Vec<String>,
    /// `unix` (also when empty), `fd`, `tcp:PORT` or `tls:PORT`.
    pub listen: String,
    /// What it serves, where it has no reflection.
    pub services: Vec<String>,
    /// Absolute; `/tmp` of the jail when `None`.
    pub working_dir: Option<PathBuf>,
    /// Absolute; what it may read beside its own files and the system's.
    pub read_paths: Vec<PathBuf>,
    /// What it asks for, as a manifest writes it; met with the operator's policy like any other.
    #[serde(default)]
    pub permissions: Vec<String>,
}

/// All that is known of one plugin at a moment. Of several instances: sums, and the state of the
/// one that does best.
#[derive(Debug, Clone)]
pub struct PluginStatus {
    /// Its name on this node.
    pub name: String,
    /// As its manifest says; `0.0.0` for a command line.
    pub version: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it is stopped, failed or waiting; empty while all is well.
    pub reason: String,
    /// The plugin's own process, `None` while there is none.
    pub pid: Option<u32>,
    /// The run that answers calls now.
    pub instance: Option<InstanceId>,
    /// What it serves, infrastructure left out.
    pub services: Vec<ServiceName>,
    /// Times it was started again.
    pub restarts: u32,
    /// Times it ended without being asked to, or was ended for bad health.
    pub crashes: u32,
    /// When it was last started again.
    pub last_restart: Option<SystemTime>,
    /// Since it became ready; `None` while it is not.
    pub uptime: Option<Duration>,
    /// Resident memory of all processes of the plugin.
    pub memory_bytes: u64,
    /// What it may use, `None` without limit.
    pub memory_limit_bytes: Option<u64>,
    /// Of one core, since the sample before.
    pub cpu_percent: f64,
    /// CPU time of all its runs in seconds, as far as it was sampled.
    pub cpu_seconds: f64,
    /// Threads of its processes.
    pub threads: u32,
    /// Open descriptors of its processes.
    pub open_files: u32,
    /// Bytes on disk in the directories that are its own.
    pub disk_bytes: u64,
    /// What it may use, and by what means that holds.
    pub mechanisms: Vec<Mechanism>,
    /// Times that a limit stopped it or refused it something: memory, processes, disk, CPU time.
    pub over_limit: u64,
    /// Isolation in force, as its launcher reported it.
    pub layers: Vec<String>,
    /// `process`, or `process (reduced)` where the operator turned namespaces off.
    pub isolation: String,
    /// The path or command line it came from.
    pub source: String,
    /// The last probe succeeded.
    pub healthy: bool,
    /// When it was last probed.
    pub last_health_check: Option<SystemTime>,
    /// Log lines dropped by the ring or the rate limit.
    pub logs_lost: u64,
    /// What is not as its manifest wishes, and why: permissions not granted, no health service.
    pub warnings: Vec<String>,
    /// What it says of itself, where it has the `Lifecycle` contract.
    pub described: Option<Described>,
    /// Its own figures, as it last told them.
    pub metrics: Vec<Metric>,
    /// How many of them, then, could not be shown: names that are none, too many, too large.
    pub figures_refused: u32,
    /// What its present run proves itself with, where it listens with TLS.
    pub certificate: Option<Certificate>,
    /// The permissions it asks for, in normal form.
    pub asked: Vec<String>,
    /// What it has of them, and what not.
    pub granted: Granted,
    /// What all its instances were refused, and what the egress proxy carried for them.
    pub counts: Counts,
    /// The group it is supervised and limited with, and how that is supervised.
    pub group: Option<(String, Strategy)>,
    /// Which instance this is, from 1.
    pub number: u32,
    /// Each instance by itself; empty within an instance.
    pub instances: Vec<PluginStatus>,
}

/// The certificate that the host issued for one run of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of its DER form, as `openssl x509 -fingerprint -sha256` writes it.
    pub fingerprint: String,
    /// When it runs out.
    pub expires: SystemTime,
}

/// One instance of a plugin went from one state to another.
#[derive(Debug, Clone)]
pub struct Transition {
    /// The plugin.
    pub plugin: String,
    /// Which instance, from 1.
    pub number: u32,
    /// Where it was.
    pub from: State,
    /// Where it is.
    pub to: State,
    /// Why; empty where it goes as it should.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}

/// What happens in the host, for the node's one loop.
#[derive(Debug, Clone)]
pub enum HostEvent {
    /// A plugin answers calls from now on.
    Ready(ReadyPlugin),
    /// A run takes no new calls from now on. Sent before it is drained.
    Gone {
        /// The plugin's name.
        name: String,
        /// The run that ended.
        instance: InstanceId,
        /// Why, in one sentence.
        reason: String,
    },
}

/// A run of a plugin that answers calls.
#[derive(Debug, Clone)]
pub struct ReadyPlugin {
    /// The plugin's name on this node.
    pub name: String,
    /// As its manifest says; `0.0.0` for a command line.
    pub version: String,
    /// This run.
    pub instance: InstanceId,
    /// What it serves, with the hash of each service's descriptors; zeros where there are none.
    pub services: Vec<(ServiceName, [u8; 32])>,
    /// A `google.protobuf.FileDescriptorSet` of all its services; empty where there are none.
    pub descriptors: Bytes,
    /// As in [`PluginStatus::isolation`].
    pub isolation: String,
    /// As its manifest says.
    pub labels: Labels,
}

/// The host could not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Its directory cannot be used.
    #[error("cannot use {path} for plugin sockets: {cause}")]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Socket paths would not fit into a socket address.
    #[error(
        "the run directory {path} is too long: with /plugins/<name>/plugin.sock a socket path may \
         have {max} bytes; choose a shorter one with --run-dir"
    )]
    RunDirTooLong {
        /// The directory.
        path: PathBuf,
        /// The most a path may have.
        max: usize,
    },
    /// The loaded set cannot be read.
    #[error("cannot read which plugins were loaded: {0}")]
    Store(#[from] protocol::ports::StoreError),
    /// Control groups are required and cannot be had.
    #[error(
        "plugins.cgroups is `required`, and control groups cannot be used here: {0}; delegate a \
         cgroup to the node (systemd: `Delegate=yes`), run it as root, or say `auto`"
    )]
    Cgroups(std::io::Error),
    /// The thread that starts processes cannot be started.
    #[error("cannot start the spawner thread: {0}")]
    Spawner(std::io::Error),
}

/// A plugin was not loaded. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file or directory.
    #[error("{path} cannot be loaded: {cause}")]
    Unreadable {
        /// What was asked for.
        path: PathBuf,
        /// What is wrong with it, and what is expected.
        cause: String,
    },
    /// The manifest is refused, with every mistake in it.
    #[error("{path} is refused: {cause}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Every mistake, one per line.
        cause: String,
    },
    /// The request cannot be met as it is.
    #[error("{0}")]
    Invalid(String),
    /// A plugin of that name is there already.
    #[error("plugin {0} is loaded already: unload it first, or choose another name")]
    AlreadyLoaded(String),
    /// There are as many as there may be.
    #[error("there are {0} plugins already, and no more are allowed")]
    TooMany(usize),
    /// It was started and did not become ready.
    #[error("plugin {name} did not start: {reason}{}", tail_text(.tail))]
    NotStarted {
        /// The plugin.
        name: String,
        /// The layer that refused, the exit status, or what was waited for in vain.
        reason: String,
        /// Its last log lines, oldest first.
        tail: Vec<LogRecord>,
    },
    /// The loaded set could not be written.
    #[error("cannot record that the plugin is loaded: {0}")]
    Store(#[from] protocol::ports::StoreError),
    /// The host is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

fn tail_text(tail: &[LogRecord]) -> String {
    if tail.is_empty() {
        return "; it logged nothing".into();
    }
    let mut text = String::from("; its last log lines:");
    for record in tail {
        text.push_str("\n  ");
        text.push_str(&record.message);
    }
    text
}

/// A plugin was not restarted, reloaded or scaled. What ran before runs on, unless the error says
/// otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] UnknownPlugin),
    /// What is asked for cannot be had.
    #[error(transparent)]
    Refused(#[from] LoadError),
    /// It did not become ready again.
    #[error("plugin {name} did not become ready again: {reason}")]
    NotReady {
        /// The plugin, or one instance of it.
        name: String,
        /// Why.
        reason: String,
    },
}

/// A plugin was not unloaded.
#[derive(Debug, thiserror::Error)]
pub enum UnloadError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] UnknownPlugin),
    /// Others that run depend on it.
    #[error(
        "{name} is needed by {}: unload {} first", .by.join(", "),
        if .by.len() == 1 { "that" } else { "those" }
    )]
    Needed {
        /// The plugin.
        name: String,
        /// Those that depend on it.
        by: Vec<String>,
    },
    /// The loaded set could not be written; the plugin has ended all the same.
    #[error("the plugin has ended, but would be loaded again at the next start: {0}")]
    Store(#[from] protocol::ports::StoreError),
    /// The host is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// There is no plugin of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no plugin {0} on this node: `blackhole plugin list` shows those there are")]
pub struct UnknownPlugin(pub String);
