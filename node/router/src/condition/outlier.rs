//! Whether one provider fails so often that others should be preferred.
//!
//! An ejected provider is not shut out, it comes after all others; how many may be so at once is
//! the choice's business, which sees the whole set. It comes back by probation: when its time is
//! over it gets its share again, and the next failure ejects it for longer, the next success
//! clears it.
//!
//! Source: Envoy, *Outlier detection*, consecutive failures.

use super::{micros, spread};
use crate::policy::Ejection;

/// How much longer than the first time an ejection may be, in times.
const TIMES_MAX: u32 = 1_000;

/// One provider's record.
#[derive(Debug, Clone, Default)]
pub struct Outlier {
    /// Bad endings in a row.
    failures: u32,
    /// Times in a row that it was ejected.
    times: u32,
    ejected_until: u64,
}

impl Outlier {
    /// Until when it is ejected; past for not.
    pub fn ejected_until(&self) -> u64 {
        self.ejected_until
    }

    /// A call ended well.
    pub fn good(&mut self) {
        self.failures = 0;
        self.times = 0;
    }

    /// A call ended badly at `now`.
    pub fn bad(&mut self, ejection: &Ejection, now: u64, chance: u64) {
        self.failures = self.failures.saturating_add(1);
        let on_probation = self.times > 0;
        if now < self.ejected_until || (!on_probation && self.failures < ejection.failures) {
            return;
        }
        self.times = (self.times + 1).min(TIMES_MAX);
        let time = micros(ejection.time).saturating_mul(u64::from(self.times));
        self.ejected_until = now + spread(time.min(micros(ejection.time_max)), chance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_its_time_one_failure_ejects_it_again_and_one_success_clears_it() {
        let ejection = Ejection::default();
        let mut one = Outlier::default();
        for now in 0..4 {
            one.bad(&ejection, now, 1);
            assert_eq!(one.ejected_until(), 0);
        }
        one.bad(&ejection, 4, 1);
        let first = one.ejected_until();
        one.bad(&ejection, 5, 1);
        assert_eq!(one.ejected_until(), first, "it is out already");
        one.bad(&ejection, first, 1);
        let second = one.ejected_until();
        assert!(second - first > first + first / 2, "longer than the first time");
        one.good();
        one.bad(&ejection, second, 1);
        assert_eq!(one.ejected_until(), second, "it has begun anew");
    }
}
