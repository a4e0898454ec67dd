//! What a run of load yields: how many calls, how long each.

use std::time::{Duration, Instant};

/// One run.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// From the first call's beginning to the last call's end.
    pub took: Duration,
    /// How long each call took, in nanoseconds; four seconds and more are all the same.
    nanos: Vec<u32>,
}

impl Sample {
    /// Notes a call that began at `begun` and has just ended.
    pub fn note(&mut self, begun: Instant) {
        let nanos = begun.elapsed().as_nanos();
        self.nanos.push(u32::try_from(nanos).unwrap_or(u32::MAX));
    }

    /// Adds the calls of another that ran at the same time.
    pub fn join(&mut self, mut other: Self) {
        self.nanos.append(&mut other.nanos);
    }

    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.nanos.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency, in microseconds, that `share` (0 to 1) of the calls kept below; 0 without any.
    pub fn percentile(&mut self, share: f64) -> f64 {
        if self.nanos.is_empty() {
            return 0.0;
        }
        let at = ((self.nanos.len() - 1) as f64 * share).round() as usize;
        let (_, nanos, _) = self.nanos.select_nth_unstable(at);
        f64::from(*nanos) / 1_000.0
    }
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
        let nanos = (1..=101).rev().map(|n| n * 1_000).collect();
        let mut sample = Sample { nanos, ..Sample::default() };
        assert!((sample.percentile(0.5) - 51.0).abs() < 1e-9);
        assert!((sample.percentile(0.99) - 100.0).abs() < 1e-9);
        assert!((sample.percentile(1.0) - 101.0).abs() < 1e-9);
        assert!(Sample::default().percentile(0.5).abs() < 1e-9);
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
