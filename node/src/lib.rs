//! The hall: the only room with every door.
//!
//! Owns configuration, the order in which a node is built, run and drained, and the loop that
//! carries news between the plugin host and the mesh. Refuses to do what a room does: it chooses
//! no provider, transports no byte, starts no process.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "an executable's insides; its contract is the command line")]

mod admin;
mod agree;
mod args;
mod bootstrapping;
mod catalog;
mod check;
pub mod config;
mod data;
mod declarations;
mod door;
mod durable;
mod figures;
mod health;
mod init;
mod knowledge;
mod late;
mod local;
mod log;
mod meters;
mod metrics;
mod pace;
mod run;
mod sample;
mod services;
mod signals;
mod sockets;
mod store;
mod usage;
mod voice;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser;

use crate::{
    args::{BootstrapArgs, PeerArgs, PeerCommand},
    voice::{Say, Voice},
};

/// Wrong usage or configuration (as clap and most shells have it).
const EXIT_USAGE: u8 = 2;

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A peer, or one built-in service of it.
    Peer,
    /// A bootstrap peer.
    Bootstrap,
    /// The operator's command.
    Command,
}

/// Reads the role from the executable's name, or from the first argument, which is then taken out.
pub fn role(args: &[OsString]) -> (Role, Vec<OsString>) {
    let named = |text: Option<&OsString>| {
        let name = Path::new(text?).file_name()?.to_str()?;
        match name {
            "bh-peer" | "blackhole-node" => Some(Role::Peer),
            "bh-bootstrap" => Some(Role::Bootstrap),
            "blackhole" => Some(Role::Command),
            _ => None,
        }
    };
    // `bh-peer blackhole status` is `blackhole status`; a path is never a role.
    let first = args.get(1).filter(|first| !first.to_string_lossy().contains('/'));
    if let Some(role) = named(first) {
        return (role, args[1..].to_vec());
    }
    (named(args.first()).unwrap_or(Role::Peer), args.to_vec())
}

/// libp2p needs one TLS provider, and two would panic.
pub fn install_tls_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs a peer, or one of its helpers.
pub fn peer_main(args: Vec<OsString>) -> ExitCode {
    // `blackhole-node stop` is what service managers are told to call.
    if args.get(1).is_some_and(|first| first == "stop") {
        return cli::main(args);
    }
    let args = PeerArgs::parse_from(args);
    match args.command {
        Some(PeerCommand::Service(service)) => return services::main(&service),
        Some(PeerCommand::Init(init)) => return init::main(&init),
        Some(PeerCommand::Check(args)) => return check::main(&args),
        Some(PeerCommand::CheckConfig(check)) => return init::check_config(&check),
        None => {}
    }
    let json = args.run.mesh.json;
    match config::settings(args.run) {
        Ok(settings) => run::peer(settings),
        Err(error) => {
            complain(json, &error.to_string());
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Runs a bootstrap peer.
pub fn bootstrap_main(args: Vec<OsString>) -> ExitCode {
    run::bootstrap(BootstrapArgs::parse_from(args))
}

/// Says why it ends: for people on standard error, for programs on standard output.
fn complain(json: bool, text: &str) {
    if json {
        Voice::new(true).say(&Say::Failed(text));
    } else {
        eprintln!("error: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role_of(words: &[&str]) -> (Role, usize) {
        let args: Vec<OsString> = words.iter().map(Into::into).collect();
        let (role, rest) = role(&args);
        (role, rest.len())
    }

    #[test]
    fn the_name_or_the_first_argument_says_what_it_is() {
        assert_eq!(role_of(&["/usr/bin/bh-peer"]), (Role::Peer, 1));
        assert_eq!(role_of(&["blackhole", "status"]), (Role::Command, 2));
        assert_eq!(role_of(&["bh-peer", "blackhole", "status"]), (Role::Command, 2));
        assert_eq!(role_of(&["./bh-bootstrap"]), (Role::Bootstrap, 1));
        assert_eq!(role_of(&["anything"]), (Role::Peer, 1));
        assert_eq!(role_of(&["bh-peer", "./blackhole"]), (Role::Peer, 2));
    }
}
