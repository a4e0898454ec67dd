//! `ARCHITECTURE.md` shows the house as it stands: everything that exists and nothing that does
//! not.

use std::{collections::BTreeSet, fs};

use crate::tree;

/// Top-level directories that hold no part of the product.
const NOT_ROOMS: [&str; 1] = ["target"];

/// Every path in backticks that ends in `/`: this is how the map names a directory.
fn named_directories(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|word| word.ends_with('/') && !word.contains(char::is_whitespace));
    paths
        .filter(|path| !path.starts_with('/'))
        .map(|p| p.trim_end_matches('/').to_owned())
        .collect()
}

#[test]
fn the_map_names_every_package_and_every_directory_at_the_top() {
    let named = named_directories(&tree::read("ARCHITECTURE.md"));
    let packages = tree::packages().iter().map(tree::directory_of).collect::<BTreeSet<_>>();
    let top = fs::read_dir(tree::root()).expect("the root").flatten();
    let top = top.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let top = top.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let top = top.filter(|name| !name.starts_with('.') && !NOT_ROOMS.contains(&name.as_str()));
    // `sdk` is named by naming `sdk/rust`.
    let is_named = |path: &String| {
        named.iter().any(|name| name == path || name.starts_with(&format!("{path}/")))
    };
    let missing: Vec<String> =
        packages.into_iter().chain(top).filter(|path| !is_named(path)).collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md (written as `path/`): {missing:?}");
}

#[test]
fn the_map_names_nothing_that_does_not_exist() {
    let named = named_directories(&tree::read("ARCHITECTURE.md"));
    // In a package's own paragraph its directories are named from there: `proto` in `protocol`.
    let mut bases: Vec<String> = tree::packages().iter().map(tree::directory_of).collect();
    bases.push(String::new());
    let exists = |path: &str| bases.iter().any(|base| tree::root().join(base).join(path).is_dir());
    let absent: Vec<&String> = named.iter().filter(|path| !exists(path)).collect();
    assert!(absent.is_empty(), "in ARCHITECTURE.md but not in the tree: {absent:?}");
}
