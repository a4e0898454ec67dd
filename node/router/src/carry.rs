//! One call, from its arrival until somebody answers.
//!
//! Performs what [`Course`] decides: a call is offered to one provider after the other until one
//! of them answers, or until what may have begun must not be repeated.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::HeaderMap;
use protocol::{
    failure::{Detail, Failure, Ran, Reason, TRIED_MAX, Tried},
    ports::{Body, Call, CallHead, Locality, Reply},
    service::ServiceName,
    wishes::{Priority, Wishes},
};

use crate::{
    attempt::Answered,
    book::Book,
    cache::{self, Recalled},
    chance::digest,
    condition::Ending,
    course::{Course, Facts, Next, Stop},
    guard::{Answer, Progress, Watchdog},
    meters::Meter,
    pick::{Provider, Target},
    policy::{Method, Policy},
    replay::Replay,
    router::Shared,
    select::Requirement,
    trace::{EXPLAIN, Event, LEGS, Trace},
};

/// Who may answer, beside what the caller says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Anyone: the call comes from a program here.
    Mesh,
    /// Only plugins of this node: the call comes from another peer.
    ThisNode,
}

/// A call between its arrival and its answer.
pub(crate) struct Carriage {
    pub(crate) shared: Arc<Shared>,
    pub(crate) service: ServiceName,
    pub(crate) head: CallHead,
    pub(crate) scope: Scope,
    pub(crate) locality: Locality,
    pub(crate) requirement: Requirement,
    pub(crate) priority: Priority,
    /// Stands for the call's session.
    pub(crate) key: Option<u64>,
    pub(crate) policy: Arc<Policy>,
    /// The service's, once somebody is known to offer it.
    pub(crate) book: Option<Arc<Book>>,
    /// Which of the service's calls it is, once that is counted.
    pub(crate) turn: OnceLock<u64>,
    pub(crate) course: Course,
    pub(crate) replay: Replay,
    pub(crate) progress: Arc<Progress>,
    pub(crate) watchdog: Watchdog,
    /// Offered to in this round, without success.
    pub(crate) tried: Vec<Target>,
    /// The same, over all rounds, for whoever reads the failure.
    pub(crate) told: Vec<Tried>,
    /// Whether the method may run twice, once that was asked.
    pub(crate) idempotent: Option<bool>,
    pub(crate) trace: Option<Arc<Trace>>,
}

impl Carriage {
    /// Carries `call` to whoever answers it.
    pub(crate) async fn carry(
        shared: Arc<Shared>,
        call: Call,
        scope: Scope,
        trace: Option<Arc<Trace>>,
    ) -> Result<Reply, Failure> {
        let began = Instant::now();
        let (mut call, mut key) = (call, None);
        if scope == Scope::Mesh && shared.cache.may_hold(&call.head.path) {
            // Boxed, so that calls which nothing is kept of do not carry the room for it.
            match Box::pin(cache::recall(&shared, call, began, trace.as_deref())).await? {
                Recalled::Answer(reply) => return Ok(reply),
                Recalled::Call(asked, to_keep) => (call, key) = (*asked, to_keep),
            }
        }
        let mut carriage = Self::new(shared, call, scope, trace)?;
        let offered = carriage.first_provider().await;
        let (service, caller) = (&carriage.service, &carriage.head.caller);
        let mut meter = carriage.shared.meters.begin(service, caller, offered.is_ok(), began);
        let outcome = match offered {
            Ok(provider) => carriage.attempt_all(provider, &mut meter).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(answered) if scope == Scope::Mesh && cache::speaks(&answered.reply.metadata) => {
                let answered = Box::pin(carriage.keep(answered, key)).await;
                Ok(carriage.answer(answered, meter))
            }
            Ok(answered) => Ok(carriage.answer(answered, meter)),
            Err(failure) => {
                meter.failed(&failure);
                Err(carriage.tell(failure))
            }
        }
    }

