//! How a service's calls are routed: what the operator may set, with defaults that need no word.
//!
//! Data only. Every duration is a [`Duration`] here and microseconds where it is decided on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use protocol::{ports::Locality, service::ServiceName, wishes::Priority};

use crate::select::Requirement;

/// The metadata key whose value says to which session a call belongs, unless another is set.
pub const KEY_DEFAULT: &str = "bh-key";

/// The label by which a provider says how much of the work it wants, a whole number.
pub const WEIGHT_LABEL: &str = "weight";

/// The largest weight. The smallest is 1, and what a provider without one has.
pub const WEIGHT_MAX: u32 = 1_000;

/// Calls that a plugin of this node may have at once, unless less is set: 10,000 streams of one
/// service, and room for other calls of it.
pub const CALLS_MAX: u32 = 16_384;

/// Policies of all services.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// For services without one of their own.
    pub default: Arc<Policy>,
    /// By service.
    pub services: BTreeMap<ServiceName, Arc<Policy>>,
}

impl Policies {
    /// The policy for calls of `service`.
    pub fn of(&self, service: &ServiceName) -> &Arc<Policy> {
        self.services.get(service).unwrap_or(&self.default)
    }
}

/// How one service's calls are routed.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How a provider is chosen among those that are as good.
    pub method: Method,
    /// Where a call goes whose caller does not mind.
    pub locality: Locality,
    /// What every provider must be, beside what a call asks for.
    pub requirement: Requirement,
    /// Plugin names or peer ids that are used only where no other provider is healthy.
    pub backups: BTreeSet<String>,
    /// Weights by plugin name or peer id, for [`Method::Weighted`]; else the provider's own
    /// [`WEIGHT_LABEL`] counts.
    pub weights: BTreeMap<String, u32>,
    /// The metadata key whose value is hashed, for [`Method::Hash`].
    pub key: String,
    /// Further attempts.
    pub retries: Retries,
    /// A second attempt while the first still runs; `None` for never.
    pub hedging: Option<Hedging>,
    /// When a provider is not called at all; `None` for never.
    pub breaker: Option<Breaking>,
    /// When a provider is used last; `None` for never.
    pub ejection: Option<Ejection>,
    /// How many calls a plugin here may have at once.
    pub limit: Limit,
    /// How much a call matters whose caller says nothing.
    pub priority: Priority,
    /// Methods that may run twice, beside those whose descriptors say so: `Get`.
    pub idempotent: BTreeSet<String>,
    /// Whether answers that say how long they hold are kept here.
    pub cache: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            method: Method::default(),
            locality: Locality::default(),
            requirement: Requirement::default(),
            backups: BTreeSet::new(),
            weights: BTreeMap::new(),
            key: KEY_DEFAULT.into(),
            retries: Retries::default(),
            hedging: None,
            breaker: Some(Breaking::default()),
            ejection: Some(Ejection::default()),
            limit: Limit::default(),
            priority: Priority::default(),
            idempotent: BTreeSet::new(),
            cache: true,
        }
    }
}

/// How a provider is chosen among those that are as good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Two at random, the one with fewer calls in flight first (*the power of two choices*).
    #[default]
    LeastLoaded,
    /// One after the other.
    RoundRobin,
    /// Two at random, the one that lately answered sooner first, its calls in flight considered
    /// (*peak EWMA*).
    LowestLatency,
    /// At random, as often as its weight says.
    Weighted,
    /// Always the same one for the same key, as long as it is there (*rendezvous hashing*).
    Hash,
}

impl Method {
    /// All of them, by name.
    pub const NAMED: [(&'static str, Self); 5] = [
        ("least-loaded", Self::LeastLoaded),
        ("round-robin", Self::RoundRobin),
        ("lowest-latency", Self::LowestLatency),
        ("weighted", Self::Weighted),
        ("hash", Self::Hash),
    ];
}

/// Further attempts at a call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Attempts in all, the first one and hedges included; at least 1.
    pub attempts_max: u32,
    /// The longest wait before the second attempt; each further one may be twice as long.
    pub backoff: Duration,
    /// The longest wait before any.
    pub backoff_max: Duration,
    /// Attempts that cost somebody work, for each hundred calls.
    pub budget_percent: u32,
    /// And as many in each second, so that a service that is seldom called can have any.
    pub budget_per_second: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            // The dead provider, the one that took over its load, and one to spare.
            attempts_max: 3,
            backoff: Duration::from_millis(25),
            backoff_max: Duration::from_secs(1),
            // As in Finagle and Linkerd: a fifth more load does not turn trouble into collapse.
            budget_percent: 20,
            budget_per_second: 10,
        }
    }
}

/// A second attempt while the first one still runs. Only for methods that may run twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hedging {
    /// When; `None` for the time in which 95 of 100 calls are answered.
    pub after: Option<Duration>,
}

/// When a provider is not called at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaking {
    /// Failures in a row that open its circuit.
    pub failures: u32,
    /// How long it stays open the first time; each further time in a row twice as long.
    pub open: Duration,
    /// The longest it stays open.
    pub open_max: Duration,
}

impl Default for Breaking {
    fn default() -> Self {
        Self {
            failures: 5,
            open: Duration::from_secs(1),
            // A provider that comes back is found within this time.
            open_max: Duration::from_secs(30),
        }
    }
}

/// When a provider is used only after all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejection {
    /// Failed, faulty or late answers in a row that eject it.
    pub failures: u32,
    /// How long the first time; each further time in a row as much longer.
    pub time: Duration,
    /// The longest.
    pub time_max: Duration,
    /// How many of a service's providers may be ejected at once, in percent; never all.
    pub share_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            time: Duration::from_secs(10),
            time_max: Duration::from_mins(5),
            // More of them failing is no matter of single providers.
            share_percent: 50,
        }
    }
}

/// How many calls a plugin of this node may have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The most, at most [`CALLS_MAX`], and where `adaptive` begins to search downwards.
    pub calls_max: u32,
    /// Whether the bound follows from how long answers take.
    pub adaptive: bool,
}

impl Default for Limit {
    fn default() -> Self {
        Self { calls_max: CALLS_MAX, adaptive: false }
    }
}
