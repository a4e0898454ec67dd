//! What this node offers: cutting offers into adverts, signing, renewing, withdrawing, and being
//! found in the DHT.
//!
//! Every advert is signed anew each time it is said, so that no two messages are alike and each is
//! newer than all before it. A part that is gone leaves its withdrawal behind until everything it
//! withdraws has expired everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    advert::{Advert, ServiceOffer, SignedAdvert},
    id::{InstanceId, NetworkName, NodeKey, PeerId},
    limits::{
        ADVERT_REFRESH_MILLIS, ADVERT_SERVICES_MAX, ADVERT_TTL_MILLIS, CLOCK_SKEW_MILLIS_MAX,
    },
    service::ServiceName,
};
use semver::Version;

use crate::{
    directory::Entry,
    event::{Effect, Offer, OfferRefused},
    keyspace::{SHARD, provider_key},
    lease::{
        Chance, PROVIDE_AGAIN_MILLIS_MAX, provide_again_after, refresh_after, withdraw_again_after,
    },
    trust::LOAD_STEP,
};

/// Adverts of one instance. With one service in each at worst, and up to
/// [`ADVERT_SERVICES_MAX`] at best, no plugin met so far needs more than two.
const PARTS_MAX: u16 = 64;

/// The first pause after a publication that nobody heard, in milliseconds; doubled up to the
/// refresh interval. A new connection has its gossip subscriptions a moment after it stands.
const UNHEARD_MILLIS_MIN: u64 = 500;

/// Everything is announced again when a lost peer returns, but not more often than this, in
/// milliseconds.
const ANNOUNCE_ALL_MILLIS_MIN: u64 = 2_000;

/// The withdrawal a node signs of nothing, when it starts: it tells all who remember an earlier
/// run of it that this run has begun.
const BOOT_MARK: PartId = (InstanceId(0), u16::MAX);

/// Which advert of this node.
pub(crate) type PartId = (InstanceId, u16);

struct Part {
    signed: SignedAdvert,
    /// When it is said again.
    due: u64,
    /// For a withdrawal: how often it was said again, and when it is no longer needed.
    gone: Option<Gone>,
}

struct Gone {
    repeats: u32,
    over: u64,
}

struct Provided {
    /// How often it was provided again.
    repeats: u32,
    due: u64,
}

/// All offers of this node.
pub(crate) struct Offers {
    key: NodeKey,
    local: PeerId,
    network: NetworkName,
    boot: u64,
    adverts_max: usize,
    chance: Chance,
    seq: u64,
    issued_last: u64,
    load: u8,
    load_said: u8,
    parts: BTreeMap<PartId, Part>,
    /// No part is due before: with a thousand plugins, looking through them all is not for every
    /// event.
    parts_due: u64,
    provided: BTreeMap<ServiceName, Provided>,
    /// No peer is connected: publishing would reach nobody.
    alone: bool,
    unheard_pause: u64,
    unheard_due: Option<u64>,
    announced_all: u64,
    touched: BTreeSet<ServiceName>,
}

impl Offers {
    pub(crate) fn new(
        key: NodeKey,
        network: NetworkName,
        boot: u64,
        chance: u64,
        adverts_max: usize,
    ) -> Self {
        let mut offers = Self {
            local: key.peer_id(),
            key,
            network,
            boot,
            adverts_max,
            chance: Chance::new(chance),
            seq: 0,
            issued_last: boot,
            load: 0,
            load_said: 0,
            parts: BTreeMap::new(),
            parts_due: boot,
            provided: BTreeMap::new(),
            alone: true,
            unheard_pause: UNHEARD_MILLIS_MIN,
            unheard_due: None,
            announced_all: 0,
            touched: BTreeSet::new(),
        };
        let mark = offers.blank(BOOT_MARK, boot);
        let signed = offers.sign(Advert { withdrawn: true, ..mark }, boot);
        let gone = Some(Gone { repeats: 0, over: boot.saturating_add(ADVERT_TTL_MILLIS) });
        offers.parts.insert(BOOT_MARK, Part { signed, due: boot, gone });
        offers
    }

    pub(crate) fn local(&self) -> PeerId {
        self.local
    }

