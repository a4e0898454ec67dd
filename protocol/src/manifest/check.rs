//! From tree to manifest: each field's grammar, then the rules between fields.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::{
    Category, Defaults, Dependency, Health, Interface, Isolation, Labels, Listen, Manifest,
    ManifestError, Permission, PluginName, Resources, Restart, RestartWhen, RestartWish,
    Statefulness, permission::is_reserved_variable,
};
use crate::{
    document::{self, Fields, Mistakes, Node, Value},
    service::ServiceName,
};

/// Entries of any list or map of a manifest: more is a mistake, not a need.
const ENTRIES_MAX: usize = 64;
/// Bytes of a sentence or path.
const TEXT_BYTES_MAX: usize = 1_024;
/// Bytes of a word: a capability, a label, a platform.
const WORD_BYTES_MAX: usize = 64;
/// Bytes of one environment value or argument.
const VALUE_BYTES_MAX: usize = 8 * 1_024;

const START_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;
const STOP_GRACE: RangeInclusive<Duration> = Duration::ZERO..=HOUR;
const PROBE: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(10)..=Restart::DELAY_MAX;
const INSTANCES: RangeInclusive<i64> = 1..=1_000;
const HOUR: Duration = Duration::from_hours(1);

pub(super) fn manifest(text: &str, defaults: &Defaults) -> Result<Manifest, ManifestError> {
    let mut mistakes = Mistakes::default();
    let node =
        document::parse(text).map_err(|mistake| ManifestError { mistakes: vec![mistake] })?;
    if node.value == Value::Null {
        return Err(ManifestError::whole("is empty; at least `name` and `version` are needed"));
    }
    let manifest = mistakes.map(node, "").and_then(|fields| whole(fields, defaults, &mut mistakes));
    let mistakes = mistakes.into_sorted();
    match manifest {
        Some(manifest) if mistakes.is_empty() => Ok(manifest),
        _ => Err(ManifestError { mistakes }),
    }
}

fn whole(mut fields: Fields, defaults: &Defaults, mistakes: &mut Mistakes) -> Option<Manifest> {
    let name = fields.require("name", mistakes, "a plugin needs a name, such as `echo`").and_then(
        |(node, at)| mistakes.parsed(&node, &at, TEXT_BYTES_MAX, str::parse::<PluginName>),
    );
    let version = fields
        .require("version", mistakes, "a plugin needs a version, such as `1.0.0`")
        .and_then(|(node, at)| version(&node, &at, mistakes));
    let text = |key, fields: &mut Fields, mistakes: &mut Mistakes| {
        let found = fields.take(key);
        found.and_then(|(node, at)| mistakes.text(&node, &at, TEXT_BYTES_MAX)).unwrap_or_default()
    };
    let description = text("description", &mut fields, mistakes);
    let author = text("author", &mut fields, mistakes);
    let license = text("license", &mut fields, mistakes);

    // Everything is read before anything is given up, so that all mistakes are seen at once.
    let mut manifest = Manifest::new(placeholder_name(), semver::Version::new(0, 0, 0));
    manifest.description = description;
    manifest.author = author;
    manifest.license = license;
    about_itself(&mut manifest, &mut fields, mistakes);
    how_it_runs(&mut manifest, &mut fields, defaults, mistakes);
    fields.finish(mistakes);

    manifest.name = name?;
    manifest.version = version?;
    Some(manifest)
}

fn placeholder_name() -> PluginName {
    PluginName("unnamed".into())
}

