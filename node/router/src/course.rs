//! What becomes of a call after an attempt that failed: pure, and the only place where it is
//! decided.
//!
//! The rules, in their order: what was refused for good is over; what may have run is over unless
//! its method may run twice; nothing is tried past the caller's deadline, without its request
//! whole, or more often than allowed. What certainly did not start goes to another provider at
//! once and free of charge where that costs nobody work; everything else waits a little and takes
//! from the service's budget.

use std::time::Duration;

use protocol::failure::{Failure, Ran, Reason};

use crate::{budget::Budget, chance::Chance, condition::micros, policy::Retries};

/// One call's attempts so far.
#[derive(Debug, Clone, Default)]
pub struct Course {
    attempts: u32,
}

/// What is known when an attempt has failed.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Microseconds on the router's clock.
    pub now: u64,
    /// When the caller gives up, on the same clock.
    pub deadline: Option<u64>,
    /// Another provider, not tried yet, may answer.
    pub others: bool,
    /// The request can be sent again from its first byte.
    pub whole: bool,
    /// The method may run twice.
    pub idempotent: bool,
    /// Chance, for the wait.
    pub chance: u64,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another provider, at this time.
    Elsewhere {
        /// Microseconds on the router's clock; not after the deadline.
        at: u64,
    },
    /// The same providers again, at this time.
    Again {
        /// Microseconds on the router's clock; not after the deadline.
        at: u64,
    },
    /// The failure is the caller's.
    Over(Stop),
}

/// Why there is no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It would be refused everywhere.
    ForGood,
    /// It may have run, and its method may not run twice.
    MayHaveRun,
    /// The deadline has passed or would pass during the wait.
    NoTime,
    /// Too much of the request was sent to say it again.
    TooMuchSent,
    /// As many attempts as allowed.
    Attempts,
    /// The service's calls have cost enough attempts already.
    Budget,
    /// Nobody is left who could answer.
    NobodyElse,
}

impl Course {
    /// How many attempts were begun.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt begins.
    pub fn begin(&mut self) {
        self.attempts += 1;
    }

    /// Whether it matters if the method may run twice: only then is it worth finding out.
    pub fn depends_on_idempotency(failure: &Failure) -> bool {
        failure.ran == Ran::Unknown && is_mendable(failure.reason)
    }

    /// Decides what follows `failure`.
    pub fn next(
        &self,
        failure: &Failure,
        facts: &Facts,
        retries: &Retries,
        budget: &mut Budget,
    ) -> Next {
        match failure.ran {
            Ran::Failed => return Next::Over(Stop::ForGood),
            Ran::Unknown if !(facts.idempotent && is_mendable(failure.reason)) => {
                return Next::Over(Stop::MayHaveRun);
            }
            Ran::Unknown | Ran::NotStarted => {}
        }
        if facts.deadline.is_some_and(|deadline| facts.now >= deadline) {
            return Next::Over(Stop::NoTime);
        }
        if !facts.whole {
            return Next::Over(Stop::TooMuchSent);
        }
        if self.attempts >= retries.attempts_max {
            return Next::Over(Stop::Attempts);
        }
        if !facts.others && !is_worth_waiting(failure) {
            return Next::Over(Stop::NobodyElse);
        }
        let at = facts.now.saturating_add(self.wait(failure, facts, retries));
        if facts.deadline.is_some_and(|deadline| at >= deadline) {
            return Next::Over(Stop::NoTime);
        }
        if self.costs_work(failure, facts) && !budget.withdraw(retries, facts.now) {
            return Next::Over(Stop::Budget);
        }
        if facts.others { Next::Elsewhere { at } } else { Next::Again { at } }
    }

    /// Whether a second attempt may be begun while the first one runs. Takes from the budget.
    pub fn may_hedge(&self, facts: &Facts, retries: &Retries, budget: &mut Budget) -> bool {
        facts.idempotent
            && facts.whole
            && facts.others
            && self.attempts < retries.attempts_max
            && facts.deadline.is_none_or(|deadline| facts.now < deadline)
            && budget.withdraw(retries, facts.now)
    }

    /// An attempt at somebody else that never reached the first one loads nobody twice; nor does
    /// replacing a connection that turned out to be dead. What was refused for being too much, or
    /// may have run, does.
    fn costs_work(&self, failure: &Failure, facts: &Facts) -> bool {
        let free = facts.others || self.is_fresh_connection(failure);
        failure.ran == Ran::Unknown || failure.reason == Reason::Busy || !free
    }

    /// The first attempt met a connection that had ended unnoticed.
    fn is_fresh_connection(&self, failure: &Failure) -> bool {
        self.attempts == 1
            && failure.ran == Ran::NotStarted
            && matches!(failure.reason, Reason::PeerLost | Reason::PluginLost)
    }

