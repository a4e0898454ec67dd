//! How long one provider takes to answer: a moving average that believes bad news at once.
//!
//! A slow answer counts in full from the moment it is seen; faster ones bring the average down
//! with time. Without any answer it fades, so that a provider which was slow once is tried again.
//!
//! Source: Finagle's *peak EWMA* load metric.

/// In how many microseconds a past observation loses all but a third (1/e) of its weight. Long
/// enough to remember a pause of a garbage collector, short enough that one that recovered is
/// found soon.
const FADE_MICROS: f64 = 10_000_000.0;

/// The longest time that counts, in microseconds: an hour.
const TOOK_MICROS_MAX: u64 = 3_600_000_000;

/// One provider's latency.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    /// The average in microseconds, and when it was last looked at.
    seen: Option<(f64, u64)>,
}

impl Latency {
    /// An answer came `took` microseconds after it was asked for.
    pub fn observe(&mut self, now: u64, took: u64) {
        let took = took.min(TOOK_MICROS_MAX) as f64;
        let average = match self.seen {
            Some((average, at)) if took < average => {
                let kept = weight(now, at);
                took + (average - took) * kept
            }
            _ => took,
        };
        self.seen = Some((average, now));
    }

    /// The average at `now` in microseconds; `None` before the first answer.
    pub fn at(&self, now: u64) -> Option<u64> {
        self.seen.map(|(average, at)| (average * weight(now, at)) as u64)
    }
}

fn weight(now: u64, at: u64) -> f64 {
    (-(now.saturating_sub(at) as f64) / FADE_MICROS).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_news_counts_at_once_and_fades() {
        let mut latency = Latency::default();
        assert_eq!(latency.at(0), None);
        latency.observe(0, 1_000);
        latency.observe(1_000, 80_000);
        assert_eq!(latency.at(1_000), Some(80_000));
        for step in 1..=100 {
            latency.observe(1_000 + step * 300_000, 1_000);
        }
        let now = latency.at(30_001_000).expect("known");
        assert!((1_000..6_000).contains(&now), "{now}");
    }

    #[test]
    fn who_is_not_asked_is_forgiven() {
        let mut latency = Latency::default();
        latency.observe(0, 2_000_000);
        assert!(latency.at(60_000_000).expect("known") < 10_000);
    }
}
