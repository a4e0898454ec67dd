//! Too much of what would be right in small numbers, and too little of it.

use std::time::Duration;

use testnet::{Must, client::Caller};
use tokio::{io::AsyncWriteExt, time::Instant};

use crate::victim::Victim;

/// Connections that say nothing: more than any bound, fewer than descriptors of this process.
const SILENT_CONNECTIONS: usize = 400;

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let victim = Victim::start().await;
    for door in victim.doors() {
        let mut held = Vec::new();
        for _ in 0..SILENT_CONNECTIONS {
            let opened = tokio::time::timeout(Duration::from_secs(1), door.open()).await;
            let Ok(Ok(wire)) = opened else { break };
            held.push(wire);
        }
        assert!(!held.is_empty(), "{} lets nobody in", door.name());
        if door.name() == "mesh" {
            // Clients come through other doors, and those stay open.
            victim.is_well("silence at the mesh port").await;
        }
        drop(held);
        victim.is_well(door.name()).await;
    }
}

#[tokio::test]
async fn a_caller_that_sends_byte_by_byte_keeps_nobody_waiting() {
    let victim = Victim::start().await;
    let doors = victim.doors();
    let mut wires = Vec::new();
    for door in doors.iter().cycle().take(60) {
        wires.extend(door.open().await);
    }
    let begun = Instant::now();
    let bytes = b"GET /health HTTP/1.1\r\nHost: slow\r\n";
    for byte in bytes.iter().take(20) {
        for wire in &mut wires {
            let _ = wire.write_all(&[*byte]).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
    victim.is_well("slow callers").await;
}

#[tokio::test]
async fn calls_to_services_that_nobody_offers_neither_fill_memory_nor_block_others() {
    let victim = Victim::start().await;
    let caller = Caller::of(&victim.node.ready().grpc).must();
    let calls = (0..2_000).map(|number| {
        let caller = caller.clone();
        async move {
            let path = format!("/no.such.Service{number}/Call");
            caller.unary(&path, Vec::new(), &[], Duration::from_secs(30)).await.is_err()
        }
    });
    let flood = futures::future::join_all(calls);
    let meanwhile = async {
        for _ in 0..5 {
            victim.is_well("while names are guessed").await;
        }
    };
    let (refused, ()) = tokio::join!(flood, meanwhile);
    assert!(refused.into_iter().all(|refused| refused));
    victim.is_well("names were guessed").await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_cost_nothing_lasting() {
    let victim = Victim::start().await;
    let channel = Caller::of(&victim.node.ready().grpc).must().channel();
    for _ in 0..50 {
        let calls = (0..100).map(|_| {
            let mut client = plugins::demo::counter_client::CounterClient::new(channel.clone());
            let request = plugins::demo::GetRequest { name: "watched".into() };
            // Dropped as soon as it was sent: HTTP/2 turns that into a reset.
            async move {
                let watch = client.watch(request);
                let _ = tokio::time::timeout(Duration::from_millis(1), watch).await;
            }
        });
        futures::future::join_all(calls).await;
    }
    victim.is_well("resets").await;
}
