//! Who lied, and how often.
//!
//! Only what no honest peer passes on is counted, and always against the neighbour it came from:
//! that neighbour had to check it first. Memory is fixed; whoever fills the list with new names
//! pushes out its own.

use std::collections::BTreeMap;

use protocol::id::PeerId;

/// Lies within [`STRIKES_MILLIS`] after which a peer is penalised.
pub(crate) const STRIKES_MAX: u32 = 8;

/// How long lies are remembered, and a penalty lasts, in milliseconds.
pub(crate) const STRIKES_MILLIS: u64 = 60_000;

/// Liars remembered at once. A connection is needed to lie, and those are bounded far lower.
const LIARS_MAX: usize = 1_024;

struct Record {
    since: u64,
    strikes: u32,
}

/// The list.
#[derive(Default)]
pub(crate) struct Strikes {
    liars: BTreeMap<PeerId, Record>,
}

impl Strikes {
    /// Counts one lie. True where the penalty begins with it.
    pub(crate) fn strike(&mut self, peer: PeerId, now: u64) -> bool {
        if !self.liars.contains_key(&peer) && self.liars.len() >= LIARS_MAX {
            let oldest = self.liars.iter().min_by_key(|(_, record)| record.since);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.liars.remove(&oldest);
            }
        }
        let record = self.liars.entry(peer).or_insert(Record { since: now, strikes: 0 });
        if now >= record.since.saturating_add(STRIKES_MILLIS) {
            *record = Record { since: now, strikes: 0 };
        }
        record.strikes = record.strikes.saturating_add(1);
        if record.strikes == STRIKES_MAX {
            // The penalty is counted from the lie that brought it.
            record.since = now;
        }
        record.strikes == STRIKES_MAX
    }

    /// Whether nothing of `peer` is to be listened to.
    pub(crate) fn is_penalised(&self, peer: PeerId, now: u64) -> bool {
        self.liars.get(&peer).is_some_and(|record| {
            record.strikes >= STRIKES_MAX && now < record.since.saturating_add(STRIKES_MILLIS)
        })
    }

    /// How many are on the list.
    pub(crate) fn len(&self) -> usize {
        self.liars.len()
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::NodeKey;

    use super::*;

    fn peer(n: u32) -> PeerId {
        let mut seed = [1; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        NodeKey::from_seed(seed).peer_id()
    }

    #[test]
    fn the_last_of_several_lies_brings_a_penalty_that_ends() {
        let mut strikes = Strikes::default();
        for nth in 1..=STRIKES_MAX {
            assert!(!strikes.is_penalised(peer(1), 100));
            assert_eq!(strikes.strike(peer(1), 100), nth == STRIKES_MAX);
        }
        assert!(strikes.is_penalised(peer(1), 100 + STRIKES_MILLIS - 1));
        assert!(!strikes.is_penalised(peer(1), 100 + STRIKES_MILLIS));
        assert!(!strikes.is_penalised(peer(2), 100));
    }

    #[test]
    fn rare_lies_are_forgotten() {
        let mut strikes = Strikes::default();
        for nth in 0..100 {
            assert!(!strikes.strike(peer(1), nth * STRIKES_MILLIS), "lie {nth}");
        }
    }

    #[test]
    fn memory_is_fixed() {
        let mut strikes = Strikes::default();
        for n in 0..LIARS_MAX as u32 + 50 {
            strikes.strike(peer(n), u64::from(n));
        }
        assert_eq!(strikes.len(), LIARS_MAX);
    }
}
