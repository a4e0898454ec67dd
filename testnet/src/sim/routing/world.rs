//! The world of calls: what happens next, and what must hold after it.

use std::{collections::BTreeMap, time::Duration};

use protocol::{
    failure::{Failure, Ran, Reason},
    id::{InstanceId, NodeKey},
};
use router::{
    Breaking, Budget, Candidate, Chance, Circuit, Ejection, Ending, Facts, Hedging, Limit, Method,
    Next, Policy, Standing, Unfit,
};

use super::{
    Plan, Report, Violation,
    caller::{self, Caller},
    provider::{Mood, Provider},
};

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;

/// One thing that happens. Calls are named by caller and number.
enum Step {
    /// A caller makes a call.
    Call { caller: usize },
    /// An attempt is due.
    Attempt { caller: usize, call: u64 },
    /// An attempt arrives at its provider.
    Arrive { caller: usize, call: u64, leg: u64, provider: usize, deadline: u64 },
    /// A provider has done with a call, if it lived until now.
    Done { caller: usize, call: u64, leg: u64, provider: usize, life: u32, took: u64 },
    /// A caller hears what became of an attempt: a status, or a failure.
    Heard { caller: usize, call: u64, leg: u64, what: Result<u32, Failure> },
    /// A call's deadline.
    Late { caller: usize, call: u64 },
    /// A second attempt beside the first may be worth it.
    Hedge { caller: usize, call: u64 },
    /// Something befalls a provider.
    Turmoil,
}

