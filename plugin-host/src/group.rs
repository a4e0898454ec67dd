//! Groups of plugins that live and fall together: who is stopped and started when one of them
//! ends. Pure; [`crate::host`] performs it.
//!
//! OTP's three strategies. Members have one order, that in which they start; they stop in the
//! opposite one.

/// What the end of one member means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strategy {
    /// Nothing: only the one that ended starts again.
    #[default]
    OneForOne,
    /// All others are stopped, and all start again: none can work beside a fresh sibling.
    OneForAll,
    /// Those that started after it are stopped and start again with it: they build on it.
    RestForOne,
}

impl Strategy {
    /// Every strategy under the name that configurations and people use.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("one-for-one", Self::OneForOne),
        ("one-for-all", Self::OneForAll),
        ("rest-for-one", Self::RestForOne),
    ];

    /// The name shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneForOne => "one-for-one",
            Self::OneForAll => "one-for-all",
            Self::RestForOne => "rest-for-one",
        }
    }
}

/// One step; each is complete before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action<M> {
    /// Drain and end this member, and hold it. One that does not run is only held.
    Stop(M),
    /// Start this member, and wait until it is ready.
    Start(M),
}

/// What is to be done after `who` of `members`, which are in start order, has ended and is to be
/// started again. Nothing where `who` is no member any more.
pub fn after_end<M: Copy + PartialEq>(strategy: Strategy, members: &[M], who: M) -> Vec<Action<M>> {
    let Some(place) = members.iter().position(|member| *member == who) else { return Vec::new() };
    let touched = match strategy {
        Strategy::OneForOne => &members[place..=place],
        Strategy::OneForAll => members,
        Strategy::RestForOne => &members[place..],
    };
    let stops = touched.iter().rev().filter(|member| **member != who).copied().map(Action::Stop);
    stops.chain(touched.iter().copied().map(Action::Start)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::{Action, Strategy, after_end};

    #[test]
    fn each_strategy_touches_whom_it_should_in_order() {
        use Action::{Start, Stop};
        let members = ['a', 'b', 'c'];
        assert_eq!(after_end(Strategy::OneForOne, &members, 'b'), [Start('b')]);
        assert_eq!(
            after_end(Strategy::OneForAll, &members, 'b'),
            [Stop('c'), Stop('a'), Start('a'), Start('b'), Start('c')]
        );
        assert_eq!(
            after_end(Strategy::RestForOne, &members, 'b'),
            [Stop('c'), Start('b'), Start('c')]
        );
        assert_eq!(after_end(Strategy::OneForAll, &members, 'x'), []);
    }

    /// A group played with the decider's steps: who runs, and in which order they started last.
    fn play(strategy: Strategy, members: &[u8], ends: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut running = members.to_vec();
        for who in ends {
            running.retain(|member| member != who);
            for action in after_end(strategy, members, *who) {
                match action {
                    Action::Stop(member) => running.retain(|it| *it != member),
                    Action::Start(member) => running.push(member),
                }
            }
        }
        let mut all = running.clone();
        all.sort_unstable();
        (all, running)
    }

    proptest! {
        #[test]
        fn after_any_ends_all_run_once_and_those_behind_started_later(
            count in 1_u8..8,
            ends in proptest::collection::vec(0_u8..8, 0..20),
            strategy in proptest::sample::select(Strategy::NAMES.map(|(_, it)| it).to_vec()),
        ) {
            let members: Vec<u8> = (0..count).collect();
            let ends: Vec<u8> = ends.into_iter().filter(|who| *who < count).collect();
            let (all, started) = play(strategy, &members, &ends);
            prop_assert_eq!(&all, &members);
            if strategy != Strategy::OneForOne {
                // Whoever builds on another started after it, whatever has happened.
                prop_assert_eq!(&started, &members);
            }
        }

        #[test]
        fn nobody_before_the_one_that_ended_is_touched_by_rest_for_one(
            count in 1_u8..8, who in 0_u8..8,
        ) {
            let members: Vec<u8> = (0..count).collect();
            for action in after_end(Strategy::RestForOne, &members, who) {
                let (Action::Stop(member) | Action::Start(member)) = action;
                prop_assert!(member >= who);
            }
        }
    }
}
