//! What the codec promises, on chosen frames, on random ones and on random bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::failure::{Ran, Reason};

fn path(text: &str) -> MethodPath {
    text.parse().expect(text)
}

fn metadata(entries: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).expect(name);
        map.append(name, HeaderValue::from_str(value).expect(value));
    }
    map
}

fn encode(frames: &[Frame]) -> BytesMut {
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    for frame in frames {
        encoder.frame(&mut wire, frame).expect("within limits");
    }
    wire
}

fn unary_open() -> Frame {
    Frame::Open {
        call: CallId(1),
        path: path("/demo.v1.Counter/Add"),
        time_left: Some(Duration::from_secs(5)),
        metadata: metadata(&[("content-type", "application/grpc"), ("te", "trailers")]),
        data: Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]),
        end: true,
    }
}

#[test]
fn a_unary_call_is_one_small_frame_each_way() {
    let reply = Frame::Headers {
        call: CallId(1),
        metadata: metadata(&[("content-type", "application/grpc")]),
        data: Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]),
        end: Some(metadata(&[("grpc-status", "0")])),
    };
    assert_eq!(encode(std::slice::from_ref(&reply)).len(), 10 + 3 + 3 + 7);
    let first = encode(&[unary_open()]).len();
    let second = encode(&[unary_open(), unary_open()]).len() - first;
    assert!(first > second, "the second call refers to the path that the first one brought");
    assert_eq!(second, 10 + 1 + 4 + 5 + 7);
}

#[test]
fn the_preface_is_told_from_http_and_tls_by_its_first_byte() {
    assert_eq!(read_preface(&preface()), Ok(Some(VERSION)));
    for cut in 0..PREFACE_BYTES {
        assert_eq!(read_preface(&preface()[..cut]), Ok(None));
    }
    for other in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1", b"\x16\x03\x01", b"\0"]
    {
        assert_eq!(read_preface(&other[..1]), Err(FrameError::NotALink));
        assert_eq!(read_preface(other), Err(FrameError::NotALink));
    }
    let mut newer = preface();
    newer[7] = 9;
    assert_eq!(read_preface(&newer), Ok(Some(VERSION)), "the lower of the two is spoken");
    newer[7] = 0;
    assert_eq!(read_preface(&newer), Err(FrameError::Version { offered: 0 }));
}

#[test]
fn a_lane_is_told_from_a_link_and_says_whose_it_is() {
    let lane = lane_preface(0x0102_0304_0506_0708);
    assert_eq!(read_lane_preface(&lane), Ok(Some(0x0102_0304_0506_0708)));
    for cut in 0..LANE_PREFACE_BYTES {
        assert_eq!(read_lane_preface(&lane[..cut]), Ok(None));
    }
    assert_eq!(read_preface(&lane), Err(FrameError::NotALink), "who knows no lanes refuses it");
    assert_eq!(read_lane_preface(&preface()), Err(FrameError::NotALink));
    let mut nothing = lane;
    nothing[PREFACE_BYTES - 1] = 0;
    assert_eq!(read_lane_preface(&nothing), Err(FrameError::Version { offered: 0 }));
}

#[test]
fn a_length_beyond_its_kind_is_refused_from_the_header_alone() {
    for kind in (1..=10u8).chain(128..=130) {
        let link = matches!(kind, 8..=10 | 128);
        let header = [0x7F, 0, 0, 0, 0, 0, 0, u8::from(!link), kind, 0];
        let error = Decoder::default().decode(&mut BytesMut::from(&header[..]));
        assert!(matches!(error, Err(FrameError::TooLong { .. })), "{kind}: {error:?}");
    }
}

