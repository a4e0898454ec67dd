//! The world: peers, the links between them, and the queue of what happens next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use dht_registry::{
    Directory, Event, FetchId, LookupId, Offer, Registry, Settings, Verdict, lease::Chance,
};
use protocol::{
    id::{InstanceId, NetworkName, NodeKey, PeerId},
    service::ServiceName,
};

use super::{Plan, Report, Violation, forger::Forgers, truth::Truth};

/// Where virtual time begins: Unix milliseconds in November 2023.
pub(super) const EPOCH: u64 = 1_700_000_000_000;

/// Steps within one millisecond beyond which time is taken to stand still.
const STEPS_PER_MILLI_MAX: u64 = 100_000;

/// A place in the world: honest peers first, forgers after them.
pub(super) type Place = usize;

/// Which advert: a newer one takes the place of an older.
pub(super) type AdvertKey = (PeerId, InstanceId, u16);

/// How new an advert is: its node's boot, and its number since then.
pub(super) type Age = (u64, u64);

/// One thing that happens.
pub(super) enum Step {
    /// A registry's event, if the peer has not restarted since.
    Handle { place: Place, life: u32, event: Event },
    /// Gossip arrives.
    Gossip { from: Place, place: Place, life: u32, message: u64, data: Arc<[u8]> },
    /// A request arrives; the answer goes back to `from` as `fetch`.
    Request { from: Place, from_life: u32, fetch: FetchId, to: Place, data: Vec<u8> },
    /// A registry's timer.
    Tick { place: Place, life: u32, at: u64 },
    /// A neighbour is noticed to be gone.
    Missed { place: Place, life: u32, neighbour: Place, link: u64 },
    /// Something befalls somebody.
    Turmoil,
    /// Everybody looks after their connections.
    Mingle,
    /// The network splits or heals.
    Split { sides: u64 },
    /// A forger lies.
    Lie,
    /// Somebody looks for a service.
    Wonder,
}

/// One honest peer.
pub(super) struct Peer {
    pub(super) key: NodeKey,
    pub(super) id: PeerId,
    /// `None` while it is down.
    pub(super) registry: Option<Registry>,
    /// Counts its starts.
    pub(super) life: u32,
    /// How far its clock is ahead, less [`Plan::clock_error_millis_max`].
    pub(super) clock: u64,
    /// Neighbours as this peer sees them, and the link each is reached by.
    pub(super) links: BTreeMap<Place, u64>,
    /// Gossip seen, so that it is handled once.
    pub(super) seen: HashMap<u64, u64>,
    pub(super) offers: BTreeMap<InstanceId, Offer>,
    pub(super) timer: Option<u64>,
    pub(super) side: u64,
    /// What the registry's readers see.
    pub(super) directory: Arc<Directory>,
    /// Whether `directory` was not looked at yet.
    pub(super) changed: bool,
    /// What `directory` showed before: how new an advert of each instance, whether it was
    /// suspect, and when it ends.
    pub(super) shown: BTreeMap<AdvertKey, (Age, bool, u64)>,
    /// What it stopped showing before its time: nothing as old may come back.
    pub(super) gone: BTreeMap<AdvertKey, Age>,
    /// When the first entry of `directory` ends.
    pub(super) ends: u64,
    /// What is being looked up, and since when.
    pub(super) lookups: BTreeMap<LookupId, (u64, ServiceName)>,
}

