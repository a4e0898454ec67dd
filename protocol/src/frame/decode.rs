//! Reading frames.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    CallId, FRAME_DATA_BYTES_MAX, Frame, FrameError, GoAwayCode, HEADER_BYTES, PATHS_INTERNED_MAX,
    metadata::{self, Learned, LearnedNames, take_block},
    wire::{Cursor, FLAG_END, FLAG_FAILURE, FLAG_TIME_LEFT, Header, Kind},
};
use crate::{
    failure::{Failure, Ran, Reason},
    service::MethodPath,
};

/// Data shorter than this is copied out of the read buffer, longer data refers to it. A reference
/// keeps the whole buffer alive, so that a slow reader of tiny pieces would hold much more memory
/// than it has credit for; and below this size a copy costs no more than a reference.
const COPIED_BELOW_BYTES: usize = 4 * 1024;

/// Reads one direction of one link.
pub struct Decoder {
    paths: Learned<MethodPath>,
    names: LearnedNames,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            paths: Learned::new(std::iter::empty(), PATHS_INTERNED_MAX),
            names: metadata::learned_names(),
        }
    }
}

impl Decoder {
    /// Takes the next frame from the beginning of `input`, passing over those that may be skipped.
    /// `None` if it is not whole: call again when `input` has more. After an error nothing that
    /// follows means anything.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(header) = Header::read(input)? else { return Ok(None) };
            let whole = HEADER_BYTES + header.body_bytes;
            if input.len() < whole {
                return Ok(None);
            }
            let Some(kind) = header.kind else {
                input.advance(whole);
                continue;
            };
            return self.body(kind, header, input).map(Some);
        }
    }

    fn body(
        &mut self,
        kind: Kind,
        header: Header,
        input: &mut BytesMut,
    ) -> Result<Frame, FrameError> {
        let Header { flags, call, body_bytes, .. } = header;
        let end = flags & FLAG_END != 0;
        let body = &input[HEADER_BYTES..HEADER_BYTES + body_bytes];
        let mut from = Cursor::new(body, kind.name());
        let mut frame = match kind {
            Kind::Open => self.open(&mut from, call, flags)?,
            Kind::Data if body.is_empty() => return Err(from.malformed("no data")),
            Kind::Data => Frame::Data { call, data: Bytes::new(), end },
            Kind::HalfClose => {
                Frame::HalfClose { call, trailers: take_block(&mut from, &mut self.names)? }
            }
            Kind::Headers => {
                let metadata = take_block(&mut from, &mut self.names)?;
                let end = end.then(|| take_block(&mut from, &mut self.names)).transpose()?;
                Frame::Headers { call, metadata, data: Bytes::new(), end }
            }
            Kind::End if flags & FLAG_FAILURE != 0 => {
                Frame::End { call, outcome: Err(take_failure(&mut from)?) }
            }
            Kind::End => Frame::End { call, outcome: Ok(take_block(&mut from, &mut self.names)?) },
            Kind::Cancel => Frame::Cancel { call },
            Kind::Credit => Frame::Credit { call, bytes: take_credit(&mut from)? },
            Kind::Ping => Frame::Ping(take_eight(&mut from)?),
            Kind::Pong => Frame::Pong(take_eight(&mut from)?),
            Kind::GoAway => {
                let code = match from.byte()? {
                    0 => GoAwayCode::Closing,
                    _ => GoAwayCode::Violation,
                };
                Frame::GoAway { code, message: take_text(&mut from) }
            }
            Kind::Lanes => Frame::Lanes(u64::from_be_bytes(take_eight(&mut from)?)),
            Kind::Invite => Frame::Invite { call },
            Kind::Moved => Frame::Moved { call },
        };
        let data_bytes = from.rest().len();
        match &mut frame {
            Frame::Open { data, .. } | Frame::Data { data, .. } | Frame::Headers { data, .. } => {
                if data_bytes > FRAME_DATA_BYTES_MAX {
                    return Err(from.malformed("more data than allowed"));
                }
                input.advance(HEADER_BYTES + body_bytes - data_bytes);
                *data = take_data(input, data_bytes);
            }
            _ if data_bytes > 0 => return Err(from.malformed("more in it than it says")),
            _ => input.advance(HEADER_BYTES + body_bytes),
        }
        Ok(frame)
    }

    fn open(
        &mut self,
        from: &mut Cursor<'_>,
        call: CallId,
        flags: u8,
    ) -> Result<Frame, FrameError> {
        let parse = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
        let path = self.paths.take(from, usize::MAX, parse)?;
        let time_left = if flags & FLAG_TIME_LEFT == 0 {
            None
        } else {
            Some(Duration::from_micros(from.varint()?))
        };
        let metadata = take_block(from, &mut self.names)?;
        let end = flags & FLAG_END != 0;
        Ok(Frame::Open { call, path, time_left, metadata, data: Bytes::new(), end })
    }
}

fn take_data(input: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes == 0 {
        Bytes::new()
    } else if bytes < COPIED_BELOW_BYTES {
        let copy = Bytes::copy_from_slice(&input[..bytes]);
        input.advance(bytes);
        copy
    } else {
        input.split_to(bytes).freeze()
    }
}

fn take_credit(from: &mut Cursor<'_>) -> Result<u32, FrameError> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(from.take(4)?);
    match u32::from_be_bytes(bytes) {
        0 => Err(from.malformed("nothing in it")),
        bytes => Ok(bytes),
    }
}

fn take_eight(from: &mut Cursor<'_>) -> Result<[u8; 8], FrameError> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(from.take(8)?);
    Ok(bytes)
}

/// The rest of the frame as text; what is not UTF-8 in it is replaced, never refused: it is for
/// people only.
fn take_text(from: &mut Cursor<'_>) -> String {
    let rest = from.rest();
    let text: String = String::from_utf8_lossy(&rest[..rest.len().min(super::TEXT_BYTES_MAX)])
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    *from = Cursor::new(&[], "text");
    // Replacing may have made it longer.
    text[..text.floor_char_boundary(super::TEXT_BYTES_MAX)].to_owned()
}

/// A failure. Codes of later versions are read as the most careful thing they can mean.
fn take_failure(from: &mut Cursor<'_>) -> Result<Failure, FrameError> {
    let ran = match from.byte()? {
        0 => Ran::NotStarted,
        2 => Ran::Failed,
        _ => Ran::Unknown,
    };
    let reason = match from.byte()? {
        1 => Reason::NotAvailable,
        2 => Reason::Unreachable,
        3 => Reason::PeerLost,
        4 => Reason::PluginLost,
        5 => Reason::Busy,
        6 => Reason::Refused,
        7 => Reason::DeadlineExceeded,
        8 => Reason::Cancelled,
        9 => Reason::TooLarge,
        10 => Reason::Malformed,
        12 => Reason::CircuitOpen,
        _ => Reason::Internal,
    };
    Ok(Failure::new(ran, reason, take_text(from)))
}
