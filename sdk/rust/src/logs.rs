//! Logs: one JSON object a line on stderr, where the node collects them; text on a terminal.

use std::{env, io, io::IsTerminal};

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    prelude::*,
};

/// Sets up logging, unless the author has done so. `BH_LOG`, else `RUST_LOG`, which a manifest may
/// set, chooses the level: `error`, `warn`, `info` (the default), `debug`, `trace`, or by module as
/// `counter=debug,h2=warn`.
pub(crate) fn init() {
    let wanted = env::var("BH_LOG").or_else(|_| env::var("RUST_LOG")).unwrap_or_default();
    let usual = Targets::new().with_default(LevelFilter::INFO);
    // Levels by module and nothing cleverer: what also knows spans and patterns has regular
    // expressions to build, at the start of every plugin.
    let (filter, refused) = match wanted.parse::<Targets>() {
        Ok(filter) if !wanted.is_empty() => (filter, None),
        Ok(_) => (usual, None),
        Err(error) => (usual, Some(error)),
    };
    let (logs, lines) = (tracing_subscriber::registry().with(filter), fmt::layer());
    let lines = lines.with_writer(io::stderr);
    // An author's own subscriber is as good: an error here only says that there is one.
    let _ = if io::stderr().is_terminal() {
        logs.with(lines).try_init()
    } else {
        logs.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
    };
    if let Some(error) = refused {
        tracing::warn!(%error, "BH_LOG or RUST_LOG is no level; use error, warn, info or debug");
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no message)");
        tracing::error!(place, "panicked: {message}");
    }));
}
