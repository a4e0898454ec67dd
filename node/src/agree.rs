//! Bounds of different rooms that must agree, so that what fails stays where it fails: proved when
//! the node is built.
//!
//! Owns the rules between rooms; each room proves its own bounds against each other. Which bound
//! holds at which level, and what a caller is told at each, is in
//! `docs/src/reference/boundaries.md`; what the operator sets is held to it where the configuration
//! is read.

use protocol::limits::{CALL_IDLE_SECONDS_MAX, LOOKUP_MILLIS_MAX};

/// What one plugin may have of the node's calls.
const PLUGIN: usize = router::CALLS_MAX as usize;

// A plugin that answers nothing leaves at least a fifth of the node's calls to all others.
const _: () = assert!(PLUGIN * 5 <= gateway::CALLS_MAX * 4);

// One connection of a client has less than a tenth of them.
const _: () = assert!((gateway::CONNECTION_CALLS_MAX as usize) * 10 < gateway::CALLS_MAX);

// One peer, however many links it opens, has less of a plugin than its calls of low priority may.
const _: () = assert!(peer::CALLS_PER_PEER_MAX < PLUGIN / 2);

// The router, which knows priorities and says when to try again, refuses before the host must.
const _: () = assert!(PLUGIN <= plugin_host::CALLS_MAX);

// A call that nobody bounded is not given up while the mesh is still being asked who could answer.
const _: () = assert!(LOOKUP_MILLIS_MAX * 10 <= CALL_IDLE_SECONDS_MAX * 1_000);
