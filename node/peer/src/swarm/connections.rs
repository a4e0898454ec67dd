//! Neighbours: who is connected, whether it belongs to this network, and how it leaves.

use std::time::{Duration, Instant, SystemTime};

use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    identify, ping,
    swarm::{ConnectionError, ConnectionId},
};

use super::{
    OUTBOX_MAX, SwarmEvent,
    actor::Actor,
    address,
    behaviour::identity_of,
    joining::Unreachable,
    messages::Early,
    records::unix_millis,
    view::{ConnectionView, Transport},
};

/// Networks of at most this many peers are fully connected: gossip then reaches everybody at
/// once, and no single peer, a bootstrap least of all, holds the others together.
pub(super) const FULL_MESH_MAX: usize = 32;

/// Dials begun in one go to peers that are known and not connected.
const MEETINGS_MAX: usize = 8;

/// How long a peer of another network, or one that lied, is not spoken to again.
const SHUNNED_FOR: Duration = Duration::from_mins(1);

/// How long a peer of another network has to learn that it is one.
const PARTING: Duration = Duration::from_secs(1);

/// Shunned peers remembered. More are sent away without being remembered.
const SHUNNED_MAX: usize = 1_024;

/// After a new neighbour the DHT is asked who else is around; several in a row are one.
const LOOK_AROUND_AFTER: Duration = Duration::from_millis(250);

/// After a new neighbour, services are announced anew; several in a row are one.
const PROVIDE_AFTER: Duration = Duration::from_millis(750);

/// Longest pause before a lost neighbour is dialled again, in milliseconds.
const REDIAL_MILLIS_MAX: f64 = 500.0;

/// The protocol that a relay offers.
const RELAY_PROTOCOL: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// A connected peer.
#[derive(Default)]
pub(super) struct Neighbour {
    /// Whether it is known to be of this network.
    pub(super) admitted: bool,
    /// Whether its connections are kept while idle.
    pub(super) kept: bool,
    /// Whether it relays.
    pub(super) relays: bool,
    pub(super) agent: String,
    pub(super) rtt: Option<Duration>,
    pub(super) connections: Vec<(ConnectionId, ConnectionView)>,
    pub(super) early: Vec<Early>,
}

impl Actor {
    /// Why `peer` is not to be spoken to, if so.
    pub(super) fn refusal(&self, peer: &PeerId) -> Option<String> {
        let (until, reason) = self.shunned.get(peer)?;
        (*until > Instant::now()).then(|| reason.clone())
    }

