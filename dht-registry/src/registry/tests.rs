//! What the machine promises, with two or three of them talking by hand.

use protocol::{
    advert::{Advert, ServiceOffer},
    limits::{
        ABSENT_MILLIS, ADVERT_BYTES_MAX, ADVERT_REFRESH_MILLIS, ADVERT_TTL_MILLIS,
        LOOKUP_MILLIS_MAX,
    },
};

use super::*;
use crate::{
    event::{Offer, OfferRefused},
    strikes::{STRIKES_MAX, STRIKES_MILLIS},
    trust::SUSPECT_MILLIS,
};

const BOOT: u64 = 1_700_000_000_000;
const NOW: u64 = BOOT + 1_000;

fn key(n: u16) -> NodeKey {
    let mut seed = [9; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    NodeKey::from_seed(seed)
}

fn peer(n: u16) -> PeerId {
    key(n).peer_id()
}

fn network() -> NetworkName {
    NetworkName::default()
}

fn service(name: &str) -> ServiceName {
    name.parse().expect(name)
}

fn limited(n: u16, boot: u64, limits: Limits) -> Registry {
    let chance = u64::from(n);
    Registry::new(Settings { key: key(n), network: network(), boot, chance, limits })
}

fn registry(n: u16) -> Registry {
    limited(n, BOOT, Limits::default())
}

fn offer(instance: u64, services: &[&str]) -> Offer {
    let services = services.iter();
    Offer {
        instance: InstanceId(instance),
        plugin: "counter".into(),
        version: "1.0.0".parse().expect("version"),
        services: services
            .map(|name| ServiceOffer { name: service(name), schema: [7; 32] })
            .collect(),
        labels: BTreeMap::new(),
        isolation: "process".into(),
        price: None,
    }
}

/// An advert of peer `n`, as it would sign it.
fn advert(n: u16, instance: u64, seq: u64, name: &str) -> Advert {
    Advert {
        network: network(),
        peer: peer(n),
        boot: BOOT,
        instance: InstanceId(instance),
        part: 0,
        plugin: "counter".into(),
        version: "1.0.0".parse().expect("version"),
        services: vec![ServiceOffer { name: service(name), schema: [7; 32] }],
        labels: BTreeMap::new(),
        isolation: "process".into(),
        load: 0,
        price: None,
        seq,
        issued: NOW,
        expires: NOW + ADVERT_TTL_MILLIS,
        withdrawn: false,
    }
}

fn bytes(n: u16, advert: &Advert) -> Vec<u8> {
    advert.sign(&key(n)).expect("fits").bytes().to_vec()
}

fn withdrawal(mut advert: Advert, seq: u64) -> Advert {
    advert.seq = seq;
    advert.services.clear();
    advert.withdrawn = true;
    advert
}

/// Gossips `data` to `registry` from the neighbour `from`, and gives its verdict.
fn gossip(registry: &mut Registry, from: u16, data: Vec<u8>, now: u64) -> Verdict {
    let effects = registry.handle(Event::Gossip { from: peer(from), data, token: Token(5) }, now);
    let verdicts = effects.into_iter().filter_map(|effect| match effect {
        Effect::Verdict { token: Token(5), verdict } => Some(verdict),
        _ => None,
    });
    verdicts.last().expect("every message gets a verdict")
}

fn published(effects: &[Effect]) -> Vec<Vec<u8>> {
    let published = effects.iter().filter_map(|effect| match effect {
        Effect::Publish(bytes) => Some(bytes.to_vec()),
        _ => None,
    });
    published.collect()
}

fn listed(registry: &mut Registry, name: &str) -> Vec<(PeerId, bool)> {
    let directory = registry.directory();
    directory.providers(&service(name)).iter().map(|one| (one.peer, one.suspect)).collect()
}

/// Carries what `newcomer` (peer 2) asks of `old` (peer 1) until it asks no more; counts pages.
fn converse(newcomer: &mut Registry, effects: Vec<Effect>, old: &mut Registry) -> usize {
    let mut pages = 0;
    let mut effects = effects;
    loop {
        let fetch = effects.iter().find_map(|effect| match effect {
            Effect::Fetch { id, peer, request } => Some((*id, *peer, request.clone())),
            _ => None,
        });
        let Some((fetch, to, data)) = fetch else {
            return pages;
        };
        assert_eq!(to, peer(1));
        let event = Event::Requested { peer: peer(2), data, token: Token(1) };
        let answer = old.handle(event, NOW).into_iter().find_map(|effect| match effect {
            Effect::Answer { reply, .. } => Some(reply),
            _ => None,
        });
        pages += 1;
        effects = newcomer.handle(Event::Replied { fetch, reply: answer }, NOW);
    }
}

#[test]
fn a_newcomers_view_is_whole_after_one_connection() {
    let mut old = registry(1);
    let mut newcomer = registry(2);
    for n in 10..14_u16 {
        let connected = old.handle(Event::PeerConnected(peer(n)), NOW);
        assert!(!connected.is_empty());
        for instance in 0..700 {
            let data = bytes(n, &advert(n, instance, 1, "demo.v1.Counter"));
            assert_eq!(gossip(&mut old, n, data, NOW), Verdict::Accept);
        }
    }
    let effects = newcomer.handle(Event::PeerConnected(peer(1)), NOW);
    let pages = converse(&mut newcomer, effects, &mut old);
    assert_eq!(pages, 2_801_usize.div_ceil(PAGE_ADVERTS_MAX), "2,800 adverts and a boot mark");
    assert_eq!(listed(&mut newcomer, "demo.v1.Counter").len(), 2_800);
    assert_eq!(newcomer.directory(), old.directory());
}

#[test]
fn a_plugin_of_many_services_is_announced_in_parts() {
    let names: Vec<String> = (0..40).map(|n| format!("demo.v1.Service{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut one, mut other) = (registry(1), registry(2));
    one.handle(Event::PeerConnected(peer(2)), NOW);
    let messages = published(&one.handle(Event::Offered(offer(3, &names)), NOW));
    assert!(messages.len() >= 3, "{}", messages.len());
    for message in messages {
        assert!(message.len() <= ADVERT_BYTES_MAX);
        gossip(&mut other, 1, message, NOW);
    }
    for name in &names {
        assert_eq!(listed(&mut other, name), [(peer(1), false)], "{name}");
    }
    // Fewer services: the parts left over are withdrawn.
    for message in published(&one.handle(Event::Offered(offer(3, &names[..1])), NOW)) {
        gossip(&mut other, 1, message, NOW);
    }
    assert_eq!(other.directory().len(), 1);
    assert_eq!(one.directory().len(), 1);
}

#[test]
fn services_of_the_longest_names_are_announced_too() {
    let names: Vec<String> = (0..3).map(|n| format!("s{n}{}", "x".repeat(253))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut one = registry(1);
    let effects = one.handle(Event::Offered(offer(3, &names)), NOW);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::OfferRefused { .. })));
    assert_eq!(one.directory().len(), 3);
}

#[test]
fn what_cannot_be_announced_is_refused_with_the_reason() {
    let mut one = registry(1);
    let mut long = offer(1, &["demo.v1.A"]);
    long.plugin = "x".repeat(100);
    let effects = one.handle(Event::Offered(long), NOW);
    assert!(matches!(
        effects[..],
        [Effect::OfferRefused { instance: InstanceId(1), reason: OfferRefused::Unfit(_) }]
    ));
    let names: Vec<String> = (0..2_000).map(|n| format!("s{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let effects = one.handle(Event::Offered(offer(2, &names)), NOW);
    assert!(
        matches!(
            effects[..],
            [Effect::OfferRefused {
                reason: OfferRefused::TooManyServices { services: 2_000, .. },
                ..
            }]
        ),
        "{effects:?}"
    );
    assert!(one.directory().is_empty());
}

#[test]
fn health_and_reflection_are_never_announced() {
    let mut one = registry(1);
    let names = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let effects = one.handle(Event::Offered(offer(1, &names)), NOW);
    assert_eq!(effects, [Effect::DirectoryChanged]);
    assert!(one.directory().is_empty());
}

#[test]
fn a_local_offer_is_listed_and_provided_at_once_and_gone_at_once() {
    let mut one = registry(1);
    let key = provider_key(&network(), &service("demo.v1.A"), SHARD);
    let effects = one.handle(Event::Offered(offer(1, &["demo.v1.A"])), NOW);
    assert!(effects.contains(&Effect::Provide(key)));
    assert!(effects.contains(&Effect::DirectoryChanged));
    assert!(one.directory().has_local(&service("demo.v1.A")));
    // A second instance keeps the key provided when the first goes.
    one.handle(Event::Offered(offer(2, &["demo.v1.A"])), NOW);
    let effects = one.handle(Event::Withdrawn(InstanceId(1)), NOW);
    assert!(!effects.contains(&Effect::StopProviding(key)));
    let effects = one.handle(Event::Withdrawn(InstanceId(2)), NOW);
    assert!(effects.contains(&Effect::StopProviding(key)));
    assert!(one.directory().is_empty());
}

#[test]
fn a_withdrawal_is_final_whatever_is_replayed() {
    let mut one = registry(1);
    let first = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    let second = bytes(2, &advert(2, 1, 2, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 2, second.clone(), NOW), Verdict::Accept);
    let last = withdrawal(advert(2, 1, 0, "demo.v1.A"), 3);
    assert_eq!(gossip(&mut one, 2, bytes(2, &last), NOW), Verdict::Accept);
    for now in [NOW, NOW + ADVERT_TTL_MILLIS - 1, NOW + ADVERT_TTL_MILLIS] {
        for replay in [&first, &second] {
            assert_eq!(gossip(&mut one, 3, replay.clone(), now), Verdict::Ignore);
            assert!(one.directory().is_empty());
        }
    }
    assert_eq!(one.census().adverts, 0, "the tombstone is gone with what it withdrew");
}

#[test]
fn an_older_advert_never_replaces_a_newer_one() {
    let mut one = registry(1);
    let mut newer = advert(2, 1, 2, "demo.v1.New");
    newer.load = 5;
    assert_eq!(gossip(&mut one, 2, bytes(2, &newer), NOW), Verdict::Accept);
    let older = bytes(2, &advert(2, 1, 1, "demo.v1.Old"));
    assert_eq!(gossip(&mut one, 2, older, NOW), Verdict::Ignore);
    assert_eq!(listed(&mut one, "demo.v1.New").len(), 1);
    assert!(listed(&mut one, "demo.v1.Old").is_empty());
}

#[test]
fn a_newer_boot_ends_all_of_the_older_one() {
    let mut one = registry(1);
    for instance in 1..4 {
        let data = bytes(2, &advert(2, instance, instance + 7, "demo.v1.A"));
        assert_eq!(gossip(&mut one, 2, data, NOW), Verdict::Accept);
    }
    let mut reborn = advert(2, 9, 1, "demo.v1.B");
    reborn.boot = BOOT + 500;
    assert_eq!(gossip(&mut one, 2, bytes(2, &reborn), NOW), Verdict::Accept);
    assert!(listed(&mut one, "demo.v1.A").is_empty());
    let old = bytes(2, &advert(2, 1, 99, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 2, old, NOW), Verdict::Ignore);
    assert!(listed(&mut one, "demo.v1.A").is_empty());
}

#[test]
fn a_node_that_restarts_with_nothing_ends_what_it_offered_before() {
    let mut one = registry(1);
    let data = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 2, data, NOW), Verdict::Accept);
    let mut reborn = limited(2, NOW, Limits::default());
    let said = published(&reborn.handle(Event::PeerConnected(peer(1)), NOW + 100));
    assert_eq!(said.len(), 1, "the boot mark");
    assert_eq!(gossip(&mut one, 2, said[0].clone(), NOW + 100), Verdict::Accept);
    assert!(one.directory().is_empty());
}

#[test]
fn forged_altered_and_foreign_adverts_are_rejected_and_counted() {
    let mut one = registry(1);
    let mut forged = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    forged[80] ^= 1;
    let mut penalised = false;
    for nth in 1..=STRIKES_MAX {
        let data = forged.clone();
        let effects = one.handle(Event::Gossip { from: peer(3), data, token: Token(0) }, NOW);
        let verdict = Effect::Verdict { token: Token(0), verdict: Verdict::Reject };
        assert!(effects.contains(&verdict), "lie {nth}");
        penalised |= effects.contains(&Effect::Penalise(peer(3)));
        assert_eq!(penalised, nth == STRIKES_MAX);
    }
    let honest = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 3, honest.clone(), NOW), Verdict::Ignore, "not listened to");
    assert!(one.directory().is_empty());
    assert_eq!(gossip(&mut one, 4, honest, NOW), Verdict::Accept, "others are");
    assert_eq!(listed(&mut one, "demo.v1.A").len(), 1);
    let forgiven = NOW + STRIKES_MILLIS;
    let renewed =
        Advert { issued: forgiven, expires: forgiven + 1, ..advert(2, 1, 2, "demo.v1.A") };
    assert_eq!(gossip(&mut one, 3, bytes(2, &renewed), forgiven), Verdict::Accept);
}

