//! The thread on which supervisors run: starts, health, samples and logs of every plugin.
//!
//! Not where calls are carried. A thousand plugins that crash, flood and are started again keep a
//! thread busy; a call to another plugin does not wait behind them.

use std::{io, time::Duration};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// How long supervisors that nobody waits for may take to end what they started.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Supervision {
    /// There until the end.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Supervision {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("supervision")
            .enable_all()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread once `supervisors` have ended. Does not wait for it: whoever drops a host
    /// may be on a thread that must not.
    pub(crate) fn end(&mut self, supervisors: TaskTracker) {
        let Some(runtime) = self.runtime.take() else { return };
        supervisors.close();
        std::thread::spawn(move || {
            let _ = runtime.block_on(timeout(PATIENCE, supervisors.wait()));
            runtime.shutdown_background();
        });
    }
}
