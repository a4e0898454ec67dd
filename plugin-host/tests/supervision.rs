//! Several processes under one host: instances, groups, dependencies, restarts, on real ones.

mod support;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_plugin_host::{
    BuiltIn, ChangeError, Command, GroupConfig, Host, HostEvent, LoadError, LoadRequest, Overrides,
    PluginStatus, Source, State, Strategy, UnloadError,
};
use protocol::manifest::{Health, Restart, RestartWhen};
use support::{Door, PATIENCE, World, alive, call, empty, probe_program};
use tokio::time::timeout;

/// Short enough for a test, and still several restarts long.
fn quick() -> Restart {
    Restart { backoff: Duration::from_millis(20), ..Restart::default() }
}

fn group(strategy: Strategy, members: &[&str]) -> GroupConfig {
    GroupConfig {
        strategy,
        members: members.iter().map(ToString::to_string).collect(),
        restart: quick(),
        ..GroupConfig::default()
    }
}

fn request(name: &str, arguments: &[&str]) -> LoadRequest {
    let mut argv = vec![probe_program().display().to_string()];
    argv.extend(arguments.iter().map(ToString::to_string));
    let source = Source::Exec(Command { argv, ..Command::default() });
    LoadRequest { name: Some(name.into()), wait: true, ..LoadRequest::new(source) }
}

impl World {
    fn pid(&self, name: &str) -> Option<u32> {
        self.host.info(name).expect("known").pid
    }

    fn pids(&self, name: &str) -> BTreeSet<u32> {
        let status = self.host.info(name).expect("known");
        status.instances.iter().filter_map(|one| one.pid).collect()
    }

    /// Ends the process of an instance as a crash would.
    async fn crash(&self, name: &str, number: u32) {
        let status = self.host.info(name).expect("known");
        let one = status.instances.iter().find(|one| one.number == number).expect("that instance");
        let channel = self.reach(one.instance.expect("ready")).await.expect("ready");
        assert!(channel.invoke(call("Crash", empty(), None)).await.is_err());
    }

    /// Waits until what is shown of a plugin is as it should be.
    async fn until(&self, name: &str, right: impl Fn(&PluginStatus) -> bool) -> PluginStatus {
        let mut transitions = self.host.transitions();
        let begun = Instant::now();
        loop {
            let status = self.host.info(name).expect("known");
            if right(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{name}: {status:#?}");
            // Also woken now and then: not everything that is shown is a transition.
            let _ = timeout(Duration::from_millis(50), transitions.recv()).await;
        }
    }
}

/// Reads events, so that no supervisor waits for a reader.
fn read_on(world: &mut World) -> tokio::task::JoinHandle<()> {
    let (_, none) = tokio::sync::mpsc::channel(1);
    let mut events = std::mem::replace(&mut world.events, none);
    tokio::spawn(async move { while events.recv().await.is_some() {} })
}

#[tokio::test]
async fn three_instances_each_have_a_process_and_answer_and_are_remembered() {
    let mut world = World::new().await;
    let several = LoadRequest { instances: Some(3), ..request("probe", &[]) };
    let status = world.host.load(several).await.expect("loads");
    assert_eq!(status.instances.len(), 3);
    assert_eq!(status.instances.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2, 3]);
    let mut instances = BTreeSet::new();
    for _ in 0..3 {
        instances.insert(world.ready().await.instance);
    }
    assert_eq!(instances.len(), 3, "each is one to choose from");
    assert_eq!(world.pids("probe").len(), 3);
    for directory in ["probe", "probe.2", "probe.3"] {
        assert!(world.config.run_dir.join("plugins").join(directory).is_dir(), "{directory}");
    }

    // One that crashes takes none of the others with it.
    let before = world.pids("probe");
    world.crash("probe", 2).await;
    let status = world
        .until("probe", |it| it.restarts == 1 && it.instances.iter().all(|one| one.healthy))
        .await;
    assert_eq!(status.crashes, 1);
    assert_eq!(world.pids("probe").intersection(&before).count(), 2);

    world.host.shutdown().await;
    let (again, mut events) =
        Host::start(world.config.clone(), world.store.clone(), Arc::new(Door))
            .await
            .expect("again");
    for _ in 0..3 {
        let event = timeout(PATIENCE, events.recv()).await.expect("in time").expect("lives");
        assert!(matches!(event, HostEvent::Ready(_)));
    }
    assert_eq!(again.info("probe").expect("known").instances.len(), 3);
    again.shutdown().await;
}

#[tokio::test]
async fn scaling_starts_further_ones_and_ends_the_youngest() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    let reading = read_on(&mut world);
    let first = world.pid("probe").expect("runs");
    let status = world.host.scale("probe", 3).await.expect("grows");
    assert_eq!(status.instances.len(), 3);
    assert!(status.instances.iter().all(|one| one.state == State::Running));
    let youngest: Vec<u32> = status.instances[1..].iter().filter_map(|one| one.pid).collect();

