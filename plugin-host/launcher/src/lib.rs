//! Builds the jail of one plugin and starts the plugin in it.
//!
//! The host starts this program on its fast path (no `pre_exec`, hence no fork of a large
//! process) with one end of a socketpair as standard input. Over it come the [`JailSpec`] and the
//! descriptors that the plugin is granted. Three processes follow:
//!
//! ```text
//! host ── launcher (outside: opens sources, writes id maps, leaves)
//!   └──── init     (first process of the jail: builds it, then reaps, connects, forwards stop)
//!           └───── program (gives up the rest, then execs)
//! ```
//!
//! `init` is a child of the host, because the launcher makes it with `CLONE_PARENT`; so the host
//! waits for it through a pidfd and nothing is left between them. The socketpair is the lifeline:
//! when the host's end closes, for whatever reason, `init` ends, and with the first process of a
//! pid namespace the kernel ends all others.
//!
//! Every layer either reports success or refuses the start, naming itself. Nothing runs weaker in
//! silence. This crate is the one home of `unsafe` (module `sys`).

pub mod control;
mod init;
mod jail;
mod landlock;
mod program;
mod root;
mod seccomp;
pub mod spec;
mod sys;

use std::process::ExitCode;

pub use control::{Order, Report};
pub use spec::{Bind, Internet, JailSpec, Limits, RootSpec};

/// The first argument by which an executable is told to be the launcher.
pub const LAUNCH_ARGUMENT: &str = "__launch";

/// Behaves as the launcher if this process was started as one, and then never returns. Must be
/// the first thing in `main`: the launcher is single-threaded.
pub fn run_if_invoked() {
    if std::env::args_os().nth(1).is_some_and(|first| first == LAUNCH_ARGUMENT) {
        let code = run();
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}

/// Behaves as the launcher: one jail, then it ends.
pub fn run() -> ExitCode {
    jail::launch()
}
