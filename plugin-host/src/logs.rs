//! What a plugin and its supervisor said: captured by the host itself, one bounded ring per
//! plugin, as records in paper 004's shape.
//!
//! A line that is a JSON object gives level, message and fields; any other line is wrapped, not
//! lost. Who spoke (node, service, pid) is always the host's word, never the plugin's.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{net::unix::pipe, sync::broadcast};

use crate::tokens::Tokens;

/// Bytes of one line; what is longer is cut and says so. Long enough for a stack trace in JSON.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of what is kept of one plugin: messages and fields as they lie in memory. Ten thousand
/// usual lines fit, so that their number is the bound that is met; lines of [`LINE_BYTES_MAX`]
/// would else be 160 MB of them. What the host adds to each (who, when) is bounded by their number.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Lines that a plugin may say per second before further ones are counted instead of kept. A
/// chatty server says tens; a loop gone wrong says hundreds of thousands.
const LINES_PER_SECOND: f64 = 1_000.0;

/// Lines that may come at once: a start-up banner, a stack trace of every thread.
const LINES_BURST: f64 = 2_000.0;

/// Bytes read from a pipe at once, per thread of the node.
const READ_BYTES: usize = 16 * 1024;

/// Bytes that are read of one stream a second, and at once: many times what may be kept of it. Who
/// writes more waits for its pipe; reading a hundred such floods at full speed would leave a
/// machine no processor for anybody's calls.
const READ_BYTES_PER_SECOND: f64 = 512.0 * 1024.0;
const READ_BYTES_BURST: f64 = 1024.0 * 1024.0;

/// Times that one stream is read in a second, and at once. Whoever writes line by line, as fast as
/// it can, wakes the host and is woken for every line: what is in its pipe is read together.
const READS_PER_SECOND: f64 = 50.0;
const READS_BURST: f64 = 32.0;

/// Bytes that are read of all streams together that write more than that, a second and at once. A
/// hundred of them would else keep the node busy with what is thrown away.
const FLOODS_BYTES_PER_SECOND: f64 = 1024.0 * 1024.0;
const FLOODS_BYTES_BURST: f64 = 4.0 * 1024.0 * 1024.0;

/// Records a follower may be behind before it misses some; it is told how many.
const FOLLOWER_RECORDS: usize = 1_024;

/// One line, as paper 004 shapes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogRecord {
    /// RFC 3339, in UTC, when the host read the line.
    pub timestamp: String,
    /// The node.
    pub node_id: String,
    /// The plugin.
    pub service: String,
    /// The plugin's process.
    pub pid: u32,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// What was said.
    pub message: String,
    /// Everything else a JSON line held.
    pub fields: Map<String, Value>,
    /// Where it was said.
    pub stream: LogStream,
}

/// Where a line was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The plugin's standard output.
    Stdout,
    /// The plugin's standard error.
    Stderr,
    /// The host, about the plugin.
    Supervisor,
}

impl LogStream {
    /// The name shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Supervisor => "supervisor",
        }
    }
}

/// Which records somebody wants; an empty part asks for all.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// RFC 3339 in UTC with milliseconds, as records have it: that moment, or later.
    pub since: Option<String>,
    /// This level, or a worse one.
    pub level: String,
    /// Text in the message or the fields.
    pub contains: String,
    /// `stdout`, `stderr` or `supervisor`.
    pub stream: String,
}

impl LogFilter {
    /// Whether it wants `record`.
    pub fn takes(&self, record: &LogRecord) -> bool {
        // One form and one time zone: the order of the texts is the order of the moments.
        self.since.as_ref().is_none_or(|since| record.timestamp >= *since)
            && severity(&record.level) <= severity(&self.level)
            && (self.stream.is_empty() || self.stream == record.stream.as_str())
            && (self.contains.is_empty()
                || record.message.contains(&self.contains)
                || record.fields.iter().any(|(key, value)| {
                    key.contains(&self.contains) || value.to_string().contains(&self.contains)
                }))
    }
}

/// 0 is the worst; what is no level is the least.
fn severity(level: &str) -> u8 {
    let order = ["error", "warn", "info", "debug"];
    order.iter().position(|known| *known == level).unwrap_or(order.len()) as u8
}

/// The log of one plugin. Clones are the same log; it outlives the plugin's processes.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    node_id: String,
    service: String,
    records_max: usize,
    ring: Mutex<Ring>,
}

struct Ring {
    records: VecDeque<Arc<LogRecord>>,
    /// Of all of them, as [`weight`] has it.
    bytes: usize,
    lost: u64,
    lost_untold: u64,
    lines: Tokens,
    /// Only while somebody follows: its queue is tens of kilobytes, and most logs are never
    /// followed.
    live: Option<broadcast::Sender<Arc<LogRecord>>>,
}

