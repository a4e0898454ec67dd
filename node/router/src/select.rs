//! The choice itself: pure, over a snapshot, with time and chance as arguments.
//!
//! Candidates fall into ranks: healthy ones before doubtful ones before unreachable ones, within
//! each those that are no mere backups first, and where the caller prefers this node, local before
//! remote. Within a rank the service's method decides (`order`). Who may not answer at all is told
//! apart, with the reason: another place, version or label, or an open circuit.
//!
//! Ejected candidates count as doubtful, but only a bounded share of them: where most providers
//! fail, it is no matter of single ones, and none is spared.

mod order;

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use protocol::ports::Locality;

use crate::{
    chance::digest,
    condition::{Circuit, View},
    policy::{Method, Policy, WEIGHT_LABEL, WEIGHT_MAX},
    table::{Candidate, Standing},
};

/// A candidate as the call sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Who.
    pub candidate: &'a Candidate,
    /// What the service's policy makes of it.
    pub traits: Traits,
    /// Calls of this node that it has not finished.
    pub in_flight: u32,
    /// What this node has observed of it.
    pub view: View,
}

/// What a policy makes of a candidate; the same for every call. The default is nothing special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Stands for its peer and plugin, the same in every run and at every peer.
    pub identity: u64,
    /// Its share of the work, 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Only used where no other is healthy.
    pub backup: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Self { identity: 0, weight: 1, backup: false }
    }
}

impl Traits {
    /// Of `candidate` under `policy`.
    pub fn of(candidate: &Candidate, policy: &Policy) -> Self {
        let peer = candidate.peer.to_string();
        let label = || candidate.labels.get(WEIGHT_LABEL)?.parse().ok();
        let named = policy.weights.get(&candidate.plugin).or_else(|| policy.weights.get(&peer));
        Self {
            identity: digest([candidate.plugin.as_bytes(), peer.as_bytes()]),
            weight: named.copied().or_else(label).unwrap_or(1).clamp(1, WEIGHT_MAX),
            backup: policy.backups.contains(&candidate.plugin) || policy.backups.contains(&peer),
        }
    }
}

/// What the call asks for, and what is to be known of the moment.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// Where it may be answered.
    pub locality: Locality,
    /// What the provider must be, beside what the policy asks for.
    pub requirement: &'a Requirement,
    /// The service's policy.
    pub policy: &'a Policy,
    /// Stands for the call's session, for [`Method::Hash`].
    pub key: Option<u64>,
    /// Counts the service's calls, for [`Method::RoundRobin`].
    pub turn: u64,
    /// Microseconds on the router's clock.
    pub now: u64,
}

impl Want<'_> {
    /// A session belongs to one provider, wherever it is.
    fn prefers_local(&self) -> bool {
        let by_key = self.policy.method == Method::Hash && self.key.is_some();
        self.locality == Locality::PreferLocal && !by_key
    }
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
    let mut fit = Vec::with_capacity(seen.len());
    for (index, one) in seen.iter().enumerate() {
        match unfit(one, want) {
            None => fit.push(index),
            Some(why) => selection.refused.push(Refused { index, why }),
        }
    }
    let ejected = ejected(seen, &fit, want);
    let mut ranked: Vec<(Rank, usize)> = fit
        .into_iter()
        .map(|index| (rank(&seen[index], ejected.contains(&index), want), index))
        .collect();
    ranked.sort_unstable();
    selection.choices.reserve(ranked.len());
    let mut chance = crate::chance::Chance::new(chance);
    for rank in ranked.chunk_by_mut(|a, b| a.0 == b.0) {
        order::arrange(seen, rank, want, &mut chance, |index, placed| {
            let why = why(&seen[index], ejected.contains(&index), want, placed);
            selection.choices.push(Choice { index, why });
        });
    }
    selection
}

/// The first that [`select`] could choose and another that could also answer, without a look at
/// all: where two of `count`, drawn at random, stand in the best rank there is, the better of them
/// is as good a choice as after all were weighed. Both by their places. `None` says nothing: weigh
/// them.
pub(crate) fn glance<'a>(
    count: usize,
    see: impl Fn(usize) -> Seen<'a>,
    want: &Want<'_>,
    chance: u64,
) -> Option<(usize, Option<usize>)> {
    let best = |one: &Seen<'_>| {
        unfit(one, want).is_none()
            && one.view.ejected_until <= want.now
            && rank(one, false, want) == (Standing::Healthy, false, false)
    };
    if count == 1 {
        return best(&see(0)).then_some((0, None));
    }
    if count == 0 || order::Rule::of(want) != order::Rule::BetterOfTwo {
        return None;
    }
    let (first, second) = order::two(count, &mut crate::chance::Chance::new(chance));
    let (a, b) = (see(first), see(second));
    if !best(&a) || !best(&b) {
        return None;
    }
    let (is_second, _) = order::better(&a, &b, want.policy.method);
    Some(if is_second { (second, Some(first)) } else { (first, Some(second)) })
}

/// Condition, whether it is a backup, whether it is far where near ones are preferred: smaller is
/// better.
type Rank = (Standing, bool, bool);

