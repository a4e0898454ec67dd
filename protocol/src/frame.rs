//! Frames: how calls travel on a link, version 1.
//!
//! A link is one ordered, reliable stream of bytes between two programs that know each other: a
//! libp2p stream, a Unix socket. Each side sends its [`preface`] once and frames from then on.
//! `docs/src/reference/protocol.md` has the layout of every frame byte by byte.
//!
//! This module owns that layout and nothing else: [`Encoder`] writes frames, [`Decoder`] reads
//! them, and neither knows which calls exist, whose turn it is or what time it is. It refuses
//! whatever breaks the layout with a [`FrameError`], after which the link is of no more use,
//! because its two ends may no longer agree on the interned names.
//!
//! Bytes of the network are trusted with nothing: a length is checked against the bound of its
//! kind before anything is allocated, a frame's data is handed out by reference or as a copy of
//! its own size, and tables that the other side fills have fixed ends.

mod decode;
mod encode;
mod metadata;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::{
    failure::Failure,
    limits::{METADATA_BYTES_MAX, SERVICE_NAME_BYTES_MAX},
    service::MethodPath,
};

pub use decode::Decoder;
pub use encode::{Encoder, MetadataTooLarge, metadata_fits};

/// The version of the frame format that this module speaks.
pub const VERSION: u8 = 1;

/// The first bytes on a link, before the version. No text protocol begins with the first of them,
/// so one byte tells a link from HTTP/1, from HTTP/2 (`PRI * HTTP/2.0`) and from TLS (`0x16`).
pub const MAGIC: [u8; 7] = *b"\xBBhlink\n";

/// The first bytes on a lane, before the version: a stream beside a link, for the data of calls
/// that have much of it. They differ from [`MAGIC`] after the third.
pub const LANE_MAGIC: [u8; 7] = *b"\xBBhlane\n";

/// Bytes with which a lane begins: [`LANE_MAGIC`], the version, and the number of its link.
pub const LANE_PREFACE_BYTES: usize = PREFACE_BYTES + 8;

/// The header with which a plugin's HTTP/2 health answer says that the same socket takes links.
pub const ANNOUNCEMENT: (&str, &str) = ("bh-link", "1");

/// Bytes of a preface: [`MAGIC`] and the version.
pub const PREFACE_BYTES: usize = MAGIC.len() + 1;

/// Bytes before the body of a frame: body length (4), call (4), kind (1), flags (1).
pub const HEADER_BYTES: usize = 10;

/// Data in one frame, in bytes. Small enough that frames of other calls come in between soon,
/// large enough that its header costs nothing.
pub const FRAME_DATA_BYTES_MAX: usize = 64 * 1024;

/// Entries in one block of metadata: each costs its reader some hundred bytes however short it is.
pub const METADATA_ENTRIES_MAX: usize = 256;

/// Method paths that one side may intern on a link; further ones are sent in full each time. At
/// two names of [`SERVICE_NAME_BYTES_MAX`] each, strangers can make us keep 130 KB a link.
pub const PATHS_INTERNED_MAX: usize = 254;

/// Metadata names known to a link, the built-in ones included, so that naming one takes one byte.
pub const NAMES_INTERNED_MAX: usize = 126;

/// The longest metadata name that is interned, in bytes: the table stays under 8 KB.
pub const NAME_INTERNED_BYTES_MAX: usize = 64;

/// The text of a failure or go-away frame, in bytes; a longer one is cut by its writer.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Credit that every call has in each direction when it opens, in bytes as counted by
/// [`data_cost`]. What most calls need in all, so that most calls never wait for credit.
pub const CALL_CREDIT_BYTES: usize = 64 * 1024;

/// What a frame with data costs its call's credit beyond its data, in bytes: about what its
/// reader spends to keep it, so that many tiny frames cannot cost more than they pay.
pub const DATA_COST_BYTES: usize = 32;

