//! The house rules that no compiler checks.

use std::{fs, path::PathBuf};

use crate::tree;

/// Lines of a source file before its tests. Longer ones want to be two.
const FILE_LINES_MAX: usize = 500;

/// Columns of a source line; `rustfmt` keeps to it except where it gives up. A sentence in quotes
/// may be longer: it is found by searching for it only where it is in one piece.
const LINE_COLUMNS_MAX: usize = 100;

/// Beginnings of paths that exist on one machine only. Each is written in two parts, so that this
/// file does not find itself.
const MACHINE_PATHS: [[&str; 2]; 3] = [["/root", "/.ca"], ["/work", "/"], ["/tmp/", "targets"]];

/// Where a path of that form is an example or belongs to a container.
const MACHINE_PATHS_ALLOWED_IN: [&str; 2] = ["Dockerfile", "testnet/docker"];

/// Every source file, except those that are nothing but the tests of their parent.
fn sources() -> Vec<(PathBuf, String)> {
    let files = tree::files(".rs").into_iter().filter(|path| !path.ends_with("tests.rs"));
    files.map(|path| (path.clone(), fs::read_to_string(path).expect("a text"))).collect()
}

#[test]
fn no_file_outgrows_its_room() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| !tree::relative(path).contains("/tests/"))
        .map(|(path, text)| {
            let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
            (tree::relative(path), lines)
        })
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines before its tests"))
        .collect();
    assert!(long.is_empty(), "over {FILE_LINES_MAX} lines: {long:#?}");
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(path, _)| tree::relative(path))
        .collect();
    assert!(silent.is_empty(), "without a header (`//!`): {silent:#?}");
}

#[test]
fn no_line_runs_out_of_the_page() {
    let mut wide = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let sentence = line.contains('"') || line.contains("://");
            if line.chars().count() > LINE_COLUMNS_MAX && !sentence {
                wide.push(format!("{}:{}", tree::relative(&path), number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "over {LINE_COLUMNS_MAX} columns: {wide:#?}");
}

#[test]
fn nothing_depends_on_the_machine_it_was_written_on() {
    let mut found = Vec::new();
    let endings =
        [".rs", ".toml", ".md", ".sh", ".yml", ".yaml", ".py", ".go", ".proto", "Makefile", "run"];
    for path in endings.iter().flat_map(|ending| tree::files(ending)) {
        let name = tree::relative(&path);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if MACHINE_PATHS_ALLOWED_IN.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for part in MACHINE_PATHS.map(|parts| parts.concat()) {
                // `~/work/` or `https://example.org/work/` is not a path of this machine.
                let starts = |at: usize| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~$".contains(c))
                };
                if line.match_indices(&part).any(|(at, _)| starts(at)) {
                    found.push(format!("{name}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine: {found:#?}");
}

#[test]
fn every_package_inherits_the_lints_and_the_edition() {
    let mut strays = Vec::new();
    for package in tree::packages() {
        let manifest = format!("{}/Cargo.toml", tree::directory_of(&package));
        let text = tree::read(&manifest);
        let squeezed = text.replace(' ', "");
        for wanted in
            ["[lints]\nworkspace=true", "edition.workspace=true", "license.workspace=true"]
        {
            // The launcher says itself what it may: it is the one home of what others may not.
            let own = wanted.starts_with("[lints]") && manifest.contains("launcher");
            if !own && !squeezed.contains(wanted) {
                strays.push(format!("{manifest} lacks {wanted:?}"));
            }
        }
    }
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn only_the_launcher_may_be_unsafe() {
    let word = ["uns", "afe"].concat();
    let mut found = Vec::new();
    for (path, text) in sources() {
        let name = tree::relative(&path);
        if name.starts_with("plugin-host/launcher/") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let used = code.contains(&format!("{word} {{")) || code.contains(&format!("{word} fn"));
            if used || code.contains(&format!("allow({word}_code")) {
                found.push(format!("{name}:{}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{word} code outside plugin-host/launcher: {found:#?}");
}

#[test]
fn no_queue_is_without_bound() {
    let words = [["unbounded", "_channel("], ["mpsc::", "unbounded("]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{}", tree::relative(&path), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "queues without a bound: {found:#?}");
}
