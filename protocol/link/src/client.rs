//! The side that opens calls.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, ready};
use http::HeaderMap;
use protocol::{
    failure::{Failure, Ran, Reason},
    frame::{CALL_CREDIT_BYTES, CallId, Frame, GoAwayCode},
    ports::{Call as PortCall, Invoke, Reply},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{
    LinkEnd, LinkSettings,
    core::{Call, Core, Head, Over, ROUNDS_MAX, Received},
    desk::{Desk, Opening},
    half::{Answer, Half},
    lane::{OpenLane, Queue, Unread, Via, Way},
    outbound::Outbound,
    wire::Begin,
};

/// The handle with which calls are opened. Cheap to clone; calls of all clones share the link.
///
/// A call is on its way as soon as [`Invoke::invoke`] returns; dropping the future, or the reply's
/// body, cancels it.
#[derive(Clone)]
pub struct Link(Arc<Handle>);

struct Handle {
    desk: Arc<Desk>,
    settings: LinkSettings,
}

impl Link {
    /// True once the link takes no more calls: closed here, refused by the other side, or lost.
    pub fn is_closed(&self) -> bool {
        self.0.desk.is_closed()
    }

    /// Calls that are not over.
    pub fn calls_in_flight(&self) -> usize {
        self.0.desk.calls()
    }

    /// Takes no more calls; the driver ends after the last of them.
    pub fn close(&self) {
        self.0.desk.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.desk.close();
    }
}

impl Invoke for Link {
    fn invoke(&self, call: PortCall) -> BoxFuture<'static, Result<Reply, Failure>> {
        let Handle { desk, settings } = &*self.0;
        let half = Half::new(desk.clone(), CALL_CREDIT_BYTES / 2);
        let PortCall { head, body } = call;
        match desk.submit(Opening { head, body, half: half.clone() }) {
            Ok(()) => Box::pin(Answer::new(half)),
            Err(failure) => ready(Err(named(failure, settings))).boxed(),
        }
    }
}

/// The failure with the other side's name.
fn named(failure: Failure, settings: &LinkSettings) -> Failure {
    match settings.peer {
        Some(peer) => failure.at(peer),
        None => failure,
    }
}

/// `greeted`: the prefaces were exchanged already.
pub(crate) fn new<S>(
    stream: S,
    settings: LinkSettings,
    greeted: bool,
    lane: Option<OpenLane<S>>,
) -> (Link, Client<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let begin = if greeted { Begin::Greeted } else { Begin::Calling };
    let mut core = Core::new(Unread::from(stream), settings.clone(), begin);
    if let Some(open) = lane {
        core.way = Way::Open(open);
    }
    let link = Link(Arc::new(Handle { desk: core.desk.clone(), settings }));
    let client = Client { core, rung: Vec::new(), openings: Vec::new(), next: 0, leaving: None };
    (link, client)
}

