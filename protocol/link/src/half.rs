//! The receiving half of one call: what has come and was not read yet.
//!
//! The driver puts head, data and ending in; one reader takes them out, as the future of a reply or
//! as a body. Reading gives credit back, which the driver passes on when half of the call's window
//! was read. The half is also the waker with which the driver polls what belongs to the call, so
//! that it knows which of thousands of calls is to be looked at.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::task::ArcWake;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use protocol::{failure::Failure, frame::data_cost, ports::Body};

use crate::desk::Desk;

/// How one direction of a call ended: with trailers, without, or not as it should.
pub(crate) type Ending = Result<Option<HeaderMap>, Failure>;

pub(crate) struct Half {
    desk: Arc<Desk>,
    /// The call's number; 0 until the driver has given it one.
    call: AtomicU32,
    /// The number is on the desk already.
    rung: AtomicBool,
    inbound: Mutex<Inbound>,
}

#[derive(Default)]
struct Inbound {
    head: Option<HeaderMap>,
    /// The first chunk that waits, and those behind it: most calls never have a second one.
    next: Option<Bytes>,
    more: VecDeque<Bytes>,
    ending: Option<Ending>,
    /// The ending came, whether it was read or not: nobody needs to hear of the reader any more.
    over: bool,
    reader: Option<Waker>,
    /// What was read since the driver last looked, as credit counts it.
    read: usize,
    /// At how much read the driver is to be told.
    tell_at: usize,
    /// The reader has left.
    left: bool,
}

/// What the driver wants to know of a reader.
pub(crate) struct Reader {
    /// It will never read again.
    pub(crate) left: bool,
    /// What it read since the last look, once that is worth telling the other side.
    pub(crate) read: usize,
    /// It has read all there is.
    pub(crate) caught_up: bool,
}

impl Half {
    pub(crate) fn new(desk: Arc<Desk>, tell_at: usize) -> Arc<Self> {
        Arc::new(Self {
            desk,
            call: AtomicU32::new(0),
            rung: AtomicBool::new(false),
            inbound: Mutex::new(Inbound { tell_at, ..Inbound::default() }),
        })
    }

    // What the driver does.

    /// Gives the call its number; false if the reader has left before.
    pub(crate) fn number(&self, call: u32) -> bool {
        self.call.store(call, Ordering::Release);
        self.looked();
        !self.inbound.lock().left
    }

    /// To be called before looking, so that what happens from then on rings again.
    pub(crate) fn looked(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// What the reader did. Counts as read only once that is enough to tell.
    pub(crate) fn reader(&self) -> Reader {
        let mut inbound = self.inbound.lock();
        let caught_up = inbound.next.is_none();
        let enough = inbound.read >= inbound.tell_at && !inbound.over;
        let read = if enough { std::mem::take(&mut inbound.read) } else { 0 };
        Reader { left: inbound.left && !inbound.over, read, caught_up }
    }

    pub(crate) fn tell_at(&self, bytes: usize) {
        self.inbound.lock().tell_at = bytes;
    }

    /// Puts in what came with one frame.
    pub(crate) fn arrive(&self, head: Option<HeaderMap>, data: Bytes, ending: Option<Ending>) {
        let mut inbound = self.inbound.lock();
        if inbound.over {
            return;
        }
        if head.is_some() {
            inbound.head = head;
        }
        if !data.is_empty() && !inbound.left {
            self.desk.queued_bytes.fetch_add(data_cost(data.len()), Ordering::Relaxed);
            if inbound.next.is_none() {
                inbound.next = Some(data);
            } else {
                inbound.more.push_back(data);
            }
        }
        if ending.is_some() {
            inbound.over = true;
            inbound.ending = ending;
        }
        let reader = inbound.reader.take();
        drop(inbound);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// The ending has come.
    pub(crate) fn is_over(&self) -> bool {
        self.inbound.lock().over
    }

    /// Puts in the ending.
    pub(crate) fn finish(&self, ending: Ending) {
        self.arrive(None, Bytes::new(), Some(ending));
    }

    // What the reader does.

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.desk.ring(self.call.load(Ordering::Acquire));
        }
    }

    /// The head of the answer, or why there is none.
    fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<HeaderMap, Failure>> {
        let mut inbound = self.inbound.lock();
        if let Some(head) = inbound.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(Err(failure)) = &inbound.ending {
            return Poll::Ready(Err(failure.clone()));
        }
        remember(&mut inbound.reader, cx);
        Poll::Pending
    }

    fn poll_frame(&self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut inbound = self.inbound.lock();
        if let Some(data) = inbound.next.take() {
            inbound.next = inbound.more.pop_front();
            let cost = data_cost(data.len());
            inbound.read += cost;
            let tell = inbound.read >= inbound.tell_at && !inbound.over;
            drop(inbound);
            self.desk.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            if tell {
                self.ring();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match inbound.ending.take() {
            Some(Ok(trailers)) => Poll::Ready(trailers.map(|map| Ok(Frame::trailers(map)))),
            Some(Err(failure)) => Poll::Ready(Some(Err(failure))),
            None if inbound.over => Poll::Ready(None),
            None => {
                remember(&mut inbound.reader, cx);
                Poll::Pending
            }
        }
    }

    fn is_done(&self) -> bool {
        let inbound = self.inbound.lock();
        inbound.over && inbound.next.is_none() && matches!(inbound.ending, None | Some(Ok(None)))
    }

    /// The reader leaves; the driver hears of it unless there is nothing more to come.
    fn leave(&self) {
        let mut inbound = self.inbound.lock();
        inbound.left = true;
        inbound.reader = None;
        let (next, more) = (inbound.next.take(), std::mem::take(&mut inbound.more));
        let tell = !inbound.over;
        drop(inbound);
        let unread = next.iter().chain(&more).map(|data| data_cost(data.len())).sum();
        self.desk.queued_bytes.fetch_sub(unread, Ordering::Relaxed);
        if tell {
            self.ring();
        }
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *place = Some(cx.waker().clone()),
    }
}

impl ArcWake for Half {
    fn wake_by_ref(half: &Arc<Self>) {
        half.ring();
    }
}

/// Waits for the head of an answer. Dropping it cancels the call.
pub(crate) struct Answer(Option<Arc<Half>>);

impl Answer {
    pub(crate) fn new(half: Arc<Half>) -> Self {
        Self(Some(half))
    }
}

impl Future for Answer {
    type Output = Result<protocol::ports::Reply, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(half) = &self.0 else { panic!("polled after it was ready") };
        let Poll::Ready(head) = half.poll_head(cx) else { return Poll::Pending };
        let half = self.0.take();
        Poll::Ready(head.map(|metadata| {
            let body = body(half.expect("it was there when it was polled"));
            protocol::ports::Reply { metadata, body }
        }))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(half) = &self.0 {
            half.leave();
        }
    }
}

/// What comes, as the body of a call. Dropping it tells the driver that nobody reads any more.
pub(crate) fn body(half: Arc<Half>) -> Body {
    Body::new(Incoming(half))
}

struct Incoming(Arc<Half>);

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        if self.0.is_done() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.0.leave();
    }
}
