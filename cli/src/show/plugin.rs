//! Plugins and their logs.

use std::collections::BTreeMap;

use protocol::proto::admin::{Figure, LogLine, Mechanism, Plugin};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Facts, number_or_null, or_dash, text_or_null};
use crate::{
    terminal::{Table, Tone, clean, paint},
    units::{size, span},
};

/// What is said where there are none.
pub const NO_PLUGINS: &str = "no plugins loaded; load one with `blackhole plugin load PATH --wait`";

/// All plugins as a table.
pub fn list(plugins: &[Plugin], colour: bool) -> String {
    if plugins.is_empty() {
        return NO_PLUGINS.into();
    }
    // Most nodes have no groups; theirs is a narrower table.
    let grouped = plugins.iter().any(|plugin| !plugin.group.is_empty());
    let mut headings = vec!["NAME", "VERSION", "STATE", "PID", "UP", "MEMORY", "RESTARTS"];
    headings.extend(grouped.then_some("GROUP"));
    headings.push("SERVICES");
    let mut table = Table::new(colour, &headings).right(3).right(5).right(6);
    for plugin in plugins {
        row(&mut table, plugin, &plugin.name, grouped);
        // One that has several shows each; what is above them is their sum.
        for one in plugin.instances.iter().filter(|_| plugin.instances.len() > 1) {
            row(&mut table, one, &format!("  {}/{}", plugin.name, one.number), grouped);
        }
    }
    let mut text = table.text();
    for plugin in plugins.iter().filter(|plugin| !plugin.reason.is_empty()) {
        let line = format!("\n{}: {}", clean(&plugin.name), clean(&plugin.reason));
        text.push_str(&paint(colour, Tone::Dim, &line));
    }
    text
}

fn row(table: &mut Table, plugin: &Plugin, name: &str, grouped: bool) {
    let running = plugin.pid > 0;
    let several = plugin.instances.len() > 1;
    let mut cells = vec![
        (name.to_owned(), Some(Tone::Strong)),
        (or_dash(&plugin.version), None),
        (state(plugin), Some(tone(plugin))),
        (if running && !several { plugin.pid.to_string() } else { "-".into() }, None),
        (if running { span(plugin.uptime_ms) } else { "-".into() }, None),
        (if running { size(plugin.memory_bytes) } else { "-".into() }, None),
        (plugin.restarts.to_string(), None),
    ];
    if grouped {
        cells.push((or_dash(&plugin.group), None));
    }
    cells.push((or_dash(&plugin.services.join(", ")), None));
    table.row(cells);
}

/// All that is known about one plugin.
pub fn info(plugin: &Plugin, colour: bool) -> String {
    let mut facts = Facts::new();
    facts.add("name", &plugin.name);
    facts.add("version", &plugin.version);
    facts.add("description", &plugin.description);
    facts.add("state", state(plugin));
    facts.add("reason", &plugin.reason);
    if plugin.warnings.join("; ") != plugin.reason {
        facts.list("warnings", &plugin.warnings);
    }
    facts.list("services", &plugin.services);
    facts.add("capabilities", plugin.capabilities.join(", "));
    facts.add("says it needs", plugin.dependencies.join(", "));
    facts.add("announced", if plugin.announced { "yes" } else { "no" });
    facts.add("source", &plugin.source);
    if !plugin.group.is_empty() {
        facts.add("group", format!("{} ({})", plugin.group, plugin.strategy));
    }
    facts.add("instance", &plugin.instance);
    if plugin.pid > 0 {
        process(&mut facts, plugin);
    }
    if !plugin.certificate_sha256.is_empty() {
        facts.add("certificate", format!("SHA-256 {}", plugin.certificate_sha256));
        facts.add("expires", &plugin.certificate_expires);
    }
    facts.add("last check", &plugin.last_health_check);
    facts.add("restarts", format!("{} (crashes: {})", plugin.restarts, plugin.crashes));
    facts.add("last restart", &plugin.last_restart);
    facts.add("isolation", &plugin.isolation);
    facts.add("layers", plugin.layers.join(", "));
    facts.list("limits", &plugin.mechanisms.iter().map(mechanism).collect::<Vec<_>>());
    if plugin.disk_bytes > 0 {
        facts.add("disk", size(plugin.disk_bytes));
    }
    if plugin.over_limit > 0 {
        facts.add("over limit", format!("{} times", plugin.over_limit));
    }
    facts.list("asks for", &plugin.permissions_asked);
    facts.list("granted", &plugin.permissions_granted);
    facts.list("denied", &plugin.permissions_denied);
    if !plugin.denials.is_empty() {
        let mut counts: Vec<_> = plugin.denials.iter().collect();
        counts.sort();
        let counts: Vec<String> =
            counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        facts.add("refused", counts.join(", "));
    }
    if plugin.egress_connections > 0 {
        let (sent, received) = (size(plugin.egress_sent_bytes), size(plugin.egress_received_bytes));
        let count = plugin.egress_connections;
        facts.add("outbound", format!("{count} connections, {sent} out, {received} in"));
    }
    if plugin.logs_lost > 0 {
        facts.add("logs lost", format!("{} lines", plugin.logs_lost));
    }
    let figures: Vec<String> = plugin.figures.iter().map(figure).collect();
    facts.list("figures", &figures);
    if plugin.figures_refused > 0 {
        facts.add("not shown", format!("{} of its figures", plugin.figures_refused));
    }
    if plugin.instances.len() > 1 {
        facts.list("instances", &plugin.instances.iter().map(instance).collect::<Vec<_>>());
    }
    facts.text(colour)
}

