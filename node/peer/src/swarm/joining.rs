//! Getting into the network through the configured addresses, and staying in. Pure: time and
//! chance are arguments.
//!
//! Every bootstrap address that is not connected is tried again for ever, with jittered pauses
//! that grow while it fails. It is spoken of each time while nobody of the network is connected,
//! and once when the network is there anyway.

use std::time::{Duration, Instant};

use libp2p::{PeerId, swarm::ConnectionId};
use multiaddr::Multiaddr;

use super::address;

/// The first pause after a failed attempt.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause while no peer of the network is connected.
const PAUSE_MAX_ALONE: Duration = Duration::from_secs(15);

/// The longest pause while other peers are connected.
const PAUSE_MAX_JOINED: Duration = Duration::from_mins(1);

/// The configured ways into the network.
#[derive(Debug)]
pub(super) struct Joining {
    doors: Vec<Door>,
}

/// One bootstrap address.
#[derive(Debug)]
struct Door {
    address: Multiaddr,
    /// Who is there, once known.
    peer: Option<PeerId>,
    /// The attempt under way.
    attempt: Option<ConnectionId>,
    next: Instant,
    failures: u32,
    /// Whether it turned out to be this peer itself.
    own: bool,
}

/// A failed attempt, to be spoken of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreachable {
    pub(super) address: Multiaddr,
    pub(super) retry_in: Duration,
}

impl Joining {
    pub(super) fn new(addresses: Vec<Multiaddr>, local: PeerId, now: Instant) -> Self {
        let door = |address: Multiaddr| {
            let peer = address::peer(&address);
            let own = peer == Some(local);
            Door { address, peer, attempt: None, next: now, failures: 0, own }
        };
        Self { doors: addresses.into_iter().map(door).collect() }
    }

    /// The addresses to dial now. Each must be answered by [`Self::attempted`].
    pub(super) fn due(&self, now: Instant, connected: impl Fn(&PeerId) -> bool) -> Vec<Multiaddr> {
        let waits = |door: &&Door| {
            !door.own
                && door.attempt.is_none()
                && door.next <= now
                && !door.peer.is_some_and(|peer| connected(&peer))
        };
        self.doors.iter().filter(waits).map(|door| door.address.clone()).collect()
    }

    /// Notes that `address` is being dialled as `connection`.
    pub(super) fn attempted(&mut self, address: &Multiaddr, connection: ConnectionId) {
        if let Some(door) = self.doors.iter_mut().find(|door| &door.address == address) {
            door.attempt = Some(connection);
        }
    }

    /// Notes that `connection` reached `peer`.
    pub(super) fn reached(&mut self, connection: ConnectionId, peer: PeerId) {
        for door in self.doors.iter_mut().filter(|door| door.attempt == Some(connection)) {
            door.attempt = None;
            door.peer = Some(peer);
        }
    }

    /// Notes that `peer` is one of the network: its door starts afresh.
    pub(super) fn admitted(&mut self, peer: PeerId) {
        for door in self.doors.iter_mut().filter(|door| door.peer == Some(peer)) {
            door.failures = 0;
        }
    }

    /// Notes that the attempt `connection` failed. Returns what is to be said, if anything.
    pub(super) fn failed(
        &mut self,
        connection: ConnectionId,
        joined: bool,
        now: Instant,
        chance: f64,
    ) -> Option<Unreachable> {
        let door = self.doors.iter_mut().find(|door| door.attempt == Some(connection))?;
        door.attempt = None;
        door.fail(joined, now, chance)
    }

    /// Notes that `peer` ended the connection before it said who it is. Returns what is to be
    /// said, if anything.
    pub(super) fn dismissed(
        &mut self,
        peer: PeerId,
        joined: bool,
        now: Instant,
        chance: f64,
    ) -> Option<Unreachable> {
        let door = self.doors.iter_mut().find(|door| door.peer == Some(peer))?;
        // One that is of another network waits for longer already.
        if door.next > now {
            return None;
        }
        door.fail(joined, now, chance)
    }

    /// Notes that `peer` was sent away, or its connection lost. Its door is tried again after a
    /// pause.
    pub(super) fn lost(&mut self, peer: PeerId, joined: bool, now: Instant, chance: f64) {
        for door in self.doors.iter_mut().filter(|door| door.peer == Some(peer)) {
            door.pause(joined, now, chance);
            door.failures = door.failures.saturating_sub(1);
        }
    }

