//! What must be kept in memory because it is needed whole, under one bound for all of it.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use protocol::failure::{Failure, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::No;
use crate::bounds::{HELD_BYTES_MAX, HELD_UNIT_BYTES};

/// How long others that hold too much may need to be done.
const PAUSE: Duration = Duration::from_secs(1);

/// What all calls together may hold.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HELD_BYTES_MAX / HELD_UNIT_BYTES)))
    }
}

/// A part of the budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Nothing of `budget` yet.
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, held: None }
    }

    /// Has enough for `bytes`; refused where that is too much for all together.
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), No> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(HELD_UNIT_BYTES).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget.0).try_acquire_many_owned(more);
        let permit = permit.map_err(|_| No::Failed(busy()))?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }

    /// What it had, apart from what it will have.
    pub(super) fn split(&mut self) -> Self {
        Self { budget: self.budget.clone(), held: self.held.take() }
    }
}

/// Bytes that gather until they are whole.
#[derive(Debug)]
pub(super) struct Hold {
    bytes: BytesMut,
    bytes_max: usize,
    share: Share,
}

impl Hold {
    /// Takes at most `bytes_max`.
    pub(super) fn new(budget: Budget, bytes_max: usize) -> Self {
        Self { bytes: BytesMut::new(), bytes_max, share: Share::new(budget) }
    }

    /// Adds `chunk`; refused where it is too much for this one, or for all.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), No> {
        let length = self.bytes.len() + chunk.len();
        if length > self.bytes_max {
            let max = self.bytes_max;
            return Err(No::too_large(format!("a message is larger than the {max} bytes taken")));
        }
        self.share.cover(length)?;
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// What has come.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Drops the first `count` bytes.
    pub(super) fn skip(&mut self, count: usize) {
        let _ = self.bytes.split_to(count.min(self.bytes.len()));
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
            drop(self.share.split());
        }
    }

    /// All of it.
    pub(super) fn take(self) -> Bytes {
        self.bytes.freeze()
    }
}

fn busy() -> Failure {
    let message = "too many large messages are being translated here; try again later";
    Failure::not_started(Reason::Busy, message).retry_after(PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_hold_no_more_than_the_budget() {
        let budget = Budget::default();
        let chunk = vec![0; HELD_BYTES_MAX / 4];
        let mut holds: Vec<Hold> =
            (0..5).map(|_| Hold::new(budget.clone(), HELD_BYTES_MAX)).collect();
        let taken = holds.iter_mut().filter_map(|hold| hold.push(&chunk).ok()).count();
        assert_eq!(taken, 4);
        holds[0].skip(chunk.len());
        holds[4].push(&chunk).expect("there is room again");
        assert!(matches!(holds[0].push(&[1]), Err(No::Failed(_))));
        drop(holds);
        assert!(Hold::new(budget, 3).push(&[1, 2, 3, 4]).is_err(), "more than its own bound");
    }
}