/// Everything there is.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) chance: Chance,
    pub(super) now: u64,
    pub(super) peers: Vec<Peer>,
    pub(super) places: BTreeMap<PeerId, Place>,
    pub(super) forgers: Forgers,
    /// Who told the DHT what, and until when it remembers.
    pub(super) providers: BTreeMap<[u8; 32], BTreeMap<Place, u64>>,
    pub(super) truth: Truth,
    pub(super) report: Report,
    /// Whether the turmoil is over, and whether its last partition is still to be mended.
    pub(super) calm: bool,
    pub(super) heal: bool,
    /// What the registry that last judged a message said.
    pub(super) verdict: Option<Verdict>,
    pub(super) counter: u64,
    queue: BTreeMap<(u64, u64), Step>,
}

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let mut chance = Chance::new(plan.seed);
        let peers = (0..plan.peers).map(|_| Peer::new(&plan, &mut chance)).collect::<Vec<_>>();
        let places = peers.iter().enumerate().map(|(place, peer)| (peer.id, place)).collect();
        let mut world = Self {
            forgers: Forgers::default(),
            truth: Truth::new(plan.clock_error_millis_max),
            plan,
            chance,
            now: EPOCH,
            peers,
            places,
            providers: BTreeMap::new(),
            report: Report::default(),
            calm: false,
            heal: false,
            verdict: None,
            counter: 0,
            queue: BTreeMap::new(),
        };
        for place in 0..world.plan.peers {
            world.start(place);
            if world.percent(60) {
                world.load_plugin(place);
            }
        }
        for _ in 0..world.plan.forgers {
            world.add_forger();
        }
        world.after(1, Step::Mingle);
        world.after(5_000, Step::Turmoil);
        world.after(1_000, Step::Lie);
        world.after(2_000, Step::Wonder);
        world.after(20_000, Step::Split { sides: 2 });
        world
    }

    /// Lets everything happen in its order.
    pub(super) fn run(mut self) -> Result<Report, Violation> {
        let calm_at = EPOCH + self.plan.turmoil_millis;
        let end = calm_at + self.plan.quiet_millis;
        let mut idle = 0;
        while let Some(((at, _), step)) = self.queue.pop_first() {
            idle = if at == self.now { idle + 1 } else { 0 };
            if idle > STEPS_PER_MILLI_MAX {
                return Err(self.violation("time stands still: a timer is always due".into()));
            }
            self.now = at;
            if !self.calm && at >= calm_at {
                self.calm_down();
            }
            if at >= end {
                break;
            }
            self.happen(step).map_err(|what| self.violation(what))?;
        }
        if self.plan.views_become_whole {
            self.compare_views().map_err(|what| self.violation(what))?;
        }
        self.report.fingerprint = self.fingerprint();
        Ok(self.report)
    }

    /// Puts `step` in the queue, `millis` from now.
    pub(super) fn after(&mut self, millis: u64, step: Step) {
        self.counter += 1;
        self.queue.insert((self.now + millis, self.counter), step);
    }

    /// True in `percent` of all cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.chance.draw() % bound.max(1)
    }

    /// A member of a list that is not empty.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let at = self.below(of.len() as u64);
        of[at as usize]
    }

    /// How long a message takes.
    pub(super) fn delay(&mut self) -> u64 {
        1 + self.below(self.plan.delay_millis_max)
    }

    /// What a peer's clock shows now.
    pub(super) fn clock_of(&self, place: Place) -> u64 {
        self.now + self.peers[place].clock - self.plan.clock_error_millis_max
    }

    /// Places of peers that run.
    pub(super) fn running(&self) -> Vec<Place> {
        let peers = self.peers.iter().enumerate();
        peers.filter(|(_, peer)| peer.registry.is_some()).map(|(place, _)| place).collect()
    }

    /// Starts a peer, which knows nobody and offers what it offered when it stopped.
    pub(super) fn start(&mut self, place: Place) {
        let boot = self.clock_of(place);
        let chance = self.chance.draw();
        let peer = &mut self.peers[place];
        peer.life += 1;
        peer.timer = None;
        peer.links.clear();
        peer.seen.clear();
        peer.lookups.clear();
        peer.directory = Arc::default();
        peer.shown.clear();
        peer.gone.clear();
        peer.ends = u64::MAX;
        peer.registry = Some(Registry::new(Settings {
            key: peer.key.clone(),
            network: NetworkName::default(),
            boot,
            chance,
            limits: self.plan.limits,
        }));
        self.schedule_tick(place);
    }

    /// Lets a registry handle `event`, performs what it decides, and checks what must hold.
    pub(super) fn handle(&mut self, place: Place, event: Event) -> Result<(), String> {
        self.handle_for(place, event, None)
    }

    /// As [`World::handle`], with the fetch that an answer goes to.
    pub(super) fn handle_for(
        &mut self,
        place: Place,
        event: Event,
        asker: Option<super::network::Asker>,
    ) -> Result<(), String> {
        let now = self.clock_of(place);
        let Some(registry) = self.peers[place].registry.as_mut() else {
            return Ok(());
        };
        self.report.steps += 1;
        let effects = registry.handle(event, now);
        self.perform(place, effects, asker)?;
        self.schedule_tick(place);
        self.check(place)
    }

    fn happen(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Handle { place, life, event } if self.peers[place].life == life => {
                self.handle(place, event)
            }
            Step::Gossip { from, place, life, message, data } => {
                self.gossip_arrives(from, (place, life), message, &data)
            }
            Step::Request { from, from_life, fetch, to, data } => {
                self.request_arrives((from, from_life), fetch, to, data)
            }
            Step::Tick { place, life, at } => {
                if self.peers[place].life == life && self.peers[place].timer == Some(at) {
                    self.peers[place].timer = None;
                    return self.handle(place, Event::Tick);
                }
                Ok(())
            }
            Step::Missed { place, life, neighbour, link } => {
                let peer = &self.peers[place];
                if peer.life == life && peer.links.get(&neighbour) == Some(&link) {
                    return self.lose_link(place, neighbour, true);
                }
                Ok(())
            }
            Step::Turmoil => self.befall(),
            Step::Mingle => self.mingle(),
            Step::Split { sides } => self.split(sides),
            Step::Lie => self.lie(),
            Step::Wonder => self.wonder(),
            Step::Handle { .. } => Ok(()),
        }
    }

    fn schedule_tick(&mut self, place: Place) {
        let now = self.clock_of(place);
        let peer = &mut self.peers[place];
        let Some(registry) = &peer.registry else {
            return;
        };
        let Some(millis) = registry.next_timer().map(|at| at.saturating_sub(now)) else {
            return;
        };
        let at = self.now + millis;
        if peer.timer.is_none_or(|timer| at < timer) {
            peer.timer = Some(at);
            let life = peer.life;
            self.after(millis, Step::Tick { place, life, at });
        }
    }

    fn violation(&self, what: String) -> Violation {
        Violation { seed: self.plan.seed, at_millis: self.now - EPOCH, what }
    }

    fn fingerprint(&self) -> u64 {
        let mut chance = Chance::new(self.report.steps);
        for peer in &self.peers {
            for (service, entry) in peer.directory.entries() {
                for byte in service.as_str().bytes().chain(entry.peer.to_bytes()) {
                    chance = Chance::new(chance.draw() ^ u64::from(byte));
                }
                chance = Chance::new(chance.draw() ^ entry.instance.0);
            }
        }
        chance.draw()
    }
}

