//! What a plugin says of itself: `plugin.yaml`, parsed purely and strictly.
//!
//! Owns the manifest's types, the grammar of every field and the rules between fields. Refuses
//! unknown keys, wrong types and values out of range, and says for every mistake at once which
//! field, which line and why. Knows nothing of this machine: whether an entrypoint exists or an
//! isolation level can be had is the host's to say.

mod check;
mod listen;
pub mod permission;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use self::{
    listen::{InvalidListen, Listen},
    permission::Permission,
};
pub use crate::document::Mistake;

use crate::{limits::MANIFEST_BYTES_MAX, service::ServiceName};

/// Labels of a plugin or node: short words to words.
pub type Labels = BTreeMap<String, String>;

/// A plugin's manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The plugin's name.
    pub name: PluginName,
    /// Its version, by semver.
    pub version: semver::Version,
    /// One sentence for people; empty where not given.
    pub description: String,
    /// Who made it; empty where not given.
    pub author: String,
    /// Under what terms, as SPDX writes them; empty where not given.
    pub license: String,
    /// What it can do, in words that searches match.
    pub capabilities: Vec<String>,
    /// What it wants to be allowed.
    pub permissions: Vec<Permission>,
    /// What it may use.
    pub resources: Resources,
    /// How it is kept apart.
    pub isolation: Isolation,
    /// What must run before it.
    pub dependencies: Vec<Dependency>,
    /// The program and its first arguments, relative to the manifest's directory; `None` means
    /// the file beside the manifest that has the plugin's name.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint's own.
    pub args: Vec<String>,
    /// Environment, beside what the host sets.
    pub env: BTreeMap<String, String>,
    /// Its own configuration, where the operator says nothing else.
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
    /// What it serves.
    pub interface: Interface,
    /// Where it runs, as `linux/amd64`; empty means anywhere.
    pub platforms: Vec<String>,
    /// What kind of plugin it is.
    pub category: Option<Category>,
    /// Whether it keeps state that a successor must take over.
    pub state: Statefulness,
    /// Where it answers.
    pub listen: Listen,
    /// How its health is asked.
    pub health: Health,
    /// How long it may take to become ready.
    pub start_timeout: Option<Duration>,
    /// How long it may take to end after SIGTERM.
    pub stop_grace: Option<Duration>,
    /// What happens when it ends.
    pub restart: RestartWish,
    /// Processes of it that share its calls; `None` means one.
    pub instances: Option<u32>,
    /// The group it is supervised and limited with.
    pub group: Option<PluginName>,
    /// Carried in its advert.
    pub labels: Labels,
}

impl Manifest {
    /// A manifest with every optional key left out.
    pub fn new(name: PluginName, version: semver::Version) -> Self {
        Self {
            name,
            version,
            description: String::new(),
            author: String::new(),
            license: String::new(),
            capabilities: Vec::new(),
            permissions: Vec::new(),
            resources: Resources::default(),
            isolation: Isolation::default(),
            dependencies: Vec::new(),
            entrypoint: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            config: None,
            interface: Interface::default(),
            platforms: Vec::new(),
            category: None,
            state: Statefulness::default(),
            listen: Listen::default(),
            health: Health::default(),
            start_timeout: None,
            stop_grace: None,
            restart: RestartWish::default(),
            instances: None,
            group: None,
            labels: Labels::new(),
        }
    }

    /// Reads a manifest. `defaults` are the host's, for the rule between restarts and start
    /// timeouts where the manifest does not say.
    pub fn parse(bytes: &[u8], defaults: &Defaults) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            let reason =
                format!("has {} bytes; a manifest may have {MANIFEST_BYTES_MAX}", bytes.len());
            return Err(ManifestError::whole(reason));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(ManifestError::whole("is not text in UTF-8"));
        };
        check::manifest(text, defaults)
    }
}

/// What holds where a manifest is silent and the rules between its fields need an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// How long a start may take.
    pub start_timeout: Duration,
    /// When and how it is started again.
    pub restart: Restart,
}

impl Default for Defaults {
    /// Thirty seconds, and paper 004's restarts.
    fn default() -> Self {
        Self { start_timeout: Duration::from_secs(30), restart: Restart::default() }
    }
}