    fn new(
        shared: Arc<Shared>,
        call: Call,
        scope: Scope,
        trace: Option<Arc<Trace>>,
    ) -> Result<Self, Failure> {
        let progress = Progress::new();
        let head = call.head;
        let watchdog = Watchdog::new(head.deadline, Arc::clone(&progress), shared.settings.idle);
        let service = head.path.service();
        let policy = Arc::clone(shared.policies.of(&service));
        let unfit = |error: protocol::wishes::UnfitWish| {
            Failure::failed(Reason::Malformed, error.to_string())
        };
        let wishes = Wishes::read(&head.metadata).map_err(unfit)?;
        let locality = match (scope, head.locality) {
            (Scope::ThisNode, _) => Locality::Local,
            // A caller who does not mind leaves it to the service's policy.
            (Scope::Mesh, Locality::PreferLocal) => policy.locality,
            (Scope::Mesh, asked) => asked,
        };
        let asked = || scope == Scope::ThisNode && head.metadata.contains_key(&EXPLAIN);
        let trace = trace.or_else(|| asked().then(Trace::new));
        Ok(Self {
            service,
            scope,
            locality,
            requirement: Requirement { labels: wishes.labels, version: wishes.version },
            priority: wishes.priority.unwrap_or(policy.priority),
            key: key_of(&policy, &head.metadata),
            policy,
            book: None,
            turn: OnceLock::new(),
            course: Course::default(),
            replay: Replay::new(call.body, Arc::clone(&progress), &shared.spare),
            progress,
            watchdog,
            tried: Vec::new(),
            told: Vec::new(),
            idempotent: None,
            trace,
            head,
            shared,
        })
    }

    /// Offers the call to `provider`, and to others while the course says so.
    async fn attempt_all(
        &mut self,
        mut provider: Provider,
        meter: &mut Meter,
    ) -> Result<Answered, Failure> {
        let book = Arc::clone(&provider.book);
        self.book = Some(Arc::clone(&book));
        loop {
            let Some(body) = self.replay.attempt() else {
                return Err(too_much_sent(Failure::not_started(Reason::Unreachable, "")));
            };
            let failure = match self.attempt(provider, body, meter).await {
                Ok(answered) => {
                    self.replay.settle();
                    return Ok(answered);
                }
                Err(failure) => failure,
            };
            let facts = self.facts(&failure).await;
            let retries = &self.policy.retries;
            let next = self.course.next(&failure, &facts, retries, &mut book.budget.lock());
            tracing::debug!(service = %self.service, ?next, %failure, "an attempt failed");
            let at = match next {
                Next::Elsewhere { at } => at,
                Next::Again { at } => {
                    self.tried.clear();
                    at
                }
                Next::Over(stop) => return Err(self.over(failure, stop)),
            };
            self.wait(at.saturating_sub(facts.now)).await?;
            provider = match self.next_provider() {
                Some(next) => next,
                // It went away during the wait.
                None => return Err(self.over(failure, Stop::NobodyElse)),
            };
        }
    }

    /// What the course has to know after `failure`.
    async fn facts(&mut self, failure: &Failure) -> Facts {
        let idempotent = Course::depends_on_idempotency(failure) && self.may_run_twice().await;
        Facts {
            now: self.shared.now(),
            deadline: self.deadline(),
            others: self.has_others(),
            whole: self.replay.can_repeat(),
            idempotent,
            chance: rand::random(),
        }
    }