    /// Begins, or replaces, an offer.
    pub(crate) fn offer(
        &mut self,
        offer: Offer,
        now: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OfferRefused> {
        let instance = offer.instance;
        let adverts = self.cut(offer)?;
        let others = self.parts.keys().filter(|(other, _)| *other != instance).count();
        if others + adverts.len() > self.adverts_max {
            return Err(OfferRefused::Full { adverts: others });
        }
        let kept = adverts.len();
        self.withdraw_where(now, effects, |(other, part)| {
            other == instance && usize::from(part) >= kept
        });
        for advert in adverts {
            let id = (advert.instance, advert.part);
            let before = self.parts.get(&id).map(|part| services_of(&part.signed));
            let signed = self.sign(advert, now);
            let after = services_of(&signed);
            self.touched.extend(before.iter().flatten().chain(&after).cloned());
            let due = now + refresh_after(self.chance.draw());
            self.say(&signed, effects);
            self.put(id, Part { signed, due, gone: None });
        }
        self.provide_what_is_offered(now, effects);
        Ok(())
    }

    /// Ends one offer.
    pub(crate) fn withdraw(&mut self, instance: InstanceId, now: u64, effects: &mut Vec<Effect>) {
        self.withdraw_where(now, effects, |(other, _)| other == instance);
        self.provide_what_is_offered(now, effects);
    }

    /// Ends all offers.
    pub(crate) fn withdraw_all(&mut self, now: u64, effects: &mut Vec<Effect>) {
        self.withdraw_where(now, effects, |_| true);
        self.provide_what_is_offered(now, effects);
    }

    /// Notes how busy this node is, and says so soon where it matters.
    pub(crate) fn set_load(&mut self, load: u8, now: u64) {
        self.load = load.min(100);
        if self.load.abs_diff(self.load_said) >= LOAD_STEP {
            self.load_said = self.load;
            self.say_all_by(now);
        }
    }

    /// The first connection after none: nobody heard what was said until now.
    pub(crate) fn joined(&mut self, now: u64) {
        self.alone = false;
        self.unheard_pause = UNHEARD_MILLIS_MIN;
        self.announce_all(now);
        for provided in self.provided.values_mut() {
            provided.repeats = 0;
            provided.due = now + provide_again_after(0, self.chance.draw());
        }
    }

    /// The last connection ended.
    pub(crate) fn left_alone(&mut self) {
        self.alone = true;
        self.announced_all = 0;
    }

    /// A lost peer is back, and perhaps others behind it.
    pub(crate) fn announce_all(&mut self, now: u64) {
        let next = self.announced_all.saturating_add(ANNOUNCE_ALL_MILLIS_MIN);
        let at = now.max(next);
        self.announced_all = at;
        self.say_all_by(at);
    }

    /// A DHT node may be lost, and records with it.
    pub(crate) fn provide_soon(&mut self, now: u64) {
        for provided in self.provided.values_mut() {
            let soon = now + 10_000 + self.chance.draw() % 20_000;
            provided.due = provided.due.min(soon);
        }
    }

    /// What was published reached nobody.
    pub(crate) fn unheard(&mut self, now: u64) {
        if self.unheard_due.is_none() && !self.alone {
            self.unheard_due = Some(now + self.unheard_pause);
            self.unheard_pause = (self.unheard_pause * 2).min(ADVERT_REFRESH_MILLIS);
        }
    }

    /// The clock was set back: what was due at some time is due now. After a step so far that
    /// nobody else can have believed the time before it, this run begins anew.
    pub(crate) fn set_back(&mut self, now: u64, by: u64) {
        if by > CLOCK_SKEW_MILLIS_MAX {
            self.boot = now;
            self.issued_last = now;
        }
        self.announced_all = self.announced_all.min(now);
        self.unheard_due = self.unheard_due.map(|due| due.min(now));
        for provided in self.provided.values_mut() {
            provided.due = provided.due.min(now + PROVIDE_AGAIN_MILLIS_MAX);
        }
        self.parts_due = now;
        for part in self.parts.values_mut() {
            part.due = now;
            if let Some(gone) = &mut part.gone {
                gone.over = gone.over.min(now + ADVERT_TTL_MILLIS);
            }
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if self.unheard_due.is_some_and(|due| due <= now) {
            self.unheard_due = None;
            self.say_all_by(now);
        }
        if self.parts_due <= now {
            let due = self.parts.iter().filter(|(_, part)| part.due <= now);
            for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.say_again(id, now, effects);
            }
            self.parts_due = self.parts.values().map(|part| part.due).min().unwrap_or(u64::MAX);
        }
        for (service, provided) in &mut self.provided {
            if provided.due <= now {
                provided.repeats = provided.repeats.saturating_add(1);
                let pause = provide_again_after(provided.repeats, self.chance.draw());
                provided.due = now + pause;
                effects.push(Effect::Provide(provider_key(&self.network, service, SHARD)));
            }
        }
    }

    /// When [`Offers::tick`] next has something to do, or to look for.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        let parts = (!self.parts.is_empty()).then_some(self.parts_due).into_iter();
        parts.chain(self.provided.values().map(|one| one.due)).chain(self.unheard_due).min()
    }

