//! When a second attempt is begun while the first one still runs: pure.
//!
//! The time after which it is worth it is the one in which 95 of 100 calls of the service are
//! answered. It is read from a histogram that forgets: whenever it has counted enough, all counts
//! are halved.
//!
//! Source: Dean, Barroso, *The Tail at Scale*, 2013.

use crate::{condition::micros, policy::Hedging};

/// Buckets to each doubling of time: within a fifth of the true value.
const PER_DOUBLING: usize = 4;

/// 1 µs to about 70 minutes.
const BUCKETS: usize = 32 * PER_DOUBLING;

/// Answers before the counts are halved: minutes of an ordinary service, a second of a busy one.
const COUNTED_MAX: u32 = 4_096;

/// Fewer answers tell nothing of the slowest twentieth.
const COUNTED_MIN: u32 = 100;

/// The earliest a second attempt is begun, in microseconds: below it the first answer comes
/// before the second attempt has left.
const AFTER_MICROS_MIN: u64 = 1_000;

/// How long the answers of one service take.
#[derive(Debug, Clone)]
pub struct Times {
    buckets: Box<[u32; BUCKETS]>,
    counted: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), counted: 0 }
    }
}

impl Times {
    /// An answer took `took` microseconds.
    pub fn observe(&mut self, took: u64) {
        if self.counted >= COUNTED_MAX {
            for bucket in self.buckets.iter_mut() {
                *bucket /= 2;
            }
            self.counted = self.buckets.iter().sum();
        }
        self.buckets[bucket_of(took)] += 1;
        self.counted += 1;
    }

    /// The time in which `percent` of 100 answers came, in microseconds, rounded up to the end of
    /// its bucket; `None` while too few are known.
    pub fn quantile(&self, percent: u32) -> Option<u64> {
        if self.counted < COUNTED_MIN {
            return None;
        }
        let wanted = u64::from(self.counted) * u64::from(percent.min(100));
        let mut below = 0;
        let found = self.buckets.iter().position(|count| {
            below += u64::from(*count) * 100;
            below >= wanted
        });
        found.map(end_of)
    }

    /// How long after the first attempt the second one is begun, in microseconds; `None` where
    /// that is not known yet.
    pub fn hedge_after(&self, hedging: &Hedging) -> Option<u64> {
        let after = match hedging.after {
            Some(after) => micros(after),
            None => self.quantile(95)?,
        };
        Some(after.max(AFTER_MICROS_MIN))
    }
}

fn bucket_of(took: u64) -> usize {
    let took = took.clamp(1, u64::from(u32::MAX));
    let doubling = took.ilog2() as usize;
    let part = ((took << 2) >> doubling) as usize - PER_DOUBLING;
    (doubling * PER_DOUBLING + part).min(BUCKETS - 1)
}

fn end_of(bucket: usize) -> u64 {
    let (doubling, part) = (bucket / PER_DOUBLING, bucket % PER_DOUBLING);
    ((PER_DOUBLING + part + 1) as u64) << doubling >> 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slowest_twentieth_sets_the_time() {
        let mut times = Times::default();
        assert_eq!(times.quantile(95), None);
        for call in 0..1_000 {
            times.observe(if call % 10 == 0 { 200_000 } else { 2_000 });
        }
        let (half, most) = (times.quantile(50).expect("known"), times.quantile(95).expect("known"));
        assert!((2_000..2_600).contains(&half), "{half}");
        assert!((200_000..260_000).contains(&most), "{most}");
    }

    #[test]
    fn old_times_are_forgotten() {
        let mut times = Times::default();
        (0..4_000).for_each(|_| times.observe(1_000_000));
        (0..40_000).for_each(|_| times.observe(1_000));
        assert!(times.quantile(95).expect("known") < 2_000);
    }

    proptest! {
        #[test]
        fn every_time_lies_in_its_bucket(took in 1..u64::from(u32::MAX)) {
            let bucket = bucket_of(took);
            let end = end_of(bucket);
            prop_assert!(took <= end.max(1) || bucket == BUCKETS - 1);
            prop_assert!(end <= took.saturating_mul(2).max(2));
        }
    }
}
