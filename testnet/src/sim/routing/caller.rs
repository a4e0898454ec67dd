//! A caller: what one router knows of each provider, and the calls it has under way.

use std::{collections::BTreeMap, time::Duration};

use protocol::{failure::Failure, ports::Locality, wishes::Priority};
use router::{
    Budget, Chance, Choice, Condition, Course, Ending, Facts, Next, Policy, Requirement, Seen,
    Selection, Times, Want, Why, select,
};

use super::provider::Provider;

/// How long a provider to which a call was lost is used last.
const DOUBT: Duration = Duration::from_secs(3);

/// One router's knowledge.
pub(super) struct Caller {
    pub(super) observed: Vec<Observed>,
    pub(super) budget: Budget,
    pub(super) times: Times,
    pub(super) calls: BTreeMap<u64, Call>,
    /// Calls begun.
    pub(super) begun: u64,
    /// Attempts that reached a provider which was there.
    pub(super) given: u64,
}

/// What it knows of one provider.
#[derive(Default)]
pub(super) struct Observed {
    pub(super) condition: Condition,
    pub(super) in_flight: u32,
    /// When it last answered a call of this caller well.
    pub(super) answered: u64,
}

/// One call.
pub(super) struct Call {
    pub(super) deadline: u64,
    pub(super) idempotent: bool,
    pub(super) priority: Priority,
    key: u64,
    turn: u64,
    pub(super) course: Course,
    tried: Vec<usize>,
    pub(super) legs: Vec<Leg>,
    /// The failure that tells most, of legs that ended before the others.
    worst: Option<Failure>,
    /// How often a provider began it.
    pub(super) runs: u32,
}

/// One attempt under way.
pub(super) struct Leg {
    pub(super) number: u64,
    pub(super) provider: usize,
    pub(super) began: u64,
}

impl Caller {
    pub(super) fn new(providers: usize, policy: &Policy) -> Self {
        Self {
            observed: (0..providers).map(|_| Observed::default()).collect(),
            budget: Budget::new(&policy.retries, 0),
            times: Times::default(),
            calls: BTreeMap::new(),
            begun: 0,
            given: 0,
        }
    }

    /// A call begins.
    pub(super) fn begin(&mut self, number: u64, deadline: u64, policy: &Policy, draw: &mut Chance) {
        self.budget.deposit(&policy.retries);
        let priorities = [Priority::Low, Priority::Normal, Priority::High];
        let call = Call {
            deadline,
            idempotent: draw.below(2) == 0,
            priority: priorities[draw.below(3) as usize],
            key: draw.below(50),
            turn: self.begun,
            course: Course::default(),
            tried: Vec::new(),
            legs: Vec::new(),
            worst: None,
            runs: 0,
        };
        self.begun += 1;
        self.calls.insert(number, call);
    }

    /// The choice for a call now.
    pub(super) fn select(
        &self,
        call: &Call,
        providers: &[Provider],
        policy: &Policy,
        (now, chance): (u64, u64),
    ) -> Selection {
        let seen: Vec<Seen<'_>> = providers
            .iter()
            .zip(&self.observed)
            .map(|(provider, observed)| Seen {
                candidate: &provider.candidate,
                traits: provider.traits,
                in_flight: observed.in_flight,
                view: observed.condition.view(now),
            })
            .collect();
        let want = Want {
            locality: Locality::Any,
            requirement: &Requirement::default(),
            policy,
            key: Some(call.key),
            turn: call.turn,
            now,
        };
        select(&seen, &want, chance)
    }

    /// Begins an attempt at `provider`.
    pub(super) fn send(&mut self, number: u64, leg: u64, provider: usize, now: u64) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        call.course.begin();
        call.tried.push(provider);
        call.legs.push(Leg { number: leg, provider, began: now });
        self.observed[provider].condition.begin(now);
        self.observed[provider].in_flight += 1;
    }

    /// Takes a leg out, if it is still under way.
    pub(super) fn end_leg(&mut self, number: u64, leg: u64) -> Option<Leg> {
        let legs = &mut self.calls.get_mut(&number)?.legs;
        let at = legs.iter().position(|one| one.number == leg)?;
        let ended = legs.remove(at);
        self.observed[ended.provider].in_flight -= 1;
        Some(ended)
    }

    /// Notes how a call at `provider` ended.
    pub(super) fn judge(
        &mut self,
        provider: usize,
        ending: Ending,
        policy: &Policy,
        (now, chance): (u64, u64),
    ) {
        let observed = &mut self.observed[provider];
        observed.condition.ended(ending, policy, now, chance);
        if ending == Ending::Good {
            observed.answered = now;
        }
    }

    /// Notes that a leg to `provider` failed.
    pub(super) fn blame(
        &mut self,
        provider: usize,
        failure: &Failure,
        policy: &Policy,
        moment: (u64, u64),
    ) {
        if failure.reason.is_loss() {
            self.observed[provider].condition.doubt(moment.0, DOUBT);
        }
        self.judge(provider, Ending::of_reason(failure.reason), policy, moment);
    }

    /// Ends a call; its other legs are given up. Returns what it was.
    pub(super) fn finish(
        &mut self,
        number: u64,
        ending: Ending,
        policy: &Policy,
        moment: (u64, u64),
    ) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        for leg in &call.legs {
            self.observed[leg.provider].in_flight -= 1;
            self.judge(leg.provider, ending, policy, moment);
        }
        Some(call)
    }

    /// What follows `failure`, where no other leg is under way; `None` where one is.
    pub(super) fn next(
        &mut self,
        number: u64,
        failure: Failure,
        policy: &Policy,
        facts: &Facts,
    ) -> Option<(Next, Failure)> {
        use protocol::failure::Ran::NotStarted;
        let call = self.calls.get_mut(&number)?;
        let worst = match call.worst.take() {
            Some(worst) if worst.ran != NotStarted => worst,
            _ => failure,
        };
        if !call.legs.is_empty() {
            call.worst = Some(worst);
            return None;
        }
        let next = call.course.next(&worst, facts, &policy.retries, &mut self.budget);
        if matches!(next, Next::Again { .. }) {
            call.tried.clear();
        }
        Some((next, worst))
    }
}

impl Call {
    /// The first of `choices` that was not tried in this round.
    pub(super) fn untried<'a>(&self, choices: &'a [Choice]) -> Option<&'a Choice> {
        choices.iter().find(|choice| !self.tried.contains(&choice.index))
    }
}

/// What must hold of every choice: ejection spares somebody, and only circuits leave nobody.
pub(super) fn check(
    selection: &Selection,
    providers: usize,
    policy: &Policy,
) -> Result<u64, String> {
    let ejected = selection.choices.iter().filter(|one| one.why == Why::Ejected).count();
    let (fit, refused) = (selection.choices.len(), selection.refused.len());
    if fit + refused != providers {
        return Err(format!("{providers} providers became {fit} choices and {refused} refusals"));
    }
    let share = policy.ejection.as_ref().map_or(0, |ejection| ejection.share_percent as usize);
    if ejected > 0 && (ejected == fit || ejected > (fit * share / 100).max(1)) {
        return Err(format!("{ejected} of {fit} providers are ejected at once"));
    }
    Ok(u64::from(ejected > 0))
}
