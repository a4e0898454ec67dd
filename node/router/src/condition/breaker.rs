//! The circuit breaker of one provider.
//!
//! Closed until calls to it fail several times in a row; then open, and nothing is sent; when that
//! time is over one call is let through as a trial. Its success closes the circuit, its failure
//! opens it for twice as long.
//!
//! Source: Nygard, *Release It!*, "Circuit Breaker".

use super::{micros, spread};
use crate::policy::Breaking;

/// Whether a provider may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Circuit {
    /// Yes.
    #[default]
    Closed,
    /// By one call, to see whether it has recovered.
    Trial,
    /// Not before this time, in microseconds.
    Open {
        /// When a trial is due.
        until: u64,
    },
}

/// How often the time may double: beyond it every duration is at its longest.
const DOUBLINGS_MAX: u32 = 16;

/// One provider's circuit breaker.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// Failures in a row.
    failures: u32,
    /// Times in a row that it opened.
    openings: u32,
    /// When a trial is due; `None` while the circuit is closed.
    open_until: Option<u64>,
    /// When the trial that is under way counts as lost.
    trial_until: Option<u64>,
}

impl Breaker {
    /// How long a trial may be under way before another is let through, in microseconds: a call
    /// that hangs must not keep everybody out.
    pub const TRIAL_MICROS_MAX: u64 = 10_000_000;

    /// As it is at `now`.
    pub fn circuit(&self, now: u64) -> Circuit {
        let Some(open_until) = self.open_until else { return Circuit::Closed };
        let until = self.trial_until.unwrap_or(0).max(open_until);
        if now < until { Circuit::Open { until } } else { Circuit::Trial }
    }

    /// A call is sent.
    pub fn begin(&mut self, now: u64) {
        if self.circuit(now) == Circuit::Trial {
            self.trial_until = Some(now + Self::TRIAL_MICROS_MAX);
        }
    }

    /// It began to answer. Enough to end a trial: the rest of a stream may take days.
    pub fn answered(&mut self) {
        if self.open_until.is_some() {
            *self = Self::default();
        }
    }

    /// It answered to the end.
    pub fn good(&mut self) {
        *self = Self::default();
    }

    /// A call ended that says nothing. If it was the trial, the next one is let through at once.
    pub fn neutral(&mut self) {
        self.trial_until = None;
    }

    /// A call failed in a way that would befall every other.
    pub fn down(&mut self, breaking: &Breaking, now: u64, chance: u64) {
        self.failures = self.failures.saturating_add(1);
        let failed_trial = self.trial_until.take().is_some();
        let closed = self.open_until.is_none();
        if failed_trial || (closed && self.failures >= breaking.failures) {
            let doubled =
                micros(breaking.open).saturating_mul(1 << self.openings.min(DOUBLINGS_MAX));
            let time = doubled.min(micros(breaking.open_max));
            self.openings = self.openings.saturating_add(1);
            self.open_until = Some(now + spread(time, chance).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn breaking() -> Breaking {
        let (open, open_max) = (Duration::from_secs(1), Duration::from_secs(3));
        Breaking { failures: 3, open, open_max }
    }

    fn opened() -> (Breaker, u64) {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            assert_eq!(breaker.circuit(0), Circuit::Closed);
            breaker.down(&breaking(), 0, 7);
        }
        let Circuit::Open { until } = breaker.circuit(0) else { panic!("open") };
        (breaker, until)
    }

    #[test]
    fn it_opens_lets_one_trial_through_and_closes_when_that_succeeds() {
        let (mut breaker, until) = opened();
        assert!((SECOND * 9 / 10..=SECOND * 11 / 10).contains(&until), "{until}");
        assert_eq!(breaker.circuit(until), Circuit::Trial);
        breaker.begin(until);
        assert!(matches!(breaker.circuit(until), Circuit::Open { .. }), "one trial at a time");
        breaker.answered();
        assert_eq!(breaker.circuit(until), Circuit::Closed);
    }

    #[test]
    fn a_failed_trial_opens_it_for_longer_up_to_a_bound() {
        let (mut breaker, mut until) = opened();
        let mut times = Vec::new();
        for _ in 0..4 {
            breaker.begin(until);
            breaker.down(&breaking(), until, 7);
            let Circuit::Open { until: next } = breaker.circuit(until) else { panic!("open") };
            times.push((next - until) / (SECOND / 2));
            until = next;
        }
        assert!(times[0] >= 3 && times[1] >= 5 && times[3] <= 6, "{times:?}");
    }

    #[test]
    fn a_trial_that_hangs_or_is_given_up_keeps_nobody_out() {
        let (mut breaker, until) = opened();
        breaker.begin(until);
        assert_eq!(breaker.circuit(until + Breaker::TRIAL_MICROS_MAX), Circuit::Trial);
        breaker.neutral();
        assert_eq!(breaker.circuit(until), Circuit::Trial);
    }

    #[test]
    fn late_failures_of_earlier_calls_do_not_prolong_it() {
        let (mut breaker, until) = opened();
        breaker.down(&breaking(), until - 1, 7);
        assert_eq!(breaker.circuit(until), Circuit::Trial);
    }
}
