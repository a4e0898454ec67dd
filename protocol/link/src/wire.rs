//! The stream and what is between it and frames: prefaces, buffers, codec, and whether the other
//! side is still there.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use protocol::frame::{Decoder, Encoder, Frame, PREFACE_BYTES, preface, read_preface};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use crate::{
    LinkEnd,
    lane::{Queue, Unread},
};

/// What a read asks for at first, in bytes: an idle link costs no more than this.
const READ_BYTES_MIN: usize = 8 * 1024;

/// What a read asks for on a busy link.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Data shorter than this is copied behind the frame it belongs to; longer data is written from
/// where it lies.
const COPIED_BELOW_BYTES: usize = 4 * 1024;

/// Bytes waiting to be written at which bodies are no longer asked for more.
const OUT_BYTES_HIGH: usize = 256 * 1024;

/// Bytes waiting to be written at which bodies that have much to say are no longer asked for more:
/// what a small call finds before it.
const OUT_BYTES_LARGE: usize = 32 * 1024;

/// Bytes waiting to be written at which the link is given up. Beyond [`OUT_BYTES_HIGH`] there are
/// only short answers to what the other side sends (refusals, credit), so that whoever makes this
/// much of them sends without reading.
const OUT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Pieces that one write takes.
const PIECES_MAX: usize = 64;

pub(crate) struct Wire<S> {
    stream: S,
    decoder: Decoder,
    pub(crate) out: Out,
    input: BytesMut,
    read_bytes: usize,
    preface: Preface,
    ended: bool,
    /// The stream took no more at the last write.
    blocked: bool,
    /// This side's direction has ended.
    left: bool,
    /// When something last came, or there last was nothing to wait for.
    heard: Instant,
    pinged: Option<Instant>,
}

/// How this side of a link begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With the other side's preface.
    Answering,
    /// With its own preface.
    Calling,
    /// With frames.
    Greeted,
}