    let status = world.host.scale("probe", 1).await.expect("shrinks");
    assert_eq!((status.instances.len(), status.pid), (1, Some(first)));
    assert!(youngest.iter().all(|pid| !alive(*pid)), "{youngest:?}");
    let left = std::fs::read_dir(world.config.run_dir.join("plugins")).expect("exists").count();
    assert_eq!(left, 1, "their directories went with them");

    let error = world.host.scale("probe", 0).await.expect_err("none is unload");
    assert!(error.to_string().contains("not from 1 to"), "{error}");
    assert!(matches!(world.host.scale("nobody", 1).await, Err(ChangeError::Unknown(_))));
    world.host.shutdown().await;
    drop(world.host);
    reading.await.expect("ends with the host");
}

#[tokio::test]
async fn restart_goes_through_the_instances_one_after_the_other_and_revives_the_failed() {
    let mut world = World::with(|config| config.restart = quick()).await;
    let several = LoadRequest { instances: Some(2), ..request("probe", &[]) };
    world.host.load(several).await.expect("loads");
    let _reading = read_on(&mut world);
    let before = world.pids("probe");
    let status = world.host.restart("probe").await.expect("restarts");
    assert_eq!((status.restarts, status.crashes), (2, 0), "asked for, and no crash");
    assert!(world.pids("probe").is_disjoint(&before));

    for round in 1..=6 {
        world.crash("probe", 1).await;
        world
            .until("probe", |it| {
                let one = &it.instances[0];
                one.state == State::CrashLoop || (one.crashes == round && one.healthy)
            })
            .await;
    }
    let status = world.host.info("probe").expect("known");
    assert_eq!(status.instances[0].state, State::CrashLoop, "{:?}", status.instances[0]);
    assert_eq!(status.state, State::Running, "the other one answers");
    assert!(status.reason.contains("instance 1 is crash-loop"), "{}", status.reason);
    let status = world.host.restart("probe").await.expect("revives");
    assert!(status.instances.iter().all(|one| one.state == State::Running));
    world.host.shutdown().await;
}

#[tokio::test]
async fn reload_reads_the_manifest_anew_and_a_bad_one_changes_nothing() {
    let mut world = World::new().await;
    let manifest = "name: pack\nversion: 1.0.0";
    let status = world.load_manifest(manifest, "#!/bin/sh\nexec PROBE\n").await.expect("loads");
    let _reading = read_on(&mut world);
    let file = std::path::Path::new(&status.source).join("plugin.yaml");
    let text = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, "name: pack\nversion: wrong\n").expect("written");
    let error = world.host.reload("pack").await.expect_err("refused");
    assert!(error.to_string().contains("is not a version"), "{error}");
    assert_eq!(world.pid("pack"), status.pid, "it runs on");

    std::fs::write(&file, text.replace("1.0.0", "1.1.0")).expect("written");
    let reloaded = world.host.reload("pack").await.expect("reloads");
    assert_eq!(reloaded.version, "1.1.0");
    assert_ne!(reloaded.pid, status.pid);
    world.host.shutdown().await;
}

async fn family(strategy: Strategy) -> World {
    let mut world = World::with(|config| {
        config.groups.insert("family".into(), group(strategy, &["a", "b", "c"]));
    })
    .await;
    // The configuration says the order, not who came first.
    for name in ["c", "a", "b"] {
        world.load(name, &[]).await.expect("loads");
    }
    world.load("stranger", &[]).await.expect("loads");
    drop(read_on(&mut world));
    world
}

