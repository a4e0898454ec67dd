//! What this node keeps for one service: its policy, its budget, how long its answers take, whose
//! turn it is. Passes from one table to the next; lost, and harmlessly, when nobody offers the
//! service any more.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

use crate::{budget::Budget, hedge::Times, policy::Policy};

/// One service's book.
#[derive(Debug)]
pub(crate) struct Book {
    policy: Arc<Policy>,
    turn: AtomicU64,
    pub(crate) budget: Mutex<Budget>,
    /// Kept only where calls may be hedged: nobody else asks.
    times: Option<Mutex<Times>>,
}

impl Book {
    /// An empty one, begun at `now`.
    pub(crate) fn new(policy: Arc<Policy>, now: u64) -> Self {
        let budget = Mutex::new(Budget::new(&policy.retries, now));
        let times = policy.hedging.as_ref().map(|_| Mutex::default());
        Self { policy, turn: AtomicU64::new(0), budget, times }
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// A call begins: it earns a share of an attempt, and takes its turn.
    pub(crate) fn begin(&self) -> u64 {
        self.budget.lock().deposit(&self.policy.retries);
        self.turn.fetch_add(1, Relaxed)
    }

    /// A call was answered after so many microseconds.
    pub(crate) fn observe(&self, took: u64) {
        if let Some(times) = &self.times {
            times.lock().observe(took);
        }
    }

    /// After how many microseconds a second attempt is worth it; `None` for never, or not yet.
    pub(crate) fn hedge_after(&self) -> Option<u64> {
        let hedging = self.policy.hedging.as_ref()?;
        self.times.as_ref()?.lock().hedge_after(hedging)
    }
}