/// What there is between this side and the other's first frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preface {
    /// Theirs, which ours will answer.
    Answering,
    /// Theirs, which answers ours.
    Expecting,
    /// Nothing.
    Exchanged,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: Unread<S>, begin: Begin) -> Self {
        let Unread { stream, input } = stream;
        let mut out = Out::default();
        if begin == Begin::Calling {
            out.put(&preface());
        }
        Self {
            stream,
            decoder: Decoder::default(),
            out,
            input,
            read_bytes: READ_BYTES_MIN,
            preface: match begin {
                Begin::Answering => Preface::Answering,
                Begin::Calling => Preface::Expecting,
                Begin::Greeted => Preface::Exchanged,
            },
            ended: false,
            blocked: false,
            left: false,
            heard: Instant::now(),
            pinged: None,
        }
    }

    /// Reads once. True if something came, or the end of the stream.
    pub(crate) fn fill(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, LinkEnd> {
        if self.ended {
            return Ok(false);
        }
        let free = self.input.capacity() - self.input.len();
        if free < READ_BYTES_MIN / 2 {
            self.input.reserve(self.read_bytes);
        }
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => {
                self.ended = true;
                Ok(true)
            }
            Poll::Ready(Ok(_)) => {
                if self.input.len() == self.input.capacity() {
                    self.read_bytes = READ_BYTES_MAX;
                }
                self.heard = now;
                self.pinged = None;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(lost(&error)),
        }
    }

    /// The next whole frame that was read.
    pub(crate) fn frame(&mut self) -> Result<Option<Frame>, LinkEnd> {
        if self.preface != Preface::Exchanged {
            if read_preface(&self.input)?.is_none() {
                return Ok(None);
            }
            self.input.advance(PREFACE_BYTES);
            if self.preface == Preface::Answering {
                self.out.put(&preface());
            }
            self.preface = Preface::Exchanged;
        }
        Ok(self.decoder.decode(&mut self.input)?)
    }

    /// How the stream ended, if all it brought has been read.
    pub(crate) fn end(&self) -> Option<LinkEnd> {
        if !self.ended {
            None
        } else if self.input.is_empty() {
            Some(LinkEnd::ClosedByOther)
        } else {
            Some(LinkEnd::Lost { cause: "it ended inside a frame".into() })
        }
    }

    pub(crate) fn preface_seen(&self) -> bool {
        self.preface == Preface::Exchanged
    }

    /// Writes what can be written now.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), LinkEnd> {
        if self.out.len() > OUT_BYTES_MAX {
            return Err(LinkEnd::Violation { what: "it sends without reading" });
        }
        let before = self.out.written();
        let written = self.out.write(cx, &mut self.stream);
        if self.blocked && self.out.written() > before {
            // Whoever makes room is alive, however long its answer waits behind what fills the way.
            self.expect(now);
        }
        self.blocked = written.is_pending();
        match written {
            Poll::Ready(Err(error)) => Err(lost(&error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Writes all and ends this side's direction.
    pub(crate) fn leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.left {
            ready!(self.out.write(cx, &mut self.stream))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.left = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Whoever was heard on a lane beside this link is there, however quiet the link is.
    pub(crate) fn hear(&mut self, lane: &Self) {
        if lane.heard > self.heard {
            self.expect(lane.heard);
        }
    }

    /// There was nothing to wait for until now.
    pub(crate) fn expect(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// Gives buffers back while nothing happens.
    pub(crate) fn shrink(&mut self) {
        self.read_bytes = READ_BYTES_MIN;
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.out.shrink();
    }

    /// Pings when it has been quiet, gives up when it has been silent. Returns when to look again.
    pub(crate) fn watch(
        &mut self,
        now: Instant,
        quiet: Duration,
        silence: Duration,
    ) -> Result<Instant, LinkEnd> {
        if let Some(pinged) = self.pinged {
            let dead = pinged + silence;
            if now >= dead {
                return Err(LinkEnd::Silent { after: now - self.heard });
            }
            return Ok(dead);
        }
        let due = self.heard + quiet;
        if now < due {
            return Ok(due);
        }
        self.pinged = Some(now);
        self.out.encode(Bytes::new(), |encoder, buffer| encoder.ping(buffer, *b"alive?\0\0"));
        Ok(now + silence)
    }
}

fn lost(error: &io::Error) -> LinkEnd {
    LinkEnd::Lost { cause: error.to_string() }
}

/// Frames on their way out, in order.
#[derive(Default)]
pub(crate) struct Out {
    encoder: Encoder,
    /// Large data and what came before it.
    pieces: VecDeque<Bytes>,
    /// What comes after the last piece.
    tail: BytesMut,
    piece_bytes: usize,
    /// Bytes handed to the stream since the link began.
    written: u64,
    unflushed: bool,
}

impl Out {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.piece_bytes + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.is_written() && !self.unflushed
    }

    fn is_written(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// There is so much to write that bodies of this queue must wait.
    pub(crate) fn is_full(&self, queue: Queue) -> bool {
        let most = match queue {
            Queue::Large => OUT_BYTES_LARGE,
            Queue::Small | Queue::Lane => OUT_BYTES_HIGH,
        };
        self.len() >= most
    }

    /// How much has been queued since the link began: what [`Self::written`] will be when all that
    /// waits now is written.
    pub(crate) fn queued(&self) -> u64 {
        self.written + self.len() as u64
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Queues one frame: `encode` writes all of it but `data`, if it succeeds.
    pub(crate) fn encode<T>(
        &mut self,
        data: Bytes,
        encode: impl FnOnce(&mut Encoder, &mut BytesMut) -> T,
    ) -> T {
        let before = self.tail.len();
        let result = encode(&mut self.encoder, &mut self.tail);
        if self.tail.len() == before {
            return result;
        }
        if data.len() < COPIED_BELOW_BYTES {
            self.tail.extend_from_slice(&data);
        } else {
            let head = self.tail.split().freeze();
            self.piece_bytes += head.len() + data.len();
            self.pieces.push_back(head);
            self.pieces.push_back(data);
        }
        result
    }

    fn shrink(&mut self) {
        if self.tail.is_empty() {
            self.tail = BytesMut::new();
            self.pieces = VecDeque::new();
        }
    }

    /// Writes until nothing waits or the stream takes no more.
    fn write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        while !self.is_written() {
            let stream = Pin::new(&mut *stream);
            let bytes = if self.pieces.is_empty() {
                ready!(stream.poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES_MAX];
                let pieces = self.pieces.iter().map(|piece| &piece[..]);
                let mut count = 0;
                for (slice, bytes) in slices.iter_mut().zip(pieces.chain([&self.tail[..]])) {
                    *slice = IoSlice::new(bytes);
                    count += 1;
                }
                ready!(stream.poll_write_vectored(cx, &slices[..count]))?
            };
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(bytes);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut bytes: usize) {
        self.written += bytes as u64;
        while let Some(piece) = self.pieces.front_mut() {
            let taken = bytes.min(piece.len());
            piece.advance(taken);
            self.piece_bytes -= taken;
            bytes -= taken;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(bytes);
    }
}
