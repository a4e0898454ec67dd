//! What went wrong, and whether the call ran.
//!
//! A [`Failure`] is made by the mesh, never by a plugin: a plugin that answers with an error
//! status has answered, and its status travels untouched. Retries and failover follow from
//! [`Ran`] alone.

use std::fmt;

use crate::id::PeerId;

/// Whether the plugin may have begun the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ran {
    /// No byte of it reached a plugin: safe to send elsewhere.
    NotStarted,
    /// It may have run: safe to repeat only if the method is declared idempotent.
    Unknown,
    /// It ran, or would be refused everywhere: never repeated.
    Failed,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nobody known offers the service.
    NotAvailable,
    /// The peer or plugin could not be reached.
    Unreachable,
    /// The connection to the peer ended during the call.
    PeerLost,
    /// The plugin ended, or closed its connection, during the call.
    PluginLost,
    /// The peer or plugin has as much to do as it accepts.
    Busy,
    /// The caller may not do this.
    Refused,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// A message or its metadata is larger than allowed.
    TooLarge,
    /// What was sent breaks the protocol.
    Malformed,
    /// A fault of ours.
    Internal,
}

/// A call that the mesh could not bring to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whether it ran.
    pub ran: Ran,
    /// Why it failed.
    pub reason: Reason,
    /// One sentence for a person: what happened, where, and what to do where that is known.
    pub message: String,
    /// The peer at which it failed, where that is not this one.
    pub peer: Option<PeerId>,
}

impl Failure {
    /// A failure before any byte reached a plugin.
    pub fn not_started(reason: Reason, message: impl Into<String>) -> Self {
        Self { ran: Ran::NotStarted, reason, message: message.into(), peer: None }
    }

    /// A failure of a call that may have run.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { ran: Ran::Unknown, reason, message: message.into(), peer: None }
    }

    /// A failure that repeating cannot mend.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self { ran: Ran::Failed, reason, message: message.into(), peer: None }
    }

    /// The failure of a call to something nobody offers.
    pub fn not_available(service: impl fmt::Display) -> Self {
        Self::not_started(Reason::NotAvailable, format!("service {service} not available"))
    }

    /// The same failure, seen at `peer`.
    pub fn at(mut self, peer: PeerId) -> Self {
        self.peer = Some(peer);
        self
    }

    /// The gRPC status code for this failure.
    ///
    /// Source: gRPC, *Status codes and their use*.
    pub fn grpc_code(&self) -> u32 {
        match self.reason {
            Reason::Cancelled => 1,
            Reason::DeadlineExceeded => 4,
            Reason::Refused => 7,
            Reason::Busy | Reason::TooLarge => 8,
            Reason::Malformed | Reason::Internal => 13,
            Reason::NotAvailable | Reason::Unreachable | Reason::PeerLost | Reason::PluginLost => {
                14
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(peer) = &self.peer {
            write!(f, " (at peer {peer})")?;
        }
        match self.ran {
            Ran::NotStarted | Ran::Failed => Ok(()),
            Ran::Unknown => f.write_str(" (it may have run)"),
        }
    }
}

impl std::error::Error for Failure {}
