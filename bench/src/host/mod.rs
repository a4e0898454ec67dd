//! Suite `host`: what starting, supervising and containing plugins costs.
//!
//! Everything is measured from outside, on real peers (`bh-peer`) with the jail they have by
//! default; the one thing that the product is asked for is when it noted the steps of a start, and
//! that is checked against what was seen from outside. Whatever a figure is compared with runs in
//! the same run, alternating with it.
//!
//! | Module | Figures |
//! |---|---|
//! | `start` | `start_warm_*`, `start_jail_ratio`, `start_cold_ms`, `start_to_call_*` |
//! | `foreign` | `start_python_ratio`, `start_node_ratio` |
//! | `scale` | `start_1000_s`, `idle_1000_cpu_pct`, `memory_*` |
//! | `busy` | `supervision_cpu_pct` |
//! | `leak` | `restart_leak_*` |
//! | `misbehave` | `misbehaviour_p99_ratio` |
//! | `orphans` | `orphans_after_kill9`, `recover_200_s` |

pub mod busy;
mod foreign;
mod leak;
mod misbehave;
mod orphans;
pub mod proc;
mod scale;
mod stand;
mod start;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::machine::Surroundings;
use crate::report::{self, Figure};

/// How much of everything is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Runs of each figure.
    runs: usize,
    /// Warm starts of each kind in a run.
    starts: usize,
    /// Cold starts in a run.
    cold_starts: usize,
    /// Starts of each foreign program in a run.
    foreign_starts: usize,
    /// Runs with 1,000 plugins.
    scale_runs: usize,
    /// How long 1,000 idle plugins are watched.
    idle: Duration,
    /// How long 100 busy plugins are watched.
    busy: Duration,
    /// How long one plugin is called beside 1,000 that misbehave.
    beside: Duration,
    /// Crash-restart cycles in a run.
    restarts: usize,
    /// Runs with `kill -9`.
    kill_runs: usize,
}

impl Plan {
    pub const FULL: Self = Self {
        runs: 5,
        starts: 100,
        cold_starts: 7,
        foreign_starts: 5,
        scale_runs: 3,
        idle: Duration::from_secs(30),
        busy: Duration::from_secs(10),
        beside: Duration::from_secs(20),
        restarts: 1_000,
        kill_runs: 3,
    };
    pub const QUICK: Self = Self {
        runs: 3,
        starts: 20,
        cold_starts: 2,
        foreign_starts: 2,
        scale_runs: 1,
        idle: Duration::from_secs(5),
        busy: Duration::from_secs(2),
        beside: Duration::from_secs(5),
        restarts: 100,
        kill_runs: 1,
    };
}

/// What could be measured, and what could not.
pub struct Measured {
    pub figures: Vec<Figure>,
    /// Groups that could not be measured.
    pub failed: Vec<&'static str>,
}

/// The groups of figures, in the order in which they are measured.
const GROUPS: [&str; 7] = ["start", "foreign", "scale", "busy", "leak", "misbehave", "orphans"];

/// Measures everything whose group has `only` in its name. One group that cannot be measured
/// takes nothing from the others.
pub async fn measure(plan: Plan, only: &str) -> Result<Measured> {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let wanted: Vec<_> = GROUPS.into_iter().filter(|group| group.contains(only)).collect();
    anyhow::ensure!(!wanted.is_empty(), "no group's name contains {only:?}: {GROUPS:?}");
    for group in wanted {
        match of_group(group, plan).await {
            Ok(mut figures) => measured.figures.append(&mut figures),
            Err(error) => {
                left_out(&format!("group {group}"), &error);
                measured.failed.push(group);
            }
        }
    }
    print!("{}", report::table(&measured.figures));
    Ok(measured)
}

async fn of_group(group: &str, plan: Plan) -> Result<Vec<Figure>> {
    let (begun, surroundings) = (Instant::now(), Surroundings::watch());
    let mut figures = match group {
        "start" => start::measure(plan).await?,
        "foreign" => foreign::measure(plan).await?,
        "scale" => scale::measure(plan).await?,
        "busy" => busy::measure(plan).await?,
        "leak" => leak::measure(plan).await?,
        "misbehave" => misbehave::measure(plan).await?,
        _ => orphans::measure(plan).await?,
    };
    let beside = surroundings.told();
    for figure in &mut figures {
        figure.method.push_str("; ");
        figure.method.push_str(&beside);
    }
    println!("{group}: {:.0} s; {beside}", begun.elapsed().as_secs_f64());
    Ok(figures)
}

/// Says loudly that a comparison is not made; it will not be among the figures.
fn left_out(what: &str, error: &anyhow::Error) {
    eprintln!("\n*** {what} is LEFT OUT: {error:#} ***\n");
}