impl Logs {
    /// An empty log.
    pub fn new(node_id: &str, service: &str, records_max: usize) -> Self {
        let ring = Ring {
            records: VecDeque::new(),
            bytes: 0,
            lost: 0,
            lost_untold: 0,
            lines: Tokens::full(LINES_PER_SECOND, LINES_BURST, Instant::now()),
            live: None,
        };
        Self {
            inner: Arc::new(Inner {
                node_id: node_id.into(),
                service: service.into(),
                records_max: records_max.max(1),
                ring: Mutex::new(ring),
            }),
        }
    }

    /// The last `count` records, oldest first; 0 means all that are kept.
    pub fn tail(&self, count: usize) -> Vec<Arc<LogRecord>> {
        self.inner.ring.lock().tail(count)
    }

    /// The last `count` records and every one after them, without gap or repetition.
    pub fn follow(
        &self,
        count: usize,
    ) -> (Vec<Arc<LogRecord>>, broadcast::Receiver<Arc<LogRecord>>) {
        let mut ring = self.inner.ring.lock();
        let live = ring.live.get_or_insert_with(|| broadcast::channel(FOLLOWER_RECORDS).0);
        let live = live.subscribe();
        (ring.tail(count), live)
    }

    /// Lines dropped by the ring or the rate limit.
    pub fn lost(&self) -> u64 {
        self.inner.ring.lock().lost
    }

    /// Notes what the host has to say about the plugin.
    pub fn supervisor(&self, level: &str, pid: u32, message: impl Into<String>) {
        self.supervisor_with(level, pid, message, Map::new());
    }

    /// The same, with what programs want to read of it.
    pub fn supervisor_with(
        &self,
        level: &str,
        pid: u32,
        message: impl Into<String>,
        fields: Map<String, Value>,
    ) {
        let mut ring = self.inner.ring.lock();
        self.push(&mut ring, LogStream::Supervisor, pid, level.into(), message.into(), fields);
    }

    /// Notes a line that the plugin said at `now`.
    pub fn line(&self, stream: LogStream, pid: u32, line: &str, now: Instant) {
        let mut ring = self.inner.ring.lock();
        if !ring.lines.take_one(now) {
            ring.lost += 1;
            ring.lost_untold += 1;
            return;
        }
        if ring.lost_untold > 0 {
            let message = format!(
                "{} lines dropped: more than {LINES_PER_SECOND} per second",
                std::mem::take(&mut ring.lost_untold)
            );
            self.push(&mut ring, LogStream::Supervisor, pid, "warn".into(), message, Map::new());
        }
        let Said { level, message, fields } = understand(line);
        self.push(&mut ring, stream, pid, level, message, fields);
    }

    fn push(
        &self,
        ring: &mut Ring,
        stream: LogStream,
        pid: u32,
        level: String,
        message: String,
        fields: Map<String, Value>,
    ) {
        let record = Arc::new(LogRecord {
            timestamp: rfc3339(SystemTime::now()),
            node_id: self.inner.node_id.clone(),
            service: self.inner.service.clone(),
            pid,
            level,
            message,
            fields,
            stream,
        });
        ring.bytes += weight(&record);
        ring.records.push_back(Arc::clone(&record));
        // The newest stays, whatever it weighs: it is bounded by itself.
        while ring.records.len() > self.inner.records_max
            || (ring.bytes > KEPT_BYTES_MAX && ring.records.len() > 1)
        {
            let Some(oldest) = ring.records.pop_front() else { break };
            ring.bytes -= weight(&oldest);
            ring.lost += 1;
        }
        // No follower is no error; when the last has gone, so does their queue.
        if ring.live.as_ref().is_some_and(|live| live.send(record).is_err()) {
            ring.live = None;
        }
    }
}

/// Bytes of what a line said.
fn weight(record: &LogRecord) -> usize {
    let fields = record.fields.iter();
    record.message.len() + fields.map(|(key, value)| key.len() + weight_of(value)).sum::<usize>()
}

/// Bytes of a value, with those that any value takes. Lines are short, so this goes no deeper
/// than a parser of JSON does.
fn weight_of(value: &Value) -> usize {
    const ANY: usize = size_of::<(String, Value)>();
    ANY + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight_of).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() + weight_of(value)).sum()
        }
    }
}

impl Ring {
    fn tail(&self, count: usize) -> Vec<Arc<LogRecord>> {
        let skip = if count == 0 { 0 } else { self.records.len().saturating_sub(count) };
        self.records.iter().skip(skip).cloned().collect()
    }
}

/// `time` as RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

struct Said {
    level: String,
    message: String,
    fields: Map<String, Value>,
}

fn understand(line: &str) -> Said {
    let parsed = line.starts_with('{').then(|| serde_json::from_str::<Map<String, Value>>(line));
    if let Some(Ok(mut object)) = parsed
        && let Some(message) = take_text(&mut object, &["message", "msg"])
    {
        let level = take_text(&mut object, &["level", "severity", "lvl"]);
        // Who and when are the host's word.
        for key in ["node_id", "service", "pid"] {
            object.remove(key);
        }
        let nested = match object.remove("fields") {
            Some(Value::Object(fields)) => fields,
            Some(other) => Map::from_iter([("fields".to_owned(), other)]),
            None => Map::new(),
        };
        object.extend(nested);
        let level = level.map_or_else(|| "info".into(), |level| plain_level(&level));
        return Said { level, message, fields: object };
    }
    // Many programs write everything to stderr, so the stream alone does not make an error.
    Said { level: "info".into(), message: line.into(), fields: Map::new() }
}

