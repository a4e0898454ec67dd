//! Kinds, flags, headers and integers: what encoder and decoder share.

use super::{
    BLOCK_BYTES_MAX, BODY_BYTES_MAX, CallId, FRAME_DATA_BYTES_MAX, FrameError, HEADER_BYTES,
    PATH_BYTES_MAX, TEXT_BYTES_MAX,
};
use bytes::{BufMut, BytesMut};

/// Kinds from here on may be skipped by who does not know them; lower ones may not.
const SKIPPABLE_KINDS: u8 = 128;

/// Flags in this mask change the layout and must be known; the others may be ignored.
const CRITICAL_FLAGS: u8 = 0x0F;

/// On `open` and `data`: the caller has no more to send. On `headers`: trailers are inside.
pub(super) const FLAG_END: u8 = 0x01;
/// On `open`: a time left is inside.
pub(super) const FLAG_TIME_LEFT: u8 = 0x02;
/// On `end`: a failure is inside instead of trailers.
pub(super) const FLAG_FAILURE: u8 = 0x02;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Open = 1,
    Data = 2,
    HalfClose = 3,
    Headers = 4,
    End = 5,
    Cancel = 6,
    Credit = 7,
    Ping = 8,
    Pong = 9,
    GoAway = 10,
    Lanes = 128,
    Invite = 129,
    Moved = 130,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Cancel, Credit, Data, End, GoAway, HalfClose, Headers, Open, Ping, Pong};
        use Kind::{Invite, Lanes, Moved};
        let kinds = [Open, Data, HalfClose, Headers, End, Cancel, Credit, Ping, Pong, GoAway];
        match byte.checked_sub(SKIPPABLE_KINDS) {
            Some(later) => [Lanes, Invite, Moved].get(usize::from(later)).copied(),
            None => kinds.get(usize::from(byte).checked_sub(1)?).copied(),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Data => "data",
            Self::HalfClose => "half-close",
            Self::Headers => "headers",
            Self::End => "end",
            Self::Cancel => "cancel",
            Self::Credit => "credit",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::GoAway => "go-away",
            Self::Lanes => "lanes",
            Self::Invite => "invite",
            Self::Moved => "moved",
        }
    }

    fn body_bytes_max(self) -> usize {
        match self {
            Self::Open => PATH_BYTES_MAX + BLOCK_BYTES_MAX + FRAME_DATA_BYTES_MAX,
            Self::Data => FRAME_DATA_BYTES_MAX,
            // Trailers; of an end also the text of a failure.
            Self::HalfClose | Self::End => BLOCK_BYTES_MAX,
            Self::Headers => BODY_BYTES_MAX,
            Self::Cancel | Self::Invite | Self::Moved => 0,
            Self::Credit => 4,
            Self::Ping | Self::Pong | Self::Lanes => 8,
            Self::GoAway => TEXT_BYTES_MAX + 1,
        }
    }

    fn flags_known(self) -> u8 {
        match self {
            Self::Open => FLAG_END | FLAG_TIME_LEFT,
            Self::Data | Self::Headers => FLAG_END,
            Self::End => FLAG_FAILURE,
            _ => 0,
        }
    }
}

/// The head of a frame, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// `None` for a kind that is to be skipped.
    pub(super) kind: Option<Kind>,
    pub(super) flags: u8,
    pub(super) call: CallId,
    pub(super) body_bytes: usize,
}

impl Header {
    /// Reads and checks the header at the beginning of `input`; `None` if it is not whole.
    pub(super) fn read(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind_byte, flags] = *header;
        let body_bytes = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let call = CallId(u32::from_be_bytes([c0, c1, c2, c3]));
        let kind = Kind::from_byte(kind_byte);
        let (name, bytes_max) = match kind {
            Some(kind) => (kind.name(), kind.body_bytes_max()),
            None if kind_byte >= SKIPPABLE_KINDS => ("skippable", FRAME_DATA_BYTES_MAX),
            None => return Err(FrameError::UnknownKind { kind: kind_byte }),
        };
        if body_bytes > bytes_max {
            return Err(FrameError::TooLong { kind: name, bytes: body_bytes, bytes_max });
        }
        if let Some(kind) = kind {
            if flags & CRITICAL_FLAGS & !kind.flags_known() != 0 {
                return Err(FrameError::UnknownFlags { kind: name, flags });
            }
            let of_the_link = matches!(kind, Kind::Ping | Kind::Pong | Kind::GoAway | Kind::Lanes);
            if of_the_link != (call == CallId::LINK) {
                let what = "a call id that its kind cannot have";
                return Err(FrameError::Malformed { kind: name, what });
            }
        }
        Ok(Some(Self { kind, flags, call, body_bytes }))
    }
}

/// Writes a header whose length is filled in by [`finish`]; returns where it begins.
pub(super) fn begin(out: &mut BytesMut, kind: Kind, flags: u8, call: CallId) -> usize {
    let start = out.len();
    let [c0, c1, c2, c3] = call.0.to_be_bytes();
    out.put_slice(&[0, 0, 0, 0, c0, c1, c2, c3, kind as u8, flags]);
    start
}

/// Fills in the length of the frame that begins at `start`, ends where `out` does, and is followed
/// by `data_bytes` that the caller appends.
pub(super) fn finish(out: &mut BytesMut, start: usize, data_bytes: usize) {
    let body_bytes = out.len() - start - HEADER_BYTES + data_bytes;
    debug_assert!(body_bytes <= BODY_BYTES_MAX);
    out[start..start + 4].copy_from_slice(&(body_bytes as u32).to_be_bytes());
}

/// Writes an integer in seven-bit groups, lowest first, the high bit set on all but the last.
pub(super) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Reads from a slice, never past its end.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    kind: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(rest: &'a [u8], kind: &'static str) -> Self {
        Self { rest, kind }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn malformed(&self, what: &'static str) -> FrameError {
        FrameError::Malformed { kind: self.kind, what }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], FrameError> {
        let short = self.malformed("less in it than it says");
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, FrameError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("an integer beyond 63 bits"))
    }

    /// A length or index that must be addressable.
    pub(super) fn size(&mut self) -> Result<usize, FrameError> {
        let value = self.varint()?;
        usize::try_from(value).map_err(|_| self.malformed("an integer beyond this machine's"))
    }
}
