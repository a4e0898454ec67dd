//! Half of the most that peers can carry, for as long as one likes: their memory, and latency.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::host::proc::pss_kib;
use crate::load::{Demand, Sample, median};
use crate::report::{Better, Figure};
use crate::subjects::Subject;

/// Calls at once, as when the most was measured.
const IN_FLIGHT: usize = 256;

/// How long between two looks at the memory.
const SLICE: Duration = Duration::from_secs(5);

/// Looks without which nothing can be said.
const LOOKS_MIN: usize = 3;

/// The figures of this module.
pub const NAMES: [&str; 2] = ["steady_memory_growth_pct", "steady_p99_ms"];

/// Asks `subject` at half of `most` calls a second.
pub async fn measure(
    subject: &mut dyn Subject,
    most: f64,
    duration: Duration,
) -> Result<Vec<Figure>> {
    let (rate, begun) = (most / 2.0, Instant::now());
    let (mut all, mut memory) = (Sample::default(), Vec::new());
    while begun.elapsed() < duration {
        let demand = Demand { in_flight: IN_FLIGHT, duration: SLICE, rate: Some(rate) };
        all.join(&subject.run(demand).await?)?;
        memory.push(subject.pids().into_iter().map(pss_kib).sum::<f64>());
    }
    ensure!(memory.len() >= LOOKS_MIN, "too short: at least {LOOKS_MIN} times {SLICE:?}");
    let third = memory.len() / 3;
    let (first, last) = (&memory[..third], &memory[memory.len() - third..]);
    let growth = (median(last) / median(first) - 1.0) * 100.0;
    let method = format!(
        "{}; half of the most that was measured before ({rate:.0} calls of 32 B a second of \
         {most:.0}) for {} s, {:.0} a second were made",
        subject.way(),
        duration.as_secs(),
        all.calls() as f64 / begun.elapsed().as_secs_f64()
    );
    let of = |name, unit, value, reach, how: &str| {
        Figure::of(name, unit, Better::Lower, &[value], format!("{how}; {method}")).reach(reach)
    };
    let grown = format!(
        "memory (PSS) of the peers in the last third of the time, median {:.0} KiB, against that in \
         the first, median {:.0} KiB, looked at every {SLICE:?}",
        median(last),
        median(first)
    );
    let p99 = all.percentile(0.99) / 1_000.0;
    Ok(vec![
        of(NAMES[0], "%", growth, 5.0, &grown),
        of(NAMES[1], "ms", p99, 10.0, "from when a call was due to its answer"),
    ])
}
