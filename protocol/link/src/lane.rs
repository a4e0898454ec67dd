//! A lane: a second stream beside a link, for the data of calls that have much of it, so that what
//! is small waits behind none of it.
//!
//! The side that opened the link opens the lane, once, when a call first grows large; the side
//! that answers tells it under which number. From then on the *reader* of a large call invites its
//! writer to go on there, and the writer says on the link where it moved. What comes on the lane
//! before that is known is held, within the call's credit. Whether a call moves, and which order
//! is refused, is decided here and nowhere else.

use std::{
    collections::VecDeque,
    io, mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use protocol::frame::{
    CALL_CREDIT_BYTES, CallId, Frame, LANE_PREFACE_BYTES, data_cost, lane_preface,
    read_lane_preface,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::oneshot,
    time::timeout,
};

use crate::{
    LinkEnd, PREFACE_WITHIN,
    core::{Call, Core, Received},
    desk::Desk,
    half::Ending,
    wire::{Begin, Wire},
};

/// Data of one direction of a call from which on it is large: all that it could send before its
/// first credit came. Most calls end below.
pub(crate) const LARGE_BYTES: usize = CALL_CREDIT_BYTES - 1024;

/// What is read of a stream to tell what it is.
const ARRIVAL_BYTES: usize = 64;

/// A stream of which something was read ahead.
pub struct Unread<S> {
    pub(crate) stream: S,
    pub(crate) input: BytesMut,
}

impl<S> From<S> for Unread<S> {
    fn from(stream: S) -> Self {
        Self { stream, input: BytesMut::new() }
    }
}

/// What a stream is that another peer opened.
pub enum Arrival<S> {
    /// A link, or nothing that is known: whoever serves it will say so.
    Link(Unread<S>),
    /// A lane, for the link of this number.
    Lane {
        /// The number that was given to [`Seat::new`].
        number: u64,
        /// To be handed to that link's seat.
        stream: Unread<S>,
    },
}

/// Tells what `stream` is from its first bytes. Waits for as long as the other side says nothing:
/// the caller bounds it.
pub async fn arrival<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Arrival<S>> {
    let mut input = BytesMut::with_capacity(ARRIVAL_BYTES);
    loop {
        match read_lane_preface(&input) {
            Err(_) => return Ok(Arrival::Link(Unread { stream, input })),
            Ok(Some(number)) => {
                input.advance(LANE_PREFACE_BYTES);
                return Ok(Arrival::Lane { number, stream: Unread { stream, input } });
            }
            Ok(None) => {}
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(Arrival::Link(Unread { stream, input }));
        }
    }
}

/// A place for the lane of a link that is served.
pub struct Seat<S> {
    number: u64,
    arriving: oneshot::Receiver<Unread<S>>,
}

impl<S> Seat<S> {
    /// A place under `number`, and the way to it for the one stream that may take it. Whoever hands
    /// a stream over has made sure that it is of the peer that opened the link.
    pub fn new(number: u64) -> (Self, oneshot::Sender<Unread<S>>) {
        let (way, arriving) = oneshot::channel();
        (Self { number, arriving }, way)
    }
}

/// Opens a stream for a lane, to where the link goes; `None` where that fails.
pub type OpenLane<S> = Box<dyn FnOnce() -> BoxFuture<'static, Option<S>> + Send>;

/// How a link comes to its lane.
pub(crate) enum Way<S> {
    /// It has it, or will have none.
    Closed,
    /// The answering side takes the one that arrives.
    Seat(oneshot::Receiver<Unread<S>>),
    /// The calling side can open one, once it knows the number.
    Open(OpenLane<S>),
    /// It is about to.
    Opening(BoxFuture<'static, Option<S>>),
}

/// What a call has to do with the lane.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "two halves, each of which is asked and moves")]
pub(crate) struct Moving {
    /// Data received on the link.
    received: usize,
    /// Data sent, wherever.
    pub(crate) sent: usize,
    /// The other side was invited to move its half.
    invited: bool,
    /// It has moved it.
    from_lane: bool,
    /// This side was invited.
    asked: bool,
    /// It has moved its half.
    pub(crate) to_lane: bool,
    held: Option<Box<Held>>,
}

impl Moving {
    /// Where this side's half waits for its turn.
    pub(crate) fn queue(&self) -> Queue {
        match self.to_lane {
            true => Queue::Lane,
            false if self.sent >= LARGE_BYTES => Queue::Large,
            false => Queue::Small,
        }
    }
}

/// What came on the lane before the other side's word that it moved. Its call's credit bounds it.
struct Held {
    desk: Arc<Desk>,
    data: VecDeque<Bytes>,
    ending: Option<Ending>,
}

impl Held {
    fn new(desk: Arc<Desk>) -> Box<Self> {
        Box::new(Self { desk, data: VecDeque::new(), ending: None })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let unread = self.data.iter().map(|data| data_cost(data.len())).sum();
        self.desk.queued_bytes.fetch_sub(unread, Ordering::Relaxed);
    }
}

/// Where a call waits that has more to send than there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// For the link.
    Small,
    /// For the link, after all that is small.
    Large,
    /// For the lane.
    Lane,
}

impl Queue {
    pub(crate) const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Lane];
}

