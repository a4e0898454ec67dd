//! `plugin limit`: every limit a plugin can have, by name.

use clap::{ArgGroup, Args};

use crate::units::parse_size;

/// `plugin limit`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("limits").required(true).multiple(true).args([
    "memory", "cpu", "cpu_cores", "cpu_seconds", "processes", "files", "file_size", "disk",
    "disk_bandwidth", "network_bandwidth",
]))]
#[command(after_help = "Examples:
  blackhole plugin limit counter --memory 256MB --cpu 50
  blackhole plugin limit counter --processes 64

What is not named stays as it is. `blackhole plugin info` shows every limit and by what means it
holds on this machine.")]
pub struct Limit {
    /// What the plugin is called, as `blackhole plugin list` shows it
    pub name: String,
    /// Memory of all its processes together
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// CPU time, in percent of one core
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=102_400))]
    pub cpu: Option<u32>,
    /// Cores it may run on, from its next start on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub cpu_cores: Option<u32>,
    /// CPU time that each of its processes may use in all, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub cpu_seconds: Option<u64>,
    /// Processes and threads together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub processes: Option<u64>,
    /// Open files of each of its processes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub files: Option<u64>,
    /// The largest file it may write
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub file_size: Option<u64>,
    /// What the directories that are its own may hold
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
    /// From and to disk, each, per second
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub disk_bandwidth: Option<u64>,
    /// Through the network, both ways together, per second
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub network_bandwidth: Option<u64>,
}
