//! One call of a guest: an instance of its own, bytes in, bytes out, and every bound on it.
//!
//! Blocking. All that comes back from a guest is untrusted: pointers, lengths, numbers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use wasmtime::{
    Caller, Engine, Extern, InstancePre, Linker, Memory, Module, ResourceLimiter, Store, Trap,
    UpdateDeadline,
};

use crate::logs::{LogStream, Logs};

/// The largest answer; the usual limit of gRPC programs.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of one log line, and lines of one call.
const LINE_BYTES_MAX: usize = 4 << 10;
const LINES_MAX: u32 = 100;

/// Bytes of a status message.
const STATUS_BYTES_MAX: usize = 1 << 10;

/// Entries of all tables: a module of 64 MB has some hundred thousand functions.
const TABLE_ENTRIES_MAX: usize = 1 << 20;

/// What a guest must export.
const EXPORTS: [&str; 3] = ["memory", "bh_alloc", "bh_call"];

/// What belongs to one call.
pub(super) struct State {
    logs: Logs,
    lines: u32,
    status: String,
    memory_max: usize,
    memory_refused: bool,
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired <= self.memory_max;
        self.memory_refused |= !fits;
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ENTRIES_MAX)
    }
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The answer's message.
    Message(Vec<u8>),
    /// The guest's own status: a code from 1 to 16, and a message.
    Status(i32, String),
    /// Its time was over, or its caller gone.
    TimeOver,
    /// It broke: a trap, a limit, or a pointer that leads nowhere.
    Broken(String),
}

/// What one call is given.
pub(super) struct Order<'a> {
    pub(super) method: &'a str,
    pub(super) message: &'a [u8],
    pub(super) until: Instant,
    /// Set when nobody waits for the answer any more.
    pub(super) gone: Arc<AtomicBool>,
    pub(super) memory_max: usize,
    pub(super) logs: Logs,
}

/// Components are another format; saying so is better than what a parser would say.
pub(super) fn refuse_component(bytes: &[u8]) -> Result<(), String> {
    // Source: the binary format's preamble; modules have version 1 and layer 0.
    if bytes.starts_with(b"\0asm") && bytes.get(6..8) == Some(&[1, 0]) {
        return Err("it is a component; this version runs core modules with the exports of \
                    docs/src/reference/wasm.md"
            .into());
    }
    Ok(())
}

/// Checks what `module` exports, and gives it its imports. Any other import is refused by name.
pub(super) fn link(engine: &Engine, module: &Module) -> Result<InstancePre<State>, String> {
    for name in EXPORTS {
        if module.get_export(name).is_none() {
            return Err(format!("it does not export `{name}`"));
        }
    }
    let mut linker: Linker<State> = Linker::new(engine);
    linker
        .func_wrap("blackhole", "log", log)
        .and_then(|linker| linker.func_wrap("blackhole", "status", status))
        .map_err(|error| format!("{error:#}"))?;
    linker.instantiate_pre(module).map_err(|error| {
        format!("{error:#}; a guest may import blackhole.log and blackhole.status, and no others")
    })
}

/// `blackhole.log(level, ptr, len)`: 1 error, 2 warn, 3 info, 4 debug, 5 trace.
fn log(mut caller: Caller<'_, State>, level: i32, at: u32, length: u32) -> wasmtime::Result<()> {
    let text = text(&mut caller, at, length, LINE_BYTES_MAX)?;
    let state = caller.data_mut();
    state.lines += 1;
    if state.lines > LINES_MAX {
        return Ok(());
    }
    let level = match level {
        1 => "error",
        2 => "warn",
        4 => "debug",
        5 => "trace",
        _ => "info",
    };
    let line = serde_json::json!({ "level": level, "message": text }).to_string();
    state.logs.line(LogStream::Stderr, 0, &line, Instant::now());
    Ok(())
}

/// `blackhole.status(ptr, len)`: the message of the status that the call will return.
fn status(mut caller: Caller<'_, State>, at: u32, length: u32) -> wasmtime::Result<()> {
    let text = text(&mut caller, at, length, STATUS_BYTES_MAX)?;
    caller.data_mut().status = text;
    Ok(())
}

