//! One attempt at a call: reach a provider, send, and wait for the beginning of its answer; or two
//! at once, where the method may run twice and the first one is late.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::future::{self, BoxFuture, FutureExt as _};
use protocol::{
    failure::{Failure, Ran, Reason, Tried},
    id::PeerId,
    ports::{Body, Call, CallHead, Invoke, Reply},
};

use crate::{
    carry::Carriage,
    course::Facts,
    gauge::InFlight,
    meters::Meter,
    pick::{Provider, Target},
    router::Shared,
    trace::{Event, Trace, take_legs},
};

/// A provider's answer has begun.
pub(crate) struct Answered {
    pub(crate) reply: Reply,
    /// The peer that answers, where it is not this one.
    pub(crate) provider: Option<PeerId>,
    pub(crate) in_flight: InFlight,
}

/// The call on its way to one provider.
struct Leg {
    provider: Provider,
    /// When the call was sent, on the router's clock; 0 while it was not.
    sent: Arc<AtomicU64>,
    answer: BoxFuture<'static, Result<Reply, Failure>>,
}

impl Leg {
    /// What is known of a call that was given up on this leg.
    fn ran(&self) -> Ran {
        if self.sent.load(Relaxed) == 0 { Ran::NotStarted } else { Ran::Unknown }
    }
}

/// Everything that sending to one provider takes.
struct Sending {
    shared: Arc<Shared>,
    target: Target,
    head: CallHead,
    body: Body,
    /// When reaching it is given up.
    due: Instant,
    sent: Arc<AtomicU64>,
    trace: Option<Arc<Trace>>,
}

impl Sending {
    async fn run(self) -> Result<Reply, Failure> {
        let reached = self.reach().await;
        // Reaching sends nothing of the call, whatever it says.
        let invoke = reached.map_err(|failure| Failure { ran: Ran::NotStarted, ..failure })?;
        if self.head.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let message = "the caller's deadline passed while the provider was being reached";
            return Err(Failure::not_started(Reason::DeadlineExceeded, message));
        }
        self.sent.store(self.shared.now().max(1), Relaxed);
        if let Some(trace) = &self.trace {
            trace.add(Event::Sent);
        }
        invoke.invoke(Call { head: self.head, body: self.body }).await
    }

    fn reach(&self) -> impl Future<Output = Result<Arc<dyn Invoke>, Failure>> + use<> {
        let (ports, due) = (&self.shared.ports, self.due);
        let reaching = match self.target {
            Target::Plugin(instance) => ports.plugins.reach(instance, due),
            Target::Peer(peer) => ports.peers.reach(peer, due),
        };
        async move {
            tokio::time::timeout_at(due.into(), reaching).await.unwrap_or_else(|_| {
                let message = "it could not be reached in time";
                Err(Failure::not_started(Reason::Unreachable, message))
            })
        }
    }
}

impl Carriage {
    /// Offers the call to `provider`, and where that is late and it may be, to another as well.
    pub(crate) async fn attempt(
        &mut self,
        provider: Provider,
        body: Body,
        meter: &mut Meter,
    ) -> Result<Answered, Failure> {
        let hedge_after = if provider.others { provider.book.hedge_after() } else { None };
        let mut legs = vec![self.leg(provider, body)];
        if let Some(micros) = hedge_after {
            let patience = tokio::time::sleep(Duration::from_micros(micros));
            let first = &mut legs[0].answer;
            let early = async {
                tokio::select! {
                    biased;
                    answered = first => Some(answered),
                    () = patience => None,
                }
            };
            match self.watchdog.watch(Ran::Unknown, early).await {
                Ok(Some(answered)) => return self.settle(legs.remove(0), answered, meter),
                Ok(None) => legs.extend(self.hedge().await),
                Err(late) => return Err(self.give_up(&mut legs, &late, meter)),
            }
        }
        self.race(legs, meter).await
    }

