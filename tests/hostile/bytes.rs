//! Bytes that make no sense, at every door.

use std::time::Duration;

use futures::future::join_all;
use testnet::Must;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

use crate::victim::{Door, Victim};

/// How long one attacker waits for an answer before it goes.
const LISTEN_FOR: Duration = Duration::from_millis(300);

/// Numbers without meaning, the same in every run (SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Sends `bytes`, listens for a moment, goes.
async fn shout(door: &Door, bytes: &[u8]) {
    let Ok(mut wire) = door.open().await else { return };
    // The other side may hang up at any byte; that is its right.
    let _ = wire.write_all(bytes).await;
    let mut answer = [0; 4096];
    let _ = tokio::time::timeout(LISTEN_FOR, wire.read(&mut answer)).await;
}

/// What a client of each dialect says first, and messages that begin well.
fn beginnings() -> Vec<(&'static str, Vec<u8>)> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let with = |frame: &[u8]| [preface.as_slice(), frame].concat();
    // Nine bytes: length (3), type, flags, stream (4).
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let huge_headers = [0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1];
    let huge_data = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let odd_continuation = [0, 0, 1, 9, 0, 0, 0, 0, 7, 0];
    let unknown = [0, 0, 4, 0xee, 0xff, 0, 0, 0, 9, 1, 2, 3, 4];
    vec![
        ("nothing", Vec::new()),
        ("half a preface", preface[..10].to_vec()),
        ("a preface and silence", preface.clone()),
        ("headers of 16 MiB", with(&[&settings[..], &huge_headers].concat())),
        ("data of 16 MiB before headers", with(&[&settings[..], &huge_data].concat())),
        ("a continuation of nothing", with(&[&settings[..], &odd_continuation].concat())),
        ("an unknown frame", with(&[&settings[..], &unknown].concat())),
        ("a request cut short", b"GET /health HTTP/1.1\r\nHost: x".to_vec()),
        ("a header without end", {
            let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
            head.resize(1 << 20, b'a');
            head
        }),
        ("a body that was promised", {
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".to_vec()
        }),
        ("smuggled lengths", {
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"
                .to_vec()
        }),
        ("multistream", b"\x13/multistream/1.0.0\n".to_vec()),
        ("multistream, then a name of 2 GiB", {
            b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x07/noise".to_vec()
        }),
        ("a Noise message that is none", {
            b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xffnot a handshake".to_vec()
        }),
        ("a varint without end", vec![0xff; 64]),
        ("a link preface cut short", b"BH".to_vec()),
        ("zeros", vec![0; 4096]),
    ]
}

#[tokio::test]
async fn beginnings_cut_short_or_gone_wrong_harm_nobody() {
    let victim = Victim::start().await;
    let doors = victim.doors();
    for (what, bytes) in beginnings() {
        join_all(doors.iter().map(|door| shout(door, &bytes))).await;
        victim.is_well(what).await;
    }
}

#[tokio::test]
async fn noise_at_every_door_harms_nobody() {
    let victim = Victim::start().await;
    let doors = victim.doors();
    let mut noise = Noise(3);
    for length in [1, 2, 9, 64, 1_000, 70_000, 1 << 20] {
        let shots: Vec<Vec<u8>> = (0..5).map(|_| noise.bytes(length)).collect();
        let all = doors.iter().flat_map(|door| shots.iter().map(move |shot| shout(door, shot)));
        join_all(all).await;
    }
    victim.is_well("noise").await;
}

#[tokio::test]
async fn mutated_prefaces_harm_nobody() {
    let victim = Victim::start().await;
    let doors = victim.doors();
    let mut noise = Noise(7);
    let seeds: Vec<Vec<u8>> =
        beginnings().into_iter().map(|(_, bytes)| bytes).filter(|b| b.len() > 4).collect();
    for _ in 0..20 {
        let mut shots = Vec::new();
        for seed in &seeds {
            let mut shot = seed[..seed.len().min(2_048)].to_vec();
            for _ in 0..=noise.next() % 4 {
                let at = noise.next() as usize % shot.len();
                shot[at] = noise.next() as u8;
            }
            shot.truncate(1 + noise.next() as usize % shot.len());
            shots.push(shot);
        }
        let door = |at: usize| &doors[at % doors.len()];
        let turn = noise.next() as usize;
        join_all(shots.iter().enumerate().map(|(at, shot)| shout(door(at + turn), shot))).await;
    }
    victim.is_well("mutations").await;
}

#[tokio::test]
async fn datagrams_without_meaning_at_the_quic_port_harm_nobody() {
    let victim = Victim::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(victim.quic()).await.expect("an address");
    let mut noise = Noise(11);
    for round in 0..2_000_usize {
        let mut datagram = noise.bytes(1 + round % 1_400);
        if round % 2 == 0 {
            // The form of a long header of version 1, as a handshake begins.
            datagram[0] = 0xc0 | (datagram[0] & 0x3f);
            for (at, byte) in [0, 0, 0, 1].into_iter().enumerate() {
                if let Some(place) = datagram.get_mut(at + 1) {
                    *place = byte;
                }
            }
        }
        let _ = socket.send(&datagram).await;
    }
    victim.is_well("datagrams").await;
}

#[tokio::test]
async fn grpc_messages_that_lie_about_themselves_are_refused() {
    use testnet::client::Caller;
    let victim = Victim::start().await;
    let caller = Caller::of(&victim.node.ready().grpc).must();
    let within = Duration::from_secs(10);
    for path in [
        "/",
        "//",
        "/x",
        "/demo.v1.Counter/",
        "/demo.v1.Counter/Add/More",
        "/../etc/passwd",
        "/%00/%00",
    ] {
        let answer = caller.unary(path, Vec::new(), &[], within).await;
        assert!(answer.is_err(), "{path}: {answer:?}");
    }
    let long = format!("/{}/Add", "a".repeat(10_000));
    assert!(caller.unary(&long, Vec::new(), &[], within).await.is_err());
    for (key, value) in [
        ("grpc-timeout", "soon"),
        ("grpc-timeout", "999999999999S"),
        ("grpc-timeout", "-1S"),
        ("bh-peer", "not-a-peer"),
        ("bh-locality", "nowhere"),
    ] {
        // Refused or ignored, but answered.
        let metadata = [(key, value)];
        let _ = caller.unary("/demo.v1.Counter/Get", Vec::new(), &metadata, within).await;
    }
    victim.is_well("lies").await;
}
