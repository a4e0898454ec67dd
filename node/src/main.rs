//! The one executable. Its name, or its first argument, says what it is.

use std::{ffi::OsString, process::ExitCode};

/// A call makes some dozens of small allocations, which is a fifth of its time with the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    plugin_host::run_if_invoked();
    // They make a process that allocates little here and there several times as large.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    node::install_tls_provider();
    let args: Vec<OsString> = std::env::args_os().collect();
    match node::role(&args) {
        (node::Role::Peer, args) => node::peer_main(args),
        (node::Role::Bootstrap, args) => node::bootstrap_main(args),
        (node::Role::Command, args) => cli::main(args),
    }
}
