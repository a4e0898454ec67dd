//! What supervision costs while plugins are busy, and the plugin that is busy.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{
    future::try_join_all,
    stream::{self, StreamExt, TryStreamExt},
};
use plugins::demo::{
    DESCRIPTORS, HandleReply, HandleRequest, InfoReply, InfoRequest, RepeatRequest, SayReply,
    SayRequest,
    echo_server::{Echo, EchoServer},
};
use sdk::{Answer, Plugin, Stream};
use tokio::time::{MissedTickBehavior, interval};
use tonic::{Request, Response, Status, Streaming};

use super::{Plan, proc, stand::Stand};
use crate::grpc::{Address, Call, Connection};
use crate::{report::Better, report::Figure};

/// Plugins that are supervised.
const PLUGINS: usize = 100;

/// Plugins that are called. Few, each over one connection and in batches, so that the load takes
/// little of the processors that the peer is measured on.
const CALLED: usize = 10;

/// Calls that go out to each of them at once, and how often.
const BATCH: usize = 20;
const EVERY: Duration = Duration::from_millis(20);

/// Calls a second in all.
const RATE: f64 = 10_000.0;

/// Of this many calls a plugin logs one line.
const CALLS_PER_LINE: u64 = 10;

/// Less than this share of the intended calls is no measurement.
const RATE_SHARE_MIN: f64 = 0.95;

/// The argument under which this program is the plugin.
pub const ROLE: &str = "chatter";

/// Runs the plugin until it is told to end.
pub fn chatter() -> ExitCode {
    Plugin::new(ROLE, env!("CARGO_PKG_VERSION"))
        .descriptors(DESCRIPTORS)
        .service(EchoServer::new(Chatter::default()))
        .run()
}

/// Echoes, and logs a line of a call now and then, as servers do.
#[derive(Default)]
struct Chatter {
    calls: AtomicU64,
}

#[tonic::async_trait]
impl Echo for Chatter {
    type RepeatStream = Stream<SayReply>;
    type ChatStream = Stream<SayReply>;

    async fn say(&self, request: Request<SayRequest>) -> Answer<SayReply> {
        let text = request.into_inner().text;
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if calls.is_multiple_of(CALLS_PER_LINE) {
            println!(
                r#"{{"level":"info","message":"answered","fields":{{"calls":{calls},"bytes":{}}}}}"#,
                text.len()
            );
        }
        Ok(Response::new(SayReply { text: format!("Echo: {text}") }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoReply> {
        Err(unasked())
    }

    async fn handle(&self, _: Request<HandleRequest>) -> Answer<HandleReply> {
        Err(unasked())
    }

    async fn repeat(&self, _: Request<RepeatRequest>) -> Answer<Stream<SayReply>> {
        Err(unasked())
    }

    async fn join(&self, _: Request<Streaming<SayRequest>>) -> Answer<SayReply> {
        Err(unasked())
    }

    async fn chat(&self, _: Request<Streaming<SayRequest>>) -> Answer<Stream<SayReply>> {
        Err(unasked())
    }
}

fn unasked() -> Status {
    Status::unimplemented("this plugin only says")
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let stand = Stand::start("").await?;
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let lines = format!("entrypoint: [./bh-bench, {ROLE}]\nlisten: fd\n");
    let plugins: Vec<PathBuf> = (0..PLUGINS)
        .map(|number| package(&stand, &this, &format!("c{number:02}"), &lines))
        .collect::<Result<_>>()?;
    let loader = stand.loader();
    let loads = plugins.iter().map(|plugin| loader.load(plugin));
    stream::iter(loads).buffer_unordered(16).try_for_each(|_| async { Ok(()) }).await?;
    let callers: Vec<Caller> = try_join_all((0..CALLED).map(|number| {
        let plugins = stand.node.setup().run_dir().join("plugins");
        Caller::of(plugins.join(format!("c{number:02}")).join("plugin.sock"))
    }))
    .await?;
    let (mut percents, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        // The first second sees every connection and every log fill its first buffers.
        load(&callers, Duration::from_secs(1)).await?;
        let before = supervised_by(&stand).await?;
        let begun = Instant::now();
        let calls = load(&callers, plan.busy).await?;
        let seconds = begun.elapsed().as_secs_f64();
        percents.push((supervised_by(&stand).await? - before) * 100.0 / seconds);
        rates.push(calls as f64 / seconds);
    }
    let logged = logged(&stand).await?;
    drop(callers);
    stand.stop().await?;
    let rate = crate::load::median(&rates);
    ensure!(rate >= RATE * RATE_SHARE_MIN, "only {rate:.0} of {RATE} calls a second were made");
    let method = format!(
        "processor time, as the scheduler accounts it to each thread, of the peer and of what it \
         runs beside {PLUGINS} plugins, all of it, for {} s, while {CALLED} of them answer \
         {rate:.0} calls a second in all and log a JSON line for every {CALLS_PER_LINE}th \
         ({logged} lines were kept or counted); the calls go straight to the plugins' sockets, \
         {BATCH} at once over one connection each, so that carrying them is not counted, and \
         health, samples, logs and the rest of an idle peer are",
        plan.busy.as_secs()
    );
    let figure = Figure::of("supervision_cpu_pct", "%", Better::Lower, &percents, method);
    Ok(vec![figure.reach(5.0)])
}

/// A plugin of its own, which is this program under another name.
fn package(stand: &Stand, this: &std::path::Path, name: &str, lines: &str) -> Result<PathBuf> {
    let dir = stand.plugins().join(name);
    std::fs::create_dir_all(&dir)?;
    let program = dir.join("bh-bench");
    if std::fs::hard_link(this, &program).is_err() {
        std::fs::copy(this, &program).context("this program cannot be copied")?;
    }
    std::fs::write(dir.join("plugin.yaml"), format!("name: {name}\nversion: 1.0.0\n{lines}"))?;
    Ok(dir)
}

/// One plugin's only caller.
struct Caller {
    connection: Connection,
    call: Call,
}

impl Caller {
    async fn of(socket: PathBuf) -> Result<Self> {
        let connection = Connection::open(&Address::Unix(socket)).await?;
        Ok(Self { connection, call: Call::say() })
    }

    /// Calls in batches, and says how often.
    async fn call(&self, duration: Duration) -> Result<u64> {
        let mut beat = interval(EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (begun, mut calls) = (Instant::now(), 0);
        loop {
            beat.tick().await;
            if begun.elapsed() >= duration {
                return Ok(calls);
            }
            try_join_all((0..BATCH).map(|_| self.connection.call(&self.call))).await?;
            calls += BATCH as u64;
        }
    }
}

/// Processor time so far, in seconds, of the peer and of what it runs beside its plugins.
async fn supervised_by(stand: &Stand) -> Result<f64> {
    let family = stand.family().await?;
    let beside = family.framework.iter().map(|pid| proc::cpu_seconds(*pid)).sum::<f64>();
    Ok(proc::cpu_seconds(family.host) + beside)
}

async fn load(callers: &[Caller], duration: Duration) -> Result<u64> {
    let calls = try_join_all(callers.iter().map(|caller| caller.call(duration))).await?;
    Ok(calls.iter().sum())
}

/// Lines that the peer has of its plugins, dropped ones too.
async fn logged(stand: &Stand) -> Result<u64> {
    let plugins = stand.list().await?;
    let mut lines: u64 = plugins.iter().map(|plugin| plugin.logs_lost).sum();
    for plugin in &plugins {
        lines += stand.log(&plugin.name).await?.len() as u64;
    }
    ensure!(lines > 0, "the peer has no line of its plugins' logs");
    Ok(lines)
}
