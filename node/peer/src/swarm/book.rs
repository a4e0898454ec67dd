//! The peers this peer could dial: bounded, remembered across restarts, and tried again with
//! growing pauses. Pure: the time is an argument.
//!
//! Two kinds of entry. *Met* peers were connected once; they are written to the store and forgotten
//! only when they have been away for long. *Heard* peers were named by others; they are worth a few
//! tries, make room for met peers, and are never written.

use std::collections::{HashMap, HashSet};

use libp2p::PeerId;
use multiaddr::Multiaddr;

use super::address::ADDRESS_BYTES_MAX;

/// Peers remembered. With [`ADDRESSES_MAX`] addresses each this is about 1 MB.
pub(super) const PEERS_MAX: usize = 1_024;

/// Addresses remembered for one peer: TCP and QUIC on a few interfaces.
pub(super) const ADDRESSES_MAX: usize = 8;

/// Tries that a peer gets which was never met.
const HEARD_TRIES_MAX: u32 = 4;

/// How long a met peer may be away before it is forgotten, in milliseconds: a week.
const AWAY_MILLIS_MAX: u64 = 7 * 24 * 3_600 * 1_000;

/// The first pause after a failed dial, in milliseconds.
const PAUSE_MILLIS_MIN: u64 = 1_000;

/// The longest pause after a failed dial, in milliseconds: after a long loss of network a peer
/// finds back within about a minute.
const PAUSE_MILLIS_MAX: u64 = 60_000;

/// What is known of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Where it may be, most trusted first.
    pub(super) addresses: Vec<Multiaddr>,
    /// When it was last connected, in Unix milliseconds; `None` if it was only heard of.
    pub(super) met: Option<u64>,
    /// Dials in a row that failed.
    pub(super) failures: u32,
    /// When it may be dialled again, in Unix milliseconds.
    next: u64,
}

/// The peers this peer could dial.
#[derive(Debug)]
pub(super) struct Book {
    local: PeerId,
    known: HashMap<PeerId, Known>,
    /// Met peers whose entry differs from what was last written.
    unwritten: HashSet<PeerId>,
}

impl Book {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, known: HashMap::new(), unwritten: HashSet::new() }
    }

    /// Takes back what was written before a restart. The peer may be dialled at once.
    pub(super) fn restore(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, met: u64) {
        if peer != self.local && self.known.len() < PEERS_MAX {
            self.known.insert(peer, Known { addresses, met: Some(met), failures: 0, next: 0 });
        }
    }

    /// Learns where `peer` may be, from somebody else.
    ///
    /// Of two peers that hear of each other at the same moment the one with the smaller id dials
    /// at once and the other a little later, so that they do not meet twice.
    pub(super) fn hear(&mut self, peer: PeerId, addresses: &[Multiaddr], now: u64) {
        if peer == self.local || addresses.is_empty() || !self.make_room(&peer) {
            return;
        }
        let patience = if self.local < peer { 0 } else { 1_000 };
        let entry = self.known.entry(peer).or_insert_with(|| Known {
            addresses: Vec::new(),
            met: None,
            failures: 0,
            next: now + patience,
        });
        for address in addresses {
            push(&mut entry.addresses, address);
        }
    }

    /// Learns where `peer` is, from itself: its own word replaces what others said.
    pub(super) fn meet(&mut self, peer: PeerId, addresses: &[Multiaddr], now: u64) {
        if peer == self.local || !self.make_room(&peer) {
            return;
        }
        let entry = self.known.entry(peer).or_insert_with(|| Known {
            addresses: Vec::new(),
            met: None,
            failures: 0,
            next: now,
        });
        if !addresses.is_empty() {
            let mut kept = Vec::new();
            for address in addresses {
                push(&mut kept, address);
            }
            entry.addresses = kept;
        }
        entry.met = Some(now);
        entry.failures = 0;
        self.unwritten.insert(peer);
    }

    /// Notes that the last connection to `peer` ended: it may be dialled after `pause` ms.
    pub(super) fn lost(&mut self, peer: &PeerId, now: u64, pause: u64) {
        if let Some(known) = self.known.get_mut(peer) {
            known.next = now + pause;
            if known.met.is_some() {
                known.met = Some(now);
                self.unwritten.insert(*peer);
            }
        }
    }

    /// Notes that dialling `peer` failed. `chance` from 0 to 1 spreads the next try. Returns how
    /// many dials in a row failed.
    pub(super) fn failed(&mut self, peer: &PeerId, now: u64, chance: f64) -> u32 {
        let Some(known) = self.known.get_mut(peer) else { return 0 };
        known.failures = known.failures.saturating_add(1);
        let pause = PAUSE_MILLIS_MIN << known.failures.min(10).saturating_sub(1);
        let pause = pause.min(PAUSE_MILLIS_MAX) as f64;
        known.next = now + (pause * (0.75 + chance / 2.0)) as u64;
        known.failures
    }

    /// Forgets `peer`.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        if self.known.remove(peer).is_some_and(|known| known.met.is_some()) {
            self.unwritten.insert(*peer);
        }
    }

    /// Forgets those that were tried often enough, and returns them.
    pub(super) fn expire(&mut self, now: u64, connected: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|(peer, known)| !connected(peer) && known.is_gone(now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in &gone {
            self.forget(peer);
        }
        gone
    }

    /// At most `peers_max` peers that may be dialled now, longest waiting first.
    pub(super) fn due(
        &self,
        now: u64,
        peers_max: usize,
        busy: impl Fn(&PeerId) -> bool,
    ) -> Vec<PeerId> {
        let mut due: Vec<_> = self
            .known
            .iter()
            .filter(|(peer, known)| known.next <= now && !busy(peer))
            .map(|(peer, known)| (known.next, *peer))
            .collect();
        due.sort_unstable();
        due.into_iter().take(peers_max).map(|(_, peer)| peer).collect()
    }

    /// Where `peer` may be; nothing if it is not known.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.known.get(peer).map(|known| known.addresses.clone()).unwrap_or_default()
    }

    /// How many peers are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// What has to be written: the entry of each met peer that changed, `None` where it is gone.
    pub(super) fn take_unwritten(&mut self) -> Vec<(PeerId, Option<Known>)> {
        let written = |peer: &PeerId| self.known.get(peer).filter(|known| known.met.is_some());
        let changes = self.unwritten.iter().map(|peer| (*peer, written(peer).cloned())).collect();
        self.unwritten.clear();
        changes
    }

    /// Whether `peer` has a place, or was given one: a peer never met gives way first, then the
    /// one away for longest.
    fn make_room(&mut self, peer: &PeerId) -> bool {
        if self.known.len() < PEERS_MAX || self.known.contains_key(peer) {
            return true;
        }
        let stalest = self
            .known
            .iter()
            .min_by_key(|(_, known)| (known.met, u32::MAX - known.failures))
            .map(|(peer, _)| *peer);
        if let Some(stalest) = stalest {
            self.forget(&stalest);
        }
        true
    }
}

