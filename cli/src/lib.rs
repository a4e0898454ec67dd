//! `blackhole`: the operator's and developer's command.
//!
//! Owns the command line: its grammar ([`args`]), what is printed ([`show`], [`terminal`]) and the
//! exit codes ([`failed`]). It speaks only the admin API of a running node, over that node's Unix
//! socket, and calls services of the mesh over the same socket.
//!
//! It refuses to know the node: it never opens a node's store, never reads its configuration, and
//! imports none of its code. What needs the node's code (`init`, `start`, `config check`) is handed
//! over to the same executable under the name `bh-peer` ([`hand_over`]).

#![forbid(unsafe_code)]

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

pub mod args;
pub mod failed;
pub mod places;

mod admin;
mod commands;
mod doctor;
mod hand_over;
mod proto_text;
mod schema;
mod show;
mod terminal;
mod units;

use crate::{args::Cli, commands::World, failed::Failed, terminal::Terminal};

/// Runs one command line to its end, on a runtime of its own, and returns the process's exit code.
///
/// `args` begins with the name the command goes by (`blackhole`), as `std::env::args_os` gives it.
/// `init`, `start` and `config check` do not return: they replace this process.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(refused) => {
            // Nothing is left to say it to when standard output and error are closed.
            let _ = refused.print();
            return ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(2));
        }
    };
    let mut terminal = Terminal::of_process();
    let outcome = World::of_process(&cli).and_then(|world| perform(&cli, &world, &mut terminal));
    match outcome {
        Ok(exit) => exit.into(),
        Err(failed) => {
            terminal.failed(&failed, cli.global.json);
            failed.exit.into()
        }
    }
}

fn perform(cli: &Cli, world: &World, terminal: &mut Terminal) -> Result<failed::Exit, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failed::new(format!("the system gives no event queue: {error}")))?;
    runtime.block_on(commands::run(cli, world, terminal))
}
