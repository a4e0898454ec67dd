//! How many attempts beyond the first a service's calls may cost: a bucket of tokens, pure.
//!
//! Each call puts a share of a token in, each second some whole ones, and each attempt that costs
//! somebody work again takes one out. So a service in trouble gets a bounded share of calls more,
//! not three times as many.
//!
//! Source: Finagle's `RetryBudget`; Google, *Site Reliability Engineering*, chapter 21.

use crate::policy::Retries;

/// Tokens that can be saved up: calls in flight when a busy provider dies are repeated at once.
pub const TOKENS_MAX: u64 = 1_000;

/// How many seconds' tokens a budget begins with.
const START_SECONDS: u64 = 10;

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;

/// One service's budget.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Thousandths of tokens.
    milli: u64,
    /// Until when the tokens of time were put in, in microseconds.
    counted: u64,
}

impl Budget {
    /// A budget that begins at `now`, in microseconds.
    pub fn new(retries: &Retries, now: u64) -> Self {
        let start = u64::from(retries.budget_per_second) * START_SECONDS;
        Self { milli: start.min(TOKENS_MAX) * MILLI, counted: now }
    }

    /// A call began.
    pub fn deposit(&mut self, retries: &Retries) {
        let share = u64::from(retries.budget_percent) * (MILLI / 100);
        self.milli = (self.milli + share).min(TOKENS_MAX * MILLI);
    }

    /// Takes a token for one more attempt at `now`, if there is one.
    pub fn withdraw(&mut self, retries: &Retries, now: u64) -> bool {
        let rate = u64::from(retries.budget_per_second) * MILLI;
        let passed = now.saturating_sub(self.counted);
        let earned = (u128::from(passed) * u128::from(rate) / u128::from(SECOND)) as u64;
        if earned > 0 {
            // What is left over counts the next time.
            self.counted += earned * SECOND / rate;
            self.milli = self.milli.saturating_add(earned).min(TOKENS_MAX * MILLI);
        }
        let enough = self.milli >= MILLI;
        if enough {
            self.milli -= MILLI;
        }
        enough
    }

    /// The most attempts that `calls` calls may have cost beyond their first ones, `passed`
    /// microseconds after the budget began.
    pub fn bound(retries: &Retries, calls: u64, passed: u64) -> u64 {
        let per_second = u64::from(retries.budget_per_second);
        let shares = calls * u64::from(retries.budget_percent) / 100;
        per_second * START_SECONDS + per_second * passed / SECOND + shares + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_order_of_calls_gets_more_than_the_bound(
            steps in vec((any::<bool>(), 0..200_000_u64), 1..2_000),
            budget_percent in 0..100_u32,
            budget_per_second in 0..50_u32,
        ) {
            let retries = Retries { budget_percent, budget_per_second, ..Retries::default() };
            let (mut now, mut calls, mut taken) = (0, 0, 0);
            let mut budget = Budget::new(&retries, now);
            for (call, passed) in steps {
                now += passed;
                if call {
                    calls += 1;
                    budget.deposit(&retries);
                } else {
                    taken += u64::from(budget.withdraw(&retries, now));
                }
                prop_assert!(taken <= Budget::bound(&retries, calls, now));
            }
        }
    }

    #[test]
    fn time_alone_earns_tokens_however_often_it_is_looked_at() {
        let retries = Retries { budget_percent: 0, budget_per_second: 10, ..Retries::default() };
        let mut budget = Budget::new(&retries, 0);
        while budget.withdraw(&retries, 0) {}
        // Asked each microsecond: nothing is lost to rounding.
        let taken = (0..=SECOND).filter(|now| budget.withdraw(&retries, *now)).count();
        assert!((9..=10).contains(&taken), "{taken}");
    }
}
