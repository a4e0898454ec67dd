//! A token bucket: how many bytes may pass now. Pure; time is an argument.

use std::time::{Duration, Instant};

use crate::tokens::Tokens;

/// What may pass at once, as a part of a second's share: smooth enough for streams, rare enough
/// to cost nothing.
const BURST_SECONDS: f64 = 0.1;

/// The least burst, so that a small share still passes whole packets.
const BURST_BYTES_MIN: f64 = 16.0 * 1_024.0;

/// Bytes worth waking up for.
const CHUNK_BYTES: f64 = 1_460.0;

/// A bound on bytes per second.
#[derive(Debug)]
pub(crate) struct Bucket(Tokens);

impl Bucket {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        let per_second = bytes_per_second.max(1) as f64;
        Self(Tokens::full(per_second, burst(per_second), now))
    }

    /// Takes up to `wanted` bytes, which must not be 0, or says how long to wait for some.
    pub(crate) fn take(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let left = self.0.left(now);
        let enough = CHUNK_BYTES.min(wanted as f64);
        // A tenth of a byte less than enough is no reason to wait for a nanosecond.
        if left + 0.1 < enough {
            return Err(Duration::from_secs_f64((enough - left) / self.0.per_second()));
        }
        let taken = wanted.min((left + 0.1) as usize);
        self.0.spend(taken as f64);
        Ok(taken)
    }

    /// Returns bytes that were taken and not used.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.0.give_back(bytes as f64);
    }
}

fn burst(per_second: f64) -> f64 {
    (per_second * BURST_SECONDS).max(BURST_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_burst_and_share_and_never_stuck(
            per_second in 1_u64..10_000_000,
            wishes in prop::collection::vec((1_usize..100_000, 0_u64..200), 1..100)
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut bucket = Bucket::new(per_second, now);
            let mut passed = 0.0;
            for (wanted, millis) in wishes {
                now += Duration::from_millis(millis);
                match bucket.take(wanted, now) {
                    Ok(taken) => {
                        prop_assert!((1..=wanted).contains(&taken));
                        passed += taken as f64;
                    }
                    Err(wait) => {
                        now += wait;
                        let taken = bucket.take(wanted, now);
                        prop_assert!(taken.is_ok(), "after waiting as told: {:?}", taken);
                        passed += taken.unwrap_or(0) as f64;
                    }
                }
                let share = (now - begin).as_secs_f64() * per_second as f64;
                let most = burst(per_second as f64) + share + 10.0;
                prop_assert!(passed <= most, "{} of {}", passed, most);
            }
        }
    }
}
