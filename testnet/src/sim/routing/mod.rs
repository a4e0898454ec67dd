//! Calls in virtual time: callers that route with the router's own deciders, and providers that
//! crash, drag, refuse and break, all from one seed.
//!
//! Owns the world and what must hold in it after every step; `tests/sim` asserts that it did. What
//! is real here is everything that decides: [`router::select`], [`router::Course`],
//! [`router::Budget`], [`router::Condition`], [`router::Limiter`], [`router::Times`]. What is
//! modelled is what the router performs with them: sending, waiting, being answered.
//!
//! After every step: nothing that may have run is run again unless it may; no attempt begins past
//! its call's deadline; the budget bounds what providers are given beyond the first attempts;
//! ejection leaves somebody; every call ends in time. At the end, when all has been well for a
//! while: no caller shuts a provider out, and where calls are spread every one is used again.

mod caller;
mod provider;
mod world;

use super::Violation;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything follows from it, the service's policy included.
    pub seed: u64,
    /// Peers that call.
    pub callers: usize,
    /// Peers that answer.
    pub providers: usize,
    /// How many calls each caller makes in a second.
    pub calls_per_second: u64,
    /// How long providers have trouble, in milliseconds.
    pub turmoil_millis: u64,
    /// How long all is well after that. Longer than the longest ejection.
    pub quiet_millis: u64,
    /// A fault to be noticed: callers take every method for idempotent.
    pub callers_believe_anything: bool,
}

impl Plan {
    /// Three callers, six providers, and a minute of turmoil.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            callers: 3,
            providers: 6,
            calls_per_second: 150,
            turmoil_millis: 60_000,
            quiet_millis: 40_000,
            callers_believe_anything: false,
        }
    }
}

/// What happened in a run in which everything held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Calls made.
    pub calls: u64,
    /// Calls answered.
    pub answered: u64,
    /// Calls that failed, and certainly did not run.
    pub not_started: u64,
    /// Calls that failed, and may have run.
    pub unknown: u64,
    /// Attempts beyond the first ones.
    pub retries: u64,
    /// Attempts begun beside a first one.
    pub hedges: u64,
    /// Calls that no provider was tried for, because all circuits were open.
    pub circuit_open: u64,
    /// Choices in which somebody was ejected.
    pub ejections: u64,
    /// Calls that providers refused because they had too much to do.
    pub shed: u64,
    /// Providers that crashed.
    pub crashes: u64,
    /// Times that a declared-idempotent call ran more than once.
    pub repeated: u64,
    /// A number over all that happened: the same seed gives the same number.
    pub fingerprint: u64,
}

/// Runs `plan` to its end, or to the first thing that does not hold.
pub fn run(plan: Plan) -> Result<Report, Violation> {
    world::World::new(plan).run()
}
