//! Every bound of the gateway, with its reason, proved against its neighbours at compile time.

use std::time::Duration;

use protocol::limits::{MESSAGE_BYTES_MAX, METADATA_BYTES_MAX};

/// Connections of one listener. Each costs about 20 KB when idle; one more is closed at once.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;

/// Calls in progress on all connections of one [`crate::Grpc`]. Further ones are refused with
/// `RESOURCE_EXHAUSTED`. At about 10 KB each this is 200 MB. More than one plugin may have, so that
/// one which answers nothing leaves room for calls to all others.
pub const CALLS_MAX: usize = 20_480;

/// Calls in progress on one connection; a client that wants more waits, as HTTP/2 has it. High
/// enough for a proxy that shares one connection among all of its users.
pub const CONNECTION_CALLS_MAX: u32 = 1_000;

/// All headers of one request, as HTTP/2 counts them: 32 bytes more for each.
pub(crate) const HEADER_LIST_BYTES_MAX: u32 = METADATA_BYTES_MAX as u32;

/// The query of a URL, in which a call by GET has its message: half of what a head may have.
pub(crate) const QUERY_BYTES_MAX: usize = 32 * 1024;

/// Parameters of a query: as many as HTTP/1.1 has headers here.
pub(crate) const PARAMETERS_MAX: usize = 100;

/// One HTTP/2 DATA frame. Four times the smallest allowed: fewer frames for large messages, and
/// small calls still get between them.
pub(crate) const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// What a client may send of one call before it is read.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 512 * 1024;

/// What a client may send of all calls of a connection before it is read: the memory that one
/// client can hold.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// What is buffered towards a client that reads slowly, per call.
pub(crate) const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Calls that a client may reset before they were accepted (*rapid reset*, CVE-2023-44487), and
/// those that break the protocol, before its connection is closed.
pub(crate) const RESETS_PENDING_MAX: usize = 64;

/// Frames of HTTP/2 that carry nothing (settings, pings, window updates, resets, empty data) which
/// a client may have sent beyond those that it earned: enough to cancel all calls of a connection
/// four times over.
pub(crate) const IDLE_FRAMES_MAX: u32 = 4_096;

/// Those that a second earns.
pub(crate) const IDLE_FRAMES_PER_SECOND: u32 = 256;

/// Those that a frame of an answer earns: two window updates, a ping that measures the way, and
/// one to spare.
pub(crate) const IDLE_FRAMES_EARNED: u32 = 4;

/// How long a new connection may take to send its first request's beginning.
pub(crate) const GREETING: Duration = Duration::from_secs(10);

/// How often a silent connection is asked whether it lives.
pub(crate) const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);

/// How long it may take to answer that.
pub(crate) const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(20);

/// How long accepting rests after the system refused (too many open files).
pub(crate) const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How long one reflection question may take, with all descriptors it needs from other peers.
pub(crate) const REFLECTION_ANSWER: Duration = Duration::from_secs(5);

/// Descriptor sets fetched for one reflection question that names no service.
pub(crate) const REFLECTION_FETCHES_MAX: usize = 16;

/// Reflection and health streams open at once: each is a conversation of a tool or a balancer.
pub(crate) const OWN_STREAMS_MAX: usize = 256;

/// Descriptor sets kept indexed. Ordinary ones take 10 to 100 KB.
pub(crate) const INDEXES_KEPT_MAX: usize = 64;

/// A question to the gateway's own services: a name or two.
pub(crate) const QUESTION_BYTES_MAX: usize = 16 * 1024;

/// A failure's message in a header, before it is percent-encoded.
pub(crate) const STATUS_MESSAGE_BYTES_MAX: usize = 2 * 1024;

/// A message in JSON, and what it is translated to or from: what most gRPC libraries take. In
/// memory, for the moment of its translation, it is up to thirty times as large.
pub(crate) const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What all callers of the web together make the gateway hold: messages to be translated, answers
/// whose status goes before them.
pub(crate) const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What is held is counted in these.
pub(crate) const HELD_UNIT_BYTES: usize = 1024;

// A connection must be able to have one call flowing while another one waits.
const _: () = assert!(STREAM_WINDOW_BYTES < CONNECTION_WINDOW_BYTES);
const _: () = assert!(FRAME_BYTES_MAX <= STREAM_WINDOW_BYTES);
// Percent-encoding triples at worst.
const _: () = assert!(STATUS_MESSAGE_BYTES_MAX * 3 < METADATA_BYTES_MAX);
const _: () =
    assert!(JSON_BYTES_MAX <= MESSAGE_BYTES_MAX && MESSAGE_BYTES_MAX * 8 < HELD_BYTES_MAX);
const _: () = assert!(QUERY_BYTES_MAX * 2 <= HEADER_LIST_BYTES_MAX as usize);
const _: () = assert!(CONNECTION_CALLS_MAX * 4 <= IDLE_FRAMES_MAX);
const _: () = assert!(CONNECTION_CALLS_MAX as usize <= CALLS_MAX);
