//! `log …`

use clap::{Args, Subcommand};

/// What is done to the node's own log.
#[derive(Debug, Subcommand)]
pub enum Log {
    /// Show the level of the node's own log, or change it while it runs
    Level(Level),
}

/// `log level`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole log level
  blackhole log level debug
  blackhole log level info,peer=trace

It holds until the node ends, or reads its configuration again (SIGHUP).")]
pub struct Level {
    /// error, warn, info, debug, trace, or a filter [default: show what is in force]
    #[arg(value_name = "LEVEL")]
    pub level: Option<String>,
}
