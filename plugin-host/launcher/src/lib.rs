//! Builds the jail of one plugin and starts the plugin in it.
//!
//! The host starts this program once, as the *zygote*, on its fast path (no `pre_exec`, hence no
//! fork of a large process) with one end of a socketpair as standard input. For each plugin it
//! sends the zygote one end of another socketpair, the plugin's control socket, and the zygote
//! forks a launcher that obeys that. Over the control socket come the [`JailSpec`] and the
//! descriptors that the plugin is granted. These processes take part:
//!
//! ```text
//! host ── zygote   (small, one thread, forks; holds nothing of any plugin)
//!   ├──── launcher (outside: opens sources, writes id maps, leaves)
//!   └──── init     (first process of the jail: builds it, then reaps, connects, forwards stop)
//!           └───── program (gives up the rest, then execs)
//! ```
//!
//! `launcher` and `init` are children of the host, because they are made with `CLONE_PARENT`; so
//! the host waits for them through pidfds, nothing is left between it and a plugin, and the end of
//! the zygote touches no plugin (docs/adr/0007). The control socket is the lifeline:
//! when the host's end closes, for whatever reason, `init` ends, and with the first process of a
//! pid namespace the kernel ends all others.
//!
//! Every layer either reports success or refuses the start, naming itself. Nothing runs weaker in
//! silence. This crate is the one home of `unsafe` (module `sys`).

pub mod control;
mod egress;
mod groups;
mod init;
mod jail;
mod landlock;
mod program;
mod root;
mod seccomp;
pub mod spec;
mod sys;
mod zygote;

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

/// Behaves as what the first order asks for: the zygote, until the host's end of the socket
/// closes, or the launcher of one jail.
pub fn run() -> ExitCode {
    jail::begin()
}