/// What its process uses.
fn process(facts: &mut Facts, plugin: &Plugin) {
    facts.add("pid", plugin.pid.to_string());
    facts.add("up", span(plugin.uptime_ms));
    let limit = match plugin.memory_limit_bytes {
        0 => String::new(),
        limit => format!(" of {}", size(limit)),
    };
    facts.add("memory", format!("{}{limit}", size(plugin.memory_bytes)));
    facts.add("cpu", format!("{:.1} % of one core", plugin.cpu_percent));
    facts.add("threads", plugin.threads.to_string());
    facts.add("open files", plugin.open_files.to_string());
}

fn figure(figure: &Figure) -> String {
    let labels: BTreeMap<_, _> = figure.labels.iter().collect();
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) };
    format!("{} {}{labels}", figure.name, figure.value)
}

fn mechanism(it: &Mechanism) -> String {
    format!("{} {} ({})", it.resource, it.limit, it.means)
}

/// One of several instances in one line.
fn instance(one: &Plugin) -> String {
    let process = match one.pid {
        0 => String::new(),
        pid => format!(", pid {pid}, up {}", span(one.uptime_ms)),
    };
    let reason = if one.reason.is_empty() { "" } else { ": " };
    format!(
        "{} {}{process}, restarts {} (crashes: {}){reason}{}",
        one.number,
        state(one),
        one.restarts,
        one.crashes,
        one.reason
    )
}

/// One plugin as JSON.
pub fn document(plugin: &Plugin) -> Value {
    let mut whole = json!({
        "name": plugin.name,
        "version": text_or_null(&plugin.version),
        "state": plugin.state,
        "reason": text_or_null(&plugin.reason),
        "pid": number_or_null(plugin.pid),
        "instance": text_or_null(&plugin.instance),
        "services": plugin.services,
        "restarts": plugin.restarts,
        "crashes": plugin.crashes,
        "last_restart": text_or_null(&plugin.last_restart),
        "uptime_ms": plugin.uptime_ms,
        "memory_bytes": plugin.memory_bytes,
        "memory_limit_bytes": number_or_null(plugin.memory_limit_bytes),
        "cpu_percent": plugin.cpu_percent,
        "threads": plugin.threads,
        "open_files": plugin.open_files,
        "layers": plugin.layers,
        "limits": plugin.mechanisms.iter().map(|it| json!({
            "resource": it.resource, "limit": it.limit, "means": it.means,
        })).collect::<Vec<_>>(),
        "disk_bytes": plugin.disk_bytes,
        "over_limit": plugin.over_limit,
        "source": plugin.source,
        "announced": plugin.announced,
        "healthy": plugin.healthy,
        "last_health_check": text_or_null(&plugin.last_health_check),
        "isolation": text_or_null(&plugin.isolation),
        "certificate": certificate(plugin),
        "logs_lost": plugin.logs_lost,
        "group": text_or_null(&plugin.group),
        "strategy": text_or_null(&plugin.strategy),
        "number": plugin.number,
        "instances": plugin.instances.iter().map(document).collect::<Vec<_>>(),
        "permissions": {
            "asked": plugin.permissions_asked,
            "granted": plugin.permissions_granted,
            "denied": plugin.permissions_denied,
        },
        "denials": plugin.denials,
        "egress": {
            "connections": plugin.egress_connections,
            "sent_bytes": plugin.egress_sent_bytes,
            "received_bytes": plugin.egress_received_bytes,
        },
    });
    if let (Value::Object(whole), Value::Object(said)) = (&mut whole, said(plugin)) {
        whole.extend(said);
    }
    whole
}

