//! Whether a plugin that answered must be asked the same again: whether it is well, what its
//! figures are. Pure, but for [`Traces`], which look.
//!
//! A program that was not called and used no processor time since it said that it was well has not
//! changed: asking would only wake it, and the node, for the same answer. With a thousand idle
//! plugins that is most of what the node does. It is asked all the same after a while, because
//! what a program depends on can fail while it sleeps. Its figures need no such exception: whoever
//! did nothing has counted nothing. Neither kind of question breaks the stillness that the other
//! rests on, or the two would keep each other, and the plugin, awake.

use crate::stats::{self, Clocks};

/// How often in a row stillness may stand for an answer: with the default interval of ten seconds
/// an idle plugin is asked once a minute.
const STILL_ROUNDS_MAX: u32 = 5;

/// What a plugin leaves behind when it does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traces {
    /// Calls that it was given so far, the host's own questions included.
    pub(crate) calls: u64,
    /// Processor time of each of its processes.
    pub(crate) clocks: Clocks,
}

impl Traces {
    /// Of the jail whose first process is `init`; blocks. `None` where that cannot be told, or
    /// where one of its processes is stopped and could not do anything if it wanted to.
    pub(crate) fn of(init: u32, calls: u64) -> Option<Self> {
        let clocks = Clocks::of(init)?;
        let all_may_run = clocks.pids().all(|pid| stats::is_stopped(pid) == Some(false));
        all_may_run.then_some(Self { calls, clocks })
    }

    /// Whether they are what there is now.
    fn are_all(&self, calls: u64) -> bool {
        self.calls == calls && self.clocks.stand()
    }
}

/// What is known of one run, shared by all who ask it something regularly: a question of one is
/// not a reason for the others to ask.
#[derive(Debug, Default)]
pub(crate) struct Stillness {
    since: Option<Traces>,
    /// How often a look found that it had done something.
    stirred: u64,
}

impl Stillness {
    /// Whether it did nothing since it was last looked at, having been given `calls` so far; then
    /// how often it was found to have done something before.
    pub(crate) fn still(&self, calls: u64) -> Option<u64> {
        let since = self.since.as_ref()?;
        since.are_all(calls).then_some(self.stirred)
    }

    /// Notes what a look found, and tells how often it was found to have done something.
    pub(crate) fn note(&mut self, traces: Option<Traces>) -> u64 {
        if traces.is_none() || traces != self.since {
            self.stirred += 1;
            self.since = traces;
        }
        self.stirred
    }

    /// It answered a question, and `traces` is what there was afterwards. What the question itself
    /// left behind counts for nothing; where others called meanwhile, the next look finds it.
    pub(crate) fn answered(&mut self, traces: Option<Traces>) {
        let calls = |traces: &Option<Traces>| traces.as_ref().map(|traces| traces.calls);
        if calls(&traces).is_some_and(|now| Some(now) == calls(&self.since).map(|was| was + 1)) {
            self.since = traces;
        }
    }
}

/// One who asks regularly, and what the last answer covers.
#[derive(Debug, Default)]
pub(crate) struct Asker {
    stirred: Option<u64>,
    rounds: u32,
}

impl Asker {
    /// Whether its last answer still holds, after a look that told `stirred`.
    pub(crate) fn holds(&mut self, stirred: u64) -> bool {
        self.rounds += 1;
        self.stirred == Some(stirred)
    }

    /// The same, but not for ever.
    pub(crate) fn holds_for_now(&mut self, stirred: u64) -> bool {
        self.holds(stirred) && self.rounds <= STILL_ROUNDS_MAX
    }

    /// It was answered, after a look that told `stirred`; `None` where the answer stands for
    /// nothing.
    pub(crate) fn answered(&mut self, stirred: Option<u64>) {
        *self = Self { stirred, rounds: 0 };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn traces(calls: u64, nanos: u64) -> Traces {
        Traces { calls, clocks: Clocks(vec![(7, Duration::from_nanos(nanos))]) }
    }

    /// Asks if it has to, as supervisors do, and tells whether it did.
    fn round(stillness: &mut Stillness, asker: &mut Asker, now: &mut (u64, u64)) -> bool {
        let stirred = stillness.note(Some(traces(now.0, now.1)));
        if asker.holds_for_now(stirred) {
            return false;
        }
        *now = (now.0 + 1, now.1 + 1_000);
        stillness.answered(Some(traces(now.0, now.1)));
        asker.answered(Some(stirred));
        true
    }

    #[test]
    fn whoever_did_nothing_since_it_was_well_is_well_but_not_for_ever() {
        let (mut stillness, mut asker, mut now) = (Stillness::default(), Asker::default(), (0, 5));
        for _ in 0..3 {
            assert!(round(&mut stillness, &mut asker, &mut now), "it is asked once in a while");
            for _ in 0..STILL_ROUNDS_MAX {
                assert!(!round(&mut stillness, &mut asker, &mut now));
            }
        }
    }

    #[test]
    fn a_question_of_one_is_no_reason_for_another_to_ask() {
        let mut stillness = Stillness::default();
        let (mut health, mut figures, mut now) = (Asker::default(), Asker::default(), (0, 5));
        assert!(round(&mut stillness, &mut health, &mut now));
        assert!(round(&mut stillness, &mut figures, &mut now), "it was never answered");
        assert!(!round(&mut stillness, &mut health, &mut now));
        assert!(!round(&mut stillness, &mut figures, &mut now));
        // One call, and both want to know.
        now.0 += 1;
        assert!(round(&mut stillness, &mut figures, &mut now));
        assert!(round(&mut stillness, &mut health, &mut now));
        assert!(!round(&mut stillness, &mut figures, &mut now));
    }

    #[test]
    fn whoever_was_called_or_ran_or_cannot_be_seen_is_asked() {
        let mut stillness = Stillness::default();
        let first = stillness.note(Some(traces(1, 100)));
        assert_eq!(stillness.note(Some(traces(1, 100))), first);
        let called = stillness.note(Some(traces(2, 100)));
        let ran = stillness.note(Some(traces(2, 101)));
        let unseen = stillness.note(None);
        let unseen_again = stillness.note(None);
        assert!(first < called && called < ran && ran < unseen && unseen < unseen_again);
    }

    #[test]
    fn calls_during_a_question_are_found_by_the_next_look() {
        let mut stillness = Stillness::default();
        let first = stillness.note(Some(traces(1, 100)));
        // The question, and one call more.
        stillness.answered(Some(traces(3, 900)));
        assert!(stillness.note(Some(traces(3, 900))) > first);
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
        let asleep = look().expect("it sleeps");
        assert!(asleep.are_all(0) && !asleep.are_all(1));
        let pid = asleep.clocks.0[0].0;
        let sleeper = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(sleeper, rustix::process::Signal::STOP).expect("stopped");
        let stopped = seen(&|| look().is_none()) && !asleep.are_all(0);
        rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).expect("killed");
        shell.wait().expect("ended");
        assert!(still && stopped, "still {still}, stopped {stopped}");
    }
}
