//! Owns plugin processes: from a manifest or a command line to something that answers calls.
//!
//! [`Host`] is the one door. It starts each plugin through the launcher in its jail, waits until
//! it is ready, learns what it offers, keeps it running by its restart policy, captures what it
//! says, and hands out channels to it. What happens comes out as [`HostEvent`]s.
//!
//! Refuses: deciding who may call (the node's part), choosing between providers (the router's),
//! and looking into the bytes of a call (nobody's).
//!
//! - `lifecycle`, `restart`, `order`, `group`, `beat`: pure rules; time and chance are arguments.
//! - `source`: from a path or command line to a [`source::Program`] that can be started.
//! - `process`: one process in its jail. `control`: the socket to its launcher.
//! - `level`: what holds a run at each isolation level, behind one type.
//! - `ready`, `descriptors`: what a new process is asked before anyone may call it.
//! - `contract`: what a plugin is asked through its optional `Lifecycle`; `part`: its own
//!   configuration (pure).
//! - `courtesy`: who gives way to the others (pure).
//! - `limits`: what a plugin may use, and by what means (pure). `allowance`: that, in force on one
//!   instance. `cgroup`: control groups.
//! - `channel`: calls. `logs`, `stats`: what is seen of it. `stillness`: whether a plugin that was
//!   well need be asked again.
//! - `permissions`: what a plugin asks for and the operator allows. `egress`: its way out.
//! - `tls`: certificates of plugins, and connections that they secure.
//! - `tokens`: how often anything may happen (pure).
//! - `plugin`: the supervisor of one instance of a plugin. `siblings`: those of one group.
//! - `host`: the owner of all supervisors. `supervision`: the thread on which they run. `turns`:
//!   what supervisors do one after the other.

#![forbid(unsafe_code)]

mod allowance;
mod beat;
mod cgroup;
mod channel;
pub mod config;
mod contract;
mod courtesy;
mod descriptors;
pub mod egress;
pub mod group;
mod host;
mod level;
pub mod lifecycle;
pub mod limits;
pub mod logs;
pub mod order;
mod part;
pub mod permissions;
mod plan;
mod plugin;
mod process;
mod ready;
pub mod restart;
mod roll;
mod seat;
mod siblings;
pub mod source;
mod spawner;
mod stats;
pub mod status;
mod stillness;
mod supervision;
mod tls;
mod tokens;
mod turns;

pub use allowance::DISK_ENTRIES_MAX;
pub use channel::CALLS_MAX;
pub use config::{
    BuiltIn, CgroupPolicy, GroupConfig, HealthCheck, HostConfig, LayerPolicy, NamespacePolicy,
};
pub use contract::{Described, Figures, Metric, figures};
pub use group::Strategy;
pub use host::Host;
pub use launcher::run_if_invoked;
pub use level::{Code, MakeRoutes};
pub use lifecycle::State;
pub use limits::Mechanism;
pub use logs::{LogFilter, LogRecord, LogStream, Logs};
pub use part::Parts;
pub use plan::{mesh_socket, state_dir};
pub use status::{
    Certificate, ChangeError, Command, HostError, HostEvent, LoadError, LoadRequest, MeshDoor,
    Overrides, PluginStatus, ReadyPlugin, Source, Transition, UnknownPlugin, UnloadError,
};
