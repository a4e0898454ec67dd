//! Envelopes: one byte of flags, four of length, a message. gRPC, gRPC-Web and Connect have the
//! same, and differ in what the flags mean.

use protocol::limits::MESSAGE_BYTES_MAX;

use super::{hold::Hold, refusal::No};
use crate::heads::{Heads, MESSAGE_HEAD_BYTES, message_bytes};

/// Flags and length.
pub(super) const PREFIX_BYTES: usize = MESSAGE_HEAD_BYTES;

/// The message is compressed, in all three.
pub(super) const COMPRESSED: u8 = 1;
/// Connect: no message but how the stream ended.
pub(super) const END_OF_STREAM: u8 = 2;
/// gRPC-Web: no message but the trailers.
pub(super) const TRAILERS: u8 = 0x80;

/// The prefix of a message.
pub(super) fn prefix(flags: u8, length: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, a, b, c, d]
}

/// A whole envelope.
pub(super) fn wrap(flags: u8, message: &[u8]) -> Vec<u8> {
    [&prefix(flags, message.len())[..], message].concat()
}

/// Reads a prefix that a caller sent. `compressed` where it may have compressed the message.
fn read(prefix: [u8; PREFIX_BYTES], compressed: bool) -> Result<usize, No> {
    let length = message_bytes(prefix);
    match prefix[0] {
        0 => {}
        COMPRESSED if compressed => {}
        COMPRESSED => return Err(No::invalid("a message is compressed, but not said by what")),
        other => {
            return Err(No::invalid(format!("an envelope has flags {other:#04x}, not 0 or 1")));
        }
    }
    if length > MESSAGE_BYTES_MAX {
        return Err(No::too_large(format!(
            "a message has {length} bytes; the mesh carries {MESSAGE_BYTES_MAX} at most: send it \
             in parts, as a stream"
        )));
    }
    Ok(length)
}

/// Follows envelopes that pass, and holds them to their form.
#[derive(Debug)]
pub(super) struct Follow {
    compressed: bool,
    heads: Heads<PREFIX_BYTES>,
}

impl Follow {
    /// `compressed` where the caller said by what.
    pub(super) fn new(compressed: bool) -> Self {
        Self { compressed, heads: Heads::default() }
    }

    /// Follows the next chunk.
    pub(super) fn pass(&mut self, mut chunk: &[u8]) -> Result<(), No> {
        while let Some(prefix) = self.heads.next(&mut chunk) {
            self.heads.follow(read(prefix, self.compressed)?);
        }
        Ok(())
    }

    /// No envelope is cut short at the end.
    pub(super) fn is_whole(&self) -> bool {
        self.heads.is_between()
    }
}

/// Takes the next whole message out of what a caller sent; `None` until it is there.
pub(super) fn next(hold: &mut Hold, message_bytes_max: usize) -> Result<Option<Vec<u8>>, No> {
    let Some(prefix) = hold.as_slice().first_chunk() else { return Ok(None) };
    let length = read(*prefix, false)?;
    if length > message_bytes_max {
        let message = format!("a message has {length} bytes; {message_bytes_max} are translated");
        return Err(No::too_large(message));
    }
    let Some(message) = hold.as_slice().get(PREFIX_BYTES..PREFIX_BYTES + length) else {
        return Ok(None);
    };
    let message = message.to_vec();
    hold.skip(PREFIX_BYTES + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn well_formed_envelopes_pass_however_they_are_cut(
            lengths in prop::collection::vec(0..300_usize, 0..6),
            cut in 1..40_usize,
        ) {
            let wire: Vec<u8> =
                lengths.iter().flat_map(|length| wrap(0, &vec![7; *length])).collect();
            let mut follow = Follow::new(false);
            for chunk in wire.chunks(cut) {
                prop_assert!(follow.pass(chunk).is_ok());
            }
            prop_assert!(follow.is_whole());
        }

        #[test]
        fn anything_is_followed_or_refused(wire in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Follow::new(true).pass(&wire);
        }
    }

    #[test]
    fn odd_flags_and_sizes_are_refused_and_a_cut_is_seen() {
        for (flags, said) in [(0x80, false), (2, true), (1, false), (0xff, true)] {
            assert!(Follow::new(said).pass(&wrap(flags, b"x")).is_err(), "{flags}");
        }
        let huge = prefix(0, MESSAGE_BYTES_MAX + 1);
        assert!(matches!(Follow::new(true).pass(&huge), Err(No::Failed(_))));
        let mut follow = Follow::new(true);
        follow.pass(&wrap(1, b"abc")[..6]).expect("so far");
        assert!(!follow.is_whole());
    }
}