/// What it proves itself with; null where it does not listen with TLS.
fn certificate(plugin: &Plugin) -> Value {
    let sha256 = &plugin.certificate_sha256;
    if sha256.is_empty() {
        return Value::Null;
    }
    json!({"sha256": sha256, "expires": plugin.certificate_expires})
}

/// What it says of itself, and what is to be said about that.
fn said(plugin: &Plugin) -> Value {
    json!({
        "description": text_or_null(&plugin.description),
        "capabilities": plugin.capabilities,
        "dependencies": plugin.dependencies,
        "warnings": plugin.warnings,
        "figures_refused": plugin.figures_refused,
        "figures": plugin.figures.iter().map(|it| {
            json!({"name": it.name, "value": it.value, "labels": it.labels})
        }).collect::<Vec<_>>(),
    })
}

/// All plugins as JSON.
pub fn documents(plugins: &[Plugin]) -> Value {
    json!({"plugins": plugins.iter().map(document).collect::<Vec<_>>()})
}

/// A running plugin that fails its checks is told apart from one that passes them.
fn state(plugin: &Plugin) -> String {
    match plugin.state.as_str() {
        "running" if !plugin.healthy => "unhealthy".into(),
        state => state.into(),
    }
}

fn tone(plugin: &Plugin) -> Tone {
    match plugin.state.as_str() {
        "running" if plugin.healthy => Tone::Good,
        "failed" | "crash-loop" | "unhealthy" => Tone::Bad,
        "stopped" => Tone::Dim,
        _ => Tone::Warn,
    }
}

/// One line of a log for people.
pub fn log_text(line: &LogLine, colour: bool) -> String {
    let level = match line.level.as_str() {
        "error" | "fatal" => Tone::Bad,
        "warn" | "warning" => Tone::Warn,
        "debug" | "trace" => Tone::Dim,
        _ => Tone::Strong,
    };
    let mut text = format!(
        "{} {} {} {}",
        paint(colour, Tone::Dim, &clean(&line.timestamp)),
        paint(colour, level, &format!("{:5}", clean(&line.level))),
        paint(colour, Tone::Dim, &format!("{:10}", clean(&line.stream))),
        clean(&line.message),
    );
    if let Value::Object(fields) = fields(line) {
        for (key, value) in fields {
            let pair = match value {
                Value::String(value) => format!(" {key}={value}"),
                value => format!(" {key}={value}"),
            };
            text.push_str(&paint(colour, Tone::Dim, &clean(&pair)));
        }
    }
    text
}

/// One line of a log as one line of JSON, keys in the order in which they are read.
pub fn log_json(line: &LogLine) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        timestamp: &'a str,
        node_id: &'a str,
        service: &'a str,
        pid: u32,
        level: &'a str,
        message: &'a str,
        fields: Value,
        stream: &'a str,
    }
    let document = Line {
        timestamp: &line.timestamp,
        node_id: &line.node_id,
        service: &line.service,
        pid: line.pid,
        level: &line.level,
        message: &line.message,
        fields: fields(line),
        stream: &line.stream,
    };
    serde_json::to_string(&document).unwrap_or_default()
}

