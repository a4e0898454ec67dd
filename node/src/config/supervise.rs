//! `process_management`, `services` and `groups`: who runs under the host, and how it is watched.

use std::path::PathBuf;

use plugin_host::{GroupConfig, Strategy};
use protocol::{
    document::{Fields, Mistakes},
    manifest::{Defaults, Health, Isolation, Resources, Restart, RestartWhen, RestartWish},
};

use super::{
    Service, defaults,
    file::{BUILT_IN, ENTRIES_MAX, FORESEEN, Reader, TEXT_BYTES_MAX},
};

const POLICIES: [(&str, RestartWhen); 3] = [
    ("always", RestartWhen::Always),
    ("on_failure", RestartWhen::OnFailure),
    ("never", RestartWhen::Never),
];

/// The paper's word for what every policy does: wait longer each time.
const BACKOFF: (&str, RestartWhen) = ("exponential_backoff", RestartWhen::OnFailure);

impl Reader {
    pub(super) fn process_management(&mut self, mut fields: Fields) {
        let mut supervisor = fields.section("supervisor", &mut self.found);
        // A child's end is noticed at once, by waiting on it: no interval could be shorter.
        self.duration(&mut supervisor, "check_interval");
        let restart =
            RestartWish { when: self.policy(&mut supervisor), ..self.intensity(&mut supervisor) };
        self.file.supervision.restart = restart.over(&Restart::default());
        let at = supervisor.path_of("max_restarts");
        supervisor.finish(&mut self.found);
        let restart = self.file.supervision.restart.clone();
        self.must_give_up(restart, &at);
        let checks = fields.section("health_checks", &mut self.found);
        let Health { interval, timeout, threshold, .. } = self.health(checks);
        let supervision = &mut self.file.supervision;
        supervision.health_interval = interval.unwrap_or(supervision.health_interval);
        supervision.health_timeout = timeout.unwrap_or(supervision.health_timeout);
        supervision.unhealthy_threshold = threshold.unwrap_or(supervision.unhealthy_threshold);
        fields.finish(&mut self.found);
    }

    /// `plugins.config`: what each plugin is handed as its own.
    pub(super) fn parts(&mut self, fields: Fields) {
        for (key, node) in fields.into_entries() {
            let at = format!("plugins.config.{}", key.text);
            if let Err(error) = key.text.parse::<protocol::manifest::PluginName>() {
                self.found.note(key.line, &at, error.to_string());
            } else if BUILT_IN.contains(&key.text.as_str()) {
                let reason =
                    format!("it is a service of the node: say it in services.{}", key.text);
                self.found.note(key.line, &at, reason);
            } else if let serde_json::Value::Object(part) = node.to_json() {
                self.file.parts.insert(key.text, part);
            } else {
                self.found.expected(&node, &at, "a map");
            }
        }
    }

    /// `interval`, `timeout` and `unhealthy_threshold`.
    fn health(&mut self, mut fields: Fields) -> Health {
        let interval = self.duration(&mut fields, "interval");
        let timeout = self.duration(&mut fields, "timeout");
        let count = self.whole_number(&mut fields, "unhealthy_threshold", 1..=100);
        fields.finish(&mut self.found);
        let threshold = count.map(|count| count as u32);
        Health { interval, timeout, threshold, ..Health::default() }
    }

    fn policy(&mut self, fields: &mut Fields) -> Option<RestartWhen> {
        let (node, at) = fields.take("restart_policy")?;
        self.found.choice(&node, &at, &[POLICIES[0], POLICIES[1], POLICIES[2], BACKOFF])
    }

    /// `max_restarts` and `restart_window`.
    fn intensity(&mut self, fields: &mut Fields) -> RestartWish {
        let restarts = self.whole_number(fields, "max_restarts", 0..=1_000);
        RestartWish {
            max_restarts: restarts.map(|count| count as u32),
            window: self.duration(fields, "restart_window"),
            ..RestartWish::default()
        }
    }

    /// Whoever cannot start must be given up in the end.
    fn must_give_up(&mut self, restart: Restart, at: &str) {
        let defaults = Defaults { restart, ..Defaults::default() };
        let Err(needed) = defaults.give_up() else { return };
        let Defaults { start_timeout, restart } = defaults;
        let reason = format!(
            "a plugin that cannot start would be started for ever: {} delays and as many start \
             timeouts of {start_timeout:?} take up to {needed:?}, which must be below the \
             restart_window of {:?}; lower max_restarts or lengthen restart_window",
            restart.max_restarts, restart.window
        );
        self.found.note(0, at, reason);
    }

    pub(super) fn services(&mut self, fields: Fields) {
        for (key, node) in fields.into_entries() {
            let at = format!("services.{}", key.text);
            let part = node.to_json();
            let Some(fields) = self.found.map(node, &at) else { continue };
            let known = BUILT_IN.contains(&key.text.as_str());
            let mut service = self.service(fields);
            service.part = part;
            service.resources = service.resources.over(&defaults::resources(&key.text));
            if !known && !FORESEEN.contains(&key.text.as_str()) {
                let reason = format!(
                    "no built-in service of that name; there is: {}. Others are plugins: load them with `blackhole plugin load`",
                    BUILT_IN.join(", ")
                );
                self.found.note(key.line, &at, reason);
            } else if !known && service.enabled {
                self.warn(key.line, &at, "this version does not contain it; it will not run");
            } else {
                self.file.services.insert(key.text, service);
            }
        }
    }

