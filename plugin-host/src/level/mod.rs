//! How far a plugin is kept from the node: one [`Run`] for every isolation level, so that its
//! supervisor is the same for all.
//!
//! `process` is the launcher's jail. `wasm` is a guest in this process that has nothing but the
//! memory it was given. `thread` and `none` are for code that the node contains. `container` and
//! `vm` have their place in the manifest and are refused until they are built.
//!
//! Refuses: to run a plugin at a weaker level than its manifest names, or than the operator asks
//! for; and to choose a level for anybody.

mod code;
mod inside;
#[cfg(feature = "wasm")]
mod wasm;

use std::{sync::Arc, time::Duration};

use protocol::manifest::{Isolation, Resources};
use tokio::time::Instant;

pub use code::{Code, MakeRoutes};
pub(crate) use inside::Door;
use inside::Inside;

use crate::{
    allowance::Allowance,
    config::HostConfig,
    limits::{Mechanism, Size},
    logs::Logs,
    process::{End, Process, StartFailure},
    source::Program,
};

/// Compiled guests and the engine that runs them; one per host.
#[cfg(feature = "wasm")]
pub(crate) use wasm::Guests;

/// Stands in where guests cannot be run.
#[cfg(not(feature = "wasm"))]
#[derive(Default)]
pub(crate) struct Guests;

/// How strict a level is. `wasm` and `process` both hold code that nobody trusts.
fn strictness(level: Isolation) -> u8 {
    match level {
        Isolation::None => 0,
        Isolation::Thread => 1,
        Isolation::Wasm => 2,
        Isolation::Process => 3,
        Isolation::Container => 4,
        Isolation::Vm => 5,
    }
}

/// Whether a plugin that comes from outside may have `asked`, where the operator wants at least
/// `least`; an error is the sentence that refuses it.
pub(crate) fn allow(asked: Isolation, least: Isolation) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("isolation: level `{asked}` {why}"));
    match asked {
        Isolation::None | Isolation::Thread => {
            return refuse(
                "is for code that the node itself contains; a plugin has at least `wasm` or \
                 `process`",
            );
        }
        Isolation::Container => {
            return refuse("is not available: this version starts no container runtime");
        }
        Isolation::Vm => {
            return refuse("is not available: this version starts no virtual machine monitor");
        }
        Isolation::Wasm if cfg!(not(feature = "wasm")) => {
            return refuse("is not available: this node was built without the feature `wasm`");
        }
        Isolation::Wasm | Isolation::Process => {}
    }
    if strictness(asked) < strictness(least) {
        let why = format!(
            "is weaker than the operator allows (plugins.isolation_min: {least}), and no other \
             level is taken instead of the one its manifest names"
        );
        return refuse(&why);
    }
    Ok(())
}

/// Bytes of memory of one call of a guest where its manifest does not say.
const GUEST_MEMORY_BYTES: u64 = 64 << 20;

/// By what means the limits of a plugin at this level hold.
pub(crate) fn mechanisms(level: Isolation, allowance: &Allowance) -> Vec<Mechanism> {
    let without = |why: &str| {
        let asked = allowance.asked().into_iter();
        let means = format!("not enforced: {why}");
        asked.map(move |it| Mechanism { means: means.clone(), ..it }).collect::<Vec<_>>()
    };
    match level {
        Isolation::None | Isolation::Thread => {
            without("it runs within the node, and uses what the node may use")
        }
        Isolation::Wasm => {
            let held = |resource, limit: String, means: &str| Mechanism {
                resource,
                limit,
                means: means.into(),
            };
            let mut all = vec![
                held(
                    "memory",
                    Size(guest_memory(allowance)).to_string(),
                    "wasmtime, for each call",
                ),
                held("cpu_seconds", "the call's deadline, 30 s at most".into(), "wasmtime epochs"),
            ];
            let others = without("a guest has no process that it could hold");
            all.extend(others.into_iter().filter(|it| it.resource != "memory"));
            all
        }
        Isolation::Process | Isolation::Container | Isolation::Vm => allowance.mechanisms(),
    }
}

/// Bytes of memory that one call of a guest may use now.
fn guest_memory(allowance: &Allowance) -> u64 {
    allowance.resources().memory_bytes.unwrap_or(GUEST_MEMORY_BYTES)
}

