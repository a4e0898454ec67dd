//! The load generator: closed loops, and what a run of one yields.
//!
//! Everything that is measured from this program is asked from here, on one thread: on a machine
//! with few cores as little as can be goes to the side that only asks. There are two loops.
//! [`closed`] is for clients that have a task for each call; [`pipelined`] is for protocols so
//! simple that one loop writes many requests at once.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use tokio::task::LocalSet;

/// Longer calls are counted as this long.
const NANOS_MAX: u64 = 60_000_000_000;

/// Digits that latencies keep.
const DIGITS: u8 = 3;

/// How much is asked.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Calls at once; each is followed by the next when it has ended.
    pub in_flight: usize,
    /// For how long.
    pub duration: Duration,
    /// Calls a second in all. Without it each is followed by the next at once. With it a call's
    /// latency counts from when it was due, so that a pause is not taken for fewer calls.
    pub rate: Option<f64>,
}

impl Demand {
    /// As many as can be.
    pub fn closed(in_flight: usize, duration: Duration) -> Self {
        Self { in_flight, duration, rate: None }
    }
}

/// One run.
#[derive(Debug, Clone)]
pub struct Sample {
    /// From the first call's beginning to the last call's end.
    pub took: Duration,
    /// How long each call took, in nanoseconds.
    nanos: Histogram<u64>,
}

impl Default for Sample {
    fn default() -> Self {
        let nanos = Histogram::new_with_bounds(1, NANOS_MAX, DIGITS);
        Self { took: Duration::ZERO, nanos: nanos.expect("constant bounds that are in order") }
    }
}

impl Sample {
    /// Notes a call that took so long.
    pub fn note(&mut self, took: Duration) {
        self.note_nanos(u64::try_from(took.as_nanos()).unwrap_or(NANOS_MAX));
    }

    /// The same, of a call that another program made.
    pub fn note_nanos(&mut self, nanos: u64) {
        self.nanos.saturating_record(nanos);
    }

    /// Adds the calls of another; the time it took is added, too.
    pub fn join(&mut self, other: &Self) -> Result<()> {
        self.took += other.took;
        Ok(self.nanos.add(&other.nanos)?)
    }

    /// Calls.
    pub fn calls(&self) -> u64 {
        self.nanos.len()
    }

    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.calls() as f64 / self.took.as_secs_f64()
    }

    /// The latency, in microseconds, that `share` (0 to 1) of the calls kept below; 0 without any.
    pub fn percentile(&self, share: f64) -> f64 {
        self.nanos.value_at_quantile(share) as f64 / 1_000.0
    }
}

/// Keeps calls going, each way of asking that `client` gives in a task of its own, all of them on
/// this thread.
pub async fn closed<C>(demand: Demand, client: impl Fn() -> C) -> Result<Sample>
where
    C: AsyncFnMut() -> Result<()> + 'static,
{
    let (local, begun) = (LocalSet::new(), Instant::now());
    let sample = Rc::new(RefCell::new(Sample::default()));
    let workers: Vec<_> = (0..demand.in_flight)
        .map(|place| {
            let (mut ask, sample) = (client(), sample.clone());
            local.spawn_local(async move {
                let mut turn = place;
                while begun.elapsed() < demand.duration {
                    let asked = match demand.rate {
                        Some(rate) => due(begun, turn, rate).await,
                        None => Instant::now(),
                    };
                    ask().await?;
                    sample.borrow_mut().note(asked.elapsed());
                    turn += demand.in_flight;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let ended = local.run_until(async {
        for worker in workers {
            worker.await??;
        }
        anyhow::Ok(())
    });
    ended.await?;
    let mut sample = sample.take();
    sample.took = begun.elapsed();
    Ok(sample)
}

/// Waits until call number `turn` is due, and gives when that was.
async fn due(begun: Instant, turn: usize, rate: f64) -> Instant {
    let due = begun + Duration::from_secs_f64(turn as f64 / rate);
    tokio::time::sleep_until(due.into()).await;
    due
}

/// A connection on which one loop asks and is answered.
pub trait Pipe {
    /// Puts a request with this number to what is written next.
    fn ask(&mut self, number: u64);

    /// Writes what is due, waits for bytes, and adds the numbers of requests that were answered.
    /// An answer of another content is an error.
    fn answered(&mut self, numbers: &mut Vec<u64>) -> impl Future<Output = Result<()>>;
}

/// Keeps calls going over one connection, with one look at the clock for each batch of answers.
pub async fn pipelined(demand: Demand, pipe: &mut impl Pipe) -> Result<Sample> {
    ensure!(demand.rate.is_none(), "this client cannot be paced");
    let begun = Instant::now();
    let mut sample = Sample::default();
    // Each place has one request at a time, whose numbers never come again: no answer counts twice.
    let places = demand.in_flight as u64;
    let mut open: Vec<(u64, Instant)> = (0..places).map(|number| (number, begun)).collect();
    (0..places).for_each(|number| pipe.ask(number));
    let (mut left, mut numbers) = (demand.in_flight, Vec::with_capacity(demand.in_flight));
    while left > 0 {
        pipe.answered(&mut numbers).await?;
        let now = Instant::now();
        for number in numbers.drain(..) {
            let place = &mut open[(number % places) as usize];
            ensure!(place.0 == number, "an answer that nobody waits for");
            sample.note(now - place.1);
            *place = (number + places, now);
            if now - begun < demand.duration {
                pipe.ask(number + places);
            } else {
                left -= 1;
            }
        }
    }
    sample.took = begun.elapsed();
    Ok(sample)
}

/// The middle of an odd number of values, the lower middle of an even one; 0 without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// The value that `share` (0 to 1) of the values do not exceed; 0 without any.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_all_calls() {
        let mut sample = Sample::default();
        (1..=101).rev().for_each(|n| sample.note_nanos(n * 1_000));
        let near = |share, micros: f64| (sample.percentile(share) / micros - 1.0).abs() < 1e-3;
        assert!(near(0.5, 51.0) && near(0.99, 100.0) && near(1.0, 101.0));
        assert!(Sample::default().percentile(0.5).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_its_rate() {
        let demand =
            Demand { in_flight: 4, duration: Duration::from_millis(200), rate: Some(1_000.0) };
        let sample = closed(demand, || async || Ok(())).await.expect("nothing fails");
        assert!((100..=204).contains(&sample.calls()), "{}", sample.calls());
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waits_for_is_an_error() {
        struct Parrot(u64);
        impl Pipe for Parrot {
            fn ask(&mut self, number: u64) {
                self.0 = number + 7;
            }
            async fn answered(&mut self, numbers: &mut Vec<u64>) -> Result<()> {
                numbers.push(self.0);
                Ok(())
            }
        }
        let demand = Demand::closed(1, Duration::ZERO);
        assert!(pipelined(demand, &mut Parrot(0)).await.is_err());
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        assert!((quantile(&[3.0, 1.0, 2.0], 0.5) - 2.0).abs() < 1e-9);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((quantile(&hundred, 0.99) - 99.0).abs() < 1e-9);
        assert!((quantile(&hundred, 1.0) - 100.0).abs() < 1e-9);
        assert!(quantile(&[], 0.5).abs() < 1e-9);
    }
}