#[test]
fn what_expires_is_gone_at_its_time() {
    let mut one = registry(1);
    let data = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    gossip(&mut one, 2, data, NOW);
    one.handle(Event::Tick, NOW + ADVERT_TTL_MILLIS - 1);
    assert_eq!(listed(&mut one, "demo.v1.A").len(), 1);
    let effects = one.handle(Event::Tick, NOW + ADVERT_TTL_MILLIS);
    assert!(effects.contains(&Effect::DirectoryChanged));
    assert!(one.directory().is_empty());
}

#[test]
fn a_lost_peer_is_suspect_then_hidden_and_back_when_heard_of() {
    let mut one = registry(1);
    one.handle(Event::PeerConnected(peer(2)), NOW);
    gossip(&mut one, 2, bytes(2, &advert(2, 1, 1, "demo.v1.A")), NOW);
    let effects = one.handle(Event::PeerDisconnected { peer: peer(2), abrupt: true }, NOW);
    assert!(effects.contains(&Effect::DirectoryChanged));
    assert_eq!(listed(&mut one, "demo.v1.A"), [(peer(2), true)]);
    let effects = one.handle(Event::Tick, NOW + SUSPECT_MILLIS);
    assert!(effects.contains(&Effect::DirectoryChanged));
    assert!(one.directory().is_empty());
    let replay = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 3, replay, NOW + SUSPECT_MILLIS), Verdict::Ignore);
    assert!(one.directory().is_empty(), "what is known of it proves no life");
    let sign_of_life = bytes(2, &advert(2, 1, 2, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 3, sign_of_life, NOW + SUSPECT_MILLIS), Verdict::Accept);
    assert_eq!(listed(&mut one, "demo.v1.A"), [(peer(2), false)]);
}

