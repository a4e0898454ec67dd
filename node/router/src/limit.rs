//! How many calls one plugin of this node may have at once, and who is refused first: pure.
//!
//! A bound that is reached answers at once; nothing queues here. Calls that matter less meet their
//! bound earlier, so that room is left for those that matter more. With an adaptive policy the
//! bound itself follows from how long answers take: as long as they take little longer than they
//! need it grows, and when they do, calls are waiting for each other and it shrinks. For services
//! whose answers are all of a kind: a stream that opens after a minute looks like a queue.
//!
//! Source: Netflix, *concurrency-limits*, the gradient limit; Brakmo, Peterson, *TCP Vegas*, 1995,
//! for what answers need being the least that was seen.

use std::time::Duration;

use protocol::wishes::Priority;

use crate::policy::Limit;

/// The lowest an adaptive bound goes: a plugin that answers one call at a time is kept busy, and
/// there is something to measure.
const CALLS_MIN: f64 = 4.0;

/// How many times longer than they need answers may take before the bound shrinks.
const TOLERANCE: f64 = 1.5;

/// Share of each new answer in how long they take now: of the last twenty or so.
const RECENT_SHARE: f64 = 0.05;

/// How much what answers need rises with each of them, so that a plugin which has become slower is
/// believed after some ten thousand answers.
const NEED_RISE: f64 = 1.000_02;

/// Share of each new estimate in the bound.
const STEP_SHARE: f64 = 0.2;

/// What a refused caller is told to wait at least; it grows with how long answers take.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// And at most.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The bound on one plugin's calls.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    /// The adaptive bound; `None` before the first answer.
    calls: Option<f64>,
    /// How long answers take now, and how long they need, in microseconds.
    times: Option<(f64, f64)>,
}

impl Limiter {
    /// How many calls of `priority` may be in flight.
    pub fn calls_max(&self, limit: Limit, priority: Priority) -> u32 {
        let whole = match self.calls {
            Some(calls) if limit.adaptive => (calls as u32).min(limit.calls_max),
            _ => limit.calls_max,
        };
        let share = match priority {
            Priority::High => whole,
            Priority::Normal => whole - whole / 10,
            Priority::Low => whole / 2,
        };
        share.max(1)
    }

    /// Whether one more call of `priority` may begin where `in_flight` are.
    pub fn admits(&self, limit: Limit, priority: Priority, in_flight: u32) -> bool {
        in_flight < self.calls_max(limit, priority)
    }

    /// An answer took `took` microseconds, with `in_flight` calls at once.
    pub fn observe(&mut self, limit: Limit, took: u64, in_flight: u32) {
        if !limit.adaptive {
            return;
        }
        let took = took.max(1) as f64;
        let (recent, need) = self.times.unwrap_or((took, took));
        let recent = recent + (took - recent) * RECENT_SHARE;
        let need = recent.min(need * NEED_RISE);
        self.times = Some((recent, need));
        let calls = self.calls.unwrap_or_else(|| f64::from(limit.calls_max).min(64.0));
        let gradient = (TOLERANCE * need / recent).clamp(0.5, 1.0);
        let aimed = calls * gradient + calls.sqrt();
        // A bound that nobody comes near says nothing about being too low.
        let idle = aimed > calls && f64::from(in_flight) < calls / 2.0;
        if !idle {
            let next = calls + (aimed - calls) * STEP_SHARE;
            self.calls = Some(next.clamp(CALLS_MIN, f64::from(limit.calls_max).max(CALLS_MIN)));
        } else if self.calls.is_none() {
            self.calls = Some(calls);
        }
    }

    /// What a caller who was refused is told to wait: about as long as an answer takes.
    pub fn pause(latency: Option<u64>) -> Duration {
        latency.map_or(PAUSE_MIN, Duration::from_micros).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ADAPTIVE: Limit = Limit { calls_max: 1_000, adaptive: true };

    /// A plugin that works on `workers` calls at once, each for 10 ms, under more load than it
    /// can take: the bound after many answers.
    fn settled(workers: f64) -> u32 {
        let mut limiter = Limiter::default();
        // What answers need is learnt while it is idle.
        for _ in 0..1_000 {
            limiter.observe(ADAPTIVE, 10_000, 1);
        }
        for _ in 0..5_000 {
            let in_flight = limiter.calls_max(ADAPTIVE, Priority::High);
            let waiting = (f64::from(in_flight) / workers).max(1.0);
            limiter.observe(ADAPTIVE, (10_000.0 * waiting) as u64, in_flight);
        }
        limiter.calls_max(ADAPTIVE, Priority::High)
    }

    #[test]
    fn the_bound_finds_what_a_plugin_can_do() {
        for workers in [8.0, 50.0] {
            let bound = f64::from(settled(workers));
            assert!((workers..workers * 6.0).contains(&bound), "{workers} workers: {bound}");
        }
    }

    #[test]
    fn those_that_matter_less_are_refused_first() {
        let (limiter, limit) = (Limiter::default(), Limit { calls_max: 100, adaptive: false });
        let admitted = |in_flight| {
            [Priority::Low, Priority::Normal, Priority::High]
                .map(|priority| limiter.admits(limit, priority, in_flight))
        };
        assert_eq!(admitted(49), [true, true, true]);
        assert_eq!(admitted(50), [false, true, true]);
        assert_eq!(admitted(90), [false, false, true]);
        assert_eq!(admitted(100), [false, false, false]);
    }

    proptest! {
        #[test]
        fn whatever_is_observed_some_calls_are_admitted_and_never_too_many(
            answers in vec((any::<u64>(), any::<u32>()), 0..300),
            calls_max in 1..5_000_u32,
            adaptive: bool,
        ) {
            let limit = Limit { calls_max, adaptive };
            let mut limiter = Limiter::default();
            for (took, in_flight) in answers {
                limiter.observe(limit, took, in_flight);
                for (_, priority) in Priority::NAMED {
                    let bound = limiter.calls_max(limit, priority);
                    prop_assert!((1..=calls_max).contains(&bound));
                }
            }
        }
    }
}
