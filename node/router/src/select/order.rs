//! The order within one rank, by the service's method.

use std::cmp::{Ordering, Reverse};

use super::{Rank, Seen, Want, Why};
use crate::{
    chance::{Chance, mix},
    policy::Method,
};

/// Reported loads nearer to each other than this count as equal, in percentage points: reports
/// are seconds old, and a preference for the idler of two idle providers would starve the other.
pub(crate) const LOAD_DIFFERENCE_MIN: u8 = 20;

/// What a call in flight at a provider that has never answered counts as, in microseconds: it is
/// tried once, and not by everybody before it has answered.
const UNKNOWN_MICROS: u64 = 1_000_000;

/// What the order within a rank follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Turn,
    Weight,
    /// The session for which this stands.
    Key(u64),
    /// Again and again the better of two drawn at random.
    BetterOfTwo,
}

impl Rule {
    /// A call without a session is sent like those of services that have none.
    pub(super) fn of(want: &Want<'_>) -> Self {
        match (want.policy.method, want.key) {
            (Method::RoundRobin, _) => Self::Turn,
            (Method::Weighted, _) => Self::Weight,
            (Method::Hash, Some(key)) => Self::Key(key),
            (Method::Hash | Method::LowestLatency | Method::LeastLoaded, _) => Self::BetterOfTwo,
        }
    }
}

/// Hands the candidates of one rank to `place` in their order, each with the reason for its place.
pub(super) fn arrange(
    seen: &[Seen<'_>],
    rank: &mut [(Rank, usize)],
    want: &Want<'_>,
    chance: &mut Chance,
    mut place: impl FnMut(usize, Why),
) {
    if let [(_, only)] = rank {
        place(*only, Why::Remaining);
        return;
    }
    match Rule::of(want) {
        Rule::Turn => {
            rank.rotate_left((want.turn % rank.len() as u64) as usize);
            for (_, index) in rank {
                place(*index, Why::Turn);
            }
        }
        Rule::Key(key) => {
            rank.sort_by_key(|(_, index)| {
                let one = &seen[*index];
                (Reverse(mix(key ^ one.traits.identity)), one.candidate.instance)
            });
            for (_, index) in rank {
                place(*index, Why::Keyed);
            }
        }
        Rule::Weight => weighted(seen, rank, chance, place),
        Rule::BetterOfTwo => two_choices(seen, rank, chance, want.policy.method, place),
    }
}

/// Two different numbers below `count`, which is at least 2.
pub(super) fn two(count: usize, chance: &mut Chance) -> (usize, usize) {
    let first = chance.below(count as u64) as usize;
    // One of the others, so that the two are never the same.
    (first, (first + 1 + chance.below(count as u64 - 1) as usize) % count)
}

/// Whether the second of two is the better one, and why whichever is taken.
pub(super) fn better(a: &Seen<'_>, b: &Seen<'_>, method: Method) -> (bool, Why) {
    let (order, why) = match method {
        Method::LowestLatency => (sooner(a, b), Why::Sooner),
        _ => (lighter(a, b), Why::Lighter),
    };
    (order == Ordering::Greater, if order == Ordering::Equal { Why::Drawn } else { why })
}

/// Again and again the better of two drawn at random, so that providers share the work evenly,
/// worse ones get less of it, and no herd runs to whoever was best a moment ago.
///
/// Source: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001.
fn two_choices(
    seen: &[Seen<'_>],
    rank: &mut [(Rank, usize)],
    chance: &mut Chance,
    method: Method,
    mut place: impl FnMut(usize, Why),
) {
    for next in 0..rank.len() {
        let left = rank.len() - next;
        let mut reason = Why::Remaining;
        if left > 1 {
            let (first, second) = two(left, chance);
            let (first, second) = (next + first, next + second);
            let (is_second, why) = better(&seen[rank[first].1], &seen[rank[second].1], method);
            rank.swap(next, if is_second { second } else { first });
            reason = why;
        }
        place(rank[next].1, reason);
    }
}

/// Which of two has less to do; `Equal` leaves it to chance.
fn lighter(a: &Seen<'_>, b: &Seen<'_>) -> Ordering {
    a.in_flight.cmp(&b.in_flight).then_with(|| {
        let (a, b) = (a.candidate.load_percent, b.candidate.load_percent);
        if a.abs_diff(b) < LOAD_DIFFERENCE_MIN { Ordering::Equal } else { a.cmp(&b) }
    })
}

/// Which of two can be expected to answer sooner, each of its calls in flight coming first.
fn sooner(a: &Seen<'_>, b: &Seen<'_>) -> Ordering {
    let expected = |one: &Seen<'_>| {
        let in_flight = u64::from(one.in_flight);
        match one.view.latency {
            Some(latency) => latency.max(1).saturating_mul(in_flight + 1),
            None => in_flight * UNKNOWN_MICROS,
        }
    };
    expected(a).cmp(&expected(b))
}

fn weighted(
    seen: &[Seen<'_>],
    rank: &mut [(Rank, usize)],
    chance: &mut Chance,
    mut place: impl FnMut(usize, Why),
) {
    for next in 0..rank.len() {
        let weight = |(_, index): &(Rank, usize)| u64::from(seen[*index].traits.weight);
        let mut drawn = chance.below(rank[next..].iter().map(weight).sum());
        let hit = rank[next..].iter().position(|one| {
            let within = drawn < weight(one);
            drawn = drawn.saturating_sub(weight(one));
            within
        });
        rank.swap(next, next + hit.unwrap_or(0));
        place(rank[next].1, Why::Weighed);
    }
}
