//! Finds the heads of fixed size that stand before contents of known size, in bytes that pass in
//! pieces cut anywhere. What a head means is its caller's.

/// The head of a message of gRPC, gRPC-Web and Connect: one byte of flags, four of length.
/// Source: gRPC over HTTP/2, *Length-Prefixed-Message*.
pub(crate) const MESSAGE_HEAD_BYTES: usize = 5;

/// The length that a message's head tells.
pub(crate) fn message_bytes([_, length @ ..]: [u8; MESSAGE_HEAD_BYTES]) -> usize {
    u32::from_be_bytes(length) as usize
}

/// Follows one direction.
#[derive(Debug)]
pub(crate) struct Heads<const N: usize> {
    head: [u8; N],
    /// Bytes of `head` that have come.
    come: usize,
    /// Bytes of the current content that have not come.
    left: usize,
}

impl<const N: usize> Default for Heads<N> {
    fn default() -> Self {
        Self { head: [0; N], come: 0, left: 0 }
    }
}

impl<const N: usize> Heads<N> {
    /// Follows `bytes` until a head is whole, and takes what it followed; `None` at their end. A
    /// head's content is to be told with [`Heads::follow`] before the next is asked for.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<[u8; N]> {
        let passing = self.left.min(bytes.len());
        self.left -= passing;
        *bytes = &bytes[passing..];
        let taken = (N - self.come).min(bytes.len());
        let (now, later) = bytes.split_at(taken);
        self.head[self.come..self.come + taken].copy_from_slice(now);
        self.come += taken;
        *bytes = later;
        if self.come < N {
            return None;
        }
        self.come = 0;
        Some(self.head)
    }

    /// The last head's content has so many bytes.
    pub(crate) fn follow(&mut self, bytes: usize) {
        self.left = bytes;
    }

    /// Nothing is cut short here.
    pub(crate) fn is_between(&self) -> bool {
        self.left == 0 && self.come == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn where_pieces_are_cut_makes_no_difference(
            sizes in vec(0..300_u32, 0..8),
            cuts in vec(1..40_usize, 1..8),
        ) {
            let of = |bytes: &u32| {
                let mut wire = [&[1][..], &bytes.to_be_bytes()].concat();
                wire.resize(wire.len() + *bytes as usize, 0xff);
                wire
            };
            let wire: Vec<u8> = sizes.iter().flat_map(of).collect();
            let (mut heads, mut found) = (Heads::<MESSAGE_HEAD_BYTES>::default(), Vec::new());
            let (mut rest, mut cuts) = (wire.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = *cuts.next().expect("a cycle").min(&rest.len());
                let (mut piece, later) = rest.split_at(cut);
                while let Some(head) = heads.next(&mut piece) {
                    heads.follow(message_bytes(head));
                    found.push(message_bytes(head) as u32);
                }
                prop_assert!(piece.is_empty());
                rest = later;
            }
            prop_assert!(heads.is_between());
            prop_assert_eq!(found, sizes);
        }
    }

    #[test]
    fn a_cut_is_seen_in_a_head_and_in_a_content() {
        let mut heads = Heads::<2>::default();
        assert_eq!(heads.next(&mut &[7][..]), None);
        assert!(!heads.is_between());
        let mut rest = &[8, 9, 9][..];
        assert_eq!(heads.next(&mut rest), Some([7, 8]));
        heads.follow(3);
        assert_eq!(heads.next(&mut rest), None);
        assert!(!heads.is_between());
        assert_eq!(heads.next(&mut &[9][..]), None);
        assert!(heads.is_between());
    }
}
