//! The test vectors of the link protocol, `protocol/vectors/link-1.txt`, are what this codec writes
//! and reads. Programs in other languages check theirs against the same file.
//!
//! `BH_WRITE_VECTORS=1 cargo test -p blackhole-protocol --test vectors` writes the file anew: only
//! for vectors that are added, because what is on the wire does not change within a version.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use blackhole_protocol::{
    failure::{Failure, Ran, Reason},
    frame::{CallId, Decoder, Encoder, Frame, GoAwayCode, lane_preface, preface},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

const HEAD: &str = "\
# Test vectors of the link protocol, version 1; the layout is in docs/src/reference/protocol.md.
#
# Each vector is a name, the bytes of one direction of a link after its preface in hexadecimal, and
# what they say: a frame a line. The tables of names and paths are empty where a vector begins.
# `refused` vectors end the link, with the frames before that; their reason is for people.
";

fn map(entries: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        map.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    map
}

fn open(call: u32, time_left: Option<Duration>, data: &'static [u8], end: bool) -> Frame {
    Frame::Open {
        call: CallId(call),
        path: "/demo.v1.Echo/Say".parse().expect("a path"),
        time_left,
        metadata: map(&[("content-type", "application/grpc"), ("te", "trailers")]),
        data: Bytes::from_static(data),
        end,
    }
}

/// A valid vector, and what it shows.
type Valid = (&'static str, Vec<Frame>);

const CALL: CallId = CallId(1);

/// Calls and answers.
fn calls() -> Vec<Valid> {
    let call = CALL;
    let message: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 2, b'h', b'i'];
    let second = Some(Duration::from_secs(1));
    let grpc = || map(&[("content-type", "application/grpc")]);
    vec![
        ("unary request", vec![open(1, second, message, true)]),
        (
            "unary answer",
            vec![Frame::Headers {
                call,
                metadata: grpc(),
                data: Bytes::from_static(message),
                end: Some(map(&[("grpc-status", "0")])),
            }],
        ),
        (
            "a path and names that are known to the link by the second call",
            vec![open(1, None, message, true), open(2, None, message, true)],
        ),
        (
            "metadata of a name that is put into the table, repeated, and binary",
            vec![Frame::HalfClose {
                call,
                trailers: map(&[("x-user", "a"), ("x-user", "b"), ("trace-bin", "AAEC")]),
            }],
        ),
        (
            "a stream of the caller",
            vec![
                open(1, None, &[], false),
                Frame::Data { call, data: Bytes::from_static(message), end: false },
                Frame::Data { call, data: Bytes::from_static(message), end: true },
            ],
        ),
        (
            "a stream of the answering side",
            vec![
                Frame::Headers { call, metadata: grpc(), data: Bytes::new(), end: None },
                Frame::Data { call, data: Bytes::from_static(message), end: false },
                Frame::End {
                    call,
                    outcome: Ok(map(&[("grpc-status", "5"), ("grpc-message", "no such")])),
                },
            ],
        ),
        (
            "trailers only",
            vec![Frame::Headers {
                call,
                metadata: map(&[("grpc-status", "12")]),
                data: Bytes::new(),
                end: Some(HeaderMap::new()),
            }],
        ),
    ]
}

/// What goes on beside them.
fn control() -> Vec<Valid> {
    let call = CALL;
    let failure = |ran, reason, text: &str| Frame::End {
        call,
        outcome: Err(Failure::new(ran, reason, text)),
    };
    vec![
        ("cancel", vec![Frame::Cancel { call }]),
        ("credit", vec![Frame::Credit { call, bytes: 65_536 }]),
        ("ping and pong", vec![Frame::Ping(*b"12345678"), Frame::Pong(*b"12345678")]),
        (
            "go-away",
            vec![Frame::GoAway { code: GoAwayCode::Closing, message: "shutting down".into() }],
        ),
        (
            "failures",
            vec![
                failure(Ran::NotStarted, Reason::Busy, "too many calls"),
                failure(Ran::Unknown, Reason::DeadlineExceeded, "too late"),
            ],
        ),
        ("lanes are taken", vec![Frame::Lanes(7)]),
        ("the reader of a call's data has a lane for it", vec![Frame::Invite { call }]),
        ("its writer goes on there", vec![Frame::Moved { call }]),
    ]
}

