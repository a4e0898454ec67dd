//! `init` writes what a node of a topology needs; `check-config` reads a configuration and tells
//! every mistake. Both end at once and start nothing.

use std::path::{Path, PathBuf};
use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, process::ExitCode};

use serde_json::json;

use crate::{
    EXIT_USAGE,
    args::{CheckConfigArgs, InitArgs, RunArgs},
    complain,
    config::{CONFIG_NAME, default_data_dir, settings},
    data::DataDir,
};

/// `init --topology local`.
pub fn main(args: &InitArgs) -> ExitCode {
    match init(args) {
        Ok(done) => {
            if args.json {
                println!(
                    "{}",
                    json!({"peer_id": done.peer_id, "data_dir": done.data_dir,
                           "config": done.config, "config_written": done.written})
                );
            } else {
                println!("data     {}", done.data_dir.display());
                println!("peer id  {}", done.peer_id);
                let kept = if done.written { "" } else { " (was there; not changed)" };
                println!("config   {}{kept}", done.config.display());
                println!("start it with: blackhole start --config {}", done.config.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(args.json, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Done {
    peer_id: String,
    data_dir: PathBuf,
    config: PathBuf,
    written: bool,
}

fn init(args: &InitArgs) -> anyhow::Result<Done> {
    let data_dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    let data_dir = std::path::absolute(data_dir)?;
    let data = DataDir::open(&data_dir)?;
    let peer_id = data.identity()?.peer_id().to_string();
    let config = args.config.clone().unwrap_or_else(|| data_dir.join(CONFIG_NAME));
    let config = std::path::absolute(config)?;
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&config);
    let written = match opened {
        Ok(mut file) => {
            file.write_all(local_configuration(&data_dir, args.run_dir.as_deref()).as_bytes())?;
            file.sync_all()?;
            true
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(cause) => anyhow::bail!("cannot write {}: {cause}", config.display()),
    };
    Ok(Done { peer_id, data_dir, config, written })
}

/// A peer on this machine, open to others of the network on port 4001 only.
fn local_configuration(data_dir: &Path, run_dir: Option<&Path>) -> String {
    let data_dir = json!(data_dir);
    let run_dir = run_dir.map_or_else(String::new, |path| format!("  runDir: {}\n", json!(path)));
    format!(
        r"# A Blackhole node. Every key is optional; flags win over this file.
node:
  dataDir: {data_dir}
{run_dir}  labels: {{}}

network:
  name: local
  listenAddrs:
    - /ip4/0.0.0.0/tcp/4001
    - /ip4/0.0.0.0/udp/4001/quic-v1
  bootstrapPeers: []      # such as /ip4/10.0.0.5/tcp/4001/p2p/12D3Koo…

api:                      # on loopback; 0 switches one off
  httpPort: 8080
  grpcPort: 9090

monitoring:
  metricsPort: 9091
  logLevel: info

plugins:
  namespaces: required    # off runs plugins with less isolation, and says so
  landlock: required      # what plugins do with files; off for kernels without it
  seccomp: required       # which system calls plugins make
  cgroups: auto           # how limits are held; required refuses to start without
"
    )
}

/// `check-config FILE`.
pub fn check_config(args: &CheckConfigArgs) -> ExitCode {
    let outcome = settings(RunArgs { config: Some(args.file.clone()), ..RunArgs::default() });
    match outcome {
        Ok(settings) => {
            if args.json {
                println!("{}", json!({"ok": true, "warnings": settings.warnings}));
            } else {
                for warning in &settings.warnings {
                    println!("warning: {warning}");
                }
                println!("{} is right", args.file.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            if args.json {
                println!("{}", json!({"ok": false, "error": error.to_string()}));
            } else {
                complain(false, &error.to_string());
            }
            ExitCode::from(EXIT_USAGE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    #[test]
    fn what_init_writes_is_read_without_a_word() {
        let text =
            local_configuration(Path::new("/var/lib/some \"where\""), Some(Path::new("/run/b")));
        let file = ConfigFile::parse(&text).expect("our own file");
        assert_eq!(file.warnings, Vec::<String>::new());
        assert_eq!(file.data_dir, Some(PathBuf::from("/var/lib/some \"where\"")));
    }

    #[test]
    fn init_twice_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = Some(dir.path().join("node"));
        let args = InitArgs {
            topology: "local".into(),
            data_dir,
            run_dir: None,
            config: None,
            json: false,
        };
        let first = init(&args).expect("fresh");
        let second = init(&args).expect("again");
        assert!(first.written && !second.written);
        assert_eq!(first.peer_id, second.peer_id);
    }
}
