//! The thread on which supervisors run: starts, health, samples and logs of every plugin.
//!
//! Not where calls are carried. A thousand plugins that crash, flood and are started again keep a
//! thread busy; a call to another plugin does not wait behind them.

use std::{io, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::timeout,
};
use tokio_util::task::TaskTracker;

/// How long supervisors that nobody waits for may take to end what they started.
const PATIENCE: Duration = Duration::from_secs(30);

/// A third of the weight of a thread that carries calls. Source: sched(7), *The nice value*.
const NICE: i32 = 5;

pub(crate) struct Supervision {
    handle: Handle,
    ends: Option<oneshot::Sender<TaskTracker>>,
}

impl Supervision {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .thread_name("supervision")
            .on_thread_start(after_calls)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel::<TaskTracker>();
        thread::Builder::new().name("supervision".into()).spawn(move || {
            after_calls();
            runtime.block_on(async {
                if let Ok(supervisors) = ended.await {
                    let _ = timeout(PATIENCE, supervisors.wait()).await;
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, ends: Some(ends) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread once `supervisors` have ended. Does not wait for it: whoever drops a host
    /// may be on a thread that must not.
    pub(crate) fn end(&mut self, supervisors: TaskTracker) {
        supervisors.close();
        if let Some(ends) = self.ends.take() {
            let _ = ends.send(supervisors);
        }
    }
}

/// Has this thread come after those that carry calls where cores are scarce. Without it nothing is
/// wrong, only later.
fn after_calls() {
    let _ = rustix::process::setpriority_process(None, NICE);
}