impl Defaults {
    /// Whether a plugin that cannot start is given up in the end. If not, the longest that giving
    /// up may take, which must be below the window.
    pub fn give_up(&self) -> Result<(), Duration> {
        let needed = self.restart.give_up_after(self.start_timeout);
        let ends = self.restart.when == RestartWhen::Never || needed < self.restart.window;
        if ends { Ok(()) } else { Err(needed) }
    }
}

/// A manifest that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// Every mistake, in the order of the file; never empty.
    pub mistakes: Vec<Mistake>,
}

impl ManifestError {
    fn whole(reason: impl Into<String>) -> Self {
        Self { mistakes: vec![Mistake { line: 0, field: String::new(), reason: reason.into() }] }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.mistakes.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}

/// A plugin's name: 1 to [`PluginName::BYTES_MAX`] of `a-z 0-9 - _`, beginning with a letter or
/// digit. It names directories and sockets, hence the narrow alphabet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(String);

impl PluginName {
    /// Leaves room for a run directory within the 107 bytes of a socket path.
    pub const BYTES_MAX: usize = 40;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for PluginName {
    type Err = InvalidPluginName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = (1..=Self::BYTES_MAX).contains(&text.len());
        if fits
            && text.bytes().all(|b| plain(b) || b == b'-' || b == b'_')
            && text.bytes().next().is_some_and(plain)
        {
            Ok(Self(text.into()))
        } else {
            Err(InvalidPluginName(text.chars().take(60).collect()))
        }
    }
}

/// The text is not a plugin name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a plugin name: 1 to 40 characters from a-z, 0-9, - and _, beginning with a letter or digit"
)]
pub struct InvalidPluginName(String);

/// What a plugin may use; `None` leaves the host's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Percent of one core.
    pub cpu_percent: Option<u32>,
    /// Percent of one core that it gets, at least, where cores are scarce.
    pub cpu_guaranteed: Option<u32>,
    /// Cores it may run on.
    pub cpu_cores: Option<u32>,
    /// Seconds of CPU time that each of its processes may use in all.
    pub cpu_seconds: Option<u64>,
    /// Bytes of memory, all its processes together.
    pub memory_bytes: Option<u64>,
    /// Open descriptors per process.
    pub files_max: Option<u64>,
    /// Bytes of the largest file it may write.
    pub file_size_bytes: Option<u64>,
    /// Processes and threads together.
    pub processes_max: Option<u64>,
    /// Bytes on disk in the directories that are its own.
    pub disk_bytes: Option<u64>,
    /// Bytes per second from and to disk, each.
    pub disk_bandwidth: Option<u64>,
    /// Bytes per second through the network, both ways together.
    pub network_bandwidth: Option<u64>,
}

impl Resources {
    /// These, with `other` where they say nothing.
    pub fn over(&self, other: &Self) -> Self {
        Self {
            cpu_percent: self.cpu_percent.or(other.cpu_percent),
            cpu_guaranteed: self.cpu_guaranteed.or(other.cpu_guaranteed),
            cpu_cores: self.cpu_cores.or(other.cpu_cores),
            cpu_seconds: self.cpu_seconds.or(other.cpu_seconds),
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
            files_max: self.files_max.or(other.files_max),
            file_size_bytes: self.file_size_bytes.or(other.file_size_bytes),
            processes_max: self.processes_max.or(other.processes_max),
            disk_bytes: self.disk_bytes.or(other.disk_bytes),
            disk_bandwidth: self.disk_bandwidth.or(other.disk_bandwidth),
            network_bandwidth: self.network_bandwidth.or(other.network_bandwidth),
        }
    }
}

/// How a plugin is kept apart from the node and its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Within the node.
    None,
    /// On a thread of the node.
    Thread,
    /// As a WebAssembly component.
    Wasm,
    /// As a jailed process.
    #[default]
    Process,
    /// In a container.
    Container,
    /// In a virtual machine.
    Vm,
}

impl Isolation {
    const NAMES: [(&'static str, Self); 6] = [
        ("none", Self::None),
        ("thread", Self::Thread),
        ("wasm", Self::Wasm),
        ("process", Self::Process),
        ("container", Self::Container),
        ("vm", Self::Vm),
    ];
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::NAMES.iter().find(|(_, level)| level == self);
        f.write_str(found.map_or("process", |(name, _)| name))
    }
}

/// A plugin that must run before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Its name.
    pub name: PluginName,
    /// The versions that will do.
    pub version: semver::VersionReq,
}

