//! Forgers: connected like anyone, with keys of their own, and nothing true to say. They overhear
//! gossip, alter it, replay it, sign for others, sign nonsense of their own, answer requests with
//! lies, and come back under another name when nobody listens any more.

use std::{collections::BTreeSet, sync::Arc};

use dht_registry::{
    Event, ServiceOffer,
    wire::{Reply, Request, Scope},
};
use protocol::{
    advert::{Advert, SignedAdvert},
    id::{InstanceId, NetworkName, NodeKey, PeerId},
    limits::{ADVERT_BYTES_MAX, ADVERT_TTL_MILLIS},
};
use serde_bytes::ByteBuf;

use super::world::{Place, Step, World, seed_bytes};

/// Messages that forgers keep for replaying.
const OVERHEARD_MAX: usize = 3_000;

/// Honest peers that a forger is connected to.
const LINKS: usize = 8;

/// Lies after which a forger takes another name.
const LIES_PER_NAME: u64 = 60;

/// All forgers.
#[derive(Default)]
pub(super) struct Forgers {
    liars: Vec<Forger>,
    overheard: Vec<Arc<[u8]>>,
    /// Every name that a forger ever had a key for.
    names: BTreeSet<PeerId>,
}

struct Forger {
    key: NodeKey,
    links: BTreeSet<Place>,
    lies: u64,
}

impl Forgers {
    /// Who the `nth` forger is now.
    pub(super) fn id(&self, nth: usize) -> PeerId {
        self.liars[nth].key.peer_id()
    }

    /// Which forger goes by this name now.
    pub(super) fn place(&self, peer: PeerId) -> Option<usize> {
        self.liars.iter().position(|forger| forger.key.peer_id() == peer)
    }

    /// Whether a forger holds the key to this name, so that it may advertise under it.
    pub(super) fn own(&self, peer: PeerId) -> bool {
        self.names.contains(&peer)
    }
}

impl World {
    /// One more forger.
    pub(super) fn add_forger(&mut self) {
        let key = self.new_name();
        self.forgers.liars.push(Forger { key, links: BTreeSet::new(), lies: 0 });
    }

    /// Forgers keep what they hear, for later.
    pub(super) fn overhear(&mut self, data: &Arc<[u8]>) {
        if self.forgers.overheard.len() < OVERHEARD_MAX {
            self.forgers.overheard.push(Arc::clone(data));
        } else {
            let at = self.below(OVERHEARD_MAX as u64) as usize;
            self.forgers.overheard[at] = Arc::clone(data);
        }
    }

    /// One forger lies to all its neighbours, and the next lie is arranged.
    pub(super) fn lie(&mut self) -> Result<(), String> {
        if self.forgers.liars.is_empty() {
            return Ok(());
        }
        self.after(60, Step::Lie);
        let nth = self.below(self.forgers.liars.len() as u64) as usize;
        if self.forgers.liars[nth].lies.is_multiple_of(LIES_PER_NAME) {
            self.take_another_name(nth)?;
        }
        self.forgers.liars[nth].lies += 1;
        self.report.lies += 1;
        let data: Arc<[u8]> = self.invent(nth).into();
        self.counter += 1;
        let message = self.counter;
        let links: Vec<Place> = self.forgers.liars[nth].links.iter().copied().collect();
        for to in links {
            self.send_gossip(self.peers.len() + nth, to, message, &data);
        }
        Ok(())
    }

    /// `peer` was found out by the peer at `place`. No honest one may be.
    pub(super) fn penalised(&mut self, place: Place, peer: PeerId) -> Result<(), String> {
        let Some(nth) = self.forgers.place(peer) else {
            let honest = !self.forgers.own(peer);
            let lie = format!("peer {place} penalised {peer}, who is honest");
            return if honest { Err(lie) } else { Ok(()) };
        };
        self.report.penalties += 1;
        self.forgers.liars[nth].links.remove(&place);
        Ok(())
    }

    /// What a forger answers when it is asked.
    pub(super) fn lying_reply(&mut self) -> Option<Vec<u8>> {
        let nth = self.below(self.forgers.liars.len() as u64) as usize;
        match self.below(5) {
            0 => None,
            1 => Some(vec![0xff; 100]),
            2 => Some(Reply::Busy.encode()),
            3 => Some(
                Request::GetAdverts { scope: Scope::All, service: None, cursor: None }.encode(),
            ),
            _ => {
                let adverts = (0..4).map(|_| ByteBuf::from(self.invent(nth))).collect();
                Some(Reply::Adverts { adverts, next: None }.encode())
            }
        }
    }

