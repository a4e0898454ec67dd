//! Worlds to test in: real clusters of real processes, the faults that befall them, and the demo.
//!
//! Owns starting nodes in fresh directories on free ports, keeping every line they print, hurting
//! them (kill, stop, cut), and proving that nothing is left of them. Refuses to judge: a world
//! reports what is so, and `tests/` asserts what ought to be.
//!
//! | Module | What it brings |
//! |---|---|
//! | [`cluster`] | several nodes that know each other through one bootstrap node |
//! | [`node`] | one node: its directories, its process, its admin door |
//! | [`process`] | any child process: output kept, killed when dropped |
//! | [`packages`] | first-party plugins made ready to load |
//! | [`foreign`] | servers and clients that nobody here changed |
//! | [`client`] | calls as users make them: command line, gRPC, HTTP |
//! | [`faults`] | a wire that can be cut |
//! | [`sim`] | a hundred registries in virtual time, and forgers |
//! | [`residue`] | what is left behind: processes, sockets, held locks |
//! | [`must`] | failing a test where it asked, with every cause in the message |
//! | [`wait`] | waiting for a fact, with the evidence when it never comes |
//! | [`demo`] | the story of the README, step by step |

#![forbid(unsafe_code)]

pub mod binaries;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod faults;
pub mod foreign;
pub mod must;
pub mod node;
pub mod output;
pub mod packages;
pub mod process;
pub mod residue;
pub mod sim;
pub mod wait;

pub use cluster::Cluster;
pub use must::Must;
pub use node::{Node, NodeSetup};
pub use wait::until;