fn fields(line: &LogLine) -> Value {
    let fields = serde_json::from_str(&line.fields_json);
    fields.ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> Plugin {
        Plugin {
            name: "counter".into(),
            version: "1.2.0".into(),
            state: "running".into(),
            pid: 4711,
            services: vec!["demo.v1.Counter".into()],
            uptime_ms: 61_000,
            memory_bytes: 3_400_000,
            healthy: true,
            announced: true,
            source: "./counter".into(),
            ..Plugin::default()
        }
    }

    #[test]
    fn an_empty_node_says_how_to_load_a_plugin() {
        assert!(list(&[], false).contains("blackhole plugin load"));
        assert_eq!(documents(&[]), json!({"plugins": []}));
    }

    #[test]
    fn plugins_are_listed_with_reasons_below() {
        let broken = Plugin {
            name: "kv".into(),
            state: "failed".into(),
            reason: "exited 5 times in 60 s".into(),
            ..Plugin::default()
        };
        let expected = "\
NAME     VERSION  STATE     PID  UP     MEMORY  RESTARTS  SERVICES
counter  1.2.0    running  4711  1m 1s  3.4 MB         0  demo.v1.Counter
kv       -        failed      -  -           -         0  -
kv: exited 5 times in 60 s";
        assert_eq!(list(&[counter(), broken], false), expected);
    }

    #[test]
    fn instances_and_groups_are_shown_where_there_are_any() {
        let one = |number, pid| Plugin { number, pid, ..counter() };
        let plugin = Plugin {
            group: "shop".into(),
            strategy: "rest-for-one".into(),
            instances: vec![one(1, 4711), one(2, 4712)],
            ..counter()
        };
        let expected = "\
NAME         VERSION  STATE     PID  UP     MEMORY  RESTARTS  GROUP  SERVICES
counter      1.2.0    running     -  1m 1s  3.4 MB         0  shop   demo.v1.Counter
  counter/1  1.2.0    running  4711  1m 1s  3.4 MB         0  -      demo.v1.Counter
  counter/2  1.2.0    running  4712  1m 1s  3.4 MB         0  -      demo.v1.Counter";
        assert_eq!(list(std::slice::from_ref(&plugin), false), expected);
        let text = info(&plugin, false);
        assert!(text.contains("group       shop (rest-for-one)"), "{text}");
        assert!(text.contains("2 running, pid 4712, up 1m 1s, restarts 0"), "{text}");
    }

    #[test]
    fn a_running_plugin_that_fails_its_checks_is_called_unhealthy() {
        let plugin = Plugin { healthy: false, ..counter() };
        assert!(list(std::slice::from_ref(&plugin), false).contains("unhealthy"));
        let text = info(&plugin, false);
        assert!(text.contains("\nstate       unhealthy\n"), "{text}");
    }

    #[test]
    fn a_certificate_is_shown_where_there_is_one() {
        let secured = Plugin {
            certificate_sha256: "AB:CD".into(),
            certificate_expires: "2027-01-15T10:30:00Z".into(),
            ..counter()
        };
        let text = info(&secured, false);
        assert!(text.contains("\ncertificate  SHA-256 AB:CD\n"), "{text}");
        assert!(text.contains("\nexpires      2027-01-15T10:30:00Z\n"), "{text}");
        assert_eq!(document(&secured)["certificate"]["sha256"], "AB:CD");
        assert_eq!(document(&counter())["certificate"], Value::Null);
    }

    #[test]
    fn absent_values_are_null() {
        let document = document(&counter());
        assert_eq!(document["pid"], 4711);
        assert_eq!(document["last_restart"], Value::Null);
        assert_eq!(document["memory_limit_bytes"], Value::Null);
    }

    fn line() -> LogLine {
        LogLine {
            timestamp: "2024-01-15T10:30:00Z".into(),
            node_id: "node-1".into(),
            service: "storage".into(),
            pid: 1003,
            level: "info".into(),
            message: "Block stored\x1b[2J".into(),
            fields_json: r#"{"size":1024,"block_id":"Qm"}"#.into(),
            stream: "stdout".into(),
        }
    }

    #[test]
    fn log_lines_have_the_documented_shape() {
        assert_eq!(
            log_json(&line()),
            r#"{"timestamp":"2024-01-15T10:30:00Z","node_id":"node-1","service":"storage","#
                .to_owned()
                + r#""pid":1003,"level":"info","message":"Block stored\u001b[2J","#
                + r#""fields":{"block_id":"Qm","size":1024},"stream":"stdout"}"#
        );
    }

    #[test]
    fn log_lines_for_people_carry_no_control_characters() {
        assert_eq!(
            log_text(&line(), false),
            "2024-01-15T10:30:00Z info  stdout     Block stored\u{fffd}[2J block_id=Qm size=1024"
        );
    }

    #[test]
    fn broken_fields_do_not_lose_the_line() {
        let line = LogLine { fields_json: "{".into(), ..line() };
        assert!(log_json(&line).contains(r#""fields":{}"#));
    }
}
