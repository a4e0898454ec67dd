//! What befalls peers: crashes, restarts, plugins that come and go, partitions, and the ordinary
//! making and closing of connections.

use std::collections::BTreeMap;

use dht_registry::{Event, LookupId, Offer, ServiceOffer};
use protocol::{id::InstanceId, service::ServiceName};

use super::world::{Place, Step, World};

/// Connections a peer wants.
const LINKS_MIN: usize = 5;

/// How long it takes at most until a vanished neighbour is noticed, in milliseconds.
const NOTICE_MILLIS_MAX: u64 = 5_000;

/// Services that plugins share among them.
const SERVICES: u64 = 30;

impl World {
    /// One thing befalls one peer, and the next is arranged.
    pub(super) fn befall(&mut self) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        let millis = 200 + self.below(1_000);
        self.after(millis, Step::Turmoil);
        let running = self.running();
        let mostly = running.len() * 10 > self.peers.len() * 7;
        let place = self.pick(&running);
        match self.below(100) {
            0..30 if mostly => self.crash(place),
            30..35 if mostly => {
                self.handle(place, Event::Leaving)?;
                self.crash(place);
            }
            35..65 => self.restart()?,
            65..85 => self.load_plugin(place),
            85..100 => self.unload_plugin(place)?,
            _ => {}
        }
        Ok(())
    }

    /// Everybody makes the connections they lack, and now and then closes one.
    pub(super) fn mingle(&mut self) -> Result<(), String> {
        self.after(2_000, Step::Mingle);
        for place in self.running() {
            if self.percent(3) {
                let links: Vec<Place> = self.peers[place].links.keys().copied().collect();
                let honest: Vec<Place> =
                    links.into_iter().filter(|one| *one < self.peers.len()).collect();
                if !honest.is_empty() {
                    let other = self.pick(&honest);
                    self.lose_link(place, other, false)?;
                    self.lose_link(other, place, false)?;
                }
            }
            let lacking = LINKS_MIN.saturating_sub(self.peers[place].links.len());
            self.meet(place, lacking)?;
        }
        self.check_all()
    }

    /// The network falls into `sides` that do not hear each other; one side is a whole.
    pub(super) fn split(&mut self, sides: u64) -> Result<(), String> {
        if self.calm {
            return Ok(());
        }
        for place in 0..self.peers.len() {
            self.peers[place].side = self.below(sides);
        }
        if sides == 1 {
            self.after(15_000, Step::Split { sides: 2 });
            return self.reunite();
        }
        self.report.partitions += 1;
        self.after(12_000, Step::Split { sides: 1 });
        for place in self.running() {
            let links: Vec<(Place, u64)> =
                self.peers[place].links.iter().map(|(to, link)| (*to, *link)).collect();
            for (neighbour, link) in links {
                if !self.together(place, neighbour) {
                    self.will_miss(place, neighbour, link);
                }
            }
        }
        Ok(())
    }

    /// Ends the turmoil: whoever is down stays down, and nothing but forgers disturbs the rest.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        for peer in &mut self.peers {
            peer.side = 0;
        }
        self.after(1, Step::Mingle);
        self.heal = true;
    }

    /// Connects everybody to somebody from anywhere.
    pub(super) fn reunite(&mut self) -> Result<(), String> {
        for place in self.running() {
            self.meet(place, 2)?;
        }
        Ok(())
    }

    /// Ends a link on one side.
    pub(super) fn lose_link(
        &mut self,
        place: Place,
        neighbour: Place,
        abrupt: bool,
    ) -> Result<(), String> {
        if self.peers[place].links.remove(&neighbour).is_none() {
            return Ok(());
        }
        let peer = self.id_of(neighbour);
        self.handle(place, Event::PeerDisconnected { peer, abrupt })
    }

    /// A plugin is loaded: new instance, some services.
    pub(super) fn load_plugin(&mut self, place: Place) {
        let instance = InstanceId(self.chance.draw());
        let count = if self.percent(5) { 20 } else { 1 + self.below(3) };
        let services = (0..count).map(|_| {
            let mut schema = [0; 32];
            schema[..8].copy_from_slice(&self.chance.draw().to_be_bytes());
            ServiceOffer { name: service(self.below(SERVICES)), schema }
        });
        let services: BTreeMap<ServiceName, ServiceOffer> =
            services.map(|offer| (offer.name.clone(), offer)).collect();
        let offer = Offer {
            instance,
            plugin: format!("plugin-{}", self.below(50)),
            version: semver_of(self.below(5)),
            services: services.into_values().collect(),
            labels: [("rack".into(), self.below(9).to_string())].into(),
            isolation: "process".into(),
            price: None,
        };
        self.report.loads += 1;
        self.truth.offered(self.peers[place].id, &offer);
        self.peers[place].offers.insert(instance, offer.clone());
        self.tell(place, 0, Event::Offered(offer));
    }

    /// Somebody looks for a service that may or may not exist.
    pub(super) fn wonder(&mut self) -> Result<(), String> {
        self.after(400, Step::Wonder);
        let running = self.running();
        let place = self.pick(&running);
        let name = self.below(SERVICES + 10);
        self.counter += 1;
        let id = LookupId(self.counter);
        let service = service(name);
        self.peers[place].lookups.insert(id, (self.now, service.clone()));
        self.handle(place, Event::LookupRequested { id, service })
    }

    fn unload_plugin(&mut self, place: Place) -> Result<(), String> {
        let offers: Vec<InstanceId> = self.peers[place].offers.keys().copied().collect();
        if offers.is_empty() {
            return Ok(());
        }
        let instance = self.pick(&offers);
        self.peers[place].offers.remove(&instance);
        self.truth.ended(self.peers[place].id, instance, self.now);
        self.report.loads += 1;
        self.handle(place, Event::Withdrawn(instance))
    }

    fn crash(&mut self, place: Place) {
        self.report.crashes += 1;
        let now = self.now;
        let peer = &mut self.peers[place];
        peer.registry = None;
        peer.life += 1;
        peer.lookups.clear();
        for instance in peer.offers.keys() {
            self.truth.ended(peer.id, *instance, now);
        }
        for neighbour in std::mem::take(&mut peer.links).into_keys() {
            let link = self.peers.get(neighbour).and_then(|one| one.links.get(&place)).copied();
            if let Some(link) = link {
                self.will_miss(neighbour, place, link);
            }
        }
    }

    /// A peer that is down starts again, with some of its plugins.
    fn restart(&mut self) -> Result<(), String> {
        let down = self.peers.iter().enumerate().filter(|(_, peer)| peer.registry.is_none());
        let down: Vec<Place> = down.map(|(place, _)| place).collect();
        if down.is_empty() {
            return Ok(());
        }
        let place = self.pick(&down);
        self.report.restarts += 1;
        self.start(place);
        let before = std::mem::take(&mut self.peers[place].offers);
        for (_, mut offer) in before {
            if self.percent(70) {
                offer.instance = InstanceId(self.chance.draw());
                self.truth.offered(self.peers[place].id, &offer);
                self.peers[place].offers.insert(offer.instance, offer.clone());
                self.handle(place, Event::Offered(offer))?;
            }
        }
        self.meet(place, 3)
    }

    /// Connects `place` to `count` others that it can reach.
    fn meet(&mut self, place: Place, count: usize) -> Result<(), String> {
        if count == 0 {
            return Ok(());
        }
        let reachable = self.running().into_iter().filter(|other| {
            let linked = self.peers[place].links.contains_key(other);
            *other != place && !linked && self.together(place, *other)
        });
        let mut reachable: Vec<Place> = reachable.collect();
        for _ in 0..count.min(reachable.len()) {
            let at = self.below(reachable.len() as u64) as usize;
            let other = reachable.swap_remove(at);
            self.connect(place, other)?;
        }
        Ok(())
    }

    fn connect(&mut self, one: Place, other: Place) -> Result<(), String> {
        // A side that has not noticed the end of the link before notices it now.
        self.lose_link(one, other, true)?;
        self.lose_link(other, one, true)?;
        self.counter += 1;
        let link = self.counter;
        for (place, neighbour) in [(one, other), (other, one)] {
            self.peers[place].links.insert(neighbour, link);
        }
        for (place, neighbour) in [(one, other), (other, one)] {
            let peer = self.id_of(neighbour);
            self.handle(place, Event::PeerConnected(peer))?;
        }
        Ok(())
    }

    fn will_miss(&mut self, place: Place, neighbour: Place, link: u64) {
        let life = self.peers[place].life;
        let millis = self.below(NOTICE_MILLIS_MAX);
        self.after(millis, Step::Missed { place, life, neighbour, link });
    }
}

fn service(n: u64) -> ServiceName {
    format!("mesh.v1.Service{n}").parse().expect("a name like any other")
}

fn semver_of(n: u64) -> semver::Version {
    semver::Version::new(1, n, 0)
}
