//! What is believed of other peers: the newest advert of each instance, and no more of them than
//! there is room for.
//!
//! Owns replay protection, expiry, suspicion and the memory bounds. Three rules make a replay
//! harmless. Of each (peer, boot, instance, part) only a higher sequence number replaces what is
//! held. A newer boot of a peer ends everything of older ones. A withdrawal stays, as a tombstone,
//! until it expires: everything it withdraws was issued before it, and so expires before it.
//!
//! When there is no room, peers this node is connected to come before strangers, a stranger's
//! advert gives way to another only at the neighbour's expense who brought most of them, and a
//! connected peer's only where another holds more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    advert::{Advert, VerifiedAdvert},
    id::{InstanceId, PeerId},
    service::ServiceName,
};

use crate::{directory::Entry, registry::Limits};

/// How long a peer that was lost stays listed, as suspect, when nothing is heard of it, in
/// milliseconds: two renewals missed, and half of one more.
pub(crate) const SUSPECT_MILLIS: u64 = 25_000;

/// How late a mere renewal may show in the directory, in milliseconds. Renewals come by the
/// hundred, and change nothing but the end of a lease.
pub(crate) const RENEWALS_SHOWN_MILLIS: u64 = 5_000;

/// A change of load that callers should know of at once, in percent points.
pub(crate) const LOAD_STEP: u8 = 20;

/// Which advert: a newer one with the same key replaces it.
pub(crate) type Key = (PeerId, InstanceId, u16);

/// What became of an advert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It says something new.
    New,
    /// It says the same for longer.
    Renewed,
    /// It, or a newer one, is known.
    Stale,
    /// It is this node's own.
    Own,
    /// There is no room for it.
    NoRoom,
}

struct Held {
    verified: VerifiedAdvert,
    brought_by: PeerId,
}

impl Held {
    fn advert(&self) -> &Arc<Advert> {
        self.verified.advert()
    }
}

struct Provider {
    boot: u64,
    adverts: usize,
    lost_at: Option<u64>,
}

/// All adverts of other peers.
pub(crate) struct Table {
    local: PeerId,
    limits: Limits,
    held: BTreeMap<Key, Held>,
    /// Exactly the peers with something in `held`.
    providers: BTreeMap<PeerId, Provider>,
    by_service: BTreeMap<ServiceName, BTreeSet<Key>>,
    endings: BTreeSet<(u64, Key)>,
    /// Adverts of peers that are not connected, by the neighbour who brought them.
    strangers: BTreeMap<PeerId, BTreeSet<(u64, Key)>>,
    connected: BTreeSet<PeerId>,
    /// Lost peers whose entries are still shown, and since when.
    suspects: BTreeMap<PeerId, u64>,
    touched: BTreeSet<ServiceName>,
}

