use proptest::{collection::vec, prelude::*};
use protocol::id::{InstanceId, NodeKey, PeerId};

use super::{order::LOAD_DIFFERENCE_MIN, *};
use crate::chance::Chance;

fn peer(number: u8) -> PeerId {
    NodeKey::from_seed([number; 32]).peer_id()
}

fn candidate(number: u8, local: bool, standing: Standing) -> Candidate {
    Candidate {
        peer: peer(if local { 0 } else { number }),
        local,
        instance: InstanceId(number.into()),
        plugin: "counter".into(),
        version: "1.2.0".into(),
        labels: BTreeMap::new(),
        load_percent: 0,
        standing,
    }
}

fn healthy(count: u8) -> Vec<Candidate> {
    (1..=count).map(|number| candidate(number, false, Standing::Healthy)).collect()
}

fn idle(candidates: &[Candidate]) -> Vec<Seen<'_>> {
    candidates.iter().map(|candidate| seen_of(candidate, 0, false)).collect()
}

fn seen_of(candidate: &Candidate, in_flight: u32, doubted: bool) -> Seen<'_> {
    let traits = Traits::of(candidate, &Policy::default());
    Seen { candidate, traits, in_flight, view: View { doubted, ..View::default() } }
}

fn want<'a>(locality: Locality, requirement: &'a Requirement, policy: &'a Policy) -> Want<'a> {
    Want { locality, requirement, policy, key: None, turn: 0, now: 0 }
}

fn anything() -> Requirement {
    Requirement::default()
}

