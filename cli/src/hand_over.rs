//! Hands a command over to the node's code: the same executable under the name `bh-peer`.
//!
//! The process is replaced, not followed, so that signals, standard streams and the exit code are
//! those of the peer.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use protocol::proto::admin::{PluginLoadRequest, plugin_load_request::From};

use crate::{
    args::{Global, Init, Start},
    failed::Failed,
};

/// The name under which the executable runs a peer.
const PEER: &str = "bh-peer";

/// `bh-peer init --topology T …`
pub fn init(global: &Global, init: &Init) -> Result<Vec<OsString>, Failed> {
    let mut words = vec!["init".into(), "--topology".into(), init.topology.name().into()];
    words.extend(shared(global)?);
    Ok(words)
}

/// `bh-peer [--config FILE] …`
pub fn start(global: &Global, start: &Start) -> Result<Vec<OsString>, Failed> {
    let mut words = Vec::new();
    if let Some(config) = &start.config {
        words.extend(["--config".into(), config.into()]);
    }
    words.extend(shared(global)?);
    words.extend(start.rest.iter().cloned());
    Ok(words)
}

/// `bh-peer check-config FILE [--json]`
pub fn check_config(global: &Global, file: &PathBuf) -> Vec<OsString> {
    let mut words = vec!["check-config".into(), file.into()];
    words.extend(global.json.then(|| "--json".into()));
    words
}

/// `bh-peer check PATH`, or `bh-peer check --listen L --exec PROGRAM …`
pub fn check(global: &Global, request: PluginLoadRequest) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["check".into()];
    words.extend(global.json.then(|| "--json".into()));
    if !request.name.is_empty() {
        words.extend(["--name".into(), request.name.into()]);
    }
    match request.from {
        Some(From::Exec(exec)) => {
            words.extend(["--listen".into(), exec.listen.into()]);
            for service in exec.services {
                words.extend(["--service".into(), service.into()]);
            }
            for path in exec.read_paths {
                words.extend(["--read".into(), path.into()]);
            }
            for permission in exec.permissions {
                words.extend(["--permission".into(), permission.into()]);
            }
            words.push("--exec".into());
            words.extend(exec.argv.into_iter().map(OsString::from));
        }
        Some(From::Path(path)) => words.push(path.into()),
        None => {}
    }
    words
}

fn shared(global: &Global) -> Result<Vec<OsString>, Failed> {
    if global.admin.is_some() {
        let refused = Failed::usage("--admin names the socket of a node that runs already");
        return Err(refused.hint("a new node's socket is in the directory given with --run-dir"));
    }
    let mut words = Vec::new();
    for (flag, dir) in [("--data-dir", &global.data_dir), ("--run-dir", &global.run_dir)] {
        if let Some(dir) = dir {
            words.extend([flag.into(), dir.into()]);
        }
    }
    words.extend(global.json.then(|| "--json".into()));
    Ok(words)
}

/// Becomes the peer; returns only when that is impossible.
pub fn become_peer(words: Vec<OsString>) -> Failed {
    let executable = match std::env::current_exe() {
        Ok(executable) => executable,
        Err(error) => return Failed::new(format!("this executable cannot be found: {error}")),
    };
    let error = Command::new(&executable).arg0(PEER).args(words).exec();
    Failed::new(format!("{} cannot be run as {PEER}: {error}", executable.display()))
        .hint("if it was replaced by a newer one, run the newer one")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, Config};

    fn words(line: &str) -> Result<Vec<OsString>, Failed> {
        let cli = Cli::try_parse_from(line.split(' ')).expect(line);
        match &cli.command {
            Command::Init(args) => init(&cli.global, args),
            Command::Start(args) => start(&cli.global, args),
            Command::Config(Config::Check { file }) => Ok(check_config(&cli.global, file)),
            other => panic!("{other:?} is not handed over"),
        }
    }

    #[test]
    fn flags_reach_the_peer() {
        assert_eq!(
            words("blackhole --data-dir d init --json").expect("valid"),
            ["init", "--topology", "local", "--data-dir", "d", "--json"]
        );
        assert_eq!(
            words("blackhole --run-dir r start --config c --grpc off").expect("valid"),
            ["--config", "c", "--run-dir", "r", "--grpc", "off"]
        );
        assert_eq!(words("blackhole start").expect("valid"), Vec::<OsString>::new());
        assert_eq!(
            words("blackhole config check f --json").expect("valid"),
            ["check-config", "f", "--json"]
        );
    }

    #[test]
    fn a_new_node_takes_no_admin_socket() {
        let refused = words("blackhole --admin s start").expect_err("refused");
        assert_eq!(refused.exit, crate::failed::Exit::Usage);
    }
}
