//! Chooses who answers a call, and never carries one itself.
//!
//! Owns the routing table ([`Table`]: immutable, replaced as a whole by one writer), the choice
//! over it, and the life of a call on this node ([`Router`]): its deadline or idle bound, its
//! attempts, what is counted of it. Refuses transport: it reaches plugins and peers through
//! [`protocol::ports::Reach`], looks services up through [`Lookup`], and asks what methods
//! declare through [`Declared`].
//!
//! A call comes in through `Invoke for Router` (or [`Router::local_only`] where it comes from
//! another peer, so that no call crosses more than one hop), takes a snapshot of the table, is
//! offered to one provider after the other until one of them has begun it, and its answer goes
//! back the way it came.
//!
//! Everything that is decided is decided by pure parts, which take time and chance as arguments
//! and which `testnet::sim::routing` runs by seed:
//!
//! | Decider | Decides |
//! |---|---|
//! | [`select()`] | who may answer, and in which order they are asked |
//! | [`Condition`] | whether a provider is called at all, or last: breaker, ejection, latency |
//! | [`Course`] | what follows a failed attempt, and when |
//! | [`Budget`] | how many attempts beyond the first all calls of a service may cost |
//! | [`Times`] | when a second attempt beside the first is worth it |
//! | [`Limiter`] | how many calls a plugin here may have at once, by priority |

#![forbid(unsafe_code)]

mod attempt;
mod book;
mod budget;
mod cache;
mod carry;
mod chance;
mod condition;
mod course;
mod gauge;
mod guard;
mod hedge;
mod limit;
mod meters;
mod pick;
mod policy;
mod replay;
mod router;
mod select;
mod table;
mod trace;

pub use budget::Budget;
pub use chance::Chance;
pub use condition::{Breaker, Circuit, Condition, Ending, Latency, Outlier, View};
pub use course::{Course, Facts, Next, Stop, backoff};
pub use hedge::Times;
pub use limit::Limiter;
pub use policy::{
    Breaking, CALLS_MAX, Ejection, Hedging, KEY_DEFAULT, Limit, Method, Policies, Policy, Retries,
    WEIGHT_LABEL, WEIGHT_MAX,
};
pub use router::{
    Declaration, Declared, Explained, Explanation, Lookup, Ports, Router, Settings, Traced,
};
pub use select::{Choice, Refused, Requirement, Seen, Selection, Traits, Unfit, Want, Why, select};
pub use table::{Candidate, Standing, Table};
pub use trace::{EXPLAIN, Event, LEGS, Step};
