//! Who comes next: the choice over the current table, for one call.

use std::{sync::Arc, time::Instant};

use protocol::{
    failure::{Failure, Ran, Reason},
    id::{InstanceId, PeerId},
    ports::Locality,
};

use crate::{
    book::Book,
    carry::{Carriage, Scope},
    gauge::InFlight,
    router::seen,
    select::{Selection, Unfit, Want, glance, select},
    table::{Candidate, Entry, Row},
    trace::Event,
};

/// Where a call is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Plugin(InstanceId),
    Peer(PeerId),
}

impl Target {
    pub(crate) fn of(candidate: &Candidate) -> Self {
        if candidate.local { Self::Plugin(candidate.instance) } else { Self::Peer(candidate.peer) }
    }

    /// The peer, where it is another one.
    pub(crate) fn peer(self) -> Option<PeerId> {
        match self {
            Self::Plugin(_) => None,
            Self::Peer(peer) => Some(peer),
        }
    }
}

/// Who is to answer, its place among the calls in flight taken.
pub(crate) struct Provider {
    pub(crate) target: Target,
    pub(crate) peer: PeerId,
    pub(crate) plugin: String,
    pub(crate) in_flight: InFlight,
    pub(crate) book: Arc<Book>,
    /// Others could be tried after it.
    pub(crate) others: bool,
}

impl Carriage {
    /// The best provider known, after a lookup where none is.
    pub(crate) async fn first_provider(&mut self) -> Result<Provider, Failure> {
        if self.watchdog.is_over() {
            return Err(self.watchdog.failure(Ran::NotStarted));
        }
        if let Some(provider) = self.next_provider() {
            return Ok(provider);
        }
        if let Some(failure) = self.all_circuits_open() {
            return Err(failure);
        }
        if self.scope == Scope::Mesh && self.locality != Locality::Local {
            let due = self.watchdog.within(self.shared.settings.lookup);
            let found = self.look_up(due).await;
            self.note(|| Event::LookedUp { found: found.is_some() });
            if let Some(provider) = found {
                return Ok(provider);
            }
            if self.watchdog.is_over() {
                return Err(self.watchdog.failure(Ran::NotStarted));
            }
        }
        Err(self.not_available())
    }

    /// Asks the mesh, and waits until `due` for a table in which the service has a provider.
    async fn look_up(&self, due: Instant) -> Option<Provider> {
        let mut published = self.shared.published.subscribe();
        let mut lookup = self.shared.ports.lookup.lookup(self.service.clone(), due);
        let search = async {
            let mut asked = true;
            loop {
                if let Some(provider) = self.next_provider() {
                    return Some(provider);
                }
                tokio::select! {
                    changed = published.changed() => if changed.is_err() { return None },
                    found = &mut lookup, if asked => {
                        asked = false;
                        // Found: it is in a table that is about to be published, or already was.
                        if !found { return self.next_provider() }
                    }
                }
            }
        };
        tokio::time::timeout_at(due.into(), search).await.ok().flatten()
    }

    /// The best provider in the current table that was not tried in this round.
    pub(crate) fn next_provider(&self) -> Option<Provider> {
        self.pick(false)
    }

    /// The same, where `hedge` while an earlier attempt still runs.
    pub(crate) fn pick(&self, hedge: bool) -> Option<Provider> {
        let table = self.shared.table.load();
        let entry = table.entry(&self.service)?;
        let now = self.shared.now();
        if let Some((index, others)) = self.glance(entry, now) {
            return Some(self.provider(entry, index, others, now));
        }
        let selection = self.select(entry);
        let mut rows = selection.choices.iter().map(|choice| (&entry.rows[choice.index], choice));
        let untried = |row: &Row| !self.tried.contains(&Target::of(&row.candidate));
        let (row, choice) = rows.by_ref().find(|(row, _)| untried(row))?;
        let candidate = &row.candidate;
        let target = Target::of(candidate);
        let others = rows.any(|(row, _)| Target::of(&row.candidate) != target && untried(row));
        if self.course.attempts() == 0 {
            self.note(|| Event::Weighed(self.shared.explained(&entry.rows, &selection)));
        }
        self.note(|| Event::Chosen {
            peer: candidate.peer,
            plugin: candidate.plugin.clone(),
            instance: candidate.instance,
            local: candidate.local,
            why: choice.why.to_string(),
            hedge,
        });
        Some(self.provider(entry, choice.index, others, now))
    }

