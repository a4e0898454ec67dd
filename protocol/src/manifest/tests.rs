use proptest::prelude::*;

use super::*;

/// Paper 003, *Plugin Manifest*, word for word.
const PAPERS_ECHO: &str = r"name: echo
version: 1.0.0
description: Simple echo plugin for testing
author: Blackhole Team
license: MIT

capabilities:
  - computation

permissions:
  - network

resources:
  cpu: 50      # 50% of one core
  memory: 100  # 100MB
  
isolation: process

dependencies: []
";

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text.as_bytes(), &Defaults::default())
}

fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(manifest) => panic!("accepted: {manifest:?}"),
        Err(error) => error.mistakes.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_papers_echo_manifest_loads_unchanged() {
    let manifest = parse(PAPERS_ECHO).expect("the paper's own");
    assert_eq!(manifest.name.as_str(), "echo");
    assert_eq!(manifest.version, semver::Version::new(1, 0, 0));
    assert_eq!(manifest.license, "MIT");
    assert_eq!(manifest.capabilities, ["computation"]);
    assert_eq!(manifest.permissions, [Permission::Network(permission::NetworkRule::ANY)]);
    assert_eq!(manifest.resources.cpu_percent, Some(50));
    assert_eq!(manifest.resources.memory_bytes, Some(100 << 20));
    assert_eq!(manifest.isolation, Isolation::Process);
    assert!(manifest.dependencies.is_empty());
    assert_eq!(manifest.entrypoint, None);
    assert_eq!(manifest.listen, Listen::Unix);
}

#[test]
fn every_optional_key_is_read() {
    let manifest = parse(
        r#"
name: counter
version: 2.1.0-beta.1
permissions: [network:example.org:443, read:/srv/models, "call:*"]
resources: { max_files: 64, file_size: 10, processes: 32, cpu_guaranteed: 50 }
dependencies:
  - storage >=1.2, <3
  - name: identity
    version: ^1
entrypoint: [bin/counter, --fast]
args: [--level, 3]
env: { MODE: quick, EMPTY: "", N: 5 }
config: { depth: 3, paths: [a, b], deep: { on: true } }
interface:
  services: [demo.v1.Counter]
  descriptors: counter.binpb
platforms: [linux/amd64, linux/arm64]
category: compute
state: stateful
listen: tcp:50051
health: { service: demo.v1.Counter, interval: 5s, timeout: 500ms, threshold: 2 }
start_timeout: 20s
stop_grace: 1m
restart: { policy: always, max_restarts: 3, window: 2m, backoff: 200ms }
labels: { region: eu, tier: 2 }
"#,
    )
    .expect("valid");
    assert_eq!(manifest.permissions.len(), 3);
    assert_eq!(manifest.resources.files_max, Some(64));
    assert_eq!(manifest.resources.cpu_guaranteed, Some(50));
    assert_eq!(manifest.dependencies[0].version.to_string(), ">=1.2, <3");
    assert_eq!(manifest.entrypoint, Some(vec!["bin/counter".into(), "--fast".into()]));
    assert_eq!(manifest.args, ["--level", "3"]);
    assert_eq!(manifest.env["N"], "5");
    assert_eq!(manifest.env["EMPTY"], "");
    let config = serde_json::Value::Object(manifest.config.expect("given"));
    assert_eq!(config, serde_json::json!({"depth": 3, "paths": ["a", "b"], "deep": {"on": true}}));
    assert_eq!(manifest.interface.services[0].as_str(), "demo.v1.Counter");
    assert_eq!(manifest.category, Some(Category::Compute));
    assert_eq!(manifest.state, Statefulness::Stateful);
    assert_eq!(manifest.listen, Listen::Tcp(50_051));
    assert_eq!(manifest.health.timeout, Some(Duration::from_millis(500)));
    assert_eq!(manifest.stop_grace, Some(Duration::from_mins(1)));
    assert_eq!(manifest.restart.when, Some(RestartWhen::Always));
    assert_eq!(manifest.labels["tier"], "2");
}

