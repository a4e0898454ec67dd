//! What becomes of a connection that leaves HTTP: the task that served it serves what comes next,
//! under the same bounds, and ends with it. Nothing is spawned for it.

use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::meters::Ended;

/// What is served next, and how that ended.
type Next = BoxFuture<'static, Option<Ended>>;

/// One connection's. Goes with each of its requests, so that an answer can use it.
#[derive(Clone, Default)]
pub(crate) struct Takeover(Arc<Mutex<Option<Next>>>);

impl Takeover {
    /// Serves `next` when the connection is done with HTTP.
    pub(crate) fn put(&self, next: impl Future<Output = Option<Ended>> + Send + 'static) {
        *self.0.lock() = Some(Box::pin(next));
    }

    /// What is to be served next, if anything.
    pub(crate) fn take(&self) -> Option<Next> {
        self.0.lock().take()
    }
}
