//! What a plugin may use, held by the kernel of this machine on real processes.

mod support;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use blackhole_plugin_host::{
    CgroupPolicy, ChangeError, Host, PluginStatus, State, logs::LogStream,
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use protocol::{failure::Failure, manifest::Resources, ports::Body};
use rustix::process::Pid;
use support::{Door, PATIENCE, World, alive, call};
use tokio::time::timeout;

const QUICK: &str = "restart: {policy: never}";

fn manifest(name: &str, resources: &str) -> String {
    format!("name: {name}\nversion: 1.0.0\nresources: {{{resources}}}\n{QUICK}")
}

fn script(options: &str) -> String {
    format!("#!/bin/sh\nexec PROBE {options}\n")
}

fn means(status: &PluginStatus, resource: &str) -> String {
    let found = status.mechanisms.iter().find(|it| it.resource == resource);
    found.unwrap_or_else(|| panic!("{resource}: {status:#?}")).means.clone()
}

/// Waits until what is shown of a plugin is as it should be.
async fn until(
    world: &World,
    name: &str,
    what: &str,
    right: impl Fn(&PluginStatus) -> bool,
) -> PluginStatus {
    let mut transitions = world.host.transitions();
    let begun = Instant::now();
    loop {
        let status = world.host.info(name).expect("known");
        if right(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "{name}: not yet {what}: {status:#?}");
        // Also woken now and then: not everything that is shown is a transition.
        let _ = timeout(Duration::from_millis(50), transitions.recv()).await;
    }
}

/// Waits until the plugin has ended for good, and tells why.
async fn end_of(world: &World, name: &str) -> PluginStatus {
    until(world, name, "ended", |it| !it.state.is_alive()).await
}

/// The control groups of this test's host, wherever they are.
fn groups_of(status: &PluginStatus) -> Vec<PathBuf> {
    let pid = status.pid.expect("it runs");
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("readable");
    let mine = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let hierarchy = if controllers.is_empty() { "unified" } else { controllers };
        path.contains("/blackhole-")
            .then(|| Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/')))
    });
    mine.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_over_its_memory_is_ended_and_the_reason_says_so() {
    let world = World::new().await;
    let loaded =
        world.load_manifest(&manifest("glutton", "memory: 64"), &script("--eat 200")).await;
    let loaded = loaded.expect("it starts within its limit");
    let ended = end_of(&world, "glutton").await;
    if means(&loaded, "memory").starts_with("cgroup") {
        assert!(ended.reason.starts_with("OOM: it wanted more than 64 MiB"), "{}", ended.reason);
        assert_eq!(ended.over_limit, 1);
    } else {
        // Each process by itself: the allocation fails, and the program ends as it likes.
        assert!(ended.reason.contains("it ended"), "{}", ended.reason);
    }
    assert_ne!(ended.state, State::Stopped);
    let logs = world.host.logs("glutton").expect("kept").tail(0);
    let said = logs.iter().filter(|record| record.stream == LogStream::Supervisor);
    assert!(said.into_iter().any(|record| record.message.contains(&ended.reason)), "{logs:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_over_its_cpu_time_is_ended_and_the_reason_says_so() {
    let world = World::new().await;
    let loaded =
        world.load_manifest(&manifest("burner", "cpu_seconds: 1"), &script("--burn")).await;
    loaded.expect("it starts");
    let ended = end_of(&world, "burner").await;
    assert!(ended.reason.starts_with("cpu_seconds: "), "{}", ended.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_over_its_disk_is_ended_and_the_reason_says_so() {
    let world = World::with(|config| config.stats_interval = Duration::from_millis(200)).await;
    let loaded = world.load_manifest(&manifest("filler", "disk: 1"), &script("--fill 8")).await;
    loaded.expect("it starts");
    let ended = end_of(&world, "filler").await;
    assert!(ended.reason.starts_with("disk: its own directories hold"), "{}", ended.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_sleeps_is_ended_when_its_disk_becomes_less_than_it_holds() {
    let world = World::with(|config| config.stats_interval = Duration::from_secs(2)).await;
    let loaded = world.load_manifest(&manifest("filler", "disk: 64"), &script("--fill 8")).await;
    loaded.expect("it starts");
    until(&world, "filler", "full", |it| it.disk_bytes >= 8 << 20).await;
    let less = Resources { disk_bytes: Some(1 << 20), ..Resources::default() };
    world.host.limit("filler", less).await.expect("changed");
    // A whole sample would be due a minute later.
    let ended = end_of(&world, "filler").await;
    assert!(ended.reason.starts_with("disk: its own directories hold"), "{}", ended.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_it_runs_and_hold_for_the_next_host() {
    let mut world = World::new().await;
    let loaded = world.load_manifest(&manifest("counter", "memory: 256"), &script("")).await;
    let before = loaded.expect("it starts");
    let wish =
        Resources { memory_bytes: Some(128 << 20), files_max: Some(321), ..Resources::default() };
    let after = world.host.limit("counter", wish).await.expect("changed");
    assert_eq!((after.pid, after.restarts), (before.pid, 0), "it was not started again");
    assert_eq!(after.memory_limit_bytes, Some(128 << 20));
    let pid = after.pid.expect("it runs");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("told");
    assert_eq!(files.split_whitespace().nth(3), Some("321"), "{files}");
    if means(&after, "memory") == "cgroup v1, all processes together, swap included" {
        let memory =
            groups_of(&after).into_iter().find(|path| path.starts_with("/sys/fs/cgroup/memory"));
        let limit = memory.expect("it has a group").join("memory.limit_in_bytes");
        assert_eq!(std::fs::read_to_string(limit).expect("readable").trim(), "134217728");
    }

    let too_little = Resources { memory_bytes: Some(4_096), ..Resources::default() };
    if means(&after, "memory").starts_with("cgroup") {
        match world.host.limit("counter", too_little).await {
            Err(ChangeError::Refused(error)) => {
                assert!(error.to_string().contains("would end it at once"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(alive(pid));
    }

    world.host.shutdown().await;
    let (config, store) = (world.config.clone(), world.store.clone());
    let (next, mut events) =
        Host::start(config, store, std::sync::Arc::new(Door)).await.expect("starts");
    world.events.close();
    timeout(PATIENCE, events.recv()).await.expect("in time").expect("it is loaded again");
    assert_eq!(next.info("counter").expect("there").memory_limit_bytes, Some(128 << 20));
    next.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_control_groups() {
    let world = World::new().await;
    let text = manifest("tenant", "memory: 256, cpu: 50, processes: 64");
    let status = world.load_manifest(&text, &script("")).await.expect("it starts");
    let groups = groups_of(&status);
    let held = status.layers.iter().any(|layer| layer.starts_with("cgroup-v"));
    assert_eq!(held, !groups.is_empty(), "{:?}", status.layers);
    world.host.unload("tenant").await.expect("unloaded");
    for group in &groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
    world.host.shutdown().await;
    for base in groups.iter().filter_map(|group| group.parent()) {
        assert!(!base.exists(), "{} is left", base.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_up_ends_what_an_earlier_one_left_in_its_groups() {
    let world = World::new().await;
    let loaded = world.load_manifest(&manifest("tenant", "memory: 256"), &script("")).await;
    let groups = groups_of(&loaded.expect("it starts"));
    let Some(base) = groups.first().and_then(|group| group.parent()).map(Path::to_path_buf) else {
        // A host without control groups leaves nothing in them.
        return;
    };
    world.host.shutdown().await;
    // What a host that was killed at the wrong moment might leave.
    let left = base.join("left");
    std::fs::create_dir_all(&left).expect("made");
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    std::fs::write(left.join("cgroup.procs"), child.id().to_string()).expect("moved");
    let (next, _events) =
        Host::start(world.config.clone(), world.store.clone(), std::sync::Arc::new(Door))
            .await
            .expect("starts");
    let status = child.wait().expect("reaped");
    assert!(!status.success(), "it was killed: {status}");
    assert!(!left.exists());
    next.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_control_groups_what_is_not_enforced_is_said() {
    let world = World::with(|config| config.cgroups = CgroupPolicy::Off).await;
    let loaded = world.load_manifest(&manifest("plain", "memory: 512, cpu: 50"), &script("")).await;
    let status = loaded.expect("it starts");
    assert!(means(&status, "memory").starts_with("RLIMIT_DATA"), "{status:#?}");
    assert!(means(&status, "cpu").starts_with("not enforced"), "{status:#?}");
    assert!(!status.layers.iter().any(|layer| layer.starts_with("cgroup-v")), "{status:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_for_memory_that_no_control_group_holds_is_said_as_a_guess() {
    let world = World::with(|config| config.cgroups = CgroupPolicy::Off).await;
    let loaded =
        world.load_manifest(&manifest("glutton", "memory: 64"), &script("--eat 200")).await;
    loaded.expect("it starts within its limit");
    let ended = end_of(&world, "glutton").await;
    let begins = "memory: it may have wanted more than 64 MiB";
    assert!(ended.reason.starts_with(begins), "{}", ended.reason);
    assert_eq!(ended.over_limit, 0, "nobody knows");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_lowered_below_what_caches_hold() {
    let world = World::with(|config| config.stats_interval = Duration::from_millis(200)).await;
    let loaded =
        world.load_manifest(&manifest("reader", "memory: 512"), &script("--fill 128")).await;
    let status = loaded.expect("it starts");
    let begun = Instant::now();
    while world.host.info("reader").expect("there").disk_bytes < 128 << 20 {
        assert!(begun.elapsed() < PATIENCE, "it does not fill its directory");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wish = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    let after = world.host.limit("reader", wish).await.expect("caches can be dropped");
    assert_eq!((after.pid, after.memory_limit_bytes), (status.pid, Some(64 << 20)));
    assert!(alive(after.pid.expect("it runs")));
}

/// What the file `name` of one of the plugin's control groups holds, if there is one.
fn held(status: &PluginStatus, name: &str) -> Option<String> {
    let files = groups_of(status).into_iter().map(|group| group.join(name));
    files.into_iter().find_map(|file| std::fs::read_to_string(file).ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guaranteed_share_is_a_weight_of_its_group_or_said_not_to_be_in_force() {
    let world = World::new().await;
    let text = manifest("weighty", "cpu_guaranteed: 50");
    let status = world.load_manifest(&text, &script("")).await.expect("it starts");
    match means(&status, "cpu_guaranteed").as_str() {
        told if told.starts_with("cgroup v1 cpu.shares") => {
            assert_eq!(held(&status, "cpu.shares").expect("there").trim(), "512");
        }
        told if told.starts_with("cgroup v2 cpu.weight") => {
            assert_eq!(held(&status, "cpu.weight").expect("there").trim(), "50");
        }
        told => assert!(told.starts_with("not enforced: "), "{told}"),
    }
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_computes_uncalled_gives_way_to_the_others_while_nobody_calls_it() {
    let world = World::with(|config| config.stats_interval = Duration::from_millis(200)).await;
    let loaded = world.load_manifest(&manifest("burner", ""), &script("--burn")).await;
    let instance = loaded.expect("it starts").instance.expect("it runs");
    let weight = |status: &PluginStatus| {
        let shares = held(status, "cpu.shares").or_else(|| held(status, "cpu.weight"));
        shares.expect("it has a group").trim().to_owned()
    };
    let idles = |status: &PluginStatus| held(status, "cpu.idle").map(|text| text.trim() == "1");
    let is_behind = |status: &PluginStatus| {
        status
            .mechanisms
            .iter()
            .any(|it| it.resource == "cpu_weight" && it.limit == "what others leave")
    };
    if means_of("cpu_guaranteed").await.starts_with("not enforced: ") {
        return;
    }
    let status = until(&world, "burner", "behind", is_behind).await;
    let least = ["2", "1"].contains(&&*weight(&status));
    assert!(idles(&status).unwrap_or(least), "{status:#?}");
    // Somebody calls it, for as long as nothing more comes.
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Failure>>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
    let stream = Body::new(StreamBody::new(stream));
    let channel = world.reach(instance).await.expect("reached");
    let called = tokio::spawn(channel.invoke(call("Collect", stream, None)));
    let status = until(&world, "burner", "among the others", |it| !is_behind(it)).await;
    assert!(["1024", "100"].contains(&&*weight(&status)), "{status:#?}");
    assert!(!idles(&status).unwrap_or(false), "{status:#?}");
    drop(send);
    called.await.expect("no panic").expect("it answers");
    until(&world, "burner", "behind again", is_behind).await;
    world.host.shutdown().await;
}

/// How this machine holds `resource`.
async fn means_of(resource: &str) -> String {
    let world = World::new().await;
    let text = manifest("asked", &format!("{resource}: 50"));
    let told = means(&world.load_manifest(&text, &script("")).await.expect("it starts"), resource);
    world.host.shutdown().await;
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_bandwidth_is_a_rule_of_its_group_or_said_not_to_be_in_force() {
    let world = World::new().await;
    let text = manifest("scribe", "disk_bandwidth: 3");
    let status = world.load_manifest(&text, &script("")).await.expect("it starts");
    let told = means(&status, "disk_bandwidth");
    if told.starts_with("cgroup v1 blkio.throttle") {
        for way in ["read", "write"] {
            let rule = held(&status, &format!("blkio.throttle.{way}_bps_device")).expect("there");
            assert!(rule.trim().ends_with(" 3145728"), "{rule}");
        }
    } else if told.starts_with("cgroup v2 io.max") {
        let rule = held(&status, "io.max").expect("there");
        assert!(rule.contains("rbps=3145728 wbps=3145728"), "{rule}");
    } else {
        assert!(told.starts_with("not enforced: "), "{told}");
    }
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_on_as_many_cores_as_it_may_and_its_run_time_is_told() {
    let mut world = World::new().await;
    let text = manifest("single", "cpu_cores: 1, memory: 256, cpu: 50");
    let status = world.load_manifest(&text, &script("")).await.expect("it starts");
    let instance = world.ready().await.instance;
    let seen = world.see(instance).await;
    let env = &seen["environment"];
    for name in ["GOMAXPROCS", "OMP_NUM_THREADS", "TOKIO_WORKER_THREADS", "BH_LIMIT_CPU_CORES"] {
        assert_eq!(env[name], "1", "{name}: {seen:#}");
    }
    assert_eq!(env["BH_LIMIT_MEMORY_BYTES"], "268435456", "{seen:#}");
    assert_eq!(env["BH_LIMIT_CPU_PERCENT"], "50", "{seen:#}");
    assert!(env["BH_LIMIT_DISK_BYTES"].is_null(), "nobody set it: {seen:#}");
    let pid = Pid::from_raw(status.pid.expect("it runs").cast_signed());
    let may = rustix::thread::sched_getaffinity(pid).expect("it lives");
    let here = rustix::thread::sched_getaffinity(None).expect("this one").count();
    assert_eq!(may.count(), 1, "of {here}");
    world.host.shutdown().await;
}