fn about_itself(manifest: &mut Manifest, fields: &mut Fields, mistakes: &mut Mistakes) {
    manifest.capabilities =
        words(fields.take("capabilities"), mistakes, |word| check_word(word, "capability"));
    manifest.permissions = words(fields.take("permissions"), mistakes, |text| {
        text.parse::<Permission>().map_err(|error| error.to_string())
    });
    if let Some((node, at)) = fields.take("resources") {
        manifest.resources = resources(node, &at, mistakes);
    }
    if let Some((node, at)) = fields.take("isolation") {
        manifest.isolation =
            mistakes.choice(&node, &at, &Isolation::NAMES).unwrap_or(manifest.isolation);
    }
    if let Some((node, at)) = fields.take("dependencies") {
        for node in mistakes.list(node, &at, ENTRIES_MAX) {
            manifest.dependencies.extend(dependency(node, &at, mistakes));
        }
    }
    if let Some((node, at)) = fields.take("interface") {
        manifest.interface = interface(node, &at, mistakes);
    }
    manifest.platforms = words(fields.take("platforms"), mistakes, platform);
    if let Some((node, at)) = fields.take("category") {
        manifest.category = mistakes.choice(
            &node,
            &at,
            &[
                ("core", Category::Core),
                ("communication", Category::Communication),
                ("storage", Category::Storage),
                ("compute", Category::Compute),
                ("integration", Category::Integration),
                ("application", Category::Application),
            ],
        );
    }
    if let Some((node, at)) = fields.take("state") {
        let choices =
            [("stateless", Statefulness::Stateless), ("stateful", Statefulness::Stateful)];
        manifest.state = mistakes.choice(&node, &at, &choices).unwrap_or_default();
    }
    if let Some((node, at)) = fields.take("labels") {
        manifest.labels = labels(node, &at, mistakes);
    }
}

fn how_it_runs(
    manifest: &mut Manifest,
    fields: &mut Fields,
    defaults: &Defaults,
    mistakes: &mut Mistakes,
) {
    if let Some((node, at)) = fields.take("entrypoint") {
        manifest.entrypoint = entrypoint(node, &at, mistakes);
    }
    if let Some((node, at)) = fields.take("args") {
        manifest.args = arguments(node, &at, mistakes);
    }
    if let Some((node, at)) = fields.take("env") {
        manifest.env = environment(node, &at, mistakes);
    }
    if let Some((node, at)) = fields.take("config") {
        match node.to_json() {
            serde_json::Value::Object(config) => manifest.config = Some(config),
            _ => mistakes.expected(&node, &at, "a map"),
        }
    }
    if let Some((node, at)) = fields.take("listen") {
        manifest.listen =
            mistakes.parsed(&node, &at, WORD_BYTES_MAX, str::parse::<Listen>).unwrap_or_default();
    }
    if let Some((node, at)) = fields.take("health") {
        manifest.health = health(node, &at, mistakes);
    }
    let mut duration = |key, range, mistakes: &mut Mistakes| {
        fields.take(key).and_then(|(node, at)| mistakes.duration(&node, &at, range))
    };
    manifest.start_timeout = duration("start_timeout", START_TIMEOUT, mistakes);
    manifest.stop_grace = duration("stop_grace", STOP_GRACE, mistakes);
    let start_timeout = manifest.start_timeout.unwrap_or(defaults.start_timeout);
    let found = fields.take("restart");
    let line = found.as_ref().map_or(0, |(node, _)| node.line);
    if let Some((node, at)) = found {
        manifest.restart = restart(node, &at, mistakes);
    }
    let whole = Defaults { start_timeout, restart: manifest.restart.over(&defaults.restart) };
    restarts_end(whole, line, mistakes);
    if let Some((node, at)) = fields.take("instances") {
        manifest.instances = mistakes.integer(&node, &at, INSTANCES).map(|count| count as u32);
    }
    if let Some((node, at)) = fields.take("group") {
        manifest.group = mistakes.parsed(&node, &at, TEXT_BYTES_MAX, str::parse::<PluginName>);
    }
}

/// The rule between delays, start timeouts and the window.
fn restarts_end(policy: Defaults, line: u64, mistakes: &mut Mistakes) {
    let Err(needed) = policy.give_up() else { return };
    let Defaults { start_timeout, restart } = policy;
    let count = restart.max_restarts;
    mistakes.note(
        line,
        "restart",
        format!(
            "a plugin that cannot start would be started for ever: {count} delays and {count} \
             start timeouts of {start_timeout:?} take up to {needed:?}, which must be below the \
             window of {:?}; shorten backoff, start_timeout or max_restarts, or lengthen window",
            restart.window
        ),
    );
}

