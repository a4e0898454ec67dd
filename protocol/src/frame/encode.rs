//! Writing frames.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use http::HeaderMap;

use super::{
    CallId, FRAME_DATA_BYTES_MAX, Frame, GoAwayCode, METADATA_ENTRIES_MAX, PATHS_INTERNED_MAX,
    TEXT_BYTES_MAX,
    metadata::{self, Interned, InternedNames},
    wire::{FLAG_END, FLAG_FAILURE, FLAG_TIME_LEFT, Kind, begin, finish, put_varint},
};
use crate::{
    failure::{Failure, Ran, Reason},
    limits::METADATA_BYTES_MAX,
    service::MethodPath,
};

/// Writes one direction of one link. Frames must reach the link in the order they were encoded,
/// all of them, because later ones refer to names that earlier ones brought.
///
/// Functions that take `data_bytes` write everything of a frame but its data: the caller appends
/// exactly so many bytes, copied or by reference, at most [`FRAME_DATA_BYTES_MAX`].
pub struct Encoder {
    paths: Interned<MethodPath>,
    names: InternedNames,
}

/// The metadata is over [`METADATA_BYTES_MAX`] or [`METADATA_ENTRIES_MAX`]. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the metadata has {bytes} bytes in {entries} entries; at most {METADATA_BYTES_MAX} bytes in \
     {METADATA_ENTRIES_MAX} entries are carried"
)]
pub struct MetadataTooLarge {
    /// Bytes of names and values.
    pub bytes: usize,
    /// Entries.
    pub entries: usize,
}

/// Checks that `metadata` is small enough to be carried.
pub fn metadata_fits(metadata: &HeaderMap) -> Result<(), MetadataTooLarge> {
    let (bytes, entries) = (metadata::bytes_of(metadata), metadata.len());
    if bytes <= METADATA_BYTES_MAX && entries <= METADATA_ENTRIES_MAX {
        Ok(())
    } else {
        Err(MetadataTooLarge { bytes, entries })
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            paths: Interned::new(std::iter::empty(), PATHS_INTERNED_MAX),
            names: metadata::interned_names(),
        }
    }
}

impl Encoder {
    /// Begins a call, with the first `data_bytes` of it, and with `end` all of it.
    #[expect(clippy::too_many_arguments, reason = "they are the frame's fields")]
    pub fn open(
        &mut self,
        out: &mut BytesMut,
        call: CallId,
        path: &MethodPath,
        time_left: Option<Duration>,
        metadata: &HeaderMap,
        data_bytes: usize,
        end: bool,
    ) -> Result<(), MetadataTooLarge> {
        metadata_fits(metadata)?;
        let flags = u8::from(end) * FLAG_END + u8::from(time_left.is_some()) * FLAG_TIME_LEFT;
        let start = begin(out, Kind::Open, flags, call);
        self.paths.put(out, path, path.as_str().as_bytes(), usize::MAX);
        if let Some(left) = time_left {
            let micros = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
            put_varint(out, micros.min(u64::MAX >> 1));
        }
        metadata::put_block(out, &mut self.names, metadata);
        finish_with_data(out, start, data_bytes);
        Ok(())
    }

    /// More bytes; with `end` the caller's last.
    pub fn data(&mut self, out: &mut BytesMut, call: CallId, data_bytes: usize, end: bool) {
        debug_assert!(data_bytes > 0, "a data frame without data says nothing");
        let start = begin(out, Kind::Data, u8::from(end) * FLAG_END, call);
        finish_with_data(out, start, data_bytes);
    }

    /// The caller has no more to send but `trailers`.
    pub fn half_close(
        &mut self,
        out: &mut BytesMut,
        call: CallId,
        trailers: &HeaderMap,
    ) -> Result<(), MetadataTooLarge> {
        metadata_fits(trailers)?;
        let start = begin(out, Kind::HalfClose, 0, call);
        metadata::put_block(out, &mut self.names, trailers);
        finish(out, start, 0);
        Ok(())
    }

    /// Begins the answer, with the first `data_bytes` of it, and with `end` all of it.
    pub fn headers(
        &mut self,
        out: &mut BytesMut,
        call: CallId,
        metadata: &HeaderMap,
        data_bytes: usize,
        end: Option<&HeaderMap>,
    ) -> Result<(), MetadataTooLarge> {
        metadata_fits(metadata)?;
        end.map_or(Ok(()), metadata_fits)?;
        let start = begin(out, Kind::Headers, u8::from(end.is_some()) * FLAG_END, call);
        metadata::put_block(out, &mut self.names, metadata);
        if let Some(trailers) = end {
            metadata::put_block(out, &mut self.names, trailers);
        }
        finish_with_data(out, start, data_bytes);
        Ok(())
    }

    /// Ends the call with `trailers`.
    pub fn end(
        &mut self,
        out: &mut BytesMut,
        call: CallId,
        trailers: &HeaderMap,
    ) -> Result<(), MetadataTooLarge> {
        metadata_fits(trailers)?;
        let start = begin(out, Kind::End, 0, call);
        metadata::put_block(out, &mut self.names, trailers);
        finish(out, start, 0);
        Ok(())
    }

