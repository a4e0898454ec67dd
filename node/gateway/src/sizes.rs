//! Holds messages to their bound by reading the five bytes before each of them, as they pass.
//!
//! Source: gRPC over HTTP/2, *Length-Prefixed-Message*: one byte of flags, four of length.

use protocol::limits::MESSAGE_BYTES_MAX;

const PREFIX_BYTES: usize = 5;

/// Follows one direction of a call through its chunks.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that have come.
    prefix_bytes: usize,
    /// Bytes of the current message that have not come.
    left: usize,
}

/// A message is larger than the mesh carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oversize {
    /// The message's length as its prefix says, in bytes.
    pub(crate) bytes: usize,
}

impl Sizes {
    /// Follows the next chunk; fails at the first prefix above the bound.
    pub(crate) fn pass(&mut self, mut chunk: &[u8]) -> Result<(), Oversize> {
        while !chunk.is_empty() {
            if self.left > 0 {
                let passing = self.left.min(chunk.len());
                self.left -= passing;
                chunk = &chunk[passing..];
                continue;
            }
            let taken = (PREFIX_BYTES - self.prefix_bytes).min(chunk.len());
            let (now, later) = chunk.split_at(taken);
            self.prefix[self.prefix_bytes..self.prefix_bytes + taken].copy_from_slice(now);
            self.prefix_bytes += taken;
            chunk = later;
            if self.prefix_bytes == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                let bytes = u32::from_be_bytes(length) as usize;
                if bytes > MESSAGE_BYTES_MAX {
                    return Err(Oversize { bytes });
                }
                self.left = bytes;
                self.prefix_bytes = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn message(bytes: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(bytes.to_be_bytes());
        message.resize(message.len() + bytes as usize, 0xff);
        message
    }

    proptest! {
        #[test]
        fn where_chunks_are_cut_makes_no_difference(
            sizes in vec(0..200_u32, 0..8),
            cuts in vec(1..40_usize, 1..8),
        ) {
            let mut wire: Vec<u8> = sizes.iter().flat_map(|bytes| message(*bytes)).collect();
            let too_large = (MESSAGE_BYTES_MAX + 1) as u32;
            wire.push(1);
            wire.extend(too_large.to_be_bytes());
            let mut follower = Sizes::default();
            let mut cuts = cuts.iter().cycle();
            let mut rest = wire.as_slice();
            while rest.len() > 1 {
                let cut = *cuts.next().expect("a cycle").min(&(rest.len() - 1));
                prop_assert_eq!(follower.pass(&rest[..cut]), Ok(()));
                rest = &rest[cut..];
            }
            prop_assert_eq!(follower.pass(rest), Err(Oversize { bytes: MESSAGE_BYTES_MAX + 1 }));
        }
    }

    #[test]
    fn a_message_of_exactly_the_bound_passes() {
        let mut follower = Sizes::default();
        assert_eq!(follower.pass(&message(MESSAGE_BYTES_MAX as u32)), Ok(()));
        assert_eq!(follower.pass(&message(0)), Ok(()));
    }
}
