//! The router as others see it: calls in, tables in, explanations out.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::HeaderValue;
use prometheus_client::registry::Registry;
use protocol::{
    failure::Failure,
    id::{InstanceId, PeerId},
    limits::{CALL_IDLE_SECONDS_MAX, LOOKUP_MILLIS_MAX},
    ports::{Call, Invoke, Locality, Reach, Reply},
    service::{MethodPath, ServiceName},
};
use tokio::sync::watch;

use crate::{
    cache::Cache,
    carry::{Carriage, Scope},
    meters::Meters,
    policy::Policies,
    replay::Spare,
    select::{Requirement, Seen, Selection, Want, select},
    table::{Candidate, Row, Table},
    trace::{EXPLAIN, Step, Trace},
};

/// Finds out who offers a service that the table does not know.
pub trait Lookup: Send + Sync {
    /// Asks the mesh, until `deadline` at most; true when a provider was found, which then
    /// appears in a table published soon. Remembers negative answers itself, so that asking again
    /// is cheap.
    fn lookup(&self, service: ServiceName, deadline: Instant) -> BoxFuture<'static, bool>;
}

/// Knows what methods declare of themselves.
pub trait Declared: Send + Sync {
    /// What the method's descriptors say, asked until `deadline` at most. Remembers answers itself.
    fn of(&self, path: MethodPath, deadline: Instant) -> BoxFuture<'static, Declaration>;
}

/// What a method declares of itself; the default where nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Declaration {
    /// It is idempotent, or free of side effects.
    pub may_run_twice: bool,
    /// It is free of side effects, and one message asks and one answers.
    pub cacheable: bool,
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
    /// What services say of their methods.
    pub declared: Arc<dyn Declared>,
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
    /// How long a call that failed waits to learn whether its method may run twice.
    pub describe: Duration,
    /// How each service's calls are routed.
    pub policies: Policies,
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
            // Known already, or one round trip to a peer.
            describe: Duration::from_secs(1),
            policies: Policies::default(),
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
    pub(crate) policies: Policies,
    pub(crate) table: ArcSwap<Table>,
    /// Counts published tables: what waits for a provider waits on it.
    pub(crate) published: watch::Sender<u64>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) spare: Arc<Spare>,
    pub(crate) cache: Cache,
    began: Instant,
}

impl Router {
    /// A router for the peer `local`, with an empty table. Its series are registered in
    /// `registry`.
    pub fn new(
        local: PeerId,
        ports: Ports,
        mut settings: Settings,
        registry: &mut Registry,
    ) -> Self {
        let shared = Shared {
            policies: std::mem::take(&mut settings.policies),
            local,
            ports,
            settings,
            table: ArcSwap::from_pointee(Table::default()),
            published: watch::Sender::new(0),
            meters: Meters::new(registry),
            spare: Spare::new(),
            cache: Cache::new(),
            began: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces the table. Calls that have begun keep their provider; those that wait for one look
    /// again. There is one writer: two at once could lose each other's counts, not each other's
    /// providers.
    pub fn publish(&self, mut table: Table) {
        let shared = &self.shared;
        table.inherit(&shared.table.load(), &shared.policies, shared.now());
        self.shared.table.store(Arc::new(table));
        self.shared.published.send_modify(|count| *count += 1);
    }

    /// The table that calls now see.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Waits until calls find the run `instance` of a plugin under `service`. Whoever is told that
    /// it was loaded may call it: the table has one writer, who learns of the plugin on its own.
    pub async fn finds(&self, service: &ServiceName, instance: InstanceId) {
        let found = |_: &u64| self.table().candidates(service).any(|it| it.instance == instance);
        // The sender is this router's own: it cannot be gone.
        let _ = self.shared.published.subscribe().wait_for(found).await;
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
        let shared = &self.shared;
        let table = shared.table.load();
        let (rows, now) = (table.rows(service), shared.now());
        let policy = shared.policies.of(service);
        let locality = if locality == Locality::PreferLocal { policy.locality } else { locality };
        let want = Want { locality, requirement, policy, key: None, turn: 0, now };
        let selection = select(&seen(rows, now), &want, rand::random());
        let candidates = shared.explained(rows, &selection);
        Explanation { service: service.clone(), candidates }
    }

    /// Carries `call` out as [`Invoke::invoke`] does, and writes down what happens to it.
    pub fn trace(&self, mut call: Call) -> (BoxFuture<'static, Result<Reply, Failure>>, Traced) {
        call.head.metadata.insert(EXPLAIN, HeaderValue::from_static("1"));
        let (shared, trace) = (Arc::clone(&self.shared), Trace::new());
        let traced = Traced(Arc::clone(&trace));
        (Box::pin(Carriage::carry(shared, call, Scope::Mesh, Some(trace))), traced)
    }
}

/// What happens to one call; complete when the call is over.
#[derive(Debug)]
pub struct Traced(Arc<Trace>);

impl Traced {
    /// The steps so far.
    pub fn steps(&self) -> Vec<Step> {
        self.0.steps()
    }
}

impl Invoke for Router {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Carriage::carry(shared, call, Scope::Mesh, None))
    }
}

struct LocalOnly {
    shared: Arc<Shared>,
}

impl Invoke for LocalOnly {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(Carriage::carry(shared, call, Scope::ThisNode, None))
    }
}

impl Shared {
    /// Microseconds since the router began: its clock.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// A moment on the router's clock; its beginning for earlier ones.
    pub(crate) fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.began);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// A selection over `rows` as people read it.
    pub(crate) fn explained(&self, rows: &[Row], selection: &Selection) -> Vec<Explained> {
        let now = self.now();
        let explained = |index: usize, eligible, why: String| Explained {
            candidate: rows[index].candidate.clone(),
            in_flight: rows[index].gauge.in_flight(),
            latency: rows[index].gauge.view(now).latency.map(Duration::from_micros),
            eligible,
            why,
        };
        let choices = selection.choices.iter();
        let choices = choices.map(|one| explained(one.index, true, one.why.to_string()));
        let refused = selection.refused.iter();
        choices.chain(refused.map(|one| explained(one.index, false, one.why.to_string()))).collect()
    }
}

/// `rows` as a call sees them at `now`.
pub(crate) fn seen(rows: &[Row], now: u64) -> Vec<Seen<'_>> {
    rows.iter().map(|row| row.seen(now)).collect()
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
    /// How long its answers take of late; `None` before the first one.
    pub latency: Option<Duration>,
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
