//! The rules on what a host tells a plugin beside calls: its configuration, that it shall drain,
//! that it shall end; and on what it leaves.

use std::{
    fs,
    time::{Duration, Instant},
};

use plugin_host::{Figures, LogStream, PluginStatus, State};
use prost::Message;
use prost_types::FileDescriptorSet;
use protocol::proto::plugin::{ConfigureRequest, DrainRequest, MetricsRequest, MetricsResponse};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    ask::{Asked, OK, PATIENCE, UNIMPLEMENTED},
    report::Verdict,
    rules::{alive, until_running},
};

/// A call that is begun has reached the plugin after this long; nothing tells when it did.
const ARRIVES_WITHIN: Duration = Duration::from_millis(200);

/// A plugin that ends at once on SIGTERM has ended after this long.
const ENDS_WITHIN: Duration = Duration::from_millis(300);

/// How long it may take to end after that; beyond, the next rules find out.
const ENDED_WITHIN: Duration = Duration::from_secs(20);

const CONFIGURE: &str = "/blackhole.plugin.v1.Lifecycle/Configure";
const METRICS: &str = "/blackhole.plugin.v1.Lifecycle/Metrics";
const DRAIN: &str = "/blackhole.plugin.v1.Lifecycle/Drain";

/// Status code; source: gRPC status codes.
const INVALID_ARGUMENT: u32 = 3;

/// What is written to standard output is a log, and no protocol.
pub async fn output(asked: &Asked) -> Verdict {
    let advice = "write to standard output whatever you like; nobody reads a handshake there";
    let Ok(logs) = asked.host.logs(&asked.name) else {
        return Verdict::Fail("it is gone".into(), advice);
    };
    let records = logs.tail(0);
    let lines = records.iter().filter(|record| record.stream == LogStream::Stdout).count();
    match alive(asked, advice).await {
        Verdict::Pass(_) => Verdict::Pass(format!("{lines} lines there, kept as its log")),
        broken => broken,
    }
}

/// It takes its part of the configuration, or refuses it in words, and what is none as well.
pub async fn configured(asked: &Asked) -> Verdict {
    let advice = "take the JSON, or refuse it with INVALID_ARGUMENT and a sentence; or do not \
                  offer Configure";
    for part in [&b"{}"[..], b"{ this is no JSON"] {
        let request = ConfigureRequest { configuration: part.into() }.encode_to_vec();
        match asked.call(CONFIGURE, &request, PATIENCE).await {
            Ok(answer) if answer.code == UNIMPLEMENTED => {
                return Verdict::Skip("it takes no configuration".into());
            }
            Ok(answer) if matches!(answer.code, OK | INVALID_ARGUMENT) => {}
            Ok(answer) => {
                let seen = format!("status {}: {}", answer.code, answer.text);
                return Verdict::Fail(seen, advice);
            }
            Err(failure) => return Verdict::Fail(failure.message, advice),
        }
    }
    alive(asked, advice).await
}

/// What it counts has names that a metrics page takes, and there is not too much of it.
pub async fn counts(asked: &Asked) -> Verdict {
    let advice = "name figures and labels with a-z, 0-9 and _, each once, with values that are \
                  numbers; at most 64 with at most 8 labels; or do not offer Metrics";
    let request = MetricsRequest::default().encode_to_vec();
    match asked.call(METRICS, &request, PATIENCE).await {
        Ok(answer) if answer.code == UNIMPLEMENTED => {
            Verdict::Skip("it has no figures of its own".into())
        }
        Ok(answer) if answer.code == OK => match MetricsResponse::decode(answer.message) {
            Ok(told) => match plugin_host::figures(told.metrics) {
                Figures { refused: 0, metrics, .. } => {
                    Verdict::Pass(format!("{} figures", metrics.len()))
                }
                Figures { refused, why, .. } => {
                    Verdict::Fail(format!("{refused} cannot be shown; the first: {why}"), advice)
                }
            },
            Err(error) => Verdict::Fail(error.to_string(), advice),
        },
        Ok(answer) => Verdict::Fail(format!("status {}: {}", answer.code, answer.text), advice),
        Err(failure) => Verdict::Fail(failure.message, advice),
    }
}

/// A call that has begun when SIGTERM comes is answered as it would have been.
pub async fn in_flight(asked: &Asked, descriptors: &[u8]) -> Verdict {
    let advice = "on SIGTERM accept no more, answer what was begun, and then exit";
    let Ok(status) = asked.host.info(&asked.name) else {
        return Verdict::Fail("it is gone".into(), advice);
    };
    let Some(pid) = process(&status) else {
        return Verdict::Skip("it has no process to signal".into());
    };
    let Some(method) = first_unary(descriptors, &status) else {
        return Verdict::Skip("none of its methods is known to take one message".into());
    };
    let Ok(usual) = asked.call(&method, b"", PATIENCE).await else {
        return Verdict::Skip(format!("{method} does not answer an empty message"));
    };
    let (finish, finished) = oneshot::channel();
    let mut seen = asked.host.transitions();
    let told = async {
        sleep(ARRIVES_WITHIN).await;
        let told = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        sleep(ENDS_WITHIN).await;
        // It may have been given up already.
        let _ = finish.send(());
        told
    };
    let (answer, told) = futures::join!(asked.call_slowly(&method, finished, PATIENCE), told);
    if let Err(error) = told {
        return Verdict::Skip(format!("it cannot be signalled from here: {error}"));
    }
    let verdict = match answer {
        Ok(answer) if answer.code == usual.code => {
            Verdict::Pass(format!("{method} was answered after SIGTERM"))
        }
        Ok(answer) => {
            let seen = format!("{method} ended with status {}: {}", answer.code, answer.text);
            Verdict::Fail(seen, advice)
        }
        Err(failure) => Verdict::Fail(format!("{method} broke off: {}", failure.message), advice),
    };
    // What follows wants it running; its policy may, or may not, have started it again.
    let ended = async {
        while let Ok(step) = seen.recv().await {
            if step.from == State::Running {
                break;
            }
        }
    };
    let _ = timeout(ENDED_WITHIN, ended).await;
    if asked.host.info(&asked.name).is_ok_and(|it| !it.state.is_alive())
        && let Err(error) = asked.host.restart(&asked.name).await
    {
        return Verdict::Fail(error.to_string(), advice);
    }
    if until_running(asked).await {
        verdict
    } else {
        Verdict::Fail("it did not run again after SIGTERM".into(), advice)
    }
}