/// Everything there is.
pub(super) struct World {
    plan: Plan,
    policy: Policy,
    chance: Chance,
    now: u64,
    callers: Vec<Caller>,
    providers: Vec<Provider>,
    report: Report,
    counter: u64,
    queue: BTreeMap<(u64, u64), Step>,
}

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let mut chance = Chance::new(plan.seed);
        let policy = policy(&mut chance);
        let limit = Limit { calls_max: 12, adaptive: chance.below(2) == 0 };
        let provider = |number: usize| Provider::new(candidate(number), &policy, limit);
        let mut world = Self {
            callers: (0..plan.callers).map(|_| Caller::new(plan.providers, &policy)).collect(),
            providers: (0..plan.providers).map(provider).collect(),
            plan,
            policy,
            chance,
            now: 0,
            report: Report::default(),
            counter: 0,
            queue: BTreeMap::new(),
        };
        for caller in 0..world.plan.callers {
            world.after(1, Step::Call { caller });
        }
        world.after(SECOND, Step::Turmoil);
        world
    }

    /// Lets everything happen in its order.
    pub(super) fn run(mut self) -> Result<Report, Violation> {
        let calm_at = self.plan.turmoil_millis * MILLI;
        let end = calm_at + self.plan.quiet_millis * MILLI;
        while let Some(((at, _), step)) = self.queue.pop_first() {
            if at >= end {
                break;
            }
            self.now = at;
            let held = self.happen(step).and_then(|()| self.check());
            held.map_err(|what| self.violation(what))?;
        }
        self.check_recovered(end).map_err(|what| self.violation(what))?;
        Ok(self.report)
    }

    fn violation(&self, what: String) -> Violation {
        Violation { seed: self.plan.seed, at_millis: self.now / MILLI, what }
    }

    fn after(&mut self, micros: u64, step: Step) {
        self.counter += 1;
        self.queue.insert((self.now + micros, self.counter), step);
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.chance.below(100) < percent
    }

    /// How long a message takes.
    fn delay(&mut self) -> u64 {
        200 + self.chance.below(3 * MILLI)
    }

    fn moment(&mut self) -> (u64, u64) {
        (self.now, self.chance.draw())
    }

    fn is_calm(&self) -> bool {
        self.now >= self.plan.turmoil_millis * MILLI
    }

    fn happen(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Call { caller } => self.call(caller),
            Step::Attempt { caller, call } => self.attempt(caller, call, false),
            Step::Arrive { caller, call, leg, provider, deadline } => {
                self.arrive(caller, call, leg, provider, deadline)
            }
            Step::Done { caller, call, leg, provider, life, took } => {
                self.done((caller, call, leg), provider, life, took);
                Ok(())
            }
            Step::Heard { caller, call, leg, what } => self.heard(caller, call, leg, what),
            Step::Late { caller, call } => {
                let moment = self.moment();
                let ended = self.callers[caller].finish(call, Ending::Late, &self.policy, moment);
                if let Some(call) = ended {
                    let sent = !call.legs.is_empty();
                    self.count(if sent { Ran::Unknown } else { Ran::NotStarted })?;
                }
                Ok(())
            }
            Step::Hedge { caller, call } => self.hedge(caller, call),
            Step::Turmoil => {
                self.befall();
                Ok(())
            }
        }
    }

    fn call(&mut self, caller: usize) -> Result<(), String> {
        let gap = SECOND / self.plan.calls_per_second;
        let next = 1 + self.chance.below(2 * gap);
        self.after(next, Step::Call { caller });
        self.counter += 1;
        let call = self.counter;
        let time = 30 * MILLI + self.chance.below(2 * SECOND);
        let deadline = self.now + time;
        self.report.calls += 1;
        self.callers[caller].begin(call, deadline, &self.policy, &mut self.chance);
        self.after(time, Step::Late { caller, call });
        if let Some(hedging) = &self.policy.hedging
            && let Some(after) = self.callers[caller].times.hedge_after(hedging)
        {
            self.after(after, Step::Hedge { caller, call });
        }
        self.attempt(caller, call, false)
    }

    fn attempt(&mut self, caller: usize, number: u64, hedge: bool) -> Result<(), String> {
        let moment = self.moment();
        let router = &self.callers[caller];
        let Some(call) = router.calls.get(&number) else { return Ok(()) };
        if self.now >= call.deadline {
            return Err("an attempt begins past its call's deadline".into());
        }
        let selection = router.select(call, &self.providers, &self.policy, moment);
        self.report.ejections += caller::check(&selection, self.providers.len(), &self.policy)?;
        let Some(choice) = call.untried(&selection.choices).copied() else {
            if hedge {
                return Ok(());
            }
            let open = |why: &Unfit| matches!(why, Unfit::CircuitOpen { .. });
            let circuits = selection.refused.iter().filter(|one| open(&one.why)).count();
            if call.course.attempts() == 0 && circuits < self.providers.len() {
                return Err("nobody is chosen, though not every circuit is open".into());
            }
            self.report.circuit_open += u64::from(call.course.attempts() == 0);
            return self.end(caller, number, Ran::NotStarted);
        };
        let (attempts, deadline) = (call.course.attempts(), call.deadline);
        self.report.retries += u64::from(attempts > 0);
        self.counter += 1;
        let (leg, provider) = (self.counter, choice.index);
        self.callers[caller].send(number, leg, provider, self.now);
        let delay = self.delay();
        self.after(delay, Step::Arrive { caller, call: number, leg, provider, deadline });
        Ok(())
    }

    fn arrive(
        &mut self,
        caller: usize,
        call: u64,
        leg: u64,
        provider: usize,
        deadline: u64,
    ) -> Result<(), String> {
        let delay = self.delay();
        if self.now >= deadline {
            // The answering peer does not begin what nobody waits for.
            return Ok(());
        }
        if !self.is_calm() && self.percent(2) {
            let stale = Failure::not_started(Reason::PeerLost, "the link was dead already");
            self.after(delay, Step::Heard { caller, call, leg, what: Err(stale) });
            return Ok(());
        }
        let priority = self.callers[caller].calls.get(&call).map(|call| call.priority);
        let one = &mut self.providers[provider];
        self.callers[caller].given += u64::from(one.mood != Mood::Down);
        if let Err(refused) = one.take(priority.unwrap_or_default()) {
            self.report.shed += u64::from(refused.reason == Reason::Busy);
            self.after(delay, Step::Heard { caller, call, leg, what: Err(refused) });
            return Ok(());
        }
        self.began(caller, call)?;
        let (life, slow) = (self.providers[provider].life, self.providers[provider].mood);
        let times = if slow == Mood::Slow { 20 } else { 1 };
        let took = (MILLI + self.chance.below(8 * MILLI)) * times;
        self.after(took, Step::Done { caller, call, leg, provider, life, took });
        Ok(())
    }

    /// A provider begins a call: the one thing that cannot be taken back.
    fn began(&mut self, caller: usize, number: u64) -> Result<(), String> {
        let Some(call) = self.callers[caller].calls.get_mut(&number) else { return Ok(()) };
        call.runs += 1;
        if call.runs > 1 && !call.idempotent {
            return Err("a call that may have run was run again".into());
        }
        self.report.repeated += u64::from(call.runs == 2);
        Ok(())
    }

    fn done(
        &mut self,
        (caller, call, leg): (usize, u64, u64),
        provider: usize,
        life: u32,
        took: u64,
    ) {
        let delay = self.delay();
        let one = &mut self.providers[provider];
        let what = if one.life == life {
            one.done(took);
            let code = one.code();
            if !self.is_calm() && self.percent(1) {
                Err(Failure::unknown(Reason::PeerLost, "the answer was lost"))
            } else {
                Ok(code)
            }
        } else {
            Err(Failure::unknown(Reason::PluginLost, "it ended during the call"))
        };
        self.after(delay, Step::Heard { caller, call, leg, what });
    }

    fn heard(
        &mut self,
        caller: usize,
        number: u64,
        leg: u64,
        what: Result<u32, Failure>,
    ) -> Result<(), String> {
        let moment = self.moment();
        let (router, policy) = (&mut self.callers[caller], &self.policy);
        let Some(ended) = router.end_leg(number, leg) else { return Ok(()) };
        let failure = match what {
            Ok(code) => {
                let took = self.now - ended.began;
                router.observed[ended.provider].condition.answered(self.now, took);
                router.times.observe(took);
                router.judge(ended.provider, Ending::of_code(code), policy, moment);
                router.finish(number, Ending::Neutral, policy, moment);
                self.report.answered += 1;
                self.note(number ^ u64::from(code));
                return Ok(());
            }
            Err(failure) => failure,
        };
        router.blame(ended.provider, &failure, policy, moment);
        let Some(facts) = self.facts(caller, number) else { return Ok(()) };
        let next = self.callers[caller].next(number, failure, &self.policy, &facts);
        match next {
            None => Ok(()),
            Some((Next::Elsewhere { at } | Next::Again { at }, _)) => {
                self.after(at - self.now, Step::Attempt { caller, call: number });
                Ok(())
            }
            Some((Next::Over(_), failure)) => self.end(caller, number, failure.ran),
        }
    }

    fn hedge(&mut self, caller: usize, number: u64) -> Result<(), String> {
        let Some(facts) = self.facts(caller, number) else { return Ok(()) };
        let retries = &self.policy.retries;
        let router = &mut self.callers[caller];
        let Some(call) = router.calls.get(&number) else { return Ok(()) };
        if call.legs.len() == 1 && call.course.may_hedge(&facts, retries, &mut router.budget) {
            self.report.hedges += 1;
            return self.attempt(caller, number, true);
        }
        Ok(())
    }

    fn facts(&mut self, caller: usize, number: u64) -> Option<Facts> {
        let moment = self.moment();
        let router = &self.callers[caller];
        let call = router.calls.get(&number)?;
        let selection = router.select(call, &self.providers, &self.policy, moment);
        Some(Facts {
            now: self.now,
            deadline: Some(call.deadline),
            others: call.untried(&selection.choices).is_some(),
            whole: true,
            idempotent: call.idempotent || self.plan.callers_believe_anything,
            chance: moment.1,
        })
    }

    fn end(&mut self, caller: usize, number: u64, ran: Ran) -> Result<(), String> {
        let moment = self.moment();
        self.callers[caller].finish(number, Ending::Neutral, &self.policy, moment);
        self.note(number);
        self.count(ran)
    }

    fn count(&mut self, ran: Ran) -> Result<(), String> {
        match ran {
            Ran::NotStarted => self.report.not_started += 1,
            Ran::Unknown => self.report.unknown += 1,
            Ran::Failed => return Err("a call was refused for good, which nobody does here".into()),
        }
        Ok(())
    }

    fn note(&mut self, what: u64) {
        let mixed = self.report.fingerprint ^ what ^ self.now.rotate_left(20);
        self.report.fingerprint = Chance::new(mixed).draw();
    }

    /// Something befalls a provider, now and then all of them; when it is over all are well.
    fn befall(&mut self) {
        if self.is_calm() {
            self.providers.iter_mut().for_each(|one| one.mood = Mood::Well);
            return;
        }
        let moods = [Mood::Well, Mood::Well, Mood::Slow, Mood::Faulty, Mood::Unavailable];
        let all = self.percent(3);
        for provider in 0..self.providers.len() {
            if !all && !self.percent(25) {
                continue;
            }
            if all || self.percent(30) {
                self.report.crashes += 1;
                self.providers[provider].crash();
            } else {
                let mood = self.chance.below(moods.len() as u64) as usize;
                self.providers[provider].mood = moods[mood];
            }
        }
        // Exactly when the quiet begins, at the latest.
        let calm_in = self.plan.turmoil_millis * MILLI - self.now;
        let next = (MILLI * 200 + self.chance.below(2 * SECOND)).min(calm_in);
        self.after(next, Step::Turmoil);
    }

    /// What must hold after every step.
    fn check(&self) -> Result<(), String> {
        for router in &self.callers {
            let bound = Budget::bound(&self.policy.retries, router.begun, self.now);
            if router.given > router.begun + bound {
                let Caller { begun, given, .. } = router;
                return Err(format!(
                    "{given} attempts reached providers for {begun} calls; the budget allows \
                     {bound} more"
                ));
            }
            let late = router.calls.values().find(|call| call.deadline + MILLI < self.now);
            if late.is_some() {
                return Err("a call goes on past its deadline".into());
            }
        }
        Ok(())
    }

    /// At the end: everybody uses everybody again.
    fn check_recovered(&self, end: u64) -> Result<(), String> {
        // A key may belong to few providers: then only circuits and ejection are looked at.
        let spread = self.policy.method != Method::Hash;
        for (number, router) in self.callers.iter().enumerate() {
            for (provider, observed) in router.observed.iter().enumerate() {
                let view = observed.condition.view(end);
                if matches!(view.circuit, Circuit::Open { .. }) {
                    return Err(format!("caller {number} keeps provider {provider} shut out"));
                }
                let silent = end - observed.answered > 15 * SECOND;
                if silent && spread {
                    return Err(format!("caller {number} gives provider {provider} no calls"));
                }
            }
        }
        Ok(())
    }
}

fn policy(chance: &mut Chance) -> Policy {
    let (_, method) = Method::NAMED[chance.below(Method::NAMED.len() as u64) as usize];
    let hedging = match chance.below(3) {
        0 => None,
        1 => Some(Hedging { after: None }),
        _ => Some(Hedging { after: Some(Duration::from_millis(20)) }),
    };
    Policy {
        method,
        hedging,
        breaker: Some(Breaking { open_max: Duration::from_secs(4), ..Breaking::default() }),
        ejection: Some(Ejection {
            time: Duration::from_secs(2),
            time_max: Duration::from_secs(8),
            ..Ejection::default()
        }),
        ..Policy::default()
    }
}

fn candidate(number: usize) -> Candidate {
    Candidate {
        peer: NodeKey::from_seed([number as u8 + 1; 32]).peer_id(),
        local: false,
        instance: InstanceId(number as u64),
        plugin: "counter".into(),
        version: "1.0.0".into(),
        labels: [("weight".to_owned(), (number % 3 + 1).to_string())].into(),
        load_percent: 0,
        standing: Standing::Healthy,
    }
}
