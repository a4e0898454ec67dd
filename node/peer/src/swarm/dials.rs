//! Reaching peers: one dial per peer at a time, however many wait for it, in stages.

use std::collections::{HashMap, VecDeque};

use libp2p::{
    Multiaddr, PeerId, TransportError,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;

use super::{OUTBOX_MAX, SwarmEvent, actor::Actor, address, records::unix_millis, view::Transport};

/// Peers dialled at once by name. Fewer than connections may be pending, so that bootstrap and
/// DHT dials find room.
const DIALS_MAX: usize = 96;

/// Callers that wait for one dial. One more is told so at once.
const WAITERS_MAX: usize = 1_024;

/// Failed dials in a row after which the DHT no longer lists a peer.
const FAILURES_LISTED: u32 = 2;

/// Answered when the peer is reached, or with a sentence saying why it cannot be.
pub(super) type Reply = oneshot::Sender<Result<(), String>>;

/// The dials under way.
#[derive(Debug, Default)]
pub(super) struct Dials {
    by_peer: HashMap<PeerId, Dial>,
    /// Which of them a connection attempt belongs to.
    attempts: HashMap<ConnectionId, PeerId>,
    /// Dials of a bare address.
    bare: HashMap<ConnectionId, Reply>,
}

#[derive(Debug, Default)]
struct Dial {
    waiters: Vec<Reply>,
    /// What is still to be tried.
    stages: VecDeque<Vec<Multiaddr>>,
    /// What the stages before said.
    errors: Vec<String>,
    /// Whether the DHT was asked where the peer is.
    asked: bool,
}

impl Dials {
    pub(super) fn is_dialling(&self, peer: &PeerId) -> bool {
        self.by_peer.contains_key(peer)
    }

    /// Tells everybody who waits for `peer`, and those who waited for this very connection.
    pub(super) fn reached(&mut self, peer: &PeerId, connection: ConnectionId) {
        self.attempts.remove(&connection);
        if let Some(reply) = self.bare.remove(&connection) {
            let _ = reply.send(Ok(()));
        }
        if let Some(dial) = self.by_peer.remove(peer) {
            answer(dial.waiters, &Ok(()));
        }
    }
}

impl Actor {
    /// Connects to `peer`. `reply` is answered once it is known how that went.
    pub(super) fn connect(&mut self, peer: PeerId, reply: Option<Reply>) {
        let refusal = self.refusal(&peer);
        if self.swarm.is_connected(&peer) || refusal.is_some() {
            answer(reply, &refusal.map_or(Ok(()), Err));
            return;
        }
        if let Some(dial) = self.dials.by_peer.get_mut(&peer) {
            if dial.waiters.len() < WAITERS_MAX {
                dial.waiters.extend(reply);
            } else {
                answer(reply, &Err("too many callers wait for it already".into()));
            }
            return;
        }
        if self.dials.by_peer.len() >= DIALS_MAX {
            answer(reply, &Err("too many peers are being dialled; try again".into()));
            return;
        }
        let stages = address::stages(self.book.addresses(&peer)).into();
        let dial = Dial { waiters: reply.into_iter().collect(), stages, ..Dial::default() };
        self.dials.by_peer.insert(peer, dial);
        self.next_stage(peer);
    }

    /// Connects to whoever is at `address`. A direct address is dialled even where there is a
    /// connection through a relay.
    pub(super) fn dial_address(&mut self, address: Multiaddr, reply: Reply) {
        let relayed = address::transport(&address) == Transport::Relay;
        let opts = match address::peer(&address) {
            Some(peer) if !relayed && !self.is_direct(&peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(vec![address])
                .build(),
            _ => options(address),
        };
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.bare.insert(connection, reply);
            }
            Err(DialError::DialPeerConditionFalse(_)) => answer(Some(reply), &Ok(())),
            Err(error) => answer(Some(reply), &Err(describe(&error))),
        }
    }

    /// Dials the bootstrap addresses whose time has come.
    pub(super) fn knock(&mut self) {
        let swarm = &self.swarm;
        let due = self.joining.due(std::time::Instant::now(), |peer| swarm.is_connected(peer));
        for address in due {
            let opts = options(address.clone());
            let connection = opts.connection_id();
            self.joining.attempted(&address, connection);
            if let Err(error) = self.swarm.dial(opts) {
                self.on_dial_failed(connection, None, &error);
            }
        }
    }

    /// Goes on after the attempt `connection` failed.
    pub(super) fn on_dial_failed(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
    ) {
        let text = describe(error);
        tracing::debug!(?peer, %connection, error = text, "dial failed");
        self.counters.dials_failed += 1;
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.joining.own(connection);
        }
        self.knock_failed(connection, &text);
        if let Some(reply) = self.dials.bare.remove(&connection) {
            let _ = reply.send(Err(text.clone()));
        }
        let Some(peer) = self.dials.attempts.remove(&connection) else { return };
        if let Some(dial) = self.dials.by_peer.get_mut(&peer) {
            dial.errors.push(text);
            if all_refused(error) {
                // The machine is there and the program is not: nobody need wait for what can
                // only time out, though it is tried.
                let sentence = Err(dial.errors.join("; "));
                let waiters = std::mem::take(&mut dial.waiters);
                self.on_unreachable(peer, !waiters.is_empty());
                answer(waiters, &sentence);
            }
        }
        self.next_stage(peer);
    }

    /// Goes on after the DHT was asked where `peer` is.
    pub(super) fn on_located(&mut self, peer: PeerId) {
        if let Some(dial) = self.dials.by_peer.get_mut(&peer) {
            dial.stages = address::stages(self.book.addresses(&peer)).into();
            self.next_stage(peer);
        }
    }

    fn next_stage(&mut self, peer: PeerId) {
        let Some(dial) = self.dials.by_peer.get_mut(&peer) else { return };
        while let Some(addresses) = dial.stages.pop_front() {
            let private = addresses.iter().any(address::is_private);
            let opts =
                DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(addresses);
            // Two peers that dial each other from the ports they listen on meet in the middle and
            // neither is the listener. On private networks nothing is gained by it.
            let opts = if private { opts.allocate_new_port() } else { opts };
            let opts = opts.build();
            let connection = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    self.dials.attempts.insert(connection, peer);
                    return;
                }
                Err(DialError::DialPeerConditionFalse(_)) => {
                    self.dials.reached(&peer, connection);
                    return;
                }
                Err(error) => dial.errors.push(describe(&error)),
            }
        }
        if !dial.asked && dial.errors.is_empty() {
            dial.asked = true;
            if self.locate(peer) {
                return;
            }
        }
        self.give_up(peer);
    }

    fn give_up(&mut self, peer: PeerId) {
        let Some(dial) = self.dials.by_peer.remove(&peer) else { return };
        let failures = self.book.failed(&peer, unix_millis(), rand::random());
        if failures >= FAILURES_LISTED {
            self.unlist(&peer);
        }
        let error = if dial.errors.is_empty() {
            "no address of it is known".to_owned()
        } else {
            dial.errors.join("; ")
        };
        self.on_unreachable(peer, !dial.waiters.is_empty());
        answer(dial.waiters, &Err(error));
    }

    /// Tells that `peer` could not be reached, if somebody wanted it: others should be asked first.
    fn on_unreachable(&mut self, peer: PeerId, wanted: bool) {
        if wanted && self.outbox.len() < OUTBOX_MAX {
            self.emit(SwarmEvent::PeerDisconnected { peer: peer.into(), abrupt: true });
        }
    }
}

