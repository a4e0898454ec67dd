//! The rules, in the order in which they are tried. What ends the plugin comes last.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use plugin_host::{Host, HostConfig, LoadError, LogStream, PluginStatus, State};
use prost::Message;
use protocol::proto::plugin::{DescribeRequest, DescribeResponse};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
    time::timeout,
};

use super::{
    ask::{Asked, OK, PATIENCE, UNIMPLEMENTED},
    last,
    report::{Report, Rule, Verdict},
};

/// Calls at once that a plugin must bear.
const CALLS_AT_ONCE: usize = 100;

/// Calls whose caller gives up, one after the other.
const GIVEN_UP: usize = 50;

/// Above the four megabytes that most servers accept.
const LARGE_BYTES: usize = (4 << 20) + (1 << 20);

/// Open files that may come with use, and stay.
const FILES_MORE: u32 = 16;

/// How long it may take to come back after it was killed: its backoff, and its own start.
const BACK_WITHIN: Duration = Duration::from_mins(1);

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const DESCRIBE: &str = "/blackhole.plugin.v1.Lifecycle/Describe";

/// Every rule with its sentence.
const RULES: [(&str, &str); 20] = [
    ("C01", "becomes ready in time in the full jail"),
    ("C02", "the jail is whole"),
    ("C03", "says SERVING when asked for its health"),
    ("C04", "lets its health be watched"),
    ("C05", "describes what it serves"),
    ("C06", "answers an unknown method with UNIMPLEMENTED"),
    ("C07", "describes itself as its manifest does"),
    ("C08", "answers a hundred calls at once"),
    ("C09", "survives callers that give up"),
    ("C10", "survives a message that is too large"),
    ("C11", "survives bytes that are no HTTP/2"),
    ("C12", "keeps no open files after calls"),
    ("C15", "may write to its standard output"),
    ("C16", "takes a configuration, or refuses it in words"),
    ("C20", "counts in figures that can be shown"),
    ("C13", "starts again after it was killed"),
    ("C17", "answers what was begun when SIGTERM comes"),
    ("C18", "drains in the time that it is given"),
    ("C14", "ends by itself on SIGTERM, with status 0"),
    ("C19", "leaves no process behind"),
];

/// Tries all of them.
pub async fn all(
    host: &Host,
    config: &HostConfig,
    loaded: Result<PluginStatus, LoadError>,
    mut described: watch::Receiver<Option<Bytes>>,
) -> Report {
    let status = match loaded {
        Ok(status) => status,
        Err(error) => return not_started(&error),
    };
    // A plugin is loaded once it has been told to be ready, which may be heard of a moment later.
    let descriptors = match described.wait_for(Option::is_some).await {
        Ok(told) => told.clone().unwrap_or_default(),
        Err(_) => Bytes::new(),
    };
    let asked = Asked { host: host.clone(), name: status.name.clone() };
    let mut verdicts = vec![
        Verdict::Pass(match status.uptime {
            Some(_) => "ready".into(),
            None => "started".into(),
        }),
        whole_jail(&status),
        health(&asked).await,
        watch(&asked).await,
        describes(&status, &descriptors),
        unknown_method(&asked).await,
        own_words(&asked, &status).await,
        at_once(&asked).await,
        given_up(&asked).await,
        large(&asked, &status).await,
        garbage(&asked, config).await,
    ];
    verdicts.push(files(&asked, status.pid).await);
    verdicts.push(last::output(&asked).await);
    verdicts.push(last::configured(&asked).await);
    verdicts.push(last::counts(&asked).await);
    verdicts.push(again(&asked).await);
    verdicts.push(last::in_flight(&asked, &descriptors).await);
    verdicts.push(last::drains(&asked).await);
    let tree = last::Tree::of(&asked);
    verdicts.push(ends(&asked).await);
    verdicts.push(last::left(tree));
    let rules = RULES.iter().zip(verdicts);
    let rules = rules.map(|(&(id, says), verdict)| Rule { id, says, verdict }).collect();
    Report { plugin: status.name, rules }
}

