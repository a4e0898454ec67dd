//! Adverts: what a peer signs about a plugin that it runs.
//!
//! Owns the format, its bounds and its proof. An advert travels as 64 bytes of ed25519 signature
//! followed by the advert in canonical DAG-CBOR; what is signed is [`SIGNING_DOMAIN`] and those
//! bytes. The key is the one the peer id itself carries, so no key travels and none can be
//! substituted. [`verify`] is the only way to a [`VerifiedAdvert`]; whoever holds one need not
//! check again. Refuses to remember anything: replay and order are the registry's business.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ed25519_dalek::Signature;
use semver::Version;

use crate::{
    id::{InstanceId, NetworkName, NodeKey, PeerId},
    limits::{ADVERT_BYTES_MAX, ADVERT_SERVICES_MAX, ADVERT_TTL_MILLIS, CLOCK_SKEW_MILLIS_MAX},
    service::ServiceName,
};

mod format;

/// What precedes the advert in the signed message, so that a signature made for anything else,
/// or for another version of the format, never passes for one of these.
pub const SIGNING_DOMAIN: &[u8] = b"blackhole/advert/1\0";

/// Bytes of signature in front of the advert.
const SIGNATURE_BYTES: usize = 64;

/// A plugin's name in an advert, in bytes.
pub const PLUGIN_NAME_BYTES_MAX: usize = 64;

/// A plugin's version in an advert, in bytes.
pub const VERSION_BYTES_MAX: usize = 32;

/// Labels of one advert. With the bounds around it, one service of the longest name always fits
/// into an advert; a test proves it.
pub const LABELS_MAX: usize = 12;

/// All keys and values of one advert's labels together, in bytes.
pub const LABELS_BYTES_MAX: usize = 256;

/// The isolation level's name, in bytes.
pub const ISOLATION_BYTES_MAX: usize = 16;

/// One service as an advert names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceOffer {
    /// Its full name.
    pub name: ServiceName,
    /// sha2-256 of its descriptors: two providers with the same hash speak the same interface.
    pub schema: [u8; 32],
}

/// What a peer says of one plugin instance, or, with `withdrawn`, that it no longer says it.
///
/// Times are milliseconds since the Unix epoch, by the issuer's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// The network it is meant for; refused in every other.
    pub network: NetworkName,
    /// Who offers, and whose key signs.
    pub peer: PeerId,
    /// When the peer's node started. A later start makes every advert of earlier ones void.
    pub boot: u64,
    /// Which run of which plugin.
    pub instance: InstanceId,
    /// Which part, where an instance offers more services than one advert may name.
    pub part: u16,
    /// The plugin's name, 1 to [`PLUGIN_NAME_BYTES_MAX`] bytes.
    pub plugin: String,
    /// The plugin's version.
    pub version: Version,
    /// What it serves: 1 to [`ADVERT_SERVICES_MAX`], sorted by name, none twice; none at all in
    /// a withdrawal.
    pub services: Vec<ServiceOffer>,
    /// Region, role, hardware and whatever else callers choose by; at most [`LABELS_MAX`].
    pub labels: BTreeMap<String, String>,
    /// How the plugin is confined: `process`, `none`; at most [`ISOLATION_BYTES_MAX`] bytes.
    pub isolation: String,
    /// How busy the provider is, 0 to 100.
    pub load: u8,
    /// Millionths of the network's unit for one call, where the provider asks for any.
    pub price: Option<u64>,
    /// Counts up over everything that this run of the peer's node ever signs.
    pub seq: u64,
    /// When it was signed.
    pub issued: u64,
    /// When it ends; at most [`ADVERT_TTL_MILLIS`] after `issued`.
    pub expires: u64,
    /// True for the last word about this instance and part.
    pub withdrawn: bool,
}

impl Advert {
    /// Signs it. `key` must be the one that `peer` names.
    pub fn sign(&self, key: &NodeKey) -> Result<SignedAdvert, AdvertUnfit> {
        if key.peer_id() != self.peer {
            return Err(AdvertUnfit::OtherKey);
        }
        let body = self.body()?;
        let mut bytes = Vec::with_capacity(SIGNATURE_BYTES + body.len());
        bytes.extend_from_slice(&key.sign(&signed_message(&body)));
        bytes.extend_from_slice(&body);
        Ok(SignedAdvert { bytes: bytes.into(), advert: Arc::new(self.clone()) })
    }

    /// Whether it can be signed, whatever the key.
    pub fn check_size(&self) -> Result<(), AdvertUnfit> {
        self.body().map(|_| ())
    }