/// On which stream a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Link,
    Lane,
}

fn violation<T>(what: &'static str) -> Result<T, LinkEnd> {
    Err(LinkEnd::Violation { what })
}

impl Call {
    /// Refuses data or an ending where it may not come.
    pub(crate) fn expect_via(&self, via: Via) -> Result<(), LinkEnd> {
        let moving = &self.moving;
        let held_over = moving.held.as_ref().is_some_and(|held| held.ending.is_some());
        match via {
            Via::Lane if !moving.invited => {
                violation("it sent data of a call on the lane uninvited")
            }
            Via::Link if moving.from_lane => {
                violation("it sent data of a call on the link after it moved to the lane")
            }
            Via::Lane if held_over => violation("it sent more after the end of a call"),
            Via::Lane | Via::Link => Ok(()),
        }
    }

    /// True if what came is to wait for the rest of what was sent on the link.
    pub(crate) fn is_early(&self, via: Via) -> bool {
        via == Via::Lane && !self.moving.from_lane
    }

    /// Keeps what came early.
    pub(crate) fn hold(&mut self, desk: &Arc<Desk>, data: Bytes, ending: Option<Ending>) {
        let held = self.moving.held.get_or_insert_with(|| Held::new(desk.clone()));
        if !data.is_empty() {
            desk.queued_bytes.fetch_add(data_cost(data.len()), Ordering::Relaxed);
            held.data.push_back(data);
        }
        held.ending = ending;
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Core<S> {
    /// The answering side says that a lane may come.
    pub(crate) fn offer(&mut self, seat: Seat<S>) {
        let Seat { number, arriving } = seat;
        self.lane_number = Some(number);
        self.way = Way::Seat(arriving);
        self.wire.out.encode(Bytes::new(), |encoder, out| encoder.lanes(out, number));
    }

    /// The other side says under which number it takes a lane.
    pub(crate) fn offered(&mut self, to: u64) -> Result<(), LinkEnd> {
        if self.lane_number.replace(to).is_some() {
            return violation("it offered a second lane");
        }
        Ok(())
    }

    /// Notes what came on the link for a call; a reader of much wants it on the lane.
    pub(crate) fn note_received(&mut self, id: u32, bytes: usize) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.moving.received += bytes;
        if call.moving.received >= LARGE_BYTES {
            self.want_lane();
            self.invite(id);
        }
    }

    /// Begins to open the lane, if this side may.
    pub(crate) fn want_lane(&mut self) {
        let (Way::Open(_), Some(number)) = (&self.way, self.lane_number) else { return };
        if let Way::Open(open) = mem::replace(&mut self.way, Way::Closed) {
            let opening = async move {
                let greeted = async { greet(open().await?, number).await.ok() };
                timeout(PREFACE_WITHIN, greeted).await.ok()?
            };
            self.way = Way::Opening(Box::pin(opening));
        }
    }

    fn invite(&mut self, id: u32) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if self.lane.is_none() || call.moving.invited || call.is_inbound_over() {
            return;
        }
        call.moving.invited = true;
        self.wire.out.encode(Bytes::new(), |encoder, out| encoder.invite(out, CallId(id)));
    }

    /// The other side invites this one to move its half of a call.
    pub(crate) fn invited(&mut self, id: u32) -> Result<(), LinkEnd> {
        // The word that the other side took the lane comes on the lane, and may come later.
        if self.lane.is_none() && !matches!(self.way, Way::Opening(_)) {
            return violation("it invited to a lane that there is not");
        }
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        if mem::replace(&mut call.moving.asked, true) {
            return violation("it invited to the lane twice");
        }
        self.accept(id);
        Ok(())
    }

