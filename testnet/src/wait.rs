//! Waiting for a fact: asks again until it is so, and says what was seen when it never was.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long between two looks. Facts here come from other processes, which announce some of them
/// only by being asked; 20 ms is far below any deadline that is waited for.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Calls `look` until it gives a value and returns that value with the time it took.
///
/// `look` answers `Err(evidence)` while the fact is not so. After `within` the last evidence
/// becomes the error, with `what` as the sentence that did not come true. One look that hangs is
/// cut off at the deadline too.
pub async fn until<T, Look, Answer>(what: &str, within: Duration, mut look: Look) -> Result<T>
where
    Look: FnMut() -> Answer,
    Answer: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    let mut evidence = "nothing was seen yet".to_owned();
    loop {
        let left = within.saturating_sub(start.elapsed());
        match tokio::time::timeout(left.max(LOOK_EVERY), look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => evidence = seen,
            Err(_) => evidence = format!("the last look did not return; before it: {evidence}"),
        }
        if start.elapsed() >= within {
            bail!("within {within:?} it did not come true that {what}; last seen: {evidence}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fact_that_never_comes_is_reported_with_its_evidence() {
        let error = until::<(), _, _>("pigs fly", Duration::from_millis(50), || async {
            Err("pig on the ground".to_owned())
        })
        .await
        .expect_err("pigs do not fly");
        assert!(error.to_string().contains("pigs fly"), "{error}");
        assert!(error.to_string().contains("pig on the ground"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_does_not_outlive_the_deadline() {
        let start = Instant::now();
        let hangs = || std::future::pending::<Result<(), String>>();
        assert!(until("it ends", Duration::from_millis(50), hangs).await.is_err());
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
