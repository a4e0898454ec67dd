//! Levels `none` and `thread`: code that the node itself contains, served within it.
//!
//! Neither is a boundary: such code can do whatever the node can. What they give is what every
//! plugin has: a name, calls through the same channel, a panic that fails one call and ends one
//! run,
//! and a restart policy.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use protocol::manifest::Isolation;
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::inside::{Answer, Inside};
use crate::process::StartFailure;

/// Makes the services of one run; an error is the sentence that refuses it.
pub type MakeRoutes = dyn Fn() -> BoxFuture<'static, Result<Routes, String>> + Send + Sync;

/// Code of the node that runs as a plugin without a process.
#[derive(Clone)]
pub struct Code {
    on_thread: bool,
    make: Arc<MakeRoutes>,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Code").field("level", &self.level()).finish_non_exhaustive()
    }
}

impl Code {
    /// Level `none`: on the node's own threads.
    pub fn inline(make: Arc<MakeRoutes>) -> Self {
        Self { on_thread: false, make }
    }

    /// Level `thread`: on a thread and a runtime of its own.
    pub fn on_thread(make: Arc<MakeRoutes>) -> Self {
        Self { on_thread: true, make }
    }

    pub(crate) fn level(&self) -> Isolation {
        if self.on_thread { Isolation::Thread } else { Isolation::None }
    }

    pub(super) async fn start(&self, name: &str) -> Result<Inside, StartFailure> {
        let routes = (self.make)().await;
        let routes = routes.map_err(|reason| StartFailure::new("program", reason))?;
        let answer = Arc::new(Served(Mutex::new(routes)));
        if self.on_thread {
            let layers = vec!["own-thread".into(), "panics-contained".into()];
            return Inside::begin_thread(name, layers, answer)
                .map_err(|error| StartFailure::new("program", error));
        }
        Ok(Inside::begin(vec!["panics-contained".into()], |_| answer))
    }
}

/// Services that were made; each call works with its own copy.
struct Served(Mutex<Routes>);

impl Answer for Served {
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let mut routes = self.0.lock().clone();
        Box::pin(async move {
            match routes.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }
}
