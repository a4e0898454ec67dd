//! Who offers what, as one immutable table.
//!
//! One writer makes a new table whenever something changed and publishes it; calls read whichever
//! is current and never wait. What this node observes of a provider while calling it (calls in
//! flight, recent failures) lives in gauges that pass from one table to the next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use protocol::{
    id::{InstanceId, PeerId},
    service::ServiceName,
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
    services: HashMap<ServiceName, Vec<Row>>,
    gauges: HashMap<(PeerId, InstanceId), Arc<Gauge>>,
}

/// A candidate with what this node observes of it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) candidate: Candidate,
    pub(crate) gauge: Arc<Gauge>,
}

impl Table {
    /// A table of these offers. Health and reflection are left out: they belong to each program
    /// itself and are never routed by name.
    pub fn new(offers: impl IntoIterator<Item = (ServiceName, Candidate)>) -> Self {
        let mut table = Self::default();
        for (service, candidate) in offers {
            if service.is_infrastructure() {
                continue;
            }
            let gauge = table.gauges.entry((candidate.peer, candidate.instance)).or_default();
            let row = Row { gauge: Arc::clone(gauge), candidate };
            table.services.entry(service).or_default().push(row);
        }
        for rows in table.services.values_mut() {
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

    pub(crate) fn rows(&self, service: &ServiceName) -> &[Row] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    /// Takes over the gauges of providers that were in `previous`, so that a new table does not
    /// forget which calls are in flight.
    pub(crate) fn inherit(&mut self, previous: &Self) {
        for (key, gauge) in &mut self.gauges {
            if let Some(old) = previous.gauges.get(key) {
                *gauge = Arc::clone(old);
            }
        }
        for row in self.services.values_mut().flatten() {
            let key = (row.candidate.peer, row.candidate.instance);
            if let Some(gauge) = self.gauges.get(&key) {
                row.gauge = Arc::clone(gauge);
            }
        }
    }
}

/// What this node observes of one provider while calling it.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    in_flight: AtomicU32,
    /// Milliseconds on the router's clock until which it is used last.
    doubted_until: AtomicU64,
}

impl Gauge {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a call until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn doubt(&self, until_millis: u64) {
        self.doubted_until.fetch_max(until_millis, Relaxed);
    }

    pub(crate) fn is_doubted(&self, now_millis: u64) -> bool {
        self.doubted_until.load(Relaxed) > now_millis
    }

    /// It has just answered.
    pub(crate) fn trust(&self) {
        if self.doubted_until.load(Relaxed) != 0 {
            self.doubted_until.store(0, Relaxed);
        }
    }
}

/// One call in flight at a provider; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Gauge>);

impl InFlight {
    pub(crate) fn gauge(&self) -> &Gauge {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
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
        let in_flight = old.rows(&service)[0].gauge.enter();
        let mut new = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Counter", 2, 7)]);
        new.inherit(&old);
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
    fn one_instance_has_one_count_whichever_of_its_services_is_called() {
        let table = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Admin", 1, 1)]);
        let admin: ServiceName = "demo.v1.Admin".parse().expect("a service name");
        let counter: ServiceName = "demo.v1.Counter".parse().expect("a service name");
        let _in_flight = table.rows(&admin)[0].gauge.enter();
        assert_eq!(table.rows(&counter)[0].gauge.in_flight(), 1);
    }

    #[test]
    fn an_offer_made_twice_is_one_candidate() {
        let table = Table::new([offer("demo.v1.Counter", 1, 1), offer("demo.v1.Counter", 1, 1)]);
        let service = "demo.v1.Counter".parse().expect("a service name");
        assert_eq!(table.candidates(&service).count(), 1);
    }
}
