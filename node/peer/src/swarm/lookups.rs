//! The DHT: announcing, finding, and learning who is there.

use std::collections::{HashMap, HashSet, VecDeque};

use libp2p::{
    PeerId,
    kad::{
        self, GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, InboundRequest, QueryId,
        QueryResult, RecordKey, store::RecordStore,
    },
    swarm::dial_opts::DialOpts,
};
use multiaddr::Multiaddr;
use tokio::sync::mpsc;

use super::{
    actor::Actor,
    address,
    records::{OWN_MAX, key_bytes, unix_millis},
    view::Transport,
};

/// Announcements under way at once; the others wait their turn.
const ANNOUNCEMENTS_MAX: usize = 8;

/// Lookups of providers at once: those that are waited for, and as many again of those that were
/// abandoned and not yet ended.
const FINDS_MAX: usize = 4 * super::LOOKUPS_MAX;

/// Lookups of where a peer is, at once.
const LOCATIONS_MAX: usize = 32;

/// Peers of one /24 or /48 in the routing table, so that the owner of one network cannot surround
/// this peer. Private networks are exempt.
const PER_GROUP_MAX: usize = 8;

/// Providers dialled straight away when the DHT names them and nothing else knows where they are.
const PROVIDERS_DIALLED_MAX: usize = 8;

/// The lookups and announcements under way.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    finds: HashMap<QueryId, mpsc::Sender<Vec<PeerId>>>,
    announcing: HashSet<QueryId>,
    /// Keys that wait to be announced, each once.
    waiting: VecDeque<RecordKey>,
    locating: HashMap<QueryId, PeerId>,
    /// The lookup of this peer's own neighbourhood.
    around: Option<QueryId>,
    /// Peers in the routing table, by the network that owns their address.
    groups: HashMap<[u8; 6], HashSet<PeerId>>,
}

impl Actor {
    /// Announces this peer under `key`, in its turn.
    pub(super) fn provide(&mut self, key: [u8; 32]) {
        let key = RecordKey::from(key.to_vec());
        if self.lookups.waiting.len() < OWN_MAX && !self.lookups.waiting.contains(&key) {
            self.lookups.waiting.push_back(key);
        }
        self.announce_waiting();
    }