#[test]
fn unknown_kinds_are_skipped_above_127_and_refused_below() {
    let mut wire = BytesMut::from(&[0, 0, 0, 2, 0, 0, 0, 9, 200, 0xFF, 1, 2][..]);
    wire.extend_from_slice(&encode(&[unary_open()]));
    assert_eq!(Decoder::default().decode(&mut wire), Ok(Some(unary_open())));
    for kind in [0, 11, 127] {
        let mut wire = BytesMut::from(&[0, 0, 0, 0, 0, 0, 0, 9, kind, 0][..]);
        assert_eq!(Decoder::default().decode(&mut wire), Err(FrameError::UnknownKind { kind }));
    }
}

#[test]
fn unknown_flags_are_refused_where_they_may_change_the_layout() {
    let cancel = |flags| BytesMut::from(&[0, 0, 0, 0, 0, 0, 0, 9, 6, flags][..]);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&mut cancel(0xF0)), Ok(Some(Frame::Cancel { call: CallId(9) })));
    let refused = Err(FrameError::UnknownFlags { kind: "cancel", flags: 1 });
    assert_eq!(decoder.decode(&mut cancel(1)), refused);
}

#[test]
fn large_data_is_handed_out_without_a_copy_and_small_data_frees_the_buffer() {
    let large = Bytes::from(vec![7; 16 * 1024]);
    let frame = |data| Frame::Data { call: CallId(3), data, end: false };
    let mut wire = encode(&[frame(large.clone()), frame(Bytes::from_static(b"small"))]);
    let buffer = wire.as_ptr_range();
    let mut decoder = Decoder::default();
    let Ok(Some(Frame::Data { data, .. })) = decoder.decode(&mut wire) else { panic!("data") };
    assert_eq!(data, large);
    assert!(buffer.contains(&data.as_ptr()), "the same memory");
    let Ok(Some(Frame::Data { data, .. })) = decoder.decode(&mut wire) else { panic!("data") };
    assert_eq!(&data[..], b"small");
    assert!(!buffer.contains(&data.as_ptr()), "its own memory");
}

#[test]
fn metadata_over_the_limit_is_refused_by_both_sides_and_writes_nothing() {
    let value = "v".repeat(METADATA_BYTES_MAX);
    let big = metadata(&[("k", &value)]);
    let many = metadata(&vec![("k", "v"); METADATA_ENTRIES_MAX + 1]);
    for map in [big, many] {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        encoder.end(&mut wire, CallId(1), &map).expect_err("too large");
        assert!(wire.is_empty());
        let mut forged = BytesMut::new();
        let start = wire::begin(&mut forged, wire::Kind::End, 0, CallId(1));
        metadata::put_block(&mut forged, &mut metadata::interned_names(), &map);
        wire::finish(&mut forged, start, 0);
        assert!(Decoder::default().decode(&mut forged).is_err());
    }
    let largest = metadata(&[("k", &"v".repeat(METADATA_BYTES_MAX - 1))]);
    let end = Frame::End { call: CallId(1), outcome: Ok(largest) };
    assert_eq!(Decoder::default().decode(&mut encode(std::slice::from_ref(&end))), Ok(Some(end)));
}

#[test]
fn interning_stops_at_its_bound_and_calls_go_on() {
    let opens: Vec<Frame> = (0..PATHS_INTERNED_MAX as u32 + 50)
        .map(|n| Frame::Open {
            call: CallId(n + 1),
            path: path(&format!("/demo.S{n}/M")),
            time_left: None,
            metadata: metadata(&[(&format!("x-name-{n}"), "v")]),
            data: Bytes::new(),
            end: false,
        })
        .collect();
    let twice: Vec<Frame> = [&opens[..], &opens[..]].concat();
    let (mut wire, mut decoder) = (encode(&twice), Decoder::default());
    for frame in twice {
        assert_eq!(decoder.decode(&mut wire), Ok(Some(frame)));
    }
}

