//! The configuration file: keys, kinds and bounds. Tells all mistakes at once.

use std::time::Duration;
use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, path::PathBuf, str::FromStr};

use multiaddr::Multiaddr;
use plugin_host::{CgroupPolicy, GroupConfig, Parts, permissions::Policies};
use protocol::{
    document::{self, Fields, Mistake, Mistakes, Value},
    id::NetworkName,
    manifest::Isolation,
};

use super::{Service, Supervision, permissions};

/// What a configuration file says; everything is optional.
#[derive(Debug, Default)]
pub struct ConfigFile {
    pub name: Option<String>,
    pub data_dir: Option<PathBuf>,
    pub run_dir: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    pub network: Option<NetworkName>,
    pub listen: Vec<Multiaddr>,
    pub bootstrap: Vec<Multiaddr>,
    pub external: Vec<Multiaddr>,
    pub mdns: Option<bool>,
    /// 0 means off.
    pub http_port: Option<u16>,
    /// 0 means off.
    pub grpc_port: Option<u16>,
    /// 0 means off.
    pub metrics_port: Option<u16>,
    /// Whose pages may call.
    pub cors_origins: gateway::Origins,
    pub log_level: Option<String>,
    pub namespaces: Option<bool>,
    /// Whether plugins must be confined by Landlock.
    pub landlock: Option<bool>,
    /// Whether plugins' system calls must be filtered.
    pub seccomp: Option<bool>,
    pub cgroups: Option<CgroupPolicy>,
    pub permissions: Policies,
    /// The weakest isolation level that plugins may have.
    pub isolation_min: Option<Isolation>,
    pub supervision: Supervision,
    pub routing: router::Policies,
    pub services: BTreeMap<String, Service>,
    pub parts: Parts,
    pub groups: BTreeMap<String, GroupConfig>,
    pub warnings: Vec<String>,
}

/// Services that this executable contains.
pub const BUILT_IN: [&str; 2] = ["identity", "telemetry"];
/// Services the papers name that are not built yet: their entries load, with a warning.
pub(super) const FORESEEN: [&str; 4] = ["storage", "ledger", "analytics", "social"];

/// Bytes of any text: paths are at most 4,096 on Linux.
pub(super) const TEXT_BYTES_MAX: usize = 4_096;
/// Entries of any list or map.
pub(super) const ENTRIES_MAX: usize = 256;
/// Any interval or window.
const DURATIONS: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_hours(7 * 24);

impl ConfigFile {
    /// Reads `text`, or tells everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader { file: Self::default(), found: Mistakes::default() };
        let node = document::parse(text).map_err(|mistake| vec![mistake])?;
        if node.value != Value::Null
            && let Some(root) = reader.found.map(node, "")
        {
            reader.whole(root);
        }
        if reader.found.is_empty() { Ok(reader.file) } else { Err(reader.found.into_sorted()) }
    }
}

pub(super) struct Reader {
    pub(super) file: ConfigFile,
    pub(super) found: Mistakes,
}

impl Reader {
    fn whole(&mut self, mut root: Fields) {
        let mut lines = BTreeMap::new();
        let node = root.section("node", &mut self.found);
        self.node(node);
        let management = root.section("process_management", &mut self.found);
        self.process_management(management);
        let network = root.section("network", &mut self.found);
        self.network(network);
        let services = root.section("services", &mut self.found);
        self.services(services);
        let routing = root.section("routing", &mut self.found);
        self.file.routing = super::routing::read(routing, &mut self.found);
        let api = root.section("api", &mut self.found);
        self.api(api, &mut lines);
        let monitoring = root.section("monitoring", &mut self.found);
        self.monitoring(monitoring, &mut lines);
        let groups = root.section("groups", &mut self.found);
        self.groups(groups);
        let plugins = root.section("plugins", &mut self.found);
        self.plugins(plugins);
        root.finish(&mut self.found);
        self.refuse_port_clashes(&lines);
    }

    fn node(&mut self, mut fields: Fields) {
        self.file.name = self.text(&mut fields, "name");
        self.file.data_dir = self.text(&mut fields, "dataDir").map(PathBuf::from);
        self.file.run_dir = self.text(&mut fields, "runDir").map(PathBuf::from);
        let labels = fields.section("labels", &mut self.found);
        for (key, node) in labels.into_entries() {
            let at = format!("node.labels.{}", key.text);
            if let Some(value) = self.found.text(&node, &at, TEXT_BYTES_MAX) {
                self.file.labels.insert(key.text, value);
            }
        }
        fields.finish(&mut self.found);
    }

