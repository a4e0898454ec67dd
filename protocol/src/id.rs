//! Who is meant: peers, plugin instances, networks, and the key that proves a peer.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use libp2p_identity as identity;
use serde::{Deserialize, Serialize};

/// A peer's public name: the multihash of its ed25519 public key, written in base58 (`12D3Koo…`).
///
/// Source: libp2p specification, *peer-ids*.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(identity::PeerId);

impl PeerId {
    /// The id as libp2p's own type; only `node/peer` has use for it.
    pub fn inner(&self) -> identity::PeerId {
        self.0
    }

    /// The id in its binary form (multihash), at most 42 bytes for ed25519.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// Reads the binary form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidPeerId> {
        identity::PeerId::from_bytes(bytes).map(Self).map_err(|_| InvalidPeerId)
    }

    /// The ed25519 key that the id itself carries; `None` for ids of other key types, which
    /// cannot sign adverts.
    pub fn verifying_key(&self) -> Option<VerifyingKey> {
        let multihash = self.0.to_bytes();
        // identity multihash (0x00), length, then the protobuf-encoded public key:
        // 08 01 (type ed25519) 12 20 (32 bytes).
        let key = multihash.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
        VerifyingKey::from_bytes(key.try_into().ok()?).ok()
    }

    /// Whether `signature` is this peer's over `message` (RFC 8032, strict: no malleability, no
    /// weak keys).
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        self.verifying_key().is_some_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

impl From<identity::PeerId> for PeerId {
    fn from(id: identity::PeerId) -> Self {
        Self(id)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| InvalidPeerId)
    }
}

/// The text or bytes are not a peer id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id (expected something like 12D3KooW…)")]
pub struct InvalidPeerId;

/// A peer's ed25519 key pair. `Debug` never shows the secret.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// The key that the 32 secret bytes stand for; the caller brings the randomness.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The 32 secret bytes.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The peer id that this key proves.
    pub fn peer_id(&self) -> PeerId {
        let public =
            identity::ed25519::PublicKey::try_from_bytes(self.0.verifying_key().as_bytes());
        let public = public.expect("dalek and libp2p agree on what an ed25519 key is");
        PeerId(identity::PublicKey::from(public).to_peer_id())
    }

    /// Signs `message`; deterministic (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.peer_id())
    }
}

/// One run of one plugin: new at every start, so that a restarted plugin is never taken for the
/// one before it. Written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The network a peer belongs to; peers of different networks do not speak to each other.
/// One to 32 characters from `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NetworkName {
    fn default() -> Self {
        Self("local".into())
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NetworkName {
    type Err = InvalidNetworkName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=32).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidNetworkName(text.chars().take(40).collect()))
        }
    }
}

impl TryFrom<String> for NetworkName {
    type Error = InvalidNetworkName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0
    }
}

/// The text is not a network name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network name: 1 to 32 characters from a-z, 0-9 and -")]
pub struct InvalidNetworkName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_gives_back_the_key_it_was_made_from() {
        let key = NodeKey::from_seed([7; 32]);
        let id = key.peer_id();
        assert!(id.verify(b"hello", &key.sign(b"hello")));
        assert!(!id.verify(b"hallo", &key.sign(b"hello")));
        assert_eq!(id.to_string().parse::<PeerId>(), Ok(id));
        assert_eq!(PeerId::from_bytes(&id.to_bytes()), Ok(id));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let text = format!("{:?}", NodeKey::from_seed([7; 32]));
        assert!(text.starts_with("NodeKey(12D3KooW"), "{text}");
    }

    #[test]
    fn network_names_are_short_and_plain() {
        assert!("testnet-1".parse::<NetworkName>().is_ok());
        for bad in ["", "Has Space", "ü", &"x".repeat(33)] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
    }
}
