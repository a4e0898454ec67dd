//! What a Blackhole plugin written in Rust needs.
//!
//! A plugin is a program that serves gRPC on the socket its node hands it, says when it is ready,
//! and ends when it is told to. This crate does all of that, and reflection, structured logs and
//! draining besides; what is left to write is the service itself.
//!
//! ```no_run
//! # mod greeter {
//! #     tonic::include_proto!("greeter.v1");
//! #     pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
//! # }
//! use blackhole_sdk::{Answer, Plugin};
//! use greeter::greeter_server::{Greeter, GreeterServer};
//! use greeter::{HelloReply, HelloRequest};
//! use tonic::{Request, Response};
//!
//! struct Polite;
//!
//! #[tonic::async_trait]
//! impl Greeter for Polite {
//!     async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloReply> {
//!         let message = format!("Hello, {}!", request.into_inner().name);
//!         Ok(Response::new(HelloReply { message }))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Plugin::new("greeter", env!("CARGO_PKG_VERSION"))
//!         .descriptors(greeter::DESCRIPTORS)
//!         .service(GreeterServer::new(Polite))
//!         .run()
//! }
//! ```
//!
//! The code of `greeter.v1` comes from this `build.rs`, which needs no installed `protoc`:
//!
//! ```ignore
#![doc = include_str!("../build.rs")]
//! ```
//!
//! By hand, `cargo run` is enough: without a node the program listens on a free port of the
//! loopback address and prints it. A test starts the plugin with [`Plugin::start`] and calls it
//! through [`Running::channel`]. From inside a plugin, [`mesh`] reaches every other service.
//!
//! What it counts goes into [`Figures`], and its node shows it; what it may use is in [`limits`].
//!
//! Owned here: the listener, health, reflection, the `Lifecycle` contract, figures, logs, draining.
//! Refused: anything a service says or means. Messages travel from the listener straight to the
//! author's service; nothing of this crate looks into them.

#![forbid(unsafe_code)]

mod channel;
mod context;
mod dialects;
mod figures;
mod lifecycle;
mod limits;
mod listen;
mod logs;
mod mesh;
mod plugin;
mod reflection;
mod serve;

pub use channel::{LinkChannel, ReplyBody};
pub use context::{CallContext, TENANT};
pub use figures::{Counter, Figures, Gauge};
pub use limits::{Limits, limits};
pub use listen::ListenError;
pub use mesh::{Mesh, MeshError, mesh, mesh_link, mesh_through};
pub use plugin::{Answer, Plugin, Stream, instance};
pub use serve::{PluginError, Running};
