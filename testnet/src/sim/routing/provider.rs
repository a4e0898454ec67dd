//! A provider: up or down, quick or slow, whole or broken, and with as much to do as it accepts.

use protocol::{failure::Failure, wishes::Priority};
use router::{Candidate, Limit, Limiter, Policy, Traits};

/// How a provider is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// It answers in a few milliseconds.
    Well,
    /// It takes twenty times as long.
    Slow,
    /// It answers `INTERNAL`.
    Faulty,
    /// It answers `UNAVAILABLE`.
    Unavailable,
    /// Nobody is there.
    Down,
}

/// One provider.
pub(super) struct Provider {
    pub(super) candidate: Candidate,
    pub(super) traits: Traits,
    pub(super) mood: Mood,
    /// Counts its crashes: what ran before the last one is lost.
    pub(super) life: u32,
    pub(super) in_flight: u32,
    pub(super) limiter: Limiter,
    limit: Limit,
}

impl Provider {
    pub(super) fn new(candidate: Candidate, policy: &Policy, limit: Limit) -> Self {
        Self {
            traits: Traits::of(&candidate, policy),
            candidate,
            mood: Mood::Well,
            life: 0,
            in_flight: 0,
            limiter: Limiter::default(),
            limit,
        }
    }

    /// Takes a call, or says why not.
    pub(super) fn take(&mut self, priority: Priority) -> Result<(), Failure> {
        use protocol::failure::Reason::{Busy, Unreachable};
        if self.mood == Mood::Down {
            return Err(Failure::not_started(Unreachable, "nobody is there"));
        }
        if !self.limiter.admits(self.limit, priority, self.in_flight) {
            let busy = Failure::not_started(Busy, "it has enough to do");
            return Err(busy.retry_after(Limiter::pause(None)));
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Has done with a call that took `took` microseconds.
    pub(super) fn done(&mut self, took: u64) {
        self.limiter.observe(self.limit, took, self.in_flight);
        self.in_flight -= 1;
    }

    /// Ends, with everything it was doing.
    pub(super) fn crash(&mut self) {
        self.life += 1;
        self.in_flight = 0;
        self.mood = Mood::Down;
    }

    /// The status it answers with now.
    pub(super) fn code(&self) -> u32 {
        match self.mood {
            Mood::Faulty => 13,
            Mood::Unavailable => 14,
            Mood::Well | Mood::Slow | Mood::Down => 0,
        }
    }
}
