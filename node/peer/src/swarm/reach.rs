//! Where this peer can be reached.
//!
//! On a private network nobody can test that from outside, so the listen addresses are taken as
//! they are. The first peer met at an address of the public internet ends that; from then on other
//! peers' tests (AutoNAT) decide, and while they find nothing a relay is asked for a place.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use multiaddr::Protocol;

use super::{
    SwarmEvent,
    actor::{Actor, Reach},
    address,
    view::Transport,
};
use crate::config::PeerConfig;

/// Relays asked for a place at once.
const RELAYS_MAX: usize = 2;

/// How long other peers' tests have before a relay is asked.
const RELAY_AFTER: Duration = Duration::from_secs(20);

impl Reach {
    pub(super) fn new(config: &PeerConfig, now: Instant) -> Self {
        let told = !config.external.is_empty();
        Self {
            private: !told && !config.bootstrap.iter().any(address::is_global),
            loopback: config.listen.iter().all(address::is_loopback),
            assumed: Vec::new(),
            relays: Vec::new(),
            relay_at: now + RELAY_AFTER,
        }
    }
}

impl Actor {
    /// Notes an address that is listened on.
    pub(super) fn on_listening(&mut self, address: Multiaddr) {
        self.dirty = true;
        let assumed = self.reach.private
            && address::is_private(&address)
            && address::transport(&address) != Transport::Relay
            && (self.reach.loopback || !address::is_loopback(&address));
        if assumed {
            self.swarm.add_external_address(address.clone());
            self.reach.assumed.push(address.clone());
        }
        self.emit(SwarmEvent::Listening(address));
    }

    /// Notes an address that is no longer listened on.
    pub(super) fn on_deaf(&mut self, address: &Multiaddr) {
        self.dirty = true;
        self.reach.assumed.retain(|assumed| {
            let keep = assumed != address;
            if !keep {
                self.swarm.remove_external_address(assumed);
            }
            keep
        });
    }

    /// Learns from the address of a connection whether the network is private.
    pub(super) fn note_scope(&mut self, remote: &Multiaddr) {
        if self.reach.private && address::is_global(remote) {
            tracing::info!(%remote, "the network reaches beyond private addresses");
            self.reach.private = false;
            for assumed in std::mem::take(&mut self.reach.assumed) {
                self.swarm.remove_external_address(&assumed);
            }
        }
    }

    /// Asks a relay for a place when nobody can reach this peer otherwise.
    pub(super) fn seek_relay(&mut self, now: Instant) {
        let reachable = self.swarm.external_addresses().next().is_some();
        let enough = self.reach.relays.len() >= RELAYS_MAX;
        let idle = self.reach.private || reachable || enough || self.reach.relay_at > now;
        if idle || self.swarm.listeners().next().is_none() {
            return;
        }
        self.reach.relay_at = now + RELAY_AFTER;
        let Some((relay, address)) = self.relay_candidate() else { return };
        match self.swarm.listen_on(address) {
            Ok(listener) => self.reach.relays.push((relay, listener)),
            Err(error) => tracing::debug!(%relay, %error, "a relay could not be asked"),
        }
    }

    /// A directly connected relay that was not asked yet.
    fn relay_candidate(&self) -> Option<(PeerId, Multiaddr)> {
        let asked = |peer: &PeerId| self.reach.relays.iter().any(|(relay, _)| relay == peer);
        self.peers.iter().filter(|(peer, n)| n.admitted && n.relays && !asked(peer)).find_map(
            |(peer, neighbour)| {
                let outbound = neighbour.connections.iter().map(|(_, view)| view);
                let direct = outbound
                    .filter(|view| !view.inbound && view.transport != Transport::Relay)
                    .map(|view| view.address.clone())
                    .next()?;
                Some((*peer, direct.with(Protocol::P2p(*peer)).with(Protocol::P2pCircuit)))
            },
        )
    }
}
