//! A node's health as `GET /health` tells it: the documented strings, and beside each the number
//! it was made from.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};

/// The health of a node and its plugins.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthReport {
    /// The node as a whole.
    pub status: NodeHealth,
    /// The product's version.
    pub version: String,
    /// Time since the node started.
    pub uptime: Duration,
    /// The node's own process.
    pub orchestrator: ProcessUse,
    /// Its plugins, by name.
    pub services: BTreeMap<String, PluginHealth>,
}

/// The health of the node as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeHealth {
    /// It serves.
    Healthy,
    /// It does not, because of this.
    Unhealthy(String),
}

/// What a process uses.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessUse {
    /// Its process id.
    pub pid: u32,
    /// Resident memory.
    pub memory_bytes: u64,
    /// Share of one core since the last sample, in percent.
    pub cpu_percent: f64,
}

/// The health of one plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginHealth {
    /// How it is.
    pub condition: PluginCondition,
    /// Why it is stopped, failed or unhealthy.
    pub reason: Option<String>,
    /// Its version.
    pub version: String,
    /// Time since its process started; `None` while it does not run.
    pub uptime: Option<Duration>,
    /// Its process; `None` while it does not run.
    pub process: Option<ProcessUse>,
    /// How much memory it may use; `None` for as much as there is.
    pub memory_limit_bytes: Option<u64>,
    /// How often it was started again.
    pub restarts: u32,
    /// When it was last asked, in RFC 3339; `None` before the first time.
    pub last_health_check: Option<String>,
    /// The gRPC services it offers.
    pub offers: Vec<String>,
}

/// How a plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginCondition {
    /// It serves.
    Healthy,
    /// It runs and says that it does not serve, or says nothing.
    Unhealthy,
    /// It is not ready yet.
    Starting,
    /// It finishes what it has.
    Draining,
    /// It does not run, as intended.
    Stopped,
    /// It does not run, and should.
    Failed,
    /// It ended too often and is not started any more.
    CrashLoop,
}

impl PluginCondition {
    fn text(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::CrashLoop => "crash-loop",
        }
    }
}

impl Serialize for HealthReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.status {
            NodeHealth::Healthy => map.serialize_entry("status", "healthy")?,
            NodeHealth::Unhealthy(reason) => {
                map.serialize_entry("status", "unhealthy")?;
                map.serialize_entry("reason", reason)?;
            }
        }
        map.serialize_entry("version", &self.version)?;
        uptime_entries(&mut map, self.uptime)?;
        map.serialize_entry("orchestrator", &self.orchestrator)?;
        map.serialize_entry("services", &self.services)?;
        map.end()
    }
}

impl Serialize for ProcessUse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        process_entries(&mut map, self, None)?;
        map.end()
    }
}

impl Serialize for PluginHealth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        plugin_entries(&mut map, self)?;
        map.end()
    }
}

/// One plugin on its own page: the same, with its name.
pub(crate) struct Page<'a> {
    pub(crate) name: &'a str,
    pub(crate) plugin: &'a PluginHealth,
}

impl Serialize for Page<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("service", self.name)?;
        plugin_entries(&mut map, self.plugin)?;
        map.end()
    }
}

fn plugin_entries<M: SerializeMap>(map: &mut M, plugin: &PluginHealth) -> Result<(), M::Error> {
    map.serialize_entry("status", plugin.condition.text())?;
    if let Some(reason) = &plugin.reason {
        map.serialize_entry("reason", reason)?;
    }
    map.serialize_entry("version", &plugin.version)?;
    if let Some(uptime) = plugin.uptime {
        uptime_entries(map, uptime)?;
    }
    map.serialize_entry("restarts", &plugin.restarts)?;
    if let Some(process) = &plugin.process {
        process_entries(map, process, plugin.memory_limit_bytes)?;
    }
    if let Some(checked) = &plugin.last_health_check {
        map.serialize_entry("last_health_check", checked)?;
    }
    map.serialize_entry("offers", &plugin.offers)
}

fn uptime_entries<M: SerializeMap>(map: &mut M, uptime: Duration) -> Result<(), M::Error> {
    map.serialize_entry("uptime", &duration(uptime))?;
    map.serialize_entry("uptime_seconds", &uptime.as_secs())
}

fn process_entries<M: SerializeMap>(
    map: &mut M,
    process: &ProcessUse,
    limit: Option<u64>,
) -> Result<(), M::Error> {
    map.serialize_entry("pid", &process.pid)?;
    let used = size(process.memory_bytes);
    let memory = limit.map_or_else(|| used.clone(), |limit| format!("{used}/{}", size(limit)));
    map.serialize_entry("memory", &memory)?;
    map.serialize_entry("memory_bytes", &process.memory_bytes)?;
    if let Some(limit) = limit {
        map.serialize_entry("memory_limit_bytes", &limit)?;
    }
    map.serialize_entry("cpu", &format!("{:.0}%", process.cpu_percent))?;
    map.serialize_entry("cpu_percent", &process.cpu_percent)
}

/// `245MB`, `1.2GB`, with 1024 bytes to the KB as in the configuration's limits.
fn size(bytes: u64) -> String {
    const KB: u64 = 1024;
    const MB: u64 = 1024 * KB;
    const GB: u64 = 1024 * MB;
    match bytes {
        GB.. => {
            let tenths = (bytes as f64 / GB as f64 * 10.0).round() as u64;
            if tenths.is_multiple_of(10) {
                format!("{}GB", tenths / 10)
            } else {
                format!("{}.{}GB", tenths / 10, tenths % 10)
            }
        }
        MB.. => format!("{}MB", (bytes + MB / 2) / MB),
        _ => format!("{}KB", bytes.div_ceil(KB)),
    }
}

/// `24h35m`, `35m12s`, `12s`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    match seconds {
        3_600.. => format!("{hours}h{minutes}m"),
        60.. => format!("{minutes}m{}s", seconds % 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_documented() {
        assert_eq!(size(245 << 20), "245MB");
        assert_eq!(size(2 << 30), "2GB");
        assert_eq!(size((2 << 30) * 6 / 10), "1.2GB");
        assert_eq!(size(100), "1KB");
        assert_eq!(duration(Duration::from_mins(24 * 60 + 35)), "24h35m");
        assert_eq!(duration(Duration::from_secs(61)), "1m1s");
        assert_eq!(duration(Duration::ZERO), "0s");
    }
}
