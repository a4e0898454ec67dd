//! The node's own log, on standard error: text for people, or JSON lines in the shape that plugin
//! logs have too (paper 004), so that one reader takes both.

use std::{fmt, io::IsTerminal};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
    reload::Handle,
};

/// From which level up the node logs; changes while it runs.
pub struct Level {
    now: Mutex<String>,
    put: Box<Put>,
}

/// Puts a filter in force.
type Put = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

impl Level {
    /// What is in force, as it was given.
    pub fn now(&self) -> String {
        self.now.lock().clone()
    }

    /// Puts `filter`, a level or a tracing filter, in force, and gives what was before. One that
    /// cannot be read is an error and changes nothing.
    pub fn set(&self, filter: &str) -> Result<String, String> {
        let read = read(filter)?;
        let mut now = self.now.lock();
        (self.put)(read)?;
        Ok(std::mem::replace(&mut *now, filter.to_owned()))
    }
}

/// Starts logging. `filter` is a level or a tracing filter; a filter that cannot be read is an
/// error. Libraries speak from `error` up unless the filter names them.
pub fn start(filter: &str, json: bool, node_id: &str) -> Result<Level, String> {
    let builder =
        tracing_subscriber::fmt().with_env_filter(read(filter)?).with_writer(std::io::stderr);
    let (outcome, put) = if json {
        let builder = builder.event_format(JsonLines { node_id: node_id.into() });
        let builder = builder.with_filter_reloading();
        let put = putting(builder.reload_handle());
        (builder.try_init(), put)
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_target(false);
        let builder = builder.with_filter_reloading();
        let put = putting(builder.reload_handle());
        (builder.try_init(), put)
    };
    outcome.map_err(|error| error.to_string())?;
    Ok(Level { now: Mutex::new(filter.to_owned()), put })
}

fn putting<S: 'static>(handle: Handle<EnvFilter, S>) -> Box<Put> {
    Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
}

fn read(filter: &str) -> Result<EnvFilter, String> {
    let plain = ["error", "warn", "info", "debug", "trace"].contains(&filter);
    let directives = if plain { ours_at(filter) } else { filter.to_owned() };
    EnvFilter::try_new(directives)
        .map_err(|error| format!("`{filter}` is not a log level or filter: {error}"))
}

/// A bare level is meant for this program, not for the libraries in it. The names are beginnings:
/// most crates of ours begin with the last.
fn ours_at(level: &str) -> String {
    let ours = ["node", "dht_registry", "bh_peer", "blackhole"];
    let ours = ours.map(|name| format!("{name}={level}"));
    format!("error,{}", ours.join(","))
}

struct JsonLines {
    node_id: String,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = json!({
            "timestamp": jiff::Timestamp::now().to_string(),
            "node_id": self.node_id,
            "service": "node",
            "pid": std::process::id(),
            "level": event.metadata().level().as_str().to_ascii_lowercase(),
            "message": fields.message,
            "fields": fields.rest,
        });
        writeln!(writer, "{line}")
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.rest.insert(field.name().into(), value);
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_changes_while_it_runs_and_what_is_none_changes_nothing() {
        let level = start("warn", true, "node").expect("the only log of this process");
        assert!(!tracing::enabled!(target: "node", tracing::Level::DEBUG));
        assert_eq!(level.set("debug"), Ok("warn".into()));
        assert!(tracing::enabled!(target: "node", tracing::Level::DEBUG));
        // As the crates are called, not as they are imported.
        assert!(tracing::enabled!(target: "blackhole_gateway::serve", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "library", tracing::Level::DEBUG));
        let refused = level.set("peer=loud").expect_err("no level");
        assert!(refused.contains("peer=loud"), "{refused}");
        assert_eq!(level.now(), "debug");
        assert!(tracing::enabled!(target: "node", tracing::Level::DEBUG));
    }
}
