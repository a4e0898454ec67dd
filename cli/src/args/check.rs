//! `plugin check`: what a plugin is checked as.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueHint};
use protocol::{manifest::Permission, service::ServiceName};

use super::{Load, parse_listen};

/// `plugin check`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["path", "exec"]))]
#[command(after_help = "Examples:
  blackhole plugin check ./counter
  blackhole plugin check --exec \"python3 server.py\" --listen unix

Exit codes: 0 every rule is kept or does not apply, 1 one is broken, 2 wrong usage.")]
pub struct Check {
    /// A directory with a plugin.yaml, a manifest, or an executable
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// A command line to run instead, quoted as for a shell
    #[arg(long, value_name = "CMD…", requires = "listen")]
    pub exec: Option<String>,
    /// Where the program of --exec serves gRPC: unix ($BH_PLUGIN_SOCKET), tcp:PORT, or tls:PORT
    #[arg(long, value_name = "WHERE", conflicts_with = "path", value_parser = parse_listen)]
    pub listen: Option<String>,
    /// What to call the plugin [default: the manifest's name, or the program's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A service it offers, where it has no reflection; may be repeated
    #[arg(long = "service", value_name = "SERVICE", conflicts_with = "path")]
    pub services: Vec<ServiceName>,
    /// A path it may read, beside its own directory and the system's; may be repeated
    #[arg(long = "read", value_name = "PATH", conflicts_with = "path", value_hint = ValueHint::AnyPath)]
    pub read_paths: Vec<PathBuf>,
    /// Something it asks to be allowed, as a manifest writes it; may be repeated
    #[arg(long = "permission", value_name = "PERMISSION", conflicts_with = "path")]
    pub permissions: Vec<Permission>,
}

impl Check {
    /// What a node would be asked to load.
    pub fn as_load(&self) -> Load {
        Load {
            path: self.path.clone(),
            exec: self.exec.clone(),
            listen: self.listen.clone(),
            name: self.name.clone(),
            services: self.services.clone(),
            read_paths: self.read_paths.clone(),
            permissions: self.permissions.clone(),
            instances: None,
            wait: true,
        }
    }
}
