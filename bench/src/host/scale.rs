//! A thousand plugins on one peer: until all are there, what they cost while idle, and what the
//! framework itself keeps in memory for each.

use std::{collections::BTreeSet, path::PathBuf, time::Duration, time::Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use testnet::packages;

use super::{Plan, proc, proc::Family, stand::Stand};
use crate::{grpc::Call, report::Better, report::Figure};

/// Plugins of the figures that have the number in their name.
const PLUGINS: usize = 1_000;

/// Orders to load that are under way at once.
const LOADS_AT_ONCE: usize = 64;

/// Calls under way at once while every plugin is looked for.
const CALLS_AT_ONCE: usize = 64;

/// Calls until every plugin must have answered one. With a thousand drawn at random 7,500 are
/// enough on average; a plugin that takes no call is found by this bound.
const CALLS_MAX: usize = 100_000;

/// After the last start, for announcements, freed memory and the first questions after health and
/// figures to settle: idle is what comes after.
const SETTLE: Duration = Duration::from_secs(25);

/// What one run yields.
struct Run {
    ready_s: f64,
    called_s: f64,
    idle_percent: f64,
    kib_each: f64,
    host_kib_each: f64,
    own_kib: f64,
    stop_s: f64,
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for _ in 0..plan.scale_runs {
        runs.push(run(plan).await?);
    }
    Ok(figures(plan, &runs))
}

async fn run(plan: Plan) -> Result<Run> {
    let stand = Stand::start("").await?;
    let plugins: Vec<PathBuf> = (0..PLUGINS)
        .map(|number| {
            let name = format!("p{number:04}");
            packages::variant(&stand.plugins(), &name, "echo", "listen: fd")
        })
        .collect::<Result<_>>()?;
    // One start and end beforehand: what a peer keeps once for all is no plugin's share.
    stand.loader().load(&plugins[0]).await?;
    stand.call_when_routed(&Call::say()).await?;
    stand.unload("p0000").await?;
    let alone = framework_kib(&stand.family().await?);

    let begun = Instant::now();
    let loader = stand.loader();
    let loads = plugins.iter().map(|plugin| loader.load(plugin));
    stream::iter(loads).buffer_unordered(LOADS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    let ready_s = begun.elapsed().as_secs_f64();
    call_each(&stand).await?;
    let called_s = begun.elapsed().as_secs_f64();

    tokio::time::sleep(SETTLE).await;
    let family = stand.family().await?;
    ensure!(family.plugins.len() >= PLUGINS, "{} plugins run", family.plugins.len());
    let idle_percent = idle_percent(&family, plan.idle).await;
    let grown = framework_kib(&family) - alone;
    let host = proc::pss_kib(family.host) - alone;
    let own: f64 = family.plugins.iter().map(|pid| proc::pss_kib(*pid)).sum();
    let begun = Instant::now();
    stand.stop().await?;
    let each = PLUGINS as f64;
    Ok(Run {
        ready_s,
        called_s,
        idle_percent,
        kib_each: grown / each,
        host_kib_each: host / each,
        own_kib: own / each,
        stop_s: begun.elapsed().as_secs_f64(),
    })
}

/// Calls through the peer until every plugin has answered at least once.
async fn call_each(stand: &Stand) -> Result<()> {
    let inspect = Call::of("http://localhost/demo.v1.Probe/Inspect", b"");
    let mut answered = BTreeSet::new();
    let calls = stream::iter(0..CALLS_MAX).map(|_| stand.call(&inspect));
    let mut answers = calls.buffer_unordered(CALLS_AT_ONCE);
    while answered.len() < PLUGINS {
        let answer = answers.next().await.with_context(|| {
            format!("after {CALLS_MAX} calls only {} of {PLUGINS} had one", answered.len())
        })??;
        answered.insert(instance(&answer).context("the answer names no instance")?.to_vec());
    }
    Ok(())
}

/// The field `instance` of `InspectReply`: number 3, a text.
fn instance(mut message: &[u8]) -> Option<&[u8]> {
    // Every field of the message is either length-delimited or one varint.
    while let Some((&key, rest)) = message.split_first() {
        let (value, rest) = varint(rest)?;
        if key.trailing_zeros() >= 3 {
            message = rest;
            continue;
        }
        let (bytes, rest) = rest.split_at_checked(usize::try_from(value).ok()?)?;
        if key >> 3 == 3 {
            return Some(bytes);
        }
        message = rest;
    }
    None
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let (own, rest) = bytes.split_at(length);
    let value = own.iter().rev().fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, rest))
}

/// What the framework itself holds: the peer, and whatever it runs beside the plugins' programs.
fn framework_kib(family: &Family) -> f64 {
    let beside = family.framework.iter().map(|pid| proc::pss_kib(*pid));
    proc::pss_kib(family.host) + beside.sum::<f64>()
}

async fn idle_percent(family: &Family, watched: Duration) -> f64 {
    let (begun, before) = (Instant::now(), family.cpu_seconds());
    tokio::time::sleep(watched).await;
    let used = family.cpu_seconds() - before;
    used * 100.0 / begun.elapsed().as_secs_f64()
}

fn figures(plan: Plan, runs: &[Run]) -> Vec<Figure> {
    let of = |name: &str, unit, value: fn(&Run) -> f64, method: String| {
        let values: Vec<f64> = runs.iter().map(value).collect();
        Figure::of(name, unit, Better::Lower, &values, method)
    };
    let kept = "PSS of smaps_rollup, with 1,000 plugins minus with none (one was started and ended \
                before); the kernel's own memory is in no process's PSS";
    vec![
        of("start_1000_s", "s", |run| run.called_s, format!(
            "echo {PLUGINS} times under as many names, each in the jail that is the default, \
             loaded through the admin socket ({LOADS_AT_ONCE} orders at once); from the first \
             order until all are ready and each has answered a call through the peer: calls go to \
             plugins drawn at random until every one has been seen to answer"
        ))
        .reach(6.0),
        of("ready_1000_s", "s", |run| run.ready_s, "the part of start_1000_s until all are \
            ready".into()),
        of("stop_1000_s", "s", |run| run.stop_s, "from SIGTERM to the end of the peer and of \
            everything it ran, with 1,000 plugins".into()),
        of("idle_1000_cpu_pct", "%", |run| run.idle_percent, format!(
            "processor time, as the scheduler counts it for each thread, of the peer and of all \
             processes below it (plugins too) in {} s, of one core; nobody calls; health is asked \
             and samples are taken as by default", plan.idle.as_secs()
        ))
        .reach(2.0),
        of("memory_per_plugin_kib", "KiB", |run| run.kib_each, format!(
            "growth of the peer and of the processes it runs beside each plugin's own; {kept}"
        ))
        .reach(256.0),
        of("memory_host_per_plugin_kib", "KiB", |run| run.host_kib_each, format!(
            "the peer's part of memory_per_plugin_kib; {kept}"
        )),
        of("memory_plugin_own_kib", "KiB", |run| run.own_kib, "PSS of a plugin's own process, one \
            of 1,000 that share their program: not the framework's".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_is_found_among_other_fields() {
        let message = [&[0x0a, 2, 1, 2, 0x10, 0x80, 1, 0x1a, 3][..], b"abc", &[0x20, 1]].concat();
        assert_eq!(instance(&message), Some(&b"abc"[..]));
        assert_eq!(instance(&message[..7]), None);
        assert_eq!(instance(&[0x1a, 200, 1]), None);
    }
}
