//! The sending half of one call: what its body has to say, in pieces that fit frames and credit.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Body as _;
use protocol::{
    failure::{Failure, Reason},
    frame::{CALL_CREDIT_BYTES, DATA_COST_BYTES, data_cost},
    ports::Body,
};

use crate::half::Ending;

/// Frames without content that a body may bring in one look, before others have their turn.
const EMPTY_FRAMES_MAX: usize = 16;

pub(crate) struct Outbound {
    body: Body,
    /// Taken from the body and not sent yet, because of its size or for want of credit.
    staged: Bytes,
    credit: usize,
}

/// What can be sent now: data, the ending, or both in one.
pub(crate) struct Burst {
    pub(crate) data: Bytes,
    pub(crate) ending: Option<Ending>,
}

enum Next {
    Data(Bytes),
    Ending(Ending),
}

impl Outbound {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, staged: Bytes::new(), credit: CALL_CREDIT_BYTES }
    }

    /// The other side may be sent so much more.
    pub(crate) fn credit(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// What can be sent now, `bytes_max` of data at most; `None` if nothing, in which case `cx` is
    /// woken when the body has more, or credit is what is missing.
    pub(crate) fn burst(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Option<Burst> {
        if self.staged.is_empty() {
            match self.next(cx)? {
                Next::Data(data) => self.staged = data,
                Next::Ending(ending) => {
                    return Some(Burst { data: Bytes::new(), ending: Some(ending) });
                }
            }
        }
        let affordable = self.credit.checked_sub(DATA_COST_BYTES).filter(|bytes| *bytes > 0)?;
        let data = self.staged.split_to(self.staged.len().min(affordable).min(bytes_max));
        self.credit -= data_cost(data.len());
        // What follows at once goes into the same frame, if it is the ending.
        let mut ending = None;
        if self.staged.is_empty() {
            match self.next(cx) {
                Some(Next::Data(data)) => self.staged = data,
                Some(Next::Ending(end)) => ending = Some(end),
                None => {}
            }
        }
        Some(Burst { data, ending })
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Option<Next> {
        for _ in 0..EMPTY_FRAMES_MAX {
            if self.body.is_end_stream() {
                return Some(Next::Ending(Ok(None)));
            }
            let polled = guard(|| Pin::new(&mut self.body).poll_frame(cx));
            let frame = match polled {
                Ok(Poll::Pending) => return None,
                Ok(Poll::Ready(None)) => return Some(Next::Ending(Ok(None))),
                Ok(Poll::Ready(Some(Err(failure)))) | Err(failure) => {
                    return Some(Next::Ending(Err(failure)));
                }
                Ok(Poll::Ready(Some(Ok(frame)))) => frame,
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some(Next::Data(data)),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Some(Next::Ending(Ok(Some(trailers))));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        None
    }
}

/// Runs `step` of one call so that a panic in it costs that call and not the link.
pub(crate) fn guard<T>(step: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|_| {
        Failure::unknown(Reason::Internal, "a fault in this node ended the call; its log has more")
    })
}