#[test]
fn a_connection_closed_in_good_order_makes_nobody_suspect() {
    let mut one = registry(1);
    one.handle(Event::PeerConnected(peer(2)), NOW);
    gossip(&mut one, 2, bytes(2, &advert(2, 1, 1, "demo.v1.A")), NOW);
    one.handle(Event::PeerDisconnected { peer: peer(2), abrupt: false }, NOW);
    assert_eq!(listed(&mut one, "demo.v1.A"), [(peer(2), false)]);
}

#[test]
fn everything_is_announced_again_when_the_first_peer_connects() {
    let mut one = registry(1);
    let effects = one.handle(Event::Offered(offer(1, &["demo.v1.A"])), NOW);
    assert!(published(&effects).is_empty(), "nobody would hear it");
    let effects = one.handle(Event::PeerConnected(peer(2)), NOW + 5);
    assert_eq!(published(&effects).len(), 2, "the offer and the boot mark");
    // Gossip has no subscribers yet: tried again soon, not only at the next renewal.
    one.handle(Event::Unpublished, NOW + 5);
    let due = one.next_timer().expect("something is due");
    assert!(due <= NOW + 1_000, "{}", due - NOW);
    assert!(!published(&one.handle(Event::Tick, NOW + 1_000)).is_empty());
}

