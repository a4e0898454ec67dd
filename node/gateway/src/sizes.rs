//! Holds messages to their bound by reading the five bytes before each of them, as they pass.

use protocol::limits::MESSAGE_BYTES_MAX;

use crate::heads::{Heads, MESSAGE_HEAD_BYTES, message_bytes};

/// Follows one direction of a call through its chunks.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Heads<MESSAGE_HEAD_BYTES>);

/// A message is larger than the mesh carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oversize {
    /// The message's length as its prefix says, in bytes.
    pub(crate) bytes: usize,
}

impl Sizes {
    /// Follows the next chunk; fails at the first prefix above the bound.
    pub(crate) fn pass(&mut self, mut chunk: &[u8]) -> Result<(), Oversize> {
        while let Some(head) = self.0.next(&mut chunk) {
            let bytes = message_bytes(head);
            if bytes > MESSAGE_BYTES_MAX {
                return Err(Oversize { bytes });
            }
            self.0.follow(bytes);
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