    /// The first of `legs` that is answered; where all fail, what is worst to know.
    async fn race(&mut self, mut legs: Vec<Leg>, meter: &mut Meter) -> Result<Answered, Failure> {
        let mut worst: Option<Failure> = None;
        loop {
            let answers = legs.iter_mut().map(|leg| &mut leg.answer);
            let race = future::select_all(answers).map(|(answered, first, _)| (answered, first));
            let (answered, first) = match self.watchdog.watch(Ran::Unknown, race).await {
                Ok(ended) => ended,
                Err(late) => {
                    let late = self.give_up(&mut legs, &late, meter);
                    return Err(worst.filter(|worst| worst.ran == Ran::Unknown).unwrap_or(late));
                }
            };
            let failure = match self.settle(legs.remove(first), answered, meter) {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            worst = match worst {
                // That one of them may have run is what the caller must know.
                Some(worst) if worst.ran != Ran::NotStarted => Some(worst),
                _ => Some(failure),
            };
            if legs.is_empty()
                && let Some(worst) = worst.take()
            {
                return Err(worst);
            }
        }
    }

    /// A second leg, if the method may run twice, somebody is left and the budget allows it.
    async fn hedge(&mut self) -> Option<Leg> {
        let idempotent = self.may_run_twice().await;
        let facts = Facts {
            now: self.shared.now(),
            deadline: self.deadline(),
            others: self.has_others(),
            whole: self.replay.is_whole(),
            idempotent,
            chance: 0,
        };
        let retries = &self.policy.retries;
        let book = self.book.as_ref()?;
        if !self.course.may_hedge(&facts, retries, &mut book.budget.lock()) {
            return None;
        }
        let provider = self.pick(true)?;
        let body = self.replay.second()?;
        Some(self.leg(provider, body))
    }

    /// Sends the call to `provider`, who from then on counts as tried.
    fn leg(&mut self, provider: Provider, body: Body) -> Leg {
        self.course.begin();
        self.tried.push(provider.target);
        let sent = Arc::new(AtomicU64::new(0));
        let local = provider.target.peer().is_none();
        let now = self.shared.now();
        let admitted = if local { provider.in_flight.admit(self.priority, now) } else { Ok(()) };
        let answer = match admitted {
            Err(failure) => future::ready(Err(failure)).boxed(),
            Ok(()) => Sending {
                shared: Arc::clone(&self.shared),
                target: provider.target,
                head: self.head.clone(),
                body,
                due: self.reach_due(provider.others),
                sent: Arc::clone(&sent),
                trace: self.trace.clone(),
            }
            .run()
            .boxed(),
        };
        Leg { provider, sent, answer }
    }

    /// When reaching a provider is given up; with time left for somebody else.
    fn reach_due(&self, others: bool) -> Instant {
        let due = self.watchdog.within(self.shared.settings.reach);
        match self.watchdog.deadline.filter(|_| others) {
            None => due,
            Some(deadline) => {
                let now = Instant::now();
                due.min(now + deadline.saturating_duration_since(now) / 2)
            }
        }
    }

    /// Notes how a leg ended.
    fn settle(
        &mut self,
        leg: Leg,
        answered: Result<Reply, Failure>,
        meter: &mut Meter,
    ) -> Result<Answered, Failure> {
        let now = self.shared.now();
        let Leg { provider, sent, .. } = leg;
        let Provider { target, peer, plugin, mut in_flight, book, .. } = provider;
        match answered {
            Ok(mut reply) => {
                let took = now.saturating_sub(sent.load(Relaxed));
                in_flight.answered(now, took);
                book.observe(took);
                meter.attempted(None);
                let legs = take_legs(&mut reply.metadata);
                self.note(|| Event::Answered { legs });
                Ok(Answered { reply, provider: target.peer(), in_flight })
            }
            Err(failure) => {
                let failure = located(failure, target).at_plugin(&plugin);
                if !self.watchdog.is_over() || failure.ran != Ran::NotStarted {
                    in_flight.failed(&failure, now, self.shared.settings.doubt);
                }
                meter.attempted(Some(failure.ran));
                let (ran, reason) = (failure.ran, failure.reason);
                self.told.push(Tried { peer, plugin, ran, reason });
                self.note(|| Event::Failed(failure.clone()));
                Err(failure)
            }
        }
    }

    /// The call's time is over while `legs` are under way.
    fn give_up(&mut self, legs: &mut Vec<Leg>, late: &Failure, meter: &Meter) -> Failure {
        let now = self.shared.now();
        let mut told = Failure { ran: Ran::NotStarted, ..late.clone() };
        for mut leg in legs.drain(..) {
            meter.attempted(Some(leg.ran()));
            if leg.ran() == Ran::Unknown {
                leg.provider.in_flight.failed(late, now, self.shared.settings.doubt);
                told.ran = Ran::Unknown;
            }
            told = located(told, leg.provider.target).at_plugin(&leg.provider.plugin);
        }
        self.note(|| Event::Failed(told.clone()));
        told
    }
}

/// Says at which peer it failed, unless the failure knows better.
fn located(mut failure: Failure, target: Target) -> Failure {
    failure.peer = failure.peer.or(target.peer());
    failure
}
