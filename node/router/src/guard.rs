//! How long a call may take, and the answer's body under that bound.
//!
//! A call has its caller's deadline, or where there is none an idle bound: it may last for days
//! as long as bytes pass in one direction or the other.

use std::{
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::poll_fn;
use http_body::{Frame, SizeHint};
use protocol::{
    failure::{Failure, Ran, Reason},
    id::PeerId,
    ports::Body,
};
use tokio::time::Sleep;

use crate::{condition::Ending, gauge::InFlight, meters::Meter, router::Shared};

/// When bytes last passed, in either direction.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    last_millis: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), last_millis: AtomicU64::new(0) })
    }

    pub(crate) fn touch(&self) {
        self.last_millis.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last_millis.load(Relaxed))
    }
}

/// The bound on a call's time, and the timer that enforces it.
pub(crate) struct Watchdog {
    pub(crate) deadline: Option<Instant>,
    progress: Arc<Progress>,
    idle: Duration,
    /// Made when first waited on: most calls never wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    pub(crate) fn new(deadline: Option<Instant>, progress: Arc<Progress>, idle: Duration) -> Self {
        Self { deadline, progress, idle, timer: None }
    }

    /// What is left until the deadline, at most `bound`.
    pub(crate) fn within(&self, bound: Duration) -> Instant {
        let bound = Instant::now() + bound;
        self.deadline.map_or(bound, |deadline| deadline.min(bound))
    }

    /// The deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Runs `work` until it is done or the bound is reached; `ran` is what is known of the call
    /// in the latter case. Giving up drops `work`, which cancels it.
    pub(crate) async fn watch<T>(
        &mut self,
        ran: Ran,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            self.poll_over(cx, ran).map(Err)
        })
        .await
    }

    fn due(&self) -> Instant {
        self.deadline.unwrap_or_else(|| self.progress.last() + self.idle)
    }

    fn poll_over(&mut self, cx: &mut Context<'_>, ran: Ran) -> Poll<Failure> {
        loop {
            let due = self.due();
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            ready!(timer.as_mut().poll(cx));
            let due = self.due();
            if Instant::now() >= due {
                return Poll::Ready(self.failure(ran));
            }
            // Bytes passed since the timer was set.
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(due.into());
            }
        }
    }

    pub(crate) fn failure(&self, ran: Ran) -> Failure {
        let message = match self.deadline {
            Some(_) => "the caller's deadline passed before the call was done".to_owned(),
            None => format!(
                "the call made no progress for {} s; set a deadline to let it wait longer",
                self.idle.as_secs()
            ),
        };
        Failure::new(ran, Reason::DeadlineExceeded, message)
    }
}

/// The answer's body: ends at the deadline, says where it failed, counts how it ended.
pub(crate) struct Answer {
    /// `None` once it has ended: dropping it cancels what is left of the call.
    body: Option<Body>,
    watchdog: Watchdog,
    meter: Meter,
    in_flight: Option<InFlight>,
    /// The peer that answers, where it is not this one.
    peer: Option<PeerId>,
    shared: Arc<Shared>,
}

impl Answer {
    pub(crate) fn new(
        body: Body,
        watchdog: Watchdog,
        meter: Meter,
        in_flight: InFlight,
        peer: Option<PeerId>,
        shared: Arc<Shared>,
    ) -> Self {
        let in_flight = Some(in_flight);
        Self { body: Some(body), watchdog, meter, in_flight, peer, shared }
    }

    fn end(&mut self) {
        self.body = None;
        self.in_flight = None;
    }

    fn fail(&mut self, mut failure: Failure) -> Failure {
        if failure.peer.is_none() && failure.reason != Reason::DeadlineExceeded {
            failure.peer = self.peer;
        }
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.failed(&failure, self.shared.now(), self.shared.settings.doubt);
        }
        self.meter.failed(&failure);
        self.end();
        failure
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = this.meter.answered(trailers);
                    if let Some(in_flight) = &mut this.in_flight {
                        in_flight.ended(Ending::of_code(code), this.shared.now());
                    }
                    this.end();
                } else if this.watchdog.is_over() {
                    // A body that always has more never waits on the timer.
                    let failure = this.watchdog.failure(Ran::Failed);
                    return Poll::Ready(Some(Err(this.fail(failure))));
                }
                this.watchdog.progress.touch();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(failure))) => Poll::Ready(Some(Err(this.fail(failure)))),
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let failure = ready!(this.watchdog.poll_over(cx, Ran::Failed));
                Poll::Ready(Some(Err(this.fail(failure))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