    fn network(&mut self, mut fields: Fields) {
        self.file.network = self.parsed(&mut fields, "name");
        self.file.listen = self.addresses(&mut fields, "listenAddrs");
        self.file.bootstrap = self.addresses(&mut fields, "bootstrapPeers");
        self.file.external = self.addresses(&mut fields, "externalAddrs");
        self.file.mdns = self.flag(&mut fields, "mdns");
        fields.finish(&mut self.found);
    }

    fn addresses(&mut self, fields: &mut Fields, key: &'static str) -> Vec<Multiaddr> {
        let Some((list, at)) = fields.take(key) else { return Vec::new() };
        let mut addresses = Vec::new();
        for (index, node) in self.found.list(list, &at, ENTRIES_MAX).iter().enumerate() {
            let at = format!("{at}[{index}]");
            let Some(text) = self.found.text(node, &at, TEXT_BYTES_MAX) else { continue };
            let modern = modern(&text);
            if modern != text {
                self.warn(node.line, &at, &format!("read as {modern}"));
            }
            match modern.parse() {
                Ok(address) => addresses.push(address),
                Err(error) => self.found.note(
                    node.line,
                    &at,
                    format!("`{modern}` is not a multiaddr ({error}); expected something like /ip4/0.0.0.0/tcp/4001"),
                ),
            }
        }
        addresses
    }

    fn api(&mut self, mut fields: Fields, lines: &mut BTreeMap<&'static str, u64>) {
        self.file.http_port = self.port(&mut fields, "httpPort", lines);
        self.file.grpc_port = self.port(&mut fields, "grpcPort", lines);
        if let Some(port) = self.port(&mut fields, "wsPort", lines)
            && port != 0
        {
            let why = format!("WebSocket is not built yet; nothing listens on {port}");
            self.warn(lines["wsPort"], "api.wsPort", &why);
        }
        self.cors_origins(&mut fields);
        let mut limit = fields.section("rateLimit", &mut self.found);
        if self.flag(&mut limit, "enabled") == Some(true) {
            self.file.warnings.push("api.rateLimit: not in force yet".into());
        }
        self.whole_number(&mut limit, "requestsPerMinute", 1..=1_000_000_000);
        limit.finish(&mut self.found);
        fields.finish(&mut self.found);
    }

    fn cors_origins(&mut self, fields: &mut Fields) {
        let Some((list, at)) = fields.take("corsOrigins") else { return };
        for (index, node) in self.found.list(list, &at, ENTRIES_MAX).iter().enumerate() {
            let at = format!("{at}[{index}]");
            let Some(text) = self.found.text(node, &at, TEXT_BYTES_MAX) else { continue };
            if self.file.cors_origins.allow(&text).is_err() {
                let reason = format!(
                    "`{text}` is not an origin (expected something like https://app.example, or *)"
                );
                self.found.note(node.line, &at, reason);
            }
        }
    }

    fn monitoring(&mut self, mut fields: Fields, lines: &mut BTreeMap<&'static str, u64>) {
        self.file.metrics_port = self.port(&mut fields, "metricsPort", lines);
        self.file.log_level = self.text(&mut fields, "logLevel");
        if let Some(interval) = self.duration(&mut fields, "sampleInterval") {
            self.file.supervision.sample_interval = interval;
        }
        if let Some((node, at)) = fields.take("tracingEndpoint")
            && self.found.text(&node, &at, TEXT_BYTES_MAX).is_some()
        {
            self.warn(node.line, &at, "traces are not exported yet");
        }
        let mut logs = fields.section("log_aggregation", &mut self.found);
        self.flag(&mut logs, "enabled");
        if let Some(lines) = self.whole_number(&mut logs, "buffer_size", 10..=10_000_000) {
            self.file.supervision.log_lines = lines as usize;
        }
        logs.finish(&mut self.found);
        fields.finish(&mut self.found);
    }

    fn plugins(&mut self, mut fields: Fields) {
        let mut layer = |key| {
            let chosen = self.choice(&mut fields, key, &["required", "off"]);
            chosen.map(|chosen| chosen == "required")
        };
        let (namespaces, landlock) = (layer("namespaces"), layer("landlock"));
        let seccomp = layer("seccomp");
        let policies = [
            ("auto", CgroupPolicy::Auto),
            ("required", CgroupPolicy::Required),
            ("off", CgroupPolicy::Off),
        ];
        let cgroups = fields.take("cgroups");
        self.file.cgroups = cgroups.and_then(|(node, at)| self.found.choice(&node, &at, &policies));
        self.file.namespaces = namespaces;
        self.file.landlock = landlock;
        self.file.seccomp = seccomp;
        if let Some((node, at)) = fields.take("isolation_min") {
            let levels = [
                ("wasm", Isolation::Wasm),
                ("process", Isolation::Process),
                ("container", Isolation::Container),
                ("vm", Isolation::Vm),
            ];
            self.file.isolation_min = self.found.choice(&node, &at, &levels);
        }
        if let Some(count) = self.whole_number(&mut fields, "max", 1..=100_000) {
            self.file.supervision.plugins_max = count as usize;
        }
        let parts = fields.section("config", &mut self.found);
        self.parts(parts);
        self.file.permissions = permissions::policies(&mut fields, &mut self.found);
        fields.finish(&mut self.found);
    }

