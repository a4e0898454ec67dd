//! The machine itself: one door in, one list of things to do out.
//!
//! After every event three things hold: nothing expired is in the directory, nothing unverified
//! is anywhere, and memory is within [`Limits`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    advert::{AdvertRejected, SignedAdvert},
    id::{InstanceId, NetworkName, NodeKey, PeerId},
    limits::{ADVERTS_KEPT_MAX, ADVERTS_PER_PEER_MAX},
    service::ServiceName,
};
use serde_bytes::ByteBuf;

use crate::{
    directory::Directory,
    event::{Effect, Event, FetchId, LookupId, Token, Verdict},
    keyspace::{SHARD, provider_key},
    lookup::{Lookups, PROVIDERS_ASKED_MAX},
    offers::Offers,
    strikes::Strikes,
    sync::{Fetches, Purpose},
    trust::{Accepted, RENEWALS_SHOWN_MILLIS, Table},
    wire::{Cursor, PAGE_ADVERTS_MAX, Reply, Request, Scope},
};

/// Requests that one peer may make at once: a whole table, page by page, and some.
const ASKS_BURST: u64 = 128;

/// Requests of one peer per second after that.
const ASKS_PER_SECOND: u64 = 32;

/// Peers whose requests are counted. Connections are bounded far lower.
const ASKERS_MAX: usize = 1_024;

/// How much is remembered. Whatever strangers send, no more is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Adverts of other peers.
    pub adverts_max: usize,
    /// Adverts of any one peer, this one included.
    pub adverts_per_peer_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { adverts_max: ADVERTS_KEPT_MAX, adverts_per_peer_max: ADVERTS_PER_PEER_MAX }
    }
}

/// What a registry is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Signs this node's adverts, and names it.
    pub key: NodeKey,
    /// Which network.
    pub network: NetworkName,
    /// When this node started, in Unix milliseconds; must be later than at every earlier start
    /// with the same key.
    pub boot: u64,
    /// Any number, different on every node: spreads what they do in time.
    pub chance: u64,
    /// How much is remembered.
    pub limits: Limits,
}

/// How much is in a registry now, for gauges and for tests of its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Adverts of other peers, withdrawals included.
    pub adverts: usize,
    /// Peers they are of.
    pub peers: usize,
    /// Peers connected.
    pub connections: usize,
    /// Peers that lied lately.
    pub liars: usize,
    /// Lookups under way.
    pub lookups: usize,
    /// Services remembered as absent.
    pub absent: usize,
    /// Requests under way.
    pub fetches: usize,
    /// Peers whose requests are counted.
    pub askers: usize,
}

struct Asker {
    tokens: u64,
    since: u64,
}

/// Who offers what on the mesh, as this node knows it.
pub struct Registry {
    network: NetworkName,
    table: Table,
    offers: Offers,
    lookups: Lookups,
    fetches: Fetches,
    strikes: Strikes,
    askers: BTreeMap<PeerId, Asker>,
    directory: Arc<Directory>,
    /// Services that `directory` shows as they were.
    stale: BTreeSet<ServiceName>,
    /// Something happened that the directory's readers must know at once.
    news: bool,
    /// Since when there are renewals that the directory does not show.
    renewed_since: Option<u64>,
    /// The latest time seen, for noticing that the clock was set back.
    latest: u64,
}

