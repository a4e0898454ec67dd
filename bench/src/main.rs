//! `bh-bench`: the product beside its peers, in one run on one machine.
//!
//! Owns the load, the subjects (real processes all of them), the arithmetic and the report. Refuses
//! figures taken apart from each other: whatever is compared runs alternately, at least three times
//! each, and is told as a median with its extremes. Ratios of one run are what to trust; absolute
//! figures move with the machine.
//!
//! The report, `target/bench/report.json`, is a list of [`report::Figure`]; beside it the same is
//! written as a page, `SUITE.md`. The exit status tells whether measuring worked, not whether what
//! there is to reach was reached.

#![forbid(unsafe_code)]

mod calls;
mod grpc;
mod host;
mod load;
mod machine;
mod plots;
mod report;
mod subjects;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use tokio::signal::unix::{self, SignalKind};

/// Measures Blackhole beside its peers, and writes a table and a report.
#[derive(Debug, Parser)]
#[command(name = "bh-bench", version)]
struct Args {
    /// What to measure.
    #[arg(long, env = "SUITE", value_enum, default_value = "calls")]
    suite: Suite,
    /// Shorter runs: good to see that everything works, too short to quote.
    #[arg(long, env = "QUICK", value_parser = FalseyValueParser::new())]
    quick: bool,
    /// Measure only subjects and figures (of `host`: groups of figures) whose name has this in it,
    /// such as `nats`, `vs_nginx` or `start`.
    #[arg(long, value_name = "WORD", env = "ONLY", default_value = "")]
    only: String,
    /// Suite `calls`: also asks at half of the most that peers carry, for so long, such as `10m`,
    /// and looks at their memory.
    #[arg(long, value_name = "TIME", env = "STEADY", value_parser = time)]
    steady: Option<Duration>,
    /// Where to write the report [default: target/bench/report.json of the repository].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Calls: directly, through one peer, through two, and through NATS.
    Calls,
    /// Starting, supervising and containing plugins.
    Host,
    /// Replacing plugins while they are called.
    Swap,
    /// Finding services, joining, losing peers.
    Mesh,
}

/// What this program is when it starts itself.
#[derive(Debug, Subcommand)]
enum Role {
    /// Answers what a subject of `calls` is asked.
    #[command(hide = true)]
    Respond { group: String, address: String },
    /// The plugin of a measurement.
    #[command(hide = true, name = host::busy::ROLE)]
    Chatter,
}

/// `90s`, `10m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3_600),
        _ => None,
    });
    let count = text.get(..text.len().saturating_sub(1)).and_then(|it| it.parse::<u64>().ok());
    match (count, unit) {
        (Some(count), Some(seconds)) => Ok(Duration::from_secs(count.saturating_mul(seconds))),
        _ => Err("a time is a number with s, m or h behind it, such as 10m".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Role::Chatter) = args.role {
        return host::busy::chatter();
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    if let Some(Role::Respond { group, address }) = &args.role {
        return runtime.block_on(subjects::respond(group, address.clone()));
    }
    let mut failed = Vec::new();
    let figures = match args.suite {
        Suite::Calls => {
            let mut plan = if args.quick { calls::Plan::QUICK } else { calls::Plan::FULL };
            plan.steady = args.steady;
            runtime.block_on(unless_told_to_end(calls::measure(plan, &args.only)))?
        }
        Suite::Host => {
            println!("{}", machine::described());
            let plan = if args.quick { host::Plan::QUICK } else { host::Plan::FULL };
            let measured = runtime.block_on(unless_told_to_end(host::measure(plan, &args.only)))?;
            failed = measured.failed;
            measured.figures
        }
        later => {
            println!("Suite {later:?} has no figures yet; `calls` is the one that has.");
            Vec::new()
        }
    };
    let path = args.out.clone().unwrap_or_else(report::default_path);
    report::write(&path, &figures)?;
    let suite = args.suite.to_possible_value().map(|it| it.get_name().to_owned());
    let suite = suite.unwrap_or_default();
    let page = path.with_file_name(format!("{suite}.md"));
    report::write_text(&page, &report::page(&suite, &machine::described(), &figures))?;
    for (name, svg) in calls::plots(&figures) {
        report::write_text(&path.with_file_name(name), &svg)?;
    }
    println!("{} figures in {} and {}", figures.len(), path.display(), page.display());
    anyhow::ensure!(failed.is_empty(), "not measured: {}; see above", failed.join(", "));
    Ok(())
}

/// Measures, until Ctrl-C or SIGTERM: whatever was started ends then as it does otherwise, when it
/// is dropped.
async fn unless_told_to_end<T>(measuring: impl Future<Output = Result<T>>) -> Result<T> {
    let signal = |kind| unix::signal(kind).context("no signals can be taken");
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        measured = measuring => measured,
        _ = interrupted.recv() => bail!("interrupted; what it had started was ended"),
        _ = terminated.recv() => bail!("told to end; what it had started was ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(time("1h"), Ok(Duration::from_hours(1)));
        for wrong in ["", "10", "m", "-1s", "1d", "10µ"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
