//! A mesh of registries in virtual time: a hundred peers, a network that loses, delays and
//! reorders, peers that crash and come back, partitions, and forgers. Everything that happens
//! follows from one seed, so that a failure prints the seed that replays it.
//!
//! Owns the world and what must hold in it after every step; `tests/sim` asserts that it did.
//! Runs only the deciding part, [`dht_registry::Registry`]: no socket, no clock, no task. What
//! gossip, the DHT and requests do is modelled here, roughly and unkindly.
//!
//! | Module | What it brings |
//! |---|---|
//! | `world` | peers, links, the queue of what happens next |
//! | `network` | gossip, requests and the DHT, with their losses |
//! | `turmoil` | crashes, restarts, loads, unloads, partitions |
//! | `forger` | liars with keys of their own |
//! | [`routing`] | another world, of calls, and providers that die, drag and break |
//! | `truth` | what was really offered, and what must hold |

mod forger;
mod network;
pub mod routing;
mod truth;
mod turmoil;
mod world;

use std::fmt;

use dht_registry::Limits;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Honest peers.
    pub peers: usize,
    /// Forgers, each with a connection to several honest peers.
    pub forgers: usize,
    /// Messages lost, in percent.
    pub loss_percent: u64,
    /// The longest a message takes, in milliseconds; the shortest is 1, so that any two may
    /// overtake each other.
    pub delay_millis_max: u64,
    /// How far any clock is from the true time, in milliseconds, either way.
    pub clock_error_millis_max: u64,
    /// How long peers crash, plugins come and go, and the network splits, in milliseconds.
    pub turmoil_millis: u64,
    /// How long there is quiet after that, before views are compared. Long enough for every lease
    /// to end.
    pub quiet_millis: u64,
    /// How much each registry remembers.
    pub limits: Limits,
    /// Whether every view has to be right at the end. Not to be had where `limits` are smaller
    /// than the mesh.
    pub views_become_whole: bool,
}

impl Plan {
    /// A hundred peers and five forgers, for a minute and a half of turmoil.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            peers: 100,
            forgers: 5,
            loss_percent: 10,
            delay_millis_max: 400,
            clock_error_millis_max: 5_000,
            turmoil_millis: 90_000,
            quiet_millis: 80_000,
            limits: Limits::default(),
            views_become_whole: true,
        }
    }
}

/// What happened in a run in which everything held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events handled by registries.
    pub steps: u64,
    /// Lies told by forgers.
    pub lies: u64,
    /// Lies that a registry saw through: rejected, ignored, or not listed.
    pub penalties: u64,
    /// Peers that crashed.
    pub crashes: u64,
    /// Peers that came back.
    pub restarts: u64,
    /// Plugins loaded and unloaded.
    pub loads: u64,
    /// Times the network split.
    pub partitions: u64,
    /// Lookups that ended, and how many of them found something.
    pub lookups: (u64, u64),
    /// The most adverts any registry held.
    pub adverts_most: usize,
    /// Entries that all views had to show at the end, over all peers.
    pub entries_compared: usize,
    /// A number over everything that was listed at the end: the same seed gives the same number.
    pub fingerprint: u64,
}

/// Something did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The seed that replays it.
    pub seed: u64,
    /// When, in virtual milliseconds from the start.
    pub at_millis: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at_millis, what } = self;
        write!(f, "{what} (after {at_millis} ms; replay with BH_SIM_SEED={seed})")
    }
}

impl std::error::Error for Violation {}

/// Runs `plan` to its end, or to the first thing that does not hold.
pub fn run(plan: Plan) -> Result<Report, Violation> {
    world::World::new(plan).run()
}