impl Table {
    pub(crate) fn new(local: PeerId, limits: Limits) -> Self {
        Self {
            local,
            limits,
            held: BTreeMap::new(),
            providers: BTreeMap::new(),
            by_service: BTreeMap::new(),
            endings: BTreeSet::new(),
            strangers: BTreeMap::new(),
            connected: BTreeSet::new(),
            suspects: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// True where exactly these bytes are held, so that they need not be verified again.
    pub(crate) fn holds(&self, key: &Key, bytes: &[u8]) -> bool {
        self.held.get(key).is_some_and(|held| held.verified.bytes() == bytes)
    }

    /// Takes an advert in, if it is newer than what is held and there is room.
    pub(crate) fn accept(
        &mut self,
        verified: VerifiedAdvert,
        brought_by: PeerId,
        now: u64,
    ) -> Accepted {
        let advert = Arc::clone(verified.advert());
        if advert.peer == self.local {
            return Accepted::Own;
        }
        let key = (advert.peer, advert.instance, advert.part);
        let boot = self.providers.get(&advert.peer).map(|provider| provider.boot);
        if boot.is_some_and(|boot| advert.boot < boot) {
            return Accepted::Stale;
        }
        let was_lost = self.providers.get(&advert.peer).is_some_and(|one| one.lost_at.is_some());
        if boot.is_some_and(|boot| advert.boot > boot) {
            self.forget_peer(advert.peer);
        }
        let mut accepted = Accepted::New;
        if let Some(held) = self.held.get(&key) {
            if advert.seq <= held.advert().seq {
                return Accepted::Stale;
            }
            // A renewal at the last moment must show before the lease that readers see is over.
            let in_time = held.advert().expires > now + RENEWALS_SHOWN_MILLIS;
            if in_time && !was_lost && says_the_same(held.advert(), &advert) {
                accepted = Accepted::Renewed;
            }
            self.remove(&key);
        } else if !self.make_room(advert.peer, brought_by) {
            return Accepted::NoRoom;
        }
        self.insert(key, Held { verified, brought_by });
        self.hear_of(advert.peer);
        accepted
    }

    /// Ends what is over. True where a listed provider was among it.
    pub(crate) fn expire(&mut self, now: u64) -> bool {
        let mut listed = false;
        while let Some((_, key)) = self.endings.first().filter(|(ends, _)| *ends <= now).copied() {
            listed |= self.remove(&key);
        }
        let over: Vec<PeerId> = self
            .suspects
            .iter()
            .filter(|(_, since)| now >= since.saturating_add(SUSPECT_MILLIS))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in over {
            self.suspects.remove(&peer);
            self.touch_peer(peer);
            listed = true;
        }
        listed
    }

    /// When [`Table::expire`] next has something to do.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        let ending = self.endings.first().map(|(ends, _)| *ends);
        let hiding = self.suspects.values().min().map(|since| since.saturating_add(SUSPECT_MILLIS));
        [ending, hiding].into_iter().flatten().min()
    }

    /// A connection to `peer` stands. True where that clears it of suspicion.
    pub(crate) fn connected(&mut self, peer: PeerId) -> bool {
        self.unindex_strangers(peer);
        self.connected.insert(peer);
        self.hear_of(peer)
    }

    /// The connection to `peer` ended. True where that makes listed providers suspect.
    pub(crate) fn disconnected(&mut self, peer: PeerId, abrupt: bool, now: u64) -> bool {
        self.connected.remove(&peer);
        for key in self.keys_of(peer) {
            self.index_stranger(&key);
        }
        let Some(provider) = self.providers.get_mut(&peer).filter(|_| abrupt) else {
            return false;
        };
        provider.lost_at = Some(now);
        self.suspects.insert(peer, now);
        self.touch_peer(peer);
        true
    }

    /// Peers this node is connected to.
    pub(crate) fn connections(&self) -> &BTreeSet<PeerId> {
        &self.connected
    }

    /// Services whose entries may have changed since this was last called.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.touched)
    }

    /// The providers of `service` as the directory shows them.
    pub(crate) fn entries(&self, service: &ServiceName) -> impl Iterator<Item = Entry> {
        let keys = self.by_service.get(service).into_iter().flatten();
        keys.filter_map(move |key| {
            let suspect = match self.providers[&key.0].lost_at {
                None => false,
                Some(_) if self.suspects.contains_key(&key.0) => true,
                Some(_) => return None,
            };
            let advert = self.held[key].advert();
            let offer = advert.services.iter().find(|offer| offer.name == *service)?;
            Some(Entry {
                peer: advert.peer,
                instance: advert.instance,
                schema: offer.schema,
                local: false,
                suspect,
                advert: Arc::clone(advert),
            })
        })
    }