    /// The deadline on the router's clock.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.head.deadline.map(|deadline| self.shared.at(deadline))
    }

    /// Whether the method may run twice: by configuration, or because its descriptors say so.
    pub(crate) async fn may_run_twice(&mut self) -> bool {
        if let Some(known) = self.idempotent {
            return known;
        }
        let path = &self.head.path;
        let mut known = self.policy.idempotent.contains(path.method());
        if !known {
            let due = self.watchdog.within(self.shared.settings.describe);
            let asked = self.shared.ports.declared.of(path.clone(), due);
            let declared = tokio::time::timeout_at(due.into(), asked).await.unwrap_or_default();
            known = declared.may_run_twice;
        }
        self.idempotent = Some(known);
        known
    }

    async fn wait(&mut self, micros: u64) -> Result<(), Failure> {
        if micros == 0 {
            return Ok(());
        }
        let time = Duration::from_micros(micros);
        self.note(|| Event::Waits(time));
        self.watchdog.watch(Ran::NotStarted, tokio::time::sleep(time)).await?;
        // Timers ring late.
        if self.watchdog.is_over() { Err(self.watchdog.failure(Ran::NotStarted)) } else { Ok(()) }
    }

    /// The answer under the call's bounds.
    fn answer(self, answered: Answered, mut meter: Meter) -> Reply {
        let Answered { mut reply, provider, mut in_flight } = answered;
        if is_trailers_only(&reply.metadata) {
            let code = meter.answered(&reply.metadata);
            in_flight.ended(Ending::of_code(code), self.shared.now());
        }
        if let Some(legs) = self.trace.as_ref().and_then(|trace| trace.legs())
            && self.scope == Scope::ThisNode
        {
            reply.metadata.insert(LEGS, legs);
        }
        self.progress.touch();
        let body = Answer::new(reply.body, self.watchdog, meter, in_flight, provider, self.shared);
        Reply { metadata: reply.metadata, body: Body::new(body) }
    }

    /// The failure as the caller is told it, and why nothing further was tried.
    fn over(&self, mut failure: Failure, stop: Stop) -> Failure {
        let attempts = self.course.attempts();
        match stop {
            Stop::TooMuchSent => failure = too_much_sent(failure),
            Stop::NoTime if failure.ran == Ran::NotStarted && self.watchdog.is_over() => {
                failure = Failure { detail: failure.detail, ..self.watchdog.failure(failure.ran) };
            }
            Stop::Budget => {
                failure.message =
                    format!("{}; not tried again, because too many calls fail", failure.message);
            }
            Stop::ForGood | Stop::MayHaveRun | Stop::NoTime | Stop::Attempts | Stop::NobodyElse => {
            }
        }
        if attempts > 1 {
            failure.message = format!("{attempts} attempts, the last: {}", failure.message);
        }
        self.note(|| Event::Stopped(why(stop)));
        failure
    }

    /// Adds who was tried before.
    fn tell(&self, mut failure: Failure) -> Failure {
        if self.told.len() > 1 {
            let before = &self.told[..self.told.len() - 1];
            let Detail { tried, .. } = failure.detail_mut();
            tried.extend(before.iter().take(TRIED_MAX).cloned());
        }
        failure
    }

    /// Writes a step down where somebody asked for it.
    pub(crate) fn note(&self, what: impl FnOnce() -> Event) {
        if let Some(trace) = &self.trace {
            trace.add(what());
        }
    }
}

/// The call's session, where its service's calls are told apart by one.
fn key_of(policy: &Policy, metadata: &HeaderMap) -> Option<u64> {
    if policy.method != Method::Hash {
        return None;
    }
    metadata.get(&policy.key).map(|value| digest([value.as_bytes()]))
}

fn is_trailers_only(metadata: &HeaderMap) -> bool {
    metadata.contains_key("grpc-status")
}

fn why(stop: Stop) -> &'static str {
    match stop {
        Stop::ForGood => "it would be refused everywhere",
        Stop::MayHaveRun => "it may have run, and nothing says that it may run twice",
        Stop::NoTime => "the caller's deadline",
        Stop::TooMuchSent => "too much of the request was sent to say it again",
        Stop::Attempts => "as many as the service's policy allows",
        Stop::Budget => "the service's retry budget is used up",
        Stop::NobodyElse => "nobody is left who could answer",
    }
}

fn too_much_sent(mut failure: Failure) -> Failure {
    failure.message = format!(
        "{}; not tried elsewhere, because more of the request had been sent than is kept to say it \
         again",
        failure.message
    );
    failure
}