    /// Ends the call with `failure`. Its `peer` does not travel: the other side knows who we are.
    pub fn fail(&mut self, out: &mut BytesMut, call: CallId, failure: &Failure) {
        let start = begin(out, Kind::End, FLAG_FAILURE, call);
        out.put_slice(&[ran_code(failure.ran), reason_code(failure.reason)]);
        put_text(out, &failure.message);
        finish(out, start, 0);
    }

    /// The caller no longer wants the answer.
    pub fn cancel(&mut self, out: &mut BytesMut, call: CallId) {
        let start = begin(out, Kind::Cancel, 0, call);
        finish(out, start, 0);
    }

    /// The other side may send `bytes` more, at least one.
    pub fn credit(&mut self, out: &mut BytesMut, call: CallId, bytes: u32) {
        debug_assert!(bytes > 0);
        let start = begin(out, Kind::Credit, 0, call);
        out.put_u32(bytes);
        finish(out, start, 0);
    }

    /// Asks for a pong.
    pub fn ping(&mut self, out: &mut BytesMut, content: [u8; 8]) {
        let start = begin(out, Kind::Ping, 0, CallId::LINK);
        out.put_slice(&content);
        finish(out, start, 0);
    }

    /// Answers a ping.
    pub fn pong(&mut self, out: &mut BytesMut, content: [u8; 8]) {
        let start = begin(out, Kind::Pong, 0, CallId::LINK);
        out.put_slice(&content);
        finish(out, start, 0);
    }

    /// Accepts no more calls.
    pub fn go_away(&mut self, out: &mut BytesMut, code: GoAwayCode, message: &str) {
        let start = begin(out, Kind::GoAway, 0, CallId::LINK);
        out.put_u8(match code {
            GoAwayCode::Closing => 0,
            GoAwayCode::Violation => 1,
        });
        put_text(out, message);
        finish(out, start, 0);
    }

    /// The other side may attach a lane to this link under `number`.
    pub fn lanes(&mut self, out: &mut BytesMut, number: u64) {
        let start = begin(out, Kind::Lanes, 0, CallId::LINK);
        out.put_u64(number);
        finish(out, start, 0);
    }

    /// The other side may send the rest of the call's data on the lane.
    pub fn invite(&mut self, out: &mut BytesMut, call: CallId) {
        let start = begin(out, Kind::Invite, 0, call);
        finish(out, start, 0);
    }

    /// What follows of this side's half of the call comes on the lane.
    pub fn moved(&mut self, out: &mut BytesMut, call: CallId) {
        let start = begin(out, Kind::Moved, 0, call);
        finish(out, start, 0);
    }

    /// Writes `frame` whole, its data copied.
    pub fn frame(&mut self, out: &mut BytesMut, frame: &Frame) -> Result<(), MetadataTooLarge> {
        match frame {
            Frame::Open { call, path, time_left, metadata, data, end } => {
                self.open(out, *call, path, *time_left, metadata, data.len(), *end)?;
                out.put_slice(data);
            }
            Frame::Data { call, data, end } => {
                self.data(out, *call, data.len(), *end);
                out.put_slice(data);
            }
            Frame::HalfClose { call, trailers } => self.half_close(out, *call, trailers)?,
            Frame::Headers { call, metadata, data, end } => {
                self.headers(out, *call, metadata, data.len(), end.as_ref())?;
                out.put_slice(data);
            }
            Frame::End { call, outcome: Ok(trailers) } => self.end(out, *call, trailers)?,
            Frame::End { call, outcome: Err(failure) } => self.fail(out, *call, failure),
            Frame::Cancel { call } => self.cancel(out, *call),
            Frame::Credit { call, bytes } => self.credit(out, *call, *bytes),
            Frame::Ping(content) => self.ping(out, *content),
            Frame::Pong(content) => self.pong(out, *content),
            Frame::GoAway { code, message } => self.go_away(out, *code, message),
            Frame::Lanes(number) => self.lanes(out, *number),
            Frame::Invite { call } => self.invite(out, *call),
            Frame::Moved { call } => self.moved(out, *call),
        }
        Ok(())
    }
}

fn finish_with_data(out: &mut BytesMut, start: usize, data_bytes: usize) {
    assert!(data_bytes <= FRAME_DATA_BYTES_MAX, "data is cut into frames before it is encoded");
    finish(out, start, data_bytes);
}

/// Writes `text` as the rest of a frame, cut between characters where it is too long.
fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(&text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
}

fn ran_code(ran: Ran) -> u8 {
    match ran {
        Ran::NotStarted => 0,
        Ran::Unknown => 1,
        Ran::Failed => 2,
    }
}

fn reason_code(reason: Reason) -> u8 {
    match reason {
        Reason::NotAvailable => 1,
        Reason::Unreachable => 2,
        Reason::PeerLost => 3,
        Reason::PluginLost => 4,
        Reason::Busy => 5,
        Reason::Refused => 6,
        Reason::DeadlineExceeded => 7,
        Reason::Cancelled => 8,
        Reason::TooLarge => 9,
        Reason::Malformed => 10,
        Reason::Internal => 11,
        Reason::CircuitOpen => 12,
    }
}
