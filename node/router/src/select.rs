//! The choice itself: pure, over a snapshot, with chance as an argument.
//!
//! Candidates fall into ranks: healthy ones before doubtful ones before unreachable ones, and
//! within each, where the caller prefers this node, local before remote. Within a rank the order
//! is drawn: two at random, the lighter one first (*the power of two choices*), so that providers
//! share the work evenly, busy ones get less of it, and no herd runs to whoever was idle a moment
//! ago.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use protocol::ports::Locality;

use crate::table::{Candidate, Standing};

/// Reported loads nearer to each other than this count as equal, in percentage points: reports
/// are seconds old, and a preference for the idler of two idle providers would starve the other.
const LOAD_DIFFERENCE_MIN: u8 = 20;

/// A candidate as the call sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Who.
    pub candidate: &'a Candidate,
    /// Calls of this node that it has not finished.
    pub in_flight: u32,
    /// A call to it failed moments ago.
    pub doubted: bool,
}

impl Seen<'_> {
    fn standing(&self) -> Standing {
        let least = if self.doubted { Standing::Suspect } else { Standing::Healthy };
        self.candidate.standing.max(least)
    }
}

/// What the call asks for.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// Where it may be answered.
    pub locality: Locality,
    /// What the provider must be.
    pub requirement: &'a Requirement,
}

/// What a provider must be, beside offering the service. The default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requirement {
    /// Labels it must have, with these values.
    pub labels: BTreeMap<String, String>,
    /// Versions it may have.
    pub version: Option<semver::VersionReq>,
}

/// Everything that was decided: whom to try in which order, and who is out.
#[derive(Debug, Default)]
pub struct Selection {
    /// Best first.
    pub choices: Vec<Choice>,
    /// Those that may not answer this call.
    pub refused: Vec<Refused>,
}

/// One that may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its place in the snapshot.
    pub index: usize,
    /// Why it stands where it stands.
    pub why: Why,
}

/// One that may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its place in the snapshot.
    pub index: usize,
    /// Why not.
    pub why: Unfit,
}

