//! The plugin contract, seen from a node: real processes, the socket they are given, SIGTERM.

use std::os::unix::{net::UnixListener, process::ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::{fs, path::PathBuf, time::Duration};

use blackhole_plugins::demo::{
    AddRequest, BehaveRequest, FetchRequest, GetRequest, HandleRequest, InfoRequest, LingerRequest,
    MisbehaveRequest, OutcomeRequest, PutRequest, RepeatRequest, SayRequest, ScanRequest,
    counter_client::CounterClient, echo_client::EchoClient, kv_client::KvClient,
    misfit_client::MisfitClient, probe_client::ProbeClient,
};
use command_fds::{CommandFdExt, FdMapping};
use protocol::manifest::{Defaults, Manifest};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A plugin as a node would run it, without a jail. Killed when dropped.
struct Process {
    child: Option<Child>,
    directory: TempDir,
}

impl Process {
    /// Starts it with a socket of its own to bind.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let mut command = command(program, arguments);
        command.env("BH_PLUGIN_SOCKET", directory.path().join("s"));
        Self { child: Some(command.spawn().expect(program)), directory }
    }

    /// Starts it with a listener that is already open, as descriptor 3.
    fn start_with_listener(program: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("listener");
        let mut command = command(program, arguments);
        command.env("LISTEN_FDS", "1");
        let mapping = FdMapping { parent_fd: listener.into(), child_fd: 3 };
        command.fd_mappings(vec![mapping]).expect("descriptor 3 is free in the child");
        Self { child: Some(command.spawn().expect(program)), directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// A channel, as soon as it accepts connections.
    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket().display()));
        let endpoint = endpoint.expect("a path");
        let connected = async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("it accepts connections")
    }

    fn terminate(&self) {
        let pid = Pid::from_child(self.child.as_ref().expect("running"));
        kill_process(pid, Signal::TERM).expect("SIGTERM");
    }

    async fn output(mut self) -> Output {
        let child = self.child.take().expect("running");
        let waiting = tokio::task::spawn_blocking(|| child.wait_with_output());
        let ended = tokio::time::timeout(PATIENCE, waiting).await.expect("it ends by itself");
        ended.expect("task").expect("output")
    }

    async fn ended(self) -> ExitStatus {
        self.output().await.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("killed");
        }
    }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let path = match program {
        "echo" => env!("CARGO_BIN_EXE_echo"),
        "counter" => env!("CARGO_BIN_EXE_counter"),
        "kv" => env!("CARGO_BIN_EXE_kv"),
        "misfit" => env!("CARGO_BIN_EXE_misfit"),
        _ => panic!("{program} is no plugin"),
    };
    let mut command = Command::new(path);
    command.args(arguments).env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

async fn serving(channel: Channel) -> Result<ServingStatus, tonic::Status> {
    let mut health = HealthClient::new(channel);
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    request.set_timeout(Duration::from_secs(1));
    Ok(health.check(request).await?.into_inner().status())
}

fn say(text: &str) -> SayRequest {
    SayRequest { text: text.into() }
}

#[tokio::test]
async fn the_papers_quick_start_works_as_written() {
    let plugin = Process::start("echo", &[]);
    let mut echo = EchoClient::new(plugin.channel().await);
    let info = echo.info(InfoRequest {}).await.expect("info").into_inner();
    assert_eq!((info.name.as_str(), info.version.as_str()), ("echo", "1.0.0"));
    assert!(!info.description.is_empty());
    let request = HandleRequest { data: b"\x00hello\xff".to_vec() };
    let reply = echo.handle(request).await.expect("handle").into_inner();
    assert!(reply.success);
    assert_eq!(reply.data, b"Echo: \x00hello\xff");
}

#[tokio::test]
async fn echo_answers_all_four_kinds_of_call_on_an_inherited_listener() {
    let plugin = Process::start_with_listener("echo", &[]);
    let mut echo = EchoClient::new(plugin.channel().await);
    assert_eq!(echo.say(say("one")).await.expect("unary").into_inner().text, "Echo: one");

    let repeat = RepeatRequest { text: "two".into(), times: 3 };
    let replies = echo.repeat(repeat).await.expect("server").into_inner();
    let texts: Vec<_> = replies.map(|reply| reply.expect("reply").text).collect().await;
    assert_eq!(texts, ["Echo: two"; 3]);

    let words = || tokio_stream::iter(["a", "b", "c"].map(say));
    assert_eq!(echo.join(words()).await.expect("client").into_inner().text, "Echo: a b c");

    let replies = echo.chat(words()).await.expect("both").into_inner();
    let texts: Vec<_> = replies.map(|reply| reply.expect("reply").text).collect().await;
    assert_eq!(texts, ["Echo: a", "Echo: b", "Echo: c"]);
}

