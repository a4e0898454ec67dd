//! HTTP/2 turned against its server: frames that cost their sender nothing. Each flood ends its own
//! connection within a bound, is counted and logged once, and leaves others alone.
//!
//! Source: RFC 9113; CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316 and their kin.

use std::time::Duration;

use testnet::{Must, client::get, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::victim::Victim;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Frames of one flood: far more than any bound, few enough to be sent in seconds.
const FRAMES: usize = 200_000;

/// More than the sockets on the way hold by themselves, also of the smallest.
const FRAMES_WITHOUT_END: usize = 2_000_000;

/// Within this a flood must have ended its connection.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a call of `method` as literals: a server learns nothing from them.
fn call_of(method: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in
        [(":path", method), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    block
}

fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_of("/demo.v1.Counter/Watch"))
}

/// How a connection was ended.
#[derive(Debug)]
struct Refused {
    /// The reason in GOAWAY, where there was one and it was not lost with the connection.
    reason: Option<u32>,
    /// Bytes that were taken before.
    sent: usize,
}

/// Sends a beginning and then `chunks` until the other side has enough of them.
async fn flood(
    address: &str,
    beginning: &[u8],
    mut chunks: impl Iterator<Item = Vec<u8>> + Send,
) -> Refused {
    let stream = TcpStream::connect(address).await.expect("it accepts");
    let (mut read, mut write) = stream.into_split();
    let hears = tokio::spawn(async move {
        let mut heard = Vec::new();
        let mut chunk = [0; 16 * 1024];
        while let Ok(count @ 1..) = read.read(&mut chunk).await {
            heard.extend_from_slice(&chunk[..count]);
            // Answers are of no interest; the last frames are.
            if heard.len() > 1 << 20 {
                heard.drain(..heard.len() - (64 << 10));
            }
        }
        heard
    });
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), beginning].concat();
    let mut sent = 0;
    let says = async {
        if write.write_all(&hello).await.is_err() {
            return;
        }
        for chunk in chunks.by_ref() {
            if write.write_all(&chunk).await.is_err() {
                return;
            }
            sent += chunk.len();
        }
    };
    timeout(REFUSED_WITHIN, says).await.expect("it neither takes the flood nor ends it");
    let heard = timeout(REFUSED_WITHIN, hears).await.expect("the flood was borne");
    let heard = heard.expect("no panic");
    // Before closing: a frame of length 8 or more and kind 7 on stream 0.
    let goes = heard.windows(17).rev().find(|at| at[3..9] == [GOAWAY, 0, 0, 0, 0, 0]);
    let reason = goes.map(|at| u32::from_be_bytes(at[13..17].try_into().expect("four bytes")));
    Refused { reason, sent }
}

