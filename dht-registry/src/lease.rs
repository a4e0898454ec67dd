//! When to say it again: renewing adverts, providing again, repeating a withdrawal.
//!
//! Nothing here knows the time; everything is milliseconds from now. Chance comes in as a seed.

use protocol::limits::{ADVERT_REFRESH_MILLIS, PROVIDER_TTL_SECONDS};

/// The longest pause between two announcements of the same key in the DHT: a third of what the
/// DHT keeps it for, so that two may be lost.
pub const PROVIDE_AGAIN_MILLIS_MAX: u64 = PROVIDER_TTL_SECONDS * 1_000 / 3;

/// The first pause. A routing table is nearly empty at the start, and a record put then lands at
/// the wrong nodes; so the first announcements follow each other quickly.
pub const PROVIDE_AGAIN_MILLIS_MIN: u64 = 1_000;

/// How often a withdrawal is repeated: one lost message must not keep a dead provider listed for
/// the rest of its lease.
pub const WITHDRAWAL_REPEATS: u32 = 4;

/// The pause before an advert is issued anew: between three quarters and the whole of
/// [`ADVERT_REFRESH_MILLIS`], so that many nodes started together drift apart.
pub fn refresh_after(chance: u64) -> u64 {
    let quarter = ADVERT_REFRESH_MILLIS / 4;
    ADVERT_REFRESH_MILLIS - chance % (quarter + 1)
}

/// The pause before a key is provided for the `nth` time again: four times the one before, up to
/// [`PROVIDE_AGAIN_MILLIS_MAX`], less up to an eighth by chance.
pub fn provide_again_after(nth: u32, chance: u64) -> u64 {
    let pause = PROVIDE_AGAIN_MILLIS_MIN.saturating_mul(4_u64.saturating_pow(nth));
    let pause = pause.min(PROVIDE_AGAIN_MILLIS_MAX);
    pause - chance % (pause / 8 + 1)
}

/// The pause before a withdrawal is said for the `nth` time again, or `None` after the last.
pub fn withdraw_again_after(nth: u32) -> Option<u64> {
    (nth < WITHDRAWAL_REPEATS).then(|| 1_000 * 3_u64.pow(nth))
}

/// A stream of numbers without pattern but wholly determined by its seed (splitmix64).
///
/// Source: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The stream that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advert_is_renewed_within_its_window_and_not_at_once() {
        let mut chance = Chance::new(1);
        let pauses: Vec<u64> = (0..1_000).map(|_| refresh_after(chance.draw())).collect();
        assert!(pauses.iter().all(|p| (7_500..=ADVERT_REFRESH_MILLIS).contains(p)));
        assert!(pauses.iter().max() > pauses.iter().min(), "jitter spreads them");
    }

    #[test]
    fn a_key_is_provided_quickly_at_first_and_at_a_third_of_its_life_later() {
        let pauses: Vec<u64> = (0..8).map(|nth| provide_again_after(nth, 0)).collect();
        assert_eq!(pauses, [1_000, 4_000, 16_000, 64_000, 256_000, 600_000, 600_000, 600_000]);
        assert!((525_000..=600_000).contains(&provide_again_after(9, u64::MAX)));
        assert_eq!(provide_again_after(u32::MAX, 0), PROVIDE_AGAIN_MILLIS_MAX);
    }

    #[test]
    fn a_withdrawal_is_repeated_a_few_times() {
        let pauses: Vec<_> = (0..=WITHDRAWAL_REPEATS).map(withdraw_again_after).collect();
        assert_eq!(pauses, [Some(1_000), Some(3_000), Some(9_000), Some(27_000), None]);
    }
}
