//! Control groups: everything of the plugin's is in them from its first moment.

use std::{fs, path::PathBuf};

use blackhole_launcher::Report;

use crate::world::{Running, output, spec};

/// New groups of this test, in every hierarchy that can have them here.
fn groups(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("readable");
    let usable = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        let kind = words.next().unwrap_or_default();
        let options = words.next().unwrap_or_default();
        kind == "cgroup2" || (kind == "cgroup" && options.split(',').any(|word| word == "pids"))
    };
    let roots = mounts.lines().filter(usable).filter_map(|line| line.split_whitespace().nth(1));
    let made: Vec<_> = roots
        .map(|root| {
            let name = format!("bh-jail-{name}-{}", std::process::id());
            let directory = PathBuf::from(root).join(name);
            fs::create_dir(&directory).expect("root may make groups");
            directory
        })
        .collect();
    assert!(!made.is_empty(), "control groups are mounted");
    made
}

#[test]
fn the_plugin_and_its_first_process_are_in_the_groups_from_the_start() {
    if !rustix::process::getuid().is_root() {
        // An ordinary user has no groups to give; the run as root shows it.
        return;
    }
    let directories = groups("join");
    let mut spec = spec("exec sleep 1000");
    spec.cgroup.clone_from(&directories);
    let mut running = Running::start(&spec);
    let layers = running.started();
    assert!(layers.iter().any(|layer| layer == "cgroup"), "{layers:?}");
    for directory in &directories {
        let inside = fs::read_to_string(directory.join("cgroup.procs")).expect("readable");
        for pid in [running.init, running.program] {
            let pid = pid.expect("told").to_string();
            assert!(inside.lines().any(|line| line == pid), "{pid} in {inside}");
        }
    }
    let end = blackhole_launcher::Order::Kill;
    let flags = rustix::net::SendFlags::empty();
    blackhole_launcher::control::send(&running.control, &end, None, flags).expect("sent");
    running.finish_refused();
    for directory in &directories {
        fs::remove_dir(directory).expect("nothing is left in it");
    }
}

#[test]
fn a_group_that_cannot_be_joined_refuses_and_names_itself() {
    assert_eq!(output(&spec("echo without")), "without\n", "the control starts");
    let mut spec = spec("echo began");
    spec.cgroup = vec!["/no/such/group".into()];
    let mut running = Running::start(&spec);
    let mut refused = None;
    while let Some(received) = running.next() {
        match received.message {
            Report::Refused { layer, reason, advice } => {
                refused.get_or_insert((layer, reason, advice));
            }
            Report::Started { .. } => panic!("must not start"),
            _ => {}
        }
    }
    let (layer, reason, advice) = refused.expect("an answer");
    assert_eq!(layer, "cgroup");
    assert!(reason.contains("/no/such/group") && advice.contains("Delegate"), "{reason} {advice}");
    running.finish_refused();
}
