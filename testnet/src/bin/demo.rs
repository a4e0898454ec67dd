//! `make demo`: the story of the README as real processes on this machine.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if testnet::demo::run().await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