    /// Services whose entries may have changed since this was last called.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.touched)
    }

    /// This node's entries for `service`.
    pub(crate) fn entries(&self, service: &ServiceName) -> impl Iterator<Item = Entry> {
        self.parts.values().filter_map(move |part| {
            let claims = part.signed.claims();
            let offer = claims.services.iter().find(|offer| offer.name == *service)?;
            Some(Entry {
                peer: self.local,
                instance: claims.instance,
                schema: offer.schema,
                local: true,
                suspect: false,
                advert: Arc::clone(part.signed.claims()),
            })
        })
    }

    /// This node's adverts after `after`, withdrawals included, to hand out.
    pub(crate) fn after(
        &self,
        after: Option<PartId>,
    ) -> impl Iterator<Item = (PartId, &SignedAdvert)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let parts = self.parts.range((from, std::ops::Bound::Unbounded));
        parts.map(|(id, part)| (*id, &part.signed))
    }

    fn say_all_by(&mut self, at: u64) {
        self.parts_due = self.parts_due.min(at);
        for part in self.parts.values_mut() {
            part.due = part.due.min(at);
        }
    }

    fn say_again(&mut self, id: PartId, now: u64, effects: &mut Vec<Effect>) {
        let Some(mut part) = self.parts.remove(&id) else {
            return;
        };
        let refresh = now + refresh_after(self.chance.draw());
        match &mut part.gone {
            Some(gone) if gone.over <= now => return,
            Some(gone) => {
                part.due =
                    withdraw_again_after(gone.repeats).map_or(gone.over, |pause| now + pause);
                if self.alone {
                    part.due = refresh;
                } else {
                    gone.repeats += 1;
                }
                part.due = part.due.min(gone.over);
            }
            None if self.alone => {
                // Nobody holds it, so that it would expire; whoever comes is told all anew.
                part.due = refresh;
                return self.put(id, part);
            }
            None => {
                part.due = refresh;
                self.touched.extend(services_of(&part.signed));
            }
        }
        part.signed = self.sign(Advert::clone(part.signed.claims()), now);
        self.say(&part.signed, effects);
        self.put(id, part);
    }

    fn withdraw_where(
        &mut self,
        now: u64,
        effects: &mut Vec<Effect>,
        which: impl Fn(PartId) -> bool,
    ) {
        let live = self.parts.iter().filter(|(id, part)| which(**id) && part.gone.is_none());
        let live: Vec<PartId> = live.map(|(id, _)| *id).collect();
        for id in live {
            self.touched.extend(services_of(&self.parts[&id].signed));
            let last = Advert { withdrawn: true, ..self.blank(id, now) };
            let signed = self.sign(last, now);
            self.say(&signed, effects);
            let gone = Some(Gone { repeats: 1, over: now + ADVERT_TTL_MILLIS });
            let due = now + withdraw_again_after(0).unwrap_or(ADVERT_REFRESH_MILLIS);
            self.put(id, Part { signed, due, gone });
        }
    }

    fn put(&mut self, id: PartId, part: Part) {
        self.parts_due = self.parts_due.min(part.due);
        self.parts.insert(id, part);
    }

    /// Follows with the DHT what this event touched. Looks at no more: with a thousand plugins
    /// every start would else cost as much as all before it together.
    fn provide_what_is_offered(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for service in &self.touched {
            let offers =
                |part: &Part| part.signed.claims().services.iter().any(|it| it.name == *service);
            let key = || provider_key(&self.network, service, SHARD);
            match (self.parts.values().any(offers), self.provided.contains_key(service)) {
                (true, false) => {
                    effects.push(Effect::Provide(key()));
                    let due = now + provide_again_after(0, self.chance.draw());
                    self.provided.insert(service.clone(), Provided { repeats: 0, due });
                }
                (false, true) => {
                    effects.push(Effect::StopProviding(key()));
                    self.provided.remove(service);
                }
                _ => {}
            }
        }
    }

    fn say(&self, signed: &SignedAdvert, effects: &mut Vec<Effect>) {
        if !self.alone {
            effects.push(Effect::Publish(signed.bytes().clone()));
        }
    }

    /// Signs as of `now`. Adverts that come here were cut to fit whatever the numbers are.
    fn sign(&mut self, advert: Advert, now: u64) -> SignedAdvert {
        self.seq += 1;
        self.issued_last = self.issued_last.max(now);
        let load = if advert.withdrawn { 0 } else { self.load };
        let (seq, issued) = (self.seq, self.issued_last);
        let expires = issued.saturating_add(ADVERT_TTL_MILLIS);
        let advert = Advert { boot: self.boot, seq, issued, expires, load, ..advert };
        advert.sign(&self.key).expect("offers are cut so that every later advert of them fits")
    }

    /// An advert that says nothing.
    fn blank(&self, (instance, part): PartId, now: u64) -> Advert {
        Advert {
            network: self.network.clone(),
            peer: self.local,
            boot: self.boot,
            instance,
            part,
            plugin: String::new(),
            version: Version::new(0, 0, 0),
            services: Vec::new(),
            labels: BTreeMap::new(),
            isolation: String::new(),
            load: 0,
            price: None,
            seq: 0,
            issued: now,
            expires: now.saturating_add(1),
            withdrawn: false,
        }
    }

    /// Cuts an offer into as few adverts as its services need. None for a plugin that has only
    /// services of its own affair.
    fn cut(&self, offer: Offer) -> Result<Vec<Advert>, OfferRefused> {
        let services: BTreeMap<ServiceName, [u8; 32]> = offer
            .services
            .into_iter()
            .filter(|service| !service.name.is_infrastructure())
            .map(|service| (service.name, service.schema))
            .collect();
        let count = services.len();
        // The numbers at their longest, so that what fits now fits for ever.
        let longest = u64::MAX / 2;
        let frame = Advert {
            plugin: offer.plugin,
            version: offer.version,
            labels: offer.labels,
            isolation: offer.isolation,
            price: offer.price,
            load: 100,
            seq: u64::MAX,
            issued: longest,
            expires: longest + ADVERT_TTL_MILLIS,
            ..self.blank((offer.instance, 0), longest)
        };
        let mut adverts: Vec<Advert> = Vec::new();
        for (name, schema) in services {
            let service = ServiceOffer { name, schema };
            if let Some(last) = adverts.last_mut() {
                last.services.push(service.clone());
                let fits = last.services.len() <= ADVERT_SERVICES_MAX && last.check_size().is_ok();
                if fits {
                    continue;
                }
                last.services.pop();
            }
            let part = u16::try_from(adverts.len()).ok().filter(|part| *part < PARTS_MAX);
            let Some(part) = part else {
                let most = adverts.iter().map(|advert| advert.services.len()).sum();
                return Err(OfferRefused::TooManyServices { services: count, most });
            };
            let advert = Advert { part, services: vec![service], ..frame.clone() };
            advert.check_size().map_err(OfferRefused::Unfit)?;
            adverts.push(advert);
        }
        Ok(adverts)
    }
}

fn services_of(signed: &SignedAdvert) -> Vec<ServiceName> {
    signed.claims().services.iter().map(|offer| offer.name.clone()).collect()
}