fn not_started(error: &LoadError) -> Report {
    let mut rules: Vec<Rule> = RULES
        .iter()
        .map(|&(id, says)| Rule { id, says, verdict: Verdict::Skip("it was never ready".into()) })
        .collect();
    let advice = "read its last lines above; a plugin listens on the socket named by \
                  BH_PLUGIN_SOCKET, on descriptor 3, or on the port of its manifest";
    rules[0].verdict = Verdict::Fail(error.to_string(), advice);
    let plugin = match error {
        LoadError::NotStarted { name, .. } => name.clone(),
        _ => "the plugin".into(),
    };
    Report { plugin, rules }
}

fn whole_jail(status: &PluginStatus) -> Verdict {
    let layers = status.layers.join(", ");
    if status.isolation == "wasm" {
        return Verdict::Pass(format!("a guest: {layers}"));
    }
    let wanted = ["user-ns", "pid-ns", "net-ns", "private-root", "landlock", "seccomp"];
    let missing = |layer: &&&str| !status.layers.iter().any(|found| found.starts_with(**layer));
    let missing: Vec<&str> = wanted.iter().filter(missing).copied().collect();
    if missing.is_empty() {
        return Verdict::Pass(layers);
    }
    Verdict::Fail(
        format!("without {}", missing.join(", ")),
        "this machine, not the plugin, is at fault: `blackhole doctor` says what it lacks",
    )
}

async fn health(asked: &Asked) -> Verdict {
    let advice = "serve grpc.health.v1.Health, and answer SERVING for the empty service name";
    match asked.call(HEALTH, b"", PATIENCE).await {
        // Field 1 is the status, 1 is SERVING.
        Ok(answer) if answer.code == OK && answer.message[..] == [8, 1] => {
            Verdict::Pass("SERVING".into())
        }
        Ok(answer) if answer.code == OK => {
            Verdict::Fail("it is ready and does not say SERVING".into(), advice)
        }
        Ok(answer) if answer.code == UNIMPLEMENTED => {
            Verdict::Skip("no health service: it counts as healthy while it runs".into())
        }
        Ok(answer) => Verdict::Fail(format!("status {}: {}", answer.code, answer.text), advice),
        Err(failure) => Verdict::Fail(failure.message, advice),
    }
}

async fn watch(asked: &Asked) -> Verdict {
    let advice = "a Watch sends the present status at once, or is UNIMPLEMENTED";
    let mut reply = match asked.begin(WATCH, b"", PATIENCE).await {
        Ok(reply) => reply,
        Err(failure) => return Verdict::Fail(failure.message, advice),
    };
    let status = reply.metadata.get("grpc-status").cloned();
    if let Some(status) = status {
        return not_watched(status.to_str().unwrap_or_default(), advice);
    }
    match timeout(PATIENCE, reply.body.frame()).await {
        Ok(Some(Ok(frame))) if frame.is_data() => Verdict::Pass("it does".into()),
        Ok(Some(Ok(frame))) => {
            let trailers = frame.into_trailers().unwrap_or_default();
            let told = trailers.get("grpc-status").and_then(|it| it.to_str().ok());
            not_watched(told.unwrap_or_default(), advice)
        }
        Ok(Some(Err(failure))) => Verdict::Fail(failure.message, advice),
        Ok(None) | Err(_) => Verdict::Fail("nothing came".into(), advice),
    }
}

fn not_watched(status: &str, advice: &'static str) -> Verdict {
    match status {
        "12" => Verdict::Skip("not offered; the host probes instead".into()),
        other => Verdict::Fail(format!("it ended with status {other}"), advice),
    }
}

fn describes(status: &PluginStatus, descriptors: &[u8]) -> Verdict {
    let names: Vec<String> = status.services.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    if status.services.is_empty() {
        return Verdict::Fail(
            "nothing of it can be called".into(),
            "serve reflection, or name the services in the manifest's interface.services, or \
             with --service",
        );
    }
    if descriptors.is_empty() {
        return Verdict::Skip(format!("{names}, by name only: callers need its .proto files"));
    }
    Verdict::Pass(names)
}

