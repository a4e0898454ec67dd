//! Guests: plugins compiled to WebAssembly, run by wasmtime within this process.
//!
//! A guest has its memory, three imports that take and give bytes, and nothing else: no files, no
//! network, no clock, no chance. Every call gets an instance of its own, so that no call sees what
//! another left behind, and one that is stopped in the middle leaves nothing broken. The contract
//! is `docs/src/reference/wasm.md`.
//!
//! - `guest`: one call, from bytes to bytes, with every bound on it.
//! - `answer`: gRPC around it.
//!
//! Compiling and calling both happen off the runtime's threads.

mod answer;
mod guest;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};
use wasmtime::{Config, Engine, InstancePre, Module, Strategy};

use self::{answer::Guest, guest::State};
use super::inside::Inside;
use crate::{
    allowance::Allowance, config::HostConfig, logs::Logs, process::StartFailure, source::Program,
};

/// The largest guest: compiled Go or Rust services have a few megabytes.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// How often running guests are asked whether their time is over.
const TICK: Duration = Duration::from_millis(5);

/// Stack of a guest; a worker thread of the runtime has two megabytes.
const STACK_BYTES: usize = 512 << 10;

/// Compiled guests that are kept for the next start.
const COMPILED_MAX: usize = 64;

/// The engine and what it has compiled. The engine's clock runs while this lives.
#[derive(Default)]
pub(crate) struct Guests(Mutex<Option<Ready>>);

struct Ready {
    engine: Engine,
    compiled: HashMap<[u8; 32], InstancePre<State>>,
    over: Arc<AtomicBool>,
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Ready {
    fn new() -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config.strategy(Strategy::Cranelift);
        config.epoch_interruption(true);
        config.max_wasm_stack(STACK_BYTES);
        // What a guest cannot use is nothing to get wrong.
        config.wasm_component_model(false);
        let engine = Engine::new(&config)?;
        let over = Arc::new(AtomicBool::new(false));
        let (ticking, ended) = (engine.weak(), Arc::clone(&over));
        std::thread::Builder::new().name("wasm-clock".into()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                let Some(engine) = ticking.upgrade() else { break };
                engine.increment_epoch();
            }
        })?;
        Ok(Self { engine, compiled: HashMap::new(), over })
    }
}

impl Guests {
    /// The guest in `file`, ready to be instantiated. Reads and compiles: call it where blocking
    /// is allowed.
    fn prepare(&self, file: &Path) -> Result<InstancePre<State>, String> {
        let told = |error: std::io::Error| format!("{}: {error}", file.display());
        let length = fs::metadata(file).map_err(told)?.len();
        if length > MODULE_BYTES_MAX {
            return Err(format!("it has {length} bytes; {MODULE_BYTES_MAX} are the most"));
        }
        let bytes = fs::read(file).map_err(told)?;
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let engine = {
            let mut ready = self.0.lock();
            if ready.is_none() {
                let made = Ready::new();
                *ready = Some(made.map_err(|error| format!("the engine: {error:#}"))?);
            }
            let Some(ready) = &*ready else { return Err("the engine is gone".into()) };
            if let Some(known) = ready.compiled.get(&hash) {
                return Ok(known.clone());
            }
            ready.engine.clone()
        };
        guest::refuse_component(&bytes)?;
        let module = Module::from_binary(&engine, &bytes)
            .map_err(|error| format!("it is not a WebAssembly module: {error:#}"))?;
        let prepared = guest::link(&engine, &module)?;
        if let Some(ready) = &mut *self.0.lock() {
            if ready.compiled.len() >= COMPILED_MAX {
                ready.compiled.clear();
            }
            ready.compiled.insert(hash, prepared.clone());
        }
        Ok(prepared)
    }
}

/// Begins a run of the guest that `program` names.
pub(super) async fn start(
    guests: &Arc<Guests>,
    config: &HostConfig,
    program: &Program,
    (allowance, logs): (&Allowance, &Logs),
    deadline: Instant,
) -> Result<Inside, StartFailure> {
    let refused = |reason: String| StartFailure::new("wasm", reason);
    let Some(file) = program.argv.first().map(std::path::PathBuf::from) else {
        return Err(refused("no module is named".into()));
    };
    let compiling = Arc::clone(guests);
    let compiling = tokio::task::spawn_blocking(move || compiling.prepare(&file));
    let prepared = match timeout_at(deadline, compiling).await {
        Ok(Ok(prepared)) => prepared.map_err(refused)?,
        Ok(Err(_)) => return Err(refused("the compiler gave up on it".into())),
        Err(_) => return Err(refused("it was not compiled before the start deadline".into())),
    };
    let layers = ["wasm-sandbox", "memory-limit", "time-limit", "no-files", "no-network"];
    let layers = layers.map(str::to_owned).to_vec();
    let threshold = program.manifest.health.threshold.unwrap_or(config.health.threshold);
    let descriptors = program.descriptors.clone();
    let (allowance, logs) = (allowance.clone(), logs.clone());
    Ok(Inside::begin(layers, |ender| {
        Arc::new(Guest::new(prepared, allowance, descriptors.as_deref(), logs, threshold, ender))
    }))
}