    /// Two listeners on one port would be refused by the system one after the other; tell both.
    fn refuse_port_clashes(&mut self, lines: &BTreeMap<&'static str, u64>) {
        let mut taken: BTreeMap<u16, String> = BTreeMap::new();
        for (index, port) in self.file.listen.iter().filter_map(tcp_port).enumerate() {
            taken.insert(port, format!("network.listenAddrs[{index}]"));
        }
        let ports = [
            ("httpPort", "api.httpPort", self.file.http_port),
            ("grpcPort", "api.grpcPort", self.file.grpc_port),
            ("metricsPort", "monitoring.metricsPort", self.file.metrics_port),
        ];
        for (key, at, port) in ports {
            let Some(port) = port.filter(|port| *port != 0) else { continue };
            if let Some(other) = taken.insert(port, at.into()) {
                let reason = format!("port {port} is also that of {other}: give one another");
                self.found.note(lines[key], at, reason);
            }
        }
    }

    pub(super) fn warn(&mut self, line: u64, at: &str, what: &str) {
        self.file.warnings.push(format!("line {line}: {at}: {what}"));
    }

    pub(super) fn text(&mut self, fields: &mut Fields, key: &'static str) -> Option<String> {
        let (node, at) = fields.take(key)?;
        self.found.text(&node, &at, TEXT_BYTES_MAX)
    }

    fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        fields: &mut Fields,
        key: &'static str,
    ) -> Option<T> {
        let (node, at) = fields.take(key)?;
        self.found.parsed(&node, &at, TEXT_BYTES_MAX, str::parse)
    }

    pub(super) fn flag(&mut self, fields: &mut Fields, key: &'static str) -> Option<bool> {
        let (node, at) = fields.take(key)?;
        self.found.flag(&node, &at)
    }

    pub(super) fn whole_number(
        &mut self,
        fields: &mut Fields,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<i64> {
        let (node, at) = fields.take(key)?;
        self.found.integer(&node, &at, range)
    }

    pub(super) fn duration(&mut self, fields: &mut Fields, key: &'static str) -> Option<Duration> {
        let (node, at) = fields.take(key)?;
        self.found.duration(&node, &at, DURATIONS)
    }

    fn choice(
        &mut self,
        fields: &mut Fields,
        key: &'static str,
        choices: &[&'static str],
    ) -> Option<&'static str> {
        let (node, at) = fields.take(key)?;
        let choices: Vec<_> = choices.iter().map(|choice| (*choice, *choice)).collect();
        self.found.choice(&node, &at, &choices)
    }

    /// A port, 0 meaning that nothing listens.
    fn port(
        &mut self,
        fields: &mut Fields,
        key: &'static str,
        lines: &mut BTreeMap<&'static str, u64>,
    ) -> Option<u16> {
        let (node, at) = fields.take(key)?;
        lines.insert(key, node.line);
        self.found.integer(&node, &at, 0..=65_535).map(|port| port as u16)
    }
}

/// The paper writes `/ip4/0.0.0.0/quic/4001`, which no multiaddr parser takes.
fn modern(text: &str) -> String {
    match text.split_once("/quic/") {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{host}/udp/{port}/quic-v1")
        }
        _ => text.to_owned(),
    }
}

