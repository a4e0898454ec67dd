//! The files of the repository, as the tests of this folder read them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Directories that are not the repository's own.
const FOREIGN: [&str; 4] = ["target", "node_modules", "__pycache__", "book"];

/// The root of the repository.
pub fn root() -> PathBuf {
    testnet::binaries::repository()
}

/// `path` below the root, for messages.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The text of a file below the root.
pub fn read(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file of the repository whose name ends in `ending`. Hidden directories, except `.ci`, and
/// what programs generate are left out.
pub fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![root()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let hidden = name.starts_with('.') && name != ".ci";
            if is_dir && !hidden && !FOREIGN.contains(&name.as_str()) {
                next.push(entry.path());
            } else if !is_dir && name.ends_with(ending) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The workspace's own packages, as `cargo metadata` tells them.
pub fn packages() -> Vec<Value> {
    let output = cargo(&["metadata", "--format-version", "1", "--no-deps"]);
    let metadata: Value = serde_json::from_slice(&output).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

/// Every package that is built where edges of these kinds (`cargo tree --edges`) are followed, with
/// the features that it then has.
pub fn built(edges: &str) -> BTreeSet<String> {
    let format = ["--prefix", "none", "--format", "{p} {f}"];
    let output = cargo(&[&["tree", "--workspace", "--edges", edges], &format[..]].concat());
    let lines = String::from_utf8_lossy(&output);
    // Where a package comes again its line has this mark.
    lines.lines().map(|line| line.trim_end_matches(" (*)").trim_end().to_owned()).collect()
}

/// What cargo writes when it is asked this of the workspace.
fn cargo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args(arguments)
        .arg("--offline")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The directory of a package below the root, with `/` between its parts.
pub fn directory_of(package: &Value) -> String {
    let manifest = package["manifest_path"].as_str().expect("a path");
    relative(Path::new(manifest).parent().expect("in a directory"))
}
