//! Tokens that come back with time: so many a second, so many at once. Pure; time is an argument.
//!
//! What a plugin may do at a rate takes them: lines and bytes of its log, refusals that are logged,
//! bytes through the egress proxy.

use std::time::{Duration, Instant};

/// Tokens, of which at most `most` can be saved up.
#[derive(Debug)]
pub(crate) struct Tokens {
    per_second: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Tokens {
    /// All of them are there.
    pub(crate) fn full(per_second: f64, most: f64, now: Instant) -> Self {
        Self { per_second, most, left: most, at: now }
    }

    /// How many come back in a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.per_second
    }

    /// How many are there at `now`.
    pub(crate) fn left(&mut self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now.max(self.at);
        self.left = (self.left + since * self.per_second).min(self.most);
        self.left
    }

    /// Takes one at `now`, if there is a whole one.
    pub(crate) fn take_one(&mut self, now: Instant) -> bool {
        let there = self.left(now) >= 1.0;
        if there {
            self.spend(1.0);
        }
        there
    }

    /// Takes `tokens`. Whoever has not seen them to be there owes them from then on.
    pub(crate) fn spend(&mut self, tokens: f64) {
        self.left -= tokens;
    }

    /// How long until none is owed; `None` where more were not taken than were there.
    pub(crate) fn owed(&mut self, now: Instant) -> Option<Duration> {
        let owed = -self.left(now);
        (owed > 0.0).then(|| Duration::from_secs_f64(owed / self.per_second))
    }

    /// Returns tokens that were taken and not used.
    pub(crate) fn give_back(&mut self, tokens: f64) {
        self.left = (self.left + tokens).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_paid_back_by_time() {
        let now = Instant::now();
        let mut tokens = Tokens::full(10.0, 5.0, now);
        tokens.spend(5.0);
        assert_eq!(tokens.owed(now), None);
        tokens.spend(20.0);
        assert_eq!(tokens.owed(now), Some(Duration::from_secs(2)));
        assert_eq!(tokens.owed(now + Duration::from_secs(1)), Some(Duration::from_secs(1)));
        assert_eq!(tokens.owed(now + Duration::from_secs(3)), None);
    }

    #[test]
    fn they_come_back_with_time_and_never_beyond_the_most() {
        let now = Instant::now();
        let mut tokens = Tokens::full(2.0, 3.0, now);
        assert_eq!((0..10).filter(|_| tokens.take_one(now)).count(), 3);
        assert!(!tokens.take_one(now + Duration::from_millis(400)));
        assert!(tokens.take_one(now + Duration::from_millis(500)));
        assert!((tokens.left(now + Duration::from_mins(1)) - 3.0).abs() < f64::EPSILON);
        // A clock that is behind takes nothing away.
        assert!((tokens.left(now) - 3.0).abs() < f64::EPSILON);
    }
}