impl Known {
    fn is_gone(&self, now: u64) -> bool {
        match self.met {
            None => self.failures >= HEARD_TRIES_MAX,
            Some(met) => self.failures > 0 && now.saturating_sub(met) > AWAY_MILLIS_MAX,
        }
    }
}

fn push(addresses: &mut Vec<Multiaddr>, address: &Multiaddr) {
    let fits = addresses.len() < ADDRESSES_MAX && address.len() <= ADDRESS_BYTES_MAX;
    if fits && !addresses.contains(address) {
        addresses.push(address.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("a multiaddr")
    }

    fn nobody(_: &PeerId) -> bool {
        false
    }

    #[test]
    fn strangers_never_push_out_more_than_the_book_holds() {
        let mut book = Book::new(PeerId::random());
        let friend = PeerId::random();
        book.meet(friend, &[addr(1)], 5);
        for port in 0..3_000 {
            book.hear(PeerId::random(), &[addr(port)], 10);
        }
        assert_eq!(book.len(), PEERS_MAX);
        assert_eq!(book.addresses(&friend), [addr(1)], "a met peer outlasts heard ones");
    }

    #[test]
    fn a_peer_that_is_only_heard_of_is_dropped_after_a_few_tries() {
        let mut book = Book::new(PeerId::random());
        let (heard, met) = (PeerId::random(), PeerId::random());
        book.hear(heard, &[addr(1)], 0);
        book.meet(met, &[addr(2)], 0);
        for _ in 0..HEARD_TRIES_MAX {
            book.failed(&heard, 0, 0.5);
            book.failed(&met, 0, 0.5);
        }
        assert_eq!(book.expire(1, nobody), [heard]);
        assert_eq!(book.expire(AWAY_MILLIS_MAX + 1, nobody), [met]);
    }

    #[test]
    fn pauses_grow_to_a_minute_and_no_further() {
        let mut book = Book::new(PeerId::random());
        let peer = PeerId::random();
        book.meet(peer, &[addr(1)], 0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            book.failed(&peer, 0, 0.5);
            pauses.push(book.known[&peer].next);
        }
        assert_eq!(&pauses[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(pauses[11], PAUSE_MILLIS_MAX);
        assert!(book.due(PAUSE_MILLIS_MAX - 1, 8, nobody).is_empty());
        assert_eq!(book.due(PAUSE_MILLIS_MAX, 8, nobody), [peer]);
    }

    #[test]
    fn only_met_peers_are_written() {
        let mut book = Book::new(PeerId::random());
        let (heard, met) = (PeerId::random(), PeerId::random());
        book.hear(heard, &[addr(1)], 0);
        book.meet(met, &[addr(2)], 7);
        let written = book.take_unwritten();
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].0, met);
        book.forget(&met);
        assert_eq!(book.take_unwritten(), [(met, None)]);
    }

    #[test]
    fn a_peer_says_itself_where_it_is() {
        let mut book = Book::new(PeerId::random());
        let peer = PeerId::random();
        book.hear(peer, &[addr(1), addr(2)], 0);
        book.meet(peer, &[addr(3)], 1);
        assert_eq!(book.addresses(&peer), [addr(3)]);
        let many: Vec<_> = (0..50).map(addr).collect();
        book.meet(peer, &many, 2);
        assert_eq!(book.addresses(&peer).len(), ADDRESSES_MAX);
    }
}