async fn unknown_method(asked: &Asked) -> Verdict {
    let advice = "let your gRPC library answer: it knows which methods there are";
    match asked.call("/blackhole.conformance.v1.Nothing/Nothing", b"", PATIENCE).await {
        Ok(answer) if answer.code == UNIMPLEMENTED => Verdict::Pass("it does".into()),
        Ok(answer) => Verdict::Fail(format!("status {}: {}", answer.code, answer.text), advice),
        Err(failure) => Verdict::Fail(failure.message, advice),
    }
}

async fn own_words(asked: &Asked, status: &PluginStatus) -> Verdict {
    let advice = "give the version, capabilities, dependencies and state of its manifest, or do not \
                  serve Lifecycle";
    let told = status.described.as_ref().map(|told| told.contradictions.as_slice());
    if let Some(told) = told.filter(|told| !told.is_empty()) {
        return Verdict::Fail(told.join("; "), advice);
    }
    let request = DescribeRequest::default().encode_to_vec();
    match asked.call(DESCRIBE, &request, PATIENCE).await {
        Ok(answer) if answer.code == UNIMPLEMENTED => {
            Verdict::Skip("Lifecycle is not offered".into())
        }
        Ok(answer) if answer.code == OK => match DescribeResponse::decode(answer.message) {
            Ok(said) if status.version == "0.0.0" || said.version == status.version => {
                Verdict::Pass(format!("{} {}", said.name, said.version))
            }
            Ok(said) => {
                let seen = format!("{} here, {} there", said.version, status.version);
                Verdict::Fail(seen, advice)
            }
            Err(error) => Verdict::Fail(error.to_string(), advice),
        },
        Ok(answer) => Verdict::Fail(format!("status {}: {}", answer.code, answer.text), advice),
        Err(failure) => Verdict::Fail(failure.message, advice),
    }
}

async fn at_once(asked: &Asked) -> Verdict {
    let calls = (0..CALLS_AT_ONCE).map(|_| asked.answers());
    let begun = Instant::now();
    let failed = futures::future::join_all(calls).await;
    let took = begun.elapsed().as_millis();
    match failed.into_iter().find_map(Result::err) {
        None => Verdict::Pass(format!("in {took} ms")),
        Some(reason) => Verdict::Fail(reason, "accept many streams on one connection"),
    }
}

async fn given_up(asked: &Asked) -> Verdict {
    for _ in 0..GIVEN_UP {
        // Whatever it comes to: nobody waits.
        let _ = asked.begin(WATCH, b"", Duration::from_millis(5)).await;
    }
    alive(asked, "a caller that gives up resets its stream, which ends nothing else").await
}

async fn large(asked: &Asked, status: &PluginStatus) -> Verdict {
    let Some(service) = status.services.first() else {
        return Verdict::Skip("there is nothing to call".into());
    };
    let method = format!("/{service}/BlackholeConformance");
    // Whether it is refused by size or by name does not matter.
    let _ = asked.call(&method, &vec![0; LARGE_BYTES], PATIENCE).await;
    let _ = asked.call(HEALTH, &vec![0; LARGE_BYTES], PATIENCE).await;
    alive(asked, "refuse a message over your limit with RESOURCE_EXHAUSTED, and go on").await
}

/// It answers, and has not crashed.
pub async fn alive(asked: &Asked, advice: &'static str) -> Verdict {
    if let Err(reason) = asked.answers().await {
        return Verdict::Fail(reason, advice);
    }
    match asked.host.info(&asked.name) {
        Ok(status) if status.crashes == 0 => Verdict::Pass("it does".into()),
        Ok(status) => Verdict::Fail(format!("it crashed: {}", status.reason), advice),
        Err(error) => Verdict::Fail(error.to_string(), advice),
    }
}

