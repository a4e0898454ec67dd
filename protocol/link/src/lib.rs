//! Calls on one byte stream: the driver of a link.
//!
//! A link carries many calls at once, from the side that made it ([`client()`]) to the side that
//! accepted it ([`serve()`]). Each side is one future that its owner spawns and that does all:
//! it reads, hands on, asks bodies for more and writes, so that a call changes tasks only where
//! caller and handler do. What it has gathered in one wake-up leaves in one write.
//!
//! Bodies and callers meet the driver at a desk: they leave word there of what they want, and
//! the driver looks when it is woken. Nobody holds a lock while waiting, and nothing waits for a
//! reader who does not read: each call has credit of its own, and a reader who stops costs the link
//! at most what that call may send.
//!
//! Small calls go first. Whoever has sent much gives way in the queue, and between peers goes on on
//! a lane, a second stream beside the link ([`client_with_lane`], [`serve_with_lane`]).
//!
//! Handlers and bodies are polled in the driver's task, so they must not block: what takes the
//! processor for long belongs on a task of its own. A panic in one costs its call only.
//!
//! The driver refuses to guess. Bytes that break the protocol end the link; a call whose link ends
//! is told whether the other side can have begun it.

#![forbid(unsafe_code)]

mod client;
mod core;
mod desk;
mod dialect;
mod half;
mod lane;
mod outbound;
mod reconnecting;
mod send;
mod serve;
mod share;
mod wire;

use std::{future::Future, sync::Arc, time::Duration};

use protocol::{
    frame::{CALL_CREDIT_BYTES, FrameError},
    id::PeerId,
    limits::CALL_IDLE_SECONDS_MAX,
    ports::{Caller, Invoke},
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use client::Link;
pub use dialect::{Dialect, Socket, connect, sniff};
pub use lane::{Arrival, OpenLane, Seat, Unread, arrival};
pub use reconnecting::Reconnecting;
pub use share::Share;

/// Calls in flight on one link; the next one is refused as busy, at once. A call costs about a
/// kilobyte while it waits, so this is 4 MB.
pub const CALLS_MAX: usize = 4_096;

/// Calls in flight on a link between two programs of one machine, which is the only one they have:
/// 16 MB while all of them wait.
pub const CALLS_WITHIN_MACHINE_MAX: usize = 16_384;

/// Bytes a link keeps for readers who have not read them yet, all calls together. Enough for 500
/// calls whose readers all stopped; a call that would go beyond is failed as busy.
pub const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Credit that one call may grow to while its reader keeps up: a megabyte in flight fills 80 Mbit/s
/// over 100 ms.
pub const CALL_CREDIT_BYTES_MAX: usize = 1024 * 1024;

/// Credit beyond the first that all calls of a link may have together.
pub const GROWTH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a link with calls in flight may bring nothing before it is pinged.
pub const QUIET: Duration = Duration::from_secs(1);

/// How long after such a ping it may still bring nothing before it counts as dead.
pub const SILENCE: Duration = Duration::from_secs(3);

/// How long whoever opened a stream may take to say that it is a link.
pub const PREFACE_WITHIN: Duration = Duration::from_secs(10);

// Readers who stopped must not be failed before there are many of them.
const _: () = assert!(CALL_CREDIT_BYTES * 500 <= QUEUED_BYTES_MAX);
const _: () = assert!(GROWTH_BYTES_MAX < QUEUED_BYTES_MAX);
const _: () = assert!(CALL_CREDIT_BYTES < CALL_CREDIT_BYTES_MAX);

/// How one link behaves. The default is what peers use between each other.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// The peer at the other end, which failures then name.
    pub peer: Option<PeerId>,
    /// Calls in flight; see [`CALLS_MAX`].
    pub calls_max: usize,
    /// What a link that answers has with others of the same peer together.
    pub share: Option<Arc<Share>>,
    /// Bytes kept for readers; see [`QUEUED_BYTES_MAX`].
    pub queued_bytes_max: usize,
    /// See [`QUIET`].
    pub quiet: Duration,
    /// See [`SILENCE`].
    pub silence: Duration,
    /// How long a call without a deadline may make no progress.
    pub call_idle: Duration,
    /// How long a client's link lives without calls; `None` keeps it until its owner lets go.
    pub link_idle: Option<Duration>,
    /// See [`PREFACE_WITHIN`].
    pub preface_within: Duration,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            peer: None,
            calls_max: CALLS_MAX,
            share: None,
            queued_bytes_max: QUEUED_BYTES_MAX,
            quiet: QUIET,
            silence: SILENCE,
            call_idle: Duration::from_secs(CALL_IDLE_SECONDS_MAX),
            link_idle: None,
            preface_within: PREFACE_WITHIN,
        }
    }
}