    /// Whether `peer` is connected otherwise than through a relay.
    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        let connections = self.peers.get(peer).map(|neighbour| &neighbour.connections);
        connections.is_some_and(|all| all.iter().any(|(_, c)| c.transport != Transport::Relay))
    }

    /// Notes a new connection.
    pub(super) fn on_established(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        self.counters.established += 1;
        let view = connection_view(endpoint);
        self.note_scope(&view.address);
        let neighbour = self.peers.entry(peer).or_default();
        neighbour.connections.push((connection, view));
        let (admitted, kept) = (neighbour.admitted, neighbour.kept);
        let streams = &mut self.swarm.behaviour_mut().streams;
        if admitted {
            streams.admit(&peer);
        }
        streams.keep(&peer, kept);
        self.joining.reached(connection, peer);
        self.dials.reached(&peer, connection);
        self.dirty = true;
    }

    /// Notes that a connection ended.
    pub(super) fn on_closed(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        remaining: u32,
        cause: Option<&ConnectionError>,
    ) {
        self.counters.closed += 1;
        self.dirty = true;
        let abrupt = self.silent.remove(&connection) || cause.is_some_and(is_abrupt);
        tracing::debug!(%peer, %connection, ?cause, abrupt, "connection ended");
        if let Some(neighbour) = self.peers.get_mut(&peer) {
            neighbour.connections.retain(|(id, _)| *id != connection);
        }
        if remaining > 0 {
            return;
        }
        let admitted = self.peers.remove(&peer).is_some_and(|neighbour| neighbour.admitted);
        if !admitted {
            self.on_dismissed(peer);
            return;
        }
        self.book.lost(&peer, unix_millis(), (rand::random::<f64>() * REDIAL_MILLIS_MAX) as u64);
        let joined = self.peers.values().any(|neighbour| neighbour.admitted);
        self.joining.lost(peer, joined, Instant::now(), rand::random());
        if !joined {
            self.joined = false;
            self.joining.hurry(Instant::now(), rand::random());
        }
        self.emit(SwarmEvent::PeerDisconnected { peer: peer.into(), abrupt });
        self.keep_others();
    }

    /// Notes that `peer` left before it was known whether it belongs here: it may have sent this
    /// peer away, so it is left alone for a while.
    fn on_dismissed(&mut self, peer: PeerId) {
        let (now, joined) = (Instant::now(), self.joined);
        self.book.failed(&peer, unix_millis(), rand::random());
        if self.outbox.len() < OUTBOX_MAX {
            self.emit(SwarmEvent::PeerDisconnected { peer: peer.into(), abrupt: true });
        }
        let said = self.joining.dismissed(peer, joined, now, rand::random());
        if let Some(Unreachable { address, retry_in }) = said
            && !self.shunned.contains_key(&peer)
        {
            let error = "it ended the connection before it said who it is; it may be refusing \
                         this peer for a minute, or be stopping"
                .to_owned();
            self.emit(SwarmEvent::BootstrapUnreachable { address, error, retry_in });
        }
    }

    /// Handles what a neighbour says of itself.
    pub(super) fn on_identify(&mut self, event: identify::Event) {
        match event {
            identify::Event::Received { connection_id, peer_id, info } => {
                let known = self.peers.get(&peer_id);
                let mut of_peer = known.into_iter().flat_map(|neighbour| &neighbour.connections);
                let at = of_peer.find(|(id, _)| *id == connection_id);
                let Some(at) = at.map(|(_, view)| view.address.clone()) else { return };
                match foreign_reason(self.network.as_str(), &info.protocol_version) {
                    None => self.admit(peer_id, &at, info),
                    Some(reason) => self.send_away(peer_id, at, reason),
                }
            }
            identify::Event::Error { peer_id, error, .. } => {
                tracing::debug!(peer = %peer_id, %error, "a neighbour did not say who it is");
            }
            _ => {}
        }
    }

    /// Handles a probe's outcome.
    pub(super) fn on_ping(&mut self, event: &ping::Event) {
        match &event.result {
            Ok(rtt) => {
                if let Some(neighbour) = self.peers.get_mut(&event.peer) {
                    neighbour.rtt = Some(*rtt);
                    self.stale = true;
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "a neighbour is silent");
                if self.swarm.close_connection(event.connection) {
                    self.silent.insert(event.connection);
                }
            }
        }
    }

    /// Dials peers that are known and not connected, while the network is small enough for all
    /// to be connected.
    pub(super) fn meet_heard(&mut self) {
        let room = FULL_MESH_MAX.saturating_sub(self.peers.len()).min(MEETINGS_MAX);
        if room == 0 {
            return;
        }
        let (peers, dials, shunned) = (&self.peers, &self.dials, &self.shunned);
        let busy = |peer: &PeerId| {
            peers.contains_key(peer) || dials.is_dialling(peer) || shunned.contains_key(peer)
        };
        for peer in self.book.due(unix_millis(), room, busy) {
            self.connect(peer, None);
        }
    }

    /// Speaks again to shunned peers whose time is over.
    pub(super) fn forgive(&mut self, now: Instant) {
        let over: Vec<_> =
            self.shunned.iter().filter(|(_, (until, _))| *until <= now).map(|(p, _)| *p).collect();
        for peer in over {
            self.shunned.remove(&peer);
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
    }

    /// Sends `peer` away for [`SHUNNED_FOR`], for what it did.
    pub(super) fn penalise(&mut self, peer: PeerId) {
        tracing::warn!(%peer, "a peer sent what no honest peer sends; it was sent away");
        self.book.forget(&peer);
        self.unlist(&peer);
        if self.shunned.len() < SHUNNED_MAX {
            let reason = "it sent what no honest peer sends".to_owned();
            self.shunned.insert(peer, (Instant::now() + SHUNNED_FOR, reason));
            // Closes its connections, too.
            self.swarm.behaviour_mut().blocked.block_peer(peer);
        } else {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Disconnects those that had their time to learn why.
    pub(super) fn part(&mut self, now: Instant) {
        while let Some((_, peer)) = self.partings.pop_front_if(|(at, _)| *at <= now) {
            if self.peers.get(&peer).is_some_and(|neighbour| !neighbour.admitted) {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
    }

    fn admit(&mut self, peer: PeerId, at: &Multiaddr, info: identify::Info) {
        let addresses: Vec<_> = info
            .listen_addrs
            .into_iter()
            .map(address::without_peer)
            .filter(|address| address::believable(address, at))
            .take(super::book::ADDRESSES_MAX)
            .collect();
        self.book.meet(peer, &addresses, unix_millis());
        if info.protocols.contains(&self.kad_protocol) {
            self.list(peer, &addresses);
        }
        let relays = info.protocols.iter().any(|protocol| protocol.as_ref() == RELAY_PROTOCOL);
        let agent: String =
            info.agent_version.chars().filter(|c| !c.is_control()).take(128).collect();
        let Some(neighbour) = self.peers.get_mut(&peer) else { return };
        let first = !std::mem::replace(&mut neighbour.admitted, true);
        self.shunned.remove(&peer);
        neighbour.relays = relays;
        self.dirty |= first || neighbour.agent != agent;
        neighbour.agent = agent;
        self.swarm.behaviour_mut().streams.admit(&peer);
        if first {
            self.welcome(peer);
        }
    }

    fn welcome(&mut self, peer: PeerId) {
        self.keep_others();
        self.joining.admitted(peer);
        if !std::mem::replace(&mut self.joined, true) {
            self.emit(SwarmEvent::Joined { through: peer.into() });
        }
        self.emit(SwarmEvent::PeerConnected(peer.into()));
        self.answer_early(peer);
        let now = Instant::now();
        let soon = now + LOOK_AROUND_AFTER;
        self.look_around_at = Some(self.look_around_at.map_or(soon, |at| at.min(soon)));
        if self.peers.len() <= FULL_MESH_MAX {
            self.provide_at.get_or_insert(now + PROVIDE_AFTER);
        }
    }

    /// Keeps the idle connections of as many neighbours as are allowed.
    fn keep_others(&mut self) {
        let kept = self.peers.values().filter(|neighbour| neighbour.kept).count();
        let room = self.neighbours_max.saturating_sub(kept);
        let candidates = self.peers.iter_mut().filter(|(_, n)| n.admitted && !n.kept).take(room);
        for (peer, neighbour) in candidates {
            neighbour.kept = true;
            self.swarm.behaviour_mut().streams.keep(peer, true);
        }
    }

    /// Parts with a peer of another network, when it has had time to learn why: were it sent away
    /// at once, it would never know what it did wrong. It may come back as one of this network.
    fn send_away(&mut self, peer: PeerId, address: Multiaddr, reason: String) {
        let now = Instant::now();
        self.joining.foreign(peer, now);
        self.book.forget(&peer);
        self.unlist(&peer);
        self.partings.push_back((now + PARTING, peer));
        let known = self.shunned.contains_key(&peer) || self.shunned.len() >= SHUNNED_MAX;
        if !known {
            tracing::info!(%peer, %address, reason, "a peer does not belong here");
            self.shunned.insert(peer, (now + SHUNNED_FOR, reason.clone()));
            self.emit(SwarmEvent::Foreign { peer: peer.into(), address, reason });
        }
    }
}

/// Why a peer that calls its protocol `version` does not belong to `network`, if so.
fn foreign_reason(network: &str, version: &str) -> Option<String> {
    if version == identity_of(network) {
        return None;
    }
    let brief = |text: &str| text.chars().filter(|c| !c.is_control()).take(64).collect::<String>();
    let mut parts = version.strip_prefix("/blackhole/").unwrap_or_default().split('/');
    Some(match (parts.next(), parts.next(), parts.next()) {
        (Some(other), Some(number), None) if other == network => format!(
            "it speaks version {} of the mesh protocol and this peer speaks version 1; upgrade \
             the older of the two",
            brief(number)
        ),
        (Some(other), Some(_), None) if !other.is_empty() => {
            format!("it belongs to network `{}` and this peer to network `{network}`", brief(other))
        }
        _ => format!("it is no Blackhole peer (it calls itself `{}`)", brief(version)),
    })
}

/// Whether a connection ended without either side wanting it.
fn is_abrupt(cause: &ConnectionError) -> bool {
    match cause {
        ConnectionError::KeepAliveTimeout => false,
        // QUIC says when the other side closed in order; its error type is private. TCP with yamux
        // ends the same way in either case.
        ConnectionError::IO(error) => !format!("{error:?}").contains("ApplicationClosed"),
    }
}

fn connection_view(endpoint: &ConnectedPoint) -> ConnectionView {
    let remote = endpoint.get_remote_address();
    let transport = match endpoint {
        _ if endpoint.is_relayed() => Transport::Relay,
        ConnectedPoint::Dialer { address, .. } => address::transport(address),
        ConnectedPoint::Listener { local_addr, .. } => address::transport(local_addr),
    };
    ConnectionView {
        address: address::without_peer(remote.clone()),
        transport,
        inbound: endpoint.is_listener(),
        since: SystemTime::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_that_do_not_belong_are_told_why() {
        assert_eq!(foreign_reason("home", "/blackhole/home/1"), None);
        for (version, wanted) in [
            ("/blackhole/home/2", "version 2"),
            ("/blackhole/away/1", "network `away`"),
            ("ipfs/0.1.0", "no Blackhole peer"),
            ("/blackhole//1", "no Blackhole peer"),
            ("/blackhole/home/1/x", "no Blackhole peer"),
            ("", "no Blackhole peer"),
        ] {
            let reason = foreign_reason("home", version).expect("it does not belong");
            assert!(reason.contains(wanted), "{version}: {reason}");
        }
    }

    #[test]
    fn what_a_stranger_calls_itself_is_shown_short_and_plain() {
        let reason = foreign_reason("home", &"\u{1b}[31m".repeat(1_000)).expect("a stranger");
        assert!(reason.len() < 200 && !reason.contains('\u{1b}'), "{reason}");
    }
}