    /// What is signed, within every bound.
    fn body(&self) -> Result<Vec<u8>, AdvertUnfit> {
        self.check_bounds().map_err(|what| AdvertUnfit::OutOfBounds { what })?;
        let body = format::encode(self);
        let bytes = SIGNATURE_BYTES + body.len();
        if bytes > ADVERT_BYTES_MAX {
            return Err(AdvertUnfit::TooLarge { bytes });
        }
        Ok(body)
    }

    /// Everything about its contents that holds or fails whatever the time is and whoever signed.
    fn check_bounds(&self) -> Result<(), &'static str> {
        let plugin_fits = (1..=PLUGIN_NAME_BYTES_MAX).contains(&self.plugin.len());
        let nameless = self.withdrawn && self.plugin.is_empty();
        if !(plugin_fits || nameless) {
            return Err("the plugin's name");
        }
        if self.version.to_string().len() > VERSION_BYTES_MAX {
            return Err("the plugin's version");
        }
        if self.withdrawn != self.services.is_empty() || self.services.len() > ADVERT_SERVICES_MAX {
            return Err("the number of services");
        }
        if !self.services.is_sorted_by(|one, next| one.name < next.name) {
            return Err("the order of services");
        }
        let label_bytes: usize = self.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
        if self.labels.len() > LABELS_MAX || label_bytes > LABELS_BYTES_MAX {
            return Err("the size of labels");
        }
        if self.labels.keys().any(String::is_empty) {
            return Err("an empty label name");
        }
        if self.isolation.len() > ISOLATION_BYTES_MAX {
            return Err("the isolation level");
        }
        if self.load > 100 {
            return Err("the load");
        }
        let lifetime = self.expires.checked_sub(self.issued);
        if !lifetime.is_some_and(|millis| (1..=ADVERT_TTL_MILLIS).contains(&millis)) {
            return Err("the lifetime");
        }
        if self.boot > self.issued {
            return Err("the start of the node");
        }
        Ok(())
    }
}

/// An advert and its signature as they travel. That it is well-formed is certain; that the
/// signature is right is not, until [`SignedAdvert::verify`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAdvert {
    bytes: Bytes,
    advert: Arc<Advert>,
}

impl SignedAdvert {
    /// Reads one. The size is checked before anything is parsed, and what is parsed must encode
    /// to the same bytes again: there is one way to write an advert.
    pub fn decode(bytes: &[u8]) -> Result<Self, AdvertRejected> {
        if bytes.len() > ADVERT_BYTES_MAX {
            return Err(AdvertRejected::TooLarge { bytes: bytes.len() });
        }
        let Some((_, body)) = bytes.split_at_checked(SIGNATURE_BYTES) else {
            return Err(AdvertRejected::Malformed);
        };
        let advert = format::decode(body)?;
        if format::encode(&advert) != body {
            return Err(AdvertRejected::NotCanonical);
        }
        advert.check_bounds().map_err(|what| AdvertRejected::OutOfBounds { what })?;
        Ok(Self { bytes: Bytes::copy_from_slice(bytes), advert: Arc::new(advert) })
    }

    /// The bytes that travel, at most [`ADVERT_BYTES_MAX`].
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it claims.
    pub fn claims(&self) -> &Arc<Advert> {
        &self.advert
    }

    /// Checks everything that `decode` could not: network, key, signature, and time `now`
    /// (Unix milliseconds).
    pub fn verify(self, network: &NetworkName, now: u64) -> Result<VerifiedAdvert, AdvertRejected> {
        let advert = &self.advert;
        if advert.network != *network {
            return Err(AdvertRejected::OtherNetwork { network: advert.network.clone() });
        }
        let key = advert.peer.verifying_key().ok_or(AdvertRejected::NoKey)?;
        let (signature, body) = self.bytes.split_at(SIGNATURE_BYTES);
        let signature = Signature::from_slice(signature).map_err(|_| AdvertRejected::Forged)?;
        key.verify_strict(&signed_message(body), &signature).map_err(|_| AdvertRejected::Forged)?;
        // Time last: only what its issuer truly signed is judged by the clock, so that a reason
        // to forgive is never given to a forger.
        if advert.issued > now.saturating_add(CLOCK_SKEW_MILLIS_MAX) {
            return Err(AdvertRejected::FromTheFuture { ahead_millis: advert.issued - now });
        }
        if advert.expires <= now {
            return Err(AdvertRejected::Expired { ago_millis: now - advert.expires });
        }
        Ok(VerifiedAdvert { bytes: self.bytes, advert: self.advert })
    }
}

