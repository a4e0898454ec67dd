//! Looking a service up when nobody is known to offer it: ask the DHT who provides it, ask those
//! for their adverts, and remember for a while when nobody answered.

use std::collections::BTreeMap;

use protocol::{
    limits::{ABSENT_MILLIS, LOOKUP_MILLIS_MAX},
    service::ServiceName,
};

use crate::event::{Effect, LookupId};

/// Services looked up at once. Names come from callers, who may make them up.
const LOOKUPS_MAX: usize = 256;

/// Callers waiting for the same service. More are told at once that it was not found.
const WAITERS_MAX: usize = 1_024;

/// Absent services remembered.
const ABSENT_MAX: usize = 1_024;

/// Providers asked in one lookup; the DHT may name more, and any of them may be a lie.
pub(crate) const PROVIDERS_ASKED_MAX: usize = 8;

struct Running {
    waiters: Vec<LookupId>,
    deadline: u64,
    /// `None` while the DHT is being asked, then how many providers have yet to answer.
    asked: Option<usize>,
}

/// All lookups under way, and what was not found lately.
#[derive(Default)]
pub(crate) struct Lookups {
    running: BTreeMap<ServiceName, Running>,
    absent: BTreeMap<ServiceName, u64>,
}

impl Lookups {
    /// Begins a lookup, or joins the one under way. True where the DHT is to be asked.
    pub(crate) fn request(
        &mut self,
        id: LookupId,
        service: &ServiceName,
        now: u64,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let absent = self.absent.get(service).is_some_and(|until| now < *until);
        let full = match self.running.get_mut(service) {
            Some(running) if running.waiters.len() < WAITERS_MAX => {
                running.waiters.push(id);
                return false;
            }
            Some(_) => true,
            None => self.running.len() >= LOOKUPS_MAX,
        };
        if absent || full {
            effects.push(Effect::LookupDone { id, found: false });
            return false;
        }
        let deadline = now.saturating_add(LOOKUP_MILLIS_MAX);
        let running = Running { waiters: vec![id], deadline, asked: None };
        self.running.insert(service.clone(), running);
        true
    }

    /// The DHT answered: `asked` providers are being asked.
    pub(crate) fn asked(
        &mut self,
        service: &ServiceName,
        asked: usize,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(running) = self.running.get_mut(service) else {
            return;
        };
        running.asked = Some(asked);
        if asked == 0 {
            self.give_up(service, now, effects);
        }
    }

    /// True while the DHT's answer about `service` is awaited.
    pub(crate) fn awaits_providers(&self, service: &ServiceName) -> bool {
        self.running.get(service).is_some_and(|running| running.asked.is_none())
    }

    /// One of the providers asked has answered, or will not.
    pub(crate) fn answered(&mut self, service: &ServiceName, now: u64, effects: &mut Vec<Effect>) {
        let Some(running) = self.running.get_mut(service) else {
            return;
        };
        let Some(left) = &mut running.asked else {
            return;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.give_up(service, now, effects);
        }
    }

    /// Somebody offers `service`.
    pub(crate) fn appeared(&mut self, service: &ServiceName, effects: &mut Vec<Effect>) {
        self.absent.remove(service);
        if let Some(running) = self.running.remove(service) {
            let done = |id| Effect::LookupDone { id, found: true };
            effects.extend(running.waiters.into_iter().map(done));
        }
    }

    /// Ends what took too long.
    pub(crate) fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let over = self.running.iter().filter(|(_, running)| running.deadline <= now);
        let over: Vec<ServiceName> = over.map(|(service, _)| service.clone()).collect();
        for service in over {
            self.give_up(&service, now, effects);
        }
    }

    /// When [`Lookups::tick`] next has something to do.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        self.running.values().map(|running| running.deadline).min()
    }

    /// How many names are remembered, under way and absent.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.running.len(), self.absent.len())
    }

    fn give_up(&mut self, service: &ServiceName, now: u64, effects: &mut Vec<Effect>) {
        let Some(running) = self.running.remove(service) else {
            return;
        };
        let done = |id| Effect::LookupDone { id, found: false };
        effects.extend(running.waiters.into_iter().map(done));
        if self.absent.len() >= ABSENT_MAX {
            self.absent.retain(|_, until| now < *until);
        }
        if self.absent.len() >= ABSENT_MAX {
            let oldest = self.absent.iter().min_by_key(|(_, until)| **until);
            if let Some(oldest) = oldest.map(|(service, _)| service.clone()) {
                self.absent.remove(&oldest);
            }
        }
        self.absent.insert(service.clone(), now.saturating_add(ABSENT_MILLIS));
    }
}
