//! Who may import whom. A new edge is a decision: change the table here and the picture in
//! `ARCHITECTURE.md` together, with the reason in an ADR.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree;

/// For each package what it may import of the others. `blackhole-` is left out of the names.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("launcher", &[]),
    ("link", &["protocol"]),
    ("dht-registry", &["protocol"]),
    ("router", &["protocol"]),
    ("gateway", &["protocol", "link"]),
    ("cli", &["protocol"]),
    ("sdk", &["protocol", "link"]),
    ("plugin-host", &["protocol", "link", "launcher"]),
    ("peer", &["protocol", "dht-registry", "link"]),
    ("bootstrap", &["protocol", "peer"]),
    (
        "node",
        &[
            "protocol",
            "link",
            "dht-registry",
            "plugin-host",
            "launcher",
            "peer",
            "router",
            "gateway",
            "bootstrap",
            "cli",
            // Built-in services are plugins like any other.
            "sdk",
        ],
    ),
    ("plugins", &["sdk", "protocol"]),
    ("testnet", &["protocol", "dht-registry", "router", "node", "bootstrap", "plugins"]),
    ("tests", &["protocol", "dht-registry", "router", "testnet", "plugins", "sdk"]),
    ("bench", &["protocol", "link", "testnet", "plugins", "sdk"]),
    ("xtask", &[]),
];

/// Packages of others that only these rooms may import, and why.
const CONFINED: &[(&str, &[&str], &str)] = &[
    // The benchmark measures the library by itself, beside the product.
    ("libp2p", &["peer", "bench"], "libp2p types never leave node/peer"),
    ("rocksdb", &["node"], "the store is behind protocol::ports::Store"),
    ("tokio", NOT_PURE, "deciders neither wait nor spawn: time is an argument"),
    ("clap", &["node", "cli", "bootstrap", "testnet", "bench", "xtask"], "only doors read flags"),
];

/// Every package but those that only decide.
const NOT_PURE: &[&str] = &[
    "link",
    "plugin-host",
    "peer",
    "router",
    "gateway",
    "bootstrap",
    "node",
    "cli",
    "sdk",
    "plugins",
    "testnet",
    "tests",
    "bench",
];

fn short(name: &str) -> &str {
    name.strip_prefix("blackhole-").unwrap_or(name)
}

/// What each package imports, tests and build scripts excepted where `dev` is false.
fn imports(dev: bool) -> BTreeMap<String, BTreeSet<String>> {
    let packages = tree::packages();
    let of = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().expect("a list").clone();
        let counted = all.into_iter().filter(|dep| dev || dep["kind"] != "dev");
        counted.map(|dep| short(dep["name"].as_str().expect("a name")).to_owned()).collect()
    };
    let name =
        |package: &serde_json::Value| short(package["name"].as_str().expect("a name")).into();
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn rooms_open_only_into_the_rooms_the_plan_allows() {
    let imports = imports(true);
    let plan: BTreeMap<&str, BTreeSet<&str>> =
        MAY_IMPORT.iter().map(|(room, may)| (*room, may.iter().copied().collect())).collect();
    let rooms: BTreeSet<&str> = imports.keys().map(String::as_str).collect();
    assert_eq!(rooms, plan.keys().copied().collect(), "every package is in the plan, and no other");
    let mut forbidden = Vec::new();
    for (room, imported) in &imports {
        for other in imported.iter().filter(|other| rooms.contains(other.as_str())) {
            if !plan[room.as_str()].contains(other.as_str()) {
                forbidden.push(format!("{room} imports {other}"));
            }
        }
    }
    assert!(forbidden.is_empty(), "edges that are not in the plan: {forbidden:#?}");
}

#[test]
fn what_is_confined_to_a_room_stays_there() {
    let mut strays = Vec::new();
    for (room, imported) in imports(false) {
        for (name, rooms, reason) in CONFINED {
            if imported.contains(*name) && !rooms.contains(&room.as_str()) {
                strays.push(format!("{room} imports {name}: {reason}"));
            }
        }
    }
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn every_version_is_written_once_in_the_workspace() {
    let mut own_versions = Vec::new();
    for package in tree::packages() {
        let dir = tree::directory_of(&package);
        let text = tree::read(&format!("{dir}/Cargo.toml"));
        let mut in_dependencies = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies && line.contains('=') && !line.starts_with('#') {
                let inherited = line.contains("workspace = true");
                if !inherited {
                    own_versions.push(format!("{dir}/Cargo.toml: {line}"));
                }
            }
        }
    }
    assert!(
        own_versions.is_empty(),
        "versions outside [workspace.dependencies]: {own_versions:#?}"
    );
}

#[test]
fn tests_bring_no_features_into_what_is_built_for_use() {
    let (used, tested) = (tree::built("no-dev"), tree::built("normal,build,dev"));
    assert!(used.len() > 100, "cargo tells of {}", used.len());
    // Whatever is built twice makes `make run` after `make test` take minutes, and is not what the
    // tests have seen.
    let other: Vec<_> = used.difference(&tested).collect();
    assert!(other.is_empty(), "with other features while there are tests: {other:#?}");
}