/// How to dial an address that may or may not name the peer behind it.
fn options(address: Multiaddr) -> DialOpts {
    match address::peer(&address) {
        Some(peer) => DialOpts::peer_id(peer)
            .condition(PeerCondition::Disconnected)
            .addresses(vec![address])
            .build(),
        None => DialOpts::unknown_peer_id().address(address).build(),
    }
}

fn answer(waiters: impl IntoIterator<Item = Reply>, outcome: &Result<(), String>) {
    for waiter in waiters {
        let _ = waiter.send(outcome.clone());
    }
}

/// Whether every address refused at once, as the machine of a killed process does.
fn all_refused(error: &DialError) -> bool {
    match error {
        DialError::Transport(errors) => {
            !errors.is_empty() && errors.iter().all(|(_, error)| chain(error).contains("refused"))
        }
        _ => false,
    }
}

/// Why a dial failed, in one sentence.
pub(super) fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let each = errors.iter().map(|(address, error)| format!("{address}: {}", chain(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::WrongPeerId { obtained, address } => {
            format!("{address} is answered by another peer, {obtained}; correct the address")
        }
        DialError::LocalPeerId { address } => format!("{address} is this peer itself"),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::Denied { cause } => {
            let cause: &dyn std::error::Error = cause;
            let mut last = cause;
            while let Some(source) = last.source() {
                last = source;
            }
            last.to_string()
        }
        other => other.to_string(),
    }
}

/// The innermost cause, which is the one that says something.
fn chain(error: &TransportError<std::io::Error>) -> String {
    match error {
        TransportError::MultiaddrNotSupported(_) => {
            "this kind of address cannot be dialled".to_owned()
        }
        TransportError::Other(error) => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            cause.to_string()
        }
    }
}