/// What a plugin serves, where it cannot or need not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// The services; empty means those that reflection or the descriptors name.
    pub services: Vec<ServiceName>,
    /// A file with a `FileDescriptorSet`, relative to the manifest's directory.
    pub descriptors: Option<String>,
}

/// What kind of plugin it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Part of the framework itself.
    Core,
    /// Moves messages.
    Communication,
    /// Keeps data.
    Storage,
    /// Computes.
    Compute,
    /// Connects another system.
    Integration,
    /// A whole application.
    Application,
}

/// Whether a plugin keeps state that a successor must take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Statefulness {
    /// None worth keeping.
    #[default]
    Stateless,
    /// Exports and imports it through `blackhole.plugin.v1.Lifecycle`.
    Stateful,
}

/// How a plugin's health is asked; `None` leaves the host's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// False: never probed; the end of its process is all that is noticed.
    pub off: bool,
    /// The service name put into the health request; empty asks for the whole program.
    pub service: String,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// How long a probe may take.
    pub timeout: Option<Duration>,
    /// Failed probes in a row that make it unhealthy.
    pub threshold: Option<u32>,
}

/// What a manifest says of restarts; `None` leaves the host's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestartWish {
    /// When it is started again.
    pub when: Option<RestartWhen>,
    /// Restarts allowed within the window.
    pub max_restarts: Option<u32>,
    /// The window.
    pub window: Option<Duration>,
    /// The first delay.
    pub backoff: Option<Duration>,
}

impl RestartWish {
    /// The whole policy, with `default` where the manifest is silent.
    pub fn over(&self, default: &Restart) -> Restart {
        Restart {
            when: self.when.unwrap_or(default.when),
            max_restarts: self.max_restarts.unwrap_or(default.max_restarts),
            window: self.window.unwrap_or(default.window),
            backoff: self.backoff.unwrap_or(default.backoff),
        }
    }
}

/// What happens when a plugin ends without being asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// When it is started again.
    pub when: RestartWhen,
    /// Restarts allowed within the window; one more failure and it is given up.
    pub max_restarts: u32,
    /// The window.
    pub window: Duration,
    /// The first delay; each further one is twice the one before, up to [`Restart::DELAY_MAX`].
    pub backoff: Duration,
}

impl Default for Restart {
    /// Paper 004's: five restarts in five minutes.
    fn default() -> Self {
        Self {
            when: RestartWhen::OnFailure,
            max_restarts: 5,
            window: Duration::from_mins(5),
            backoff: Duration::from_secs(1),
        }
    }
}

impl Restart {
    /// No delay is longer.
    pub const DELAY_MAX: Duration = Duration::from_mins(1);

    /// The longest that the delay before restart number `streak` (from 0) may be.
    pub fn delay(&self, streak: u32) -> Duration {
        let factor = 1_u32.checked_shl(streak).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(factor).min(Self::DELAY_MAX)
    }

    /// The longest time from the first failure to giving up, for a plugin that never becomes
    /// ready: every delay and as many start timeouts.
    ///
    /// Must be below the window, or a plugin that cannot start is started for ever.
    pub fn give_up_after(&self, start_timeout: Duration) -> Duration {
        let delays: Duration = (0..self.max_restarts).map(|streak| self.delay(streak)).sum();
        delays.saturating_add(start_timeout.saturating_mul(self.max_restarts))
    }
}

/// When a plugin is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RestartWhen {
    /// Whenever it ends.
    Always,
    /// When it ends with a status other than 0 or by a signal, or its health fails.
    OnFailure,
    /// Never.
    Never,
}

/// What fuzzing and the replay of its corpus do with any bytes: read them as a manifest. Panics
/// only where a promise of this module is broken.
pub fn exercise(bytes: &[u8]) {
    let defaults = Defaults::default();
    match Manifest::parse(bytes, &defaults) {
        Ok(manifest) => {
            let whole = Defaults {
                start_timeout: manifest.start_timeout.unwrap_or(defaults.start_timeout),
                restart: manifest.restart.over(&defaults.restart),
            };
            assert!(whole.give_up().is_ok(), "whoever cannot start is given up in the end");
            assert!(!manifest.name.as_str().contains('/'), "a name is a file name");
        }
        Err(error) => assert!(!error.mistakes.is_empty(), "a refusal has a reason"),
    }
}

#[cfg(test)]
mod tests;