    /// A good choice by its place, and whether there are others, where that can be said without
    /// weighing all, and nobody wants to know what was weighed.
    fn glance(&self, entry: &Entry, now: u64) -> Option<(usize, bool)> {
        if self.trace.is_some() || !self.tried.is_empty() {
            return None;
        }
        let rows = &entry.rows;
        let want = self.want(entry, now);
        let (index, other) =
            glance(rows.len(), |index| rows[index].seen(now), &want, rand::random())?;
        let target = |index: usize| Target::of(&rows[index].candidate);
        let others = other.map(|other| target(other) != target(index));
        // Two plugins of one peer are one target; there may be others yet.
        (others != Some(false)).then_some((index, others.is_some()))
    }

    fn provider(&self, entry: &Entry, index: usize, others: bool, now: u64) -> Provider {
        let Row { candidate, gauge, .. } = &entry.rows[index];
        Provider {
            target: Target::of(candidate),
            peer: candidate.peer,
            plugin: candidate.plugin.clone(),
            in_flight: gauge.enter(&self.policy, now),
            book: Arc::clone(&entry.book),
            others,
        }
    }

    /// Whether somebody is left in this round.
    pub(crate) fn has_others(&self) -> bool {
        let table = self.shared.table.load();
        let Some(entry) = table.entry(&self.service) else { return false };
        let choices = self.select(entry).choices;
        let target = |index: usize| Target::of(&entry.rows[index].candidate);
        choices.iter().any(|one| !self.tried.contains(&target(one.index)))
    }

    fn select(&self, entry: &Entry) -> Selection {
        let now = self.shared.now();
        select(&seen(&entry.rows, now), &self.want(entry, now), rand::random())
    }

    fn want(&self, entry: &Entry, now: u64) -> Want<'_> {
        Want {
            locality: self.locality,
            requirement: &self.requirement,
            policy: &self.policy,
            key: self.key,
            turn: *self.turn.get_or_init(|| entry.book.begin()),
            now,
        }
    }

    /// The failure of a call that every provider's breaker keeps out.
    fn all_circuits_open(&self) -> Option<Failure> {
        let table = self.shared.table.load();
        let refused = self.select(table.entry(&self.service)?).refused;
        let times = refused.iter().filter_map(|one| match one.why {
            Unfit::CircuitOpen { for_micros } => Some(for_micros),
            _ => None,
        });
        let (kept_out, soonest) = (times.clone().count(), times.min()?);
        let pause = std::time::Duration::from_micros(soonest);
        let service = &self.service;
        let message = format!(
            "circuit open for {service}: calls to all {kept_out} of its providers failed again and \
             again; the next is let through in {} ms",
            pause.as_millis()
        );
        Some(Failure::not_started(Reason::CircuitOpen, message).retry_after(pause))
    }

    fn not_available(&self) -> Failure {
        let service = &self.service;
        let table = self.shared.table.load();
        let rows = table.rows(service);
        let refused = table.entry(service).map(|entry| self.select(entry).refused);
        let refused = refused.unwrap_or_default();
        let unmet = refused
            .iter()
            .find(|one| matches!(one.why, Unfit::Label { .. } | Unfit::Version { .. }));
        if let Some(one) = unmet {
            let message = format!(
                "service {service} not available as asked for: {} of its providers is known, and \
                 {} on {} {}",
                rows.len(),
                rows[one.index].candidate.plugin,
                rows[one.index].candidate.peer,
                one.why
            );
            return Failure::not_started(Reason::NotAvailable, message);
        }
        match (self.scope, self.locality) {
            (Scope::ThisNode, _) => Failure::not_available(service).at(self.shared.local),
            (Scope::Mesh, Locality::Local) if !rows.is_empty() => Failure::not_started(
                Reason::NotAvailable,
                format!(
                    "service {service} not available on this node; {} elsewhere offer it",
                    rows.len()
                ),
            ),
            (Scope::Mesh, Locality::Peer(peer)) => Failure::not_available(service).at(peer),
            _ => Failure::not_available(service),
        }
    }
}