/// Bytes of one block of metadata as written: at most [`METADATA_BYTES_MAX`] of names and values,
/// and what it takes to tell them apart.
const BLOCK_BYTES_MAX: usize = METADATA_BYTES_MAX + METADATA_ENTRIES_MAX * 8 + 8;

/// Bytes of a method path as written, and of a time left.
const PATH_BYTES_MAX: usize = 2 * SERVICE_NAME_BYTES_MAX + 16;

/// The longest body of any frame, in bytes: a reader's buffer never needs more.
pub const BODY_BYTES_MAX: usize = 2 * BLOCK_BYTES_MAX + PATH_BYTES_MAX + FRAME_DATA_BYTES_MAX;

const _: () = assert!(FRAME_DATA_BYTES_MAX + BLOCK_BYTES_MAX * 2 < 256 * 1024);
const _: () = assert!(NAMES_INTERNED_MAX + 2 <= 128, "a reference must fit one byte");
const _: () = assert!(metadata::NAMES.len() < NAMES_INTERNED_MAX);
const _: () = assert!(DATA_COST_BYTES < CALL_CREDIT_BYTES);

/// What `data_bytes` of data in one frame cost a call's credit, in bytes. No data costs nothing.
pub const fn data_cost(data_bytes: usize) -> usize {
    if data_bytes == 0 { 0 } else { data_bytes + DATA_COST_BYTES }
}

/// Which call a frame belongs to. Chosen by the side that opens the call among the ids it has not
/// in use; 0 is the link itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u32);

impl CallId {
    /// The link itself.
    pub const LINK: Self = Self(0);
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One frame, decoded. `data` is raw bytes of the call's body, cut anywhere.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A call begins.
    Open {
        /// The call.
        call: CallId,
        /// Which method.
        path: MethodPath,
        /// How long its caller still waits; `None` where it set no deadline.
        time_left: Option<Duration>,
        /// The caller's metadata.
        metadata: HeaderMap,
        /// The first of the caller's bytes, possibly none.
        data: Bytes,
        /// True if these are all of them and no trailers follow.
        end: bool,
    },
    /// More bytes of one direction, at least one.
    Data {
        /// The call.
        call: CallId,
        /// The bytes.
        data: Bytes,
        /// True if the *caller* has no more to send. Never set by the answering side.
        end: bool,
    },
    /// The caller has no more to send.
    HalfClose {
        /// The call.
        call: CallId,
        /// The caller's trailers, mostly none.
        trailers: HeaderMap,
    },
    /// The answer begins, and with `end` it also ends.
    Headers {
        /// The call.
        call: CallId,
        /// Initial metadata.
        metadata: HeaderMap,
        /// The first bytes of the answer, possibly none.
        data: Bytes,
        /// The trailers, if these bytes are all of the answer.
        end: Option<HeaderMap>,
    },
    /// The call is over: with trailers, or because the mesh failed it.
    End {
        /// The call.
        call: CallId,
        /// Trailers or the failure.
        outcome: Result<HeaderMap, Failure>,
    },
    /// The caller no longer wants the answer.
    Cancel {
        /// The call.
        call: CallId,
    },
    /// The other side may send so many bytes more for this call.
    Credit {
        /// The call.
        call: CallId,
        /// How many, at least one.
        bytes: u32,
    },
    /// Answer with a pong of the same content, at once.
    Ping([u8; 8]),
    /// The answer to a ping.
    Pong([u8; 8]),
    /// The sender accepts no more calls on this link.
    GoAway {
        /// Why.
        code: GoAwayCode,
        /// One sentence for a person.
        message: String,
    },
    /// The answering side takes a lane beside this link, under this number.
    Lanes(u64),
    /// The reader of a call's data has a lane on which the rest of it may come.
    Invite {
        /// The call.
        call: CallId,
    },
    /// The writer of a call's data accepts: what follows of it, and its end, come on the lane.
    Moved {
        /// The call.
        call: CallId,
    },
}

/// Why a side goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAwayCode {
    /// It stops. Calls already open are brought to their end.
    Closing,
    /// The other side broke the protocol. The link ends at once.
    Violation,
}

