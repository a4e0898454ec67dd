//! One call, from its arrival until somebody answers: resolve, attempt, fail over.
//!
//! A call is offered to one provider after the other until one of them may have begun it. What
//! may have begun is never repeated.

use std::{sync::Arc, time::Instant};

use http::HeaderMap;
use protocol::{
    failure::{Failure, Ran, Reason},
    id::{InstanceId, PeerId},
    ports::{Body, Call, CallHead, Invoke, Locality, Reply},
    service::ServiceName,
};

use crate::{
    guard::{Answer, Progress, Watchdog},
    meters::Meter,
    replay::{REPLAY_BYTES_MAX, Replay},
    router::Shared,
    select::{Requirement, Want, select},
    table::InFlight,
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
    shared: Arc<Shared>,
    service: ServiceName,
    head: CallHead,
    scope: Scope,
    replay: Replay,
    progress: Arc<Progress>,
    watchdog: Watchdog,
    /// Offered to, without success.
    tried: Vec<Target>,
    /// Reached once, and its connection turned out to be dead: worth a fresh one when nobody
    /// else is left.
    stale: Option<Provider>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Plugin(InstanceId),
    Peer(PeerId),
}

struct Provider {
    target: Target,
    in_flight: InFlight,
    /// Others that could be tried after it.
    others: bool,
}

/// What came of one attempt.
enum Attempt {
    Answered(Reply, InFlight),
    /// Nothing of it reached a plugin.
    NotStarted(Failure),
    /// It may have run, or was refused for good.
    Over(Failure),
}

impl Carriage {
    /// Carries `call` to whoever answers it.
    pub(crate) async fn carry(
        shared: Arc<Shared>,
        call: Call,
        scope: Scope,
    ) -> Result<Reply, Failure> {
        let began = Instant::now();
        let progress = Progress::new();
        let watchdog =
            Watchdog::new(call.head.deadline, Arc::clone(&progress), shared.settings.idle);
        let mut head = call.head;
        if scope == Scope::ThisNode {
            head.locality = Locality::Local;
        }
        let mut carriage = Self {
            service: head.path.service(),
            replay: Replay::new(call.body, Arc::clone(&progress)),
            tried: Vec::new(),
            stale: None,
            shared,
            head,
            scope,
            progress,
            watchdog,
        };
        let offered = carriage.first_provider().await;
        let (service, caller) = (&carriage.service, &carriage.head.caller);
        let mut meter = carriage.shared.meters.begin(service, caller, offered.is_ok(), began);
        let outcome = match offered {
            Ok(provider) => carriage.attempt_all(provider, &mut meter).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok((reply, target, in_flight)) => Ok(carriage.answer(reply, target, in_flight, meter)),
            Err(failure) => {
                meter.failed(&failure);
                Err(failure)
            }
        }
    }

    /// The best provider known, after a lookup where none is.
    async fn first_provider(&mut self) -> Result<Provider, Failure> {
        if self.watchdog.is_over() {
            return Err(self.watchdog.failure(Ran::NotStarted));
        }
        if let Some(provider) = self.next_provider() {
            return Ok(provider);
        }
        if self.scope == Scope::Mesh && self.head.locality != Locality::Local {
            let due = self.watchdog.within(self.shared.settings.lookup);
            if let Some(provider) = self.look_up(due).await {
                return Ok(provider);
            }
            if self.watchdog.is_over() {
                return Err(self.watchdog.failure(Ran::NotStarted));
            }
        }
        Err(self.not_available())
    }

    /// Asks the mesh, and waits until `due` for a table in which the service has a provider.
    async fn look_up(&self, due: Instant) -> Option<Provider> {
        let mut published = self.shared.published.subscribe();
        let mut lookup = self.shared.ports.lookup.lookup(self.service.clone(), due);
        let search = async {
            let mut asked = true;
            loop {
                if let Some(provider) = self.next_provider() {
                    return Some(provider);
                }
                tokio::select! {
                    changed = published.changed() => if changed.is_err() { return None },
                    found = &mut lookup, if asked => {
                        asked = false;
                        // Found: it is in a table that is about to be published, or already was.
                        if !found { return self.next_provider() }
                    }
                }
            }
        };
        tokio::time::timeout_at(due.into(), search).await.ok().flatten()
    }

    /// The best provider in the current table that was not tried.
    fn next_provider(&self) -> Option<Provider> {
        let table = self.shared.table.load();
        let rows = table.rows(&self.service);
        if rows.is_empty() {
            return None;
        }
        let seen = self.shared.seen(rows);
        let requirement = Requirement::default();
        let want = Want { locality: self.head.locality, requirement: &requirement };
        let selection = select(&seen, &want, rand::random());
        let mut targets = selection.choices.iter().map(|choice| {
            let row = &rows[choice.index];
            let target = if row.candidate.local {
                Target::Plugin(row.candidate.instance)
            } else {
                Target::Peer(row.candidate.peer)
            };
            (target, row)
        });
        let (target, row) = targets.by_ref().find(|(target, _)| !self.tried.contains(target))?;
        let others = targets.any(|(other, _)| other != target && !self.tried.contains(&other));
        Some(Provider { target, in_flight: row.gauge.enter(), others })
    }

