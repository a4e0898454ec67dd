//! Chooses who answers a call, and never carries one itself.
//!
//! Owns the routing table ([`Table`]: immutable, replaced as a whole by one writer), the pure
//! choice over it ([`select()`]), and the life of a call on this node ([`Router`]): its deadline
//! or idle bound, its attempts, what is counted of it. Refuses transport: it reaches plugins and
//! peers through [`protocol::ports::Reach`] and looks services up through [`Lookup`].
//!
//! A call comes in through `Invoke for Router` (or [`Router::local_only`] where it comes from
//! another peer, so that no call crosses more than one hop), takes a snapshot of the table, is
//! offered to one provider after the other until one of them has begun it, and its answer goes
//! back the way it came.

#![forbid(unsafe_code)]

mod carry;
mod guard;
mod meters;
mod replay;
mod router;
mod select;
mod table;

pub use router::{Explained, Explanation, Lookup, Ports, Router, Settings};
pub use select::{Choice, Refused, Requirement, Seen, Selection, Unfit, Want, Why, select};
pub use table::{Candidate, Standing, Table};
