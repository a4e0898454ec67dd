//! What a running node says on standard output: lines for people, or one JSON object a line.

use std::io::Write;

use serde_json::{Value, json};

/// Standard output, in one of two languages.
#[derive(Debug, Clone, Copy)]
pub struct Voice {
    json: bool,
}

/// What is worth telling.
#[derive(Debug)]
pub enum Say<'a> {
    /// It serves.
    Ready(&'a Ready),
    /// A peer of the network has been met.
    Joined { network: &'a str, through: &'a str },
    /// A bootstrap address does not answer.
    Unreachable { address: &'a str, cause: &'a str, retry_seconds: f64 },
    /// Something is accepted but not in force, or runs reduced.
    Warning(&'a str),
    /// A plugin changed.
    Plugin { name: &'a str, state: &'a str, detail: &'a str },
    /// It is ending.
    Stopping,
    /// It has ended; nothing is left.
    Stopped,
    /// It could not start.
    Failed(&'a str),
}

/// Everything a caller needs to know to use the node.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    pub role: &'static str,
    pub peer_id: String,
    pub name: String,
    pub network: String,
    pub listen: Vec<String>,
    pub grpc: Option<String>,
    pub http: Option<String>,
    pub metrics: Option<String>,
    pub admin: Option<String>,
    pub mesh: Option<String>,
    pub data_dir: String,
    pub bootstraps: usize,
}

impl Voice {
    /// JSON lines, or lines for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Says it. A closed standard output is nobody's mistake.
    pub fn say(self, what: &Say<'_>) {
        let text = if self.json { as_json(what).to_string() } else { as_text(what) };
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }
}

fn as_json(what: &Say<'_>) -> Value {
    match what {
        Say::Ready(ready) => json!({
            "event": "ready",
            "role": ready.role,
            "peer_id": ready.peer_id,
            "name": ready.name,
            "network": ready.network,
            "listen": ready.listen,
            "grpc": ready.grpc,
            "http": ready.http,
            "metrics": ready.metrics,
            "admin": ready.admin,
            "mesh": ready.mesh,
            "data_dir": ready.data_dir,
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
        }),
        Say::Joined { network, through } => {
            json!({"event": "joined", "network": network, "through": through})
        }
        Say::Unreachable { address, cause, retry_seconds } => json!({
            "event": "bootstrap_unreachable",
            "address": address,
            "cause": cause,
            "retry_seconds": retry_seconds,
        }),
        Say::Warning(text) => json!({"event": "warning", "message": text}),
        Say::Plugin { name, state, detail } => {
            json!({"event": "plugin", "name": name, "state": state, "detail": detail})
        }
        Say::Stopping => json!({"event": "stopping"}),
        Say::Stopped => json!({"event": "stopped"}),
        Say::Failed(text) => json!({"event": "failed", "message": text}),
    }
}

fn as_text(what: &Say<'_>) -> String {
    match what {
        Say::Ready(ready) => ready_text(ready),
        Say::Joined { network, through } => {
            format!("joined     network {network}, through {through}")
        }
        Say::Unreachable { address, cause, retry_seconds } => format!(
            "bootstrap  {address} does not answer ({cause}); trying again in {retry_seconds:.0} s"
        ),
        Say::Warning(text) => format!("warning    {text}"),
        Say::Plugin { name, state, detail: "" } => {
            format!("plugin     {name}: {state}")
        }
        Say::Plugin { name, state, detail } => format!("plugin     {name}: {state} ({detail})"),
        Say::Stopping => "stopping   finishing what was begun".into(),
        Say::Stopped => "stopped".into(),
        Say::Failed(text) => format!("failed     {text}"),
    }
}

fn ready_text(ready: &Ready) -> String {
    let mut lines = vec![
        format!("peer id    {}", ready.peer_id),
        format!("network    {}", ready.network),
        format!("data       {}", ready.data_dir),
    ];
    lines.extend(ready.listen.iter().map(|address| format!("listening  {address}")));
    let served = [("grpc", &ready.grpc), ("http", &ready.http), ("metrics", &ready.metrics)];
    for (name, address) in served {
        if let Some(address) = address {
            lines.push(format!("{name:<10} {address}"));
        }
    }
    lines.push("ready".into());
    if ready.bootstraps == 0
        && ready.role == "peer"
        && let Some(address) = ready.listen.first()
    {
        lines.push(format!(
            "           another peer joins this one with: bh-peer --bootstrap {address}"
        ));
    }
    lines.join("\n")
}
