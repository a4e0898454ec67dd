//! The messages of `/blackhole/registry/1`: what a peer asks another about offers, and how it is
//! answered. DAG-CBOR, one request and one reply; both sizes are checked before parsing.

use bytes::Bytes;
use protocol::{
    id::{InstanceId, PeerId},
    limits::{ADVERT_BYTES_MAX, DESCRIPTORS_BYTES_MAX},
    service::ServiceName,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::trust::Key;

/// A request: a service name and a cursor, with room to spare.
pub const REQUEST_BYTES_MAX: usize = 1_024;

/// A reply: the largest descriptor set and what surrounds it.
pub const REPLY_BYTES_MAX: usize = DESCRIPTORS_BYTES_MAX + 1_024;

/// Adverts in one page: 10,000 adverts take some 80 pages, and none keeps a peer busy for long.
pub const PAGE_ADVERTS_MAX: usize = 128;

const _: () = assert!(PAGE_ADVERTS_MAX * (ADVERT_BYTES_MAX + 8) < REPLY_BYTES_MAX);

/// Which of a peer's adverts are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those it signed itself.
    Own,
    /// Those, and all it holds of others.
    All,
}

/// Where a listing goes on: after this advert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    own: bool,
    #[serde(with = "serde_bytes")]
    peer: Vec<u8>,
    instance: u64,
    part: u16,
}

impl Cursor {
    pub(crate) fn after((peer, instance, part): Key, own: bool) -> Self {
        Self { own, peer: peer.to_bytes(), instance: instance.0, part }
    }

    /// The advert and whether it is the answering peer's own; `None` where the cursor is nonsense.
    pub(crate) fn key(&self) -> Option<(Key, bool)> {
        let peer = PeerId::from_bytes(&self.peer).ok()?;
        Some(((peer, InstanceId(self.instance), self.part), self.own))
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Adverts, page by page.
    GetAdverts {
        /// Whose.
        scope: Scope,
        /// Only those that name this service.
        service: Option<ServiceName>,
        /// After which one; `None` for the first page.
        cursor: Option<Cursor>,
    },
    /// The descriptors of one service that the asked peer itself runs.
    GetDescriptors {
        /// Which one.
        service: ServiceName,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// One page of adverts.
    Adverts {
        /// Each as it travels; at most [`PAGE_ADVERTS_MAX`], each to be verified.
        adverts: Vec<ByteBuf>,
        /// Where the next page begins; `None` after the last.
        next: Option<Cursor>,
    },
    /// A `google.protobuf.FileDescriptorSet`, or `None` where the service is not here.
    Descriptors {
        /// Its bytes.
        bytes: Option<ByteBuf>,
    },
    /// Not now: too much is asked at once.
    Busy,
    /// The request could not be read.
    NotUnderstood,
}

impl Request {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a stranger's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireRejected> {
        decode(bytes, REQUEST_BYTES_MAX)
    }
}

impl Reply {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a stranger's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireRejected> {
        let reply = decode(bytes, REPLY_BYTES_MAX)?;
        match &reply {
            Self::Adverts { adverts, .. } if adverts.len() > PAGE_ADVERTS_MAX => {
                Err(WireRejected::TooMany { adverts: adverts.len() })
            }
            _ => Ok(reply),
        }
    }

    /// The answer to [`Request::GetDescriptors`]. Descriptors too large to send are not here.
    pub fn descriptors(bytes: Option<Bytes>) -> Self {
        let bytes = bytes.filter(|bytes| bytes.len() <= DESCRIPTORS_BYTES_MAX);
        Self::Descriptors { bytes: bytes.map(|bytes| ByteBuf::from(Vec::from(bytes))) }
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(message).expect("text, bytes and whole numbers have a CBOR form")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], bytes_max: usize) -> Result<T, WireRejected> {
    if bytes.len() > bytes_max {
        return Err(WireRejected::TooLarge { bytes: bytes.len() });
    }
    serde_ipld_dagcbor::from_slice(bytes).map_err(|_| WireRejected::Malformed)
}

