//! Suite `calls`: what the mesh costs a call, beside what else one could use.
//!
//! Every subject is asked the same (32 bytes, said back) in turns: each run measures all of them
//! once, beginning with another one each time. Figures that compare two of them are computed run
//! by run, and told as the median of that.

mod figures;
mod overhead;
mod steady;
mod transfer;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use testnet::{cluster::World, residue};

use crate::{
    load::{Demand, Sample, median},
    machine, plots,
    report::{self, Better, Figure},
    subjects::{self, Started, Subject},
};

/// With more programs busy than this, on average, before anything began, the figures say so.
const BUSY_MAX: f64 = 1.0;

/// More than this much of the processors' time gone to others, in percent, is said.
const STOLEN_PERCENT_MAX: f64 = 2.0;

/// How much of everything is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    runs: usize,
    warm_up: Duration,
    /// One call after another.
    single: Duration,
    /// Many calls at once.
    loaded: Duration,
    /// Messages of one MiB in a large transfer.
    messages: u32,
    /// How long half of the most is asked; not at all, unless told.
    pub steady: Option<Duration>,
}

impl Plan {
    pub const FULL: Self = Self {
        runs: 5,
        warm_up: Duration::from_millis(500),
        single: Duration::from_secs(2),
        loaded: Duration::from_secs(2),
        messages: 1_024,
        steady: None,
    };
    pub const QUICK: Self = Self {
        runs: 3,
        warm_up: Duration::from_millis(100),
        single: Duration::from_millis(200),
        loaded: Duration::from_millis(250),
        messages: 128,
        steady: None,
    };
}

/// What is measured of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    /// One call after another, µs.
    P50,
    /// The same, of 99 in a hundred.
    P99,
    /// As [`Measure::P50`], everything on one processor.
    Pinned,
    /// Calls a second with 64 at once.
    Rate64,
    /// Calls a second with 256 at once.
    Rate256,
}

/// What was measured in one run, by subject.
type Run = BTreeMap<(&'static str, Measure), f64>;

/// What was measured at all.
#[derive(Default)]
struct Results {
    /// How each subject's calls go.
    ways: BTreeMap<&'static str, &'static str>,
    runs: Vec<Run>,
    /// Why subjects that were wanted are not there.
    skipped: BTreeMap<&'static str, String>,
}

/// Starts everything, measures it in turns, and ends it.
pub async fn measure(plan: Plan, only: &str) -> Result<Vec<Figure>> {
    let busy = machine::busy_before();
    println!("{}; {busy:.1} programs were busy before", machine::described());
    let world = World::new()?;
    let mut results = Results::default();
    let mut started = start(&world, only, &mut results.skipped).await;
    let before = machine::Ticks::now();
    for run in 1..=plan.runs {
        results.runs.push(one_run(plan, &mut started, &mut results.skipped).await);
        // Whoever was first meets the machine as the pause has left it.
        let first = usize::from(!started.is_empty());
        started.rotate_left(first);
        println!("run {run} of {} done", plan.runs);
    }
    results.ways = started.iter().map(|subject| (subject.name(), subject.way())).collect();
    let mut others = Vec::new();
    if let Some(duration) = plan.steady {
        others.extend(steadily(duration, &mut started, &results).await?);
    }
    drop(started);
    if overhead::NAME.contains(only) {
        others.push(overhead::wire_overhead()?);
    }
    if transfer::NAMES.iter().any(|name| name.contains(only)) {
        others.extend(transfers(plan).await);
    }
    let stolen = machine::Ticks::now().stolen_percent_since(before);
    if stolen > STOLEN_PERCENT_MAX {
        println!("careful: {stolen:.1} % of the processors' time went to others meanwhile");
    }
    let mut figures = figures::of(&results, plan, only);
    figures.append(&mut others);
    ensure!(!figures.is_empty(), "no subject's and no figure's name contains {only:?}");
    if busy > BUSY_MAX {
        println!("careful: the machine was busy with other work; quote none of these figures");
        let beside = format!("; beside other work (load {busy:.1})");
        for figure in &mut figures {
            figure.method.push_str(&beside);
        }
    }
    print!("{}", report::table(&figures));
    Ok(figures)
}

/// The figures that all subjects have, as pictures: `(file, SVG)`.
pub fn plots(figures: &[Figure]) -> Vec<(String, String)> {
    let of = |measure: &str, title: &str| {
        let ending = format!(".{measure}");
        let named = |figure: &'_ Figure| {
            Some(figure.name.strip_prefix("calls.")?.strip_suffix(&ending)?.to_owned())
        };
        let names: Vec<_> = figures.iter().filter_map(|it| Some((named(it)?, it))).collect();
        let bars: Vec<_> = names.iter().map(|(name, figure)| (name.as_str(), *figure)).collect();
        Some((format!("calls-{measure}.svg"), plots::bars(title, &bars)?))
    };
    let all = [
        of("p50", "Median latency of a call of 32 bytes, one after another"),
        of("rate-256", "Calls of 32 bytes a second, 256 at once"),
    ];
    all.into_iter().flatten().collect()
}

