//! Guests in real runs: the packaged example, and those that mean harm.
#![cfg(feature = "wasm")]

mod support;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use blackhole_plugin_host::{LoadError, LoadRequest, PluginStatus, Source, State};
use protocol::{
    failure::Reason,
    manifest::{Isolation, Resources},
    ports::Call,
};
use support::{PATIENCE, World, body, call, message, read};
use tokio::time::timeout;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/wasm-echo")
}

/// A guest whose `bh_call` is `body`; `more` are further definitions.
fn guest(more: &str, body: &str) -> String {
    format!(
        "(module {more} (memory (export \"memory\") 1)
           (func (export \"bh_alloc\") (param i32) (result i32) (i32.const 1024))
           (func $call (export \"bh_call\") (param i32 i32 i32 i32) (result i64) {body}))"
    )
}

async fn load(world: &World, path: &Path) -> Result<PluginStatus, LoadError> {
    let request = LoadRequest { wait: true, ..LoadRequest::new(Source::Path(path.into())) };
    timeout(PATIENCE, world.host.load(request)).await.expect("an answer in time")
}

async fn load_text(world: &World, text: &str) -> Result<PluginStatus, LoadError> {
    let directory = tempfile::tempdir().expect("made").keep();
    let manifest = "name: g\nversion: 1.0.0\nisolation: wasm\nentrypoint: g.wasm\n\
                    interface: { services: [demo.v1.G] }\nresources: { memory: 2 }\n";
    std::fs::write(directory.join("plugin.yaml"), manifest).expect("written");
    let bytes = wat::parse_str(text).expect("a module");
    std::fs::write(directory.join("g.wasm"), bytes).expect("written");
    load(world, &directory).await
}

/// A call of `method`, a whole path.
fn to(method: &str, text: &[u8], within: Option<Duration>) -> Call {
    let mut call = call("See", body(message(text)), within);
    call.head.path = method.parse().expect("a path");
    call
}

/// The grpc-status, the messages and the status message of one call.
async fn say(world: &World, status: &PluginStatus, call: Call) -> (String, Vec<Vec<u8>>, String) {
    let channel = world.reach(status.instance.expect("runs")).await.expect("ready");
    let reply = channel.invoke(call).await.expect("answers");
    let head = reply.metadata.clone();
    let answer = read(reply).await;
    let told = |name: &str| {
        let value = answer.trailers.get(name).or_else(|| head.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    (told("grpc-status"), answer.messages.clone(), told("grpc-message").replace("%20", " "))
}

/// Loads a guest with this `bh_call` and calls it once.
async fn hostile(more: &str, body: &str) -> (World, PluginStatus, String, String) {
    let world = World::new().await;
    let status = load_text(&world, &guest(more, body)).await.expect("loads");
    let within = Some(Duration::from_millis(300));
    let (code, _, text) = say(&world, &status, to("/demo.v1.G/Do", b"x", within)).await;
    (world, status, code, text)
}

#[test]
fn the_packaged_module_is_its_source() {
    let text = std::fs::read_to_string(example().join("echo.wat")).expect("there");
    let assembled = wat::parse_str(text).expect("a module");
    if std::env::var_os("BH_ASSEMBLE").is_some() {
        std::fs::write(example().join("echo.wasm"), &assembled).expect("written");
    }
    let packaged = std::fs::read(example().join("echo.wasm")).expect("there");
    assert!(assembled == packaged, "echo.wat was changed: BH_ASSEMBLE=1 with this test writes it");
}

#[tokio::test]
async fn the_example_answers_and_shows_its_level() {
    let mut world = World::new().await;
    let status = load(&world, &example()).await.expect("loads");
    assert_eq!((status.state, status.isolation.as_str()), (State::Running, "wasm"));
    assert_eq!(status.pid, None);
    assert!(status.layers.iter().any(|layer| layer == "wasm-sandbox"), "{:?}", status.layers);
    let ready = world.ready().await;
    assert_ne!(ready.services[0].1, [0; 32], "it has a schema");
    let text = vec![b'a'; 300_000];
    let echoed = say(&world, &status, to("/demo.v1.WasmEcho/Say", &text, None)).await;
    assert_eq!((echoed.0.as_str(), echoed.1), ("0", vec![text]));
    let (code, _, why) = say(&world, &status, to("/demo.v1.WasmEcho/Nay", b"", None)).await;
    assert_eq!((code.as_str(), why.as_str()), ("12", "there is no such method"));
    let (code, _, why) = say(&world, &status, to("/demo.v1.WasmEcho/Chat", b"", None)).await;
    assert_eq!(code, "12", "{why}");
    world.host.unload("wasm-echo").await.expect("unloads");
    assert!(world.reach(ready.instance).await.is_err());
}

#[tokio::test]
async fn an_endless_guest_is_stopped_at_the_deadline_and_serves_on() {
    let world = World::new().await;
    let body = "(loop $l (br $l)) (i64.const 0)";
    let status = load_text(&world, &guest("", body)).await.expect("loads");
    let channel = world.reach(status.instance.expect("runs")).await.expect("ready");
    for _ in 0..6 {
        let within = Duration::from_millis(60);
        let begun = Instant::now();
        let call = to("/demo.v1.G/Do", b"x", Some(within));
        let reply = channel.invoke(call).await;
        // Whoever sees the deadline first tells it: the channel, or the guest's host.
        if let Err(failure) = reply {
            assert_eq!(failure.reason, Reason::DeadlineExceeded);
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    let now = world.host.info("g").expect("there");
    assert_eq!((now.state, now.crashes), (State::Running, 0), "{}", now.reason);
}

#[tokio::test]
async fn a_memory_bomb_is_recorded_as_that_and_handled_by_the_restart_policy() {
    const BROKE: &str = "3 calls in a row broke: OOM";
    let body = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) \
                unreachable";
    let (world, status, code, why) = hostile("", body).await;
    assert_eq!(code, "8", "{why}");
    assert!(why.contains("OOM") && why.contains("2 MB"), "{why}");
    let channel = world.reach(status.instance.expect("runs")).await.expect("ready");
    for _ in 0..2 {
        // The last of them may lose its answer to the end of the run.
        let _ = channel.invoke(to("/demo.v1.G/Do", b"x", None)).await;
    }
    let logs = world.host.logs("g").expect("there");
    let told = async {
        let told = || logs.tail(0).iter().any(|it| it.message.contains(BROKE));
        while world.host.info("g").expect("there").crashes == 0 || !told() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, told).await.expect("three in a row end the run, and it is said");
}

#[tokio::test]
async fn what_breaks_in_a_guest_breaks_its_own_call() {
    let cases = [
        (
            "call stack exhausted",
            "",
            "(call $call (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))",
        ),
        ("unreachable", "", "unreachable"),
        ("outside of its memory", "", "(i64.const 0x7fffffff00000010)"),
        ("the most", "", "(i64.const 0x00000000ffffffff)"),
        ("neither an answer nor a status", "", "(i64.const -9223372036854775808)"),
        (
            "leads outside",
            "(import \"blackhole\" \"log\" (func $log (param i32 i32 i32)))",
            "(call $log (i32.const 1) (i32.const -1) (i32.const -1)) (i64.const 0)",
        ),
    ];
    for (expected, more, body) in cases {
        let (world, _, code, why) = hostile(more, body).await;
        assert_eq!(code, "13", "{expected}: {why}");
        assert!(why.contains(expected), "{expected} is not in: {why}");
        assert_eq!(world.host.info("g").expect("there").state, State::Running);
    }
}

#[tokio::test]
async fn what_a_guest_may_not_import_and_what_is_no_guest_is_refused_by_name() {
    let world = World::new().await;
    let file = "(import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32)))";
    let told = load_text(&world, &guest(file, "(i64.const 0)")).await.expect_err("refused");
    assert!(told.to_string().contains("wasi_snapshot_preview1"), "{told}");
    let told = load_text(&world, "(module)").await.expect_err("refused");
    assert!(told.to_string().contains("does not export `memory`"), "{told}");
    let told = load_text(&world, "(component)").await.expect_err("refused");
    assert!(told.to_string().contains("it is a component"), "{told}");
    let huge = "(module (memory (export \"memory\") 60000)
        (func (export \"bh_alloc\") (param i32) (result i32) (i32.const 0))
        (func (export \"bh_call\") (param i32 i32 i32 i32) (result i64) (i64.const 0)))";
    let status = load_text(&world, huge).await.expect("its calls fail, not its start");
    let (code, _, why) = say(&world, &status, to("/demo.v1.G/Do", b"x", None)).await;
    assert_eq!(code, "8", "{why}");
}

#[tokio::test]
async fn the_operator_can_want_more_than_a_guest_has() {
    let world = World::with(|config| config.isolation_min = Isolation::Process).await;
    let told = load(&world, &example()).await.expect_err("refused").to_string();
    assert!(told.contains("`wasm`") && told.contains("isolation_min: process"), "{told}");
    assert!(world.host.list().is_empty());
}

#[tokio::test]
async fn the_memory_of_a_guest_changes_while_it_runs_and_nothing_else_of_it_can() {
    let world = World::new().await;
    // A hundred pages more are 6.4 MB.
    let body = "(if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable)) \
                (i64.const 0)";
    let status = load_text(&world, &guest("", body)).await.expect("loads");
    let (code, _, text) = say(&world, &status, to("/demo.v1.G/Do", b"x", None)).await;
    assert_eq!(code, "8", "{text}");
    let memory = Resources { memory_bytes: Some(16 << 20), ..Resources::default() };
    let after = world.host.limit("g", memory).await.expect("changed");
    let told = after.mechanisms.iter().find(|it| it.resource == "memory").expect("told");
    assert_eq!((told.limit.as_str(), &told.means[..8]), ("16 MiB", "wasmtime"));
    let (code, _, text) = say(&world, &status, to("/demo.v1.G/Do", b"x", None)).await;
    assert_eq!(code, "0", "{text}");
    let cpu = Resources { cpu_percent: Some(50), ..Resources::default() };
    let refused = world.host.limit("g", cpu).await.expect_err("nothing could hold it");
    assert!(refused.to_string().contains("a guest has no process"), "{refused}");
    let told = world.host.info("g").expect("there").mechanisms;
    assert!(told.iter().all(|it| it.means.starts_with("wasmtime")), "{told:#?}");
}
