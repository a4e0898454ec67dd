//! The repository keeps its own rules. Style, the map and the dependency graph are checked here,
//! by `cargo test`, so that no document has to be believed.

#![forbid(unsafe_code)]

mod dependencies;
mod house;
mod map;
mod promises;
mod supply;
mod tree;