/// Which members have another process after `b` crashed and all run again.
async fn changed_after_b(world: &World) -> Vec<&'static str> {
    let all = ["a", "b", "c", "stranger"];
    let before = all.map(|name| world.pid(name));
    let expected = world.host.info("b").expect("known").restarts + 1;
    world.crash("b", 1).await;
    world.until("b", |it| it.restarts == expected).await;
    for name in all {
        world.until(name, |it| it.state == State::Running && it.healthy).await;
    }
    // `c` is the last of the order, and may just be held.
    if before[2] == world.pid("c")
        && world
            .host
            .info("b")
            .expect("known")
            .group
            .is_some_and(|(_, strategy)| strategy != Strategy::OneForOne)
    {
        world.until("c", |it| it.pid != before[2] && it.healthy).await;
    }
    (0..4).filter(|at| world.pid(all[*at]) != before[*at]).map(|at| all[at]).collect()
}

#[tokio::test]
async fn one_for_one_starts_only_the_one_that_ended() {
    let world = family(Strategy::OneForOne).await;
    assert_eq!(changed_after_b(&world).await, ["b"]);
    world.host.shutdown().await;
}

#[tokio::test]
async fn one_for_all_starts_everyone_again_and_strangers_live_on() {
    let world = family(Strategy::OneForAll).await;
    assert_eq!(changed_after_b(&world).await, ["a", "b", "c"]);
    let status = world.host.info("a").expect("known");
    assert_eq!((status.restarts, status.crashes), (1, 0), "it did not crash itself");
    assert_eq!(status.group, Some(("family".into(), Strategy::OneForAll)));
    world.host.shutdown().await;
}

