//! What is built in: versions with known holes are banned in `deny.toml`, and the lock file keeps
//! to the bans even where `cargo deny` is not installed.

use crate::tree;

/// The lowest version of each package that has no known hole, as `deny.toml` must say it. The
/// public advisory database does not list all of them.
const FLOORS: [(&str, &str); 11] = [
    ("libp2p-gossipsub", "0.50.1"),
    ("yamux", "0.13.10"),
    ("libp2p-quic", "0.13.1"),
    ("libp2p-rendezvous", "0.17.1"),
    ("libp2p-relay", "0.22.0"),
    ("quinn-proto", "0.11.15"),
    ("h2", "0.4.16"),
    ("tonic", "0.12.3"),
    ("rustls-webpki", "0.103.13"),
    ("tar", "0.4.45"),
    ("hickory-proto", "0.26.1"),
];

/// Every `(name, version)` of the lock file.
fn locked() -> Vec<(String, String)> {
    let text = tree::read("Cargo.lock");
    let value = |line: Option<&str>, key: &str| {
        Some(line?.strip_prefix(key)?.trim_matches(['"', ' ', '=']).to_owned())
    };
    let packages = text.split("[[package]]").skip(1).map(|entry| {
        let mut lines = entry.trim().lines();
        Some((value(lines.next(), "name")?, value(lines.next(), "version")?))
    });
    packages.collect::<Option<Vec<_>>>().expect("a lock file as cargo writes it")
}

/// A version as numbers; what follows them (`-rc.1`, `+1.2`) is left out.
fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    plain.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[test]
fn deny_toml_bans_what_has_known_holes() {
    let text = tree::read("deny.toml").replace(' ', "");
    let missing: Vec<String> = FLOORS
        .iter()
        .map(|(name, floor)| format!("{name}@<{floor}"))
        .filter(|ban| !text.contains(ban.as_str()))
        .collect();
    assert!(missing.is_empty(), "not banned in deny.toml: {missing:?}");
}

#[test]
fn nothing_below_the_floors_is_built_in() {
    let mut below = Vec::new();
    for (name, version) in locked() {
        let floor = FLOORS.iter().find(|(floored, _)| *floored == name);
        if let Some((_, floor)) = floor
            && numbers(&version) < numbers(floor)
        {
            below.push(format!("{name} {version}, wanted {floor}"));
        }
    }
    assert!(below.is_empty(), "{below:?}");
}

#[test]
fn everything_comes_from_the_one_registry() {
    let strays: Vec<String> = tree::read("Cargo.lock")
        .lines()
        .filter_map(|line| line.strip_prefix("source = "))
        .filter(|source| !source.contains("github.com/rust-lang/crates.io-index"))
        .map(str::to_owned)
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
