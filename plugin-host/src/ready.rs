//! Is it ready, and does it stay healthy? Asked by `grpc.health.v1`; a program without that
//! service is ready when it accepts a connection and answers that it has none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::sleep};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::channel::{Asking, Channel};

/// The shortest and the longest wait between questions to a program that is starting. In between
/// it is a fixed part of the time that has passed: a program in a compiled language is ready within
/// milliseconds, and nobody notices a tenth of a second in one that takes seconds.
const SHORTEST_WAIT: Duration = Duration::from_micros(200);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
const PART_OF_ELAPSED: u32 = 8;

/// Below this the runtime's timer, which counts milliseconds, is too coarse.
const FINE: Duration = Duration::from_millis(2);

/// Waits that may be finer at once: each is a thread, and a thousand plugins may start at once.
static FINE_WAITS: Semaphore = Semaphore::const_new(4);

/// How long one question may take while starting. A listener bound by the host accepts before
/// its program reads.
const QUESTION_PATIENCE: Duration = Duration::from_secs(2);

/// What a plugin says of its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// SERVING.
    Serving,
    /// It has no health service, and answered.
    NoHealthService,
    /// Anything else, in words.
    Not(String),
}

/// Asks once.
pub(crate) async fn probe(channel: &Arc<Channel>, service: &str, patience: Duration) -> Health {
    let mut client = HealthClient::new(Asking::until(channel, Instant::now() + patience));
    let request = HealthCheckRequest { service: service.into() };
    match client.check(request).await {
        Ok(response) => match response.into_inner().status() {
            ServingStatus::Serving => Health::Serving,
            other => Health::Not(format!("its health service says {}", other.as_str_name())),
        },
        Err(status) if status.code() == tonic::Code::Unimplemented => Health::NoHealthService,
        Err(status) if status.code() == tonic::Code::NotFound => {
            Health::Not(format!("its health service does not know `{service}`"))
        }
        Err(status) => Health::Not(status.message().to_owned()),
    }
}

/// Asks until the answer is one to go on with. Without a service to ask for, accepting a
/// connection is enough. The caller brings the deadline; `last` always holds the latest reason
/// for waiting.
pub(crate) async fn wait(
    channel: &Arc<Channel>,
    service: Option<&str>,
    last: &mut String,
) -> Health {
    let begun = Instant::now();
    loop {
        let health = match service {
            Some(service) => probe(channel, service, QUESTION_PATIENCE).await,
            None => match channel.accepts().await {
                Ok(()) => Health::NoHealthService,
                Err(failure) => Health::Not(failure.message),
            },
        };
        match health {
            Health::Not(reason) => *last = reason,
            ready => return ready,
        }
        pause(wait_after(begun.elapsed())).await;
    }
}

/// How long to wait for the next question when so much time has passed.
fn wait_after(elapsed: Duration) -> Duration {
    (elapsed / PART_OF_ELAPSED).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

async fn pause(wait: Duration) {
    let fine = FINE_WAITS.try_acquire();
    if wait >= FINE || fine.is_err() {
        return sleep(wait).await;
    }
    // A thread that sleeps is as exact as the kernel. It is owned by the runtime, which waits for
    // it at its end, two milliseconds at most.
    let slept = tokio::task::spawn_blocking(move || std::thread::sleep(wait)).await;
    // A runtime that is ending runs no more threads; then nobody waits for readiness either.
    drop(slept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_the_time_that_has_passed_and_are_bounded() {
        assert_eq!(wait_after(Duration::ZERO), SHORTEST_WAIT);
        assert_eq!(wait_after(Duration::from_millis(8)), Duration::from_millis(1));
        assert_eq!(wait_after(Duration::from_secs(60)), LONGEST_WAIT);
    }
}
