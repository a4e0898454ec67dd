//! The router as others see it: calls in, tables in, explanations out.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use protocol::{
    failure::Failure,
    id::{InstanceId, PeerId},
    limits::{CALL_IDLE_SECONDS_MAX, LOOKUP_MILLIS_MAX},
    ports::{Call, Invoke, Locality, Reach, Reply},
    service::ServiceName,
};
use tokio::sync::watch;

use crate::{
    carry::{Carriage, Scope},
    meters::Meters,
    select::{Requirement, Seen, Want, select},
    table::{Candidate, Row, Table},
};

/// Finds out who offers a service that the table does not know.
pub trait Lookup: Send + Sync {
    /// Asks the mesh, until `deadline` at most; true when a provider was found, which then
    /// appears in a table published soon. Remembers negative answers itself, so that asking again
    /// is cheap.
    fn lookup(&self, service: ServiceName, deadline: Instant) -> BoxFuture<'static, bool>;
}

/// Through what the router reaches the world.
#[derive(Clone)]
pub struct Ports {
    /// Plugins of this node.
    pub plugins: Arc<dyn Reach<InstanceId>>,
    /// Other peers.
    pub peers: Arc<dyn Reach<PeerId>>,
    /// Services that the table does not know.
    pub lookup: Arc<dyn Lookup>,
}

/// How long and how often a call is tried.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a call without a deadline may make no progress.
    pub idle: Duration,
    /// How long a call waits for a lookup.
    pub lookup: Duration,
    /// How long one attempt may take to reach its provider; half of the time left where that is
    /// less and another provider could still be tried.
    pub reach: Duration,
    /// How many providers a call is offered to.
    pub attempts_max: u32,
    /// How long a provider that could not be reached, or was lost during a call, is used last.
    pub doubt: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(CALL_IDLE_SECONDS_MAX),
            lookup: Duration::from_millis(LOOKUP_MILLIS_MAX),
            // A dial through a relay with NAT traversal takes two or three seconds.
            reach: Duration::from_secs(5),
            // The dead provider, the one that took over its load, and one to spare.
            attempts_max: 3,
            // Long enough for the swarm to notice that the peer is gone, short enough that a
            // plugin which has restarted gets its share back.
            doubt: Duration::from_secs(3),
        }
    }
}

/// Chooses who answers each call. Cheap to clone; all clones are one router.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) local: PeerId,
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) table: ArcSwap<Table>,
    /// Counts published tables: what waits for a provider waits on it.
    pub(crate) published: watch::Sender<u64>,
    pub(crate) meters: Arc<Meters>,
    began: Instant,
}

impl Router {
    /// A router for the peer `local`, with an empty table. Its series are registered in
    /// `registry`.
    pub fn new(local: PeerId, ports: Ports, settings: Settings, registry: &mut Registry) -> Self {
        let shared = Shared {
            local,
            ports,
            settings,
            table: ArcSwap::from_pointee(Table::default()),
            published: watch::Sender::new(0),
            meters: Meters::new(registry),
            began: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces the table. Calls that have begun keep their provider; those that wait for one look
    /// again. There is one writer: two at once could lose each other's counts, not each other's
    /// providers.
    pub fn publish(&self, mut table: Table) {
        table.inherit(&self.shared.table.load());
        self.shared.table.store(Arc::new(table));
        self.shared.published.send_modify(|count| *count += 1);
    }

    /// The table that calls now see.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// The router for calls that come from other peers: only this node's own plugins answer, and
    /// nothing is looked up.
    pub fn local_only(&self) -> Arc<dyn Invoke> {
        Arc::new(LocalOnly { shared: Arc::clone(&self.shared) })
    }

    /// What would be chosen for a call now, and why. Nothing is looked up, and the next call may
    /// draw another one among equals.
    pub fn explain(
        &self,
        service: &ServiceName,
        locality: Locality,
        requirement: &Requirement,
    ) -> Explanation {
        let table = self.shared.table.load();
        let rows = table.rows(service);
        let seen = self.shared.seen(rows);
        let want = Want { locality, requirement };
        let selection = select(&seen, &want, rand::random());
        let explained = |index: usize, eligible, why: String| Explained {
            candidate: rows[index].candidate.clone(),
            in_flight: seen[index].in_flight,
            eligible,
            why,
        };
        let mut candidates = Vec::with_capacity(rows.len());
        for choice in &selection.choices {
            candidates.push(explained(choice.index, true, choice.why.to_string()));
        }
        for refused in &selection.refused {
            candidates.push(explained(refused.index, false, refused.why.to_string()));
        }
        Explanation { service: service.clone(), candidates }
    }
}

impl Invoke for Router {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Carriage::carry(shared, call, Scope::Mesh))
    }
}

struct LocalOnly {
    shared: Arc<Shared>,
}

impl Invoke for LocalOnly {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Carriage::carry(shared, call, Scope::ThisNode))
    }
}

impl Shared {
    /// Milliseconds since the router began: the clock of the gauges.
    pub(crate) fn now_millis(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Until when somebody who fails now is used last.
    pub(crate) fn doubt_until(&self) -> u64 {
        self.now_millis() + self.settings.doubt.as_millis() as u64
    }

    pub(crate) fn seen<'a>(&self, rows: &'a [Row]) -> Vec<Seen<'a>> {
        let now = self.now_millis();
        let one = |row: &'a Row| Seen {
            candidate: &row.candidate,
            in_flight: row.gauge.in_flight(),
            doubted: row.gauge.is_doubted(now),
        };
        rows.iter().map(one).collect()
    }
}

/// What would be chosen for a call to one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The service.
    pub service: ServiceName,
    /// Those that may answer, best first, then those that may not.
    pub candidates: Vec<Explained>,
}

/// One provider, and why it stands where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// Who.
    pub candidate: Candidate,
    /// Calls of this node that it has not finished.
    pub in_flight: u32,
    /// Whether it may answer.
    pub eligible: bool,
    /// One clause.
    pub why: String,
}

impl fmt::Display for Explanation {
    /// One sentence: the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = &self.service;
        let eligible = self.candidates.iter().filter(|one| one.eligible).count();
        match self.candidates.first() {
            None => write!(f, "nobody is known to offer {service}; a call would ask the DHT first"),
            Some(first) if !first.eligible => {
                write!(f, "none of the {} providers of {service} may answer", self.candidates.len())
            }
            Some(first) => {
                let (plugin, peer) = (&first.candidate.plugin, first.candidate.peer);
                write!(f, "{service} would be answered by {plugin} on {peer}: {}", first.why)?;
                if eligible > 1 { write!(f, "; {eligible} could answer") } else { Ok(()) }
            }
        }
    }
}