#[test]
fn adverts_are_renewed_before_they_expire() {
    let mut one = registry(1);
    one.handle(Event::PeerConnected(peer(2)), NOW);
    let mut other = registry(2);
    for data in published(&one.handle(Event::Offered(offer(1, &["demo.v1.A"])), NOW)) {
        gossip(&mut other, 1, data, NOW);
    }
    let mut now = NOW;
    while now < NOW + 5 * ADVERT_TTL_MILLIS {
        now = one.next_timer().expect("there is always a renewal due").max(now);
        for data in published(&one.handle(Event::Tick, now)) {
            gossip(&mut other, 1, data, now);
        }
        assert_eq!(listed(&mut other, "demo.v1.A").len(), 1);
        let expires = other.directory().providers(&service("demo.v1.A"))[0].expires();
        assert!(expires > now + ADVERT_TTL_MILLIS - 2 * ADVERT_REFRESH_MILLIS);
    }
}

#[test]
fn a_renewal_shows_late_and_a_change_at_once() {
    let mut one = registry(1);
    let gossip = |one: &mut Registry, seq, load| {
        let data = bytes(2, &Advert { load, ..advert(2, 1, seq, "demo.v1.A") });
        one.handle(Event::Gossip { from: peer(2), data, token: Token(0) }, NOW)
    };
    let told = |effects: &[Effect]| effects.contains(&Effect::DirectoryChanged);
    assert!(told(&gossip(&mut one, 1, 0)));
    one.directory();
    assert!(!told(&gossip(&mut one, 2, 3)));
    assert!(told(&one.handle(Event::Tick, NOW + RENEWALS_SHOWN_MILLIS)));
    one.directory();
    assert!(told(&gossip(&mut one, 3, 80)), "overloaded");
}

