//! What went wrong, and whether the call ran.
//!
//! A [`Failure`] is made by the mesh, never by a plugin: a plugin that answers with an error
//! status has answered, and its status travels untouched. Retries and failover follow from
//! [`Ran`] and [`Reason`] alone; [`Detail`] is for people and programs who want to know more. Each
//! edge turns a failure into its own words in one place, from [`Failure::grpc_code`] or
//! [`Failure::http_status`].

use std::{fmt, time::Duration};

use crate::id::PeerId;

/// Providers that a failure names as tried before the last one. A call is offered to fewer.
pub const TRIED_MAX: usize = 8;

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

impl Ran {
    /// One word: `not-started`, `unknown`, `failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not-started",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
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
    /// Calls to every provider have failed again and again: none is tried for a moment.
    CircuitOpen,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NotAvailable,
        Self::Unreachable,
        Self::PeerLost,
        Self::PluginLost,
        Self::Busy,
        Self::Refused,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::TooLarge,
        Self::Malformed,
        Self::Internal,
        Self::CircuitOpen,
    ];

    /// A few words joined by hyphens: `peer-lost`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAvailable => "not-available",
            Self::Unreachable => "unreachable",
            Self::PeerLost => "peer-lost",
            Self::PluginLost => "plugin-lost",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Cancelled => "cancelled",
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::Internal => "internal",
            Self::CircuitOpen => "circuit-open",
        }
    }

    /// The provider, its process or the way to it may be gone, or what is known of it is stale.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::PeerLost | Self::PluginLost | Self::Unreachable | Self::NotAvailable)
    }
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
    /// What else is known. Does not cross to other peers: each adds what it knows.
    pub detail: Option<Box<Detail>>,
}

/// What is known of a failure beyond what decides on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail {
    /// The plugin at which it failed.
    pub plugin: Option<String>,
    /// Providers that were tried before, in order, at most [`TRIED_MAX`].
    pub tried: Vec<Tried>,
    /// How long to wait before another try is of use.
    pub retry_after: Option<Duration>,
}

/// One provider that was tried, and why that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The peer.
    pub peer: PeerId,
    /// Its plugin.
    pub plugin: String,
    /// Whether the call may have run there.
    pub ran: Ran,
    /// Why it failed.
    pub reason: Reason,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ran, reason) = (self.ran.as_str(), self.reason.as_str());
        write!(f, "{}@{} {reason} {ran}", self.plugin, self.peer)
    }
}

impl Failure {
    /// A failure of which nothing more is known.
    pub fn new(ran: Ran, reason: Reason, message: impl Into<String>) -> Self {
        Self { ran, reason, message: message.into(), peer: None, detail: None }
    }

    /// A failure before any byte reached a plugin.
    pub fn not_started(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Ran::NotStarted, reason, message)
    }

    /// A failure of a call that may have run.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Ran::Unknown, reason, message)
    }

    /// A failure that repeating cannot mend.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Ran::Failed, reason, message)
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

    /// The same failure, at `plugin`, unless it knows where.
    pub fn at_plugin(mut self, plugin: &str) -> Self {
        self.detail_mut().plugin.get_or_insert_with(|| plugin.into());
        self
    }

    /// The same failure, worth another try after `time`.
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.detail_mut().retry_after = Some(time);
        self
    }

    /// What else is known, to be added to.
    pub fn detail_mut(&mut self) -> &mut Detail {
        self.detail.get_or_insert_default()
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
            Reason::NotAvailable
            | Reason::Unreachable
            | Reason::PeerLost
            | Reason::PluginLost
            | Reason::CircuitOpen => 14,
        }
    }

    /// The HTTP status for this failure. Where a provider was lost or could not be reached it says
    /// whether the call may have run: 503 (*Service Unavailable*) if it certainly did not, 502
    /// (*Bad Gateway*) if it may have.
    ///
    /// Source: RFC 9110, section 15; `google/rpc/code.proto` for 499.
    pub fn http_status(&self) -> u16 {
        match (self.reason, self.ran) {
            (Reason::Cancelled, _) => 499,
            (Reason::DeadlineExceeded, _) => 504,
            (Reason::Refused, _) => 403,
            (Reason::Busy, _) => 429,
            (Reason::TooLarge, _) => 413,
            (Reason::Malformed | Reason::Internal, _) => 500,
            (
                Reason::NotAvailable
                | Reason::Unreachable
                | Reason::PeerLost
                | Reason::PluginLost
                | Reason::CircuitOpen,
                Ran::NotStarted,
            ) => 503,
            (
                Reason::NotAvailable
                | Reason::Unreachable
                | Reason::PeerLost
                | Reason::PluginLost
                | Reason::CircuitOpen,
                Ran::Unknown | Ran::Failed,
            ) => 502,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_tells_what_may_have_run_from_what_did_not() {
        for reason in Reason::ALL.into_iter().filter(|reason| reason.is_loss()) {
            assert_eq!(Failure::not_started(reason, "").http_status(), 503, "{reason:?}");
            assert_eq!(Failure::unknown(reason, "").http_status(), 502, "{reason:?}");
        }
        assert_eq!(Failure::not_started(Reason::Busy, "").http_status(), 429);
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn the_first_to_know_the_plugin_is_believed() {
        let failure = Failure::unknown(Reason::PluginLost, "gone").at_plugin("a").at_plugin("b");
        assert_eq!(failure.detail.expect("detail").plugin.as_deref(), Some("a"));
    }
}
