//! What this node observes of one provider while calling it, shared by all calls to it.
//!
//! The judging is done by [`Condition`] and [`Limiter`], which are pure; this puts them behind one
//! short lock, beside a count that is read without it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Reason},
    wishes::Priority,
};

use crate::{
    condition::{Condition, Ending, View},
    limit::Limiter,
    policy::Policy,
};

/// One provider's gauge.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    in_flight: AtomicU32,
    observed: Mutex<Observed>,
}

#[derive(Debug, Default)]
struct Observed {
    condition: Condition,
    limiter: Limiter,
}

impl Gauge {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub(crate) fn view(&self, now: u64) -> View {
        self.observed.lock().condition.view(now)
    }

    /// Counts a call until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, policy: &Arc<Policy>, now: u64) -> InFlight {
        let at_once = self.in_flight.fetch_add(1, Relaxed);
        self.observed.lock().condition.begin(now);
        let (gauge, policy) = (Arc::clone(self), Arc::clone(policy));
        InFlight { gauge, policy, at_once, ended: false }
    }
}

/// One call in flight at a provider; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct InFlight {
    gauge: Arc<Gauge>,
    policy: Arc<Policy>,
    /// Others that were in flight when it began.
    at_once: u32,
    ended: bool,
}

impl InFlight {
    /// Refuses the call where there are as many as the policy allows.
    pub(crate) fn admit(&self, priority: Priority, now: u64) -> Result<(), Failure> {
        let observed = self.gauge.observed.lock();
        if observed.limiter.admits(self.policy.limit, priority, self.at_once) {
            return Ok(());
        }
        let calls_max = observed.limiter.calls_max(self.policy.limit, priority);
        let pause = Limiter::pause(observed.condition.view(now).latency);
        let message = format!(
            "the plugin has {} calls at once already, and takes {calls_max} of {priority} \
             priority; try again in {} ms",
            self.at_once,
            pause.as_millis()
        );
        Err(Failure::not_started(Reason::Busy, message).retry_after(pause))
    }

    /// It began to answer, `took` microseconds after it was asked.
    pub(crate) fn answered(&self, now: u64, took: u64) {
        let mut observed = self.gauge.observed.lock();
        observed.condition.answered(now, took);
        observed.limiter.observe(self.policy.limit, took, self.at_once);
    }

    /// The call ended; what is told after the first time does not count.
    pub(crate) fn ended(&mut self, ending: Ending, now: u64) {
        if !self.ended {
            self.ended = true;
            let mut observed = self.gauge.observed.lock();
            observed.condition.ended(ending, &self.policy, now, rand::random());
        }
    }

    /// The call failed.
    pub(crate) fn failed(&mut self, failure: &Failure, now: u64, doubt: std::time::Duration) {
        if failure.reason.is_loss() {
            self.gauge.observed.lock().condition.doubt(now, doubt);
        }
        self.ended(Ending::of_reason(failure.reason), now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.in_flight.fetch_sub(1, Relaxed);
        self.ended(Ending::Neutral, 0);
    }
}
