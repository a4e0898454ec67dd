//! What a thousand plugins that misbehave, all at once and in every way, cost one that does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use protocol::proto::admin::{Plugin, PluginLoadRequest, plugin_load_request::From};
use testnet::packages;

use super::{Plan, stand::Stand};
use crate::{
    grpc::Load,
    load::{Demand, median, quantile},
    report::{Better, Figure},
    subjects::mesh::grpc_of,
};

/// Ways to misbehave; those that would keep a plugin from becoming ready, a second after it is.
const WAYS: [(&str, &[&str]); 10] = [
    ("forks", &["fork=100"]),
    ("eats", &["after=1000", "eat-memory=4096"]),
    ("leaks", &["after=1000", "leak-descriptors"]),
    ("floods", &["after=1000", "flood-logs"]),
    ("fills", &["after=1000", "fill-disk=4096"]),
    ("silent", &["never-ready"]),
    ("crashes", &["crash-after=1000"]),
    ("stays", &["ignore-sigterm"]),
    ("hides", &["double-fork"]),
    ("speaks", &["write-on-handshake"]),
];

/// Plugins that go each of them.
const EACH: u32 = 100;

/// What each of them may use. They are started again as is the default.
const LINES: &str = "start_timeout: 20s\nstop_grace: 200ms\n\
                     resources: { processes: 40, memory: 32, max_files: 128 }";

/// Calls a second of the plugin that behaves: enough for a p99 in a few seconds, too few to be
/// what the machine is busy with.
const RATE: f64 = 200.0;
const IN_FLIGHT: usize = 8;

/// How long the thread sleeps that tells how late the kernel wakes anybody: as often as calls come.
const NAP: Duration = Duration::from_millis(5);

/// How long it may take until the culprits are at it.
const AT_IT_WITHIN: Duration = Duration::from_mins(3);

/// What one run yields.
struct Run {
    quiet: Window,
    beside: Window,
}

/// The slowest in a hundred of one stretch of time, in microseconds.
struct Window {
    call: f64,
    /// How late a thread of this program wakes that does nothing but sleep.
    wake: f64,
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let stand = Stand::start("plugins:\n  max: 2000\n").await?;
    let well = packages::variant(&stand.plugins(), "well", "echo", "listen: fd")?;
    stand.loader().load(&well).await?;
    let load = Load::connect(&grpc_of(&stand.node)?).await?;
    let mut runs = Vec::new();
    for _ in 0..plan.scale_runs {
        let quiet = p99(&load, plan.beside).await?;
        start_all(&stand).await?;
        let beside = p99(&load, plan.beside).await?;
        let ends = WAYS.map(|(name, _)| stand.unload(name));
        try_join_all(ends).await?;
        runs.push(Run { quiet, beside });
    }
    drop(load);
    stand.stop().await?;
    Ok(vec![figure(plan, &runs)])
}

async fn p99(load: &Load, duration: Duration) -> Result<Window> {
    let demand = Demand { in_flight: IN_FLIGHT, duration, rate: Some(RATE) };
    let sleeper = std::thread::spawn(move || lateness(duration));
    let call = load.run(demand).await?.percentile(0.99);
    let late = sleeper.join().map_err(|_| anyhow::anyhow!("the sleeper panicked"))?;
    Ok(Window { call, wake: quantile(&late, 0.99) })
}

/// How late the kernel wakes this thread, time after time, in microseconds.
fn lateness(duration: Duration) -> Vec<f64> {
    let until = Instant::now() + duration;
    let mut late = Vec::new();
    while Instant::now() < until {
        let due = Instant::now() + NAP;
        std::thread::sleep(NAP);
        late.push(due.elapsed().as_secs_f64() * 1e6);
    }
    late
}

/// Starts all culprits, and waits until each was started at least once.
async fn start_all(stand: &Stand) -> Result<()> {
    try_join_all(WAYS.map(|(name, tricks)| start(stand, name, tricks))).await?;
    let until = Instant::now() + AT_IT_WITHIN;
    loop {
        let plugins = stand.list().await?;
        let begun: u32 = plugins.iter().filter(|it| it.name != "well").map(begun).sum();
        if begun == EACH * WAYS.len() as u32 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "only {begun} culprits were started");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Instances that have been started: the others wait for their first turn, for no reason of theirs.
fn begun(plugin: &Plugin) -> u32 {
    let before = |it: &Plugin| ["discovered", "loaded"].contains(&&*it.state);
    let waits = |it: &&Plugin| before(it) && it.crashes == 0 && it.reason.is_empty();
    let waiting = plugin.instances.iter().filter(waits).count();
    (plugin.instances.len() - waiting) as u32
}

async fn start(stand: &Stand, name: &str, tricks: &[&str]) -> Result<()> {
    let dir = packages::misfit(&stand.plugins(), name, tricks, LINES)?;
    let path = dir.to_str().context("a path in UTF-8")?.to_owned();
    let from = Some(From::Path(path));
    let request = PluginLoadRequest { from, instances: EACH, ..PluginLoadRequest::default() };
    stand.node.admin()?.plugin_load(request).await?;
    Ok(())
}

fn figure(plan: Plan, runs: &[Run]) -> Figure {
    let ratios: Vec<f64> = runs.iter().map(|run| run.beside.call / run.quiet.call).collect();
    let of = |value: fn(&Run) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    let method = format!(
        "p99 of {RATE} calls a second through the peer's gRPC port to one plugin, each counted \
         from when it was due, for {} s while {} others fork, eat memory, leak descriptors, flood \
         their logs, fill their disk, never become ready, crash, stay, hide and speak out of turn, \
         {EACH} each, and are started again by the default policy: {:.0} µs; against the same \
         while there are no others, in turns. A thread of the load generator that only sleeps, and \
         waits for no peer and no plugin, wakes {:.0} µs late beside them (p99), and {:.0} while \
         quiet: what the kernel makes everybody wait, of which a call waits several times",
        plan.beside.as_secs(),
        EACH * WAYS.len() as u32,
        of(|run| run.beside.call),
        of(|run| run.beside.wake),
        of(|run| run.quiet.wake),
    );
    let figure = Figure::of("misbehaviour_p99_ratio", "", Better::Lower, &ratios, method);
    figure.reach(2.0).against(format!("{:.0} µs while quiet", of(|run| run.quiet.call)))
}
