//! What supervisors do in turn, however many plugins are due at the same beat: work that blocks, on
//! threads that carry no calls, and the host's own questions.
//!
//! A look at a process is a dozen files of `/proc`, and a hundred plugins are due at once. Their
//! looks hold up each other, and nobody's call. So do questions: a hundred at once are a hundred
//! calls that others wait behind.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

/// Questions that are begun at once.
const QUESTIONS: usize = 2;

/// How long a question keeps the next one from being begun: a plugin that is well has answered by
/// then, and one that is not holds up nobody.
const QUESTION_TURN: Duration = Duration::from_millis(5);

/// Work that blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A look at what processes use.
    LookAtProcesses,
    /// A walk through a plugin's directories: ten thousand files take as long as a hundred looks.
    WalkDirectories,
    /// Another weight of a run.
    Weigh,
    /// The end of a run's control groups, which lasts until its processes are gone.
    EndGroups,
}

impl Work {
    const ALL: [Self; 4] =
        [Self::LookAtProcesses, Self::WalkDirectories, Self::Weigh, Self::EndGroups];

    /// How much of it is done at once, each on a thread.
    fn at_once(self) -> usize {
        match self {
            Self::LookAtProcesses | Self::WalkDirectories | Self::Weigh => 1,
            Self::EndGroups => 16,
        }
    }
}

/// Shared by all supervisors of a host. Clones take turns with each other.
#[derive(Clone)]
pub(crate) struct Turns {
    works: Arc<[Semaphore; Work::ALL.len()]>,
    questions: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let works = Work::ALL.map(|work| Semaphore::new(work.at_once()));
        Self { works: Arc::new(works), questions: Arc::new(Semaphore::new(QUESTIONS)) }
    }
}

impl Turns {
    /// Does `doing` once it is its turn among work of its kind. `None` when the node is ending.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        kind: Work,
        doing: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _turn = self.works[kind as usize].acquire().await.ok()?;
        tokio::task::spawn_blocking(doing).await.ok()
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
