//! Whether a plugin that said it was well must be asked again. Pure, but for [`Traces::of`], which
//! looks.
//!
//! A program that was not called and used no processor time since it said that it was well has not
//! changed: asking would only wake it, and the node, for the same answer. With a thousand idle
//! plugins that is most of what the node does. It is asked all the same after a while, because
//! what a program depends on can fail while it sleeps. Its figures need no such exception: whoever
//! did nothing has counted nothing. Neither kind of question breaks the stillness that the other
//! rests on, or the two would keep each other, and the plugin, awake.

use std::time::Duration;

use nix::{time::clock_getcpuclockid, unistd::Pid};

use crate::stats;

/// How often in a row stillness may stand for an answer: with the default interval of ten seconds
/// an idle plugin is asked once a minute.
const STILL_ROUNDS_MAX: u32 = 5;

/// What a plugin leaves behind when it does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traces {
    /// Calls that it was given so far, the host's own questions included.
    pub(crate) calls: u64,
    /// Processor time of each of its processes.
    pub(crate) processor: Vec<(u32, Duration)>,
}

impl Traces {
    /// Of the jail whose first process is `init`. `None` where that cannot be told, or where one
    /// of its processes is stopped and could not do anything if it wanted to.
    pub(crate) fn of(init: u32, calls: u64) -> Option<Self> {
        let used = |pid: u32| {
            let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).ok()?;
            (!stats::is_stopped(pid)?).then_some(())?;
            Some((pid, Duration::from(clock.now().ok()?)))
        };
        let processes = stats::descendants(init);
        let processor = processes.into_iter().map(used).collect::<Option<Vec<_>>>()?;
        (!processor.is_empty()).then_some(Self { calls, processor })
    }
}

/// What is known since the last answer.
#[derive(Debug, Default)]
pub(crate) struct Stillness {
    since: Option<Traces>,
    rounds: u32,
}

impl Stillness {
    /// It answered that it is well, and `traces` is what there was once it had; `None` where it
    /// did not, or where traces cannot be had.
    pub(crate) fn answered(&mut self, traces: Option<Traces>) {
        *self = Self { since: traces, rounds: 0 };
    }

    /// Nothing but one question of another kind lies between `before` and `after`: that is no sign
    /// of life of the plugin's own.
    pub(crate) fn disturbed(&mut self, before: Option<&Traces>, after: Option<&Traces>) {
        let asked = |before: &Traces, after: &Traces| after.calls == before.calls + 1;
        if let (Some(before), Some(after)) = (before, after)
            && self.since.as_ref() == Some(before)
            && asked(before, after)
        {
            self.since = Some(after.clone());
        }
    }

    /// Whether nothing at all was done since its last answer, however long that is ago. What it
    /// counts of itself is then what it counted.
    pub(crate) fn is_unbroken(&self, traces: Option<&Traces>) -> bool {
        traces.is_some() && traces == self.since.as_ref()
    }

    /// Whether its last answer still holds, now that there are these traces.
    pub(crate) fn holds(&mut self, traces: Option<&Traces>) -> bool {
        let still = self.is_unbroken(traces) && self.rounds < STILL_ROUNDS_MAX;
        self.rounds += 1;
        still
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(calls: u64, nanos: u64) -> Traces {
        Traces { calls, processor: vec![(7, Duration::from_nanos(nanos))] }
    }

    #[test]
    fn whoever_did_nothing_since_it_was_well_is_well_but_not_for_ever() {
        let mut stillness = Stillness::default();
        let nothing_done = traces(1, 100);
        stillness.answered(Some(nothing_done.clone()));
        for _ in 0..STILL_ROUNDS_MAX {
            assert!(stillness.holds(Some(&nothing_done)));
        }
        assert!(!stillness.holds(Some(&nothing_done)), "it is asked once in a while");
        stillness.answered(Some(nothing_done.clone()));
        assert!(stillness.holds(Some(&nothing_done)));
    }

    #[test]
    fn whoever_was_called_or_ran_or_cannot_be_seen_is_asked() {
        let mut stillness = Stillness::default();
        assert!(!stillness.holds(Some(&traces(0, 0))), "it never answered");
        for now in [Some(traces(2, 100)), Some(traces(1, 101)), None] {
            stillness.answered(Some(traces(1, 100)));
            assert!(!stillness.holds(now.as_ref()));
        }
        stillness.answered(None);
        assert!(!stillness.holds(None), "nothing seen is no stillness");
    }

    #[test]
    fn a_question_of_another_kind_is_no_sign_of_life_and_a_call_beside_it_is() {
        let (before, asked, called) = (traces(1, 100), traces(2, 150), traces(3, 150));
        let mut stillness = Stillness::default();
        stillness.disturbed(Some(&before), Some(&asked));
        assert!(!stillness.is_unbroken(Some(&asked)), "it never answered");
        stillness.answered(Some(before.clone()));
        stillness.disturbed(Some(&before), Some(&asked));
        assert!(stillness.is_unbroken(Some(&asked)) && stillness.holds(Some(&asked)));
        stillness.answered(Some(before.clone()));
        stillness.disturbed(Some(&before), Some(&called));
        assert!(!stillness.is_unbroken(Some(&called)));
        // It had done something already when it was asked.
        stillness.answered(Some(traces(0, 50)));
        stillness.disturbed(Some(&before), Some(&asked));
        assert!(!stillness.is_unbroken(Some(&asked)));
    }

    #[test]
    fn a_process_that_sleeps_is_still_and_a_stopped_one_is_not() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .expect("a shell is part of every system");
        // The shell stands for the first process of a jail; what it started is looked at.
        let look = || Traces::of(shell.id(), 0);
        let seen = |what: &dyn Fn() -> bool| {
            (0..1_000).any(|_| {
                std::thread::sleep(Duration::from_millis(2));
                what()
            })
        };
        let still = seen(&|| {
            let before = look();
            std::thread::sleep(Duration::from_millis(5));
            before.is_some() && before == look()
        });
        let pid = look().expect("it sleeps").processor[0].0;
        let sleeper = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(sleeper, rustix::process::Signal::STOP).expect("stopped");
        let stopped = seen(&|| look().is_none());
        rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).expect("killed");
        shell.wait().expect("ended");
        assert!(still && stopped, "still {still}, stopped {stopped}");
    }
}