/// Text from a guest's memory, cut to `most` bytes.
fn text(
    caller: &mut Caller<'_, State>,
    at: u32,
    length: u32,
    most: usize,
) -> wasmtime::Result<String> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("its `memory` is no memory");
    };
    let bytes = slice(memory.data(&*caller), at, length);
    let Some(bytes) = bytes else { wasmtime::bail!("a pointer leads outside of its memory") };
    Ok(String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into_owned())
}

fn slice(memory: &[u8], at: u32, length: u32) -> Option<&[u8]> {
    let at = at as usize;
    memory.get(at..at.checked_add(length as usize)?)
}

/// Makes one call.
pub(super) fn call(guest: &InstancePre<State>, order: Order<'_>) -> Outcome {
    let Order { method, message, until, gone, memory_max, logs } = order;
    let state = State { logs, lines: 0, status: String::new(), memory_max, memory_refused: false };
    let mut store = Store::new(guest.module().engine(), state);
    store.limiter(|state| state);
    store.set_epoch_deadline(1);
    let stopped = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&stopped);
    store.epoch_deadline_callback(move |_| {
        if Instant::now() < until && !gone.load(Ordering::Relaxed) {
            return Ok(UpdateDeadline::Continue(1));
        }
        says.store(true, Ordering::Relaxed);
        Ok(UpdateDeadline::Interrupt)
    });
    match run(guest, &mut store, method, message) {
        Ok(outcome) => outcome,
        Err(_) if stopped.load(Ordering::Relaxed) => Outcome::TimeOver,
        Err(_) if store.data().memory_refused => {
            let megabytes = store.data().memory_max >> 20;
            Outcome::Broken(format!("OOM: it wanted more than its {megabytes} MB of memory"))
        }
        Err(error) => Outcome::Broken(match error.downcast_ref::<Trap>() {
            Some(trap) => format!("trap: {trap}"),
            None => format!("{error:#}"),
        }),
    }
}

fn run(
    guest: &InstancePre<State>,
    store: &mut Store<State>,
    method: &str,
    message: &[u8],
) -> wasmtime::Result<Outcome> {
    let instance = guest.instantiate(&mut *store)?;
    let Some(memory) = instance.get_memory(&mut *store, "memory") else {
        wasmtime::bail!("its `memory` is no memory");
    };
    let allocate = instance.get_typed_func::<u32, u32>(&mut *store, "bh_alloc")?;
    let call = instance.get_typed_func::<(u32, u32, u32, u32), i64>(&mut *store, "bh_call")?;
    let mut give = |bytes: &[u8]| -> wasmtime::Result<(u32, u32)> {
        let length = u32::try_from(bytes.len())?;
        let at = allocate.call(&mut *store, length)?;
        write(&memory, store, at, bytes)?;
        Ok((at, length))
    };
    let (method_at, method_length) = give(method.as_bytes())?;
    let (at, length) = give(message)?;
    let packed = call.call(&mut *store, (method_at, method_length, at, length))?;
    if packed < 0 {
        let code = packed.checked_neg().and_then(|code| i32::try_from(code).ok());
        let Some(code) = code.filter(|code| (1..=16).contains(code)) else {
            wasmtime::bail!("bh_call returned {packed}, which is neither an answer nor a status");
        };
        return Ok(Outcome::Status(code, std::mem::take(&mut store.data_mut().status)));
    }
    let (at, length) = ((packed >> 32) as u32, packed as u32);
    if length as usize > MESSAGE_BYTES_MAX {
        wasmtime::bail!("its answer would have {length} bytes; {MESSAGE_BYTES_MAX} are the most");
    }
    match slice(memory.data(&*store), at, length) {
        Some(bytes) => Ok(Outcome::Message(bytes.to_vec())),
        None => wasmtime::bail!("its answer lies outside of its memory"),
    }
}

fn write(memory: &Memory, store: &mut Store<State>, at: u32, bytes: &[u8]) -> wasmtime::Result<()> {
    let Ok(()) = memory.write(&mut *store, at as usize, bytes) else {
        wasmtime::bail!("bh_alloc gave {} bytes outside of its memory", bytes.len());
    };
    Ok(())
}
