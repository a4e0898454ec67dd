//! The host with real processes: the test double in `examples/probe.rs`, in real jails.

mod support;
#[path = "host/tls.rs"]
mod tls;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_plugin_host::{
    Command, Host, HostEvent, LoadError, LoadRequest, LogStream, NamespacePolicy, Source, State,
    UnknownPlugin,
};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use protocol::{
    failure::{Failure, Ran, Reason},
    ports::Body,
};
use support::{
    Door, PATIENCE, World, alive, body, call, empty, gone_within, message, probe_program, read,
};
use tokio::{sync::mpsc, time::timeout};

#[tokio::test]
async fn a_plugin_starts_is_described_and_leaves_nothing_when_unloaded() {
    let mut world = World::new().await;
    let status = world.load("probe", &[]).await.expect("loads");
    assert_eq!(status.state, State::Running);
    assert!(status.healthy && status.uptime.is_some());
    assert_eq!(status.isolation, "process");
    for layer in ["user-ns", "pid-ns", "net-ns", "private-root", "no-new-privs", "lifeline"] {
        assert!(status.layers.iter().any(|found| found == layer), "{:?}", status.layers);
    }
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);

    let ready = world.ready().await;
    assert_eq!(ready.services.len(), 1);
    assert_eq!(ready.services[0].0.as_str(), "probe.v1.Probe");
    assert_ne!(ready.services[0].1, [0; 32], "it has a schema");
    assert!(!ready.descriptors.is_empty());

    let pid = status.pid.expect("runs");
    world.host.unload("probe").await.expect("unloads");
    assert!(matches!(world.event().await, HostEvent::Gone { .. }));
    assert!(!alive(pid));
    assert!(world.reach(ready.instance).await.is_err());
    assert_eq!(world.host.info("probe").err(), Some(UnknownPlugin("probe".into())));
    let left = std::fs::read_dir(world.config.run_dir.join("plugins")).expect("exists").count();
    assert_eq!(left, 0, "no socket, no directory");
    assert!(world.store.0.lock().is_empty(), "it will not be loaded again");
}

#[tokio::test]
async fn all_four_kinds_of_call_pass_untouched() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    let instance = world.ready().await.instance;
    let channel = world.reach(instance).await.expect("ready");

    // Unary.
    let reply = channel.invoke(call("Echo", body(message(b"hello")), None)).await.expect("sent");
    let answer = read(reply).await;
    assert_eq!(answer.messages, [b"hello"]);
    assert_eq!(answer.trailers["grpc-status"], "0");
    assert_eq!(answer.trailers["x-trailer"], "last");
    assert_eq!(answer.metadata["seen-x-user"], "somebody");
    assert_eq!(answer.metadata["seen-data-bin"], "AAEC");
    assert!(answer.metadata.get("seen-grpc-timeout").is_none());

    // Client streaming, in chunks that do not follow the messages.
    let chunks = (0..100_u8).map(|n| {
        let bytes = message(&vec![n; 1_000]);
        Ok::<_, Failure>(Frame::data(bytes))
    });
    let stream = Body::new(StreamBody::new(futures::stream::iter(chunks)));
    let answer = read(channel.invoke(call("Collect", stream, None)).await.expect("sent")).await;
    assert_eq!(answer.messages.len(), 100);
    assert!(answer.messages.iter().enumerate().all(|(n, bytes)| bytes == &vec![n as u8; 1_000]));

    // Server streaming.
    let answer = read(channel.invoke(call("Count", empty(), None)).await.expect("sent")).await;
    assert_eq!(answer.messages, (0..10_u8).map(|n| vec![n]).collect::<Vec<_>>());

    // Bidirectional: each message is answered before the next is sent.
    let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, Failure>>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
    let stream = Body::new(StreamBody::new(stream));
    let reply = channel.invoke(call("Echo", stream, None)).await.expect("sent");
    let mut answers = reply.body;
    for n in 0..20_u8 {
        send.send(Ok(Frame::data(message(&[n])))).await.expect("taken");
        let frame = answers.frame().await.expect("a frame").expect("no failure");
        assert_eq!(frame.into_data().expect("data"), message(&[n]));
    }
    drop(send);
    let trailers = answers.frame().await.expect("a frame").expect("no failure");
    assert_eq!(trailers.into_trailers().expect("trailers")["grpc-status"], "0");

    // A status of the plugin is its answer, not a failure.
    let answer = read(channel.invoke(call("Refuse", empty(), None)).await.expect("sent")).await;
    assert_eq!(answer.trailers["grpc-status"], "7");
    world.host.shutdown().await;
}

