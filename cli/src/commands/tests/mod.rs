//! Commands from the line to the output, against a node that is served in this process.

mod fake;

use std::{
    io::{Read, Write},
    path::Path,
    sync::{Arc, Mutex},
};

use clap::Parser;
use protocol::proto::admin::plugin_load_request::From as Source;
use serde_json::Value;
use tokio::sync::mpsc;

use self::fake::{PEER, Running, start};
use super::{World, run};
use crate::{
    args::Cli,
    failed::{Exit, Failed},
    places::Places,
    terminal::Terminal,
};

/// Pieces of output that a test may leave unread: more than any test waits for.
const PIECES_MAX: usize = 256;

/// Everything written, and word of each piece.
#[derive(Clone)]
struct Sink {
    text: Arc<Mutex<Vec<u8>>>,
    pieces: mpsc::Sender<String>,
}

impl Sink {
    fn new() -> (Self, mpsc::Receiver<String>) {
        let (pieces, written) = mpsc::channel(PIECES_MAX);
        (Self { text: Arc::default(), pieces }, written)
    }

    fn text(&self) -> String {
        String::from_utf8(self.text.lock().expect("unpoisoned").clone()).expect("UTF-8")
    }
}

impl Write for Sink {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        self.text.lock().expect("unpoisoned").extend_from_slice(piece);
        let _ = self.pieces.try_send(String::from_utf8_lossy(piece).into_owned());
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a command line ended, and what it said.
struct Outcome {
    result: Result<Exit, Failed>,
    out: String,
    err: String,
}

impl Outcome {
    fn ok(self) -> String {
        assert_eq!(self.result, Ok(Exit::Ok), "{}", self.err);
        self.out
    }

    fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn failed(self) -> Failed {
        self.result.expect_err(&self.out)
    }
}

fn world(directory: &Path) -> World {
    World {
        places: Places {
            data_dir: directory.into(),
            run_dir: directory.into(),
            admin_socket: directory.join("admin.sock"),
        },
        directory: directory.into(),
        search_path: Some("/usr/bin:/bin".into()),
    }
}

async fn perform(directory: &Path, line: &str, input: impl Read + Send + 'static) -> Outcome {
    let words = shlex::split(line).expect("the test's own quoting is right");
    let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    let ((out, _), (err, _)) = (Sink::new(), Sink::new());
    let mut terminal = Terminal::to(Box::new(out.clone()), Box::new(err.clone()), Box::new(input));
    let result = run(&cli, &world(directory), &mut terminal).await;
    Outcome { result, out: out.text(), err: err.text() }
}

async fn on(node: &Running, line: &str) -> Outcome {
    perform(node.directory.path(), line, std::io::empty()).await
}

#[tokio::test]
async fn every_command_that_needs_a_node_says_when_there_is_none() {
    let directory = tempfile::tempdir().expect("a directory");
    for line in [
        "stop",
        "status",
        "health",
        "plugin list",
        "plugin info x",
        "plugin logs x",
        "plugin unload x",
        "plugin load --exec 'sh' --listen unix",
        "services",
        "describe a.B",
        "call a.B/C",
        "peers",
        "registry query a.B",
        "explain a.B",
    ] {
        let line = format!("blackhole {line}");
        let failed = perform(directory.path(), &line, std::io::empty()).await.failed();
        assert_eq!(failed.exit, Exit::Unreachable, "{line}");
        assert!(failed.message.contains("start one with `blackhole start`"), "{line}: {failed}");
    }
}

#[tokio::test]
async fn status_and_its_older_name_show_the_same() {
    let node = start(true);
    let text = on(&node, "blackhole status --detailed").await.ok();
    assert!(text.contains("alpha") && text.contains("counter") && text.contains(PEER), "{text}");
    assert_eq!(on(&node, "blackhole system status --detailed").await.ok(), text);
    let document = on(&node, "blackhole status --json").await.json();
    assert_eq!(document["plugins"][0]["name"], "counter");
}

#[tokio::test]
async fn health_is_exit_code_five_when_something_is_wrong() {
    let node = start(true);
    on(&node, "blackhole health").await.ok();
    assert!(on(&node, "blackhole health --check-all").await.ok().contains("written and read"));
    let ill = start(false);
    for line in ["blackhole health", "blackhole health --check-all --json"] {
        let outcome = on(&ill, line).await;
        assert_eq!(outcome.result, Ok(Exit::Unhealthy), "{line}");
        assert!(outcome.out.contains("healthy"), "{}", outcome.out);
    }
}

#[tokio::test]
async fn stop_asks_the_node_to_stop() {
    let node = start(true);
    // The fake node is this process, which nobody can wait for from within.
    assert_eq!(on(&node, "blackhole stop").await.ok(), "stopping\n");
}

#[tokio::test]
async fn load_sends_absolute_paths_and_prints_the_plugin() {
    let node = start(true);
    std::fs::create_dir(node.directory.path().join("counter")).expect("made");
    let text = on(&node, "blackhole plugin load ./counter --wait").await.ok();
    assert_eq!(text, "counter is running: demo.v1.Counter\n");
    let document = on(
        &node,
        "blackhole plugin load --exec 'sh -c \"sleep 1\"' --listen tcp:5051 --json --name n",
    );
    assert_eq!(document.await.json()["name"], "counter");
    let loads = node.seen.loads.lock().expect("unpoisoned");
    let path = node.directory.path().join("counter").display().to_string();
    assert_eq!(loads[0].from, Some(Source::Path(path)));
    assert!(loads[0].wait && !loads[1].wait);
    let Some(Source::Exec(exec)) = &loads[1].from else { panic!("a command line expected") };
    assert_eq!(exec.argv[1..], ["-c", "sleep 1"]);
    assert_eq!(exec.listen, "tcp:5051");
    assert_eq!(loads[1].name, "n");
}

#[tokio::test]
async fn plugins_are_listed_shown_and_unloaded() {
    let node = start(true);
    assert!(on(&node, "blackhole plugin list").await.ok().contains("counter"));
    assert_eq!(on(&node, "blackhole plugin info counter --json").await.json()["pid"], 42);
    assert_eq!(on(&node, "blackhole plugin unload counter").await.ok(), "counter was unloaded\n");
    for verb in ["info", "logs", "unload"] {
        let failed = on(&node, &format!("blackhole plugin {verb} nobody")).await.failed();
        assert_eq!(failed.exit, Exit::NotFound, "{verb}");
        assert!(failed.hint.is_some_and(|hint| hint.contains("plugin list")), "{verb}");
    }
}

#[tokio::test]
async fn logs_are_one_line_each() {
    let node = start(true);
    let text = on(&node, "blackhole plugin logs counter --tail 5 --follow --json").await.ok();
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["message"], "second");
    let asked = node.seen.logs.lock().expect("unpoisoned");
    assert_eq!((asked[0].tail, asked[0].follow), (5, true));
}

