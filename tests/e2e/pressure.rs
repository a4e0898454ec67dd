//! A slow reader slows its writer and nobody else, and what is kept for it is bounded.

use std::{fs, time::Duration};

use futures::{StreamExt, stream};
use plugins::demo::{LingerRequest, RepeatRequest, SayReply, echo_client::EchoClient};
use plugins::demo::{SayRequest, probe_client::ProbeClient};
use sdk::LinkChannel;
use testnet::{Cluster, Must, Node};
use tonic::{Request, Streaming};

use crate::support::{AT_ONCE, ECHO, pair_with, quick, timed};

/// What one hop may keep of a call that nobody reads: the credit it begins with.
const STALLED_BYTES: usize = 64 * 1024;

/// What a link may keep beyond that, of all its calls: credit that grew, and what waits to be
/// written. Two links meet in a peer.
const LINKS_BYTES: usize = 2 * (8 + 1) * 1024 * 1024;

/// What a stream costs a peer while nothing happens on it: its place in two links and in the
/// router, and what the allocator takes beside that.
const WAITING_BYTES: usize = 24 * 1024;

/// What a peer takes for other reasons meanwhile.
const OTHER_BYTES: usize = 24 * 1024 * 1024;

const STALLED: usize = 50;
const STREAMS: usize = 10_000;

fn memory(node: &Node) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", node.process().pid())).must();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().must();
    kib * 1024
}

/// An answer without end of which nothing but its beginning is read.
async fn stalled(channel: &LinkChannel) -> Streaming<SayReply> {
    let endless = RepeatRequest { text: "x".repeat(1_000), times: u32::MAX };
    let answer = EchoClient::new(channel.clone()).repeat(Request::new(endless)).await;
    let mut replies = answer.must().into_inner();
    replies.message().await.must().expect("without end");
    replies
}

async fn others_are_answered_at_once(channel: &LinkChannel) {
    for _ in 0..200 {
        let say = timed(SayRequest { text: "hi".into() });
        let mut client = EchoClient::new(channel.clone());
        let reply = quick(AT_ONCE, client.say(say)).await.must().must();
        assert_eq!(reply.into_inner().text, "Echo: hi");
    }
}

#[tokio::test]
async fn slow_readers_slow_their_writers_and_nobody_else_through_one_peer_and_through_two() {
    let cluster = pair_with("echo", ECHO).await.must();
    for name in ["b", "a"] {
        let nodes = ["a", "b"].map(|name| cluster.peer(name).must());
        let channel = LinkChannel::unix(&cluster.peer(name).must().ready().mesh);
        others_are_answered_at_once(&channel).await;
        let before = nodes.map(memory);
        let mut slow = Vec::new();
        for _ in 0..STALLED {
            slow.push(stalled(&channel).await);
        }
        others_are_answered_at_once(&channel).await;
        let most = STALLED * 2 * STALLED_BYTES + LINKS_BYTES + OTHER_BYTES;
        for (node, before) in nodes.into_iter().zip(before) {
            let grown = memory(node).saturating_sub(before);
            assert!(grown < most, "{} took {grown} bytes more, at most {most}", node.name());
        }
        // The slow ones are still whole.
        for _ in 0..1_000 {
            let reply = slow[0].message().await.must().expect("without end");
            assert_eq!(reply.text.len(), "Echo: ".len() + 1_000);
        }
    }
}

#[tokio::test]
async fn ten_thousand_streams_at_one_peer_leave_room_for_calls_beside_a_slow_reader() {
    let mut cluster = Cluster::empty().await.must();
    cluster.add(cluster.setup("a")).await.must();
    let node = cluster.peer("a").must();
    node.load(&testnet::packages::plugin("echo").must()).await.must();
    let channel = LinkChannel::unix(&node.ready().mesh);
    others_are_answered_at_once(&channel).await;
    let before = memory(node);
    let _slow = stalled(&channel).await;
    let open = |number: usize| {
        let mut client = ProbeClient::new(channel.clone());
        async move {
            let hour = LingerRequest { key: format!("k{}", number % 100), millis: 3_600_000 };
            let mut drops = client.drip(Request::new(hour)).await.must().into_inner();
            drops.message().await.must().expect("the first comes at once");
            drops
        }
    };
    let opening = stream::iter(0..STREAMS).map(open).buffer_unordered(64).collect::<Vec<_>>();
    let open = tokio::time::timeout(Duration::from_mins(1), opening).await.must();
    assert_eq!(open.len(), STREAMS);
    others_are_answered_at_once(&channel).await;
    let grown = memory(node).saturating_sub(before);
    let most = STREAMS * WAITING_BYTES + LINKS_BYTES + OTHER_BYTES;
    assert!(grown < most, "{grown} bytes more for {STREAMS} streams, at most {most}");
    println!("{} bytes a stream", grown / STREAMS);
}
