//! Flags over file over defaults.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use multiaddr::Multiaddr;
use plugin_host::Parts;
use protocol::{document::Mistake, manifest::Isolation};

use super::{ConfigFile, Service, Settings, default_data_dir};
use crate::args::{Listen, RunArgs};

/// Brings `args` and the file they name together. Nothing is bound or created.
pub fn settings(args: RunArgs) -> Result<Settings, ConfigError> {
    let path = config_path(&args);
    let file = match &path {
        Some(path) => read(path)?,
        None => ConfigFile::default(),
    };
    let data_dir = args.data_dir.clone().or(file.data_dir).unwrap_or_else(default_data_dir);
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    let run_dir = args.run_dir.clone().or(file.run_dir).unwrap_or_else(|| data_dir.join("run"));
    let run_dir = std::path::absolute(&run_dir).unwrap_or(run_dir);
    let mut labels = file.labels;
    labels.extend(args.labels());
    let settings = Settings {
        file: path,
        name: args.name.or(file.name),
        data_dir,
        run_dir,
        network: args.mesh.network.or(file.network).unwrap_or_default(),
        listen: first_given(args.mesh.listen, file.listen, default_listen),
        bootstrap: first_given(args.mesh.bootstrap, file.bootstrap, Vec::new),
        external: first_given(args.mesh.external, file.external, Vec::new),
        mdns: args.mdns || file.mdns.unwrap_or(false),
        grpc: address(args.grpc, file.grpc_port, 9090),
        http: address(args.http, file.http_port, 8080),
        metrics: address(args.metrics, file.metrics_port, 9091),
        cors_origins: file.cors_origins,
        labels,
        log_level_by_flag: args.mesh.log_level.is_some(),
        log_level: args.mesh.log_level.or(file.log_level).unwrap_or_else(|| LOG_LEVEL.into()),
        json: args.mesh.json,
        namespaces: file.namespaces.unwrap_or(true),
        landlock: file.landlock.unwrap_or(true),
        seccomp: file.seccomp.unwrap_or(true),
        cgroups: file.cgroups.unwrap_or_default(),
        permissions: file.permissions,
        isolation_min: file.isolation_min.unwrap_or(Isolation::Wasm),
        supervision: file.supervision,
        routing: file.routing,
        services: file.services,
        parts: file.parts,
        groups: file.groups,
        warnings: file.warnings,
    };
    refuse_clashes(&settings)?;
    Ok(settings)
}

/// From where up the node logs where nothing says.
const LOG_LEVEL: &str = "info";

/// What of a configuration can change while the node runs.
#[derive(Debug, Default)]
pub struct Again {
    /// The services that are to run.
    pub services: BTreeMap<String, Service>,
    /// What plugins are handed.
    pub parts: Parts,
    /// Of the node's own log; `None` leaves it as it is.
    pub log_level: Option<String>,
}

/// The file that `settings` were read from, as it is now. Nothing where there was no file.
pub fn again(settings: &Settings) -> Result<Again, ConfigError> {
    let Some(path) = &settings.file else { return Ok(Again::default()) };
    let file = read(path)?;
    let level = file.log_level.unwrap_or_else(|| LOG_LEVEL.into());
    Ok(Again {
        services: file.services.into_iter().filter(|(_, service)| service.enabled).collect(),
        parts: file.parts,
        log_level: (!settings.log_level_by_flag).then_some(level),
    })
}

/// The file that flags name, or the one that `init` wrote into the data directory.
fn config_path(args: &RunArgs) -> Option<PathBuf> {
    let written = || {
        let data_dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
        Some(data_dir.join(CONFIG_NAME)).filter(|path| path.is_file())
    };
    args.config.clone().or_else(written)
}

