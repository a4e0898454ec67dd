//! The life of a plugin as one visible state machine. Pure: what may follow what, nothing else.
//!
//! ```text
//! discovered ─► loaded ─► initialised ─► running ─► draining ─► stopped
//!                 ▲            │         │    ▲
//!                 │            │         ▼    │
//!                 │            │       unhealthy
//!                 └── crash ───┴─────────┴────┘    failed, crash-loop ◄── whoever gives up
//! ```
//!
//! `stopped`, `failed` and `crash-loop` are final: loading or restarting the plugin begins a new
//! life. One that is recalled, for another start, drains first and is `loaded` again.

use std::fmt;

/// Where a plugin is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Asked for; its manifest is being checked.
    Discovered,
    /// Checked; no process yet, or waiting to be started again.
    Loaded,
    /// Its process runs and is not ready yet.
    Initialised,
    /// It answers calls.
    Running,
    /// Its process runs and fails its health checks; its policy decides what becomes of it.
    Unhealthy,
    /// It takes no new calls and finishes what it has.
    Draining,
    /// It ended as asked.
    Stopped,
    /// It ended for good, not as asked. Loading it anew is the way out.
    Failed,
    /// It ended more often than its restart window allows, and is not started any more.
    CrashLoop,
}

/// What moves a plugin from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Its manifest, permissions, dependencies and isolation were checked.
    Validated,
    /// Its process runs.
    Started,
    /// It answers.
    BecameReady,
    /// As many health checks in a row failed as its threshold says.
    BecameUnhealthy,
    /// It ended, or was ended, and will be started again.
    Crashed,
    /// It is ended because somebody asked for another start: an operator, or its group.
    Recalled,
    /// It will not be started again.
    GaveUp,
    /// It was started again too often, and will not be any more.
    Looped,
    /// Unloading began.
    Drain,
    /// It ended as asked, or because its work was done.
    Ended,
}

impl State {
    /// The state after `step`.
    pub fn after(self, step: Step) -> Result<Self, IllegalStep> {
        use State::{
            CrashLoop, Discovered, Draining, Failed, Initialised, Loaded, Running, Stopped,
            Unhealthy,
        };
        let next = match (self, step) {
            // A start that fails, and a run that crashes, both wait as `loaded`.
            (Discovered, Step::Validated)
            | (Loaded | Initialised | Running | Unhealthy, Step::Crashed)
            | (Initialised | Running | Unhealthy | Draining, Step::Recalled) => Loaded,
            (Loaded, Step::Started) => Initialised,
            (Initialised, Step::BecameReady) => Running,
            (Running, Step::BecameUnhealthy) => Unhealthy,
            (Discovered | Loaded | Initialised | Running | Unhealthy | Draining, Step::GaveUp) => {
                Failed
            }
            (Loaded | Initialised | Running | Unhealthy | Draining, Step::Looped) => CrashLoop,
            (Loaded | Initialised | Running | Unhealthy, Step::Drain) => Draining,
            (Loaded | Initialised | Running | Unhealthy | Draining, Step::Ended) => Stopped,
            _ => return Err(IllegalStep { state: self, step }),
        };
        Ok(next)
    }

    /// True while there is, or will again be, a process without anybody asking for it.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Stopped | Self::Failed | Self::CrashLoop)
    }

    /// True while there is, or may be, a process.
    pub fn has_process(self) -> bool {
        matches!(self, Self::Initialised | Self::Running | Self::Unhealthy | Self::Draining)
    }

    /// The name shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Loaded => "loaded",
            Self::Initialised => "initialised",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::CrashLoop => "crash-loop",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step cannot follow the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a plugin that is {state} cannot take the step {step:?}")]
pub struct IllegalStep {
    /// Where it is.
    pub state: State,
    /// What was asked of it.
    pub step: Step,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [State; 9] = [
        State::Discovered,
        State::Loaded,
        State::Initialised,
        State::Running,
        State::Unhealthy,
        State::Draining,
        State::Stopped,
        State::Failed,
        State::CrashLoop,
    ];
    const STEPS: [Step; 10] = [
        Step::Validated,
        Step::Started,
        Step::BecameReady,
        Step::BecameUnhealthy,
        Step::Crashed,
        Step::Recalled,
        Step::GaveUp,
        Step::Looped,
        Step::Drain,
        Step::Ended,
    ];

    fn walk(steps: &[Step]) -> Result<State, IllegalStep> {
        steps.iter().try_fold(State::Discovered, |state, step| state.after(*step))
    }

    #[test]
    fn a_whole_life_visits_the_states_in_order() {
        use Step::{BecameReady, Crashed, Drain, Ended, Started, Validated};
        assert_eq!(walk(&[Validated, Started, BecameReady, Drain, Ended]), Ok(State::Stopped));
        assert_eq!(
            walk(&[Validated, Started, BecameReady, Crashed, Started]),
            Ok(State::Initialised)
        );
        assert_eq!(walk(&[Validated, Started, Step::GaveUp]), Ok(State::Failed));
        let ill = [Validated, Started, BecameReady, Step::BecameUnhealthy];
        assert_eq!(walk(&ill), Ok(State::Unhealthy));
        assert_eq!(walk(&[&ill[..], &[Step::Looped]].concat()), Ok(State::CrashLoop));
    }

    #[test]
    fn nothing_runs_that_was_not_started() {
        for state in STATES {
            for step in STEPS {
                if state.after(step) == Ok(State::Running) {
                    assert_eq!((state, step), (State::Initialised, Step::BecameReady));
                }
                if state.after(step) == Ok(State::Initialised) {
                    assert_eq!((state, step), (State::Loaded, Step::Started));
                }
            }
        }
    }

    #[test]
    fn what_has_ended_stays_ended() {
        for step in STEPS {
            assert!(State::Stopped.after(step).is_err(), "{step:?}");
            assert!(State::Failed.after(step).is_err(), "{step:?}");
            assert!(State::CrashLoop.after(step).is_err(), "{step:?}");
        }
    }

    proptest! {
        #[test]
        fn draining_never_runs_again_unless_recalled(
            steps in proptest::collection::vec(proptest::sample::select(STEPS.to_vec()), 0..64)
        ) {
            let mut state = State::Discovered;
            let mut drained = false;
            for step in steps {
                let Ok(next) = state.after(step) else { continue };
                drained = step != Step::Recalled && (drained || next == State::Draining);
                prop_assert!(!(drained && next == State::Running));
                state = next;
            }
        }
    }
}
