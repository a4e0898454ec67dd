//! When to do again what grows with everything there is: at once while it is cheap, at a bounded
//! share of the time when it is not.
//!
//! [`Pace`] decides only, time is an argument; [`until`] waits for what it decided. A thousand
//! plugins that become ready one after another would otherwise have the whole table of routes built
//! a thousand times, for nobody.

use std::time::{Duration, Instant};

/// One part work to this many parts rest: a tenth of one processor.
const REST_PER_WORK: u32 = 9;

/// No rest is longer, whatever share that is: somebody waits for the outcome.
const REST_MAX: Duration = Duration::from_millis(250);

/// The pace of one thing that is done again and again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    rested: Option<Instant>,
    due: Option<Instant>,
}

impl Pace {
    /// There is reason to do it again.
    pub fn ask(&mut self, now: Instant) {
        let rested = self.rested.unwrap_or(now).max(now);
        self.due.get_or_insert(rested);
    }

    /// When it is to be done; `None` while there is no reason.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It was done, from `begun` to `ended`; reasons that came before are satisfied.
    pub fn done(&mut self, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
        self.rested = Some(ended + (took * REST_PER_WORK).min(REST_MAX));
        self.due = None;
    }
}

/// Waits for `due`, without end where there is nothing to wait for.
pub async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_reason_is_followed_at_once_and_no_reason_never() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.ask(now);
        pace.ask(now + MILLI);
        assert_eq!(pace.due(), Some(now), "a further reason does not put it off");
        pace.done(now, now + MILLI);
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn reasons_soon_after_wait_in_proportion_and_later_ones_do_not() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.done(now, now + MILLI);
        pace.ask(now + 2 * MILLI);
        assert_eq!(pace.due(), Some(now + 10 * MILLI));
        pace.done(now, now + MILLI);
        pace.ask(now + 20 * MILLI);
        assert_eq!(pace.due(), Some(now + 20 * MILLI));
    }

    #[test]
    fn nobody_waits_without_bound() {
        let now = Instant::now();
        let mut pace = Pace::default();
        let ended = now + Duration::from_mins(1);
        pace.done(now, ended);
        pace.ask(ended);
        assert_eq!(pace.due(), Some(ended + REST_MAX));
    }
}