/// What `init` calls the configuration.
pub const CONFIG_NAME: &str = "blackhole.yaml";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file is wrong.
    #[error("{path} has {}:\n{}", count(.mistakes), list(.mistakes))]
    Wrong {
        /// Which file.
        path: String,
        /// Everything that is wrong with it.
        mistakes: Vec<Mistake>,
    },
    /// Two listeners want one address.
    #[error("{one} and {other} both want {address}: give one of them another port, or `off`")]
    Clash {
        /// A listener.
        one: &'static str,
        /// Another.
        other: &'static str,
        /// What both want.
        address: SocketAddr,
    },
}

fn count(mistakes: &[Mistake]) -> String {
    match mistakes.len() {
        1 => "a mistake".into(),
        several => format!("{several} mistakes"),
    }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}

fn read(path: &std::path::Path) -> Result<ConfigFile, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Unreadable { path: shown.clone(), cause })?;
    ConfigFile::parse(&text).map_err(|mistakes| ConfigError::Wrong { path: shown, mistakes })
}

fn first_given<T>(flags: Vec<T>, file: Vec<T>, default: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if !flags.is_empty() {
        flags
    } else if !file.is_empty() {
        file
    } else {
        default()
    }
}

/// TCP and QUIC on every address, port 4001.
pub fn default_listen() -> Vec<Multiaddr> {
    ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"]
        .iter()
        .map(|text| text.parse().expect("a constant multiaddr"))
        .collect()
}

/// A flag wins over the file's port; only a flag can open more than loopback.
fn address(flag: Option<Listen>, port: Option<u16>, default: u16) -> Option<SocketAddr> {
    if let Some(Listen(address)) = flag {
        return address;
    }
    let port = port.unwrap_or(default);
    (port != 0).then_some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

fn refuse_clashes(settings: &Settings) -> Result<(), ConfigError> {
    let listeners =
        [("--grpc", settings.grpc), ("--http", settings.http), ("--metrics", settings.metrics)];
    for (index, (one, address)) in listeners.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        let clash = listeners[index + 1..].iter().find(|(_, it)| *it == Some(address));
        if let Some((other, _)) = clash {
            return Err(ConfigError::Clash { one, other, address });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_any_word_has_working_defaults() {
        let empty = tempfile::tempdir().expect("temporary directory");
        let data_dir = Some(empty.path().to_owned());
        let settings = settings(RunArgs { data_dir, ..RunArgs::default() }).expect("defaults");
        assert_eq!(settings.grpc, Some("127.0.0.1:9090".parse().expect("address")));
        assert_eq!(settings.http, Some("127.0.0.1:8080".parse().expect("address")));
        assert_eq!(settings.metrics, Some("127.0.0.1:9091".parse().expect("address")));
        assert_eq!(settings.listen.len(), 2);
        assert_eq!(settings.run_dir, settings.data_dir.join("run"));
    }

    #[test]
    fn a_file_that_is_read_again_tells_its_level_unless_a_flag_did() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("n.yaml");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        write("monitoring: { logLevel: warn }\n");
        let args = |level: Option<&str>| {
            let mut args = RunArgs { config: Some(file.clone()), ..RunArgs::default() };
            args.mesh.log_level = level.map(str::to_owned);
            args
        };
        let of_file = settings(args(None)).expect("valid");
        let of_flag = settings(args(Some("trace"))).expect("valid");
        assert_eq!((of_file.log_level.as_str(), of_flag.log_level.as_str()), ("warn", "trace"));
        write("monitoring: { logLevel: debug }\n");
        assert_eq!(again(&of_file).expect("valid").log_level.as_deref(), Some("debug"));
        assert_eq!(again(&of_flag).expect("valid").log_level, None);
        write("{}\n");
        assert_eq!(again(&of_file).expect("valid").log_level.as_deref(), Some(LOG_LEVEL));
    }

    #[test]
    fn listeners_on_one_address_are_refused_naming_both() {
        let same: Option<Listen> = Some("127.0.0.1:7000".parse().expect("address"));
        let error = settings(RunArgs { grpc: same, metrics: same, ..RunArgs::default() })
            .expect_err("one port, two listeners");
        let text = error.to_string();
        assert!(text.contains("--grpc") && text.contains("--metrics"), "{text}");
    }
}