#[test]
fn defining_beyond_the_bound_is_refused() {
    let mut decoder = Decoder::default();
    for n in 0..=NAMES_INTERNED_MAX - metadata::NAMES.len() {
        // One entry, defined in full, with the known value of index 3.
        let name = format!("x{n}");
        let mut wire = BytesMut::new();
        let start = wire::begin(&mut wire, wire::Kind::End, 0, CallId(1));
        wire.extend_from_slice(&[1, 1, name.len() as u8]);
        wire.extend_from_slice(name.as_bytes());
        wire.extend_from_slice(&[3 << 1 | 1]);
        wire::finish(&mut wire, start, 0);
        let outcome = decoder.decode(&mut wire);
        let room = n < NAMES_INTERNED_MAX - metadata::NAMES.len();
        assert_eq!(outcome.is_ok(), room, "{n}: {outcome:?}");
    }
}

#[test]
fn failures_cross_with_everything_but_the_peer() {
    use Ran::{Failed, NotStarted, Unknown};
    for (ran, reason) in [NotStarted, Unknown, Failed].into_iter().cycle().zip(Reason::ALL) {
        let failure = Failure::new(ran, reason, "the größte failure");
        let end = Frame::End { call: CallId(8), outcome: Err(failure) };
        assert_eq!(
            Decoder::default().decode(&mut encode(std::slice::from_ref(&end))),
            Ok(Some(end))
        );
    }
    let long = Failure::unknown(Reason::Internal, "ö".repeat(TEXT_BYTES_MAX));
    let end = Frame::End { call: CallId(8), outcome: Err(long) };
    let decoded = Decoder::default().decode(&mut encode(&[end])).expect("decodes").expect("whole");
    let Frame::End { outcome: Err(failure), .. } = decoded else { panic!("a failure") };
    assert_eq!(failure.message.len(), TEXT_BYTES_MAX);
}

#[test]
fn every_saved_fuzz_input_still_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/frame");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect(corpus) {
        fuzz(&std::fs::read(entry.expect("readable").path()).expect("readable"));
        inputs += 1;
    }
    assert!(inputs > 0, "{corpus} has inputs");
}

fn any_metadata() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        Just("content-type".to_owned()),
        Just("grpc-status".to_owned()),
        "[a-z][a-z0-9_.-]{0,80}",
    ];
    let value = prop_oneof![Just("application/grpc".to_owned()), "[ -~]{0,300}"];
    proptest::collection::vec((name, value), 0..12).prop_map(|entries| {
        let entries: Vec<_> = entries.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        metadata(&entries)
    })
}

fn any_data() -> impl Strategy<Value = Bytes> {
    let sizes = prop_oneof![0..64usize, 4_000..4_200usize, Just(FRAME_DATA_BYTES_MAX)];
    (sizes, any::<u8>()).prop_map(|(size, byte)| Bytes::from(vec![byte; size]))
}

fn any_failure() -> impl Strategy<Value = Failure> {
    let rans = [Ran::NotStarted, Ran::Unknown, Ran::Failed];
    let reasons = [Reason::NotAvailable, Reason::Busy, Reason::DeadlineExceeded, Reason::Internal];
    (
        proptest::sample::select(rans.to_vec()),
        proptest::sample::select(reasons.to_vec()),
        "[ -~äß]{0,80}",
    )
        .prop_map(|(ran, reason, message)| Failure::new(ran, reason, message))
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let call = || (1..=u32::MAX).prop_map(CallId);
    let paths =
        "[a-z]{1,9}\\.v[1-9]\\.[A-Z][a-z]{0,9}/[A-Z][a-z]{0,9}".prop_map(|text| path(&text));
    let time_left = proptest::option::of((0..u64::MAX >> 1).prop_map(Duration::from_micros));
    prop_oneof![
        (call(), paths, time_left, any_metadata(), any_data(), any::<bool>()).prop_map(
            |(call, path, time_left, metadata, data, end)| Frame::Open {
                call,
                path,
                time_left,
                metadata,
                data,
                end
            }
        ),
        (call(), any_data().prop_filter("data", |data| !data.is_empty()), any::<bool>())
            .prop_map(|(call, data, end)| Frame::Data { call, data, end }),
        (call(), any_metadata()).prop_map(|(call, trailers)| Frame::HalfClose { call, trailers }),
        (call(), any_metadata(), any_data(), proptest::option::of(any_metadata()))
            .prop_map(|(call, metadata, data, end)| Frame::Headers { call, metadata, data, end }),
        (call(), any_metadata()).prop_map(|(call, map)| Frame::End { call, outcome: Ok(map) }),
        (call(), any_failure()).prop_map(|(call, fail)| Frame::End { call, outcome: Err(fail) }),
        call().prop_map(|call| Frame::Cancel { call }),
        (call(), 1..=u32::MAX).prop_map(|(call, bytes)| Frame::Credit { call, bytes }),
        any::<[u8; 8]>().prop_map(Frame::Ping),
        any::<[u8; 8]>().prop_map(Frame::Pong),
        "[ -~]{0,200}".prop_map(|message| Frame::GoAway { code: GoAwayCode::Closing, message }),
        any::<u64>().prop_map(Frame::Lanes),
        call().prop_map(|call| Frame::Invite { call }),
        call().prop_map(|call| Frame::Moved { call }),
    ]
}