    fn wait(&self, failure: &Failure, facts: &Facts, retries: &Retries) -> u64 {
        let elsewhere = failure.ran == Ran::NotStarted && facts.others;
        if elsewhere || self.is_fresh_connection(failure) {
            return 0;
        }
        let asked = failure.detail.as_ref().and_then(|detail| detail.retry_after);
        let pushed_back = if facts.others { Duration::ZERO } else { asked.unwrap_or_default() };
        backoff(retries, self.attempts, facts.chance).max(micros(pushed_back))
    }
}

/// The same provider may do better in a moment.
fn is_worth_waiting(failure: &Failure) -> bool {
    failure.reason != Reason::NotAvailable && is_mendable(failure.reason)
}

/// Another attempt may end otherwise.
fn is_mendable(reason: Reason) -> bool {
    use Reason::{Busy, Internal, NotAvailable, PeerLost, PluginLost, Unreachable};
    matches!(reason, Busy | Internal | NotAvailable | PeerLost | PluginLost | Unreachable)
}

/// The wait before the attempt after `attempts` of them, in microseconds: any time up to a bound
/// that doubles, so that callers who failed together do not return together.
///
/// Source: Brooker, *Exponential Backoff And Jitter* (AWS), "full jitter".
pub fn backoff(retries: &Retries, attempts: u32, chance: u64) -> u64 {
    const DOUBLINGS_MAX: u32 = 20;
    let doublings = attempts.saturating_sub(1).min(DOUBLINGS_MAX);
    let bound =
        micros(retries.backoff).saturating_mul(1 << doublings).min(micros(retries.backoff_max));
    Chance::new(chance).below(bound.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_failure() -> impl Strategy<Value = Failure> {
        let rans = prop_oneof![Just(Ran::NotStarted), Just(Ran::Unknown), Just(Ran::Failed)];
        (rans, proptest::sample::select(Reason::ALL.to_vec()), any::<Option<u16>>()).prop_map(
            |(ran, reason, pause)| {
                let failure = Failure::new(ran, reason, "");
                match pause {
                    Some(pause) => failure.retry_after(Duration::from_millis(pause.into())),
                    None => failure,
                }
            },
        )
    }

    prop_compose! {
        fn any_facts()(
            now in 0..10_000_000_u64,
            deadline in proptest::option::of(0..10_000_000_u64),
            others: bool,
            whole: bool,
            idempotent: bool,
            chance: u64,
        ) -> Facts {
            Facts { now, deadline, others, whole, idempotent, chance }
        }
    }

    proptest! {
        #[test]
        fn the_rules_hold_whatever_is_known(
            failure in any_failure(),
            facts in any_facts(),
            attempts in 1..5_u32,
        ) {
            let retries = Retries::default();
            let mut budget = Budget::new(&retries, 0);
            let course = Course { attempts };
            let next = course.next(&failure, &facts, &retries, &mut budget);
            if let Next::Elsewhere { at } | Next::Again { at } = next {
                prop_assert!(failure.ran != Ran::Failed, "refused for good");
                prop_assert!(failure.ran == Ran::NotStarted || facts.idempotent, "may have run");
                prop_assert!(facts.deadline.is_none_or(|deadline| at < deadline), "too late");
                prop_assert!(facts.whole && attempts < retries.attempts_max && at >= facts.now);
                prop_assert_eq!(facts.others, matches!(next, Next::Elsewhere { .. }));
            }
            let certain = failure.ran == Ran::NotStarted && facts.others && facts.whole;
            let in_time = facts.deadline.is_none_or(|deadline| facts.now < deadline);
            if certain && in_time && attempts < retries.attempts_max {
                prop_assert_eq!(next, Next::Elsewhere { at: facts.now }, "it did not start");
            }
        }

        #[test]
        fn waits_stay_within_their_bounds(attempts in 1..100_u32, chance: u64) {
            let retries = Retries::default();
            let wait = backoff(&retries, attempts, chance);
            prop_assert!(wait <= micros(retries.backoff_max));
            if attempts == 1 {
                prop_assert!(wait <= micros(retries.backoff));
            }
        }
    }

    #[test]
    fn an_empty_budget_stops_what_costs_work_and_nothing_else() {
        let retries = Retries { budget_percent: 0, budget_per_second: 0, ..Retries::default() };
        let mut budget = Budget::new(&retries, 0);
        let course = Course { attempts: 1 };
        let facts = Facts {
            now: 0,
            deadline: None,
            others: true,
            whole: true,
            idempotent: true,
            chance: 0,
        };
        let mut next = |failure: Failure| course.next(&failure, &facts, &retries, &mut budget);
        let unreachable = next(Failure::not_started(Reason::Unreachable, ""));
        assert_eq!(unreachable, Next::Elsewhere { at: 0 });
        let busy = next(Failure::not_started(Reason::Busy, ""));
        assert_eq!(busy, Next::Over(Stop::Budget));
        let lost = next(Failure::unknown(Reason::PeerLost, ""));
        assert_eq!(lost, Next::Over(Stop::Budget));
    }
}