fn rank(one: &Seen<'_>, ejected: bool, want: &Want<'_>) -> Rank {
    let far = want.prefers_local() && !one.candidate.local;
    (standing(one, ejected), one.traits.backup, far)
}

fn standing(one: &Seen<'_>, ejected: bool) -> Standing {
    // A trial is how a provider comes back: it must not wait until all others are gone.
    let doubtful = (one.view.doubted || ejected) && one.view.circuit != Circuit::Trial;
    let least = if doubtful { Standing::Suspect } else { Standing::Healthy };
    one.candidate.standing.max(least)
}

/// Those of `fit` that are ejected: at most the policy's share of them, never all, the longest
/// ejected first.
fn ejected(seen: &[Seen<'_>], fit: &[usize], want: &Want<'_>) -> Vec<usize> {
    let Some(ejection) = &want.policy.ejection else { return Vec::new() };
    let out = |index: &&usize| seen[**index].view.ejected_until > want.now;
    let mut ejected: Vec<usize> = fit.iter().filter(out).copied().collect();
    if ejected.is_empty() {
        return ejected;
    }
    let share = fit.len() * ejection.share_percent as usize / 100;
    ejected.sort_by_key(|index| (Reverse(seen[*index].view.ejected_until), *index));
    // One of two may go: half of two is one. Of a single one none may.
    ejected.truncate(share.max(1).min(fit.len().saturating_sub(1)));
    ejected
}

fn unfit(one: &Seen<'_>, want: &Want<'_>) -> Option<Unfit> {
    let candidate = one.candidate;
    match want.locality {
        Locality::Local if !candidate.local => return Some(Unfit::NotOnThisNode),
        Locality::Peer(peer) if candidate.peer != peer => return Some(Unfit::OtherPeer),
        _ => {}
    }
    for requirement in [want.requirement, &want.policy.requirement] {
        if let Some(why) = unmet(candidate, requirement) {
            return Some(why);
        }
    }
    match one.view.circuit {
        Circuit::Open { until } => {
            Some(Unfit::CircuitOpen { for_micros: until.saturating_sub(want.now) })
        }
        Circuit::Closed | Circuit::Trial => None,
    }
}

fn unmet(candidate: &Candidate, requirement: &Requirement) -> Option<Unfit> {
    for (key, value) in &requirement.labels {
        if candidate.labels.get(key) != Some(value) {
            return Some(Unfit::Label { key: key.clone(), value: value.clone() });
        }
    }
    let required = requirement.version.as_ref()?;
    let met = semver::Version::parse(&candidate.version).is_ok_and(|have| required.matches(&have));
    (!met).then(|| Unfit::Version { required: required.to_string() })
}

fn why(one: &Seen<'_>, ejected: bool, want: &Want<'_>, placed: Why) -> Why {
    match (standing(one, ejected), want.locality) {
        (Standing::Unreachable, _) => Why::Unreachable,
        (Standing::Suspect, _) if one.candidate.standing == Standing::Suspect => Why::Suspect,
        (Standing::Suspect, _) if one.view.doubted => Why::Doubted,
        (Standing::Suspect, _) => Why::Ejected,
        (Standing::Healthy, _) if one.view.circuit == Circuit::Trial => Why::Trial,
        (Standing::Healthy, _) if one.traits.backup => Why::Backup,
        (Standing::Healthy, Locality::Peer(_)) => Why::Named,
        (Standing::Healthy, Locality::Local) => Why::OnThisNode,
        (Standing::Healthy, _) if want.prefers_local() && one.candidate.local => Why::OnThisNode,
        (Standing::Healthy, _) if want.prefers_local() => Why::Elsewhere,
        (Standing::Healthy, _) => placed,
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
    /// It is its turn.
    Turn,
    /// The one of two drawn at random that lately answered sooner.
    Sooner,
    /// Drawn at random by weight.
    Weighed,
    /// The call's key belongs to it, or it is next in line for the key.
    Keyed,
    /// Its circuit was open; this call would be the trial.
    Trial,
    /// Named as a backup: behind all others that are healthy.
    Backup,
    /// Calls to it failed again and again: behind all healthy ones for a while.
    Ejected,
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
            Self::Turn => "next in turn",
            Self::Sooner => "the one that answered sooner of two drawn at random",
            Self::Weighed => "drawn at random by weight",
            Self::Keyed => "next in line for the call's key",
            Self::Trial => "its circuit was open; one call is let through to see if it recovered",
            Self::Backup => "a backup, so it comes after the others that are healthy",
            Self::Ejected => "calls to it failed again and again, so it comes after healthy ones",
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
    /// Calls to it failed again and again: none is sent for a while.
    CircuitOpen {
        /// How long still, in microseconds.
        for_micros: u64,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnThisNode => f.write_str("not on this node, and the caller wants only this"),
            Self::OtherPeer => f.write_str("not on the peer that the caller named"),
            Self::Label { key, value } => write!(f, "has no label {key}={value}"),
            Self::Version { required } => write!(f, "its version does not meet {required}"),
            Self::CircuitOpen { for_micros } => {
                let millis = for_micros.div_ceil(1_000);
                write!(f, "its circuit is open after failures; a trial is due in {millis} ms")
            }
        }
    }
}

#[cfg(test)]
mod tests;
