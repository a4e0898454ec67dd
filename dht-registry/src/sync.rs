//! Asking peers for adverts: each peer once when it connects, providers during a lookup.
//!
//! The first few peers met after being alone are asked for all they hold, so that a newcomer's
//! view is whole after one connection; the others only for their own, because gossip brings the
//! rest and a full table is 10 MB.

use std::collections::BTreeMap;

use protocol::{id::PeerId, limits::ADVERTS_KEPT_MAX, service::ServiceName};

use crate::{
    event::{Effect, FetchId},
    wire::{Cursor, PAGE_ADVERTS_MAX, Request, Scope},
};

/// Peers asked at once. More would only wait in the swarm's queue instead of here.
const SYNCS_MAX: usize = 16;

/// Peers asked for everything after being alone: one may lie or be new itself.
const FULL_SYNCS: usize = 3;

/// How often a peer that does not answer is asked.
const ATTEMPTS_MAX: u32 = 5;

/// How long a reply may take before it is given up, in milliseconds. The caller has deadlines of
/// its own; this only keeps one that forgets to answer from using up the places.
const FETCH_MILLIS_MAX: u64 = 15_000;

/// Pages that a peer may fill: twice what a full table of half-filled pages takes.
const PAGES_MAX: usize = 4 * ADVERTS_KEPT_MAX / PAGE_ADVERTS_MAX;

/// Why a peer is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It connected.
    Sync(Scope),
    /// It is said to provide this.
    Lookup(ServiceName),
}

/// One request under way.
pub(crate) struct Fetch {
    pub(crate) peer: PeerId,
    pub(crate) purpose: Purpose,
    pages: usize,
    deadline: u64,
}

/// A connected peer not yet asked to the end.
struct Waiting {
    due: u64,
    attempts: u32,
    running: bool,
}

/// All requests under way, and the peers still to be asked.
pub(crate) struct Fetches {
    running: BTreeMap<FetchId, Fetch>,
    next_id: u64,
    waiting: BTreeMap<PeerId, Waiting>,
    full_left: usize,
}

impl Fetches {
    pub(crate) fn new() -> Self {
        Self {
            running: BTreeMap::new(),
            next_id: 0,
            waiting: BTreeMap::new(),
            full_left: FULL_SYNCS,
        }
    }

    /// A peer connected and is to be asked.
    pub(crate) fn connected(&mut self, peer: PeerId, now: u64) {
        let running = self.waiting.get(&peer).is_some_and(|waiting| waiting.running);
        self.waiting.insert(peer, Waiting { due: now, attempts: 0, running });
    }

    /// A peer is gone and need not be asked.
    pub(crate) fn disconnected(&mut self, peer: PeerId) {
        self.waiting.remove(&peer);
    }

    /// No peer is left: whatever was learned is no longer whole.
    pub(crate) fn left_alone(&mut self) {
        self.full_left = FULL_SYNCS;
    }

    /// The clock was set back.
    pub(crate) fn set_back(&mut self, now: u64) {
        for waiting in self.waiting.values_mut() {
            waiting.due = waiting.due.min(now);
        }
        for fetch in self.running.values_mut() {
            fetch.deadline = fetch.deadline.min(now.saturating_add(FETCH_MILLIS_MAX));
        }
    }

    /// Asks as many waiting peers as there are places.
    pub(crate) fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let mut places = SYNCS_MAX.saturating_sub(self.syncs_running());
        let due: Vec<PeerId> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| !waiting.running && waiting.due <= now)
            .map(|(peer, _)| *peer)
            .take(places)
            .collect();
        for peer in due {
            if places == 0 {
                return;
            }
            places -= 1;
            let scope = if self.full_left > 0 { Scope::All } else { Scope::Own };
            self.full_left = self.full_left.saturating_sub(1);
            if let Some(waiting) = self.waiting.get_mut(&peer) {
                waiting.running = true;
            }
            self.begin(peer, Purpose::Sync(scope), 1, None, now, effects);
        }
    }

    /// Asks a peer that is said to provide `service`.
    pub(crate) fn ask_provider(
        &mut self,
        peer: PeerId,
        service: ServiceName,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.begin(peer, Purpose::Lookup(service), 1, None, now, effects);
    }

    /// A reply, or none, has come for `id`. `None` where nobody waits for it any more.
    pub(crate) fn ended(&mut self, id: FetchId) -> Option<Fetch> {
        self.running.remove(&id)
    }

    /// Asks for the page after `cursor`. False where the peer has filled enough.
    pub(crate) fn go_on(
        &mut self,
        fetch: &Fetch,
        cursor: Cursor,
        now: u64,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let more = fetch.pages < PAGES_MAX;
        if more {
            let (purpose, pages) = (fetch.purpose.clone(), fetch.pages + 1);
            self.begin(fetch.peer, purpose, pages, Some(cursor), now, effects);
        }
        more
    }

    /// A fetch came to its end, well or badly.
    pub(crate) fn done(&mut self, fetch: &Fetch, well: bool, now: u64) {
        let Purpose::Sync(scope) = fetch.purpose else {
            return;
        };
        if !well && scope == Scope::All {
            self.full_left += 1;
        }
        let Some(waiting) = self.waiting.get_mut(&fetch.peer) else {
            return;
        };
        waiting.running = false;
        waiting.attempts += 1;
        if well || waiting.attempts >= ATTEMPTS_MAX {
            self.waiting.remove(&fetch.peer);
        } else {
            waiting.due = now + (500 << waiting.attempts);
        }
    }

    /// Requests that nobody answered in time.
    pub(crate) fn overdue(&mut self, now: u64) -> Vec<Fetch> {
        self.running.extract_if(.., |_, fetch| fetch.deadline <= now).map(|(_, one)| one).collect()
    }

    /// When [`Fetches::tick`] or [`Fetches::overdue`] next has something to do.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        let deadlines = self.running.values().map(|fetch| fetch.deadline);
        let places = self.syncs_running() < SYNCS_MAX;
        let waiting = self.waiting.values().filter(|waiting| places && !waiting.running);
        deadlines.chain(waiting.map(|waiting| waiting.due)).min()
    }

    /// How many requests are under way.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    fn syncs_running(&self) -> usize {
        self.waiting.values().filter(|waiting| waiting.running).count()
    }

    fn begin(
        &mut self,
        peer: PeerId,
        purpose: Purpose,
        pages: usize,
        cursor: Option<Cursor>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let (scope, service) = match &purpose {
            Purpose::Sync(scope) => (*scope, None),
            Purpose::Lookup(service) => (Scope::Own, Some(service.clone())),
        };
        let request = Request::GetAdverts { scope, service, cursor }.encode();
        self.next_id += 1;
        let id = FetchId(self.next_id);
        let deadline = now.saturating_add(FETCH_MILLIS_MAX);
        self.running.insert(id, Fetch { peer, purpose, pages, deadline });
        effects.push(Effect::Fetch { id, peer, request });
    }
}
