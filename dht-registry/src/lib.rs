//! Decides who offers what on the mesh, and performs nothing.
//!
//! Owns the view of every service and its providers ([`Directory`]), the proof behind each entry
//! (signed adverts, newest only), this node's own offers and their renewal, looking a service up,
//! and the messages peers exchange about it ([`wire`]). Refuses to act: no socket, no clock, no
//! randomness, no task. A caller tells [`Registry::handle`] what happened and at what time, and
//! carries out the [`Effect`]s it returns. The same machine therefore runs on a real network and,
//! by the hundred, in a simulator.
//!
//! ```text
//! offers ─┐                    ┌─► Publish, Provide          (be found)
//! gossip ─┤                    ├─► Verdict, Penalise         (trust nobody)
//! replies ┼─► Registry::handle ┼─► Fetch, FindProviders      (find)
//! lookups ┤                    ├─► LookupDone, Answer        (tell)
//! time ───┘                    └─► DirectoryChanged ──► directory(): Arc<Directory>
//! ```
//!
//! What strangers send costs a fixed amount of memory: see [`Limits`].

#![forbid(unsafe_code)]

mod directory;
mod event;
pub mod keyspace;
pub mod lease;
mod lookup;
pub mod matching;
mod offers;
mod registry;
mod strikes;
mod sync;
mod trust;
pub mod wire;

pub use directory::{Directory, Entry};
pub use event::{Effect, Event, FetchId, LookupId, Offer, OfferRefused, Token, Verdict};
pub use protocol::advert::ServiceOffer;
pub use registry::{Census, Limits, Registry, Settings};
