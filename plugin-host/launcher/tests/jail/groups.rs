//! Control groups: everything of the plugin's is in them from its first moment.

use std::{
    collections::BTreeMap, fs, os::unix::process::CommandExt, path::PathBuf, process::Command,
};

use blackhole_launcher::{JailSpec, Report};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::{
    filter::errno_by,
    world::{Running, launcher, output, spec},
};

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

/// Has `start` start a jail in groups, and looks who is in them.
fn all_is_in_its_groups(name: &str, start: impl Fn(&JailSpec) -> Running) {
    let directories = groups(name);
    let mut spec = spec("exec sleep 1000");
    spec.cgroup.clone_from(&directories);
    let mut running = start(&spec);
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
fn the_plugin_and_its_first_process_are_in_the_groups_from_the_start() {
    if !rustix::process::getuid().is_root() {
        // An ordinary user has no groups to give; the run as root shows it.
        return;
    }
    all_is_in_its_groups("join", Running::start);
}

/// `program` with every clone3 of its own and of what it starts answered as by a kernel, or a
/// container engine, that does not have it.
fn without_clone3(program: PathBuf) -> Command {
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let here = std::env::consts::ARCH.try_into().expect("a known processor");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, here);
    let filter: BpfProgram = filter.expect("whole").try_into().expect("compiles");
    let mut command = Command::new(program);
    let install = move || {
        seccompiler::apply_filter(&filter).map_err(|_| std::io::ErrorKind::Unsupported.into())
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(install) };
    command
}

#[test]
fn where_clone3_is_refused_all_is_in_its_groups_as_well() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let clone3 = [(libc::SYS_clone3, &[0, 0][..])];
    assert_eq!(errno_by(Command::new, &clone3), [libc::EINVAL], "the control has it");
    assert_eq!(errno_by(without_clone3, &clone3), [libc::ENOSYS]);
    all_is_in_its_groups("fork", |spec| Running::start_by(without_clone3(launcher()), spec));
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
