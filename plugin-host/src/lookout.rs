//! Looks at what plugins do, on threads that carry no calls: one look after the other, however many
//! plugins are due at the same beat.
//!
//! A look at a process is a dozen files of `/proc`, and a hundred plugins are due at once. Their
//! looks hold up each other, and nobody's call. So do the host's own questions: they take turns,
//! because a hundred at once are a hundred calls that others wait behind.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

/// Questions that are begun at once.
const QUESTIONS: usize = 2;

/// Control groups that are emptied at once: each keeps a thread while its processes go.
const ENDS: usize = 16;

/// How long a question keeps the next one from being begun: a plugin that is well has answered by
/// then, and one that is not holds up nobody.
const QUESTION_TURN: Duration = Duration::from_millis(5);

/// Shared by all supervisors of a host. Clones take turns with each other.
#[derive(Clone)]
pub(crate) struct Lookout {
    processes: Arc<Semaphore>,
    /// Apart, because a walk through ten thousand files takes as long as a hundred looks.
    directories: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    ends: Arc<Semaphore>,
}

impl Default for Lookout {
    fn default() -> Self {
        let turns = |count| Arc::new(Semaphore::new(count));
        Self {
            processes: turns(1),
            directories: turns(1),
            questions: turns(QUESTIONS),
            ends: turns(ENDS),
        }
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

    /// The end of a run's control groups. `None` when the node is ending.
    pub(crate) async fn at_end<T: Send + 'static>(
        &self,
        end: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        in_turn(&self.ends, end).await
    }

    /// A question to a plugin, once it is its turn.
    pub(crate) async fn question<T>(&self, question: impl Future<Output = T>) -> T {
        let turn = self.questions.acquire().await;
        let mut question = pin!(question);
        if let Ok(answer) = timeout(QUESTION_TURN, &mut question).await {
            return answer;
        }
        drop(turn);
        question.await
    }
}

async fn in_turn<T: Send + 'static>(
    turns: &Semaphore,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let _turn = turns.acquire().await.ok()?;
    tokio::task::spawn_blocking(look).await.ok()
}