fn version(node: &Node, at: &str, mistakes: &mut Mistakes) -> Option<semver::Version> {
    if matches!(node.value, Value::Float(_) | Value::Integer(_)) {
        mistakes.note(node.line, at, "three numbers are needed, such as 1.0.0");
        return None;
    }
    mistakes.parsed(node, at, WORD_BYTES_MAX, |text| {
        semver::Version::parse(text)
            .map_err(|error| format!("`{text}` is not a version such as 1.0.0: {error}"))
    })
}

/// A list of texts, each understood by `parse`.
fn words<T>(
    found: Option<(Node, String)>,
    mistakes: &mut Mistakes,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some((node, at)) = found else { return Vec::new() };
    let nodes = mistakes.list(node, &at, ENTRIES_MAX);
    nodes.iter().filter_map(|node| mistakes.parsed(node, &at, TEXT_BYTES_MAX, &parse)).collect()
}

fn check_word(text: &str, what: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if text.len() <= WORD_BYTES_MAX && text.bytes().all(plain) {
        Ok(text.into())
    } else {
        Err(format!(
            "`{}` is not a {what}: up to {WORD_BYTES_MAX} letters, digits and - _ . /",
            text.chars().take(WORD_BYTES_MAX).collect::<String>()
        ))
    }
}

fn platform(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((system, machine)) if !system.is_empty() && !machine.is_empty() => {
            check_word(text, "platform")
        }
        _ => Err(format!("`{text}` is not a platform such as linux/amd64")),
    }
}

fn resources(node: Node, at: &str, mistakes: &mut Mistakes) -> Resources {
    let Some(mut fields) = mistakes.map(node, at) else { return Resources::default() };
    let resources = Resources {
        // 1,024 cores.
        cpu_percent: count(&mut fields, "cpu", 102_400, mistakes).map(|percent| percent as u32),
        cpu_guaranteed: count(&mut fields, "cpu_guaranteed", 102_400, mistakes)
            .map(|percent| percent as u32),
        cpu_cores: count(&mut fields, "cpu_cores", 1_024, mistakes).map(|cores| cores as u32),
        cpu_seconds: count(&mut fields, "cpu_seconds", 1 << 32, mistakes),
        memory_bytes: megabytes(&mut fields, "memory", mistakes),
        files_max: count(&mut fields, "max_files", 1 << 20, mistakes),
        file_size_bytes: megabytes(&mut fields, "file_size", mistakes),
        processes_max: count(&mut fields, "processes", 1 << 20, mistakes),
        disk_bytes: megabytes(&mut fields, "disk", mistakes),
        disk_bandwidth: megabytes(&mut fields, "disk_bandwidth", mistakes),
        network_bandwidth: megabytes(&mut fields, "network_bandwidth", mistakes),
    };
    fields.finish(mistakes);
    resources
}

fn count(
    fields: &mut Fields,
    key: &'static str,
    most: i64,
    mistakes: &mut Mistakes,
) -> Option<u64> {
    let (node, at) = fields.take(key)?;
    mistakes.integer(&node, &at, 1..=most).map(|count| count as u64)
}

/// A number of megabytes, as paper 003 has it, or a size with its unit, as paper 004 has it.
fn megabytes(fields: &mut Fields, key: &'static str, mistakes: &mut Mistakes) -> Option<u64> {
    /// 64 TiB.
    const MOST: i64 = 64 << 20;
    let (node, at) = fields.take(key)?;
    if matches!(node.value, Value::Text(_)) {
        let bytes = mistakes.size(&node, &at)?;
        if bytes == 0 || bytes > (MOST as u64) << 20 {
            mistakes.note(node.line, &at, "a size from 1 byte to 64 TiB is needed");
            return None;
        }
        return Some(bytes);
    }
    mistakes.integer(&node, &at, 1..=MOST).map(|mb| (mb as u64) << 20)
}