#[tokio::test]
async fn the_mesh_is_shown() {
    let node = start(true);
    assert!(on(&node, "blackhole services").await.ok().contains("demo.v1.Counter"));
    assert!(on(&node, "blackhole peers").await.ok().contains(PEER));
    let text = on(&node, "blackhole describe demo.v1.Counter").await.ok();
    assert!(text.contains("rpc Chat (stream AddRequest) returns (stream AddReply);"), "{text}");
    let document = on(&node, "blackhole describe demo.v1.Counter --json").await.json();
    assert_eq!(document["provider"], PEER);
    assert!(on(&node, "blackhole registry query demo.v1.Counter").await.ok().contains(PEER));
}

#[tokio::test]
async fn what_nobody_offers_is_exit_code_four() {
    let node = start(true);
    let absent = on(&node, "blackhole describe demo.v1.Absent").await.failed();
    assert_eq!(absent.exit, Exit::NotFound);
    assert!(absent.hint.is_some_and(|hint| hint.contains("blackhole services")));
    let query = on(&node, "blackhole registry query demo.v1.Absent --json").await;
    assert_eq!(query.result, Ok(Exit::NotFound));
    assert!(query.out.contains("\"in_dht\": []"), "{}", query.out);
}

#[tokio::test]
async fn explain_passes_on_where_the_call_may_go() {
    let node = start(true);
    for flags in ["", "--prefer-local", "--peer beta"] {
        let line = format!("blackhole explain demo.v1.Counter {flags}");
        assert!(on(&node, &line).await.ok().contains("peer beta is chosen"));
    }
    let asked = node.seen.explained.lock().expect("unpoisoned");
    let localities: Vec<&str> = asked.iter().map(|asked| asked.locality.as_str()).collect();
    assert_eq!(localities, ["", "prefer-local", &format!("peer={PEER}")]);
}

#[tokio::test]
async fn explain_makes_a_call_and_tells_its_steps_whatever_its_end() {
    let node = start(true);
    let line = "blackhole explain demo.v1.Counter/Add --call";
    let text = on(&node, &format!("{line} -d '{{\"amount\": 7}}'")).await.ok();
    assert!(text.contains("peer beta answered") && text.contains("/demo.v1.Counter/Add"), "{text}");
    let failed = on(&node, &format!("{line} --json")).await;
    assert!(failed.out.contains("\"code\": \"UNAVAILABLE\""), "{}", failed.out);
    assert_eq!(failed.failed().exit, Exit::Failed);
    let unsaid = on(&node, "blackhole explain demo.v1.Counter --call").await.failed();
    assert_eq!(unsaid.exit, Exit::Usage);
}