    /// Moves this side's half of a call, if it was invited and can. Whoever has said all, or
    /// nothing yet, has nothing to move.
    fn accept(&mut self, id: u32) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let invited = self.lane.is_some() && call.moving.asked && !call.moving.to_lane;
        if invited && call.outbound.is_some() && call.head.is_none() {
            call.moving.to_lane = true;
            self.wire.out.encode(Bytes::new(), |encoder, out| encoder.moved(out, CallId(id)));
        }
    }

    /// The other side has moved its half of a call: what came early is next.
    pub(crate) fn moved(&mut self, id: u32) -> Result<Received, LinkEnd> {
        let Some(call) = self.calls.get_mut(&id) else { return Ok(Received::Unknown) };
        if !call.moving.invited || mem::replace(&mut call.moving.from_lane, true) {
            return violation("it moved a call to the lane uninvited");
        }
        if call.is_inbound_over() {
            return violation("it sent more after the end of a call");
        }
        let Some(mut held) = call.moving.held.take() else { return Ok(Received::Kept) };
        while let Some(data) = held.data.pop_front() {
            self.desk.queued_bytes.fetch_sub(data_cost(data.len()), Ordering::Relaxed);
            call.half.arrive(None, data, None);
        }
        match held.ending.take() {
            None => Ok(Received::Kept),
            Some(ending) => {
                call.finish_inbound(ending);
                Ok(Received::Ended)
            }
        }
    }

    /// Takes the lane that arrived or was opened.
    pub(crate) fn poll_lane(&mut self, cx: &mut Context<'_>) {
        let found = match &mut self.way {
            Way::Closed | Way::Open(_) => return,
            Way::Seat(arriving) => match Pin::new(arriving).poll(cx) {
                Poll::Pending => return,
                Poll::Ready(found) => found.ok(),
            },
            Way::Opening(opening) => match opening.as_mut().poll(cx) {
                Poll::Pending => return,
                Poll::Ready(found) => found.map(Unread::from),
            },
        };
        self.way = Way::Closed;
        let Some(stream) = found else { return };
        let mut lane = Wire::new(stream, Begin::Greeted);
        if let Some(number) = self.lane_number.filter(|_| self.answering) {
            lane.out.put(&lane_preface(number));
        }
        self.lane = Some(lane);
        for id in self.calls.keys().copied().collect::<Vec<u32>>() {
            self.accept(id);
            if self.calls.get(&id).is_some_and(|call| call.moving.received >= LARGE_BYTES) {
                self.invite(id);
            }
        }
    }

    /// Reads the lane once. True if something came.
    pub(crate) fn fill_lane(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkEnd> {
        let Some(lane) = &mut self.lane else { return Ok(false) };
        let came = lane.fill(cx, self.now)?;
        self.wire.hear(lane);
        Ok(came)
    }

    /// The next frame that came on the lane.
    pub(crate) fn lane_frame(&mut self) -> Result<Option<Frame>, LinkEnd> {
        let Some(lane) = &mut self.lane else { return Ok(None) };
        if let Some(frame) = lane.frame()? {
            return Ok(Some(frame));
        }
        let Some(end) = lane.end() else { return Ok(None) };
        // Calls that are on it are lost with it. The others never needed it.
        let needed = |call: &Call| call.moving.invited || call.moving.to_lane;
        if self.calls.values().any(needed) {
            return Err(LinkEnd::Lost { cause: format!("its lane ended: {end}") });
        }
        self.lane = None;
        Ok(None)
    }

    /// Writes what can be written now.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEnd> {
        self.wire.flush(cx, self.now)?;
        if let Some(lane) = &mut self.lane {
            lane.flush(cx, self.now)?;
            self.wire.hear(lane);
        }
        Ok(())
    }
}

/// Says that `stream` is a lane and waits until the other side has taken it.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, number: u64) -> io::Result<S> {
    let said = lane_preface(number);
    stream.write_all(&said).await?;
    stream.flush().await?;
    let mut answer = [0; LANE_PREFACE_BYTES];
    stream.read_exact(&mut answer).await?;
    if read_lane_preface(&answer) == Ok(Some(number)) {
        Ok(stream)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
