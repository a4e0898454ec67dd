//! Base64 that comes in chunks: gRPC-Web's text form.
//!
//! Source: gRPC-Web protocol, *application/grpc-web-text*: segments, each padded by itself, one
//! after the other.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};

/// Letters of one group.
const GROUP: usize = 4;

/// Decodes one direction of a call.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Letters of a group of which the rest has not come: fewer than [`GROUP`].
    rest: BytesMut,
}

/// It is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotBase64;

impl Decoder {
    /// The bytes of all groups that are complete with `chunk`.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<Bytes, NotBase64> {
        self.rest.extend_from_slice(chunk);
        let whole = self.rest.len() / GROUP * GROUP;
        let letters = self.rest.split_to(whole);
        let mut bytes = Vec::with_capacity(whole / GROUP * 3);
        let mut segment = letters.as_ref();
        while !segment.is_empty() {
            // Padding ends a segment, at the end of its group.
            let padded = segment.iter().position(|letter| *letter == b'=');
            let end = padded.map_or(segment.len(), |at| (at / GROUP + 1) * GROUP);
            let (now, later) = segment.split_at(end);
            STANDARD.decode_vec(now, &mut bytes).map_err(|_| NotBase64)?;
            segment = later;
        }
        Ok(bytes.into())
    }

    /// Nothing is missing at the end.
    pub(super) fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

/// `bytes` as a segment.
pub(super) fn encode(bytes: &[u8]) -> Bytes {
    STANDARD.encode(bytes).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn segments_come_back_however_they_are_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1..9_usize,
        ) {
            let text: Vec<u8> = parts.iter().flat_map(|part| encode(part)).collect();
            let mut decoder = Decoder::default();
            let mut bytes = Vec::new();
            for chunk in text.chunks(cut) {
                bytes.extend(decoder.push(chunk).expect("base64"));
            }
            prop_assert!(decoder.is_whole());
            prop_assert_eq!(bytes, parts.concat());
        }

        #[test]
        fn anything_is_decoded_or_refused(text in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Decoder::default().push(&text);
        }
    }

    #[test]
    fn what_is_cut_short_or_padded_within_is_not_whole() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"AAAAA").expect("base64").len(), 3);
        assert!(!decoder.is_whole());
        for bad in [b"A=AA".as_slice(), b"====", b"A\nAA", b"AAA_"] {
            assert_eq!(Decoder::default().push(bad), Err(NotBase64), "{bad:?}");
        }
    }
}
