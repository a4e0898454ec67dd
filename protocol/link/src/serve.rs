//! The side that answers calls.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, task::waker_ref};
use http::HeaderMap;
use protocol::{
    failure::{Failure, Reason},
    frame::{CALL_CREDIT_BYTES, CallId, Frame, GoAwayCode},
    ports::{Call as PortCall, CallHead, Caller, Invoke, Locality},
    service::MethodPath,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{
    LinkEnd, LinkSettings,
    core::{Call, Core, Head, ROUNDS_MAX, Received},
    half::{self, Half},
    lane::{Queue, Seat, Unread, Via},
    outbound::{Outbound, guard},
    share::Place,
    wire::Begin,
};

/// The driver.
pub(crate) struct Server<S> {
    core: Core<S>,
    /// For a lane, until the other side is known to speak frames.
    seat: Option<Seat<S>>,
    caller: Caller,
    handler: Arc<dyn Invoke>,
    rung: Vec<u32>,
    began: Instant,
    /// Done when no more calls are to be taken.
    drain: Option<BoxFuture<'static, ()>>,
    /// Since when the last call of a drained link with a lane is over.
    drained: Option<Instant>,
    /// Why the link ends, and until when the rest may take.
    leaving: Option<(LinkEnd, Instant)>,
}

/// What an open frame brings.
struct Request {
    path: MethodPath,
    time_left: Option<Duration>,
    metadata: HeaderMap,
    data: Bytes,
    end: bool,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Server<S> {
    pub(crate) fn new(
        stream: Unread<S>,
        seat: Option<Seat<S>>,
        settings: LinkSettings,
        caller: Caller,
        handler: Arc<dyn Invoke>,
        drain: BoxFuture<'static, ()>,
    ) -> Self {
        let core = Core::new(stream, settings, Begin::Answering);
        let (began, drain, rung) = (core.now, Some(drain), Vec::new());
        Self { core, seat, caller, handler, rung, began, drain, drained: None, leaving: None }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Future for Server<S> {
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
                    this.drop_all();
                    this.core.go_away(&end);
                    this.leaving = Some((end, this.core.now + this.core.settings.quiet));
                }
            }
        }
        let Some((end, until)) = &this.leaving else { return Poll::Pending };
        this.core.leave(cx, *until).map(|()| end.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Server<S> {
    /// Does all there is to do. True if there may be more.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkEnd> {
        self.poll_drain(cx);
        for _ in 0..ROUNDS_MAX {
            let mut busy = self.collect();
            busy |= self.core.wire.fill(cx, self.core.now)?;
            while let Some(frame) = self.core.wire.frame()? {
                self.dispatch(frame)?;
            }
            if let Some(end) = self.core.wire.end() {
                return Err(end);
            }
            self.offer();
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

    fn poll_drain(&mut self, cx: &mut Context<'_>) {
        if let Some(drain) = &mut self.drain
            && drain.as_mut().poll(cx).is_ready()
        {
            self.drain = None;
            self.core.go_away(&LinkEnd::Closed);
        }
    }

    /// Says after the preface that there is a seat for a lane.
    fn offer(&mut self) {
        if self.core.wire.preface_seen()
            && let Some(seat) = self.seat.take()
        {
            self.core.offer(seat);
        }
    }

    /// A drained link ends when the last answer is written. With a lane the other side ends it, so
    /// that the end of the link does not overtake what is still on the lane.
    fn rest(&mut self) -> Result<(), LinkEnd> {
        if !self.is_drained() || !self.core.wire.out.is_empty() {
            return Ok(());
        }
        let patience = self.core.settings.quiet;
        let waited = self.drained.is_some_and(|since| since + patience <= self.core.now);
        if self.core.lane.is_none() || waited { Err(LinkEnd::Closed) } else { Ok(()) }
    }

    fn is_drained(&self) -> bool {
        self.drain.is_none() && self.core.calls.is_empty()
    }

    fn collect(&mut self) -> bool {
        let mut rung = mem::take(&mut self.rung);
        self.core.desk.collect(&mut rung, &mut Vec::new());
        let busy = !rung.is_empty();
        for id in rung.drain(..) {
            self.attend(id);
        }
        self.rung = rung;
        busy
    }

    /// Looks at a call that asked for it: its handler, its reader, its reply.
    fn attend(&mut self, id: u32) {
        let Some(call) = self.core.calls.get_mut(&id) else { return };
        call.half.looked();
        if let Some(handler) = &mut call.handler {
            let poll = || handler.as_mut().poll(&mut Context::from_waker(&waker_ref(&call.half)));
            match guard(poll) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(Ok(reply))) => {
                    call.handler = None;
                    call.head = Some(Head::Reply(reply.metadata));
                    call.outbound = Some(Outbound::new(reply.body));
                }
                Ok(Poll::Ready(Err(failure))) | Err(failure) => return self.fail(id, &failure),
            }
        }
        // A handler that reads no more of the request may still answer.
        self.core.grant(id);
        self.pump(id);
    }

    fn pump(&mut self, id: u32) {
        if self.core.pump(id).is_some() {
            self.remove(id, || "the call is over".into());
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

    /// Ends a call with a failure.
    fn fail(&mut self, id: u32, failure: &Failure) {
        self.core.wire.out.encode(Bytes::new(), |encoder, out| {
            encoder.fail(out, CallId(id), failure);
        });
        self.remove(id, || failure.message.clone());
    }

    /// Drops handler and reply of a call; whoever reads its request is told why there is no more.
    fn remove(&mut self, id: u32, why: impl FnOnce() -> String) {
        if let Some(call) = self.core.remove(id)
            && !call.half.is_over()
        {
            call.half.finish(Err(Failure::unknown(Reason::Cancelled, why())));
        }
    }

    fn drop_all(&mut self) {
        let ids: Vec<u32> = self.core.calls.keys().copied().collect();
        for id in ids {
            self.remove(id, || "the caller's link ended".into());
        }
    }

    fn dispatch(&mut self, frame: Frame) -> Result<(), LinkEnd> {
        match frame {
            Frame::Open { call, path, time_left, metadata, data, end } => {
                self.open(call, Request { path, time_left, metadata, data, end })
            }
            Frame::Data { call, data, end } => {
                self.receive(call, Via::Link, data, end.then(HeaderMap::new))
            }
            Frame::HalfClose { call, trailers } => {
                self.receive(call, Via::Link, Bytes::new(), Some(trailers))
            }
            Frame::Cancel { call } => {
                self.remove(call.0, || "the caller cancelled the call".into());
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
            // A caller that goes away says so by closing the link.
            Frame::Pong(_) | Frame::GoAway { code: GoAwayCode::Closing, .. } => Ok(()),
            Frame::GoAway { code: GoAwayCode::Violation, message } => {
                Err(LinkEnd::RefusedByOther { message })
            }
            Frame::Invite { call } => {
                self.core.invited(call.0)?;
                self.pump(call.0);
                Ok(())
            }
            Frame::Moved { call } => self.core.moved(call.0).map(drop),
            Frame::Headers { .. } | Frame::End { .. } | Frame::Lanes(_) => {
                Err(LinkEnd::Violation { what: "it sent what only the answering side sends" })
            }
        }
    }

    fn dispatch_of_lane(&mut self, frame: Frame) -> Result<(), LinkEnd> {
        match frame {
            Frame::Data { call, data, end } => {
                self.receive(call, Via::Lane, data, end.then(HeaderMap::new))
            }
            Frame::HalfClose { call, trailers } => {
                self.receive(call, Via::Lane, Bytes::new(), Some(trailers))
            }
            _ => Err(LinkEnd::Violation { what: "it sent on the lane what belongs on the link" }),
        }
    }

    fn open(&mut self, id: CallId, request: Request) -> Result<(), LinkEnd> {
        if self.core.calls.contains_key(&id.0) {
            return Err(LinkEnd::Violation { what: "it opened a call under the id of another" });
        }
        let place = match self.admit(&request) {
            Ok(place) => place,
            Err(refusal) => {
                let out = &mut self.core.wire.out;
                out.encode(Bytes::new(), |encoder, out| encoder.fail(out, id, &refusal));
                return Ok(());
            }
        };
        let now = self.core.now;
        let deadline = request.time_left.and_then(|left| now.checked_add(left));
        let half = Half::new(self.core.desk.clone(), CALL_CREDIT_BYTES / 2);
        half.number(id.0);
        let mut call = Call::new(half.clone(), deadline, now);
        call.place = place;
        self.core.insert(id.0, call);
        self.receive(id, Via::Link, request.data, request.end.then(HeaderMap::new))?;
        if !self.core.calls.contains_key(&id.0) {
            return Ok(()); // Shed.
        }
        let head = CallHead {
            path: request.path,
            metadata: request.metadata,
            deadline: deadline.map(Instant::into_std),
            locality: Locality::Local,
            caller: self.caller.clone(),
        };
        match guard(|| self.handler.invoke(PortCall { head, body: half::body(half) })) {
            Ok(handler) => {
                if let Some(call) = self.core.calls.get_mut(&id.0) {
                    call.handler = Some(handler);
                }
                self.attend(id.0);
            }
            Err(failure) => self.fail(id.0, &failure),
        }
        Ok(())
    }

    /// The call's place among all of its peer, where those are counted; or why it is not taken.
    fn admit(&self, request: &Request) -> Result<Option<Place>, Failure> {
        let LinkSettings { calls_max, share, .. } = &self.core.settings;
        if self.drain.is_none() {
            return Err(Failure::not_started(Reason::Unreachable, "the node is shutting down"));
        }
        if self.core.calls.len() >= *calls_max {
            let message = format!("{calls_max} calls are in flight on this link already");
            return Err(Failure::not_started(Reason::Busy, message));
        }
        if request.time_left.is_some_and(|left| left.is_zero()) {
            let message = "the caller's deadline passed before the call was begun";
            return Err(Failure::not_started(Reason::DeadlineExceeded, message));
        }
        let Some(share) = share else { return Ok(None) };
        share.take().map(Some).ok_or_else(|| {
            let message = format!("{} calls of this peer are in flight already", share.calls_max());
            Failure::not_started(Reason::Busy, message)
        })
    }

    fn receive(
        &mut self,
        call: CallId,
        via: Via,
        data: Bytes,
        trailers: Option<HeaderMap>,
    ) -> Result<(), LinkEnd> {
        let ending = trailers.map(|map| Ok(Some(map).filter(|map| !map.is_empty())));
        if let Received::Shed = self.core.receive(call.0, via, None, data, ending)? {
            let failure = self.core.shed();
            self.fail(call.0, &failure);
        }
        Ok(())
    }

    /// Does what time brings.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), LinkEnd> {
        loop {
            for (id, failure) in self.core.expired() {
                self.fail(id, &failure);
            }
            let mut due = None;
            if !self.core.wire.preface_seen() {
                let at = self.began + self.core.settings.preface_within;
                if at <= self.core.now {
                    return Err(LinkEnd::Silent { after: self.core.now - self.began });
                }
                due = Some(at);
            }
            if self.is_drained() && self.core.lane.is_some() {
                let since = *self.drained.get_or_insert(self.core.now);
                due = Some(since + self.core.settings.quiet);
            }
            if !self.core.wait(cx, due)? {
                return Ok(());
            }
        }
    }
}