/// The subjects that are wanted: by their own name, or by that of a figure.
async fn start(world: &World, only: &str, skipped: &mut BTreeMap<&'static str, String>) -> Started {
    let wanted = |name: &str| name.contains(only) || figures::needs(only, name);
    let mut all = Started::new();
    for group in subjects::ALL {
        if !group.names.iter().any(|name| wanted(name)) {
            continue;
        }
        match (group.start)(world).await {
            Ok(started) => all.extend(started.into_iter().filter(|it| wanted(it.name()))),
            Err(error) => {
                eprintln!("\n*** {} SKIPPED: {error:#} ***\n", group.names.join(", "));
                skipped.extend(group.names.iter().map(|name| (*name, format!("{error:#}"))));
            }
        }
    }
    all
}

/// Subjects that are asked for long, the first of them that is there.
const STEADY: [&str; 3] = ["remote-link", "two-peers", "one-peer"];

/// Half of what was measured, for long.
async fn steadily(
    duration: Duration,
    subjects: &mut Started,
    results: &Results,
) -> Result<Vec<Figure>> {
    let place = STEADY.iter().find_map(|name| subjects.iter().position(|it| it.name() == *name));
    let subject = &mut subjects[place.context("no subject is there to be asked for long")?];
    let rates = results.runs.iter().filter_map(|run| run.get(&(subject.name(), Measure::Rate256)));
    let most = median(&rates.copied().collect::<Vec<_>>());
    println!("{} is asked for {} s at half of {most:.0} req/s", subject.name(), duration.as_secs());
    steady::measure(subject.as_mut(), most, duration).await
}

/// Large transfers; where they cannot be measured, that.
async fn transfers(plan: Plan) -> Vec<Figure> {
    match transfer::measure(plan).await {
        Ok(figures) => figures,
        Err(error) => {
            eprintln!("\n*** large transfers SKIPPED: {error:#} ***\n");
            let why = format!("{error:#}");
            transfer::NAMES.map(|name| Figure::skipped(name, Better::Lower, &why)).into()
        }
    }
}

/// Every subject once. One that fails takes nothing from the others: it is skipped from then on.
async fn one_run(
    plan: Plan,
    subjects: &mut Started,
    skipped: &mut BTreeMap<&'static str, String>,
) -> Run {
    let mut run = Run::new();
    let mut there = Started::new();
    for mut subject in subjects.drain(..) {
        let name = subject.name();
        match of_subject(plan, subject.as_mut(), &mut run).await {
            Ok(()) => there.push(subject),
            Err(error) => {
                eprintln!("\n*** {name} SKIPPED: {error:#} ***\n");
                skipped.insert(name, format!("{error:#}"));
            }
        }
    }
    *subjects = there;
    run
}

async fn of_subject(plan: Plan, subject: &mut dyn Subject, run: &mut Run) -> Result<()> {
    let name = subject.name();
    let mut note = |measure, value| run.insert((name, measure), value);
    let single = warmed(plan, subject, 1, plan.single).await?;
    note(Measure::P50, single.percentile(0.5));
    note(Measure::P99, single.percentile(0.99));
    note(Measure::Rate64, warmed(plan, subject, 64, plan.loaded).await?.rate());
    note(Measure::Rate256, warmed(plan, subject, 256, plan.loaded).await?.rate());

    let below = subject.pids().into_iter().flat_map(|pid| {
        std::iter::once(pid).chain(residue::descendants(pid).into_iter().map(|seen| seen.pid))
    });
    let pinned = machine::Pinned::to_one_processor(below)?;
    note(Measure::Pinned, warmed(plan, subject, 1, plan.single).await?.percentile(0.5));
    drop(pinned);
    Ok(())
}

async fn warmed(
    plan: Plan,
    subject: &mut dyn Subject,
    in_flight: usize,
    duration: Duration,
) -> Result<Sample> {
    subject.run(Demand::closed(in_flight, plan.warm_up)).await?;
    let sample = subject.run(Demand::closed(in_flight, duration)).await?;
    ensure!(sample.calls() > 0, "no call was answered");
    Ok(sample)
}
