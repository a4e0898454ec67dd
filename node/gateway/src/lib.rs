//! The door between programs and the mesh: gRPC and HTTP in, calls out.
//!
//! Owns the listeners' connections, the translation between HTTP/2 and [`protocol::ports::Call`],
//! and the few services that speak for the whole mesh: gRPC reflection, gRPC health, `GET /health`
//! and `GET /metrics`. Refuses to choose who answers (that is the router behind
//! [`protocol::ports::Invoke`]) and to look into messages: bodies pass as they come, only the
//! length before each message is read, to hold it to its bound.
//!
//! A call: [`serve_grpc`] accepts a connection, `grpc` admits the request, `translate` makes a
//! call of it, `Invoke` carries it, `stream` passes both bodies, and `rescue` says in gRPC's words
//! what went wrong where the mesh failed.

#![forbid(unsafe_code)]

mod bounds;
mod calm;
mod catalog;
mod details;
mod framed;
mod grpc;
mod heads;
mod health;
mod http_side;
mod meters;
mod reflection;
mod report;
mod rescue;
mod serve;
mod sizes;
mod stream;
mod takeover;
mod translate;
mod web;
mod wire;

pub use bounds::{CALLS_MAX, CONNECTION_CALLS_MAX};
pub use catalog::Catalog;
pub use grpc::Grpc;
pub use http_side::{HealthSource, health_routes, metrics_routes};
pub use meters::Meters;
pub use report::{HealthReport, NodeHealth, PluginCondition, PluginHealth, ProcessUse};
pub use serve::{serve_grpc, serve_grpc_stream, serve_http};
pub use web::{NotAnOrigin, Origins, web_routes};
pub use wire::Listening;