/// `NAME`, `NAME REQUIREMENT`, or a map of both.
fn dependency(node: Node, at: &str, mistakes: &mut Mistakes) -> Option<Dependency> {
    if !matches!(node.value, Value::Map(_)) {
        return mistakes.parsed(&node, at, TEXT_BYTES_MAX, |text| {
            let (name, version) = text.trim().split_once(' ').unwrap_or((text.trim(), "*"));
            depends_on(name, version)
        });
    }
    let mut fields = mistakes.map(node, at)?;
    let name = fields.require("name", mistakes, "which plugin?");
    let name = name.and_then(|(node, at)| mistakes.text(&node, &at, TEXT_BYTES_MAX));
    let found = fields.take("version");
    let line = found.as_ref().map_or(0, |(node, _)| node.line);
    let version = found.and_then(|(node, at)| mistakes.text(&node, &at, TEXT_BYTES_MAX));
    fields.finish(mistakes);
    let dependency = depends_on(&name?, version.as_deref().unwrap_or("*"));
    dependency.map_err(|reason| mistakes.note(line, at, reason)).ok()
}

fn depends_on(name: &str, version: &str) -> Result<Dependency, String> {
    let name = name.parse::<PluginName>().map_err(|error| error.to_string())?;
    let version = semver::VersionReq::parse(version.trim())
        .map_err(|error| format!("`{version}` is not a version range such as >=1.2: {error}"))?;
    Ok(Dependency { name, version })
}

fn interface(node: Node, at: &str, mistakes: &mut Mistakes) -> Interface {
    let Some(mut fields) = mistakes.map(node, at) else { return Interface::default() };
    let services = words(fields.take("services"), mistakes, |text| {
        text.parse::<ServiceName>().map_err(|error| error.to_string())
    });
    let descriptors = fields.take("descriptors").and_then(|(node, at)| {
        mistakes.parsed(&node, &at, TEXT_BYTES_MAX, |text| inside(text).map(|()| text.to_owned()))
    });
    fields.finish(mistakes);
    Interface { services, descriptors }
}

/// Files of a package stay in the package.
fn inside(path: &str) -> Result<(), String> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("`{path}` must stay within the plugin's directory"));
    }
    Ok(())
}

fn entrypoint(node: Node, at: &str, mistakes: &mut Mistakes) -> Option<Vec<String>> {
    if matches!(node.value, Value::Text(_)) {
        return mistakes.text(&node, at, TEXT_BYTES_MAX).map(|program| vec![program]);
    }
    let line = node.line;
    let argv = arguments(node, at, mistakes);
    if argv.is_empty() {
        mistakes.note(line, at, "needs at least the program");
        return None;
    }
    Some(argv)
}

fn arguments(node: Node, at: &str, mistakes: &mut Mistakes) -> Vec<String> {
    let nodes = mistakes.list(node, at, ENTRIES_MAX);
    nodes.iter().filter_map(|node| scalar(node, at, mistakes)).collect()
}

/// A text, or a number or boolean as people write arguments: `--port 80`.
fn scalar(node: &Node, at: &str, mistakes: &mut Mistakes) -> Option<String> {
    match node.value {
        Value::Integer(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => {
            let text = mistakes.text(node, at, VALUE_BYTES_MAX)?;
            if text.contains('\n') {
                mistakes.note(node.line, at, "must be one line");
                return None;
            }
            Some(text)
        }
    }
}

fn environment(node: Node, at: &str, mistakes: &mut Mistakes) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for (key, node) in entries(node, at, mistakes) {
        let name = &key.text;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let begins = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !begins || name.len() > WORD_BYTES_MAX || !name.bytes().all(plain) {
            mistakes.note(key.line, at, format!("`{}` is not a variable's name", short(name)));
        } else if is_reserved_variable(name) {
            mistakes.note(key.line, at, format!("`{name}` is set by the host alone"));
        } else if node.value == Value::Text(String::new()) {
            environment.insert(name.clone(), String::new());
        } else if let Some(value) = scalar(&node, &format!("{at}.{name}"), mistakes) {
            environment.insert(name.clone(), value);
        }
    }
    environment
}