    /// Notes that the peer behind `connection` is of another network: it is tried again, rarely,
    /// since somebody else may answer there one day.
    pub(super) fn foreign(&mut self, peer: PeerId, now: Instant) {
        for door in self.doors.iter_mut().filter(|door| door.peer == Some(peer)) {
            door.next = now + PAUSE_MAX_JOINED;
        }
    }

    /// Notes that the attempt `connection` reached this peer itself: that door is never tried
    /// again.
    pub(super) fn own(&mut self, connection: ConnectionId) {
        for door in self.doors.iter_mut().filter(|door| door.attempt == Some(connection)) {
            door.own = true;
            door.attempt = None;
        }
    }

    /// Tries every door soon: the last peer was lost.
    pub(super) fn hurry(&mut self, now: Instant, chance: f64) {
        for door in &mut self.doors {
            door.next = door.next.min(now + PAUSE_MIN.mul_f64(0.5 + chance));
            door.failures = 0;
        }
    }
}

impl Door {
    fn fail(&mut self, joined: bool, now: Instant, chance: f64) -> Option<Unreachable> {
        let retry_in = self.pause(joined, now, chance);
        let worth_saying = !joined || self.failures == 1;
        worth_saying.then(|| Unreachable { address: self.address.clone(), retry_in })
    }

    fn pause(&mut self, joined: bool, now: Instant, chance: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let longest = if joined { PAUSE_MAX_JOINED } else { PAUSE_MAX_ALONE };
        let pause = PAUSE_MIN * (1 << self.failures.min(8).saturating_sub(1));
        let pause = pause.min(longest).mul_f64(0.75 + chance / 2.0);
        self.next = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(_: &PeerId) -> bool {
        false
    }

    fn alone() -> (Joining, Instant, Multiaddr) {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/4001".parse().expect("a multiaddr");
        let now = Instant::now();
        (Joining::new(vec![address.clone()], PeerId::random(), now), now, address)
    }

    #[test]
    fn an_unreachable_door_is_tried_for_ever_with_growing_pauses() {
        let (mut joining, mut now, address) = alone();
        let mut pauses = Vec::new();
        for attempt in 0..20 {
            assert_eq!(joining.due(now, nobody), std::slice::from_ref(&address));
            let id = ConnectionId::new_unchecked(attempt);
            joining.attempted(&address, id);
            assert!(joining.due(now, nobody).is_empty(), "one attempt at a time");
            let said = joining.failed(id, false, now, 0.5).expect("said while alone");
            pauses.push(said.retry_in);
            assert!(joining.due(now, nobody).is_empty());
            now += said.retry_in;
        }
        assert_eq!(pauses[0], PAUSE_MIN);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[19], PAUSE_MAX_ALONE);
    }

    #[test]
    fn a_joined_peer_speaks_of_a_dead_door_once() {
        let (mut joining, now, address) = alone();
        for (attempt, said) in [(1, true), (2, false), (3, false)] {
            let id = ConnectionId::new_unchecked(attempt);
            joining.attempted(&address, id);
            assert_eq!(joining.failed(id, true, now, 0.5).is_some(), said);
        }
    }

    #[test]
    fn a_door_is_left_alone_while_its_peer_is_connected() {
        let (mut joining, now, address) = alone();
        let peer = PeerId::random();
        let id = ConnectionId::new_unchecked(1);
        joining.attempted(&address, id);
        joining.reached(id, peer);
        assert!(joining.due(now, |p| *p == peer).is_empty());
        joining.lost(peer, false, now, 0.5);
        assert!(joining.due(now, nobody).is_empty());
        assert_eq!(joining.due(now + PAUSE_MIN, nobody), [address]);
    }

    #[test]
    fn a_door_that_is_shut_in_the_face_is_tried_with_growing_pauses() {
        let (mut joining, now, address) = alone();
        let peer = PeerId::random();
        let mut pauses = Vec::new();
        for attempt in 0..5 {
            let id = ConnectionId::new_unchecked(attempt);
            joining.attempted(&address, id);
            joining.reached(id, peer);
            let later = now + PAUSE_MAX_JOINED * attempt as u32;
            let said = joining.dismissed(peer, false, later, 0.5).expect("said while alone");
            pauses.push(said.retry_in);
        }
        assert!(pauses.is_sorted() && pauses[4] > pauses[0], "{pauses:?}");
    }

    #[test]
    fn a_door_that_leads_home_is_closed() {
        let (mut joining, now, address) = alone();
        let id = ConnectionId::new_unchecked(1);
        joining.attempted(&address, id);
        joining.own(id);
        assert!(joining.due(now + PAUSE_MAX_JOINED, nobody).is_empty());
    }
}
