//! What happened to one call on its way, step by step, for whoever asked for it.
//!
//! Owns the record and its bound. Collected only for calls made through
//! [`crate::Router::trace`]; such a call carries [`EXPLAIN`], which asks the peer that answers to
//! say how long its own part took, in [`LEGS`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use protocol::{
    failure::Failure,
    id::{InstanceId, PeerId},
};

use crate::router::Explained;

/// Metadata of a call whose caller wants to know where its time goes.
pub const EXPLAIN: HeaderName = HeaderName::from_static("bh-explain");

/// Metadata of the answer to such a call: how long the answering peer's own legs took.
pub const LEGS: HeaderName = HeaderName::from_static("bh-legs");

/// Steps of one call that are kept; attempts are few, so it is never reached.
const STEPS_MAX: usize = 64;

/// The longest text of another peer that is kept, in bytes.
const LEGS_BYTES_MAX: usize = 256;

/// One step of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Time since the call arrived.
    pub at: Duration,
    /// What happened.
    pub what: Event,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Nobody was known, and the mesh was asked.
    LookedUp {
        /// Whether that brought a provider.
        found: bool,
    },
    /// An answer was here already, and nobody was asked.
    Recalled {
        /// How long ago it was given.
        age: Duration,
    },
    /// All candidates as the choice saw them, best first, then those that may not answer.
    Weighed(Vec<Explained>),
    /// An attempt began.
    Chosen {
        /// The provider's peer.
        peer: PeerId,
        /// Its plugin.
        plugin: String,
        /// Which run of it, as far as this node chooses.
        instance: InstanceId,
        /// Whether it is on this node.
        local: bool,
        /// Why it.
        why: String,
        /// Begun while an earlier attempt still runs.
        hedge: bool,
    },
    /// There is a connection to it, and the call is sent.
    Sent,
    /// It began to answer.
    Answered {
        /// What the answering peer says of its own legs; empty for a local one.
        legs: String,
    },
    /// The attempt failed.
    Failed(Failure),
    /// The next attempt waits.
    Waits(Duration),
    /// No further attempt is made.
    Stopped(&'static str),
}

/// The record of one call.
#[derive(Debug)]
pub(crate) struct Trace {
    began: Instant,
    steps: Mutex<Vec<Step>>,
}

impl Trace {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), steps: Mutex::default() })
    }

    pub(crate) fn add(&self, what: Event) {
        let mut steps = self.steps.lock();
        if steps.len() < STEPS_MAX {
            steps.push(Step { at: self.began.elapsed(), what });
        }
    }

    /// The steps so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.lock().clone()
    }

    /// This peer's own legs, for the peer that asked: `choose=12us reach=40us plugin=900us`.
    pub(crate) fn legs(&self) -> Option<HeaderValue> {
        let steps = self.steps.lock();
        let last = |wanted: fn(&Event) -> bool| {
            steps.iter().rfind(|step| wanted(&step.what)).map(|step| step.at)
        };
        let chosen = last(|what| matches!(what, Event::Chosen { .. }))?;
        let sent = last(|what| matches!(what, Event::Sent))?;
        let answered = last(|what| matches!(what, Event::Answered { .. }))?;
        let micros = |from: Duration, to: Duration| to.saturating_sub(from).as_micros();
        let text = format!(
            "choose={}us reach={}us plugin={}us",
            chosen.as_micros(),
            micros(chosen, sent),
            micros(sent, answered)
        );
        HeaderValue::from_str(&text).ok()
    }
}

/// Takes the answering peer's legs out of its metadata.
pub(crate) fn take_legs(metadata: &mut HeaderMap) -> String {
    let legs = metadata.remove(&LEGS);
    let text = legs.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.chars().take(LEGS_BYTES_MAX).collect()
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LookedUp { found: true } => f.write_str("nobody was known; the mesh named one"),
            Self::LookedUp { found: false } => f.write_str("nobody was known, here or in the mesh"),
            Self::Recalled { age } => {
                write!(f, "answered by this node, with an answer kept for {} ms", age.as_millis())
            }
            Self::Weighed(candidates) => {
                let eligible = candidates.iter().filter(|one| one.eligible).count();
                write!(f, "{eligible} of {} candidates may answer", candidates.len())
            }
            Self::Chosen { plugin, peer, why, hedge, .. } => {
                let hedge = if *hedge { ", while the first one still runs" } else { "" };
                write!(f, "chose {plugin} on {peer}{hedge}: {why}")
            }
            Self::Sent => f.write_str("connected, and the call is sent"),
            Self::Answered { legs } if legs.is_empty() => f.write_str("it answers"),
            Self::Answered { legs } => write!(f, "it answers; there: {legs}"),
            Self::Failed(failure) => {
                write!(f, "{} ({}): {failure}", failure.reason.as_str(), failure.ran.as_str())
            }
            Self::Waits(time) => write!(f, "waits {} ms before the next attempt", time.as_millis()),
            Self::Stopped(why) => write!(f, "no further attempt: {why}"),
        }
    }
}
