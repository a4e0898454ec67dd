//! An answer on its way to its caller, of which a copy is kept if it ends well.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use protocol::{failure::Failure, ports::Body};

use super::{Kept, question::Key};
use crate::router::Shared;

/// The largest answer that is kept. Larger ones pass.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

pub(super) struct Keeping {
    body: Body,
    shared: Arc<Shared>,
    /// What there is so far; `None` once it is kept, or cannot be.
    copy: Option<Copy>,
}

struct Copy {
    key: Key,
    metadata: HeaderMap,
    /// A copy indeed: chunks may hold far larger buffers of their connections alive.
    message: Vec<u8>,
    /// In which it holds, on the router's clock.
    holds: Range<u64>,
}

impl Keeping {
    pub(super) fn new(
        body: Body,
        shared: Arc<Shared>,
        key: Key,
        metadata: &HeaderMap,
        holds: Range<u64>,
    ) -> Self {
        let metadata = metadata.clone();
        Self { body, shared, copy: Some(Copy { key, metadata, message: Vec::new(), holds }) }
    }

    fn see(&mut self, frame: &Frame<Bytes>) {
        let Some(mut copy) = self.copy.take() else { return };
        if let Some(data) = frame.data_ref()
            && copy.message.len() + data.len() <= ANSWER_BYTES_MAX
        {
            copy.message.extend_from_slice(data);
            self.copy = Some(copy);
        } else if let Some(trailers) = frame.trailers_ref()
            && trailers.get("grpc-status").is_some_and(|status| status == "0")
        {
            let Copy { key, metadata, message, holds } = copy;
            // Without the room it grew into: what is kept is counted by its length.
            let message = Bytes::from(message.into_boxed_slice());
            let trailers = trailers.clone();
            let kept = Kept { metadata, message, trailers, since: holds.start, until: holds.end };
            self.shared.cache.answers.insert(key, Arc::new(kept));
        }
    }
}

impl http_body::Body for Keeping {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let polled = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &polled {
            this.see(frame);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
