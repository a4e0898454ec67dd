//! Whether and when a plugin is started again. Pure: now and chance are arguments.
//!
//! OTP's rule: more than `max_restarts` within `window` means that starting again does not help.
//! The manifest was refused unless its delays and start timeouts fit into the window, so a plugin
//! that can never start always trips this rule instead of looping for ever.

use std::{collections::VecDeque, time::Duration};

use protocol::manifest::{Restart, RestartWhen};

/// A run this long counts as a success: the next delay is the first one again.
pub const STABLE: Duration = Duration::from_mins(10);

/// Delays are shortened by up to this part of themselves, so that plugins that fell together do
/// not rise together. Never lengthened: the manifest's arithmetic holds.
const JITTER: f64 = 0.2;

/// What to do about a run that ended without being asked to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Start it again after this long.
    Again(Duration),
    /// Its policy wants it to stay ended.
    Leave,
    /// It ended too often; it is in a crash loop.
    GiveUp {
        /// Restarts within the window.
        restarts: usize,
        /// The window.
        window: Duration,
    },
}

/// The restarts of one plugin.
#[derive(Debug, Clone)]
pub struct Restarts {
    policy: Restart,
    /// When it was started again, within the window; milliseconds, oldest first. Never longer than
    /// `max_restarts`.
    history: VecDeque<u64>,
    /// Restarts since it was last stable: the exponent of the delay.
    streak: u32,
}

impl Restarts {
    /// None so far.
    pub fn new(policy: Restart) -> Self {
        Self { policy, history: VecDeque::new(), streak: 0 }
    }

    /// Whether an end of this kind is left as it is, by the policy alone.
    pub fn leaves(&self, clean: bool) -> bool {
        match self.policy.when {
            RestartWhen::Never => true,
            RestartWhen::OnFailure => clean,
            RestartWhen::Always => false,
        }
    }

    /// Judges a run that ended at `now` (milliseconds of any monotonic clock) after `uptime`
    /// (`None` where it never became ready). `clean` is an exit with status 0. `chance` is
    /// uniform in `0..1`.
    pub fn after_end(
        &mut self,
        clean: bool,
        uptime: Option<Duration>,
        now: u64,
        chance: f64,
    ) -> Verdict {
        if self.leaves(clean) {
            return Verdict::Leave;
        }
        if uptime.is_some_and(|uptime| uptime >= STABLE) {
            self.streak = 0;
        }
        let window = self.policy.window.as_millis() as u64;
        while self.history.front().is_some_and(|then| now.saturating_sub(*then) > window) {
            self.history.pop_front();
        }
        if self.history.len() >= self.policy.max_restarts as usize {
            let restarts = self.history.len();
            return Verdict::GiveUp { restarts, window: self.policy.window };
        }
        let longest = self.policy.delay(self.streak);
        self.history.push_back(now);
        self.streak += 1;
        Verdict::Again(longest.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn papers() -> Restarts {
        Restarts::new(Restart::default())
    }

    #[test]
    fn the_sixth_failure_in_five_minutes_is_a_crash_loop() {
        let mut restarts = papers();
        let mut now = 0;
        for expected in [1, 2, 4, 8, 16] {
            let verdict = restarts.after_end(false, None, now, 0.0);
            assert_eq!(verdict, Verdict::Again(Duration::from_secs(expected)));
            now += expected * 1_000 + 30_000;
        }
        let verdict = restarts.after_end(false, None, now, 0.0);
        assert_eq!(verdict, Verdict::GiveUp { restarts: 5, window: Duration::from_mins(5) });
    }

    #[test]
    fn failures_far_apart_never_add_up_and_begin_with_the_first_delay() {
        let mut restarts = papers();
        for run in 0..100 {
            let now = run * 700_000;
            let verdict = restarts.after_end(false, Some(STABLE), now, 0.0);
            assert_eq!(verdict, Verdict::Again(Duration::from_secs(1)));
        }
    }

    #[test]
    fn policy_decides_whether_a_clean_end_is_an_end() {
        let with = |when| Restarts::new(Restart { when, ..Restart::default() });
        let uptime = Some(Duration::from_secs(1));
        assert_eq!(with(RestartWhen::OnFailure).after_end(true, uptime, 0, 0.0), Verdict::Leave);
        assert_eq!(with(RestartWhen::Never).after_end(false, uptime, 0, 0.0), Verdict::Leave);
        let again = Verdict::Again(Duration::from_secs(1));
        assert_eq!(with(RestartWhen::OnFailure).after_end(false, uptime, 0, 0.0), again);
        assert_eq!(with(RestartWhen::Always).after_end(true, uptime, 0, 0.0), again);
    }

    proptest! {
        #[test]
        fn never_more_than_max_restarts_in_any_window(
            gaps in proptest::collection::vec(0_u64..200_000, 1..200),
            chances in proptest::collection::vec(0.0_f64..1.0, 200),
        ) {
            let policy = Restart::default();
            let mut restarts = Restarts::new(policy.clone());
            let mut now = 0;
            let mut again = Vec::new();
            for (gap, chance) in gaps.iter().zip(chances) {
                now += gap;
                match restarts.after_end(false, None, now, chance) {
                    Verdict::Again(delay) => {
                        prop_assert!(delay <= Duration::from_mins(1));
                        again.push(now);
                    }
                    Verdict::GiveUp { .. } | Verdict::Leave => {}
                }
            }
            let window = policy.window.as_millis() as u64;
            for (at, first) in again.iter().enumerate() {
                let within = again[at..].iter().filter(|then| **then - first <= window).count();
                prop_assert!(within <= policy.max_restarts as usize);
            }
        }
    }
}
