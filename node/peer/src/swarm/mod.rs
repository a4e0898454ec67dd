//! The swarm and its task.
//!
//! Three planes. *Control*: one task owns the swarm and is told what to do through a bounded
//! channel ([`SwarmHandle`]); it waits for nothing but its own `select`. *Data*: streams are opened
//! and accepted past that task, straight between the caller and the connection's own task. *Views*:
//! [`PeerView`] is a snapshot that anyone reads without asking.
//!
//! Facts come up as [`SwarmEvent`] and [`Inbound`], each on a bounded channel. When nobody takes
//! them, gossip and requests are dropped and inbound streams are refused; connections and
//! disconnections are never lost.

mod actor;
mod address;
mod behaviour;
mod book;
mod connections;
mod dials;
mod guard;
mod handle;
mod joining;
mod lookups;
mod messages;
mod persist;
mod reach;
mod records;
mod registry_codec;
mod start;
mod streams;
mod view;

pub use handle::SwarmHandle;
pub use start::StartError;
pub(crate) use start::{Running, SwarmTasks, start};
pub use streams::{ByteStream, Inbound};
pub use view::{ConnectionView, Counters, NeighbourView, PeerView, Transport};

use std::time::Duration;

use libp2p::gossipsub;
use multiaddr::Multiaddr;
use protocol::id::PeerId;
use tokio::sync::oneshot;

/// Something that happened in the network, of interest to the rest of the peer.
#[derive(Debug)]
pub enum SwarmEvent {
    /// A concrete address is listened on.
    Listening(Multiaddr),
    /// The first peer of the network was met.
    Joined {
        /// That peer.
        through: PeerId,
    },
    /// A bootstrap address did not answer; it will be tried again.
    BootstrapUnreachable {
        /// The address as configured.
        address: Multiaddr,
        /// Why, in one sentence.
        error: String,
        /// When it is tried next.
        retry_in: Duration,
    },
    /// A peer of another network, or of another version, was met and sent away.
    Foreign {
        /// That peer.
        peer: PeerId,
        /// Where it was met.
        address: Multiaddr,
        /// What it speaks, and what this peer speaks, in one sentence.
        reason: String,
    },
    /// A peer of the network is connected and known to be of the network.
    PeerConnected(PeerId),
    /// The last connection to a peer ended; or somebody wanted one and it could not be made, which
    /// tells as much about the peer.
    PeerDisconnected {
        /// That peer.
        peer: PeerId,
        /// Whether it ended without either side wanting it.
        abrupt: bool,
    },
    /// A gossip message. It travels on only when it is reported as accepted.
    Gossip {
        /// The neighbour that brought it. What it says proves itself.
        from: PeerId,
        /// What it says.
        data: Vec<u8>,
        /// What to report the verdict under.
        token: MessageToken,
    },
    /// A registry request. Dropping `reply` refuses it.
    Request {
        /// Who asks.
        peer: PeerId,
        /// What it asks.
        data: Vec<u8>,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<u8>>,
    },
}

/// Names one gossip message until its verdict is reported.
#[derive(Debug, Clone)]
pub struct MessageToken {
    pub(crate) message: gossipsub::MessageId,
    pub(crate) carrier: libp2p::PeerId,
}

/// What becomes of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Carried on to others.
    Accept,
    /// Not carried on; nobody is to blame.
    Ignore,
    /// Not carried on, and the peer that brought it is to blame.
    Reject,
}

/// Commands that wait for the swarm's task. Each is small; a burst of lookups from one call storm
/// fits, and beyond it callers wait, which is what slows them down.
const COMMANDS_MAX: usize = 256;

/// Verdicts that wait for the swarm's task. One more is dropped, which ignores its message.
const VERDICTS_MAX: usize = 1_024;

/// Events that wait to be taken.
const EVENTS_MAX: usize = 256;

/// Events that wait behind [`EVENTS_MAX`]; at this depth gossip and requests are dropped.
const OUTBOX_MAX: usize = 512;

/// Inbound streams that wait to be taken. One more is refused as busy.
const INBOUND_MAX: usize = 256;

/// DHT lookups at once. More callers wait for one to end.
const LOOKUPS_MAX: usize = 64;

/// How long one DHT lookup may take, whatever its caller's deadline.
const LOOKUP_MAX: Duration = Duration::from_secs(15);

/// How long a lookup goes on after the first provider was found: the rest of a small network
/// answers within it, and nobody waits for peers that do not answer.
const LOOKUP_GRACE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