/// It finishes what was begun within the time that it is given.
pub async fn drains(asked: &Asked) -> Verdict {
    let advice = "answer Drain when what was begun is finished, within its deadline_ms; or do not \
                  offer it, and drain on SIGTERM";
    let request = DrainRequest { deadline_ms: PATIENCE.as_millis() as u64 }.encode_to_vec();
    let begun = Instant::now();
    match asked.call(DRAIN, &request, PATIENCE).await {
        Ok(answer) if answer.code == UNIMPLEMENTED => Verdict::Skip("it drains on SIGTERM".into()),
        Ok(answer) if answer.code == OK => {
            Verdict::Pass(format!("in {} ms", begun.elapsed().as_millis()))
        }
        Ok(answer) => {
            let seen = format!("status {}: {}", answer.code, answer.text);
            Verdict::Fail(seen, advice)
        }
        Err(failure) => Verdict::Fail(failure.message, advice),
    }
}

/// The processes of a plugin that runs.
pub struct Tree {
    /// Its own, and all below.
    all: Vec<Seen>,
    /// Those that have no parent among them: nobody asks them to end.
    astray: usize,
}

/// A process, so that its number cannot be taken for another's.
#[derive(PartialEq)]
struct Seen {
    pid: i32,
    began: String,
}

impl Tree {
    /// Of the plugin as it runs now; `None` where it has no process.
    pub fn of(asked: &Asked) -> Option<Self> {
        let status = asked.host.info(&asked.name).ok()?;
        let main = process(&status)?.as_raw_nonzero().get();
        // The first process of the jail: whoever loses its parent becomes a child of it.
        let init = stat(main)?.0;
        let astray: Vec<i32> = children(init).into_iter().filter(|pid| *pid != main).collect();
        let mut all = vec![main];
        all.extend(&astray);
        let mut at = 0;
        while at < all.len() {
            all.extend(children(all[at]));
            at += 1;
        }
        let seen = all.into_iter().filter_map(|pid| Some(Seen { pid, began: stat(pid)?.1 }));
        Some(Self { all: seen.collect(), astray: astray.len() })
    }
}

/// It left nothing when it ended, and nothing that would have to be killed.
pub fn left(before: Option<Tree>) -> Verdict {
    let advice = "end what you start, or let it end with you: a process that has left you is not \
                  asked to end, and is killed with the jail";
    let Some(before) = before else {
        return Verdict::Skip("it has no process".into());
    };
    let now = |seen: &&Seen| stat(seen.pid).is_some_and(|(_, began)| began == seen.began);
    let alive = before.all.iter().filter(now).count();
    match (alive, before.astray) {
        (0, 0) => Verdict::Pass(format!("of {} processes", before.all.len())),
        (0, astray) => {
            Verdict::Fail(format!("{astray} processes had left it, and were killed"), advice)
        }
        (alive, _) => Verdict::Fail(format!("{alive} processes live on"), advice),
    }
}

fn process(status: &PluginStatus) -> Option<rustix::process::Pid> {
    status.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
}

/// Parent and time of start of a process that has not ended. Source: proc(5), fields 3, 4 and 22.
fn stat(pid: i32) -> Option<(i32, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let alive = !matches!(*fields.first()?, "Z" | "X");
    alive.then_some((fields.get(1)?.parse().ok()?, (*fields.get(19)?).to_owned()))
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|it| fs::read_to_string(it.path().join("children")).ok());
    let all = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    all.filter(|pid| stat(*pid).is_some()).collect()
}

/// The path of the first method of the plugin's own services that streams in neither direction.
fn first_unary(descriptors: &[u8], status: &PluginStatus) -> Option<String> {
    let set = FileDescriptorSet::decode(descriptors).ok()?;
    let own: Vec<String> = status.services.iter().map(ToString::to_string).collect();
    set.file.iter().find_map(|file| {
        file.service.iter().find_map(|service| {
            let name = match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            let mut methods = service.method.iter().filter(|_| own.contains(&name));
            let unary = methods.find(|it| !it.client_streaming() && !it.server_streaming())?;
            Some(format!("/{name}/{}", unary.name()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_beginning() {
        let own = std::process::id() as i32;
        let (parent, began) = stat(own).expect("this process");
        assert!(parent > 0 && began.parse::<u64>().is_ok());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("started");
        let pid = child.id() as i32;
        assert!(children(own).contains(&pid));
        let tree =
            |astray| Tree { all: vec![Seen { pid, began: stat(pid).expect("it runs").1 }], astray };
        let before = tree(0);
        assert!(matches!(left(Some(tree(0))), Verdict::Fail(seen, _) if seen.contains("live on")));
        let stray = tree(1);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(matches!(left(Some(before)), Verdict::Pass(_)));
        assert!(
            matches!(left(Some(stray)), Verdict::Fail(seen, _) if seen.contains("had left it"))
        );
        assert!(matches!(left(None), Verdict::Skip(_)));
    }
}
