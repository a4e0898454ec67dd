//! Who offers what, as one immutable table.
//!
//! One writer makes a new table whenever something changed and publishes it; calls read whichever
//! is current and never wait. What this node observes of a provider while calling it (calls in
//! flight, failures, latency) lives in gauges that pass from one table to the next, and what it
//! keeps for a service (its policy, its budget) in books that do the same.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use protocol::{
    id::{InstanceId, PeerId},
    service::ServiceName,
};

use crate::{
    book::Book,
    gauge::Gauge,
    policy::Policies,
    select::{Seen, Traits},
};

/// One provider of one service: a running plugin, here or on another peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The peer that runs it; this node's own id for a local one.
    pub peer: PeerId,
    /// Whether it runs on this node.
    pub local: bool,
    /// The run of the plugin.
    pub instance: InstanceId,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version as it gives it; a version requirement only meets semantic ones.
    pub version: String,
    /// Labels of the plugin and its peer: region, role, hardware.
    pub labels: BTreeMap<String, String>,
    /// What it says of its load, 0 to 100 percent; seconds old for remote ones.
    pub load_percent: u8,
    /// What is known of its condition.
    pub standing: Standing,
}

/// What is known of a provider's condition. Later ones are chosen after all earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Healthy,
    /// Its peer disappeared without saying goodbye, or a call to it has just failed.
    Suspect,
    /// No way to its peer is known.
    Unreachable,
}

/// All providers of all services, as known when it was made.
#[derive(Debug, Default)]
pub struct Table {
    services: HashMap<ServiceName, Entry>,
    gauges: HashMap<(PeerId, InstanceId), Arc<Gauge>>,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) rows: Vec<Row>,
    pub(crate) book: Arc<Book>,
}

/// A candidate with what this node observes of it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) candidate: Candidate,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) traits: Traits,
}

impl Table {
    /// A table of these offers. Health and reflection are left out: they belong to each program
    /// itself and are never routed by name.
    pub fn new(offers: impl IntoIterator<Item = (ServiceName, Candidate)>) -> Self {
        let mut table = Self::default();
        // Both are the service's own once the table is published.
        let (book, traits) = (Arc::new(Book::new(Arc::default(), 0)), Traits::default());
        for (service, candidate) in offers {
            if service.is_infrastructure() {
                continue;
            }
            let gauge = table.gauges.entry((candidate.peer, candidate.instance)).or_default();
            let row = Row { gauge: Arc::clone(gauge), candidate, traits };
            let new = || Entry { rows: Vec::new(), book: Arc::clone(&book) };
            table.services.entry(service).or_insert_with(new).rows.push(row);
        }
        for Entry { rows, .. } in table.services.values_mut() {
            // The same offers make the same table, whatever order they came in.
            rows.sort_by_key(|row| (row.candidate.peer, row.candidate.instance));
            rows.dedup_by_key(|row| (row.candidate.peer, row.candidate.instance));
        }
        table
    }

    /// Every service with at least one provider, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// The providers of `service`, ordered by peer and instance; empty where nobody offers it.
    pub fn candidates(&self, service: &ServiceName) -> impl Iterator<Item = &Candidate> {
        self.rows(service).iter().map(|row| &row.candidate)
    }

    pub(crate) fn entry(&self, service: &ServiceName) -> Option<&Entry> {
        self.services.get(service)
    }

    pub(crate) fn rows(&self, service: &ServiceName) -> &[Row] {
        self.services.get(service).map_or(&[], |entry| entry.rows.as_slice())
    }

    /// Takes over the gauges and books of who was in `previous`, so that a new table does not
    /// forget which calls are in flight; new services get a book of their own at `now`.
    pub(crate) fn inherit(&mut self, previous: &Self, policies: &Policies, now: u64) {
        for (key, gauge) in &mut self.gauges {
            if let Some(old) = previous.gauges.get(key) {
                *gauge = Arc::clone(old);
            }
        }
        for (service, entry) in &mut self.services {
            let old = previous.services.get(service);
            entry.book = match old {
                Some(old) => Arc::clone(&old.book),
                None => Arc::new(Book::new(Arc::clone(policies.of(service)), now)),
            };
            for row in &mut entry.rows {
                let key = (row.candidate.peer, row.candidate.instance);
                if let Some(gauge) = self.gauges.get(&key) {
                    row.gauge = Arc::clone(gauge);
                }
                row.traits = match old.and_then(|old| old.row_of(&row.candidate)) {
                    Some(known) => known.traits,
                    None => Traits::of(&row.candidate, entry.book.policy()),
                };
            }
        }
    }
}