    /// Adverts after `after` in key order, to hand on: those of lost peers are not.
    pub(crate) fn after(&self, after: Option<Key>) -> impl Iterator<Item = (Key, &VerifiedAdvert)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let held = self.held.range((from, std::ops::Bound::Unbounded));
        held.filter(|(key, _)| self.providers[&key.0].lost_at.is_none())
            .map(|(key, held)| (*key, &held.verified))
    }

    /// How many adverts are held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// How many peers have an advert here.
    pub(crate) fn providers(&self) -> usize {
        self.providers.len()
    }

    /// Something newer was heard of `peer`. True where that clears it of suspicion.
    fn hear_of(&mut self, peer: PeerId) -> bool {
        let Some(provider) = self.providers.get_mut(&peer) else {
            return false;
        };
        let was_lost = provider.lost_at.take().is_some();
        if was_lost {
            self.suspects.remove(&peer);
            self.touch_peer(peer);
        }
        was_lost
    }

    fn insert(&mut self, key: Key, held: Held) {
        let advert = Arc::clone(held.advert());
        for offer in &advert.services {
            self.by_service.entry(offer.name.clone()).or_default().insert(key);
            self.touched.insert(offer.name.clone());
        }
        self.endings.insert((advert.expires, key));
        self.held.insert(key, held);
        let fresh = Provider { boot: advert.boot, adverts: 0, lost_at: None };
        self.providers.entry(key.0).or_insert(fresh).adverts += 1;
        if !self.connected.contains(&key.0) {
            self.index_stranger(&key);
        }
    }

    /// True where a directory listed it.
    fn remove(&mut self, key: &Key) -> bool {
        let Some(held) = self.held.remove(key) else {
            return false;
        };
        let advert = held.advert();
        for offer in &advert.services {
            if let Some(keys) = self.by_service.get_mut(&offer.name) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_service.remove(&offer.name);
                }
            }
            self.touched.insert(offer.name.clone());
        }
        let ending = (advert.expires, *key);
        self.endings.remove(&ending);
        if let Some(brought) = self.strangers.get_mut(&held.brought_by) {
            brought.remove(&ending);
            if brought.is_empty() {
                self.strangers.remove(&held.brought_by);
            }
        }
        let provider = self.providers.get_mut(&key.0).expect("held adverts have a provider");
        provider.adverts -= 1;
        if provider.adverts == 0 {
            self.providers.remove(&key.0);
            self.suspects.remove(&key.0);
        }
        !advert.withdrawn
    }

    fn forget_peer(&mut self, peer: PeerId) {
        for key in self.keys_of(peer) {
            self.remove(&key);
        }
    }

    fn keys_of(&self, peer: PeerId) -> Vec<Key> {
        let all = (peer, InstanceId(0), 0)..=(peer, InstanceId(u64::MAX), u16::MAX);
        self.held.range(all).map(|(key, _)| *key).collect()
    }

    fn touch_peer(&mut self, peer: PeerId) {
        for key in self.keys_of(peer) {
            let services = self.held[&key].advert().services.iter();
            self.touched.extend(services.map(|offer| offer.name.clone()));
        }
    }

    fn index_stranger(&mut self, key: &Key) {
        let held = &self.held[key];
        let ending = (held.advert().expires, *key);
        self.strangers.entry(held.brought_by).or_default().insert(ending);
    }

    fn unindex_strangers(&mut self, peer: PeerId) {
        for key in self.keys_of(peer) {
            let held = &self.held[&key];
            if let Some(brought) = self.strangers.get_mut(&held.brought_by) {
                brought.remove(&(held.advert().expires, key));
            }
        }
        self.strangers.retain(|_, brought| !brought.is_empty());
    }

    /// Makes room for one more advert of `peer`, brought by a neighbour. False where nobody has
    /// to give way.
    fn make_room(&mut self, peer: PeerId, brought_by: PeerId) -> bool {
        let own = self.providers.get(&peer).map_or(0, |provider| provider.adverts);
        if own >= self.limits.adverts_per_peer_max {
            return false;
        }
        if self.held.len() < self.limits.adverts_max {
            return true;
        }
        let known = self.connected.contains(&peer);
        let brought = self.strangers.get(&brought_by).map_or(0, BTreeSet::len);
        let greediest = self.strangers.values().max_by_key(|endings| endings.len());
        let victim = greediest
            .filter(|endings| known || endings.len() > brought + 1)
            .and_then(|endings| endings.first())
            .map(|(_, key)| *key);
        let victim = victim.or_else(|| {
            let greediest = self.providers.iter().max_by_key(|(_, provider)| provider.adverts);
            let (&rich, _) = greediest.filter(|(_, rich)| known && rich.adverts > own + 1)?;
            self.keys_of(rich).first().copied()
        });
        victim.is_some_and(|key| {
            self.remove(&key);
            true
        })
    }
}

/// Whether `new` only prolongs `old`, or moves its load too little to matter.
fn says_the_same(old: &Advert, new: &Advert) -> bool {
    old.withdrawn == new.withdrawn
        && old.services == new.services
        && old.plugin == new.plugin
        && old.version == new.version
        && old.labels == new.labels
        && old.isolation == new.isolation
        && old.price == new.price
        && old.load.abs_diff(new.load) < LOAD_STEP
}
