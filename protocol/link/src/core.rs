//! What both ends of a link do alike: keep calls, give and spend credit, send what bodies bring,
//! and watch the clock.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, task::waker_ref};
use http::HeaderMap;
use protocol::{
    failure::{Failure, Ran, Reason},
    frame::{CALL_CREDIT_BYTES, CallId, FRAME_DATA_BYTES_MAX, GoAwayCode, data_cost},
    ports::{CallHead, Reply},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    CALL_CREDIT_BYTES_MAX, GROWTH_BYTES_MAX, LinkEnd, LinkSettings,
    desk::Desk,
    half::{Ending, Half},
    lane::{Moving, Queue, Unread, Via, Way},
    outbound::{Burst, Outbound},
    send::send,
    share::Place,
    wire::{Begin, Wire},
};

/// Rounds of reading, handing on and writing in one wake-up, before other tasks have their turn.
pub(crate) const ROUNDS_MAX: usize = 8;

/// What one call may send in one round, in bytes, before others have their turn.
const TURN_BYTES: usize = 64 * 1024;

/// Data in one frame of a large call on the link: beyond what is queued already, a small call that
/// comes now waits for no more.
const SLICE_BYTES: usize = 32 * 1024;

/// Deadlines are looked at no more often than this.
const EXPIRY_STEP: Duration = Duration::from_millis(1);

pub(crate) struct Call {
    pub(crate) half: Arc<Half>,
    /// What is sent before the body's first bytes, or with them.
    pub(crate) head: Option<Head>,
    /// The answer in the making; on the answering side only.
    pub(crate) handler: Option<BoxFuture<'static, Result<Reply, Failure>>>,
    pub(crate) outbound: Option<Outbound>,
    pub(crate) deadline: Option<Instant>,
    /// The other side has begun to answer; on the calling side only.
    pub(crate) answered: bool,
    /// The other side has sent all it has to send.
    inbound_over: bool,
    /// How far the link must be written for the other side to know of the call.
    pub(crate) opened_at: Option<u64>,
    pub(crate) moving: Moving,
    /// Held for as long as the call is kept here.
    pub(crate) place: Option<Place>,
    touched: Instant,
    window: Window,
    stalled: bool,
}

#[expect(clippy::large_enum_variant, reason = "a box for every call would cost more than the room")]
pub(crate) enum Head {
    Open(CallHead),
    Reply(HeaderMap),
}

impl Call {
    pub(crate) fn new(half: Arc<Half>, deadline: Option<Instant>, now: Instant) -> Self {
        Self {
            half,
            head: None,
            handler: None,
            outbound: None,
            deadline,
            answered: false,
            inbound_over: false,
            opened_at: None,
            moving: Moving::default(),
            place: None,
            touched: now,
            window: Window { left: CALL_CREDIT_BYTES, size: CALL_CREDIT_BYTES },
            stalled: false,
        }
    }

    pub(crate) fn is_inbound_over(&self) -> bool {
        self.inbound_over
    }

    /// The other side has sent all it has to send, and ends so.
    pub(crate) fn finish_inbound(&mut self, ending: Ending) {
        self.inbound_over = true;
        self.half.finish(ending);
    }

    fn expires(&self, idle: Duration) -> Instant {
        self.deadline.unwrap_or(self.touched + idle)
    }
}

/// What the other side may send for one call.
struct Window {
    left: usize,
    size: usize,
}

impl Window {
    /// Gives back what was read, and more to a reader who keeps up. Returns the credit to send.
    fn grant(&mut self, read: usize, caught_up: bool, growth_left: &mut usize) -> u32 {
        let growth = if caught_up {
            self.size.min(CALL_CREDIT_BYTES_MAX - self.size).min(*growth_left)
        } else {
            0
        };
        *growth_left -= growth;
        self.size += growth;
        self.left += read + growth;
        (read + growth) as u32
    }
}