/// The driver.
pub(crate) struct Client<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> {
    core: Core<S>,
    rung: Vec<u32>,
    openings: Vec<Opening>,
    next: u32,
    /// Why the link ends, and until when the rest may take.
    leaving: Option<(LinkEnd, Instant)>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Future for Client<S> {
    type Output = LinkEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        let this = self.get_mut();
        this.core.now = Instant::now();
        if this.leaving.is_none() {
            this.core.desk.begin(cx.waker());
            match this.turn(cx) {
                Ok(busy) => {
                    if busy || !this.core.desk.rest() {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
                Err(end) => {
                    this.end_all(&end);
                    this.core.go_away(&end);
                    this.leaving = Some((end, this.core.now + this.core.settings.quiet));
                }
            }
        }
        let Some((end, until)) = &this.leaving else { return Poll::Pending };
        this.core.leave(cx, *until).map(|()| end.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Client<S> {
    /// Does all there is to do. True if there may be more.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkEnd> {
        for _ in 0..ROUNDS_MAX {
            let mut busy = self.collect();
            busy |= self.core.wire.fill(cx, self.core.now)?;
            while let Some(frame) = self.core.wire.frame()? {
                self.dispatch(frame)?;
            }
            if let Some(end) = self.core.wire.end() {
                return Err(end);
            }
            self.core.poll_lane(cx);
            busy |= self.core.fill_lane(cx)?;
            while let Some(frame) = self.core.lane_frame()? {
                self.dispatch_of_lane(frame)?;
            }
            self.pump_stalled();
            self.watch(cx)?;
            self.core.flush(cx)?;
            busy |= self.core.has_more();
            if !busy {
                return self.rest().map(|()| false);
            }
        }
        Ok(true)
    }

    /// The link may end when nothing is in flight.
    fn rest(&mut self) -> Result<(), LinkEnd> {
        let closing = self.core.desk.is_closed();
        if closing && self.core.calls.is_empty() && self.openings.is_empty() {
            return Err(LinkEnd::Closed);
        }
        Ok(())
    }

    /// Takes what was left on the desk.
    fn collect(&mut self) -> bool {
        let (mut rung, mut openings) = (mem::take(&mut self.rung), mem::take(&mut self.openings));
        self.core.desk.collect(&mut rung, &mut openings);
        let busy = !(rung.is_empty() && openings.is_empty());
        for opening in openings.drain(..) {
            self.open(opening);
        }
        for id in rung.drain(..) {
            self.attend(id);
        }
        (self.rung, self.openings) = (rung, openings);
        busy
    }

    fn open(&mut self, opening: Opening) {
        let Opening { head, body, half } = opening;
        let id = loop {
            self.next = self.next.wrapping_add(1);
            if self.next != 0 && !self.core.calls.contains_key(&self.next) {
                break self.next;
            }
        };
        if !half.number(id) {
            return self.core.desk.release(1);
        }
        let deadline = head.deadline.map(Instant::from_std);
        let mut call = Call::new(half, deadline, self.core.now);
        if deadline.is_some_and(|at| at <= self.core.now) {
            let message = "the caller's deadline passed before the call was sent";
            let failure = Failure::not_started(Reason::DeadlineExceeded, message);
            call.half.finish(Err(named(failure, &self.core.settings)));
            return self.core.desk.release(1);
        }
        call.head = Some(Head::Open(head));
        call.outbound = Some(Outbound::new(body));
        self.core.insert(id, call);
        self.pump(id);
    }

    /// Looks at a call that asked for it.
    fn attend(&mut self, id: u32) {
        let Some(call) = self.core.calls.get(&id) else { return };
        call.half.looked();
        if self.core.grant(id) {
            self.pump(id);
        } else {
            self.cancel(id);
        }
    }

    fn pump(&mut self, id: u32) {
        match self.core.pump(id) {
            None | Some(Over::Told) => {}
            Some(Over::Failed(failure)) => self.fail(id, failure),
        }
        if self.core.calls.get(&id).is_some_and(|call| call.moving.queue() == Queue::Large) {
            self.core.want_lane();
        }
    }

    fn pump_stalled(&mut self) {
        for queue in Queue::ALL {
            for _ in 0..self.core.stalled(queue) {
                let Some(id) = self.core.next_stalled(queue) else { break };
                self.pump(id);
            }
        }
    }

    /// Forgets a call; the other side is told if it may know of it.
    fn cancel(&mut self, id: u32) {
        if let Some(call) = self.remove(id)
            && call.head.is_none()
        {
            self.core.wire.out.encode(Bytes::new(), |encoder, out| encoder.cancel(out, CallId(id)));
        }
    }

    /// Ends a call with a failure. The other side has been told, or does not need to be.
    fn fail(&mut self, id: u32, failure: Failure) {
        if let Some(call) = self.remove(id) {
            call.half.finish(Err(named(failure, &self.core.settings)));
        }
    }

    fn remove(&mut self, id: u32) -> Option<Call> {
        let call = self.core.remove(id)?;
        self.core.desk.release(1);
        Some(call)
    }

    fn dispatch(&mut self, frame: Frame) -> Result<(), LinkEnd> {
        match frame {
            Frame::Headers { call, metadata, data, end } => {
                if let Some(state) = self.core.calls.get_mut(&call.0)
                    && mem::replace(&mut state.answered, true)
                {
                    return Err(LinkEnd::Violation { what: "it answered a call twice" });
                }
                self.receive(call, Via::Link, Some(metadata), data, end.map(Ok))
            }
            Frame::Data { end: true, .. } => {
                Err(LinkEnd::Violation { what: "it ended an answer as if it were the caller" })
            }
            Frame::Data { call, data, .. } => {
                self.expect_answered(call)?;
                self.receive(call, Via::Link, None, data, None)
            }
            Frame::End { call, outcome: Ok(trailers) } => {
                self.expect_answered(call)?;
                self.receive(call, Via::Link, None, Bytes::new(), Some(Ok(trailers)))
            }
            Frame::End { call, outcome: Err(failure) } => {
                self.fail(call.0, failure);
                Ok(())
            }
            Frame::Credit { call, bytes } => {
                self.core.credit(call.0, bytes);
                self.pump(call.0);
                Ok(())
            }
            Frame::Ping(content) => {
                self.core.wire.out.encode(Bytes::new(), |encoder, out| encoder.pong(out, content));
                Ok(())
            }
            Frame::Pong(_) => Ok(()),
            Frame::GoAway { code: GoAwayCode::Closing, .. } => {
                self.core.desk.close();
                Ok(())
            }
            Frame::GoAway { code: GoAwayCode::Violation, message } => {
                Err(LinkEnd::RefusedByOther { message })
            }
            Frame::Lanes(number) => self.core.offered(number),
            Frame::Invite { call } => {
                self.core.invited(call.0)?;
                self.pump(call.0);
                Ok(())
            }
            Frame::Moved { call } => {
                if let Received::Ended = self.core.moved(call.0)? {
                    self.remove(call.0);
                }
                Ok(())
            }
            Frame::Open { .. } | Frame::HalfClose { .. } | Frame::Cancel { .. } => {
                Err(LinkEnd::Violation { what: "it sent what only a caller sends" })
            }
        }
    }

    fn dispatch_of_lane(&mut self, frame: Frame) -> Result<(), LinkEnd> {
        match frame {
            Frame::Data { call, data, end: false } => {
                self.receive(call, Via::Lane, None, data, None)
            }
            Frame::End { call, outcome } => {
                self.receive(call, Via::Lane, None, Bytes::new(), Some(outcome))
            }
            _ => Err(LinkEnd::Violation { what: "it sent on the lane what belongs on the link" }),
        }
    }

    fn expect_answered(&self, call: CallId) -> Result<(), LinkEnd> {
        match self.core.calls.get(&call.0) {
            Some(state) if !state.answered => {
                Err(LinkEnd::Violation { what: "it sent an answer's data before its head" })
            }
            _ => Ok(()),
        }
    }

    fn receive(
        &mut self,
        call: CallId,
        via: Via,
        head: Option<HeaderMap>,
        data: Bytes,
        outcome: Option<Result<HeaderMap, Failure>>,
    ) -> Result<(), LinkEnd> {
        let settings = &self.core.settings;
        let ending = outcome.map(|outcome| match outcome {
            Ok(trailers) => Ok(Some(trailers).filter(|map| !map.is_empty())),
            Err(failure) => Err(named(failure, settings)),
        });
        match self.core.receive(call.0, via, head, data, ending)? {
            Received::Shed => {
                let failure = self.core.shed();
                self.core.wire.out.encode(Bytes::new(), |encoder, out| encoder.cancel(out, call));
                self.fail(call.0, failure);
            }
            Received::Ended => {
                self.remove(call.0);
            }
            Received::Kept | Received::Unknown => {}
        }
        Ok(())
    }

    /// Does what time brings.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEnd> {
        loop {
            for (id, failure) in self.core.expired() {
                if self.core.calls.get(&id).is_some_and(|call| call.head.is_none()) {
                    self.core.wire.out.encode(Bytes::new(), |encoder, out| {
                        encoder.cancel(out, CallId(id));
                    });
                }
                self.fail(id, failure);
            }
            let mut due = None;
            if self.core.calls.is_empty()
                && let Some(idle) = self.core.settings.link_idle
            {
                let at = self.core.unused_since + idle;
                if at <= self.core.now && self.core.desk.close_if_unused() {
                    return Err(LinkEnd::Idle);
                }
                due = Some(at);
            }
            if !self.core.wait(cx, due)? {
                return Ok(());
            }
        }
    }

    /// Tells every call that the link is no more.
    fn end_all(&mut self, end: &LinkEnd) {
        let calls = mem::take(&mut self.core.calls);
        let mut openings = mem::take(&mut self.openings);
        openings.extend(self.core.desk.end(end.to_string()));
        self.core.desk.release(calls.len() + openings.len());
        let failure = |ran| {
            let message = match ran {
                Ran::NotStarted => format!("the call was not sent: {end}"),
                Ran::Unknown | Ran::Failed => format!("during the call, {end}"),
            };
            let failure = Failure::new(ran, Reason::PeerLost, message);
            named(failure, &self.core.settings)
        };
        for call in calls.values() {
            call.half.finish(Err(failure(self.core.ran(call))));
        }
        for opening in openings {
            opening.half.finish(Err(failure(Ran::NotStarted)));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Drop for Client<S> {
    fn drop(&mut self) {
        if self.leaving.is_none() {
            self.end_all(&LinkEnd::Closed);
        }
    }
}