/// Bytes that end a link.
fn refused() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("an unknown kind below 128", &[0, 0, 0, 0, 0, 0, 0, 1, 99, 0]),
        ("a flag that may change the layout", &[0, 0, 0, 0, 0, 0, 0, 1, 6, 4]),
        ("a body beyond its kind", &[0x7f, 0, 0, 0, 0, 0, 0, 1, 2, 0]),
        ("no credit", &[0, 0, 0, 4, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0]),
        ("a ping of a call", &[0, 0, 0, 8, 0, 0, 0, 1, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("data without any", &[0, 0, 0, 0, 0, 0, 0, 1, 2, 0]),
        ("lanes of a call", &[0, 0, 0, 8, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
        ("an invitation of no call", &[0, 0, 0, 0, 0, 0, 0, 0, 129, 0]),
        ("moved, with something in it", &[0, 0, 0, 1, 0, 0, 0, 1, 130, 0, 0]),
        ("a reference to a path that was never sent", &[0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 2, 0]),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn block(map: &HeaderMap) -> String {
    let entries = map
        .iter()
        .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_bytes())));
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

/// A frame as the file says it.
fn said(frame: &Frame) -> String {
    match frame {
        Frame::Open { call, path, time_left, metadata, data, end } => {
            let left = time_left.map_or("none".into(), |left| left.as_micros().to_string());
            let (metadata, data) = (block(metadata), hex(data));
            format!("open call={call} path={path} left={left} {metadata} data={data} end={end}")
        }
        Frame::Data { call, data, end } => format!("data call={call} data={} end={end}", hex(data)),
        Frame::HalfClose { call, trailers } => {
            format!("half-close call={call} {}", block(trailers))
        }
        Frame::Headers { call, metadata, data, end } => {
            let end = end.as_ref().map_or("none".into(), block);
            format!("headers call={call} {} data={} trailers={end}", block(metadata), hex(data))
        }
        Frame::End { call, outcome: Ok(trailers) } => {
            format!("end call={call} {}", block(trailers))
        }
        Frame::End { call, outcome: Err(failure) } => {
            let Failure { ran, reason, message, .. } = failure;
            format!("end call={call} {} {} {message:?}", ran.as_str(), reason.as_str())
        }
        Frame::Cancel { call } => format!("cancel call={call}"),
        Frame::Credit { call, bytes } => format!("credit call={call} bytes={bytes}"),
        Frame::Ping(content) => format!("ping {}", hex(content)),
        Frame::Pong(content) => format!("pong {}", hex(content)),
        Frame::GoAway { code: GoAwayCode::Closing, message } => format!("go-away 0 {message:?}"),
        Frame::GoAway { code: GoAwayCode::Violation, message } => format!("go-away 1 {message:?}"),
        Frame::Lanes(number) => format!("lanes {number}"),
        Frame::Invite { call } => format!("invite call={call}"),
        Frame::Moved { call } => format!("moved call={call}"),
    }
}

fn line(frame: &Frame) -> String {
    format!("  {}\n", said(frame))
}

/// Reads all frames of `bytes`, as the file says them, and how that ended.
fn read(bytes: &[u8]) -> String {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
    let mut text = String::new();
    loop {
        match decoder.decode(&mut input) {
            Ok(Some(frame)) => text += &line(&frame),
            Ok(None) => {
                assert!(input.is_empty(), "frames are whole");
                return text;
            }
            Err(error) => return format!("{text}  refused: {error}\n"),
        }
    }
}

/// The file as this codec would write it.
fn written() -> String {
    let (link, lane) = (hex(&preface()), hex(&lane_preface(7)));
    let mut text = format!("{HEAD}\npreface\n{link}\n\npreface of a lane of link 7\n{lane}\n");
    let mut add = |name: &str, bytes: &[u8]| {
        text += &["\n", name, "\n", &hex(bytes), "\n", &read(bytes)].concat();
    };
    for (name, frames) in calls().into_iter().chain(control()) {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for frame in &frames {
            encoder.frame(&mut wire, frame).expect("within bounds");
        }
        let again: String = frames.iter().map(line).collect();
        assert_eq!(read(&wire), again, "{name}");
        add(name, &wire);
    }
    for (name, bytes) in refused() {
        assert!(read(bytes).contains("refused: "), "{name}");
        add(name, bytes);
    }
    text
}

#[test]
fn the_vectors_are_what_this_codec_writes_and_reads() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/link-1.txt");
    let text = written();
    if std::env::var_os("BH_WRITE_VECTORS").is_some() {
        std::fs::write(&file, &text).expect("written");
    }
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), text);
}