#[tokio::test]
async fn a_unary_call_answers_in_json() {
    let node = start(true);
    let call = "blackhole call demo.v1.Counter/Add";
    let text = on(&node, &format!("{call} -d '{{\"amount\": 7}}'")).await.ok();
    assert_eq!(text, "{\n  \"count\": \"7\"\n}\n");
    let text = on(&node, &format!("{call} -d '{{\"amount\": 7}}' --json")).await.ok();
    assert_eq!(text, "{\"count\":\"7\"}\n");
    assert_eq!(on(&node, &format!("{call} --json")).await.ok(), "{}\n");
    let text = on(&node, &format!("{call} --json --emit-defaults")).await.ok();
    assert_eq!(text, "{\"count\":\"0\",\"from\":\"\"}\n");
}

#[tokio::test]
async fn options_of_a_call_travel_as_metadata() {
    let node = start(true);
    let line =
        "blackhole call demo.v1.Counter/Add --local --timeout 5s -H tenant:blue -H x-bin:AAE=";
    on(&node, line).await.ok();
    let seen = node.seen.called_with.lock().expect("unpoisoned").clone();
    assert_eq!(seen.get("bh-locality").expect("sent"), "local");
    assert_eq!(seen.get("tenant").expect("sent"), "blue");
    assert_eq!(seen.get_bin("x-bin").expect("sent").to_bytes().expect("base64")[..], [0, 1]);
    assert!(seen.contains_key("grpc-timeout"));
    on(&node, "blackhole call demo.v1.Counter/Add --peer beta").await.ok();
    let seen = node.seen.called_with.lock().expect("unpoisoned").clone();
    assert_eq!(seen.get("bh-peer").expect("sent"), PEER);
    let unknown = on(&node, "blackhole call demo.v1.Counter/Add --peer gamma").await.failed();
    assert_eq!(unknown.exit, Exit::NotFound);
}

#[tokio::test]
async fn all_four_kinds_of_method_are_called() {
    let node = start(true);
    let three = "{\"amount\":1} {\"amount\":2}\n{\"amount\":3}";
    let watch = "blackhole call demo.v1.Counter/Watch -d '{\"amount\":4}' --json";
    assert_eq!(on(&node, watch).await.ok(), "{\"count\":\"4\"}\n{\"count\":\"4\"}\n");
    let sum = format!("blackhole call demo.v1.Counter/Sum -d '{three}' --json");
    assert_eq!(on(&node, &sum).await.ok(), "{\"count\":\"3\"}\n");
    let file = node.directory.path().join("requests.json");
    std::fs::write(&file, three).expect("written");
    let chat = format!("blackhole call demo.v1.Counter/Chat -d @{} --json", file.display());
    let echoed = "{\"count\":\"1\"}\n{\"count\":\"2\"}\n{\"count\":\"3\"}\n";
    assert_eq!(on(&node, &chat).await.ok(), echoed);
    let line = "blackhole call demo.v1.Counter/Chat -d - --json";
    let outcome = perform(node.directory.path(), line, three.as_bytes()).await;
    assert_eq!(outcome.ok(), echoed);
}

#[tokio::test]
async fn requests_of_a_stream_are_sent_as_they_come() {
    let node = start(true);
    let (input, mut typed) = std::io::pipe().expect("a pipe");
    let line = ["blackhole", "call", "demo.v1.Counter/Chat", "-d", "-", "--json"];
    let cli = Cli::try_parse_from(line).expect("valid");
    let ((out, mut answers), (err, _)) = (Sink::new(), Sink::new());
    let mut terminal = Terminal::to(Box::new(out.clone()), Box::new(err), Box::new(input));
    let world = world(node.directory.path());
    let typing = async {
        for amount in 1..=3 {
            write!(typed, "{{\"amount\":{amount}}}").expect("typed");
            // The answer comes while the input is still open.
            let mut answer = String::new();
            while !answer.ends_with('\n') {
                answer.push_str(&answers.recv().await.expect("the call is under way"));
            }
            assert_eq!(answer, format!("{{\"count\":\"{amount}\"}}\n"));
        }
        drop(typed);
    };
    let (result, ()) = tokio::join!(run(&cli, &world, &mut terminal), typing);
    assert_eq!(result, Ok(Exit::Ok));
}

