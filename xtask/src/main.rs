//! House-keeping that is not a test: what a contributor would otherwise type at length.
//!
//! Owns no rule of its own: rules are tests in `tests/contract`, and this only runs them.

#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::{Command, ExitCode},
};

const USAGE: &str = "\
cargo run -p xtask -- COMMAND

  tidy                 check the house rules: map, dependency graph, style, promises
  sim SEED [TEST]      replay a simulation by its seed
  fuzz TARGET [ARG…]   run a fuzz target (needs cargo-fuzz)
";

fn main() -> ExitCode {
    let mut words = env::args_os().skip(1);
    let command = words.next().and_then(|word| word.into_string().ok()).unwrap_or_default();
    let rest: Vec<OsString> = words.collect();
    let mut task = match (command.as_str(), rest.as_slice()) {
        ("tidy", []) => tests("contract"),
        ("sim", [seed, test @ ..]) => {
            let mut task = tests("sim");
            task.env("BH_SIM_SEED", seed).arg("--").arg("--nocapture").args(test);
            task
        }
        ("fuzz", [_, ..]) => {
            let mut task = cargo();
            // Fuzzing needs flags that only a nightly compiler takes, or one that is told so.
            task.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run"]).args(&rest);
            task
        }
        _ => return complain(USAGE),
    };
    match task.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => complain(&format!("cannot run {task:?}: {error}\n")),
    }
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The tests of one folder of `tests/`.
fn tests(folder: &str) -> Command {
    let mut task = cargo();
    task.args(["test", "--package", "blackhole-tests", "--test", folder]);
    task
}

/// Says `text` on standard error; a closed one is nobody's mistake.
fn complain(text: &str) -> ExitCode {
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(2)
}