async fn garbage(asked: &Asked, config: &HostConfig) -> Verdict {
    let directory = config.run_dir.join("plugins").join(&asked.name);
    let places: [PathBuf; 2] =
        [directory.join("plugin.sock"), directory.join("own").join("plugin.sock")];
    let Some(socket) = places.into_iter().find(|path| path.exists()) else {
        return Verdict::Skip("it has no Unix socket".into());
    };
    for seed in 0..8_u8 {
        let Ok(mut stream) = UnixStream::connect(&socket).await else { continue };
        let bytes: Vec<u8> = (0..4_096_u32).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        // It may hang up in the middle, and it may wait for more.
        let _ = timeout(Duration::from_millis(200), async {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.read(&mut [0; 64]).await;
        })
        .await;
    }
    alive(asked, "close a connection that breaks the protocol, and keep the others").await
}

async fn files(asked: &Asked, pid: Option<u32>) -> Verdict {
    let Some(pid) = pid else { return Verdict::Skip("it has no process of its own".into()) };
    let count = || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        open.map(|open| open.count() as u32).unwrap_or_default()
    };
    let before = count();
    for _ in 0..CALLS_AT_ONCE {
        if let Err(reason) = asked.answers().await {
            return Verdict::Fail(reason, "see C08");
        }
    }
    let after = count();
    if after > before + FILES_MORE {
        let seen = format!("{before} open files before, {after} after {CALLS_AT_ONCE} calls");
        return Verdict::Fail(seen, "close what a call opens when it ends");
    }
    Verdict::Pass(format!("{after} open files"))
}

async fn again(asked: &Asked) -> Verdict {
    let advice = "remove a socket that is left from before, and start without help";
    let mut seen = asked.host.transitions();
    let Ok(status) = asked.host.info(&asked.name) else {
        return Verdict::Fail("it is gone".into(), advice);
    };
    let Some(pid) = status.pid.and_then(|pid| i32::try_from(pid).ok()) else {
        return Verdict::Skip("it has no process of its own".into());
    };
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return Verdict::Skip("it has no process of its own".into());
    };
    if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        return Verdict::Skip(format!("it cannot be killed from here: {error}"));
    }
    let back = timeout(BACK_WITHIN, async {
        loop {
            match seen.recv().await {
                Ok(step) if step.to == State::Running => return Ok(()),
                Ok(step) if !step.to.is_alive() => return Err(step),
                _ => {}
            }
        }
    });
    match back.await {
        Ok(Ok(())) => Verdict::Pass("it does".into()),
        Ok(Err(step)) if step.to == State::Stopped => {
            Verdict::Skip("its restart policy leaves it so".into())
        }
        Ok(Err(step)) => Verdict::Fail(step.reason, advice),
        Err(_) => Verdict::Fail(format!("not within {} s", BACK_WITHIN.as_secs()), advice),
    }
}

/// Waits until it runs; false where it does not.
pub async fn until_running(asked: &Asked) -> bool {
    let mut seen = asked.host.transitions();
    let runs = || asked.host.info(&asked.name).is_ok_and(|it| it.state == State::Running);
    let running = async { while !runs() && seen.recv().await.is_ok() {} };
    timeout(BACK_WITHIN, running).await.is_ok() && runs()
}

async fn ends(asked: &Asked) -> Verdict {
    let advice = "on SIGTERM, finish what was begun and exit with status 0 within the grace";
    let Ok(logs) = asked.host.logs(&asked.name) else {
        return Verdict::Skip("it is gone".into());
    };
    let Ok(status) = asked.host.info(&asked.name) else {
        return Verdict::Skip("it is gone".into());
    };
    if status.pid.is_none() {
        return Verdict::Skip("it has no process to signal".into());
    }
    if let Err(error) = asked.host.unload(&asked.name).await {
        return Verdict::Fail(error.to_string(), advice);
    }
    let records = logs.tail(0);
    let said = records.iter().rev().filter(|record| record.stream == LogStream::Supervisor);
    let mut said = said.map(|record| record.message.as_str());
    match said.find(|text| text.starts_with("it ended as asked") || text.contains("was killed")) {
        Some(text) if text.ends_with("exit status 0") => Verdict::Pass(text.into()),
        // What SIGTERM itself ends has finished nothing.
        Some(text) => Verdict::Fail(text.into(), advice),
        None => Verdict::Fail("it was not seen to end".into(), advice),
    }
}
