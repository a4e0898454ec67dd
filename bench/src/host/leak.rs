//! What a thousand crashes and restarts leave in the peer.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use testnet::packages;

use super::{Plan, proc, stand::Stand};
use crate::{report::Better, report::Figure};

/// Plugins that crash side by side.
const PLUGINS: usize = 20;

/// Restarts of one plugin until it is given up and loaded anew. A manifest cannot ask for restarts
/// without end, and delays double: with more of them most of the time is waiting.
const RESTARTS_EACH: usize = 5;

/// The state of a plugin that is not restarted any more.
const GIVEN_UP: &str = "crash-loop";

/// It lives long enough to become ready, and crashes. Delays double from 10 ms.
const TRICK: &str = "crash-after=50";
const POLICY: &str = "listen: fd\nstart_timeout: 5s\nrestart:\n  policy: on_failure\n  \
                      max_restarts: 5\n  window: 1m\n  backoff: 10ms\n";

/// Short logs, so that they are full before anything is measured.
const CONFIGURATION: &str = "monitoring:\n  log_aggregation:\n    buffer_size: 10\n";

/// After the last crash: idle threads of the peer's runtime end after ten seconds.
const SETTLE_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a peer holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    descriptors: f64,
    threads: f64,
    kib: f64,
}

impl Held {
    fn now(pid: u32) -> Result<Self> {
        Ok(Self {
            descriptors: proc::descriptors(pid)? as f64,
            threads: proc::threads(pid)? as f64,
            kib: proc::pss_kib(pid),
        })
    }

    fn least(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.min(other.descriptors),
            threads: self.threads.min(other.threads),
            kib: self.kib.min(other.kib),
        }
    }

    /// The least of each that is seen while nothing happens: what comes and goes is no leak. Ends
    /// as soon as nothing is more than `enough`, since more time could only show less.
    async fn at_rest(pid: u32, enough: Option<Self>) -> Result<Self> {
        let mut held = Self::now(pid)?;
        let looks = SETTLE_MAX.as_millis() / LOOK_EVERY.as_millis();
        for _ in 0..looks {
            if enough.is_some_and(|enough| held.least(enough) == held) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            held = held.least(Self::now(pid)?);
        }
        Ok(held)
    }
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let stand = Stand::start(CONFIGURATION).await?;
    let plugins: Vec<PathBuf> = (0..PLUGINS)
        .map(|number| {
            packages::misfit(&stand.plugins(), &format!("m{number:02}"), &[TRICK], POLICY)
        })
        .collect::<Result<_>>()?;
    // As much as one run beforehand, so that every buffer has the size that it keeps.
    let (mut cycles, mut grown) = (0, Vec::new());
    crash(&stand, &plugins, plan.restarts).await?;
    let mut before = Held::at_rest(stand.pid(), None).await?;
    for _ in 0..plan.runs.min(3) {
        cycles = crash(&stand, &plugins, plan.restarts).await?;
        let after = Held::at_rest(stand.pid(), Some(before)).await?;
        grown.push(Held {
            descriptors: after.descriptors - before.descriptors,
            threads: after.threads - before.threads,
            kib: after.kib - before.kib,
        });
        // A run that ended early did not look for the least of all.
        before = before.least(after);
    }
    stand.stop().await?;
    Ok(figures(cycles, &grown))
}

/// Lets plugins crash and be restarted at least `restarts` times in all, each round with plugins
/// that are loaded anew and unloaded at its end. The number of restarts that there were.
async fn crash(stand: &Stand, plugins: &[PathBuf], restarts: usize) -> Result<usize> {
    let loader = stand.loader();
    let mut done = 0;
    while done < restarts {
        let loads = plugins.iter().map(|plugin| loader.load(plugin));
        stream::iter(loads).buffer_unordered(PLUGINS).try_for_each(|_| async { Ok(()) }).await?;
        for plugin in stand.all(plugins.len(), |plugin| plugin.state == GIVEN_UP).await? {
            let restarts = plugin.restarts as usize;
            ensure!(restarts == RESTARTS_EACH, "{}: {restarts} restarts", plugin.name);
            done += restarts;
            stand.unload(&plugin.name).await?;
        }
    }
    Ok(done)
}

fn figures(cycles: usize, grown: &[Held]) -> Vec<Figure> {
    let of = |name: &str, unit, value: fn(&Held) -> f64| {
        let values: Vec<f64> = grown.iter().map(value).collect();
        let method = format!(
            "growth of the peer over {cycles} cycles of a plugin that becomes ready, aborts and is \
             started again, {PLUGINS} plugins side by side, each given up after {RESTARTS_EACH} \
             restarts, reported as in a crash loop, unloaded and loaded anew; runs follow each \
             other in one peer, after as many cycles that do not count; the least that is seen in \
             up to {SETTLE_MAX:?} of rest, all plugins unloaded"
        );
        Figure::of(name, unit, Better::Lower, &values, method)
    };
    vec![
        of("restart_leak_fds", "", |held| held.descriptors).reach(0.0),
        of("restart_leak_threads", "", |held| held.threads).reach(0.0),
        of("restart_leak_kib", "KiB", |held| held.kib).reach(1_024.0),
    ]
}
