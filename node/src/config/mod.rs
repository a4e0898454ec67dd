//! What a node is told: a file, flags, and defaults, brought together into one [`Settings`].
//!
//! Configuration is data: reading it binds, starts and creates nothing. The keys are those of the
//! node's design paper; where the paper contradicts itself, `docs/adr/0003` says how it is read.

mod defaults;
mod file;
mod merge;
mod permissions;
mod routing;
mod supervise;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use multiaddr::Multiaddr;
use plugin_host::{CgroupPolicy, GroupConfig, Parts, permissions::Policies};
use protocol::{
    id::NetworkName,
    manifest::{Health, Isolation, Resources, Restart, RestartWhen},
};

pub use self::{
    file::{BUILT_IN, ConfigFile},
    merge::{CONFIG_NAME, again, default_listen, settings},
};

/// Everything a node needs to be told, complete and consistent.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of the file that is on or off")]
pub struct Settings {
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// In logs and status; `None` means the end of the peer id.
    pub name: Option<String>,
    /// Where everything persistent lives.
    pub data_dir: PathBuf,
    /// Where sockets live.
    pub run_dir: PathBuf,
    /// The network to be part of.
    pub network: NetworkName,
    /// Where to listen for peers.
    pub listen: Vec<Multiaddr>,
    /// Whom to dial first.
    pub bootstrap: Vec<Multiaddr>,
    /// Addresses to tell others.
    pub external: Vec<Multiaddr>,
    /// Find peers on the local network.
    pub mdns: bool,
    /// The gRPC gateway; `None` means off.
    pub grpc: Option<SocketAddr>,
    /// The HTTP gateway; `None` means off.
    pub http: Option<SocketAddr>,
    /// The metrics endpoint; `None` means off.
    pub metrics: Option<SocketAddr>,
    /// Whose web pages may call at the HTTP gateway.
    pub cors_origins: gateway::Origins,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
    /// A tracing filter.
    pub log_level: String,
    /// A flag named it, and wins over the file whenever that is read again.
    pub log_level_by_flag: bool,
    /// JSON lines rather than text.
    pub json: bool,
    /// Whether plugins must have their own namespaces.
    pub namespaces: bool,
    /// Whether plugins must be confined by Landlock.
    pub landlock: bool,
    /// Whether plugins' system calls must be filtered.
    pub seccomp: bool,
    /// Whether limits of plugins may, or must, be held by control groups.
    pub cgroups: CgroupPolicy,
    /// What plugins may have of what they ask for.
    pub permissions: Policies,
    /// The weakest isolation level that plugins may have.
    pub isolation_min: Isolation,
    /// How plugins are watched.
    pub supervision: Supervision,
    /// How calls of each service are routed.
    pub routing: router::Policies,
    /// Built-in services.
    pub services: BTreeMap<String, Service>,
    /// What each plugin is handed as its own configuration.
    pub parts: Parts,
    /// Plugins that are supervised and limited together.
    pub groups: BTreeMap<String, GroupConfig>,
    /// What is accepted but not in force, or read otherwise than written.
    pub warnings: Vec<String>,
}

/// How plugins and services are watched; paper 004's `process_management`.
#[derive(Debug, Clone, PartialEq)]
pub struct Supervision {
    /// How often a probe is due.
    pub health_interval: Duration,
    /// How long a probe may take.
    pub health_timeout: Duration,
    /// Probes in a row that must fail.
    pub unhealthy_threshold: u32,
    /// How often what a plugin uses is sampled.
    pub sample_interval: Duration,
    /// Lines of log kept for each plugin.
    pub log_lines: usize,
    /// When and how plugins are started again whose manifests do not say.
    pub restart: Restart,
    /// Instances of plugins at once.
    pub plugins_max: usize,
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            health_interval: Duration::from_secs(10),
            health_timeout: Duration::from_secs(5),
            unhealthy_threshold: 3,
            sample_interval: Duration::from_secs(10),
            log_lines: 10_000,
            restart: Restart::default(),
            plugins_max: 2_048,
        }
    }
}

/// One entry of `services`. `None` leaves it to the service or the host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Service {
    /// Whether it is to run.
    pub enabled: bool,
    /// A TCP port of loopback on which it, and it alone, answers.
    pub port: Option<u16>,
    /// A Unix socket on which it, and it alone, answers.
    pub unix_socket: Option<PathBuf>,
    /// When it is started again.
    pub restart_policy: Option<RestartWhen>,
    /// How far it is kept from the node: `process`, or `thread` or `none` within it.
    pub isolation: Isolation,
    /// Processes of it.
    pub instances: Option<u32>,
    /// What each of them may use.
    pub resources: Resources,
    /// How it is probed, instead of as `process_management.health_checks` says.
    pub health: Health,
    /// The whole entry, handed to the service as it is.
    pub part: serde_json::Value,
}

/// Where a node's files are when nothing says otherwise: `$XDG_DATA_HOME/blackhole`,
/// `~/.local/share/blackhole`, or `/var/lib/blackhole` for an account without a home. The
/// `blackhole` command looks in the same place.
pub fn default_data_dir() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| "/var/lib".into())
        .join("blackhole")
}
