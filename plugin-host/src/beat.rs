//! When something that is due again and again is due next. Pure: now and chance are arguments.
//!
//! A thousand plugins that are each probed every ten seconds would wake the node a hundred times
//! a second. So rounds fall on a common beat, ten to an interval, and all that is due at one beat
//! shares a wake-up; chance spreads the plugins evenly over the beats.

use std::time::Duration;

/// Beats in one interval.
const BEATS: u32 = 10;

/// The first beat after `now` that belongs to one who draws `chance`, uniform in `0..1`. All times
/// are since one common moment. At most one interval and one beat after `now`.
pub(crate) fn next(now: Duration, interval: Duration, chance: f64) -> Duration {
    let beat = (interval / BEATS).max(Duration::from_nanos(1));
    let own = ((chance.clamp(0.0, 1.0) * f64::from(BEATS)) as u32).min(BEATS - 1);
    let offset = beat * own;
    let round = (beat * BEATS).as_nanos();
    let passed = now.saturating_sub(offset).as_nanos() / round;
    // Beyond any uptime there is; then it is due at once rather than never.
    let rounds = u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1);
    if now < offset { offset } else { offset + (beat * BEATS).saturating_mul(rounds) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn a_thousand_share_ten_wake_ups_in_an_interval() {
        let now = Duration::from_millis(123_456);
        let beats: std::collections::BTreeSet<Duration> =
            (0..1_000).map(|n| next(now, TEN, f64::from(n) / 1_000.0)).collect();
        assert_eq!(beats.len(), BEATS as usize);
    }

    proptest! {
        #[test]
        fn it_is_always_later_and_never_by_more_than_the_interval(
            now in 0_u64..1_000_000_000, interval in 10_u64..600_000, chance in 0.0_f64..1.0,
        ) {
            let (now, interval) = (Duration::from_millis(now), Duration::from_millis(interval));
            let due = next(now, interval, chance);
            prop_assert!(due > now || now.is_zero());
            prop_assert!(due.saturating_sub(now) <= interval);
            // The next round is one whole interval later.
            let beat = interval / BEATS * BEATS;
            prop_assert_eq!(next(due, interval, chance), due + beat);
        }
    }
}