    /// Offers the call to `provider`, and to others while nothing of it has run.
    async fn attempt_all(
        &mut self,
        mut provider: Provider,
        meter: &mut Meter,
    ) -> Result<(Reply, Target, InFlight), Failure> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let target = provider.target;
            let Some(body) = self.replay.attempt() else {
                return Err(too_much_sent(Failure::not_started(Reason::Unreachable, "")));
            };
            let failure = match self.attempt(provider, body).await {
                Attempt::Answered(reply, in_flight) => {
                    meter.attempted(None);
                    self.replay.settle();
                    return Ok((reply, target, in_flight));
                }
                Attempt::Over(failure) => {
                    meter.attempted(Some(failure.ran));
                    return Err(failure);
                }
                Attempt::NotStarted(failure) => failure,
            };
            meter.attempted(Some(Ran::NotStarted));
            tracing::debug!(service = %self.service, ?target, attempts, %failure, "not started");
            self.tried.push(target);
            if self.watchdog.is_over() {
                return Err(self.watchdog.failure(Ran::NotStarted));
            }
            if self.replay.overflowed() {
                return Err(too_much_sent(failure));
            }
            if attempts >= self.shared.settings.attempts_max {
                return Err(after(attempts, failure));
            }
            provider = match self.next_provider().or_else(|| self.stale.take()) {
                Some(next) => next,
                None => return Err(after(attempts, failure)),
            };
        }
    }

    /// Offers the call to one provider.
    async fn attempt(&mut self, provider: Provider, body: Body) -> Attempt {
        let Provider { target, in_flight, others } = provider;
        let invoke = match self.reach(target, others).await {
            Ok(invoke) => invoke,
            Err(failure) => {
                if failure.reason != Reason::Busy && !self.watchdog.is_over() {
                    in_flight.gauge().doubt(self.shared.doubt_until());
                }
                // Reaching sends nothing of the call, whatever it says.
                return Attempt::NotStarted(Failure { ran: Ran::NotStarted, ..failure });
            }
        };
        if self.watchdog.is_over() {
            return Attempt::NotStarted(self.watchdog.failure(Ran::NotStarted));
        }
        let call = Call { head: self.head.clone(), body };
        let answered = self.watchdog.watch(Ran::Unknown, invoke.invoke(call)).await;
        match answered.and_then(|answer| answer.map_err(|failure| located(failure, target))) {
            Ok(reply) => {
                in_flight.gauge().trust();
                Attempt::Answered(reply, in_flight)
            }
            Err(failure) => {
                if is_loss(failure.reason) {
                    in_flight.gauge().doubt(self.shared.doubt_until());
                }
                if failure.ran != Ran::NotStarted {
                    return Attempt::Over(failure);
                }
                if matches!(failure.reason, Reason::PeerLost | Reason::PluginLost) {
                    self.stale.get_or_insert(Provider { target, in_flight, others: false });
                }
                Attempt::NotStarted(failure)
            }
        }
    }

    async fn reach(&mut self, target: Target, others: bool) -> Result<Arc<dyn Invoke>, Failure> {
        let mut due = self.watchdog.within(self.shared.settings.reach);
        if let Some(deadline) = self.watchdog.deadline.filter(|_| others) {
            // Leave time for somebody else.
            let now = Instant::now();
            due = due.min(now + deadline.saturating_duration_since(now) / 2);
        }
        let ports = &self.shared.ports;
        let reaching = match target {
            Target::Plugin(instance) => ports.plugins.reach(instance, due),
            Target::Peer(peer) => ports.peers.reach(peer, due),
        };
        let reached = tokio::time::timeout_at(due.into(), reaching).await.unwrap_or_else(|_| {
            Err(Failure::not_started(Reason::Unreachable, "it could not be reached in time"))
        });
        reached.map_err(|failure| located(failure, target))
    }

    /// The answer under the call's bounds.
    fn answer(self, reply: Reply, target: Target, in_flight: InFlight, mut meter: Meter) -> Reply {
        if is_trailers_only(&reply.metadata) {
            meter.answered(&reply.metadata);
        }
        self.progress.touch();
        let peer = match target {
            Target::Plugin(_) => None,
            Target::Peer(peer) => Some(peer),
        };
        let shared = self.shared;
        let body = Answer::new(reply.body, self.watchdog, meter, in_flight, peer, move || {
            shared.doubt_until()
        });
        Reply { metadata: reply.metadata, body: Body::new(body) }
    }

    fn not_available(&self) -> Failure {
        let service = &self.service;
        let table = self.shared.table.load();
        let known = table.rows(service).len();
        match (self.scope, self.head.locality) {
            (Scope::ThisNode, _) => Failure::not_available(service).at(self.shared.local),
            (Scope::Mesh, Locality::Local) if known > 0 => Failure::not_started(
                Reason::NotAvailable,
                format!("service {service} not available on this node; {known} elsewhere offer it"),
            ),
            (Scope::Mesh, Locality::Peer(peer)) => Failure::not_available(service).at(peer),
            _ => Failure::not_available(service),
        }
    }
}

/// The provider, its process or the way to it may be gone, or the table is behind.
pub(crate) fn is_loss(reason: Reason) -> bool {
    use Reason::{NotAvailable, PeerLost, PluginLost, Unreachable};
    matches!(reason, PeerLost | PluginLost | Unreachable | NotAvailable)
}

fn is_trailers_only(metadata: &HeaderMap) -> bool {
    metadata.contains_key("grpc-status")
}

/// Says at which peer it failed, unless the failure knows better.
fn located(mut failure: Failure, target: Target) -> Failure {
    if let (None, Target::Peer(peer)) = (failure.peer, target) {
        failure.peer = Some(peer);
    }
    failure
}

fn after(attempts: u32, mut failure: Failure) -> Failure {
    if attempts > 1 {
        failure.message = format!("{attempts} attempts, the last: {}", failure.message);
    }
    failure
}

fn too_much_sent(mut failure: Failure) -> Failure {
    let kept = REPLAY_BYTES_MAX / 1024;
    failure.message = format!(
        "{}; not tried elsewhere, because more than {kept} KiB of the request had been sent",
        failure.message
    );
    failure
}
