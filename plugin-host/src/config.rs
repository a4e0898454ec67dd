//! What the node tells its plugin host. Plain data; nothing here acts.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use protocol::manifest::{Defaults, Isolation, Resources, Restart};

use crate::{group::Strategy, part::Parts, permissions::Policies, status::LoadRequest};

/// How a host runs its plugins.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Sockets of plugins live below it, in `plugins/<name>/`. Created with mode 0700.
    pub run_dir: PathBuf,
    /// The node's own data. Never visible to a plugin.
    pub data_dir: PathBuf,
    /// Further paths that no plugin may see: keys, credentials.
    pub hidden_paths: Vec<PathBuf>,
    /// Names this node in log records.
    pub node_id: String,
    /// The command that behaves as the launcher: an executable and its first arguments.
    /// [`HostConfig::new`] sets this executable itself with `__launch`, which requires its `main`
    /// to call [`launcher::run_if_invoked`] first.
    pub launcher: Vec<OsString>,
    /// Whether plugins run in namespaces of their own.
    pub namespaces: NamespacePolicy,
    /// Whether Landlock confines what plugins do with files.
    pub landlock: LayerPolicy,
    /// Whether plugins' system calls are filtered.
    pub seccomp: LayerPolicy,
    /// The weakest isolation level that a plugin from outside may have. `wasm` and `process` are
    /// both made for code that nobody trusts.
    pub isolation_min: Isolation,
    /// What plugins may have of what they ask for.
    pub permissions: Policies,
    /// Whether limits may, or must, be held by control groups.
    pub cgroups: CgroupPolicy,
    /// Enforce `resources.memory`.
    pub memory_limits: bool,
    /// Instances of plugins at once. A bound, so that a script in a loop cannot fill the machine.
    pub plugins_max: usize,
    /// Jails that are built at once. More only wait for each other's namespaces in the kernel.
    pub starts_max: usize,
    /// When and how plugins are started again whose manifests do not say.
    pub restart: Restart,
    /// Groups by name. A manifest may name one that is not here: that has all defaults.
    pub groups: BTreeMap<String, GroupConfig>,
    /// What the operator has for each plugin in its own configuration, by name; handed to it
    /// through its `Lifecycle` contract, over what its manifest says.
    pub parts: Parts,
    /// The node's own services. Started with what was loaded before, and never remembered.
    pub built_in: Vec<BuiltIn>,
    /// How long a start may take where the manifest does not say.
    pub start_timeout: Duration,
    /// How long a plugin may take to end after SIGTERM where the manifest does not say.
    pub stop_grace: Duration,
    /// How health is probed where the manifest does not say.
    pub health: HealthCheck,
    /// How often process statistics are sampled.
    pub stats_interval: Duration,
    /// Log records kept per plugin; the oldest are dropped and counted.
    pub log_records_kept: usize,
}

/// Enough for a machine full of small plugins; seven descriptors each fit into the hard limit of
/// 20,000 that small machines have.
const PLUGINS_MAX: usize = 2_048;

/// A service of the node itself.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// Its name; no plugin that was loaded before can have it.
    pub name: String,
    /// How it is started; `None` where the operator switched it off. Then it is shown as stopped.
    pub request: Option<LoadRequest>,
}

/// A group of plugins: supervised and limited as one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupConfig {
    /// What the end of one means for the others.
    pub strategy: Strategy,
    /// Plugins that belong to it whatever their manifests say, in start order.
    pub members: Vec<String>,
    /// How often its members may be started again, all together; `when` is `Always`, for whether
    /// an end counts is each member's own policy.
    pub restart: Restart,
    /// What all of them may use together.
    pub resources: Resources,
}

impl HostConfig {
    /// What holds where a manifest is silent.
    pub(crate) fn defaults(&self) -> Defaults {
        Defaults { start_timeout: self.start_timeout, restart: self.restart.clone() }
    }

    /// The defaults: every layer required, no permissions but calls, health as in paper 004.
    pub fn new(run_dir: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        Self {
            run_dir: run_dir.into(),
            data_dir: data_dir.into(),
            hidden_paths: Vec::new(),
            node_id: String::new(),
            launcher: vec![this.into_os_string(), launcher::LAUNCH_ARGUMENT.into()],
            namespaces: NamespacePolicy::Required,
            landlock: LayerPolicy::Required,
            seccomp: LayerPolicy::Required,
            isolation_min: Isolation::Wasm,
            permissions: Policies::default(),
            cgroups: CgroupPolicy::default(),
            memory_limits: true,
            plugins_max: PLUGINS_MAX,
            starts_max: std::thread::available_parallelism().map_or(2, usize::from) * 2,
            restart: Restart::default(),
            groups: BTreeMap::new(),
            parts: Parts::new(),
            built_in: Vec::new(),
            start_timeout: Duration::from_secs(30),
            stop_grace: Duration::from_secs(10),
            health: HealthCheck::default(),
            stats_interval: Duration::from_secs(10),
            log_records_kept: 1_000,
        }
    }
}

/// Whether plugins run in namespaces of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespacePolicy {
    /// A plugin whose namespaces cannot be made is refused.
    #[default]
    Required,
    /// None: plugins run as the node's user with the node's view of files, processes and network.
    /// Every status says that isolation is reduced. For machines that forbid namespaces, such as
    /// unprivileged containers.
    Off,
}

/// Whether a further layer of the jail is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerPolicy {
    /// A plugin for which it cannot be had is refused.
    #[default]
    Required,
    /// It is left out, and missing among the layers that a plugin's status names.
    Off,
}

/// Whether limits are held by control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupPolicy {
    /// Where the kernel lets this host use them; other means, or none, elsewhere, and every status
    /// says which.
    #[default]
    Auto,
    /// A host that cannot use them does not start.
    Required,
    /// Never.
    Off,
}

/// How health is probed: paper 004's `health_checks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Time between probes. The end of the process is noticed at once, without a probe.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// Failed probes in a row after which the plugin is unhealthy and handled by its policy.
    pub threshold: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), threshold: 3 }
    }
}
