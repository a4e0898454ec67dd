//! What the network does with what registries decide: gossip by flooding along links, requests to
//! anyone, a DHT that remembers too long and sometimes lies. Every message may be lost, and any
//! two may overtake each other.

use std::sync::Arc;

use dht_registry::{Effect, Event, FetchId, OfferRefused, Token, Verdict, wire::Reply};
use protocol::{
    id::PeerId,
    limits::{LOOKUP_MILLIS_MAX, PROVIDER_TTL_SECONDS},
};

use super::world::{Place, Step, World};

/// How long a request waits for an answer that was lost, in milliseconds.
const FETCH_MILLIS_MAX: u64 = 5_000;

/// How long gossip remembers what it has seen, in milliseconds.
const SEEN_MILLIS: u64 = 120_000;

/// Providers the DHT keeps for a key.
const PROVIDERS_MAX: usize = 20;

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub(super) place: Place,
    pub(super) life: u32,
    pub(super) fetch: FetchId,
}

impl World {
    /// Performs what the registry at `place` decided.
    pub(super) fn perform(
        &mut self,
        place: Place,
        effects: Vec<Effect>,
        asker: Option<Asker>,
    ) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::Publish(data) => self.publish(place, &data),
                Effect::Provide(key) => {
                    if !self.lost() {
                        let until = self.now + PROVIDER_TTL_SECONDS * 1_000;
                        self.providers.entry(key).or_default().insert(place, until);
                    }
                }
                // As in Kademlia, nobody else is told: the record stays until it expires.
                Effect::StopProviding(_) => {}
                Effect::FindProviders { service, key } => {
                    let lost = self.lost();
                    let peers = if lost { Vec::new() } else { self.providers_of(key) };
                    let millis = if lost { LOOKUP_MILLIS_MAX } else { 3 * self.delay() };
                    self.tell(place, millis, Event::ProvidersFound { service, peers });
                }
                Effect::Fetch { id, peer, request } => self.request(place, id, peer, request),
                Effect::Verdict { verdict, .. } => self.verdict = Some(verdict),
                Effect::Answer { reply, .. } => self.answer(asker, Some(reply)),
                Effect::Describe { .. } => {
                    self.answer(asker, Some(Reply::descriptors(None).encode()));
                }
                Effect::DirectoryChanged => self.publish_directory(place),
                Effect::LookupDone { id, found } => self.lookup_done(place, id, found)?,
                Effect::Penalise(peer) => self.penalised(place, peer)?,
                // A peer may offer no more than others would remember of it.
                Effect::OfferRefused { reason: OfferRefused::Full { .. }, .. }
                    if !self.plan.views_become_whole => {}
                Effect::OfferRefused { reason, .. } => {
                    return Err(format!("peer {place} was refused an offer: {reason}"));
                }
            }
        }
        Ok(())
    }

    /// Whether this message is lost.
    pub(super) fn lost(&mut self) -> bool {
        let percent = self.plan.loss_percent;
        self.percent(percent)
    }

    /// Lets an event reach a peer in its present life, `millis` from now.
    pub(super) fn tell(&mut self, place: Place, millis: u64, event: Event) {
        let life = self.peers[place].life;
        self.after(millis, Step::Handle { place, life, event });
    }

    /// Sends a gossip message along one link.
    pub(super) fn send_gossip(&mut self, from: Place, to: Place, message: u64, data: &Arc<[u8]>) {
        if !self.lost() {
            let life = self.peers.get(to).map_or(0, |peer| peer.life);
            let data = Arc::clone(data);
            let millis = self.delay();
            self.after(millis, Step::Gossip { from, place: to, life, message, data });
        }
    }

    /// A gossip message arrives: seen once, judged, and passed on when accepted.
    pub(super) fn gossip_arrives(
        &mut self,
        from: Place,
        (place, life): (Place, u32),
        message: u64,
        data: &Arc<[u8]>,
    ) -> Result<(), String> {
        if place >= self.peers.len() {
            self.overhear(data);
            return Ok(());
        }
        let (now, together) = (self.now, self.together(from, place));
        let peer = &mut self.peers[place];
        let linked = peer.links.contains_key(&from);
        if peer.life != life || !together || !linked || peer.seen.insert(message, now).is_some() {
            return Ok(());
        }
        if peer.seen.len() > 20_000 {
            peer.seen.retain(|_, at| *at + SEEN_MILLIS > now);
        }
        self.verdict = None;
        let (from_id, token) = (self.id_of(from), Token(message));
        self.handle(place, Event::Gossip { from: from_id, data: data.to_vec(), token })?;
        if self.verdict == Some(Verdict::Accept) {
            let links: Vec<Place> = self.peers[place].links.keys().copied().collect();
            for to in links.into_iter().filter(|to| *to != from) {
                self.send_gossip(place, to, message, data);
            }
        }
        Ok(())
    }

    /// A request arrives, if the way is open.
    pub(super) fn request_arrives(
        &mut self,
        (from, from_life): (Place, u32),
        fetch: FetchId,
        to: Place,
        data: Vec<u8>,
    ) -> Result<(), String> {
        let asker = Asker { place: from, life: from_life, fetch };
        if to >= self.peers.len() {
            let reply = self.lying_reply();
            self.answer(Some(asker), reply);
            return Ok(());
        }
        if !self.together(from, to) || self.peers[to].registry.is_none() {
            self.answer(Some(asker), None);
            return Ok(());
        }
        let peer = self.id_of(from);
        self.handle_for(to, Event::Requested { peer, data, token: Token(0) }, Some(asker))
    }

    /// Whether messages pass between two places.
    pub(super) fn together(&self, one: Place, other: Place) -> bool {
        match (self.peers.get(one), self.peers.get(other)) {
            (Some(one), Some(other)) => one.side == other.side,
            // Forgers are everywhere.
            _ => true,
        }
    }

    /// Who is at `place` now.
    pub(super) fn id_of(&self, place: Place) -> PeerId {
        match self.peers.get(place) {
            Some(peer) => peer.id,
            None => self.forgers.id(place - self.peers.len()),
        }
    }

    fn publish(&mut self, place: Place, data: &[u8]) {
        let links: Vec<Place> = self.peers[place].links.keys().copied().collect();
        if links.is_empty() {
            self.tell(place, 1, Event::Unpublished);
        }
        self.counter += 1;
        let message = self.counter;
        self.peers[place].seen.insert(message, self.now);
        let data: Arc<[u8]> = data.into();
        for to in links {
            self.send_gossip(place, to, message, &data);
        }
    }

    fn providers_of(&mut self, key: [u8; 32]) -> Vec<PeerId> {
        let now = self.now;
        let records = self.providers.get(&key).into_iter().flatten();
        let places = records.filter(|(_, until)| **until > now).map(|(place, _)| *place);
        let mut places: Vec<Place> = places.take(PROVIDERS_MAX).collect();
        if self.percent(20) && self.plan.forgers > 0 {
            let liar = self.peers.len() + self.below(self.plan.forgers as u64) as usize;
            places.insert(0, liar);
        }
        places.into_iter().map(|place| self.id_of(place)).collect()
    }

    fn request(&mut self, from: Place, fetch: FetchId, peer: PeerId, data: Vec<u8>) {
        let from_life = self.peers[from].life;
        let to = self.places.get(&peer).copied();
        let to = to.or_else(|| self.forgers.place(peer).map(|nth| nth + self.peers.len()));
        match to {
            Some(to) if !self.lost() => {
                let millis = self.delay();
                self.after(millis, Step::Request { from, from_life, fetch, to, data });
            }
            _ => self.tell(from, FETCH_MILLIS_MAX, Event::Replied { fetch, reply: None }),
        }
    }

    fn answer(&mut self, asker: Option<Asker>, reply: Option<Vec<u8>>) {
        let Some(Asker { place, life, fetch }) = asker else {
            return;
        };
        let reply = reply.filter(|_| !self.lost());
        let millis = if reply.is_some() { self.delay() } else { FETCH_MILLIS_MAX };
        self.after(millis, Step::Handle { place, life, event: Event::Replied { fetch, reply } });
    }
}