#[tokio::test]
async fn a_request_that_does_not_fit_ends_the_call_without_an_answer() {
    let node = start(true);
    let sum = "blackhole call demo.v1.Counter/Sum -d '{\"amount\":1} {\"amout\":2}'";
    let failed = on(&node, sum).await;
    assert_eq!(failed.out, "", "half a stream must not be summed");
    let failed = failed.failed();
    assert_eq!(failed.exit, Exit::Usage);
    assert!(failed.message.contains("amout"), "{failed}");
    for (data, said) in [
        ("{\"amount\":1}{\"amount\":2}", "takes exactly one message"),
        ("{\"amount\":", "is not JSON"),
        ("[1]", "is not a demo.v1.AddRequest"),
    ] {
        let line = format!("blackhole call demo.v1.Counter/Add -d '{data}'");
        let failed = on(&node, &line).await.failed();
        assert_eq!(failed.exit, Exit::Usage, "{data}");
        assert!(failed.message.contains(said), "{data}: {failed}");
    }
    let absent = on(&node, "blackhole call demo.v1.Counter/Add -d @/nowhere.json").await.failed();
    assert_eq!(absent.exit, Exit::NotFound);
}

#[tokio::test]
async fn a_call_that_fails_says_why_and_what_to_do() {
    let node = start(true);
    let failed = on(&node, "blackhole call demo.v1.Counter/Add -H fail:1").await.failed();
    assert_eq!(failed.exit, Exit::Failed);
    assert_eq!(failed.message, "UNAVAILABLE: service demo.v1.Counter not available");
    assert!(failed.hint.is_some_and(|hint| hint.contains("blackhole services")));
    let failed = on(&node, "blackhole call demo.v1.Counter/Nothing").await.failed();
    assert_eq!(failed.exit, Exit::NotFound);
    assert!(failed.message.contains("it has Add, Watch, Sum, Chat"), "{failed}");
    let failed = on(&node, "blackhole call demo.v1.Absent/Add").await.failed();
    assert_eq!(failed.exit, Exit::NotFound);
    assert_eq!(failed.message, "service demo.v1.Absent not available");
}

#[tokio::test]
async fn a_call_without_answer_ends_at_its_deadline() {
    let node = start(true);
    let line = "blackhole call demo.v1.Counter/Add -H hang:1 --timeout 50ms";
    let failed = on(&node, line).await.failed();
    assert_eq!(failed.code, Some("DEADLINE_EXCEEDED"));
}

#[tokio::test]
async fn metadata_is_shown_beside_the_answer() {
    let node = start(true);
    let outcome = on(&node, "blackhole call demo.v1.Counter/Add -v --json -H tenant:blue").await;
    assert!(outcome.err.contains("> tenant: blue"), "{}", outcome.err);
    assert!(outcome.err.contains("< served-by: fake"), "{}", outcome.err);
    assert_eq!(outcome.ok(), "{}\n");
}

#[tokio::test]
async fn completions_know_the_commands() {
    let nowhere = Path::new("/nowhere");
    for shell in ["bash", "zsh", "fish"] {
        let line = format!("blackhole completion {shell}");
        let script = perform(nowhere, &line, std::io::empty()).await.ok();
        assert!(script.contains("registry") && script.contains("prefer-local"), "{shell}");
    }
}

#[tokio::test]
async fn doctor_works_with_and_without_a_node() {
    let node = start(true);
    let with = on(&node, "blackhole doctor --json").await;
    let document: Value = serde_json::from_str(&with.out).expect("JSON");
    let found: Vec<&str> = document["checks"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|c| c["found"].as_str())
        .collect();
    assert!(found.iter().any(|found| found.starts_with("alpha runs")), "{found:?}");
    let directory = tempfile::tempdir().expect("a directory");
    let without = perform(directory.path(), "blackhole doctor", std::io::empty()).await;
    assert!(without.out.contains("not running"), "{}", without.out);
    assert!(matches!(without.result, Ok(Exit::Ok | Exit::Unhealthy)));
}

#[test]
fn the_reference_has_every_command() {
    fn paths(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let path = format!("{above} {}", command.get_name()).trim().to_owned();
            if command.has_subcommands() {
                paths(command, &path, found);
            } else {
                found.push(path);
            }
        }
    }
    let reference = include_str!("../../../../docs/src/reference/cli.md");
    let mut commands = Vec::new();
    paths(&<Cli as clap::CommandFactory>::command(), "", &mut commands);
    for command in commands {
        let heading = format!("# `{command}`\n");
        assert!(reference.contains(&heading), "docs/src/reference/cli.md lacks `{command}`");
    }
}