    fn new_name(&mut self) -> NodeKey {
        let key = NodeKey::from_seed(seed_bytes(&mut self.chance));
        self.forgers.names.insert(key.peer_id());
        key
    }

    fn take_another_name(&mut self, nth: usize) -> Result<(), String> {
        let place = self.peers.len() + nth;
        for neighbour in std::mem::take(&mut self.forgers.liars[nth].links) {
            self.lose_link(neighbour, place, false)?;
        }
        // Whoever penalised it has kept its side of the link until now.
        for neighbour in self.running() {
            self.lose_link(neighbour, place, false)?;
        }
        self.forgers.liars[nth].key = self.new_name();
        for _ in 0..LINKS {
            let running = self.running();
            let neighbour = self.pick(&running);
            self.counter += 1;
            let link = self.counter;
            if self.peers[neighbour].links.insert(place, link).is_none() {
                self.forgers.liars[nth].links.insert(neighbour);
                let peer = self.id_of(place);
                self.handle(neighbour, Event::PeerConnected(peer))?;
            }
        }
        Ok(())
    }

    /// One lie.
    fn invent(&mut self, nth: usize) -> Vec<u8> {
        let own = self.forgers.liars[nth].key.clone();
        let heard = match self.forgers.overheard.len() {
            0 => return vec![7; 300],
            count => {
                let at = self.below(count as u64) as usize;
                Arc::clone(&self.forgers.overheard[at])
            }
        };
        let claims = SignedAdvert::decode(&heard).map(|signed| Advert::clone(signed.claims()));
        let Ok(claims) = claims else {
            return heard.to_vec();
        };
        match self.below(9) {
            // Replayed as it was, whenever that was.
            0 | 1 => heard.to_vec(),
            // Altered in one bit.
            2 => {
                let mut altered = heard.to_vec();
                let bit = self.below(altered.len() as u64 * 8) as usize;
                altered[bit / 8] ^= 1 << (bit % 8);
                altered
            }
            // In another's name, to say that it is gone.
            3 => {
                let (services, labels) = (Vec::new(), [].into());
                let seq = claims.seq + 1_000;
                forged(&Advert { withdrawn: true, services, labels, seq, ..claims }, &own)
            }
            // In another's name, to lead its callers astray, or after its restart.
            4 => forged(&self.elsewhere(claims), &own),
            5 => forged(&Advert { boot: claims.issued, seq: 1, ..claims }, &own),
            // In its own name, for far too long, or from times to come.
            6 => {
                let (peer, expires) = (own.peer_id(), claims.issued + 10 * ADVERT_TTL_MILLIS);
                forged(&Advert { peer, expires, ..claims }, &own)
            }
            // In a new name each time, truly signed: to fill tables.
            7 => {
                let key = self.new_name();
                let advert = Advert { peer: key.peer_id(), ..self.elsewhere(claims) };
                forged(&advert, &key)
            }
            _ => vec![0xa1; 1 + self.below(2 * ADVERT_BYTES_MAX as u64) as usize],
        }
    }

    fn elsewhere(&mut self, claims: Advert) -> Advert {
        let boot = self.now - 1_000;
        let (issued, expires) = (self.now, self.now + ADVERT_TTL_MILLIS);
        let service = ServiceOffer {
            name: format!("mesh.v1.Service{}", self.below(30)).parse().expect("a name"),
            schema: [0xee; 32],
        };
        Advert {
            network: NetworkName::default(),
            boot,
            instance: InstanceId(self.chance.draw()),
            plugin: "trap".into(),
            services: vec![service],
            withdrawn: false,
            issued,
            expires,
            ..claims
        }
    }
}

/// `advert` with a signature by `key`, whoever it names and whatever it says.
fn forged(advert: &Advert, key: &NodeKey) -> Vec<u8> {
    // The sound way refuses other names and bad bounds; a liar's way is to sign its own and put
    // the victim's words behind the signature.
    let sound = Advert { peer: key.peer_id(), ..advert.clone() };
    match sound.sign(key) {
        Ok(signed) if advert.peer == key.peer_id() => signed.bytes().to_vec(),
        Ok(signed) => {
            let (mine, theirs) = (key.peer_id().to_bytes(), advert.peer.to_bytes());
            let mut bytes = signed.bytes().to_vec();
            let at = bytes.windows(mine.len()).position(|window| window == mine);
            let at = at.expect("an advert names its peer");
            bytes[at..at + theirs.len()].copy_from_slice(&theirs);
            bytes
        }
        Err(_) => {
            let signature = key.sign(b"whatever");
            [&signature[..], b"\xa1\x61v\x01"].concat()
        }
    }
}