#[tokio::test]
async fn rest_for_one_starts_those_behind_it_too() {
    let world = family(Strategy::RestForOne).await;
    assert_eq!(changed_after_b(&world).await, ["b", "c"]);
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_group_that_falls_too_often_is_given_up_as_one() {
    let mut world = World::with(|config| {
        let restart = Restart { max_restarts: 1, ..quick() };
        let pair = GroupConfig { restart, ..group(Strategy::OneForAll, &["a", "b"]) };
        config.groups.insert("pair".into(), pair);
    })
    .await;
    world.load("a", &[]).await.expect("loads");
    world.load("b", &[]).await.expect("loads");
    let _reading = read_on(&mut world);
    world.crash("a", 1).await;
    world.until("b", |it| it.restarts == 1 && it.healthy).await;
    world.crash("b", 1).await;
    for name in ["a", "b"] {
        let status = world.until(name, |it| it.state == State::CrashLoop).await;
        assert!(status.reason.contains("the whole group is given up"), "{}", status.reason);
        assert_eq!(status.pid, None);
    }
    // One word revives it.
    world.host.restart("a").await.expect("revives");
    world.host.shutdown().await;
}

#[tokio::test]
async fn dependencies_start_first_stop_last_and_cannot_be_pulled_away() {
    let mut world = World::new().await;
    let script = "#!/bin/sh\nexec PROBE\n";
    let base = "name: base\nversion: 1.4.0";
    let middle = "name: middle\nversion: 1.0.0\ndependencies: [\"base >=1.2, <2\"]";
    let top = "name: top\nversion: 1.0.0\ndependencies: [middle]";
    let early = world.load_manifest(middle, script).await.expect_err("base is missing");
    assert!(early.to_string().contains("base >=1.2, <2 is needed and not loaded"), "{early}");
    for manifest in [base, middle, top] {
        world.load_manifest(manifest, script).await.expect("loads");
    }
    let wrong = "name: wrong\nversion: 1.0.0\ndependencies: [\"base >=2\"]";
    let wrong = world.load_manifest(wrong, script).await.expect_err("another version");
    assert!(wrong.to_string().contains("base >=2 is needed, and 1.4.0 is loaded"), "{wrong}");
    match world.host.unload("base").await {
        Err(UnloadError::Needed { by, .. }) => assert_eq!(by, ["middle"]),
        other => panic!("{other:?}"),
    }

    let mut transitions = world.host.transitions();
    drop(read_on(&mut world));
    world.host.shutdown().await;
    let mut stopped = Vec::new();
    while let Ok(transition) = transitions.try_recv() {
        if transition.to == State::Stopped {
            stopped.push(transition.plugin);
        }
    }
    assert_eq!(stopped, ["top", "middle", "base"]);

    let (host, mut events) = Host::start(world.config.clone(), world.store.clone(), Arc::new(Door))
        .await
        .expect("again");
    let mut started = Vec::new();
    while started.len() < 3 {
        match timeout(PATIENCE, events.recv()).await.expect("in time").expect("lives") {
            HostEvent::Ready(ready) => started.push(ready.name),
            HostEvent::Gone { name, reason, .. } => panic!("{name}: {reason}"),
        }
    }
    assert_eq!(started, ["base", "middle", "top"]);
    host.shutdown().await;
}

#[tokio::test]
async fn a_circle_of_dependencies_is_refused_by_its_names() {
    let world = World::new().await;
    let script = "#!/bin/sh\nexec PROBE\n";
    let own = "name: snake\nversion: 1.0.0\ndependencies: [snake]";
    let error = world.load_manifest(own, script).await.expect_err("a circle");
    assert!(error.to_string().contains("snake -> snake"), "{error}");
    assert!(matches!(error, LoadError::Invalid(_)));
}

#[tokio::test]
async fn the_nodes_own_services_follow_the_configuration_and_are_never_remembered() {
    let on = LoadRequest {
        overrides: Overrides { restart: Some(RestartWhen::Always), ..Overrides::default() },
        instances: Some(2),
        ..request("clock", &[])
    };
    let mut world = World::with(|config| {
        config.restart = quick();
        config.built_in = vec![
            BuiltIn { name: "clock".into(), request: Some(on) },
            BuiltIn { name: "ledger".into(), request: None },
        ];
    })
    .await;
    world.ready().await;
    let second = world.ready().await.instance;
    let off = world.host.info("ledger").expect("shown");
    assert_eq!((off.state, off.reason.as_str(), off.pid), (State::Stopped, "disabled", None));
    // Its policy is the configuration's: even a clean end is followed by a start.
    let channel = world.reach(second).await.expect("ready");
    let _ = channel.invoke(call("Exit", empty(), None)).await;
    assert!(matches!(world.event().await, HostEvent::Gone { .. }));
    world.ready().await;
    assert!(world.store.0.lock().is_empty());
    world.host.shutdown().await;
}

#[tokio::test]
async fn health_is_checked_as_the_operator_says_for_this_one() {
    let health = Health {
        interval: Some(Duration::from_millis(50)),
        threshold: Some(1),
        ..Health::default()
    };
    let overrides = Overrides { restart: Some(RestartWhen::Never), health, ..Overrides::default() };
    let mut world = World::new().await;
    let sick = LoadRequest { overrides, ..request("sick", &["--unhealthy-after", "1500"]) };
    world.host.load(sick).await.expect("loads");
    let _reading = read_on(&mut world);
    let status = world.until("sick", |it| !it.state.is_alive()).await;
    assert!(status.reason.contains("unhealthy: 1 health checks"), "{}", status.reason);
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_restart_that_meets_the_end_of_a_plugin_that_is_given_up_begins_a_new_life() {
    let overrides = Overrides { restart: Some(RestartWhen::Never), ..Overrides::default() };
    let mut world = World::new().await;
    let once = LoadRequest { overrides, ..request("once", &[]) };
    world.host.load(once).await.expect("loads");
    let _reading = read_on(&mut world);
    for cycle in 0..30 {
        let status = world.until("once", |it| it.state == State::Running).await;
        let channel = world.reach(status.instance.expect("running")).await.expect("running");
        // It ends before, while, or after it is told to start again.
        assert!(channel.invoke(call("Crash", empty(), None)).await.is_err());
        drop(channel);
        let again = timeout(PATIENCE, world.host.restart("once")).await.expect("in time");
        assert_eq!(again.expect("starts").state, State::Running, "cycle {cycle}");
    }
    world.host.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_executed_fails_at_once_even_where_it_ran_before() {
    let mut world = World::with(|config| config.restart = quick()).await;
    let directory = tempfile::tempdir().expect("made");
    let program = directory.path().join("tool");
    std::fs::copy(probe_program(), &program).expect("copied");
    let source = Source::Path(program.clone());
    let request = LoadRequest { wait: true, ..LoadRequest::new(source) };
    world.host.load(request).await.expect("loads");
    world.ready().await;
    world.host.shutdown().await;
    // Executable by its mode, and no program by its contents.
    std::fs::write(&program, "\0 nothing that runs").expect("written");
    let (host, _events) = Host::start(world.config.clone(), world.store.clone(), Arc::new(Door))
        .await
        .expect("again");
    world.host = host;
    let status = world.until("tool", |it| !it.state.is_alive()).await;
    assert_eq!((status.state, status.restarts), (State::Failed, 0), "{}", status.reason);
    assert!(status.reason.starts_with("exec: "), "{}", status.reason);
    world.host.shutdown().await;
}