fn take_text(object: &mut Map<String, Value>, keys: &[&str]) -> Option<String> {
    let key = keys.iter().find(|key| object.get(**key).is_some_and(Value::is_string))?;
    match object.remove(*key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn plain_level(level: &str) -> String {
    match level.to_ascii_lowercase().as_str() {
        "error" | "err" | "fatal" | "critical" | "panic" => "error",
        "warn" | "warning" => "warn",
        "debug" => "debug",
        "trace" => "trace",
        _ => "info",
    }
    .into()
}

/// What all streams share that write more than is read of one at its pace.
#[derive(Clone)]
pub(crate) struct Floods(Arc<Mutex<Tokens>>);

impl Default for Floods {
    fn default() -> Self {
        let tokens = Tokens::full(FLOODS_BYTES_PER_SECOND, FLOODS_BYTES_BURST, Instant::now());
        Self(Arc::new(Mutex::new(tokens)))
    }
}

impl Floods {
    /// `bytes` were read of a stream that must wait for `own` already: how long it waits.
    fn wait(&self, bytes: usize, own: Duration, now: Instant) -> Duration {
        let mut tokens = self.0.lock();
        tokens.spend(bytes as f64);
        tokens.owed(now).map_or(own, |shared| shared.max(own))
    }
}

/// Reads lines from `pipe` into `logs` until its last writer is gone. `pid` is asked for each
/// line, because it is known only after the first could be said.
pub(crate) async fn capture(
    mut pipe: pipe::Receiver,
    logs: Logs,
    stream: LogStream,
    pid: Arc<std::sync::atomic::AtomicU32>,
    floods: Floods,
) {
    // Most plugins are silent most of the time: what they say is read into a buffer of the thread.
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    }
    let mut lines = Lines::default();
    let mut pace = Tokens::full(READ_BYTES_PER_SECOND, READ_BYTES_BURST, Instant::now());
    let mut turns = Tokens::full(READS_PER_SECOND, READS_BURST, Instant::now());
    let mut flooding = false;
    while pipe.readable().await.is_ok() {
        let pid = pid.load(std::sync::atomic::Ordering::Relaxed);
        let read = BUFFER.with_borrow_mut(|buffer| {
            let read = pipe.try_read(buffer)?;
            let now = Instant::now();
            lines.feed(&buffer[..read], |line| logs.line(stream, pid, line, now));
            io::Result::Ok(read)
        });
        match read {
            Ok(0) => break,
            Ok(read) => {
                pace.spend(read as f64);
                turns.spend(1.0);
                let now = Instant::now();
                let own = pace.owed(now);
                let rest = turns.owed(now).unwrap_or_default();
                // A flood is one until its pipe is empty, however long it waited meanwhile.
                let hurries = flooding || !rest.is_zero();
                flooding = own.is_some() || (hurries && read == READ_BYTES);
                let wait = if flooding {
                    floods.wait(read, own.unwrap_or_default(), now).max(rest)
                } else {
                    rest
                };
                if wait.is_zero() {
                    // However much there is to read, others have their turn.
                    tokio::task::yield_now().await;
                } else {
                    let Ok(rested) = turned_away(pipe, wait).await else { break };
                    pipe = rested;
                }
            }
            // It was not readable after all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let pid = pid.load(std::sync::atomic::Ordering::Relaxed);
    lines.finish(|line| logs.line(stream, pid, line, Instant::now()));
}

/// Leaves `pipe` to itself for a while: as long as it is watched, every write to it wakes the
/// thread, whether or not anybody is going to read.
async fn turned_away(pipe: pipe::Receiver, wait: Duration) -> io::Result<pipe::Receiver> {
    let descriptor = pipe.into_nonblocking_fd()?;
    tokio::time::sleep(wait).await;
    pipe::Receiver::from_owned_fd_unchecked(descriptor)
}

/// Cuts bytes into lines of bounded length.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
    cut: bool,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.add(&bytes[..end]);
            self.end(&mut each);
            bytes = &bytes[end + 1..];
        }
        self.add(bytes);
    }

    fn finish(&mut self, mut each: impl FnMut(&str)) {
        if !self.begun.is_empty() {
            self.end(&mut each);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.begun.len();
        self.cut |= bytes.len() > room;
        self.begun.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self, each: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.begun);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        if self.cut {
            each(&format!("{text}… (cut at {LINE_BYTES_MAX} bytes)"));
        } else if !text.is_empty() {
            each(text);
        }
        self.begun.clear();
        self.cut = false;
    }
}

/// How long the host waits for the last words of a process that has ended. A grandchild that
/// escaped with the pipe must not hold up its supervisor.
pub(crate) const LAST_WORDS: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
