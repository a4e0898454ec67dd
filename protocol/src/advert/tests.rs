//! What is promised about adverts.

use proptest::prelude::*;

use super::*;
use crate::limits::SERVICE_NAME_BYTES_MAX;

const NOW: u64 = 1_700_000_000_000;

fn key() -> NodeKey {
    NodeKey::from_seed([7; 32])
}

fn network() -> NetworkName {
    "local".parse().expect("a name")
}

fn service(name: &str) -> ServiceOffer {
    ServiceOffer { name: name.parse().expect(name), schema: [3; 32] }
}

fn advert() -> Advert {
    Advert {
        network: network(),
        peer: key().peer_id(),
        boot: NOW - 5_000,
        instance: InstanceId(u64::MAX),
        part: 0,
        plugin: "counter".into(),
        version: Version::new(1, 2, 3),
        services: vec![service("demo.v1.Counter"), service("demo.v1.Reset")],
        labels: [("region".into(), "eu".into())].into(),
        isolation: "process".into(),
        load: 12,
        price: Some(u64::MAX),
        seq: 9,
        issued: NOW,
        expires: NOW + ADVERT_TTL_MILLIS,
        withdrawn: false,
    }
}

fn signed() -> Bytes {
    advert().sign(&key()).expect("fits").bytes().clone()
}

/// Signs whatever it is given, as a liar with a valid key would.
fn signed_regardless(advert: &Advert) -> Vec<u8> {
    let body = format::encode(advert);
    [&key().sign(&signed_message(&body))[..], &body].concat()
}

#[test]
fn what_was_signed_is_what_is_verified() {
    let verified = verify(&signed(), &network(), NOW).expect("valid");
    assert_eq!(**verified.advert(), advert());
    assert_eq!(*verified.bytes(), signed());
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = signed();
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&bad, &network(), NOW).is_err(), "bit {bit} was flipped unnoticed");
    }
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let good = signed();
    for length in 0..good.len() {
        assert!(verify(&good[..length], &network(), NOW).is_err(), "cut to {length}");
    }
    for more in 0..=255 {
        let bad = [&good[..], &[more]].concat();
        assert!(verify(&bad, &network(), NOW).is_err(), "added {more}");
    }
}

#[test]
fn another_peers_key_cannot_sign() {
    let other = NodeKey::from_seed([8; 32]);
    assert_eq!(advert().sign(&other), Err(AdvertUnfit::OtherKey));
    let body = format::encode(&advert());
    let forged = [&other.sign(&signed_message(&body))[..], &body].concat();
    assert_eq!(verify(&forged, &network(), NOW), Err(AdvertRejected::Forged));
}

#[test]
fn a_signature_outside_the_domain_is_refused() {
    let body = format::encode(&advert());
    let bare = [&key().sign(&body)[..], &body].concat();
    assert_eq!(verify(&bare, &network(), NOW), Err(AdvertRejected::Forged));
}

#[test]
fn other_networks_refuse_it() {
    let rejected = verify(&signed(), &"other".parse().expect("a name"), NOW);
    assert_eq!(rejected, Err(AdvertRejected::OtherNetwork { network: network() }));
}

#[test]
fn time_bounds_are_exact() {
    let at = |now| verify(&signed(), &network(), now);
    assert!(at(NOW + ADVERT_TTL_MILLIS - 1).is_ok());
    assert_eq!(at(NOW + ADVERT_TTL_MILLIS), Err(AdvertRejected::Expired { ago_millis: 0 }));
    assert!(at(NOW - CLOCK_SKEW_MILLIS_MAX).is_ok());
    let ahead_millis = CLOCK_SKEW_MILLIS_MAX + 1;
    assert_eq!(at(NOW - ahead_millis), Err(AdvertRejected::FromTheFuture { ahead_millis }));
    // Late messages and wrong clocks are nobody's lie.
    for now in [NOW - ahead_millis, NOW + ADVERT_TTL_MILLIS] {
        assert!(!at(now).expect_err("out of time").is_hostile());
    }
}