#[test]
fn ways_to_listen_are_read_as_they_are_written() {
    for text in ["unix", "fd", "tcp:1", "tls:65535"] {
        assert_eq!(text.parse::<Listen>().expect(text).to_string(), text);
    }
    for text in ["tls", "tls:0", "tls:65536", "tcp:", "udp:5", "tls:5:5", ""] {
        let told = text.parse::<Listen>().expect_err(text).to_string();
        assert!(told.contains("tcp:PORT or tls:PORT"), "{told}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_each_with_field_line_and_reason() {
    let found = mistakes(
        "name: Echo Plugin
version: 1.0
permission:
  - network
resources:
  cpu: 0
  memory: lots
isolation: magic
health: 5
labels: [a]
config: fast
",
    );
    let expected = [
        "line 1: name: `Echo Plugin` is not a plugin name",
        "line 2: version: three numbers are needed",
        "line 3: permission: unknown key; did you mean `permissions`?",
        "line 6: resources.cpu: must be 1 to 102400, found 0",
        "line 7: resources.memory: expected a size such as 512MB or 2GB, found the text `lots`",
        "line 8: isolation: expected one of none, thread, wasm, process, container, vm",
        "line 9: health: expected `off`",
        "line 10: labels: expected a map, found a list",
        "line 11: config: expected a map, found the text `fast`",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n  does not begin with\n{expected}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let found = mistakes("description: nothing else\n");
    assert!(found[0].starts_with("name: is missing"), "{found:?}");
    assert!(found[1].starts_with("version: is missing"), "{found:?}");
    assert!(mistakes("")[0].contains("is empty"));
    assert!(mistakes("- a\n")[0].contains("expected a map, found a list"));
}

#[test]
fn a_restart_rule_that_would_never_give_up_is_refused() {
    // The papers' rule with a first delay of ten seconds: 10 + 20 + 40 + 60 + 60 seconds of
    // delays and 150 of start timeouts never fit into 300.
    let found = mistakes("name: a\nversion: 1.0.0\nrestart:\n  backoff: 10s\n");
    assert!(found[0].contains("would be started for ever"), "{found:?}");
    assert!(
        found[0].starts_with("line 4: restart: ") || found[0].starts_with("line 3"),
        "{found:?}"
    );
    parse("name: a\nversion: 1.0.0\nrestart: { backoff: 10s, policy: never }\n").expect("never");
    parse("name: a\nversion: 1.0.0\nrestart: { backoff: 10s }\nstart_timeout: 20s\n")
        .expect("190 + 100 < 300");
    mistakes("name: a\nversion: 1.0.0\nstart_timeout: 1m\n");
}

#[test]
fn where_the_manifest_is_silent_the_hosts_restarts_count_and_the_rule_holds_for_both() {
    let restart = Restart { max_restarts: 8, window: Duration::from_mins(5), ..Restart::default() };
    let defaults = Defaults { start_timeout: Duration::from_secs(30), restart };
    let text = |more: &str| format!("name: a\nversion: 1.0.0\n{more}");
    let parse = |more: &str| Manifest::parse(text(more).as_bytes(), &defaults);
    // Eight start timeouts of thirty seconds and 121 of delays do not fit into five minutes.
    assert!(parse("").is_err());
    let manifest = parse("start_timeout: 10s\n").expect("80 + 183 < 300");
    assert_eq!(manifest.restart.over(&defaults.restart).max_restarts, 8);
    let manifest = parse("restart: { max_restarts: 2 }\n").expect("few");
    let whole = manifest.restart.over(&defaults.restart);
    assert_eq!((whole.max_restarts, whole.window), (2, Duration::from_mins(5)));
}

#[test]
fn instances_and_group_have_a_grammar() {
    let manifest = parse("name: a\nversion: 1.0.0\ninstances: 3\ngroup: shop\n").expect("valid");
    assert_eq!(manifest.instances, Some(3));
    assert_eq!(manifest.group.map(|name| name.to_string()).as_deref(), Some("shop"));
    let found = mistakes("name: a\nversion: 1.0.0\ninstances: 0\ngroup: The Shop\n");
    assert!(found[0].starts_with("line 3: instances: must be 1 to 1000"), "{found:?}");
    assert!(found[1].starts_with("line 4: group: `The Shop`"), "{found:?}");
}

#[test]
fn a_package_cannot_point_outside_itself_or_set_the_hosts_variables() {
    let found = mistakes(
        "name: a\nversion: 1.0.0\ninterface:\n  descriptors: ../x\nenv:\n  LD_PRELOAD: x\n  BH_X: y\n",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[1].starts_with("line 6: env: `LD_PRELOAD` is set by the host alone"));
}

#[test]
fn a_manifest_has_a_size() {
    let text = format!("name: a\nversion: 1.0.0\n# {}\n", "x".repeat(MANIFEST_BYTES_MAX));
    assert!(mistakes(&text)[0].contains("may have 65536"));
    assert!(Manifest::parse(&[0xff, 0xfe], &Defaults::default()).is_err());
}

#[test]
fn the_corpus_of_the_fuzzer_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/manifest");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
        exercise(&std::fs::read(entry.expect("listed").path()).expect("readable"));
        files += 1;
    }
    assert!(files > 0, "the corpus is empty");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,300}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_yaml_makes_it_panic(text in "([a-z]{1,8}: ?([a-z0-9.:/-]{0,12}|\\[[a-z, ]{0,9}\\])?\n( {2}[-a-z]{1,6}: ?[a-z0-9]{0,6}\n){0,3}){0,12}") {
        let _ = parse(&format!("name: a\nversion: 1.0.0\n{text}"));
    }

    #[test]
    fn every_accepted_restart_rule_gives_up_within_its_window(
        backoff_ms in 10_u64..60_000,
        max_restarts in 0_u32..20,
        window_s in 1_u64..3_600,
        start_s in 1_u64..120,
    ) {
        let text = format!(
            "name: a\nversion: 1.0.0\nstart_timeout: {start_s}s\nrestart: {{ backoff: \
             {backoff_ms}ms, max_restarts: {max_restarts}, window: {window_s}s }}\n"
        );
        let accepted = parse(&text);
        let mut spent = Duration::ZERO;
        for streak in 0..max_restarts {
            let delay = Duration::from_millis(backoff_ms) * (1 << streak);
            spent += delay.min(Restart::DELAY_MAX) + Duration::from_secs(start_s);
        }
        prop_assert_eq!(accepted.is_ok(), spent < Duration::from_secs(window_s));
    }

    #[test]
    fn names_are_safe_as_file_names(text in "\\PC{0,60}") {
        if let Ok(name) = text.parse::<PluginName>() {
            prop_assert!(!name.as_str().contains(['/', '.', '\0']));
            prop_assert!(!name.as_str().starts_with('-'));
        }
    }
}