fn lookups_done(effects: &[Effect]) -> Vec<(u64, bool)> {
    let done = effects.iter().filter_map(|effect| match effect {
        Effect::LookupDone { id, found } => Some((id.0, *found)),
        _ => None,
    });
    done.collect()
}

fn look_up(registry: &mut Registry, id: u64, now: u64) -> Vec<Effect> {
    let event = Event::LookupRequested { id: LookupId(id), service: service("demo.v1.A") };
    registry.handle(event, now)
}

#[test]
fn a_lookup_asks_the_dht_then_the_providers() {
    let (mut one, mut provider) = (registry(1), registry(2));
    provider.handle(Event::Offered(offer(1, &["demo.v1.A"])), NOW);
    let effects = look_up(&mut one, 1, NOW);
    let key = provider_key(&network(), &service("demo.v1.A"), SHARD);
    assert_eq!(effects, [Effect::FindProviders { service: service("demo.v1.A"), key }]);
    assert!(look_up(&mut one, 2, NOW).is_empty(), "joins the lookup under way");
    let peers = vec![peer(1), peer(2)];
    let found = Event::ProvidersFound { service: service("demo.v1.A"), peers };
    let effects = one.handle(found, NOW);
    let fetch = effects.iter().find_map(|effect| match effect {
        Effect::Fetch { id, peer: asked, request } => {
            assert_eq!(*asked, peer(2), "nobody asks itself");
            Some((*id, request.clone()))
        }
        _ => None,
    });
    let (fetch, data) = fetch.expect("the provider is asked");
    let request = Event::Requested { peer: peer(1), data, token: Token(1) };
    let answer = provider.handle(request, NOW).into_iter().find_map(|effect| match effect {
        Effect::Answer { reply, .. } => Some(reply),
        _ => None,
    });
    let effects = one.handle(Event::Replied { fetch, reply: answer }, NOW);
    assert_eq!(lookups_done(&effects), [(1, true), (2, true)]);
    assert_eq!(effects[0], Effect::DirectoryChanged, "before anybody is told");
    assert_eq!(listed(&mut one, "demo.v1.A"), [(peer(2), false)]);
    assert_eq!(lookups_done(&look_up(&mut one, 3, NOW)), [(3, true)]);
}

#[test]
fn an_absent_service_is_remembered_until_somebody_offers_it() {
    let mut one = registry(1);
    look_up(&mut one, 1, NOW);
    let none = Event::ProvidersFound { service: service("demo.v1.A"), peers: Vec::new() };
    assert_eq!(lookups_done(&one.handle(none, NOW)), [(1, false)]);
    assert_eq!(lookups_done(&look_up(&mut one, 2, NOW + 1)), [(2, false)]);
    let again = look_up(&mut one, 3, NOW + ABSENT_MILLIS);
    assert!(matches!(again[..], [Effect::FindProviders { .. }]), "asked again after a while");
    let none = Event::ProvidersFound { service: service("demo.v1.A"), peers: Vec::new() };
    one.handle(none, NOW + ABSENT_MILLIS);
    gossip(&mut one, 2, bytes(2, &advert(2, 1, 1, "demo.v1.A")), NOW + ABSENT_MILLIS);
    assert_eq!(lookups_done(&look_up(&mut one, 4, NOW + ABSENT_MILLIS)), [(4, true)]);
}

