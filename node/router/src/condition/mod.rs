//! What this node has observed of one provider while calling it, and what follows: pure.
//!
//! Three judges look at every call. The *breaker* counts what says that nobody can be served
//! there, and closes the door for a while. The *outlier* judge also counts faulty and late
//! answers, which one bad request may be to blame for, and only sends a provider to the end of the
//! queue. *Latency* remembers how long answers take, bad news at once and good news slowly.
//!
//! All times are microseconds on the router's clock.

mod breaker;
mod latency;
mod outlier;

pub use breaker::{Breaker, Circuit};
pub use latency::Latency;
pub use outlier::Outlier;

use std::time::Duration;

use protocol::failure::Reason;

use crate::policy::Policy;

/// gRPC's codes that say the fault is the provider's: `INTERNAL`, `DATA_LOSS`.
const FAULTS: [u32; 2] = [13, 15];

/// gRPC's `UNAVAILABLE`: the provider itself says that it cannot serve anybody.
const UNAVAILABLE: u32 = 14;

/// How a call at a provider ended, as far as it tells about the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It answered, whatever it said, and the fault was not its own.
    Good,
    /// It answered that something in it broke.
    Faulty,
    /// It could not be reached, was lost, or said that it serves nobody.
    Down,
    /// It had not answered when the caller's deadline passed.
    Late,
    /// Nothing follows: the caller went away, or it had too much to do.
    Neutral,
}

impl Ending {
    /// What a status code says.
    pub fn of_code(code: u32) -> Self {
        match code {
            UNAVAILABLE => Self::Down,
            code if FAULTS.contains(&code) => Self::Faulty,
            _ => Self::Good,
        }
    }

    /// What a failure says.
    pub fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::Unreachable | Reason::PeerLost | Reason::PluginLost | Reason::CircuitOpen => {
                Self::Down
            }
            Reason::DeadlineExceeded => Self::Late,
            Reason::Internal => Self::Faulty,
            Reason::NotAvailable
            | Reason::Busy
            | Reason::Refused
            | Reason::Cancelled
            | Reason::TooLarge
            | Reason::Malformed => Self::Neutral,
        }
    }
}

/// What is known of one provider.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    breaker: Breaker,
    outlier: Outlier,
    latency: Latency,
    /// Until when it is used after all others, because a call to it was lost.
    doubted_until: u64,
}

/// What a choice needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// Whether it may be called.
    pub circuit: Circuit,
    /// Until when it is to be used last; 0 or past for not.
    pub ejected_until: u64,
    /// A call to it was lost moments ago.
    pub doubted: bool,
    /// How long its answers take, in microseconds; `None` before the first one.
    pub latency: Option<u64>,
}

impl Condition {
    /// As it is at `now`.
    pub fn view(&self, now: u64) -> View {
        View {
            circuit: self.breaker.circuit(now),
            ejected_until: self.outlier.ejected_until(),
            doubted: self.doubted_until > now,
            latency: self.latency.at(now),
        }
    }

    /// A call is sent to it. Where its circuit waits for a trial, this call is the one.
    pub fn begin(&mut self, now: u64) {
        self.breaker.begin(now);
    }

    /// It began to answer, `took` microseconds after it was asked.
    pub fn answered(&mut self, now: u64, took: u64) {
        self.latency.observe(now, took);
        self.breaker.answered();
        self.doubted_until = 0;
    }

    /// A call at it ended. `chance` spreads the times at which peers look again.
    pub fn ended(&mut self, ending: Ending, policy: &Policy, now: u64, chance: u64) {
        match ending {
            Ending::Good => {
                self.breaker.good();
                self.outlier.good();
            }
            Ending::Neutral => self.breaker.neutral(),
            Ending::Faulty | Ending::Late => {
                self.breaker.neutral();
                if let Some(ejection) = &policy.ejection {
                    self.outlier.bad(ejection, now, chance);
                }
            }
            Ending::Down => {
                if let Some(breaking) = &policy.breaker {
                    self.breaker.down(breaking, now, chance);
                }
                if let Some(ejection) = &policy.ejection {
                    self.outlier.bad(ejection, now, chance);
                }
            }
        }
    }

    /// A call to it was lost: it is used last for `time`.
    pub fn doubt(&mut self, now: u64, time: Duration) {
        self.doubted_until = self.doubted_until.max(now + micros(time));
    }
}

/// A duration in microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

/// `time`, up to a tenth shorter or longer, so that peers which saw the same do not come back in
/// the same moment.
fn spread(time: u64, chance: u64) -> u64 {
    let tenth = time / 10;
    time - tenth + crate::chance::Chance::new(chance).below(2 * tenth + 1)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn only_what_says_that_nobody_is_served_opens_the_circuit() {
        let policy = Policy::default();
        let mut one = Condition::default();
        for now in 0..100 {
            one.ended(Ending::Faulty, &policy, now, 0);
        }
        assert_eq!(one.view(100).circuit, Circuit::Closed);
        assert!(one.view(100).ejected_until > 100);
        for now in 100..105 {
            one.ended(Ending::Down, &policy, now, 0);
        }
        assert!(matches!(one.view(105).circuit, Circuit::Open { .. }));
    }

    fn any_ending() -> impl Strategy<Value = Ending> {
        use Ending::{Down, Faulty, Good, Late, Neutral};
        prop_oneof![Just(Good), Just(Faulty), Just(Down), Just(Late), Just(Neutral)]
    }

    proptest! {
        /// Whatever happened: who is left alone for long enough may be called again.
        #[test]
        fn a_recovered_provider_gets_calls_again(
            history in vec((any_ending(), 0..5_000_000_u64, any::<u64>()), 0..200),
        ) {
            let policy = Policy::default();
            let mut one = Condition::default();
            let mut now = 0;
            for (ending, passed, chance) in history {
                now += passed;
                if one.view(now).circuit == Circuit::Trial || passed % 2 == 0 {
                    one.begin(now);
                }
                one.ended(ending, &policy, now, chance);
            }
            let breaking = policy.breaker.as_ref().expect("a breaker");
            let ejection = policy.ejection.as_ref().expect("ejection");
            let patience = micros(breaking.open_max.max(ejection.time_max)) * 11 / 10
                + Breaker::TRIAL_MICROS_MAX;
            let view = one.view(now + patience + 1);
            prop_assert!(!matches!(view.circuit, Circuit::Open { .. }), "{view:?}");
            prop_assert!(view.ejected_until <= now + patience, "{view:?}");
            prop_assert!(!view.doubted);
        }
    }
}