/// A call is over, seen from its sending half.
pub(crate) enum Over {
    /// The other side has been told all.
    Told,
    /// It could not be sent; whoever reads the other half is to be told.
    Failed(Failure),
}

/// How long after its last call a link gives its buffers back and sets no timer any more: whoever
/// is not called does nothing at all.
const REST_AFTER: Duration = Duration::from_millis(10);

/// What became of a frame's content.
pub(crate) enum Received {
    Kept,
    /// And it was the last of its call's half.
    Ended,
    /// Its call is over.
    Unknown,
    /// There is no room for it on this link.
    Shed,
}

pub(crate) struct Core<S> {
    pub(crate) wire: Wire<S>,
    /// For the data of large calls; what there is else travels on the link.
    pub(crate) lane: Option<Wire<S>>,
    pub(crate) way: Way<S>,
    /// Under which number the answering side takes a lane, once it has said so.
    pub(crate) lane_number: Option<u64>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) settings: LinkSettings,
    pub(crate) now: Instant,
    pub(crate) calls: HashMap<u32, Call>,
    /// Calls with more to send that wait until what was queued is written, by [`Queue`].
    stalled: [VecDeque<u32>; Queue::ALL.len()],
    growth_left: usize,
    /// No call expires before.
    expiry: Option<Instant>,
    alarm: Alarm,
    /// When there last were calls, if there are none.
    pub(crate) unused_since: Instant,
    /// Everything was put away since then.
    rested: bool,
    pub(crate) answering: bool,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Core<S> {
    pub(crate) fn new(stream: Unread<S>, settings: LinkSettings, begin: Begin) -> Self {
        Self {
            wire: Wire::new(stream, begin),
            lane: None,
            way: Way::Closed,
            lane_number: None,
            desk: Arc::new(Desk::new(settings.calls_max)),
            settings,
            now: Instant::now(),
            calls: HashMap::new(),
            stalled: Default::default(),
            growth_left: GROWTH_BYTES_MAX,
            expiry: None,
            alarm: Alarm::default(),
            unused_since: Instant::now(),
            rested: false,
            answering: begin == Begin::Answering,
        }
    }

    pub(crate) fn insert(&mut self, id: u32, call: Call) {
        if self.calls.is_empty() {
            self.wire.expect(self.now);
        }
        let expires = call.expires(self.settings.call_idle);
        self.expiry = Some(self.expiry.map_or(expires, |at| at.min(expires)));
        self.calls.insert(id, call);
    }

    /// Forgets a call and what its sending half still had to say.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        if self.calls.is_empty() {
            (self.unused_since, self.rested) = (self.now, false);
        }
        self.growth_left += call.window.size - CALL_CREDIT_BYTES;
        Some(call)
    }

    /// Puts what came for a call before its reader.
    pub(crate) fn receive(
        &mut self,
        id: u32,
        via: Via,
        head: Option<HeaderMap>,
        data: Bytes,
        ending: Option<Ending>,
    ) -> Result<Received, LinkEnd> {
        let Some(call) = self.calls.get_mut(&id) else { return Ok(Received::Unknown) };
        if call.inbound_over {
            return Err(LinkEnd::Violation { what: "it sent more after the end of a call" });
        }
        call.expect_via(via)?;
        let (bytes, cost) = (data.len(), data_cost(data.len()));
        let Some(left) = call.window.left.checked_sub(cost) else {
            return Err(LinkEnd::Violation { what: "it sent more than it had credit for" });
        };
        call.window.left = left;
        call.touched = self.now;
        let queued = self.desk.queued_bytes.load(Ordering::Relaxed);
        if queued + cost > self.settings.queued_bytes_max && cost > 0 {
            return Ok(Received::Shed);
        }
        if call.is_early(via) {
            call.hold(&self.desk, data, ending);
            return Ok(Received::Kept);
        }
        call.inbound_over = ending.is_some();
        let received = if ending.is_some() { Received::Ended } else { Received::Kept };
        call.half.arrive(head, data, ending);
        if via == Via::Link {
            self.note_received(id, bytes);
        }
        Ok(received)
    }

    /// The failure of a call that found no room.
    pub(crate) fn shed(&self) -> Failure {
        let held = self.settings.queued_bytes_max;
        let message =
            format!("readers have left {held} bytes unread on this link; the call is shed");
        Failure::unknown(Reason::Busy, message)
    }

    /// Passes on the credit that a reader gave back. False if the reader has left.
    pub(crate) fn grant(&mut self, id: u32) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { return true };
        let reader = call.half.reader();
        if reader.read > 0 && !reader.left && !call.inbound_over {
            let before = call.window.size;
            let bytes = call.window.grant(reader.read, reader.caught_up, &mut self.growth_left);
            if call.window.size != before {
                call.half.tell_at(call.window.size / 2);
            }
            self.wire.out.encode(Bytes::new(), |encoder, out| {
                encoder.credit(out, CallId(id), bytes);
            });
        }
        !reader.left
    }

    /// Sends what a call has to say, as far as credit and its turn go.
    pub(crate) fn pump(&mut self, id: u32) -> Option<Over> {
        let call = self.calls.get_mut(&id)?;
        let mut sent = 0;
        while let Some(outbound) = &mut call.outbound {
            let queue = call.moving.queue();
            let out = match &mut self.lane {
                Some(lane) if queue == Queue::Lane => &mut lane.out,
                _ => &mut self.wire.out,
            };
            if out.is_full(queue) || sent >= TURN_BYTES {
                if !call.stalled {
                    call.stalled = true;
                    self.stalled[queue as usize].push_back(id);
                }
                return None;
            }
            let slice = if queue == Queue::Large { SLICE_BYTES } else { FRAME_DATA_BYTES_MAX };
            let burst = outbound.burst(&mut Context::from_waker(&waker_ref(&call.half)), slice);
            if burst.is_some() {
                call.touched = self.now;
            } else if call.head.is_none() {
                return None;
            }
            let burst = burst.unwrap_or(Burst { data: Bytes::new(), ending: None });
            sent += burst.data.len() + 1;
            call.moving.sent += burst.data.len();
            if let Some(over) = send(out, CallId(id), call, burst, self.now, self.answering) {
                return Some(over);
            }
        }
        None
    }

    /// A call that waited for room, if there is room.
    pub(crate) fn next_stalled(&mut self, queue: Queue) -> Option<u32> {
        while self.has_room(queue) {
            let id = self.stalled[queue as usize].pop_front()?;
            if let Some(call) = self.calls.get_mut(&id) {
                call.stalled = false;
                return Some(id);
            }
        }
        None
    }

    pub(crate) fn stalled(&self, queue: Queue) -> usize {
        self.stalled[queue as usize].len()
    }

    /// Whether calls wait that need not.
    pub(crate) fn has_more(&self) -> bool {
        Queue::ALL.into_iter().any(|queue| self.stalled(queue) > 0 && self.has_room(queue))
    }

    fn has_room(&self, queue: Queue) -> bool {
        let stream = match (&self.lane, queue) {
            (Some(lane), Queue::Lane) => lane,
            // Without a lane calls go on where they are.
            _ => &self.wire,
        };
        !stream.out.is_full(queue)
    }

    pub(crate) fn credit(&mut self, id: u32, bytes: u32) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.touched = self.now;
            if let Some(outbound) = &mut call.outbound {
                outbound.credit(bytes as usize);
            }
        }
    }

    /// Whether the other side may have begun a call of ours.
    pub(crate) fn ran(&self, call: &Call) -> Ran {
        match call.opened_at {
            Some(at) if self.wire.out.written() >= at => Ran::Unknown,
            // A frame that was written in part is not acted upon.
            _ => Ran::NotStarted,
        }
    }

    /// The calls whose time is up, and what to tell them.
    pub(crate) fn expired(&mut self) -> Vec<(u32, Failure)> {
        let mut expired = Vec::new();
        if self.expiry.is_none_or(|at| self.now < at) {
            return expired;
        }
        let idle = self.settings.call_idle;
        let mut next: Option<Instant> = None;
        for (id, call) in &self.calls {
            let at = call.expires(idle);
            if self.now < at {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            let message = match call.deadline {
                Some(_) => "the caller's deadline passed".to_owned(),
                None => format!("the call made no progress for {} s", idle.as_secs()),
            };
            let ran = if self.answering { Ran::Unknown } else { self.ran(call) };
            let failure = Failure::new(ran, Reason::DeadlineExceeded, message);
            expired.push((*id, failure));
        }
        self.expiry = next.map(|at| at.max(self.now + EXPIRY_STEP));
        expired
    }

    /// Waits for the next thing that time brings, `due` included. True if its time has come: look
    /// at the clock again.
    pub(crate) fn wait(
        &mut self,
        cx: &mut Context<'_>,
        due: Option<Instant>,
    ) -> Result<bool, LinkEnd> {
        let resting = self.calls.is_empty() && !self.rested;
        if resting && self.now >= self.unused_since + REST_AFTER {
            self.wire.shrink();
            if let Some(lane) = &mut self.lane {
                lane.shrink();
            }
            self.expiry = None;
            self.rested = true;
        }
        let rest = (self.calls.is_empty() && !self.rested).then(|| self.unused_since + REST_AFTER);
        let mut due = [due, rest, self.expiry].into_iter().flatten().min();
        if !self.calls.is_empty() {
            let look = self.wire.watch(self.now, self.settings.quiet, self.settings.silence)?;
            due = Some(due.map_or(look, |due| due.min(look)));
        }
        let fired = self.alarm.fired(cx, due);
        if fired {
            self.now = Instant::now();
        }
        Ok(fired)
    }

    /// Says why this side ends the link, where the other side can know better.
    pub(crate) fn go_away(&mut self, end: &LinkEnd) {
        let code = match end {
            LinkEnd::Format(_) | LinkEnd::Violation { .. } => GoAwayCode::Violation,
            LinkEnd::Closed | LinkEnd::Idle | LinkEnd::Silent { .. } => GoAwayCode::Closing,
            LinkEnd::ClosedByOther | LinkEnd::Lost { .. } | LinkEnd::RefusedByOther { .. } => {
                return;
            }
        };
        let message = end.to_string();
        self.wire.out.encode(Bytes::new(), |encoder, out| encoder.go_away(out, code, &message));
    }

    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error means that there is nobody to tell.
        let link = self.wire.leave(cx).is_ready();
        let lane = self.lane.as_mut().is_none_or(|lane| lane.leave(cx).is_ready());
        if link && lane { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Writes what is left and lets go of the stream, within `settings.quiet`.
    pub(crate) fn leave(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        while self.poll_leave(cx).is_pending() {
            if !self.alarm.fired(cx, Some(until)) {
                return Poll::Pending;
            }
            if Instant::now() >= until {
                break;
            }
        }
        Poll::Ready(())
    }
}

/// One timer for everything of a link that time brings. It may go off early: whoever set it looks
/// at the clock, so that the many calls that end in time never touch it.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    at: Option<Instant>,
}

impl Alarm {
    fn fired(&mut self, cx: &mut Context<'_>, due: Option<Instant>) -> bool {
        if let Some(due) = due
            && self.at.is_none_or(|at| due < at)
        {
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(due),
                None => self.sleep = Some(Box::pin(sleep_until(due))),
            }
            self.at = Some(due);
        }
        let (Some(_), Some(sleep)) = (self.at, &mut self.sleep) else { return false };
        let fired = sleep.as_mut().poll(cx).is_ready();
        if fired {
            self.at = None;
        }
        fired
    }
}