fn labels(node: Node, at: &str, mistakes: &mut Mistakes) -> Labels {
    let mut labels = Labels::new();
    for (key, node) in entries(node, at, mistakes) {
        if let Err(reason) = check_word(&key.text, "label") {
            mistakes.note(key.line, at, reason);
        } else if let Some(value) = scalar(&node, &format!("{at}.{}", key.text), mistakes) {
            if value.len() > WORD_BYTES_MAX {
                mistakes.note(node.line, at, format!("at most {WORD_BYTES_MAX} bytes per label"));
            } else {
                labels.insert(key.text, value);
            }
        }
    }
    labels
}

fn entries(node: Node, at: &str, mistakes: &mut Mistakes) -> Vec<(document::Key, Node)> {
    let line = node.line;
    let entries = mistakes.map(node, at).map(Fields::into_entries).unwrap_or_default();
    if entries.len() > ENTRIES_MAX {
        let reason = format!("at most {ENTRIES_MAX} entries, found {}", entries.len());
        mistakes.note(line, at, reason);
        return Vec::new();
    }
    entries
}

fn short(text: &str) -> String {
    text.chars().take(WORD_BYTES_MAX).collect()
}

/// `off`, or a map.
fn health(node: Node, at: &str, mistakes: &mut Mistakes) -> Health {
    if node.value == Value::Text("off".into()) {
        return Health { off: true, ..Health::default() };
    }
    if !matches!(node.value, Value::Map(_)) {
        mistakes.note(
            node.line,
            at,
            "expected `off`, or a map of service, interval, timeout and threshold",
        );
        return Health::default();
    }
    let Some(mut fields) = mistakes.map(node, at) else { return Health::default() };
    let service = fields.take("service").and_then(|(node, at)| {
        mistakes.parsed(&node, &at, TEXT_BYTES_MAX, |text| {
            text.parse::<ServiceName>().map(|name| name.as_str().to_owned())
        })
    });
    let mut duration = |key, mistakes: &mut Mistakes| {
        fields.take(key).and_then(|(node, at)| mistakes.duration(&node, &at, PROBE))
    };
    let interval = duration("interval", mistakes);
    let timeout = duration("timeout", mistakes);
    let threshold = fields
        .take("threshold")
        .and_then(|(node, at)| mistakes.integer(&node, &at, 1..=100))
        .map(|count| count as u32);
    fields.finish(mistakes);
    Health { off: false, service: service.unwrap_or_default(), interval, timeout, threshold }
}

fn restart(node: Node, at: &str, mistakes: &mut Mistakes) -> RestartWish {
    let mut restart = RestartWish::default();
    let Some(mut fields) = mistakes.map(node, at) else { return restart };
    if let Some((node, at)) = fields.take("policy") {
        let choices = [
            ("always", RestartWhen::Always),
            ("on_failure", RestartWhen::OnFailure),
            ("never", RestartWhen::Never),
        ];
        restart.when = mistakes.choice(&node, &at, &choices);
    }
    if let Some((node, at)) = fields.take("max_restarts") {
        let count = mistakes.integer(&node, &at, 0..=1_000);
        restart.max_restarts = count.map(|count| count as u32);
    }
    if let Some((node, at)) = fields.take("window") {
        restart.window = mistakes.duration(&node, &at, WINDOW);
    }
    if let Some((node, at)) = fields.take("backoff") {
        restart.backoff = mistakes.duration(&node, &at, BACKOFF);
    }
    fields.finish(mistakes);
    restart
}