fn tcp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use protocol::manifest::RestartWhen;

    use super::*;

    const PAPER: &str = include_str!("../../tests/paper004.yaml");

    #[test]
    fn the_papers_file_loads_and_says_what_it_reads_otherwise() {
        let file = ConfigFile::parse(PAPER).expect("the paper's own file");
        assert_eq!(file.name.as_deref(), Some("my-blackhole-node"));
        assert_eq!(file.listen[1].to_string(), "/ip4/0.0.0.0/udp/4001/quic-v1");
        assert_eq!(file.grpc_port, Some(9090));
        assert_eq!(file.supervision, Supervision::default());
        assert!(file.services["identity"].enabled);
        assert!(!file.services["analytics"].enabled);
        let said = |key: &str| file.warnings.iter().any(|warning| warning.contains(key));
        let identity = &file.services["identity"];
        assert_eq!((identity.port, identity.instances), (Some(8081), None));
        assert_eq!(identity.unix_socket, Some("/tmp/blackhole-identity.sock".into()));
        assert_eq!(identity.restart_policy, Some(RestartWhen::Always));
        assert_eq!(identity.resources.memory_bytes, Some(512 << 20));
        assert_eq!(identity.resources.cpu_percent, Some(100));
        assert_eq!(identity.part["resources"]["memory"], "512MB");
        for key in ["listenAddrs", "services.storage", "wsPort", "tracingEndpoint"] {
            assert!(said(key), "{key}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_line_and_key() {
        let text = "node:\n  dataDirr: /x\napi:\n  httpPort: 9090\n  grpcPort: 9090\n  wsPort: hello\nnetwork:\n  listenAddrs: [nonsense]\n";
        let told: Vec<String> =
            ConfigFile::parse(text).expect_err("wrong").iter().map(ToString::to_string).collect();
        let expected = [
            "line 2: node.dataDirr: unknown key; did you mean `dataDir`?",
            "line 5: api.grpcPort: port 9090 is also that of api.httpPort",
            "line 6: api.wsPort: expected a whole number, found",
            "line 8: network.listenAddrs[0]: `nonsense` is not a multiaddr",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn supervision_of_the_file_is_the_default_of_manifests_and_must_end() {
        let text = |more: &str| format!("process_management:\n  supervisor:\n    {more}\n");
        let more = "{ restart_policy: always, max_restarts: 3, restart_window: 10m }";
        let file = ConfigFile::parse(&text(more).replace("\n    {", " {")).expect("valid");
        let restart = &file.supervision.restart;
        assert_eq!((restart.when, restart.max_restarts), (RestartWhen::Always, 3));
        assert!(file.warnings.is_empty(), "{:?}", file.warnings);
        let told = ConfigFile::parse(&text("max_restarts: 50")).expect_err("for ever");
        assert!(told[0].to_string().contains("would be started for ever"), "{told:?}");
    }

    #[test]
    fn health_checks_of_one_service_are_its_own() {
        let text = "process_management: { health_checks: { interval: 7s, timeout: 2s } }\n\
                    services: { identity: { health_checks: { interval: 1s, unhealthy_threshold: 9 } } }\n";
        let file = ConfigFile::parse(text).expect("valid");
        assert_eq!(file.supervision.health_interval, Duration::from_secs(7));
        let own = &file.services["identity"].health;
        assert_eq!((own.interval, own.timeout), (Some(Duration::from_secs(1)), None));
        assert_eq!(own.threshold, Some(9));
    }

    #[test]
    fn what_plugins_are_handed_is_a_map_by_name_and_services_have_theirs_elsewhere() {
        let text = "plugins: { config: { kv: { depth: 3, deep: { on: true } } } }\n";
        let file = ConfigFile::parse(text).expect("valid");
        let part = serde_json::Value::Object(file.parts["kv"].clone());
        assert_eq!(part, serde_json::json!({"depth": 3, "deep": {"on": true}}));
        let text = "plugins:\n  config:\n    kv: fast\n    identity: {}\n    No Name: {}\n";
        let told = ConfigFile::parse(text).expect_err("wrong");
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let expected = [
            "line 3: plugins.config.kv: expected a map",
            "line 4: plugins.config.identity: it is a service of the node: say it in services.identity",
            "line 5: plugins.config.No Name: `No Name` is not a plugin name",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn groups_name_their_members_once() {
        let text = "groups:\n  shop:\n    strategy: rest-for-one\n    members: [kv, web]\n    resources: { memory: 1GB }\n";
        let file = ConfigFile::parse(text).expect("valid");
        let shop = &file.groups["shop"];
        assert_eq!(shop.strategy, plugin_host::Strategy::RestForOne);
        assert_eq!(shop.members, ["kv", "web"]);
        assert_eq!(shop.resources.memory_bytes, Some(1 << 30));
        let twice = format!("{text}  other:\n    members: [web]\n");
        let told = ConfigFile::parse(&twice).expect_err("twice");
        assert!(told[0].to_string().contains("web is in group shop already"), "{told:?}");
    }

    #[test]
    fn an_empty_file_is_a_file() {
        assert!(ConfigFile::parse("").is_ok());
        assert!(ConfigFile::parse("# nothing\n").is_ok());
    }
}