#[tokio::test]
async fn large_bodies_and_many_calls_at_once_pass() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    let instance = world.ready().await.instance;
    let channel = world.reach(instance).await.expect("ready");
    let large = vec![7_u8; 6 << 20];
    let calls = (0..300).map(|n: u32| {
        let bytes = if n == 0 { large.clone() } else { n.to_be_bytes().to_vec() };
        let reply = channel.invoke(call("Echo", body(message(&bytes)), Some(PATIENCE)));
        async move { (bytes, read(reply.await.expect("sent")).await.messages) }
    });
    for (sent, received) in futures::future::join_all(calls).await {
        assert_eq!(received, [sent]);
    }
    world.host.shutdown().await;
}

#[tokio::test]
async fn deadlines_are_told_to_the_plugin_and_enforced() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    let instance = world.ready().await.instance;
    let channel = world.reach(instance).await.expect("ready");

    let within = Some(Duration::from_secs(10));
    let answer = read(channel.invoke(call("Echo", empty(), within)).await.expect("sent")).await;
    let told = answer.metadata["seen-grpc-timeout"].to_str().expect("text").to_owned();
    let millis: u64 = told.trim_end_matches('m').parse().expect("milliseconds");
    assert!((9_000..=10_000).contains(&millis), "{told}");

    // The plugin was told and may say so itself a moment before the host does.
    let short = Some(Duration::from_millis(200));
    for method in ["Hang", "Stall"] {
        let begun = Instant::now();
        let ended = match channel.invoke(call(method, empty(), short)).await {
            Ok(reply) => {
                let told = reply.metadata.contains_key("grpc-status");
                reply.body.collect().await.map(|_| told)
            }
            Err(failure) => Err(failure),
        };
        match ended {
            Ok(told) => assert!(told, "{method}: a status of its own"),
            Err(failure) => {
                assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    let passed = channel.invoke(call("Echo", empty(), Some(Duration::ZERO))).await;
    assert_eq!(passed.err().expect("passed").ran, Ran::NotStarted);
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_crash_is_told_as_unknown_and_the_plugin_is_started_again() {
    let mut world = World::new().await;
    let first = world.load("probe", &[]).await.expect("loads");
    let instance = world.ready().await.instance;
    let channel = world.reach(instance).await.expect("ready");

    let failure = channel.invoke(call("Crash", empty(), None)).await.err().expect("it died");
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PluginLost));
    match world.event().await {
        HostEvent::Gone { instance: gone, reason, .. } => {
            assert_eq!(gone, instance);
            assert!(reason.contains("signal 6"), "{reason}");
        }
        HostEvent::Ready(_) => panic!("it must be gone first"),
    }
    let again = world.ready().await;
    assert_eq!(world.host.info("probe").expect("known").crashes, 1);
    assert_ne!(again.instance, instance);
    let failure = channel.invoke(call("Echo", empty(), None)).await.err().expect("that run ended");
    assert_eq!(failure.ran, Ran::NotStarted);
    let status = world.host.info("probe").expect("known");
    assert_eq!((status.restarts, status.crashes, status.state), (1, 1, State::Running));
    assert_ne!(status.pid, first.pid);
    let logs = world.host.logs("probe").expect("known").tail(0);
    let told = logs.iter().any(|record| {
        record.stream == LogStream::Supervisor && record.message.contains("starting again in")
    });
    assert!(told, "the wait is logged");
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_crashes_again_and_again_is_given_up() {
    let mut world = World::new().await;
    let manifest = "name: looper\nversion: 1.0.0\nstart_timeout: 10s\n\
                    restart: { max_restarts: 2, window: 60s, backoff: 20ms }";
    world.load_manifest(manifest, "#!/bin/sh\nexec PROBE\n").await.expect("loads");
    for _ in 0..3 {
        let instance = world.ready().await.instance;
        let channel = world.reach(instance).await.expect("ready");
        assert!(channel.invoke(call("Crash", empty(), None)).await.is_err());
    }
    let begun = Instant::now();
    let status = loop {
        let status = world.host.info("looper").expect("known");
        if status.state == State::CrashLoop {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "{}: {}", status.state, status.reason);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(status.reason.starts_with("crash loop"), "{}", status.reason);
    assert_eq!((status.crashes, status.restarts, status.pid), (3, 2, None));
    world.host.unload("looper").await.expect("unloads");
}

#[tokio::test]
async fn a_plugin_that_is_never_ready_fails_with_its_last_words_and_leaves_nothing() {
    let world = World::with(|config| config.start_timeout = Duration::from_millis(1_500)).await;
    let error = world.load("slow", &["--say", "waiting for a database", "--not-serving"]).await;
    let text = error.expect_err("never ready").to_string();
    assert!(text.contains("not ready after 1.5s"), "{text}");
    assert!(text.contains("NOT_SERVING"), "{text}");
    assert!(text.contains("\n  waiting for a database"), "{text}");

    let error = world.load("mute", &["--silent"]).await.expect_err("never listens");
    let text = error.to_string();
    assert!(text.contains("cannot be reached") && text.contains("it logged nothing"), "{text}");

    for name in ["slow", "mute"] {
        let status = world.host.info(name).expect("shown");
        assert_eq!((status.state, status.pid), (State::Failed, None));
        assert!(!world.config.run_dir.join("plugins").join(name).exists());
    }
    assert!(world.store.0.lock().is_empty());
}

#[tokio::test]
async fn a_start_that_fails_says_which_step_and_why() {
    let world = World::new().await;
    let error = world.load("gone", &["--say", "no licence", "--exit", "3"]).await;
    let text = error.expect_err("it exits").to_string();
    assert!(text.contains("ended before it was ready: exit status 3"), "{text}");
    assert!(text.contains("\n  no licence\n  as json"), "{text}");

    let hidden = world.config.data_dir.clone();
    std::fs::create_dir_all(&hidden).expect("made");
    let inside = hidden.join("tool");
    std::fs::copy(probe_program(), &inside).expect("copied");
    let source = Source::Path(inside);
    let request = LoadRequest { wait: true, ..LoadRequest::new(source) };
    let error = world.host.load(request).await.expect_err("hidden");
    assert!(error.to_string().contains("no plugin may see"), "{error}");
}

#[tokio::test]
async fn the_plugin_sees_nothing_that_it_was_not_given() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    let instance = world.ready().await.instance;
    let seen = world.see(instance).await;

    let processes = seen["processes"].as_array().expect("a list");
    assert_eq!(processes.len(), 2, "{processes:?}");
    let environment = seen["environment"].as_object().expect("a map");
    assert!(!environment.contains_key("CARGO_MANIFEST_DIR"), "{environment:?}");
    assert_eq!(environment["HOME"], "/tmp");
    assert_eq!(environment["BH_PLUGIN_NAME"], "probe");
    assert_eq!(seen["mesh"], true, "its way to the mesh is open");
    assert_eq!(seen["directory"], "/tmp");
    let root: Vec<&str> =
        seen["root"].as_array().expect("a list").iter().filter_map(|name| name.as_str()).collect();
    for hidden in ["root", "home", "var", "boot"] {
        assert!(!root.contains(&hidden) || Path::new("/").join(hidden) == probe_home(), "{root:?}");
    }
    // Standard streams, and what the runtime itself opens: sockets and event queues.
    for descriptor in seen["descriptors"].as_array().expect("a list") {
        let text = descriptor.as_str().expect("text");
        let (_, target) = text.split_once(' ').expect("number and target");
        let known = ["/dev/null", "pipe:", "socket:", "anon_inode:", "/proc/"];
        assert!(known.iter().any(|begin| target.starts_with(begin)), "{text}");
    }
    world.host.shutdown().await;
}

/// The first directory of the path to the test double, which of course is visible.
fn probe_home() -> PathBuf {
    probe_program().components().take(2).collect()
}

#[tokio::test]
async fn a_program_that_only_knows_tcp_is_reached_in_its_own_network() {
    let mut world = World::new().await;
    // The same port for both, and perhaps taken outside: each has a network of its own.
    world.load_listening("one", "tcp:50051", &["--tcp", "50051"]).await.expect("loads");
    let one = world.ready().await.instance;
    world.load_listening("two", "tcp:50051", &["--tcp", "50051"]).await.expect("loads");
    let two = world.ready().await.instance;
    for (instance, name) in [(one, "one"), (two, "two")] {
        assert_eq!(world.see(instance).await["environment"]["BH_PLUGIN_NAME"], name);
    }
    assert!(
        std::net::TcpStream::connect_timeout(
            &"127.0.0.1:50051".parse().expect("an address"),
            Duration::from_millis(200)
        )
        .is_err(),
        "nobody outside can reach it"
    );
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_program_may_take_its_listener_from_the_host() {
    let mut world = World::new().await;
    world.load_listening("probe", "fd", &["--fd"]).await.expect("loads");
    let instance = world.ready().await.instance;
    // The program has asserted that the variables were there, and answers on what it took.
    assert_eq!(world.see(instance).await["environment"]["BH_PLUGIN_NAME"], "probe");
    world.host.shutdown().await;
}

#[tokio::test]
async fn programs_without_health_or_reflection_work_and_their_status_says_so() {
    let mut world = World::new().await;
    let status = world.load("plain", &["--no-health", "--no-reflection"]).await.expect("loads");
    assert_eq!(status.state, State::Running);
    assert_eq!(status.warnings.len(), 2, "{:?}", status.warnings);
    assert!(status.warnings[0].contains("no health service"), "{:?}", status.warnings);
    assert!(status.warnings[1].contains("--service"), "{:?}", status.warnings);
    world.ready().await;

    let argv = vec![probe_program().display().to_string(), "--no-reflection".into()];
    let services = vec!["probe.v1.Probe".into()];
    let source = Source::Exec(Command { argv, services, ..Command::default() });
    let request =
        LoadRequest { name: Some("declared".into()), wait: true, ..LoadRequest::new(source) };
    world.host.load(request).await.expect("loads");
    let ready = world.ready().await;
    assert_eq!(ready.services[0].0.as_str(), "probe.v1.Probe");
    assert_eq!(ready.services[0].1, [0; 32], "no descriptors, no hash");
    world.host.shutdown().await;
}

#[tokio::test]
async fn an_unhealthy_plugin_is_ended_and_started_again() {
    let mut world = World::with(|config| {
        config.health.interval = Duration::from_millis(50);
        config.stop_grace = Duration::from_millis(200);
    })
    .await;
    world.load("ill", &["--unhealthy-after", "300"]).await.expect("loads");
    let first = world.ready().await.instance;
    match world.event().await {
        HostEvent::Gone { instance, reason, .. } => {
            assert_eq!(instance, first);
            assert!(reason.contains("3 health checks in a row failed"), "{reason}");
        }
        HostEvent::Ready(_) => panic!("it must be gone first"),
    }
    assert_ne!(world.ready().await.instance, first);
    world.host.shutdown().await;
}

#[tokio::test]
async fn unloading_lets_calls_finish_and_kills_what_does_not_end() {
    let mut world = World::with(|config| config.stop_grace = Duration::from_secs(6)).await;
    let status = world.load("probe", &["--ignore-term", "--fork"]).await.expect("loads");
    let instance = world.ready().await.instance;
    let channel = world.reach(instance).await.expect("ready");
    let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, Failure>>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
    let stream = Body::new(StreamBody::new(stream));
    let reply = channel.invoke(call("Echo", stream, None)).await.expect("sent");
    let host = world.host.clone();
    let unloading = tokio::spawn(async move { host.unload("probe").await });
    assert!(matches!(world.event().await, HostEvent::Gone { .. }));
    assert_eq!(world.host.info("probe").expect("known").state, State::Draining);
    assert!(world.reach(instance).await.is_err(), "nobody new");
    send.send(Ok(Frame::data(message(b"last")))).await.expect("the call goes on");
    drop(send);
    assert_eq!(read(reply).await.messages, [b"last"]);
    unloading.await.expect("no panic").expect("unloads");
    assert!(!alive(status.pid.expect("ran")), "SIGTERM was ignored, SIGKILL is not");
}

#[tokio::test]
async fn what_was_loaded_is_loaded_again_by_the_next_host() {
    let mut world = World::new().await;
    world.load("probe", &[]).await.expect("loads");
    world.ready().await;
    world.host.shutdown().await;
    assert_eq!(world.store.0.lock().len(), 1);
    let (host, mut events) = Host::start(world.config.clone(), world.store.clone(), Arc::new(Door))
        .await
        .expect("again");
    match timeout(PATIENCE, events.recv()).await.expect("in time").expect("lives") {
        HostEvent::Ready(ready) => assert_eq!(ready.name, "probe"),
        HostEvent::Gone { .. } => panic!("not ready yet"),
    }
    host.shutdown().await;
}

#[tokio::test]
async fn requests_that_cannot_be_met_change_nothing() {
    let world = World::with(|config| config.plugins_max = 1).await;
    let told = |error: LoadError| error.to_string();
    world.load("probe", &[]).await.expect("loads");
    let again = world.load("probe", &[]).await.expect_err("twice");
    assert!(told(again).contains("is loaded already"));
    let other = world.load("other", &[]).await.expect_err("full");
    assert!(told(other).contains("no more are allowed"));
    assert_eq!(world.host.list().len(), 1);
    let bad = world.load("Not A Name", &[]).await.expect_err("a bad name");
    assert!(told(bad).contains("not a plugin name"));
    let needs = "name: needy\nversion: 1.0.0\ndependencies: [storage >=1]";
    let needs = world.load_manifest(needs, "#!/bin/sh\n").await.expect_err("nobody there");
    assert!(told(needs).contains("storage >=1 is needed and not loaded"));
    world.host.shutdown().await;
}

#[tokio::test]
async fn without_namespaces_it_works_and_says_that_isolation_is_reduced() {
    let mut world = World::with(|config| config.namespaces = NamespacePolicy::Off).await;
    let status = world.load("probe", &["--fork"]).await.expect("loads");
    assert_eq!(status.isolation, "process (reduced)");
    assert!(!status.layers.iter().any(|layer| layer.ends_with("-ns")), "{:?}", status.layers);
    assert!(status.warnings[0].contains("isolation is reduced"), "{:?}", status.warnings);
    let instance = world.ready().await.instance;
    let seen = world.see(instance).await;
    assert!(!seen["environment"].as_object().expect("a map").contains_key("CARGO_MANIFEST_DIR"));
    world.host.shutdown().await;
    assert!(!alive(status.pid.expect("ran")));
}

#[tokio::test]
async fn memory_has_a_limit_and_the_others_go_on() {
    let mut world = World::new().await;
    let manifest = "name: eater\nversion: 1.0.0\nresources: { memory: 200 }\n\
                    restart: { policy: never }";
    let eater = world.load_manifest(manifest, "#!/bin/sh\nexec PROBE\n").await.expect("loads");
    assert_eq!(eater.memory_limit_bytes, Some(200 << 20));
    let held = |layer: &String| layer == "rlimit-memory" || layer.starts_with("cgroup-v");
    assert!(eater.layers.iter().any(held), "{:?}", eater.layers);
    let eater = world.ready().await.instance;
    world.load("other", &[]).await.expect("loads");
    let other = world.ready().await.instance;
    let channel = world.reach(eater).await.expect("ready");
    let failure = channel.invoke(call("Eat", empty(), None)).await.err().expect("it died");
    assert_eq!(failure.ran, Ran::Unknown);
    assert!(matches!(world.event().await, HostEvent::Gone { .. }));
    let channel = world.reach(other).await.expect("unaffected");
    let reply = channel.invoke(call("Echo", body(message(b"on")), None)).await.expect("sent");
    assert_eq!(read(reply).await.messages, [b"on"]);
    world.host.shutdown().await;
}

#[tokio::test]
async fn samples_of_the_process_are_shown() {
    let world = World::with(|config| config.stats_interval = Duration::from_millis(50)).await;
    world.load("probe", &[]).await.expect("loads");
    let begun = Instant::now();
    loop {
        let status = world.host.info("probe").expect("known");
        if status.memory_bytes > 1 << 20 && status.threads >= 3 && status.open_files >= 3 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.host.shutdown().await;
}

async fn kill_nine_of_the_host(namespaces: &[&str]) {
    use tokio::io::AsyncBufReadExt;
    let directory = tempfile::tempdir().expect("made");
    let mut node = tokio::process::Command::new(probe_program())
        .arg("host")
        .arg(directory.path().join("run"))
        .arg(directory.path().join("data"))
        .args(namespaces)
        .arg("--fork")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let output = node.stdout.take().expect("piped");
    let mut lines = tokio::io::BufReader::new(output).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable");
    let pid: u32 = line.expect("a line").parse().expect("a pid");
    let own = own_instance(pid);
    let begun = Instant::now();
    // A process that is just being made has no environment for a moment.
    let all = loop {
        let all = processes_of(&own);
        if all.len() >= 2 && all.contains(&pid) {
            break all;
        }
        assert!(begun.elapsed() < PATIENCE, "the plugin and what it forked: {all:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    node.kill().await.expect("kill -9");
    for pid in all {
        gone_within(pid, Duration::from_secs(1)).await;
    }
}

/// What marks every process of one run: its environment.
fn own_instance(pid: u32) -> Vec<u8> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("readable");
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find(|variable| variable.starts_with(b"BH_PLUGIN_INSTANCE=")).expect("set").to_vec()
}

fn processes_of(instance: &[u8]) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|text| text.windows(instance.len()).any(|part| part == instance))
    })
    .collect()
}

#[tokio::test]
async fn kill_nine_of_the_host_leaves_no_process_after_a_second() {
    kill_nine_of_the_host(&[]).await;
}

#[tokio::test]
async fn kill_nine_of_the_host_leaves_no_process_without_namespaces_either() {
    kill_nine_of_the_host(&["--namespaces-off"]).await;
}