impl Peer {
    fn new(plan: &Plan, chance: &mut Chance) -> Self {
        let key = NodeKey::from_seed(seed_bytes(chance));
        Self {
            id: key.peer_id(),
            key,
            registry: None,
            life: 0,
            clock: chance.draw() % (2 * plan.clock_error_millis_max + 1),
            links: BTreeMap::new(),
            seen: HashMap::new(),
            offers: BTreeMap::new(),
            timer: None,
            side: 0,
            directory: Arc::default(),
            changed: false,
            shown: BTreeMap::new(),
            gone: BTreeMap::new(),
            ends: u64::MAX,
            lookups: BTreeMap::new(),
        }
    }
}

/// 32 bytes by chance.
pub(super) fn seed_bytes(chance: &mut Chance) -> [u8; 32] {
    let mut seed = [0; 32];
    for part in seed.chunks_mut(8) {
        part.copy_from_slice(&chance.draw().to_be_bytes());
    }
    seed
}

/// Places that are reached from `from` over links that both sides know.
pub(super) fn reached(peers: &[Peer], from: Place) -> BTreeSet<Place> {
    let mut reached = BTreeSet::from([from]);
    let mut edge = vec![from];
    while let Some(place) = edge.pop() {
        for neighbour in peers[place].links.keys().copied().filter(|one| *one < peers.len()) {
            if peers[neighbour].links.contains_key(&place) && reached.insert(neighbour) {
                edge.push(neighbour);
            }
        }
    }
    reached
}