/// Whether what `wish` names can be changed for a plugin at this level; an error is the sentence
/// that refuses it.
pub(crate) fn may_limit(level: Isolation, wish: &Resources) -> Result<(), String> {
    let memory_only = Resources { memory_bytes: wish.memory_bytes, ..Resources::default() };
    match level {
        Isolation::None | Isolation::Thread => Err(format!(
            "it runs within the node (isolation {level}), where nothing holds a limit; run it at \
             level `process`"
        )),
        Isolation::Wasm if *wish != memory_only => {
            Err("a guest has no process: its memory is all that can be limited".into())
        }
        _ => Ok(()),
    }
}

/// A plugin that was started, whatever holds it.
pub(crate) enum Run {
    /// A process in its jail.
    Jail(Process),
    /// Code within this process.
    Inside(Inside),
}

impl Run {
    /// The plugin's own process; 0 where it has none.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Jail(process) => process.pid,
            Self::Inside(_) => 0,
        }
    }

    /// The first process of its jail, if it has one.
    pub(crate) fn init(&self) -> Option<u32> {
        match self {
            Self::Jail(process) => Some(process.init),
            Self::Inside(_) => None,
        }
    }

    /// Waits until it, and everything it started, has ended. Cancel-safe.
    pub(crate) async fn ended(&self) -> End {
        match self {
            Self::Jail(process) => process.ended().await,
            Self::Inside(inside) => inside.ended().await,
        }
    }

    /// How it ended, for people.
    pub(crate) fn tell(&self, end: End) -> String {
        let cause = match self {
            Self::Jail(_) => None,
            Self::Inside(inside) => inside.cause(),
        };
        cause.unwrap_or_else(|| end.to_string())
    }

    /// Asks it to end, waits up to `grace`, and then ends it. True where it ended by itself.
    pub(crate) async fn stop(self, grace: Duration) -> (End, bool) {
        match self {
            Self::Jail(process) => process.stop(grace).await,
            Self::Inside(inside) => inside.stop(grace).await,
        }
    }
}

/// Begins a run of `program` within this process: the node's own code, or a guest.
pub(crate) async fn start_inside(
    guests: &Arc<Guests>,
    config: &HostConfig,
    program: &Program,
    (allowance, logs): (&Allowance, &Logs),
    deadline: Instant,
) -> Result<Inside, StartFailure> {
    match &program.code {
        Some(code) => code.start(program.manifest.name.as_str()).await,
        None => start_guest(guests, config, program, (allowance, logs), deadline).await,
    }
}

#[cfg(feature = "wasm")]
async fn start_guest(
    guests: &Arc<Guests>,
    config: &HostConfig,
    program: &Program,
    given: (&Allowance, &Logs),
    deadline: Instant,
) -> Result<Inside, StartFailure> {
    wasm::start(guests, config, program, given, deadline).await
}

#[cfg(not(feature = "wasm"))]
async fn start_guest(
    _: &Arc<Guests>,
    _: &HostConfig,
    _: &Program,
    _: (&Allowance, &Logs),
    _: Instant,
) -> Result<Inside, StartFailure> {
    Err(StartFailure::new("isolation", "this node was built without the feature `wasm`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Isolation; 6] = [
        Isolation::None,
        Isolation::Thread,
        Isolation::Wasm,
        Isolation::Process,
        Isolation::Container,
        Isolation::Vm,
    ];

    #[test]
    fn what_is_allowed_is_never_weaker_than_what_is_wanted() {
        for asked in ALL {
            for least in ALL {
                if allow(asked, least).is_ok() {
                    assert!(strictness(asked) >= strictness(least), "{asked} under {least}");
                    assert!(matches!(asked, Isolation::Wasm | Isolation::Process));
                }
            }
        }
    }

    #[test]
    fn refusals_name_the_level_and_what_is_missing() {
        let told = |asked, least| allow(asked, least).expect_err("refused");
        assert!(told(Isolation::Vm, Isolation::Wasm).contains("virtual machine monitor"));
        assert!(told(Isolation::Container, Isolation::Wasm).contains("container runtime"));
        assert!(told(Isolation::Thread, Isolation::None).contains("`thread`"));
        assert!(told(Isolation::Wasm, Isolation::Process).contains("isolation_min: process"));
    }
}