/// Bytes from a peer are not a message of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireRejected {
    /// Longer than any message may be.
    #[error("the registry message has {bytes} bytes, more than any may have")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// More adverts than fit a page.
    #[error("the page has {adverts} adverts; at most {PAGE_ADVERTS_MAX} are allowed")]
    TooMany {
        /// How many.
        adverts: usize,
    },
    /// Nothing that can be read.
    #[error("the bytes are not a registry message")]
    Malformed,
}

/// What fuzzing does with any bytes: read them as every message. Panics only where reading back
/// what was written gives something else.
pub fn exercise(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    if let Ok(reply) = Reply::decode(bytes) {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::id::NodeKey;

    use super::*;

    fn service() -> ServiceName {
        "demo.v1.Counter".parse().expect("a name")
    }

    fn cursor() -> Cursor {
        let peer = NodeKey::from_seed([1; 32]).peer_id();
        Cursor::after((peer, InstanceId(u64::MAX), 3), true)
    }

    #[test]
    fn requests_and_replies_survive_the_journey() {
        for scope in [Scope::Own, Scope::All] {
            for service in [None, Some(service())] {
                for cursor in [None, Some(cursor())] {
                    let request = Request::GetAdverts { scope, service: service.clone(), cursor };
                    assert_eq!(Request::decode(&request.encode()), Ok(request));
                }
            }
        }
        let adverts = vec![ByteBuf::from(vec![7; ADVERT_BYTES_MAX]); PAGE_ADVERTS_MAX];
        for reply in [
            Reply::Adverts { adverts, next: Some(cursor()) },
            Reply::descriptors(Some(Bytes::from(vec![1; DESCRIPTORS_BYTES_MAX]))),
            Reply::descriptors(None),
            Reply::Busy,
            Reply::NotUnderstood,
        ] {
            let bytes = reply.encode();
            assert!(bytes.len() <= REPLY_BYTES_MAX);
            assert_eq!(Reply::decode(&bytes), Ok(reply));
        }
    }

    #[test]
    fn the_longest_request_is_within_its_bound() {
        let name: ServiceName = "x".repeat(255).parse().expect("a name");
        let (scope, cursor) = (Scope::All, Some(cursor()));
        let request = Request::GetAdverts { scope, service: Some(name), cursor };
        assert!(request.encode().len() <= REQUEST_BYTES_MAX);
    }

    #[test]
    fn size_is_refused_before_anything_is_parsed() {
        let bytes = vec![0xff; REQUEST_BYTES_MAX + 1];
        assert_eq!(Request::decode(&bytes), Err(WireRejected::TooLarge { bytes: bytes.len() }));
        let many =
            Reply::Adverts { adverts: vec![ByteBuf::new(); PAGE_ADVERTS_MAX + 1], next: None };
        let refused = Err(WireRejected::TooMany { adverts: PAGE_ADVERTS_MAX + 1 });
        assert_eq!(Reply::decode(&many.encode()), refused);
    }

    #[test]
    fn descriptors_too_large_to_send_are_not_sent() {
        let large = Bytes::from(vec![1; DESCRIPTORS_BYTES_MAX + 1]);
        assert_eq!(Reply::descriptors(Some(large)), Reply::Descriptors { bytes: None });
    }

    #[test]
    fn the_corpus_of_the_fuzzer_passes() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/registry");
        let mut files = 0;
        for entry in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
            exercise(&std::fs::read(entry.expect("an entry").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 0, "the corpus is empty");
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            exercise(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(
            cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let adverts = vec![ByteBuf::from(vec![1, 2, 3]); 2];
            let mut bytes = Reply::Adverts { adverts, next: Some(cursor()) }.encode();
            for (at, byte) in cuts {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            exercise(&bytes);
        }
    }
}