#[tokio::test]
async fn one_socket_answers_all_four_kinds_of_call_in_both_dialects_at_once() {
    let plugin = Process::start_with_listener("echo", &[]);
    let mut http = EchoClient::new(plugin.channel().await);
    let mut frames = EchoClient::new(sdk::LinkChannel::unix(plugin.socket()));
    assert_eq!(http.say(say("one")).await.expect("unary").into_inner().text, "Echo: one");
    assert_eq!(frames.say(say("one")).await.expect("unary").into_inner().text, "Echo: one");

    let repeat = RepeatRequest { text: "two".into(), times: 1_000 };
    let replies = frames.repeat(repeat).await.expect("server").into_inner();
    let texts: Vec<_> = replies.map(|reply| reply.expect("reply").text).collect().await;
    assert_eq!(texts, vec!["Echo: two"; 1_000]);

    let words = || tokio_stream::iter(["a", "b", "c"].map(say));
    assert_eq!(frames.join(words()).await.expect("client").into_inner().text, "Echo: a b c");
    let replies = frames.chat(words()).await.expect("both").into_inner();
    let texts: Vec<_> = replies.map(|reply| reply.expect("reply").text).collect().await;
    assert_eq!(texts, ["Echo: a", "Echo: b", "Echo: c"]);
    assert_eq!(http.say(say("still")).await.expect("unary").into_inner().text, "Echo: still");
}

#[tokio::test]
async fn the_health_answer_says_that_the_socket_takes_frames() {
    let plugin = Process::start("echo", &[]);
    let mut health = HealthClient::new(plugin.channel().await);
    let answer = health.check(HealthCheckRequest { service: String::new() }).await.expect("asked");
    let (name, value) = protocol::frame::ANNOUNCEMENT;
    assert_eq!(answer.metadata().get(name).expect("said"), value);
}

