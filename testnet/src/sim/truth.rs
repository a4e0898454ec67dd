//! What was really offered, and what must therefore hold in every view.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dht_registry::{Directory, Entry, LookupId, Offer};
use protocol::{
    id::{InstanceId, PeerId},
    limits::{ADVERT_TTL_MILLIS, LOOKUP_MILLIS_MAX},
    service::ServiceName,
};

use super::world::{Place, World, reached};

/// How late the end of a lookup may be noticed, in milliseconds: it is looked for so often.
const MINGLE_MILLIS: u64 = 2_000;

/// One offer, and when it ended.
struct Offered {
    offer: Offer,
    ended: Option<u64>,
}

/// Everything that honest peers ever offered.
pub(super) struct Truth {
    offers: BTreeMap<(PeerId, InstanceId), Offered>,
    clock_error_millis_max: u64,
}

impl Truth {
    pub(super) fn new(clock_error_millis_max: u64) -> Self {
        Self { offers: BTreeMap::new(), clock_error_millis_max }
    }

    pub(super) fn offered(&mut self, peer: PeerId, offer: &Offer) {
        let offered = Offered { offer: offer.clone(), ended: None };
        self.offers.insert((peer, offer.instance), offered);
    }

    pub(super) fn ended(&mut self, peer: PeerId, instance: InstanceId, now: u64) {
        if let Some(offered) = self.offers.get_mut(&(peer, instance)) {
            offered.ended.get_or_insert(now);
        }
    }

    /// Whether an honest peer really offers, or lately offered, what `entry` says.
    fn confirms(&self, service: &ServiceName, entry: &Entry, now: u64) -> Result<(), String> {
        let lie = |what| Err(format!("{service} at {} is listed with {what}", entry.peer));
        let Some(Offered { offer, ended }) = self.offers.get(&(entry.peer, entry.instance)) else {
            return lie("an instance that never was");
        };
        let lease = ADVERT_TTL_MILLIS + 2 * self.clock_error_millis_max;
        if ended.is_some_and(|ended| now > ended + lease) {
            return lie("a lease that has ended");
        }
        let schema = offer.services.iter().find(|one| one.name == *service);
        if schema.is_none_or(|one| one.schema != entry.schema) {
            return lie("a service or schema that it never offered");
        }
        let same = offer.plugin == entry.plugin()
            && offer.version == *entry.version()
            && offer.labels == *entry.labels()
            && offer.isolation == entry.isolation();
        if same { Ok(()) } else { lie("words that it never said") }
    }
}

impl World {
    /// The registry at `place` has news for its readers.
    pub(super) fn publish_directory(&mut self, place: Place) {
        let peer = &mut self.peers[place];
        if let Some(registry) = &mut peer.registry {
            peer.directory = registry.directory();
            peer.changed = true;
        }
    }

    /// A lookup ended.
    pub(super) fn lookup_done(
        &mut self,
        place: Place,
        id: LookupId,
        found: bool,
    ) -> Result<(), String> {
        let peer = &mut self.peers[place];
        let Some((_, service)) = peer.lookups.remove(&id) else {
            return Err(format!("peer {place} ended a lookup that was never asked for, or twice"));
        };
        self.report.lookups.0 += 1;
        self.report.lookups.1 += u64::from(found);
        if found && peer.directory.providers(&service).is_empty() {
            return Err(format!("peer {place} said it found {service}, and lists nobody"));
        }
        Ok(())
    }

    /// What must hold at one peer after every step.
    pub(super) fn check(&mut self, place: Place) -> Result<(), String> {
        let now = self.clock_of(place);
        let peer = &mut self.peers[place];
        let Some(registry) = &peer.registry else {
            return Ok(());
        };
        let (census, limits) = (registry.census(), self.plan.limits);
        self.report.adverts_most = self.report.adverts_most.max(census.adverts);
        let bounded = census.adverts <= limits.adverts_max
            && census.peers <= census.adverts
            && census.liars <= 1_024
            && census.absent <= 1_024
            && census.lookups <= 256
            && census.askers <= 1_024;
        if !bounded {
            return Err(format!("peer {place} remembers too much: {census:?}"));
        }
        if std::mem::take(&mut peer.changed) {
            let directory = Arc::clone(&peer.directory);
            let ends = directory.entries().map(|(_, entry)| entry.expires()).min();
            peer.ends = ends.unwrap_or(u64::MAX);
            self.check_directory(place, &directory, now)?;
            self.check_order(place, &directory, now)?;
        }
        if self.peers[place].ends <= now {
            // Says which.
            self.check_directory(place, &self.peers[place].directory, now)?;
        }
        Ok(())
    }