/// Bytes of the things a frame keeps, to hold against what was sent.
fn kept_bytes(frame: &Frame) -> usize {
    let of = metadata::bytes_of;
    match frame {
        Frame::Open { path, metadata, data, .. } => path.as_str().len() + of(metadata) + data.len(),
        Frame::Data { data, .. } => data.len(),
        Frame::HalfClose { trailers, .. } | Frame::End { outcome: Ok(trailers), .. } => {
            of(trailers)
        }
        Frame::Headers { metadata, data, end, .. } => {
            of(metadata) + data.len() + end.as_ref().map_or(0, of)
        }
        Frame::End { outcome: Err(failure), .. } => failure.message.len(),
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn frames_survive_the_journey(frames in proptest::collection::vec(any_frame(), 1..8)) {
        let (mut wire, mut decoder) = (encode(&frames), Decoder::default());
        for frame in frames {
            prop_assert_eq!(decoder.decode(&mut wire), Ok(Some(frame)));
        }
        prop_assert_eq!(decoder.decode(&mut wire), Ok(None));
    }

    #[test]
    fn a_frame_cut_short_is_incomplete_and_arrives_when_the_rest_does(
        frame in any_frame(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let whole = encode(std::slice::from_ref(&frame));
        let cut = cut.index(whole.len());
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(&whole[..cut]));
        prop_assert_eq!(decoder.decode(&mut input), Ok(None));
        input.extend_from_slice(&whole[cut..]);
        prop_assert_eq!(decoder.decode(&mut input), Ok(Some(frame)));
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        fuzz(&bytes);
    }

    /// Random bytes rarely get past the header; these always do.
    #[test]
    fn any_body_under_a_true_header_is_a_frame_or_an_error(
        kind in prop_oneof![1..=10u8, 128..=130u8],
        flags in 0..=3u8,
        body in proptest::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..400),
    ) {
        let link = u8::from(!matches!(kind, 8..=10 | 128));
        let mut wire = vec![0, 0, (body.len() >> 8) as u8, body.len() as u8, 0, 0, 0, link, kind, flags];
        wire.extend_from_slice(&body);
        fuzz(&wire);
        if let Ok(Some(frame)) = Decoder::default().decode(&mut BytesMut::from(&wire[..])) {
            // A reference of one byte may stand for a built-in name or value of up to 26.
            prop_assert!(kept_bytes(&frame) <= wire.len() * 26);
        }
    }

    /// One byte of a true conversation changed.
    #[test]
    fn a_damaged_frame_is_a_frame_or_an_error(
        frames in proptest::collection::vec(any_frame(), 1..4),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut wire = encode(&frames);
        let at = at.index(wire.len());
        wire[at] = byte;
        fuzz(&wire);
    }
}
