//! Chance as an argument: a stream of draws from one number.

/// A stream of draws from one number (splitmix64). The same number gives the same draws.
///
/// Source: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// A stream that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, every one as likely as the others (to 1 in 2^64); 0 where `bound`
    /// is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

/// Spreads a number over all numbers: the finaliser of splitmix64.
pub(crate) fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A number that stands for `parts`. The same on every machine and in every version, because
/// peers must agree on it; not for keys that an enemy chooses.
///
/// Source: Fowler, Noll, Vo, FNV-1a of 64 bits, finished by [`mix`].
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET;
    for part in parts {
        for byte in part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
        // So that ("ab", "c") is not ("a", "bc").
        hash = (hash ^ part.len() as u64).wrapping_mul(PRIME);
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_never_change() {
        // Peers of different versions send one session to one provider only while this holds.
        assert_eq!(digest([b"alice".as_slice()]), digest([b"alice".as_slice()]));
        assert_ne!(digest([b"ab".as_slice(), b"c"]), digest([b"a".as_slice(), b"bc"]));
        assert_eq!(digest([]), mix(0xcbf2_9ce4_8422_2325));
    }

    #[test]
    fn nothing_is_below_zero() {
        assert_eq!(Chance::new(1).below(0), 0);
        assert!((0..100).all(|seed| Chance::new(seed).below(3) < 3));
    }
}