impl Registry {
    /// A registry that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let Settings { key, network, boot, chance, limits } = settings;
        let own_max = limits.adverts_per_peer_max;
        let offers = Offers::new(key, network.clone(), boot, chance, own_max);
        Self {
            table: Table::new(offers.local(), limits),
            network,
            offers,
            lookups: Lookups::default(),
            fetches: Fetches::new(),
            strikes: Strikes::default(),
            askers: BTreeMap::new(),
            directory: Arc::default(),
            stale: BTreeSet::new(),
            news: false,
            renewed_since: None,
            latest: boot,
        }
    }

    /// Takes in what happened at `now` (Unix milliseconds) and says what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if now < self.latest {
            self.offers.set_back(now, self.latest - now);
            self.fetches.set_back(now);
            self.renewed_since = self.renewed_since.map(|since| since.min(now));
        }
        self.latest = now;
        self.news |= self.table.expire(now);
        self.apply(event, now, &mut effects);
        self.offers.tick(now, &mut effects);
        for fetch in self.fetches.overdue(now) {
            self.fetch_failed(&fetch, now, &mut effects);
        }
        self.fetches.tick(now, &mut effects);
        self.settle(now, &mut effects);
        self.lookups.tick(now, &mut effects);
        effects
    }

    /// Who offers what, now. Cheap when nothing changed.
    pub fn directory(&mut self) -> Arc<Directory> {
        if !self.stale.is_empty() {
            let directory = Arc::make_mut(&mut self.directory);
            for service in std::mem::take(&mut self.stale) {
                let entries = self.offers.entries(&service).chain(self.table.entries(&service));
                let entries = entries.collect();
                directory.replace(service, entries);
            }
        }
        self.renewed_since = None;
        Arc::clone(&self.directory)
    }

    /// When [`Event::Tick`] is next due, in Unix milliseconds.
    pub fn next_timer(&self) -> Option<u64> {
        let shown = self.renewed_since.map(|since| since.saturating_add(RENEWALS_SHOWN_MILLIS));
        let timers = [
            shown,
            self.table.next_timer(),
            self.offers.next_timer(),
            self.fetches.next_timer(),
            self.lookups.next_timer(),
        ];
        timers.into_iter().flatten().min()
    }

    /// How much is remembered now.
    pub fn census(&self) -> Census {
        let (lookups, absent) = self.lookups.len();
        Census {
            adverts: self.table.len(),
            peers: self.table.providers(),
            connections: self.table.connections().len(),
            liars: self.strikes.len(),
            lookups,
            absent,
            fetches: self.fetches.len(),
            askers: self.askers.len(),
        }
    }

    fn apply(&mut self, event: Event, now: u64, effects: &mut Vec<Effect>) {
        match event {
            Event::Offered(offer) => {
                let instance = offer.instance;
                match self.offers.offer(offer, now, effects) {
                    Ok(()) => self.news = true,
                    Err(reason) => effects.push(Effect::OfferRefused { instance, reason }),
                }
            }
            Event::Withdrawn(instance) => self.withdrawn(instance, now, effects),
            Event::Leaving => {
                self.news = true;
                self.offers.withdraw_all(now, effects);
            }
            Event::Load(load) => self.offers.set_load(load, now),
            Event::PeerConnected(peer) => self.connected(peer, now),
            Event::PeerDisconnected { peer, abrupt } => self.disconnected(peer, abrupt, now),
            Event::Gossip { from, data, token } => {
                let verdict = self.gossip(&data, from, now, effects);
                effects.push(Effect::Verdict { token, verdict });
            }
            Event::Unpublished => self.offers.unheard(now),
            Event::Requested { peer, data, token } => {
                effects.push(self.answer(peer, &data, token, now));
            }
            Event::Replied { fetch, reply } => self.replied(fetch, reply, now, effects),
            Event::LookupRequested { id, service } => self.lookup(id, service, now, effects),
            Event::ProvidersFound { service, peers } => {
                self.providers_found(&service, &peers, now, effects);
            }
            Event::Tick => {}
        }
    }

    fn withdrawn(&mut self, instance: InstanceId, now: u64, effects: &mut Vec<Effect>) {
        self.news = true;
        self.offers.withdraw(instance, now, effects);
    }

    fn connected(&mut self, peer: PeerId, now: u64) {
        let first = self.table.connections().is_empty();
        let returned = self.table.connected(peer);
        self.news |= returned;
        self.fetches.connected(peer, now);
        if first {
            self.offers.joined(now);
        } else if returned {
            self.offers.announce_all(now);
        }
    }

    fn disconnected(&mut self, peer: PeerId, abrupt: bool, now: u64) {
        self.news |= self.table.disconnected(peer, abrupt, now);
        self.fetches.disconnected(peer);
        self.askers.remove(&peer);
        if self.table.connections().is_empty() {
            self.offers.left_alone();
            self.fetches.left_alone();
        } else if abrupt {
            self.offers.provide_soon(now);
        }
    }

    fn gossip(
        &mut self,
        data: &[u8],
        from: PeerId,
        now: u64,
        effects: &mut Vec<Effect>,
    ) -> Verdict {
        if self.strikes.is_penalised(from, now) {
            return Verdict::Ignore;
        }
        match self.take(data, from, now) {
            Ok(Accepted::New | Accepted::Renewed) => Verdict::Accept,
            Err(rejected) if rejected.is_hostile() => {
                self.strike(from, now, effects);
                Verdict::Reject
            }
            Ok(Accepted::Stale | Accepted::Own | Accepted::NoRoom) | Err(_) => Verdict::Ignore,
        }
    }

    /// Checks an advert and takes it in.
    fn take(&mut self, data: &[u8], from: PeerId, now: u64) -> Result<Accepted, AdvertRejected> {
        let signed = SignedAdvert::decode(data)?;
        let claims = signed.claims();
        let key = (claims.peer, claims.instance, claims.part);
        if self.table.holds(&key, data) {
            return Ok(Accepted::Stale);
        }
        let verified = signed.verify(&self.network, now)?;
        let accepted = self.table.accept(verified, from, now);
        self.news |= accepted == Accepted::New;
        Ok(accepted)
    }

    fn strike(&mut self, peer: PeerId, now: u64, effects: &mut Vec<Effect>) {
        if self.strikes.strike(peer, now) {
            effects.push(Effect::Penalise(peer));
        }
    }

    fn answer(&mut self, peer: PeerId, data: &[u8], token: Token, now: u64) -> Effect {
        if self.strikes.is_penalised(peer, now) || !self.may_ask(peer, now) {
            return Effect::Answer { token, reply: Reply::Busy.encode() };
        }
        let reply = match Request::decode(data) {
            Ok(Request::GetDescriptors { service }) => return Effect::Describe { token, service },
            Ok(Request::GetAdverts { scope, service, cursor }) => {
                self.page(scope, service.as_ref(), cursor.as_ref(), now)
            }
            Err(_) => Reply::NotUnderstood,
        };
        Effect::Answer { token, reply: reply.encode() }
    }

    /// One page: own adverts first, then those of others.
    fn page(
        &self,
        scope: Scope,
        service: Option<&ServiceName>,
        cursor: Option<&Cursor>,
        now: u64,
    ) -> Reply {
        let after = match cursor.map(Cursor::key) {
            None => None,
            Some(Some(after)) => Some(after),
            Some(None) => return Reply::NotUnderstood,
        };
        let local = self.offers.local();
        let own_after = match after {
            None => Some(None),
            Some(((_, instance, part), true)) => Some(Some((instance, part))),
            Some((_, false)) => None,
        };
        let own = own_after.into_iter().flat_map(|after| self.offers.after(after));
        let own = own.map(|((instance, part), signed)| {
            ((local, instance, part), true, signed.bytes(), signed.claims())
        });
        let others_after = after.filter(|(_, own)| !own).map(|(key, _)| key);
        let others = (scope == Scope::All).then(|| self.table.after(others_after));
        let others = others.into_iter().flatten();
        let others = others.map(|(key, held)| (key, false, held.bytes(), held.advert()));
        let wanted = own.chain(others).filter(|(_, _, _, advert)| {
            advert.expires > now
                && service.is_none_or(|name| advert.services.iter().any(|one| one.name == *name))
        });
        let mut adverts = Vec::new();
        let mut next = None;
        for (key, own, bytes, _) in wanted {
            if adverts.len() == PAGE_ADVERTS_MAX {
                return Reply::Adverts { adverts, next };
            }
            adverts.push(ByteBuf::from(bytes.to_vec()));
            next = Some(Cursor::after(key, own));
        }
        Reply::Adverts { adverts, next: None }
    }

    fn may_ask(&mut self, peer: PeerId, now: u64) -> bool {
        if !self.askers.contains_key(&peer) && self.askers.len() >= ASKERS_MAX {
            let connected = self.table.connections();
            self.askers.retain(|asker, _| connected.contains(asker));
            if self.askers.len() >= ASKERS_MAX {
                return false;
            }
        }
        let asker = self.askers.entry(peer).or_insert(Asker { tokens: ASKS_BURST, since: now });
        let earned = now.saturating_sub(asker.since).saturating_mul(ASKS_PER_SECOND) / 1_000;
        if earned > 0 {
            asker.tokens = asker.tokens.saturating_add(earned).min(ASKS_BURST);
            asker.since = now;
        }
        let may = asker.tokens > 0;
        asker.tokens = asker.tokens.saturating_sub(1);
        may
    }

    fn replied(
        &mut self,
        id: FetchId,
        reply: Option<Vec<u8>>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(fetch) = self.fetches.ended(id) else {
            return;
        };
        let reply = reply.map(|bytes| Reply::decode(&bytes));
        let Some(Ok(Reply::Adverts { adverts, next })) = reply else {
            if matches!(reply, Some(Err(_))) {
                self.strike(fetch.peer, now, effects);
            }
            self.fetch_failed(&fetch, now, effects);
            return;
        };
        for advert in adverts {
            if self.strikes.is_penalised(fetch.peer, now) {
                break;
            }
            let taken = self.take(&advert, fetch.peer, now);
            if taken.is_err_and(|rejected| rejected.is_hostile()) {
                self.strike(fetch.peer, now, effects);
            }
        }
        let on = !self.strikes.is_penalised(fetch.peer, now);
        let more = next
            .filter(|_| on)
            .is_some_and(|cursor| self.fetches.go_on(&fetch, cursor, now, effects));
        if !more {
            self.fetches.done(&fetch, true, now);
            self.settle(now, effects);
            self.lookup_answered(&fetch.purpose, now, effects);
        }
    }

    fn fetch_failed(&mut self, fetch: &crate::sync::Fetch, now: u64, effects: &mut Vec<Effect>) {
        self.fetches.done(fetch, false, now);
        self.lookup_answered(&fetch.purpose, now, effects);
    }

    fn lookup_answered(&mut self, purpose: &Purpose, now: u64, effects: &mut Vec<Effect>) {
        if let Purpose::Lookup(service) = purpose {
            self.lookups.answered(service, now, effects);
        }
    }

    fn lookup(&mut self, id: LookupId, service: ServiceName, now: u64, effects: &mut Vec<Effect>) {
        if self.knows(&service) {
            effects.push(Effect::LookupDone { id, found: true });
        } else if self.lookups.request(id, &service, now, effects) {
            let key = provider_key(&self.network, &service, SHARD);
            effects.push(Effect::FindProviders { service, key });
        }
    }

    fn providers_found(
        &mut self,
        service: &ServiceName,
        peers: &[PeerId],
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.lookups.awaits_providers(service) {
            return;
        }
        let local = self.offers.local();
        let peers: BTreeSet<PeerId> = peers
            .iter()
            .copied()
            .filter(|peer| *peer != local && !self.strikes.is_penalised(*peer, now))
            .take(PROVIDERS_ASKED_MAX)
            .collect();
        for peer in &peers {
            self.fetches.ask_provider(*peer, service.clone(), now, effects);
        }
        self.lookups.asked(service, peers.len(), now, effects);
    }

    fn knows(&self, service: &ServiceName) -> bool {
        self.offers.entries(service).next().is_some()
            || self.table.entries(service).next().is_some()
    }

    /// Tells the directory's readers and the lookups what changed.
    fn settle(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let mut touched = self.table.take_touched();
        touched.append(&mut self.offers.take_touched());
        let mut appeared = Vec::new();
        for service in &touched {
            if self.knows(service) {
                self.lookups.appeared(service, &mut appeared);
            }
        }
        if !touched.is_empty() {
            self.renewed_since.get_or_insert(now);
            self.stale.append(&mut touched);
        }
        let since = self.renewed_since;
        let shown = since.is_some_and(|since| now >= since.saturating_add(RENEWALS_SHOWN_MILLIS));
        if std::mem::take(&mut self.news) || shown {
            self.renewed_since = None;
            effects.push(Effect::DirectoryChanged);
        }
        // Whoever waited looks into the directory next, so it has to be told after the change.
        effects.append(&mut appeared);
    }
}

#[cfg(test)]
mod tests;