fn first(seen: &[Seen<'_>], locality: Locality, chance: u64) -> usize {
    let (requirement, policy) = (anything(), Policy::default());
    select(seen, &want(locality, &requirement, &policy), chance).choices[0].index
}

prop_compose! {
    fn any_candidate()(
        number in 1..6_u8,
        local: bool,
        standing in prop_oneof![
            Just(Standing::Healthy), Just(Standing::Suspect), Just(Standing::Unreachable)
        ],
        load_percent in 0..=100_u8,
        minor in 0..3_u64,
        region in prop_oneof![Just("north"), Just("south")],
        in_flight in 0..5_u32,
        doubted: bool,
    ) -> (Candidate, u32, bool) {
        let candidate = Candidate {
            load_percent,
            version: format!("1.{minor}.0"),
            labels: [("region".to_owned(), region.to_owned())].into(),
            ..candidate(number, local, standing)
        };
        (candidate, in_flight, doubted)
    }
}

fn any_locality() -> impl Strategy<Value = Locality> {
    prop_oneof![
        Just(Locality::Local),
        Just(Locality::PreferLocal),
        Just(Locality::Any),
        (0..6_u8).prop_map(|number| Locality::Peer(peer(number))),
    ]
}

fn any_requirement() -> impl Strategy<Value = Requirement> {
    (any::<bool>(), any::<bool>()).prop_map(|(labelled, versioned)| Requirement {
        labels: labelled.then(|| ("region".into(), "north".into())).into_iter().collect(),
        version: versioned.then(|| ">=1.1".parse().expect("a requirement")),
    })
}

fn may_answer(candidate: &Candidate, want: &Want<'_>) -> bool {
    let placed = match want.locality {
        Locality::Local => candidate.local,
        Locality::Peer(peer) => candidate.peer == peer,
        Locality::PreferLocal | Locality::Any => true,
    };
    let labelled = want.requirement.labels.is_empty() || candidate.labels["region"] == "north";
    let versioned = want.requirement.version.is_none() || candidate.version != "1.0.0";
    placed && labelled && versioned
}

proptest! {
    #[test]
    fn exactly_those_who_may_answer_are_chosen_each_once(
        candidates in vec(any_candidate(), 0..12),
        locality in any_locality(),
        requirement in any_requirement(),
        chance: u64,
    ) {
        let seen: Vec<_> = candidates
            .iter()
            .map(|(candidate, in_flight, doubted)| seen_of(candidate, *in_flight, *doubted))
            .collect();
        let policy = Policy::default();
        let want = want(locality, &requirement, &policy);
        let selection = select(&seen, &want, chance);
        let mut met = vec![0; seen.len()];
        for choice in &selection.choices {
            met[choice.index] += 1;
            prop_assert!(may_answer(seen[choice.index].candidate, &want));
        }
        for refused in &selection.refused {
            met[refused.index] += 1;
            prop_assert!(!may_answer(seen[refused.index].candidate, &want));
        }
        prop_assert!(met.iter().all(|times| *times == 1));
        prop_assert_eq!(&select(&seen, &want, chance).choices, &selection.choices);

        for pair in selection.choices.windows(2) {
            let [better, worse] = [&seen[pair[0].index], &seen[pair[1].index]];
            let [first, second] = [standing(better, false), standing(worse, false)];
            prop_assert!(first <= second, "doubtful before healthy");
            if locality == Locality::PreferLocal && first == second {
                prop_assert!(better.candidate.local || !worse.candidate.local, "far before near");
            }
        }
    }

    #[test]
    fn the_busiest_of_several_is_never_first(
        count in 2..8_u8,
        busiest in 0..8_usize,
        chance: u64,
    ) {
        let candidates = healthy(count);
        let mut seen = idle(&candidates);
        let busiest = busiest % seen.len();
        seen[busiest].in_flight = 1;
        prop_assert_ne!(first(&seen, Locality::Any, chance), busiest);
    }
}

#[test]
fn equals_share_evenly() {
    const CALLS: u64 = 30_000;
    for count in [2_u8, 3, 7] {
        let candidates = healthy(count);
        let seen = idle(&candidates);
        let mut shares = vec![0_u64; seen.len()];
        for chance in 0..CALLS {
            shares[first(&seen, Locality::Any, chance)] += 1;
        }
        let fair = CALLS / u64::from(count);
        for share in &shares {
            assert!(share.abs_diff(fair) < fair / 20, "{count} share {CALLS} as {shares:?}");
        }
    }
}

#[test]
fn small_differences_in_reported_load_do_not_starve_anyone() {
    let mut candidates = healthy(2);
    candidates[1].load_percent = LOAD_DIFFERENCE_MIN - 1;
    let seen = idle(&candidates);
    let second = (0..1_000).filter(|chance| first(&seen, Locality::Any, *chance) == 1).count();
    assert!((400..600).contains(&second), "{second} of 1000");

    candidates[1].load_percent = LOAD_DIFFERENCE_MIN;
    let seen = idle(&candidates);
    assert!((0..1_000).all(|chance| first(&seen, Locality::Any, chance) == 0));
}

#[test]
fn a_local_one_that_has_just_failed_comes_after_healthy_remote_ones() {
    let candidates =
        [candidate(1, true, Standing::Healthy), candidate(2, false, Standing::Healthy)];
    let mut seen = idle(&candidates);
    assert_eq!(first(&seen, Locality::PreferLocal, 7), 0);
    seen[0].view.doubted = true;
    assert_eq!(first(&seen, Locality::PreferLocal, 7), 1);
    seen[1].view.doubted = true;
    assert_eq!(first(&seen, Locality::PreferLocal, 7), 0);
}

#[test]
fn every_place_in_the_order_has_its_reason() {
    let mut candidates = vec![
        candidate(1, true, Standing::Healthy),
        candidate(2, false, Standing::Healthy),
        candidate(3, false, Standing::Suspect),
        candidate(4, false, Standing::Unreachable),
        candidate(5, false, Standing::Healthy),
    ];
    candidates[4].version = "not semantic".into();
    let seen = idle(&candidates);
    let requirement = Requirement { version: "1".parse().ok(), ..anything() };
    let policy = Policy::default();
    let selection = select(&seen, &want(Locality::PreferLocal, &requirement, &policy), 1);
    let whys: Vec<_> = selection.choices.iter().map(|choice| (choice.index, choice.why)).collect();
    assert_eq!(
        whys,
        [(0, Why::OnThisNode), (1, Why::Elsewhere), (2, Why::Suspect), (3, Why::Unreachable)]
    );
    assert_eq!(
        selection.refused,
        [Refused { index: 4, why: Unfit::Version { required: "^1".into() } }]
    );
}

/// A queue of calls over providers of different speed, seeded: the slow one gets its share of the
/// work and no more, and nobody's queue runs away.
#[test]
fn slow_providers_get_less_and_nobody_piles_up() {
    const STEPS: u64 = 20_000;
    let candidates = healthy(5);
    // Calls finished per hundred steps; the sum is above the hundred that arrive.
    let speeds = [8_u64, 30, 30, 30, 30];
    for seed in 0..5_u64 {
        let mut in_flight = [0_u32; 5];
        let mut served = [0_u64; 5];
        let mut deepest = 0;
        for step in 0..STEPS {
            let seen: Vec<_> = candidates
                .iter()
                .zip(in_flight)
                .map(|(candidate, in_flight)| seen_of(candidate, in_flight, false))
                .collect();
            let chosen = first(&seen, Locality::Any, seed << 32 | step);
            in_flight[chosen] += 1;
            served[chosen] += 1;
            deepest = deepest.max(in_flight[chosen]);
            let mut chance = Chance::new(seed << 48 ^ step);
            for (queue, speed) in in_flight.iter_mut().zip(speeds) {
                if chance.below(100) < speed {
                    *queue = queue.saturating_sub(1);
                }
            }
        }
        assert!(deepest < 30, "seed {seed}: a queue of {deepest}");
        assert!(served[0] < served[1] / 2, "seed {seed}: {served:?}");
        assert!(served[0] > STEPS / 100, "seed {seed}: the slow one starves: {served:?}");
    }
}

/// How often each candidate comes first in `calls` calls under `policy`.
fn shares(seen: &[Seen<'_>], policy: &Policy, calls: u64) -> Vec<u64> {
    let requirement = anything();
    let mut shares = vec![0; seen.len()];
    for turn in 0..calls {
        let want = Want { turn, ..want(Locality::Any, &requirement, policy) };
        shares[select(seen, &want, turn).choices[0].index] += 1;
    }
    shares
}

#[test]
fn round_robin_gives_everybody_exactly_the_same() {
    let candidates = healthy(3);
    let policy = Policy { method: Method::RoundRobin, ..Policy::default() };
    assert_eq!(shares(&idle(&candidates), &policy, 300), [100, 100, 100]);
}

#[test]
fn weights_are_those_of_the_label_unless_the_policy_has_its_own() {
    let mut candidates = healthy(2);
    candidates[1].labels.insert(WEIGHT_LABEL.into(), "3".into());
    let mut policy = Policy { method: Method::Weighted, ..Policy::default() };
    let share = |policy: &Policy| {
        let traits = |candidate| Seen {
            traits: Traits::of(candidate, policy),
            ..seen_of(candidate, 0, false)
        };
        shares(&candidates.iter().map(traits).collect::<Vec<_>>(), policy, 4_000)[1]
    };
    assert!(share(&policy).abs_diff(3_000) < 150, "{}", share(&policy));
    policy.weights.insert(candidates[1].peer.to_string(), 1);
    assert!(share(&policy).abs_diff(2_000) < 150, "{}", share(&policy));
}

#[test]
fn the_one_that_answers_sooner_is_preferred_until_it_is_busy() {
    let candidates = healthy(2);
    let mut seen = idle(&candidates);
    let policy = Policy { method: Method::LowestLatency, ..Policy::default() };
    seen[0].view.latency = Some(1_000);
    seen[1].view.latency = Some(5_000);
    assert_eq!(shares(&seen, &policy, 100), [100, 0]);
    seen[0].in_flight = 5;
    assert_eq!(shares(&seen, &policy, 100), [0, 100]);
    seen[0].view.latency = None;
    assert_eq!(shares(&seen, &policy, 100), [0, 100], "the unknown one has enough to do");
    seen[0].in_flight = 0;
    assert_eq!(shares(&seen, &policy, 100), [100, 0], "the unknown one is tried");
}

#[test]
fn a_key_keeps_its_provider_when_others_come_and_go() {
    let candidates = healthy(5);
    let policy = Policy { method: Method::Hash, ..Policy::default() };
    let requirement = anything();
    let owner = |count: usize, key: u64| {
        let seen = idle(&candidates[..count]);
        let want = Want { key: Some(key), ..want(Locality::PreferLocal, &requirement, &policy) };
        select(&seen, &want, key).choices[0].index
    };
    let keys = 2_000;
    let mut moved = 0;
    let mut shares = [0_u64; 5];
    for key in 0..keys {
        let (before, after) = (owner(4, mix_of(key)), owner(5, mix_of(key)));
        shares[after] += 1;
        if before != after {
            assert_eq!(after, 4, "only to the new one");
            moved += 1;
        }
    }
    assert!((keys / 5).abs_diff(moved) < keys / 20, "{moved} of {keys} moved");
    assert!(shares.iter().all(|share| share.abs_diff(keys / 5) < keys / 20), "{shares:?}");
}

fn mix_of(key: u64) -> u64 {
    crate::chance::mix(key.wrapping_add(1))
}

#[test]
fn backups_wait_until_no_other_is_healthy() {
    let candidates = healthy(2);
    let policy = Policy { backups: [candidates[0].peer.to_string()].into(), ..Policy::default() };
    let requirement = anything();
    let first = |doubted: bool| {
        let mut seen: Vec<_> = candidates
            .iter()
            .map(|one| Seen { traits: Traits::of(one, &policy), ..seen_of(one, 0, false) })
            .collect();
        seen[1].view.doubted = doubted;
        select(&seen, &want(Locality::Any, &requirement, &policy), 3).choices[0]
    };
    assert_eq!(first(false).index, 1);
    assert_eq!((first(true).index, first(true).why), (0, Why::Backup));
}

#[test]
fn open_circuits_are_refused_and_a_trial_is_a_full_candidate() {
    let candidates = healthy(2);
    let mut seen = idle(&candidates);
    seen[0].view.circuit = Circuit::Open { until: 5_000 };
    seen[1].view = View { circuit: Circuit::Trial, doubted: true, ..View::default() };
    let (requirement, policy) = (anything(), Policy::default());
    let selection = select(&seen, &want(Locality::Any, &requirement, &policy), 3);
    assert_eq!(selection.choices, [Choice { index: 1, why: Why::Trial }]);
    assert_eq!(selection.refused[0].why, Unfit::CircuitOpen { for_micros: 5_000 });
}

proptest! {
    #[test]
    fn a_glance_chooses_what_could_come_first_after_all_were_weighed(
        candidates in vec(any_candidate(), 0..12),
        locality in any_locality(),
        requirement in any_requirement(),
        ejected in vec(any::<bool>(), 12),
        chance: u64,
    ) {
        let mut seen: Vec<_> = candidates
            .iter()
            .map(|(candidate, in_flight, doubted)| seen_of(candidate, *in_flight, *doubted))
            .collect();
        for (one, ejected) in seen.iter_mut().zip(ejected) {
            one.view.ejected_until = u64::from(ejected);
        }
        let policy = Policy::default();
        let want = want(locality, &requirement, &policy);
        let Some((index, other)) = glance(seen.len(), |index| seen[index], &want, chance) else {
            return Ok(());
        };
        let weighed = select(&seen, &want, chance);
        let rank_of = |index: usize| rank(&seen[index], false, &want);
        prop_assert_eq!(rank_of(index), rank_of(weighed.choices[0].index));
        for place in std::iter::once(index).chain(other) {
            prop_assert!(weighed.choices.iter().any(|one| one.index == place));
        }
        prop_assert_ne!(Some(index), other);
    }

    #[test]
    fn among_equals_a_glance_draws_as_weighing_does(
        in_flight in vec(0..4_u32, 1..12),
        chance: u64,
    ) {
        let candidates = healthy(in_flight.len() as u8);
        let mut seen = idle(&candidates);
        for (one, in_flight) in seen.iter_mut().zip(in_flight) {
            one.in_flight = in_flight;
        }
        let (requirement, policy) = (anything(), Policy::default());
        let want = want(Locality::Any, &requirement, &policy);
        let glanced = glance(seen.len(), |index| seen[index], &want, chance);
        let weighed = select(&seen, &want, chance).choices[0].index;
        prop_assert_eq!(glanced.map(|it| it.0), Some(weighed));
    }
}

proptest! {
    #[test]
    fn ejection_spares_more_than_half_and_never_empties_the_set(
        ejected in vec(any::<bool>(), 1..12),
        share_percent in 1..100_u32,
    ) {
        let candidates = healthy(ejected.len() as u8);
        let mut seen = idle(&candidates);
        for (one, ejected) in seen.iter_mut().zip(&ejected) {
            one.view.ejected_until = if *ejected { 10 } else { 0 };
        }
        let ejection = crate::policy::Ejection { share_percent, ..Default::default() };
        let policy = Policy { ejection: Some(ejection), ..Policy::default() };
        let requirement = anything();
        let selection = select(&seen, &want(Locality::Any, &requirement, &policy), 3);
        let out = selection.choices.iter().filter(|one| one.why == Why::Ejected).count();
        prop_assert_eq!(selection.choices.len(), seen.len());
        prop_assert!(out < seen.len() && out <= (seen.len() * share_percent as usize / 100).max(1));
    }
}