#[test]
fn gossip_ends_a_lookup_and_time_ends_it_too() {
    let mut one = registry(1);
    look_up(&mut one, 1, NOW);
    let data = bytes(2, &advert(2, 1, 1, "demo.v1.A"));
    let effects = one.handle(Event::Gossip { from: peer(2), data, token: Token(0) }, NOW);
    assert_eq!(lookups_done(&effects), [(1, true)]);
    let mut one = registry(1);
    look_up(&mut one, 1, NOW);
    assert!(one.next_timer().expect("a deadline") <= NOW + LOOKUP_MILLIS_MAX);
    let effects = one.handle(Event::Tick, NOW + LOOKUP_MILLIS_MAX);
    assert_eq!(lookups_done(&effects), [(1, false)]);
}

#[test]
fn providers_that_do_not_answer_end_the_lookup() {
    let mut one = registry(1);
    look_up(&mut one, 1, NOW);
    let peers = vec![peer(2), peer(3)];
    let found = Event::ProvidersFound { service: service("demo.v1.A"), peers };
    let fetches = one.handle(found, NOW).into_iter().filter_map(|effect| match effect {
        Effect::Fetch { id, .. } => Some(id),
        _ => None,
    });
    let fetches: Vec<FetchId> = fetches.collect();
    assert_eq!(fetches.len(), 2);
    let failed = |fetch| Event::Replied { fetch, reply: None };
    assert!(lookups_done(&one.handle(failed(fetches[0]), NOW)).is_empty());
    assert_eq!(lookups_done(&one.handle(failed(fetches[1]), NOW)), [(1, false)]);
}

#[test]
fn names_made_up_by_callers_cost_fixed_memory() {
    let mut one = registry(1);
    for n in 0..5_000_u64 {
        let name = service(&format!("made.up.S{n}"));
        one.handle(Event::LookupRequested { id: LookupId(n), service: name.clone() }, NOW);
        if n % 2 == 0 {
            one.handle(Event::ProvidersFound { service: name, peers: Vec::new() }, NOW);
        }
        let census = one.census();
        assert!(census.lookups <= 256 && census.absent <= 1_024, "{census:?}");
    }
}

#[test]
fn strangers_cannot_push_out_connected_peers_nor_one_peer_the_others() {
    let limits = Limits { adverts_max: 50, adverts_per_peer_max: 20 };
    let mut one = limited(1, BOOT, limits);
    one.handle(Event::PeerConnected(peer(2)), NOW);
    one.handle(Event::PeerConnected(peer(3)), NOW);
    for instance in 0..5 {
        let data = bytes(2, &advert(2, instance, 1, "demo.v1.Good"));
        assert_eq!(gossip(&mut one, 2, data, NOW), Verdict::Accept);
    }
    // One peer with more than it may have.
    for instance in 0..40 {
        let data = bytes(3, &advert(3, instance, 1, "demo.v1.Greedy"));
        gossip(&mut one, 3, data, NOW);
    }
    assert_eq!(listed(&mut one, "demo.v1.Greedy").len(), 20);
    // Any number of strangers, all brought by the same neighbour.
    for n in 100..300 {
        gossip(&mut one, 3, bytes(n, &advert(n, 0, 1, "demo.v1.Flood")), NOW);
        assert!(one.census().adverts <= 50);
    }
    assert_eq!(listed(&mut one, "demo.v1.Good").len(), 5);
    assert_eq!(listed(&mut one, "demo.v1.Flood").len(), 25);
    // A stranger brought by another neighbour still finds room, and a connected peer does.
    assert_eq!(
        gossip(&mut one, 2, bytes(90, &advert(90, 0, 1, "demo.v1.Far")), NOW),
        Verdict::Accept
    );
    for instance in 5..15 {
        let data = bytes(2, &advert(2, instance, 1, "demo.v1.Good"));
        assert_eq!(gossip(&mut one, 2, data, NOW), Verdict::Accept);
    }
    assert_eq!(listed(&mut one, "demo.v1.Good").len(), 15);
    assert_eq!(one.census().adverts, 50);
}