impl Row {
    /// As a call sees it at `now`.
    pub(crate) fn seen(&self, now: u64) -> Seen<'_> {
        Seen {
            candidate: &self.candidate,
            traits: self.traits,
            in_flight: self.gauge.in_flight(),
            view: self.gauge.view(now),
        }
    }
}

impl Entry {
    /// The row of whom policies know as they know `candidate`, so that its traits are the same:
    /// writing peer ids out for every row of every table costs more than all else about it.
    fn row_of(&self, candidate: &Candidate) -> Option<&Row> {
        let key = |it: &Candidate| (it.peer, it.instance);
        let at = self.rows.binary_search_by_key(&key(candidate), |row| key(&row.candidate)).ok()?;
        let row = &self.rows[at];
        let same =
            row.candidate.plugin == candidate.plugin && row.candidate.labels == candidate.labels;
        same.then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::NodeKey;

    use super::*;

    fn offer(service: &str, seed: u8, instance: u64) -> (ServiceName, Candidate) {
        let candidate = Candidate {
            peer: NodeKey::from_seed([seed; 32]).peer_id(),
            local: false,
            instance: InstanceId(instance),
            plugin: "counter".into(),
            version: "1.0.0".into(),
            labels: BTreeMap::new(),
            load_percent: 0,
            standing: Standing::Healthy,
        };
        (service.parse().expect("a service name"), candidate)
    }

    #[test]
    fn health_and_reflection_are_never_in_the_table() {
        let table = Table::new([
            offer("grpc.health.v1.Health", 1, 1),
            offer("grpc.reflection.v1.ServerReflection", 1, 1),
            offer("demo.v1.Counter", 1, 1),
        ]);
        assert_eq!(
            table.services().map(ServiceName::as_str).collect::<Vec<_>>(),
            ["demo.v1.Counter"]
        );
    }

    #[test]
    fn a_new_table_remembers_the_calls_in_flight_at_those_who_stay() {
        let service: ServiceName = "demo.v1.Counter".parse().expect("a service name");
        let old = Table::new([offer("demo.v1.Counter", 1, 1)]);
        let in_flight = old.rows(&service)[0].gauge.enter(&Arc::default(), 0);
        let mut new = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Counter", 2, 7)]);
        new.inherit(&old, &Policies::default(), 0);
        let counts = |table: &Table| {
            let mut all: Vec<_> =
                table.rows(&service).iter().map(|row| row.gauge.in_flight()).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(counts(&new), [0, 1]);
        drop(in_flight);
        assert_eq!(counts(&new), [0, 0]);
    }

    #[test]
    fn traits_follow_a_provider_from_table_to_table_and_change_with_its_labels() {
        use crate::policy::WEIGHT_LABEL;
        let service: ServiceName = "demo.v1.Counter".parse().expect("a service name");
        let (policies, policy) = (Policies::default(), crate::Policy::default());
        let mut table = Table::default();
        for weight in ["2", "2", "3"] {
            let mut offer = offer("demo.v1.Counter", 1, 1);
            offer.1.labels.insert(WEIGHT_LABEL.into(), weight.into());
            let mut next = Table::new([offer.clone()]);
            next.inherit(&table, &policies, 0);
            assert_eq!(next.rows(&service)[0].traits, Traits::of(&offer.1, &policy), "{weight}");
            table = next;
        }
    }

    #[test]
    fn one_instance_has_one_count_whichever_of_its_services_is_called() {
        let table = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Admin", 1, 1)]);
        let admin: ServiceName = "demo.v1.Admin".parse().expect("a service name");
        let counter: ServiceName = "demo.v1.Counter".parse().expect("a service name");
        let _in_flight = table.rows(&admin)[0].gauge.enter(&Arc::default(), 0);
        assert_eq!(table.rows(&counter)[0].gauge.in_flight(), 1);
    }

    #[test]
    fn an_offer_made_twice_is_one_candidate() {
        let table = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Counter", 1, 1)]);
        let service = "demo.v1.Counter".parse().expect("a service name");
        assert_eq!(table.candidates(&service).count(), 1);
    }
}
