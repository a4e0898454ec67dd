//! The language every part of Blackhole speaks.
//!
//! Owns names, ids, the shape of a call, the frame and advert formats, the plugin manifest, the
//! limits, and the contracts in `proto/`. Refuses everything that acts: nothing here reads a
//! clock, draws a random number, spawns, or touches a file or a socket. Time and chance come in
//! as arguments.

#![forbid(unsafe_code)]

pub mod advert;
pub mod document;
pub mod failure;
pub mod frame;
pub mod id;
pub mod limits;
pub mod manifest;
pub mod ports;
pub mod proto;
pub mod service;
pub mod timeout;
pub mod wishes;