impl LinkSettings {
    /// For a stream within one machine, where one link carries all calls of a program: the kernel
    /// tells when the other program is gone, so one that computes for long and does not answer is
    /// not taken for dead.
    pub fn within_machine() -> Self {
        Self {
            calls_max: CALLS_WITHIN_MACHINE_MAX,
            silence: Duration::from_secs(CALL_IDLE_SECONDS_MAX),
            ..Self::default()
        }
    }
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkEnd {
    /// This side let it go, after its last call.
    #[error("the link was closed")]
    Closed,
    /// No call used it for long.
    #[error("the link was not used")]
    Idle,
    /// The other side let it go.
    #[error("the other side closed the link")]
    ClosedByOther,
    /// The stream failed, or ended inside a frame.
    #[error("the link was lost: {cause}")]
    Lost {
        /// What the stream says.
        cause: String,
    },
    /// The other side brought nothing for so long, not even an answer to a ping.
    #[error("the other side has been silent for {} ms", .after.as_millis())]
    Silent {
        /// Since when nothing came.
        after: Duration,
    },
    /// The other side broke the format of frames.
    #[error("the other side broke the link protocol: {0}")]
    Format(#[from] FrameError),
    /// The other side sent a frame that has no place where it came.
    #[error("the other side broke the link protocol: {what}")]
    Violation {
        /// What it did.
        what: &'static str,
    },
    /// The other side says that this one broke the protocol.
    #[error("the other side refused the link: {message}")]
    RefusedByOther {
        /// What it says.
        message: String,
    },
}

/// Makes a link of `stream` on which this side opens calls. The second value is its driver: calls
/// move while somebody polls it, and it ends when the link does. Dropping it fails every call.
///
/// The link is let go when the last clone of [`Link`] is dropped, after its last call.
pub fn client<S>(
    stream: S,
    settings: LinkSettings,
) -> (Link, impl Future<Output = LinkEnd> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    client::new(stream, settings, false, None)
}

/// As [`client()`], for a link beside which the data of large calls may have a stream of its own:
/// `open` opens it, at most once, when it is first wanted and the other side takes it.
pub fn client_with_lane<S>(
    stream: S,
    settings: LinkSettings,
    open: OpenLane<S>,
) -> (Link, impl Future<Output = LinkEnd> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    client::new(stream, settings, false, Some(open))
}

/// Answers the calls that the other side of `stream` opens: each becomes one
/// [`Invoke::invoke`] of `handler`, marked as coming from `caller`. Ends when the other side lets
/// go or breaks the protocol; dropping it drops every call.
pub fn serve<S>(
    stream: S,
    settings: LinkSettings,
    caller: Caller,
    handler: Arc<dyn Invoke>,
) -> impl Future<Output = LinkEnd> + Send
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve_until(stream, settings, caller, handler, std::future::pending())
}

/// As [`serve()`], until `drain` is done: then new calls are refused as not started, and the
/// link ends after its last call.
pub fn serve_until<S, D>(
    stream: S,
    settings: LinkSettings,
    caller: Caller,
    handler: Arc<dyn Invoke>,
    drain: D,
) -> impl Future<Output = LinkEnd> + Send
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    let stream = Unread::from(stream);
    serve::Server::new(stream, None, settings, caller, handler, Box::pin(drain))
}

/// As [`serve_until()`], with a seat for the stream on which the data of large calls may come and
/// go; the other side is told of it.
pub fn serve_with_lane<S, D>(
    stream: Unread<S>,
    seat: Seat<S>,
    settings: LinkSettings,
    caller: Caller,
    handler: Arc<dyn Invoke>,
    drain: D,
) -> impl Future<Output = LinkEnd> + Send
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    serve::Server::new(stream, Some(seat), settings, caller, handler, Box::pin(drain))
}