#[tokio::test]
async fn a_call_in_frames_is_finished_after_sigterm_and_a_new_one_is_not_begun() {
    let plugin = Process::start("echo", &[]);
    plugin.channel().await;
    let channel = sdk::LinkChannel::unix(plugin.socket());
    let mut probe = ProbeClient::new(channel.clone());
    let linger = LingerRequest { key: "k".into(), millis: 500 };
    let going_on = tokio::spawn(async move { probe.linger(linger).await });
    let mut asking = ProbeClient::new(channel.clone());
    let begun = async {
        let ask = || OutcomeRequest { key: "k".into() };
        while asking.outcome(ask()).await.expect("outcome").into_inner().begun == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.expect("begun");
    plugin.terminate();
    going_on.await.expect("task").expect("it is finished");
    assert!(plugin.ended().await.success());
    let late = asking.outcome(OutcomeRequest { key: "k".into() }).await.expect_err("gone");
    assert_eq!(late.code(), Code::Unavailable);
}

#[tokio::test]
async fn counters_count_and_tell_who_watches() {
    let plugin = Process::start("counter", &[]);
    let mut counter = CounterClient::new(plugin.channel().await);
    let named = || GetRequest { name: "hits".into() };
    let add = |amount| AddRequest { name: "hits".into(), amount };
    let mut watched = counter.watch(named()).await.expect("watch").into_inner();
    assert_eq!(watched.next().await.expect("first").expect("count").value, 0);
    assert_eq!(counter.add(add(5)).await.expect("add").into_inner().value, 5);
    assert_eq!(watched.next().await.expect("second").expect("count").value, 5);
    counter.add(AddRequest { name: "other".into(), amount: 1 }).await.expect("add");
    assert_eq!(counter.add(add(-7)).await.expect("add").into_inner().value, -2);
    assert_eq!(watched.next().await.expect("third").expect("count").value, -2);
    let got = counter.get(named()).await.expect("get").into_inner();
    assert_eq!(got.value, -2);
    assert!(got.instance.starts_with("pid-"), "{}", got.instance);
}

#[tokio::test]
async fn keys_are_kept_found_and_forgotten() {
    let plugin = Process::start("kv", &[]);
    let mut kv = KvClient::new(plugin.channel().await);
    for (key, value) in [("a/2", "two"), ("a/1", "one"), ("b", "three")] {
        kv.put(PutRequest { key: key.into(), value: value.into() }).await.expect("put");
    }
    let got = kv.get(FetchRequest { key: "b".into() }).await.expect("get").into_inner();
    assert_eq!(got.value, b"three");
    let found = kv.scan(ScanRequest { prefix: "a/".into() }).await.expect("scan").into_inner();
    let keys: Vec<_> = found.map(|entry| entry.expect("entry").key).collect().await;
    assert_eq!(keys, ["a/1", "a/2"]);
    let delete = |key: &str| blackhole_plugins::demo::DeleteRequest { key: key.into() };
    assert!(kv.delete(delete("b")).await.expect("delete").into_inner().existed);
    assert!(!kv.delete(delete("b")).await.expect("delete").into_inner().existed);
    let missing = kv.get(FetchRequest { key: "b".into() }).await.expect_err("forgotten");
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn a_cancelled_call_is_known_to_the_called() {
    let plugin = Process::start("echo", &[]);
    let mut probe = ProbeClient::new(plugin.channel().await);
    let mut request = Request::new(LingerRequest { key: "k".into(), millis: 60_000 });
    request.set_timeout(Duration::from_millis(100));
    assert!(probe.linger(request).await.is_err());
    let cancelled = async {
        loop {
            let ask = OutcomeRequest { key: "k".into() };
            let outcome = probe.outcome(ask).await.expect("outcome").into_inner();
            if outcome.cancelled == 1 {
                return outcome;
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, cancelled).await.expect("cancelled");
    assert_eq!((outcome.begun, outcome.finished), (1, 0));
}

#[tokio::test]
async fn sigterm_ends_every_plugin_with_zero_and_its_logs_are_json() {
    for program in ["echo", "counter", "kv", "misfit"] {
        let plugin = Process::start(program, &[]);
        assert_eq!(serving(plugin.channel().await).await.expect(program), ServingStatus::Serving);
        plugin.terminate();
        let output = plugin.output().await;
        assert_eq!(output.status.code(), Some(0), "{program}");
        for line in String::from_utf8(output.stderr).expect("text").lines() {
            let log: serde_json::Value = serde_json::from_str(line).expect(line);
            assert!(log["level"].is_string() && log["message"].is_string(), "{line}");
        }
    }
}

#[test]
fn the_examples_are_under_fifty_lines_of_their_own() {
    for plugin in ["echo", "counter", "kv"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(plugin).join("main.rs");
        let source = fs::read_to_string(&path).expect(plugin);
        let counts = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let lines = source.lines().filter(counts).count();
        assert!(lines < 50, "{plugin} has {lines} lines that are neither empty nor comment");
    }
}

#[test]
fn every_manifest_is_accepted_and_names_its_program() {
    for plugin in ["echo", "counter", "kv", "misfit"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(plugin).join("plugin.yaml");
        let bytes = fs::read(&path).expect(plugin);
        let manifest = Manifest::parse(&bytes, &Defaults::default());
        let manifest = manifest.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(manifest.name.to_string(), plugin);
        if let Some(entrypoint) = manifest.entrypoint {
            assert_eq!(entrypoint, [format!("./{plugin}")]);
        }
    }
}

#[tokio::test]
async fn misfit_behaves_until_told() {
    let plugin = Process::start("misfit", &[]);
    let mut misfit = MisfitClient::new(plugin.channel().await);
    let reply = misfit.behave(BehaveRequest {}).await.expect("behave").into_inner();
    assert_ne!(reply.pid, 0);
    let trick =
        MisbehaveRequest { trick: "dance".into(), amount: 0, ..MisbehaveRequest::default() };
    let refused = misfit.misbehave(trick).await.expect_err("no such trick");
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn misfit_crashes_at_start_and_on_call() {
    let ended = Process::start("misfit", &["crash-at-start"]).ended().await;
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()));
    let ended = Process::start("misfit", &["exit-at-start=7"]).ended().await;
    assert_eq!(ended.code(), Some(7));
    let plugin = Process::start("misfit", &[]);
    let mut misfit = MisfitClient::new(plugin.channel().await);
    let crash =
        MisbehaveRequest { trick: "crash".into(), amount: 0, ..MisbehaveRequest::default() };
    misfit.misbehave(crash).await.expect_err("nobody is left to answer");
    assert_eq!(plugin.ended().await.signal(), Some(Signal::ABORT.as_raw()));
}

#[tokio::test]
async fn misfit_is_never_ready() {
    let plugin = Process::start("misfit", &["never-ready"]);
    let status = serving(plugin.channel().await).await.expect("health");
    assert_eq!(status, ServingStatus::NotServing);
    plugin.terminate();
    assert_eq!(plugin.ended().await.code(), Some(0));
}

#[tokio::test]
async fn misfit_freezes_with_its_health() {
    let plugin = Process::start("misfit", &[]);
    let channel = plugin.channel().await;
    let mut misfit = MisfitClient::new(channel.clone());
    let mut freeze = Request::new(MisbehaveRequest {
        trick: "freeze".into(),
        amount: 0,
        ..MisbehaveRequest::default()
    });
    freeze.set_timeout(Duration::from_millis(300));
    misfit.misbehave(freeze).await.expect_err("frozen");
    serving(channel).await.expect_err("frozen with its health");
}

#[tokio::test]
async fn misfit_ignores_sigterm() {
    let plugin = Process::start("misfit", &["ignore-sigterm"]);
    plugin.channel().await;
    plugin.terminate();
    // It no longer listens, so it has seen the signal; and it is still there.
    let gone = async {
        while std::os::unix::net::UnixStream::connect(plugin.socket()).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it stops listening");
    plugin.terminate();
    let mut plugin = plugin;
    let status = plugin.child.as_mut().expect("running").try_wait().expect("status");
    assert_eq!(status, None, "it goes on");
}

#[tokio::test]
async fn misfit_answers_garbage() {
    let plugin = Process::start_with_listener("misfit", &["garbage"]);
    let mut health = HealthClient::new(plugin.channel().await);
    let request = HealthCheckRequest { service: String::new() };
    let answer = tokio::time::timeout(PATIENCE, health.check(request)).await.expect("an end");
    answer.expect_err("no answer can be made of this");
}

#[tokio::test]
async fn misfit_lies_about_a_service() {
    let plugin = Process::start("misfit", &["lie-about-services"]);
    let mut counter = CounterClient::new(plugin.channel().await);
    let lie = counter.get(GetRequest { name: String::new() }).await.expect_err("a lie");
    assert_eq!(lie.code(), Code::Unimplemented);
    assert!(lie.message().contains("misfit lied"), "{lie}");
}

#[tokio::test]
async fn misfit_leaves_children_behind() {
    let plugin = Process::start("misfit", &[]);
    let mut misfit = MisfitClient::new(plugin.channel().await);
    let fork = MisbehaveRequest { trick: "fork".into(), amount: 2, ..MisbehaveRequest::default() };
    let pids = misfit.misbehave(fork).await.expect("fork").into_inner().pids;
    assert_eq!(pids.len(), 2);
    for pid in pids {
        let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
        kill_process(pid, Signal::KILL).expect("the child outlives the call");
    }
}

#[tokio::test]
async fn an_unknown_trick_ends_misfit_at_once() {
    assert_eq!(Process::start("misfit", &["dance"]).ended().await.code(), Some(2));
}

#[tokio::test]
async fn a_plugin_without_a_node_prints_where_it_listens() {
    let mut command = command("counter", &[]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("counter");
    let stdout = child.stdout.take().expect("stdout");
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).map(|_| line)
    });
    let plugin = Process { child: Some(child), directory: tempfile::tempdir().expect("directory") };
    let line = tokio::time::timeout(PATIENCE, read).await.expect("a line").expect("task");
    let line = line.expect("text");
    let address = line.trim().strip_prefix("counter listens on ").expect(&line).to_owned();
    let endpoint = Endpoint::from_shared(address).expect("an address");
    let channel = endpoint.connect().await.expect("connect");
    assert_eq!(serving(channel).await.expect("health"), ServingStatus::Serving);
    plugin.terminate();
    assert_eq!(plugin.ended().await.code(), Some(0));
}