/// What `/metrics` says of connections that were refused for `why`.
async fn refused(victim: &Victim, why: &str) -> u64 {
    let (_, page) = get(&victim.node.ready().metrics, "/metrics").await.must();
    let name = format!("blackhole_gateway_connections_refused_total{{why=\"{why}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

fn logged(victim: &Victim) -> usize {
    victim.node.process().output().text().matches("connection closed: ").count()
}

/// A flood ends its connection, as a flood: counted once, logged once, and nobody else is harmed.
async fn is_refused(
    victim: &Victim,
    what: &str,
    beginning: &[u8],
    chunks: impl Iterator<Item = Vec<u8>> + Send + 'static,
) -> Refused {
    let (counted, said) = (refused(victim, "flood").await, logged(victim));
    let address = victim.node.ready().grpc.clone();
    let beginning = beginning.to_vec();
    let attack = tokio::spawn(async move { flood(&address, &beginning, chunks).await });
    while !attack.is_finished() {
        victim.answers().await;
    }
    let ended = attack.await.expect("no panic");
    until(what, Duration::from_secs(5), || async {
        let now = (refused(victim, "flood").await, logged(victim));
        if now == (counted + 1, said + 1) { Ok(()) } else { Err(format!("{now:?}, {ended:?}")) }
    })
    .await
    .must();
    victim.is_well(what).await;
    ended
}

/// `count` copies of `frame`, some hundred at a time.
fn copies(frame: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
    std::iter::repeat_n(frame.repeat(100), count / 100)
}

#[tokio::test]
async fn calls_that_are_opened_and_reset_at_once_are_refused() {
    let victim = Victim::start().await;
    let pairs = (0..FRAMES as u32 / 2).map(|number| {
        let stream = number * 2 + 1;
        [open(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    is_refused(&victim, "rapid reset", &[], pairs).await;
}

#[tokio::test]
async fn headers_that_are_continued_without_end_are_refused() {
    let victim = Victim::start().await;
    let opened = frame(HEADERS, 0, 1, &call_of("/demo.v1.Counter/Get"));
    let ended = is_refused(
        &victim,
        "endless CONTINUATION",
        &opened,
        copies(&frame(CONTINUATION, 0, 1, &[]), FRAMES),
    )
    .await;
    assert!(ended.reason.is_none_or(|reason| reason == ENHANCE_YOUR_CALM), "{ended:?}");

    // The same with something in them: a header list without end.
    let mut header = vec![0, 1, b'a', 100];
    header.extend([b'x'; 100]);
    let opened = frame(HEADERS, 0, 1, &call_of("/demo.v1.Counter/Get"));
    let full = copies(&frame(CONTINUATION, 0, 1, &header.repeat(100)), FRAMES / 100);
    is_refused(&victim, "endless headers", &opened, full).await;
}

#[tokio::test]
async fn settings_pings_and_priorities_without_end_are_refused() {
    let victim = Victim::start().await;
    for (what, frame) in [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("SETTINGS that change", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("PING", frame(PING, 0, 0, b"flooding")),
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 7])),
        ("unknown frames", frame(0xee, 0, 0, b"?")),
    ] {
        let ended = is_refused(&victim, what, &[], copies(&frame, FRAMES_WITHOUT_END)).await;
        // What was taken before is a small part of what there was to send.
        assert!(ended.sent < frame.len() * FRAMES_WITHOUT_END, "{what}: {ended:?}");
    }
}

#[tokio::test]
async fn empty_data_without_end_is_refused() {
    let victim = Victim::start().await;
    is_refused(&victim, "empty DATA", &open(1), copies(&frame(DATA, 0, 1, &[]), FRAMES)).await;
    // Padding alone is as empty.
    let padded = frame(DATA, 8, 1, &[1, 0]);
    is_refused(&victim, "padded DATA", &open(1), copies(&padded, FRAMES)).await;
}

#[tokio::test]
async fn games_with_windows_are_refused() {
    let victim = Victim::start().await;
    let update = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    is_refused(&victim, "windows a byte at a time", &[], copies(&update(0, 1), FRAMES)).await;

    let malformed = refused(&victim, "malformed").await;
    let address = victim.node.ready().grpc.clone();
    let over = flood(&address, &[], copies(&update(0, 0x7fff_ffff), 200)).await;
    assert_eq!(over.reason, Some(FLOW_CONTROL_ERROR), "{over:?}");
    let nothing = flood(&address, &[], copies(&update(0, 0), 100)).await;
    assert_eq!(nothing.reason, Some(PROTOCOL_ERROR), "{nothing:?}");
    until("both are counted", Duration::from_secs(5), || async {
        let now = refused(&victim, "malformed").await;
        if now == malformed + 2 { Ok(()) } else { Err(now.to_string()) }
    })
    .await
    .must();
    victim.is_well("windows").await;
}

#[tokio::test]
async fn answers_that_nobody_makes_room_for_are_not_kept() {
    let victim = Victim::start().await;
    // No window for any answer, and as many calls as a connection may have.
    let shut = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let asked = |stream| [open(stream), frame(DATA, 1, stream, &[0; 5])].concat();
    let calls: Vec<u8> = (0..1_000).flat_map(|number| asked(number * 2 + 1)).collect();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut wire = TcpStream::connect(&victim.node.ready().grpc).await.expect("it accepts");
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &shut, &calls].concat();
        wire.write_all(&hello).await.expect("within what a connection may have");
        held.push(wire);
    }
    victim.is_well("closed windows").await;
    drop(held);
    victim.is_well("they went").await;
}