#[test]
fn a_truly_signed_advert_out_of_bounds_is_refused_all_the_same() {
    type Spoil = fn(&mut Advert);
    let bad: Vec<(&str, Spoil)> = vec![
        ("lifetime too long", |a| a.expires += 1),
        ("ends before it begins", |a| a.expires = a.issued - 1),
        ("never valid", |a| a.expires = a.issued),
        ("issued before its node started", |a| a.boot = a.issued + 1),
        ("too busy", |a| a.load = 101),
        ("no services", |a| a.services.clear()),
        ("services of a withdrawal", |a| a.withdrawn = true),
        ("services out of order", |a| a.services.reverse()),
        ("a service twice", |a| a.services[1] = a.services[0].clone()),
        ("too many services", |a| {
            a.services = (10..=10 + ADVERT_SERVICES_MAX)
                .map(|n| ServiceOffer {
                    name: format!("s{n}").parse().expect("name"),
                    schema: [0; 32],
                })
                .collect();
        }),
        ("no name", |a| a.plugin.clear()),
        ("a long name", |a| a.plugin = "x".repeat(PLUGIN_NAME_BYTES_MAX + 1)),
        ("a long version", |a| a.version = format!("1.0.0-{}", "x".repeat(30)).parse().expect("v")),
        ("a long isolation", |a| a.isolation = "x".repeat(ISOLATION_BYTES_MAX + 1)),
        ("many labels", |a| {
            a.labels = (0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect();
        }),
        ("long labels", |a| {
            a.labels.insert("k".into(), "x".repeat(LABELS_BYTES_MAX));
        }),
        ("an unnamed label", |a| {
            a.labels.insert(String::new(), String::new());
        }),
    ];
    for (what, spoil) in bad {
        let mut advert = advert();
        spoil(&mut advert);
        let rejected = verify(&signed_regardless(&advert), &network(), NOW);
        assert!(
            matches!(
                rejected,
                Err(AdvertRejected::OutOfBounds { .. } | AdvertRejected::TooLarge { .. })
            ),
            "{what}: {rejected:?}"
        );
        assert!(advert.sign(&key()).is_err(), "{what}");
    }
}

#[test]
fn one_service_of_the_longest_name_fits_beside_the_most_of_everything_else() {
    let mut advert = advert();
    advert.network = "x".repeat(32).parse().expect("a name");
    advert.boot = u64::MAX / 2;
    advert.issued = u64::MAX / 2;
    advert.expires = advert.issued + ADVERT_TTL_MILLIS;
    advert.seq = u64::MAX;
    advert.part = u16::MAX;
    advert.load = 100;
    advert.plugin = "x".repeat(PLUGIN_NAME_BYTES_MAX);
    advert.version = format!("1.0.0-{}", "x".repeat(VERSION_BYTES_MAX - 6)).parse().expect("v");
    advert.isolation = "x".repeat(ISOLATION_BYTES_MAX);
    advert.services = vec![service(&"x".repeat(SERVICE_NAME_BYTES_MAX))];
    // The worst division: every key and value long enough to need a two-byte head, where possible.
    advert.labels = (0..LABELS_MAX - 1)
        .map(|n| (format!("{n:02}"), "x".repeat(LABELS_BYTES_MAX / LABELS_MAX - 2)))
        .collect();
    let used: usize = advert.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    advert.labels.insert("zz".into(), "x".repeat(LABELS_BYTES_MAX - used - 2));
    let signed = advert.sign(&key()).expect("fits");
    assert!(
        signed.bytes().len() <= ADVERT_BYTES_MAX - 4 * LABELS_MAX / 4,
        "{}",
        signed.bytes().len()
    );
}

#[test]
fn a_withdrawal_needs_no_name_and_names_no_service() {
    let mut last = advert();
    last.withdrawn = true;
    last.services.clear();
    last.labels.clear();
    last.plugin.clear();
    let bytes = last.sign(&key()).expect("fits").bytes().clone();
    assert_eq!(**verify(&bytes, &network(), NOW).expect("valid").advert(), last);
}

#[test]
fn the_same_said_in_another_way_is_refused() {
    let body = format::encode(&advert());
    // One more entry, `"n": 0`, where it belongs in the order: what leaving it out says already.
    let mut wordy = body.clone();
    assert_eq!(wordy[0] & 0xe0, 0xa0, "a map with its length in the first byte");
    wordy[0] += 1;
    let peer = wordy.windows(3).position(|three| three == [0x61, b'p', 0x58]);
    let at = peer.expect("the key after it in the order, with bytes for a value");
    wordy.splice(at..at, [0x61, b'n', 0x00]);
    assert_eq!(format::decode(&wordy).as_ref(), Ok(&advert()), "the same is said");
    let bytes = [&key().sign(&signed_message(&wordy))[..], &wordy].concat();
    assert_eq!(verify(&bytes, &network(), NOW), Err(AdvertRejected::NotCanonical));
}

#[test]
fn a_newer_format_is_told_from_nonsense() {
    let newer = [&[0; 64][..], &[0xa2, 0x61, b'v', 0x02, 0x61, b'z', 0x01]].concat();
    let rejected = verify(&newer, &network(), NOW).expect_err("unknown");
    assert_eq!(rejected, AdvertRejected::UnknownFormat { version: 2 });
    assert!(!rejected.is_hostile());
}

#[test]
fn the_corpus_of_the_fuzzer_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/advert");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
        exercise(&std::fs::read(entry.expect("an entry").path()).expect("readable"));
        files += 1;
    }
    assert!(files > 0, "the corpus is empty");
}

