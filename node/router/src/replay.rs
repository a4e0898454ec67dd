//! A request body that can be sent again, as long as little of it was sent.
//!
//! The first bytes of the caller's messages are remembered while they pass, up to a bound, so that
//! a call whose first provider turns out to be gone is offered to the next with its messages
//! whole. A little is kept for every call, more while the [`Spare`] memory that all calls share
//! lasts. Past the bound nothing is remembered and the call has its one attempt; once a provider
//! answers, the memory is released.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Reason},
    ports::Body,
};

use crate::guard::Progress;

/// What is remembered of every request. Most calls are smaller; this keeps a node with ten
/// thousand uploads in flight below a gigabyte.
const REPLAY_BYTES_OWN: usize = 64 * 1024;

/// What is remembered of one request at most: the largest message that gRPC programs take unless
/// told otherwise.
const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the requests of one node that are larger than [`REPLAY_BYTES_OWN`] have together.
const SPARE_BYTES: usize = 64 * 1024 * 1024;

/// Chunks remembered of one request, so that a stream of one-byte chunks costs no more than one
/// of large ones.
const REPLAY_CHUNKS_MAX: usize = 256;

/// Memory for requests that need more than every request has. Shared by the calls of one node.
pub(crate) struct Spare(AtomicUsize);

impl Spare {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(SPARE_BYTES)))
    }

    /// Takes `bytes`; false where there are no longer as many.
    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One caller's request, from which attempts are made.
#[derive(Clone)]
pub(crate) struct Replay {
    source: Arc<Mutex<Source>>,
    progress: Arc<Progress>,
}

struct Source {
    body: Body,
    /// What has been taken from `body`, while it is remembered.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    spare: Arc<Spare>,
    /// Of the spare memory.
    taken: usize,
    /// Past the bound, broken off, or answered: nothing is kept and no attempt can be made.
    released: bool,
    ended: bool,
    /// The attempt that may take from `body`; an older one that still lives gets an error.
    attempt: u32,
}

impl Replay {
    pub(crate) fn new(body: Body, progress: Arc<Progress>, spare: &Arc<Spare>) -> Self {
        let source = Source {
            ended: body.is_end_stream(),
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            spare: Arc::clone(spare),
            taken: 0,
            released: false,
            attempt: 0,
        };
        Self { source: Arc::new(Mutex::new(source)), progress }
    }

    /// The body of the next attempt, from its first byte; `None` when too much was already sent
    /// to say it again. Ends the attempt before.
    pub(crate) fn attempt(&self) -> Option<Body> {
        let mut source = self.source.lock();
        if source.released {
            return None;
        }
        source.attempt += 1;
        Some(Body::new(Attempt {
            source: Arc::clone(&self.source),
            progress: Arc::clone(&self.progress),
            number: source.attempt,
            next: 0,
        }))
    }

    /// The same for an attempt beside the one that runs; `None` unless all of the request is
    /// remembered.
    pub(crate) fn second(&self) -> Option<Body> {
        if !self.is_whole() {
            return None;
        }
        Some(Body::new(Attempt {
            source: Arc::clone(&self.source),
            progress: Arc::clone(&self.progress),
            number: self.source.lock().attempt,
            next: 0,
        }))
    }

    /// All of the request has been read and is remembered, so that it can be sent twice at once.
    pub(crate) fn is_whole(&self) -> bool {
        let source = self.source.lock();
        source.ended && !source.released
    }

    /// The request can be sent again from its first byte.
    pub(crate) fn can_repeat(&self) -> bool {
        !self.source.lock().released
    }

    /// Somebody answers: there will be no further attempt, and no other is under way.
    pub(crate) fn settle(&self) {
        self.source.lock().released = true;
    }
}

/// One sending of the request.
struct Attempt {
    source: Arc<Mutex<Source>>,
    progress: Arc<Progress>,
    number: u32,
    /// The next remembered chunk to say again.
    next: usize,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let mut source = this.source.lock();
        if source.attempt != this.number {
            let message = "this attempt was given up for another one";
            return Poll::Ready(Some(Err(Failure::unknown(Reason::Cancelled, message))));
        }
        if let Some(chunk) = source.kept.get(this.next).cloned() {
            this.next += 1;
            if source.released && this.next == source.kept.len() {
                source.forget();
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if source.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut source.body).poll_frame(cx);
        match &polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                this.progress.touch();
                if let Some(data) = frame.data_ref() {
                    this.next += usize::from(source.keep(data));
                }
            }
            Poll::Ready(Some(Err(_))) => {
                // What is remembered is not all of it: it must not pass for a whole request.
                source.ended = true;
                source.released = true;
            }
            Poll::Ready(None) => source.ended = true,
        }
        if source.body.is_end_stream() {
            source.ended = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        source.ended && source.attempt == self.number && self.next >= source.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Source {
    /// Remembers `data` where that is still of use; true when it did.
    fn keep(&mut self, data: &Bytes) -> bool {
        if self.released || data.is_empty() {
            return false;
        }
        let bytes = self.kept_bytes.saturating_add(data.len());
        let more = bytes.saturating_sub(REPLAY_BYTES_OWN).saturating_sub(self.taken);
        let fits = bytes <= REPLAY_BYTES_MAX && self.kept.len() < REPLAY_CHUNKS_MAX;
        if !fits || !self.spare.take(more) {
            // The only attempt has said all of `kept` already, or it would not be here.
            self.released = true;
            self.forget();
            return false;
        }
        self.taken += more;
        self.kept_bytes = bytes;
        self.kept.push(data.clone());
        true
    }

    fn forget(&mut self) {
        self.kept = Vec::new();
        self.spare.give_back(std::mem::take(&mut self.taken));
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests;
