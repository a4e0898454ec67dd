//! What is counted, and told once, of connections that ended badly.

use std::{error::Error, net::SocketAddr};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::wire::Seen;

/// Why a connection was not let in, or was ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Too many were open.
    Full,
    /// It said nothing.
    Silent,
    /// It sent more of something than its bound.
    Flood,
    /// It broke its protocol.
    Malformed,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Silent => "silent",
            Self::Flood => "flood",
            Self::Malformed => "malformed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    why: &'static str,
}

/// Counts of all listeners that share them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    refused: Family<Labels, Counter>,
}

impl Meters {
    /// Registers the series in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register(
            "blackhole_gateway_connections_refused",
            "Connections that were not let in, or were ended for what they sent",
            meters.refused.clone(),
        );
        for why in [Why::Full, Why::Silent, Why::Flood, Why::Malformed] {
            // Shown as 0 before the first.
            drop(meters.refused.get_or_create(&Labels { why: why.as_str() }));
        }
        meters
    }

    pub(crate) fn count(&self, why: Why) {
        self.refused.get_or_create(&Labels { why: why.as_str() }).inc();
    }

    /// Counts how the connection of `from` ended, and logs it: once, whatever it sent.
    pub(crate) fn tell(&self, from: Option<SocketAddr>, ended: Option<Ended>) {
        let from = from.map_or_else(|| "a local socket".to_owned(), |from| from.to_string());
        match ended {
            None => {}
            Some(Ended::Silent) => {
                self.count(Why::Silent);
                tracing::debug!(from, "connection closed: it said nothing");
            }
            Some(Ended::Flood(what)) => {
                self.count(Why::Flood);
                tracing::warn!(from, "connection closed: {what}");
            }
            Some(Ended::Malformed(what)) => {
                self.count(Why::Malformed);
                tracing::debug!(from, "connection closed: {what}");
            }
            Some(Ended::Lost(what)) => tracing::debug!(from, "connection ended: {what}"),
        }
    }
}

/// How a connection ended that did not end well.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It said nothing.
    Silent,
    /// For too much of something.
    Flood(String),
    /// For what breaks the protocol.
    Malformed(String),
    /// Not from here.
    Lost(String),
}

impl Ended {
    /// What `error` means for a connection of which `seen` was seen.
    pub(crate) fn of(seen: &Seen, error: Option<Box<dyn Error + Send + Sync>>) -> Option<Self> {
        if let Some(flood) = seen.flood() {
            return Some(Self::Flood(flood.to_string()));
        }
        let error = error?;
        let mut cause: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        while let Some(one) = cause {
            if let Some(h2) = one.downcast_ref::<h2::Error>().filter(|h2| h2.is_library()) {
                return Some(match h2.reason() {
                    Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::Flood(h2.to_string()),
                    _ => Self::Malformed(h2.to_string()),
                });
            }
            cause = one.source();
        }
        Some(Self::Lost(error.to_string()))
    }
}