/// Receipt: these bytes were signed by the peer they name, for this network, and were valid when
/// they were checked. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedAdvert {
    bytes: Bytes,
    advert: Arc<Advert>,
}

impl VerifiedAdvert {
    /// What the peer says.
    pub fn advert(&self) -> &Arc<Advert> {
        &self.advert
    }

    /// The bytes that prove it, to be handed on as they are.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Decodes and verifies at once. `now` is in milliseconds since the Unix epoch.
pub fn verify(
    bytes: &[u8],
    network: &NetworkName,
    now: u64,
) -> Result<VerifiedAdvert, AdvertRejected> {
    SignedAdvert::decode(bytes)?.verify(network, now)
}

fn signed_message(body: &[u8]) -> Vec<u8> {
    [SIGNING_DOMAIN, body].concat()
}

/// An advert from elsewhere was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertRejected {
    /// Longer than [`ADVERT_BYTES_MAX`].
    #[error("the advert has {bytes} bytes; at most {ADVERT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not an advert.
    #[error("the bytes are not an advert")]
    Malformed,
    /// Written in a version of the format that this build does not know.
    #[error("the advert is written in format {version}, which this version does not know")]
    UnknownFormat {
        /// The version it names.
        version: u64,
    },
    /// It says the same in more than one way.
    #[error("the advert is not written in canonical DAG-CBOR")]
    NotCanonical,
    /// Something in it is larger or smaller than allowed.
    #[error("the advert is out of bounds in {what}")]
    OutOfBounds {
        /// Which part of it.
        what: &'static str,
    },
    /// It is meant for another network.
    #[error("the advert is meant for the network {network}")]
    OtherNetwork {
        /// Which one.
        network: NetworkName,
    },
    /// The peer id carries no ed25519 key.
    #[error("the advert's peer id carries no ed25519 key, so nothing can prove it")]
    NoKey,
    /// The signature does not belong to these bytes and this peer.
    #[error("the advert's signature is not its peer's")]
    Forged,
    /// Signed too far ahead of this node's clock.
    #[error("the advert was issued {ahead_millis} ms in the future; compare the peers' clocks")]
    FromTheFuture {
        /// How far ahead.
        ahead_millis: u64,
    },
    /// Over.
    #[error("the advert expired {ago_millis} ms ago")]
    Expired {
        /// How long ago.
        ago_millis: u64,
    },
}

impl AdvertRejected {
    /// True where no honest peer would have passed it on: whoever did is to be distrusted. Late,
    /// early and newer ones are forgiven.
    pub fn is_hostile(&self) -> bool {
        match self {
            Self::TooLarge { .. }
            | Self::Malformed
            | Self::NotCanonical
            | Self::OutOfBounds { .. }
            | Self::OtherNetwork { .. }
            | Self::NoKey
            | Self::Forged => true,
            Self::UnknownFormat { .. } | Self::FromTheFuture { .. } | Self::Expired { .. } => false,
        }
    }
}

/// An advert of our own cannot be signed as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertUnfit {
    /// The key is not the one the advert's peer id names.
    #[error("the advert names another peer than the one whose key would sign it")]
    OtherKey,
    /// Something in it is larger or smaller than allowed.
    #[error("the advert would be refused everywhere for {what}; shorten or correct it")]
    OutOfBounds {
        /// Which part of it.
        what: &'static str,
    },
    /// Longer than [`ADVERT_BYTES_MAX`].
    #[error("the advert would have {bytes} bytes; at most {ADVERT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// What fuzzing and the replay of its corpus do with any bytes: read them as an advert in every
/// way there is. Panics only where a promise of this module is broken.
pub fn exercise(bytes: &[u8]) {
    if let Ok(signed) = SignedAdvert::decode(bytes) {
        assert_eq!(signed.bytes(), bytes, "what was read is what was given");
        let claims = Arc::clone(signed.claims());
        if let Ok(verified) = signed.verify(&claims.network, claims.issued) {
            assert_eq!(*verified.advert(), claims, "verifying changes nothing");
        }
    }
    // The body alone, so that a fuzzer needs no signature to get past the first door.
    if let Ok(advert) = format::decode(bytes) {
        let again = format::decode(&format::encode(&advert));
        assert_eq!(again.as_ref(), Ok(&advert), "an advert survives its own encoding");
    }
}

#[cfg(test)]
mod tests;