/// Orders `seen` for one call. The same arguments give the same answer.
pub fn select(seen: &[Seen<'_>], want: &Want<'_>, chance: u64) -> Selection {
    let mut selection = Selection::default();
    let mut ranked = Vec::with_capacity(seen.len());
    for (index, one) in seen.iter().enumerate() {
        match unfit(one.candidate, want) {
            None => ranked.push((rank(one, want.locality), index)),
            Some(why) => selection.refused.push(Refused { index, why }),
        }
    }
    ranked.sort_unstable();
    selection.choices.reserve(ranked.len());
    let mut chance = Chance(chance);
    for rank in ranked.chunk_by_mut(|a, b| a.0 == b.0) {
        draw(seen, rank, want.locality, &mut chance, &mut selection.choices);
    }
    selection
}

/// Smaller is better.
type Rank = (Standing, bool);

fn rank(one: &Seen<'_>, locality: Locality) -> Rank {
    (one.standing(), locality == Locality::PreferLocal && !one.candidate.local)
}

fn unfit(candidate: &Candidate, want: &Want<'_>) -> Option<Unfit> {
    match want.locality {
        Locality::Local if !candidate.local => return Some(Unfit::NotOnThisNode),
        Locality::Peer(peer) if candidate.peer != peer => return Some(Unfit::OtherPeer),
        _ => {}
    }
    for (key, value) in &want.requirement.labels {
        if candidate.labels.get(key) != Some(value) {
            return Some(Unfit::Label { key: key.clone(), value: value.clone() });
        }
    }
    let required = want.requirement.version.as_ref()?;
    let met = semver::Version::parse(&candidate.version).is_ok_and(|have| required.matches(&have));
    (!met).then(|| Unfit::Version { required: required.to_string() })
}

/// Moves the candidates of one rank into `choices`, the lighter of two random ones first.
fn draw(
    seen: &[Seen<'_>],
    rank: &mut [(Rank, usize)],
    locality: Locality,
    chance: &mut Chance,
    choices: &mut Vec<Choice>,
) {
    for next in 0..rank.len() {
        let left = rank.len() - next;
        let mut drawn = None;
        if left > 1 {
            let first = next + chance.below(left);
            // One of the others, so that the two are never the same.
            let second = next + (first - next + 1 + chance.below(left - 1)) % left;
            let order = weigh(&seen[rank[first].1], &seen[rank[second].1]);
            rank.swap(next, if order == Ordering::Greater { second } else { first });
            drawn = Some(order != Ordering::Equal);
        }
        let index = rank[next].1;
        choices.push(Choice { index, why: why(&seen[index], locality, drawn) });
    }
}

/// Which of two has less to do; `Equal` leaves it to chance.
fn weigh(a: &Seen<'_>, b: &Seen<'_>) -> Ordering {
    a.in_flight.cmp(&b.in_flight).then_with(|| {
        let (a, b) = (a.candidate.load_percent, b.candidate.load_percent);
        if a.abs_diff(b) < LOAD_DIFFERENCE_MIN { Ordering::Equal } else { a.cmp(&b) }
    })
}

fn why(one: &Seen<'_>, locality: Locality, drawn: Option<bool>) -> Why {
    match (one.standing(), locality) {
        (Standing::Unreachable, _) => Why::Unreachable,
        (Standing::Suspect, _) if one.candidate.standing == Standing::Suspect => Why::Suspect,
        (Standing::Suspect, _) => Why::Doubted,
        (Standing::Healthy, Locality::Peer(_)) => Why::Named,
        (Standing::Healthy, Locality::PreferLocal | Locality::Local) if one.candidate.local => {
            Why::OnThisNode
        }
        (Standing::Healthy, Locality::PreferLocal) => Why::Elsewhere,
        (Standing::Healthy, _) => match drawn {
            Some(true) => Why::Lighter,
            Some(false) => Why::Drawn,
            None => Why::Remaining,
        },
    }
}

/// A stream of draws from one number (splitmix64).
///
/// Source: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014.
struct Chance(u64);

impl Chance {
    /// A number below `bound`, every one as likely as the others (to 1 in 2^64).
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

/// Why a candidate stands where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is on this node, which the caller prefers.
    OnThisNode,
    /// It is elsewhere, behind any on this node.
    Elsewhere,
    /// The caller named its peer.
    Named,
    /// The lighter of two drawn at random.
    Lighter,
    /// Drawn at random among equals.
    Drawn,
    /// The only one left to draw.
    Remaining,
    /// A call to it failed moments ago: behind all healthy ones.
    Doubted,
    /// Its peer vanished without saying goodbye: behind all healthy ones.
    Suspect,
    /// No way to its peer is known: last of all.
    Unreachable,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnThisNode => "on this node, which is preferred",
            Self::Elsewhere => "on another peer, used when none on this node can",
            Self::Named => "on the peer that the caller named",
            Self::Lighter => "the one with less to do of two drawn at random",
            Self::Drawn => "drawn at random among equals",
            Self::Remaining => "the only one left",
            Self::Doubted => "a call to it has just failed, so it comes after the healthy ones",
            Self::Suspect => "its peer vanished, so it comes after the healthy ones",
            Self::Unreachable => "no way to its peer is known, so it comes last",
        })
    }
}

/// Why a candidate may not answer a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The caller wants this node only.
    NotOnThisNode,
    /// The caller named another peer.
    OtherPeer,
    /// A label is missing or has another value.
    Label {
        /// The label's key.
        key: String,
        /// The value asked for.
        value: String,
    },
    /// The version is another one, or not a semantic version.
    Version {
        /// The versions asked for.
        required: String,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnThisNode => f.write_str("not on this node, and the caller wants only this"),
            Self::OtherPeer => f.write_str("not on the peer that the caller named"),
            Self::Label { key, value } => write!(f, "has no label {key}={value}"),
            Self::Version { required } => write!(f, "its version does not meet {required}"),
        }
    }
}

#[cfg(test)]
mod tests;