    /// What must hold at all peers, looked at now and then.
    pub(super) fn check_all(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.heal) {
            self.reunite()?;
        }
        for place in self.running() {
            // Timers of this very millisecond may still have to be handled.
            let clock = self.clock_of(place) - 1;
            self.check_directory(place, &self.peers[place].directory, clock)?;
            let patience = LOOKUP_MILLIS_MAX + MINGLE_MILLIS;
            let forgotten =
                self.peers[place].lookups.values().find(|(since, _)| self.now > since + patience);
            if let Some((_, service)) = forgotten {
                return Err(format!("peer {place} forgot that {service} was looked for"));
            }
        }
        Ok(())
    }

    /// At the end: every live offer in every view that can be reached, and nothing else of honest
    /// peers.
    pub(super) fn compare_views(&mut self) -> Result<(), String> {
        type Listed = BTreeSet<(ServiceName, PeerId, InstanceId)>;
        for place in self.running() {
            let together = reached(&self.peers, place);
            let mut wanted = Listed::new();
            for other in together {
                let peer = &self.peers[other];
                for offer in peer.offers.values() {
                    let names = offer.services.iter().map(|service| service.name.clone());
                    wanted.extend(names.map(|name| (name, peer.id, offer.instance)));
                }
            }
            let registry = self.peers[place].registry.as_mut();
            let directory = registry.map(dht_registry::Registry::directory).unwrap_or_default();
            let honest =
                directory.entries().filter(|(_, entry)| self.places.contains_key(&entry.peer));
            let mut listed = Listed::new();
            for (name, entry) in honest {
                if entry.suspect {
                    return Err(format!("peer {place} still suspects {} for {name}", entry.peer));
                }
                listed.insert((name.clone(), entry.peer, entry.instance));
            }
            if let Some((name, peer, _)) = wanted.difference(&listed).next() {
                return Err(format!("peer {place} does not list {name} at {peer}"));
            }
            if let Some((name, peer, _)) = listed.difference(&wanted).next() {
                return Err(format!("peer {place} lists {name} at {peer}, who has it no more"));
            }
            self.report.entries_compared += listed.len();
        }
        Ok(())
    }

    /// Whatever is replayed: no advert gives way to an older one, and none that was taken back
    /// before its time returns. Only where there is room for all, so that none is pushed out.
    fn check_order(&mut self, place: Place, directory: &Directory, now: u64) -> Result<(), String> {
        let peer = &mut self.peers[place];
        if !self.plan.views_become_whole {
            return Ok(());
        }
        let mut shown = BTreeMap::new();
        for (service, entry) in directory.entries() {
            let advert = &entry.advert;
            let key = (entry.peer, entry.instance, advert.part);
            let age = (advert.boot, advert.seq);
            if peer.shown.get(&key).is_some_and(|(before, ..)| age < *before) {
                return Err(format!("peer {place} lists {service} by an older advert than before"));
            }
            if peer.gone.get(&key).is_some_and(|gone| age <= *gone) {
                return Err(format!("peer {place} lists {service} again, which was withdrawn"));
            }
            shown.insert(key, (age, entry.suspect, entry.expires()));
        }
        for (key, (age, suspect, expires)) in std::mem::replace(&mut peer.shown, shown) {
            if !peer.shown.contains_key(&key) && !suspect && expires > now {
                peer.gone.insert(key, age);
            }
        }
        Ok(())
    }

    fn check_directory(
        &self,
        place: Place,
        directory: &Directory,
        clock: u64,
    ) -> Result<(), String> {
        for (service, entry) in directory.entries() {
            if entry.expires() <= clock {
                let (peer, late) = (entry.peer, clock - entry.expires());
                return Err(format!("peer {place} lists {service} at {peer}, over for {late} ms"));
            }
            if self.places.contains_key(&entry.peer) {
                self.truth
                    .confirms(service, entry, self.now)
                    .map_err(|what| format!("at peer {place}: {what}"))?;
            } else if !self.forgers.own(entry.peer) {
                return Err(format!("peer {place} lists {}, whom nobody is", entry.peer));
            }
        }
        Ok(())
    }
}
