//! What `kill -9` of the peer leaves behind, and how soon everything is back.

use std::{collections::BTreeSet, path::PathBuf, time::Duration, time::Instant};

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use testnet::{packages, residue};

use super::{Plan, stand::Stand};
use crate::{report::Better, report::Figure};

/// Plugins that lose their peer.
const PLUGINS: usize = 200;

/// Orders to load that are under way at once.
const LOADS_AT_ONCE: usize = 32;

/// When survivors are counted.
const COUNTED_AFTER: Duration = Duration::from_secs(1);

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let (mut survivors, mut recovered) = (Vec::new(), Vec::new());
    for _ in 0..plan.kill_runs {
        let (left, seconds) = run().await?;
        survivors.push(left as f64);
        recovered.push(seconds);
    }
    let of = |name: &str, unit, runs: &[f64], method: String| {
        Figure::of(name, unit, Better::Lower, runs, method)
    };
    Ok(vec![
        of(
            "orphans_after_kill9",
            "",
            &survivors,
            format!(
                "{PLUGINS} plugins run (echo, in the jail that is the default), the peer is killed \
             with SIGKILL; {COUNTED_AFTER:?} later, what it had started and still runs, and every \
             process of which the kernel tells anything that names its directory (command line, \
             environment, executable, working directory, a mount)"
            ),
        )
        .reach(0.0),
        of(
            "recover_200_s",
            "s",
            &recovered,
            format!(
                "from spawning a peer with the data that the killed one left until all {PLUGINS} \
             plugins run again by themselves"
            ),
        )
        .reach(3.0),
    ])
}

/// Survivors, and seconds until all were back.
async fn run() -> Result<(usize, f64)> {
    let stand = Stand::start("").await?;
    let plugins: Vec<PathBuf> = (0..PLUGINS)
        .map(|number| {
            let name = format!("p{number:03}");
            packages::variant(&stand.plugins(), &name, "echo", "listen: fd")
        })
        .collect::<Result<_>>()?;
    let loader = stand.loader();
    let loads = plugins.iter().map(|plugin| loader.load(plugin));
    stream::iter(loads).buffer_unordered(LOADS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;

    let children = stand.node.kill().await?;
    ensure!(children.len() >= PLUGINS, "only {} processes were there to kill", children.len());
    tokio::time::sleep(COUNTED_AFTER).await;
    let named = residue::processes(stand.world.path()).into_iter();
    let survivors: BTreeSet<_> =
        children.into_iter().filter(residue::Seen::still_runs).chain(named).collect();

    let begun = Instant::now();
    let stand = stand.start_again().await?;
    stand.all(PLUGINS, |plugin| plugin.state == "running").await?;
    let seconds = begun.elapsed().as_secs_f64();
    stand.stop().await?;
    Ok((survivors.len(), seconds))
}
