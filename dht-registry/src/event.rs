//! What can happen to a registry, and what it can ask for. Both lists are closed.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::{
    advert::{AdvertUnfit, ServiceOffer},
    id::{InstanceId, PeerId},
    service::ServiceName,
};
use semver::Version;

/// What this node offers through one plugin instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which run of the plugin. Offering the same instance again replaces the offer before.
    pub instance: InstanceId,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub version: Version,
    /// What it serves, in any order. Health and reflection are left out of adverts.
    pub services: Vec<ServiceOffer>,
    /// What callers choose by.
    pub labels: BTreeMap<String, String>,
    /// How it is confined.
    pub isolation: String,
    /// Millionths of the network's unit for one call, where it asks for any.
    pub price: Option<u64>,
}

/// The caller's name for something it waits for; given back with the answer. The registry never
/// looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The caller's name for one lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LookupId(pub u64);

/// The registry's name for one request to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A plugin of this node is ready.
    Offered(Offer),
    /// A plugin of this node is no longer there.
    Withdrawn(InstanceId),
    /// This node is about to stop.
    Leaving,
    /// How busy this node is, 0 to 100.
    Load(u8),
    /// A first connection to `peer` stands.
    PeerConnected(PeerId),
    /// The last connection to a peer ended.
    PeerDisconnected {
        /// Which peer.
        peer: PeerId,
        /// True where it was lost rather than closed.
        abrupt: bool,
    },
    /// A gossip message awaits its verdict.
    Gossip {
        /// The neighbour that passed it on.
        from: PeerId,
        /// Its bytes, unverified.
        data: Vec<u8>,
        /// Given back with the verdict.
        token: Token,
    },
    /// A [`Effect::Publish`] reached nobody.
    Unpublished,
    /// A peer asks something over `/blackhole/registry/1`.
    Requested {
        /// Who asks.
        peer: PeerId,
        /// Its bytes, unverified.
        data: Vec<u8>,
        /// Given back with the answer.
        token: Token,
    },
    /// A [`Effect::Fetch`] ended.
    Replied {
        /// Which one.
        fetch: FetchId,
        /// The reply's bytes, unverified; `None` where none came.
        reply: Option<Vec<u8>>,
    },
    /// Somebody here wants `service`, and the directory has it not.
    LookupRequested {
        /// Given back with the outcome.
        id: LookupId,
        /// What is wanted.
        service: ServiceName,
    },
    /// A [`Effect::FindProviders`] ended.
    ProvidersFound {
        /// What was looked for.
        service: ServiceName,
        /// Who the DHT says provides it; any of it may be old or a lie.
        peers: Vec<PeerId>,
    },
    /// The time of [`crate::Registry::next_timer`] has come.
    Tick,
}

/// Something is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Gossip these bytes; report [`Event::Unpublished`] where nobody was there to hear.
    Publish(Bytes),
    /// Be found in the DHT under this key.
    Provide([u8; 32]),
    /// No longer be found there.
    StopProviding([u8; 32]),
    /// Ask the DHT; answer with [`Event::ProvidersFound`], empty where it failed.
    FindProviders {
        /// What is looked for.
        service: ServiceName,
        /// Under which key.
        key: [u8; 32],
    },
    /// Send a request; answer with [`Event::Replied`].
    Fetch {
        /// Given back with the reply.
        id: FetchId,
        /// Whom to ask.
        peer: PeerId,
        /// What to send.
        request: Vec<u8>,
    },
    /// Tell gossip what the message was.
    Verdict {
        /// Which message.
        token: Token,
        /// What it was.
        verdict: Verdict,
    },
    /// Reply to a request.
    Answer {
        /// Which request.
        token: Token,
        /// What to send.
        reply: Vec<u8>,
    },
    /// Reply to a request with the descriptors of a local service, by
    /// [`crate::wire::Reply::Descriptors`].
    Describe {
        /// Which request.
        token: Token,
        /// Whose descriptors.
        service: ServiceName,
    },
    /// [`crate::Registry::directory`] has something new.
    DirectoryChanged,
    /// A lookup ended.
    LookupDone {
        /// Which one.
        id: LookupId,
        /// True where the directory now has the service.
        found: bool,
    },
    /// `peer` sent what no honest peer sends, repeatedly: have less to do with it.
    Penalise(PeerId),
    /// An offer cannot be announced.
    OfferRefused {
        /// Which one.
        instance: InstanceId,
        /// Why.
        reason: OfferRefused,
    },
}

/// What a gossip message turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// True and new: pass it on.
    Accept,
    /// Of no use, and nobody's fault.
    Ignore,
    /// A lie: whoever passed it on did not check.
    Reject,
}

/// An offer of this node cannot be announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferRefused {
    /// Every peer would refuse its advert.
    #[error("the plugin cannot be announced: {0}")]
    Unfit(AdvertUnfit),
    /// It has more services than adverts for one instance may name.
    #[error("the plugin offers {services} services; at most {most} can be announced")]
    TooManyServices {
        /// How many.
        services: usize,
        /// How many may be.
        most: usize,
    },
    /// This node offers as much as other peers would remember of it.
    #[error(
        "this node already announces {adverts} adverts, as many as peers accept; unload a plugin first"
    )]
    Full {
        /// How many.
        adverts: usize,
    },
}