#[test]
fn a_peer_that_asks_too_much_is_told_to_wait() {
    let mut one = registry(1);
    one.handle(Event::PeerConnected(peer(2)), NOW);
    let ask = |one: &mut Registry, now| {
        let request = Request::GetAdverts { scope: Scope::All, service: None, cursor: None };
        let event = Event::Requested { peer: peer(2), data: request.encode(), token: Token(0) };
        let effects = one.handle(event, now);
        let busy = Effect::Answer { token: Token(0), reply: Reply::Busy.encode() };
        !effects.contains(&busy)
    };
    let answered = (0..1_000).filter(|_| ask(&mut one, NOW)).count();
    assert_eq!(answered, usize::try_from(ASKS_BURST).expect("small"));
    let answered = (0..1_000).filter(|_| ask(&mut one, NOW + 1_000)).count();
    assert_eq!(answered, usize::try_from(ASKS_PER_SECOND).expect("small"));
}

#[test]
fn nonsense_is_answered_and_never_panics() {
    let mut one = registry(1);
    let event = Event::Requested { peer: peer(2), data: vec![0xff; 10], token: Token(7) };
    let effects = one.handle(event, NOW);
    let reply = Reply::NotUnderstood.encode();
    assert_eq!(effects, [Effect::Answer { token: Token(7), reply }]);
    assert!(one.handle(Event::Replied { fetch: FetchId(99), reply: None }, NOW).is_empty());
}

#[test]
fn a_peer_that_does_not_answer_is_asked_again_and_then_left_alone() {
    let mut one = registry(1);
    let mut now = NOW;
    let mut asked = 0;
    let mut effects = one.handle(Event::PeerConnected(peer(2)), now);
    while now < NOW + 120_000 {
        for effect in std::mem::take(&mut effects) {
            if let Effect::Fetch { id, .. } = effect {
                asked += 1;
                effects.extend(one.handle(Event::Replied { fetch: id, reply: None }, now));
            }
        }
        now += 500;
        effects.extend(one.handle(Event::Tick, now));
    }
    assert_eq!(asked, 5);
}

#[test]
fn leaving_withdraws_everything() {
    let (mut one, mut other) = (registry(1), registry(2));
    one.handle(Event::PeerConnected(peer(2)), NOW);
    for instance in 1..4 {
        for data in published(&one.handle(Event::Offered(offer(instance, &["demo.v1.A"])), NOW)) {
            gossip(&mut other, 1, data, NOW);
        }
    }
    assert_eq!(listed(&mut other, "demo.v1.A").len(), 3);
    for data in published(&one.handle(Event::Leaving, NOW)) {
        gossip(&mut other, 1, data, NOW);
    }
    assert!(other.directory().is_empty() && one.directory().is_empty());
}

#[test]
fn this_nodes_own_adverts_are_not_believed_from_others() {
    let mut one = registry(1);
    let data = bytes(1, &advert(1, 5, 1, "demo.v1.A"));
    assert_eq!(gossip(&mut one, 2, data, NOW), Verdict::Ignore);
    assert!(one.directory().is_empty());
}

#[test]
fn a_clock_set_back_by_an_hour_hides_nobody() {
    let hour = 3_600_000;
    let (mut one, mut other) = (limited(1, BOOT + hour, Limits::default()), registry(2));
    one.handle(Event::PeerConnected(peer(2)), NOW + hour);
    let wrong = published(&one.handle(Event::Offered(offer(1, &["demo.v1.A"])), NOW + hour));
    assert_eq!(gossip(&mut other, 1, wrong[0].clone(), NOW), Verdict::Ignore, "from the future");
    for data in published(&one.handle(Event::Tick, NOW + 10)) {
        gossip(&mut other, 1, data, NOW + 10);
    }
    assert_eq!(listed(&mut other, "demo.v1.A").len(), 1);
    assert!(one.next_timer().expect("a renewal") <= NOW + 10 + ADVERT_REFRESH_MILLIS);
}