    fn service(&mut self, mut fields: Fields) -> Service {
        let enabled = self.flag(&mut fields, "enabled").unwrap_or(true);
        let port = self.whole_number(&mut fields, "port", 1..=65_535).map(|port| port as u16);
        let unix_socket = self.text(&mut fields, "unix_socket").map(PathBuf::from);
        let restart_policy = self.policy(&mut fields);
        let isolation = fields.take("isolation").and_then(|(node, at)| {
            let levels = [
                ("process", Isolation::Process),
                ("thread", Isolation::Thread),
                ("none", Isolation::None),
            ];
            self.found.choice(&node, &at, &levels)
        });
        let instances = self.whole_number(&mut fields, "instances", 1..=1_000);
        let resources = fields.section("resources", &mut self.found);
        let resources = self.resources(resources);
        let checks = fields.section("health_checks", &mut self.found);
        let health = self.health(checks);
        // Whatever it understands itself; it gets the whole of its part.
        fields.take("settings");
        fields.finish(&mut self.found);
        Service {
            enabled,
            port,
            unix_socket,
            restart_policy,
            isolation: isolation.unwrap_or_default(),
            instances: instances.map(|count| count as u32),
            resources,
            health,
            part: serde_json::Value::Null,
        }
    }

    /// Paper 004's words for what a manifest says with its own.
    fn resources(&mut self, mut fields: Fields) -> Resources {
        let mut size = |key, found: &mut Mistakes| {
            let (node, at) = fields.take(key)?;
            found.size(&node, &at)
        };
        let memory_bytes = size("memory", &mut self.found);
        let disk_bytes = size("disk", &mut self.found);
        let disk_bandwidth = size("disk_bandwidth", &mut self.found);
        let network_bandwidth = size("network_bandwidth", &mut self.found);
        let mut cores = |key, found: &mut Mistakes| {
            let (node, at) = fields.take(key)?;
            found.positive(&node, &at)
        };
        let guaranteed = cores("cpu_guaranteed", &mut self.found);
        let cores = cores("cpu_cores", &mut self.found);
        let files = self.whole_number(&mut fields, "max_files", 1..=1 << 20);
        let processes = self.whole_number(&mut fields, "processes", 1..=1 << 20);
        let seconds = fields.take("cpu_seconds");
        let seconds = seconds.and_then(|(node, at)| self.found.positive(&node, &at));
        fields.finish(&mut self.found);
        Resources {
            cpu_percent: cores.map(|cores| (cores * 100.0).ceil().max(1.0) as u32),
            cpu_guaranteed: guaranteed.map(|cores| (cores * 100.0).ceil().max(1.0) as u32),
            cpu_cores: cores.map(|cores| cores.ceil().clamp(1.0, 1_024.0) as u32),
            cpu_seconds: seconds.map(|seconds| seconds.ceil() as u64),
            memory_bytes,
            files_max: files.map(|files| files as u64),
            processes_max: processes.map(|count| count as u64),
            disk_bytes,
            disk_bandwidth,
            network_bandwidth,
            file_size_bytes: None,
        }
    }

    pub(super) fn groups(&mut self, fields: Fields) {
        for (key, node) in fields.into_entries() {
            let at = format!("groups.{}", key.text);
            if let Err(error) = key.text.parse::<protocol::manifest::PluginName>() {
                self.found.note(key.line, &at, format!("{error}"));
            }
            let Some(fields) = self.found.map(node, &at) else { continue };
            let group = self.group(fields);
            let elsewhere = |other: &GroupConfig| {
                group.members.iter().find(|member| other.members.contains(member)).cloned()
            };
            let twice = self.file.groups.iter().find_map(|(name, other)| {
                elsewhere(other).map(|member| format!("{member} is in group {name} already"))
            });
            if let Some(reason) = twice {
                self.found.note(key.line, &format!("{at}.members"), reason);
            }
            self.file.groups.insert(key.text, group);
        }
    }

    fn group(&mut self, mut fields: Fields) -> GroupConfig {
        let strategy = fields.take("strategy");
        let strategy =
            strategy.and_then(|(node, at)| self.found.choice(&node, &at, &Strategy::NAMES));
        let mut members = Vec::new();
        if let Some((node, at)) = fields.take("members") {
            for node in self.found.list(node, &at, ENTRIES_MAX) {
                let name = self.found.parsed(&node, &at, TEXT_BYTES_MAX, |text| {
                    text.parse::<protocol::manifest::PluginName>().map(|name| name.to_string())
                });
                members.extend(name);
            }
        }
        let wish = self.intensity(&mut fields);
        let at = fields.path_of("max_restarts");
        let resources = fields.section("resources", &mut self.found);
        let resources = self.resources(resources);
        fields.finish(&mut self.found);
        // Whether an end counts is each member's own policy.
        let wish = RestartWish { when: Some(RestartWhen::Always), ..wish };
        let restart = wish.over(&self.file.supervision.restart);
        self.must_give_up(restart.clone(), &at);
        GroupConfig { strategy: strategy.unwrap_or_default(), members, restart, resources }
    }
}