    /// Stops announcing this peer under `key`.
    pub(super) fn stop_providing(&mut self, key: [u8; 32]) {
        let key = RecordKey::from(key.to_vec());
        self.lookups.waiting.retain(|waiting| *waiting != key);
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.stop_providing(&key);
        }
    }

    /// Announces everything anew: there are peers that do not know it.
    pub(super) fn provide_all(&mut self) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        for key in kad.store_mut().own_keys() {
            if !self.lookups.waiting.contains(&key) {
                self.lookups.waiting.push_back(key);
            }
        }
        self.announce_waiting();
    }

    fn announce_waiting(&mut self) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        while self.lookups.announcing.len() < ANNOUNCEMENTS_MAX {
            let Some(key) = self.lookups.waiting.pop_front() else { return };
            match kad.start_providing(key) {
                Ok(query) => {
                    self.lookups.announcing.insert(query);
                }
                Err(error) => tracing::warn!(%error, "a service is not announced in the DHT"),
            }
        }
    }

    /// Looks for the providers of `key`, sending them as they are found.
    pub(super) fn find(&mut self, key: [u8; 32], found: mpsc::Sender<Vec<PeerId>>) {
        if self.lookups.finds.len() >= FINDS_MAX {
            self.drop_abandoned();
            tracing::debug!("too many lookups; one finds nobody");
            return;
        }
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            let query = kad.get_providers(RecordKey::from(key.to_vec()));
            self.lookups.finds.insert(query, found);
        }
    }

    /// Asks the DHT where `peer` is; false when it cannot be asked.
    pub(super) fn locate(&mut self, peer: PeerId) -> bool {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return false };
        if self.lookups.locating.len() >= LOCATIONS_MAX || self.peers.is_empty() {
            return false;
        }
        let query = kad.get_closest_peers(peer);
        self.lookups.locating.insert(query, peer);
        true
    }

    /// Asks the DHT who is around.
    pub(super) fn look_around(&mut self) {
        let local = *self.swarm.local_peer_id();
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        if self.lookups.around.is_none() {
            self.lookups.around = Some(kad.get_closest_peers(local));
        }
    }

    /// Ends the lookups that nobody waits for any more.
    pub(super) fn drop_abandoned(&mut self) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        for (query, _) in self.lookups.finds.iter().filter(|(_, found)| found.is_closed()) {
            if let Some(mut query) = kad.query_mut(query) {
                query.finish();
            }
        }
    }

    /// Lists `peer` in the routing table, unless its network has enough peers there.
    pub(super) fn list(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
        // A killed process refuses TCP at once, while QUIC times out: on private networks lookups
        // go over TCP where there is a choice.
        let is_tcp = |a: &&Multiaddr| address::transport(a) == Transport::Tcp;
        let tcp_only = addresses.iter().filter(is_tcp).any(address::is_private);
        for address in addresses.iter().filter(|a| !tcp_only || is_tcp(a)) {
            if let Some(group) = address::group(address) {
                let listed = self.lookups.groups.entry(group).or_default();
                if listed.len() >= PER_GROUP_MAX && !listed.contains(&peer) {
                    continue;
                }
                listed.insert(peer);
            }
            kad.add_address(&peer, address.clone());
        }
    }

    /// Takes `peer` out of the routing table.
    pub(super) fn unlist(&mut self, peer: &PeerId) {
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.remove_peer(peer);
        }
        self.lookups.groups.retain(|_, listed| {
            listed.remove(peer);
            !listed.is_empty()
        });
    }

    /// Handles what the DHT says.
    pub(super) fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request: InboundRequest::AddProvider { record: Some(record) },
            } => {
                // The DHT has checked that it comes from the provider itself. Value records
                // arrive the same way and are not stored.
                let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else { return };
                if key_bytes(&record.key).is_some()
                    && let Err(error) = kad.store_mut().add_provider(record)
                {
                    tracing::debug!(%error, "a provider record was refused");
                }
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.on_progress(id, result, step.last);
            }
            _ => {}
        }
    }

    fn on_progress(&mut self, id: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.on_found(id, providers.into_iter().collect());
            }
            QueryResult::GetClosestPeers(closest) => {
                let (Ok(GetClosestPeersOk { peers, .. })
                | Err(GetClosestPeersError::Timeout { peers, .. })) = closest;
                let now = unix_millis();
                for info in peers {
                    let addresses: Vec<_> =
                        info.addrs.into_iter().map(address::without_peer).collect();
                    self.book.hear(info.peer_id, &addresses, now);
                }
                if last && let Some(peer) = self.lookups.locating.remove(&id) {
                    self.on_located(peer);
                }
            }
            _ => {}
        }
        if last {
            self.lookups.finds.remove(&id);
            if self.lookups.around == Some(id) {
                self.lookups.around = None;
                self.meet_heard();
            }
            if self.lookups.announcing.remove(&id) {
                self.announce_waiting();
            }
        }
    }

    fn on_found(&mut self, id: QueryId, providers: Vec<PeerId>) {
        // The DHT forgets where providers are when the lookup ends: those that nothing else knows
        // are dialled while it lasts.
        let unknown =
            |peer: &&PeerId| !self.swarm.is_connected(peer) && self.book.addresses(peer).is_empty();
        let unknown: Vec<_> =
            providers.iter().filter(unknown).take(PROVIDERS_DIALLED_MAX).copied().collect();
        for peer in unknown {
            if let Err(error) = self.swarm.dial(DialOpts::peer_id(peer).build()) {
                tracing::debug!(%peer, %error, "a provider is not dialled");
            }
        }
        if let Some(found) = self.lookups.finds.get(&id) {
            // A lookup that nobody waits for is ended by `drop_abandoned`.
            let _ = found.try_send(providers);
        }
    }
}