prop_compose! {
    fn any_advert()(
        seed in any::<[u8; 32]>(),
        numbers in any::<(u64, u16, u64, Option<u64>)>(),
        issued in 1_000..u64::MAX / 4,
        millis in 1..=ADVERT_TTL_MILLIS,
        load in 0..=100_u8,
        names in proptest::collection::btree_set("[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", 1..6),
        labels in proptest::collection::btree_map("[a-z]{1,8}", "\\PC{0,4}", 0..4),
        plugin in "\\PC{1,12}",
        withdrawn in any::<bool>(),
    ) -> (NodeKey, Advert) {
        let key = NodeKey::from_seed(seed);
        let names = if withdrawn { std::collections::BTreeSet::new() } else { names };
        let (instance, part, seq, price) = numbers;
        let advert = Advert {
            network: network(),
            peer: key.peer_id(),
            boot: issued / 2,
            instance: InstanceId(instance),
            part,
            plugin,
            version: Version::new(u64::from(part), 0, 1),
            services: names.iter().map(|name| service(name)).collect(),
            labels,
            isolation: "none".into(),
            load,
            price,
            seq,
            issued,
            expires: issued + millis,
            withdrawn,
        };
        (key, advert)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_advert_within_bounds_survives_the_journey((key, advert) in any_advert()) {
        let bytes = advert.sign(&key).expect("within bounds").bytes().clone();
        let verified = verify(&bytes, &network(), advert.issued).expect("valid");
        prop_assert_eq!(&**verified.advert(), &advert);
        exercise(&bytes);
    }

    #[test]
    fn any_change_to_any_advert_is_refused(
        (key, advert) in any_advert(), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
    ) {
        let mut bytes = advert.sign(&key).expect("within bounds").bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(verify(&bytes, &network(), advert.issued).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1_100)) {
        exercise(&bytes);
    }

    #[test]
    fn no_damage_to_a_body_makes_it_panic(
        (key, advert) in any_advert(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = advert.sign(&key).expect("within bounds").bytes()[64..].to_vec();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(&bytes);
    }
}
