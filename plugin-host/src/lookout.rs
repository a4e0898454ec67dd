//! Looks at what plugins do, on threads that carry no calls: one look after the other, however many
//! plugins are due at the same beat.
//!
//! A look at a process is a dozen files of `/proc`, and a hundred plugins are due at once. Their
//! looks hold up each other, and nobody's call.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Shared by all supervisors of a host. Clones take turns with each other.
#[derive(Clone)]
pub(crate) struct Lookout {
    processes: Arc<Semaphore>,
    /// Apart, because a walk through ten thousand files takes as long as a hundred looks.
    directories: Arc<Semaphore>,
}

impl Default for Lookout {
    fn default() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { processes: one(), directories: one() }
    }
}

impl Lookout {
    /// A look at processes. `None` when the node is ending.
    pub(crate) async fn at_processes<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        in_turn(&self.processes, look).await
    }

    /// A look at directories. `None` when the node is ending.
    pub(crate) async fn at_directories<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        in_turn(&self.directories, look).await
    }
}

async fn in_turn<T: Send + 'static>(
    turns: &Semaphore,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let _turn = turns.acquire().await.ok()?;
    tokio::task::spawn_blocking(look).await.ok()
}