/// The bytes break the frame format; the link cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not a link's.
    #[error("the other side does not speak the link protocol")]
    NotALink,
    /// The other side speaks no version that we speak.
    #[error(
        "the other side speaks version {offered} of the link protocol; this one speaks {VERSION}"
    )]
    Version {
        /// The version it offered.
        offered: u8,
    },
    /// A kind below 128 that this version does not have.
    #[error("frame of unknown kind {kind}")]
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// Flags that this version does not have and may not ignore.
    #[error("{kind} frame with unknown flags {flags:#04x}")]
    UnknownFlags {
        /// The frame.
        kind: &'static str,
        /// All its flags.
        flags: u8,
    },
    /// The frame is longer than its kind may be.
    #[error("{kind} frame of {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong {
        /// The frame.
        kind: &'static str,
        /// How long it says it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// The body does not read as one of its kind.
    #[error("{kind} frame with {what}")]
    Malformed {
        /// The frame.
        kind: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What a side sends before its first frame: the magic and the highest version it speaks.
pub const fn preface() -> [u8; PREFACE_BYTES] {
    let mut bytes = [VERSION; PREFACE_BYTES];
    bytes.split_at_mut(MAGIC.len()).0.copy_from_slice(&MAGIC);
    bytes
}

/// Reads the other side's preface from the beginning of a link, without consuming it. `None` if
/// more bytes are needed to tell. `Some` has the version to speak: the lower of the two offered.
pub fn read_preface(bytes: &[u8]) -> Result<Option<u8>, FrameError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(FrameError::NotALink);
    }
    match bytes.get(MAGIC.len()) {
        None => Ok(None),
        Some(0) => Err(FrameError::Version { offered: 0 }),
        Some(offered) => Ok(Some((*offered).min(VERSION))),
    }
}

/// What the side that opens a lane sends on it first, and what the other side answers once the
/// lane belongs to the link of that `number`.
pub fn lane_preface(number: u64) -> [u8; LANE_PREFACE_BYTES] {
    let mut bytes = [VERSION; LANE_PREFACE_BYTES];
    bytes[..LANE_MAGIC.len()].copy_from_slice(&LANE_MAGIC);
    bytes[PREFACE_BYTES..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Reads a lane's preface from the beginning of a stream, without consuming it. `None` if more
/// bytes are needed to tell.
pub fn read_lane_preface(bytes: &[u8]) -> Result<Option<u64>, FrameError> {
    let known = bytes.len().min(LANE_MAGIC.len());
    if bytes[..known] != LANE_MAGIC[..known] {
        return Err(FrameError::NotALink);
    }
    if bytes.get(LANE_MAGIC.len()) == Some(&0) {
        return Err(FrameError::Version { offered: 0 });
    }
    let number = bytes.get(PREFACE_BYTES..).and_then(<[u8]>::first_chunk);
    Ok(number.map(|number| u64::from_be_bytes(*number)))
}

/// Decodes everything in `bytes` as one side's frames and checks that what was decoded encodes to
/// something that decodes to the same. For fuzzing; panics where the codec contradicts itself.
///
/// Returns how many frames were whole.
pub fn fuzz(bytes: &[u8]) -> usize {
    let _ = (read_preface(bytes), read_lane_preface(bytes));
    let mut input = BytesMut::from(bytes);
    let (mut decoder, mut encoder, mut again) =
        (Decoder::default(), Encoder::default(), Decoder::default());
    let mut frames = 0;
    while let Ok(Some(frame)) = decoder.decode(&mut input) {
        let mut wire = BytesMut::new();
        let Ok(()) = encoder.frame(&mut wire, &frame) else {
            panic!("what was decoded is within the bounds of what is encoded: {frame:?}")
        };
        let same = again.decode(&mut wire).expect("own frames decode").expect("whole");
        assert_eq!(same, frame, "decoding, encoding and decoding again changes nothing");
        assert!(wire.is_empty(), "nothing is left behind");
        frames += 1;
    }
    frames
}
