//! Two peers that cannot reach each other, and a third that carries what they say: on a link
//! through it is all that there is on a direct one.

use std::time::{Duration, Instant};

use plugins::demo::{
    HandleRequest, LingerRequest, OutcomeRequest, RepeatRequest, SayRequest,
    echo_client::EchoClient, probe_client::ProbeClient,
};
use protocol::proto::admin;
use sdk::LinkChannel;
use testnet::{Cluster, Must, Node, packages, until};
use tokio::sync::mpsc;
use tonic::{Code, Request};

use crate::support::{ECHO, KNOWN_WITHIN, timed};

/// A large transfer: messages of so many bytes, many times what a call may have on its way.
const MESSAGE_BYTES: usize = 512 * 1024;
const MESSAGES: u32 = 64;

/// How long a small call may take beside it, on a machine that does something else too.
const SMALL_WITHIN: Duration = Duration::from_secs(2);

/// Peers that listen nowhere but at the bootstrap node, which is their relay. Where neither
/// listens itself neither can be dialled, and there is nothing to punch a hole to.
async fn through_a_relay() -> Cluster {
    let mut cluster = Cluster::empty().await.must();
    let circuit = format!("{}/p2p-circuit", cluster.bootstrap().must().address("tcp").must());
    let mut setups = ["a", "b"].map(|name| cluster.setup(name));
    for setup in &mut setups {
        setup.listen = vec![circuit.clone()];
    }
    cluster.add_all(setups.into()).await.must();
    cluster.peer("b").must().load(&packages::plugin("echo").must()).await.must();
    cluster.all_see(ECHO, &["b"], KNOWN_WITHIN).await.must();
    cluster
}

/// Of all their connections to each other none goes another way.
async fn only_the_relay_is_between(nodes: [&Node; 2]) {
    for (node, other) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        let told = node.admin().must().peers(admin::PeersRequest {}).await.must().into_inner();
        let of_other = told.peers.into_iter().filter(|peer| peer.peer_id == other.peer_id());
        let connections: Vec<_> = of_other.flat_map(|peer| peer.connections).collect();
        let relayed = connections.iter().all(|connection| connection.transport == "relay");
        assert!(!connections.is_empty() && relayed, "{connections:?}");
    }
}

/// A small call.
async fn say(channel: &LinkChannel) {
    let mut client = EchoClient::new(channel.clone());
    let said = client.say(timed(SayRequest { text: "hi".into() })).await.must();
    assert_eq!(said.into_inner().text, "Echo: hi");
}

/// A conversation in which each side waits for the other.
async fn converse(channel: &LinkChannel) {
    let (say, heard) = mpsc::channel::<SayRequest>(1);
    let texts = futures::stream::unfold(heard, |mut heard| async {
        heard.recv().await.map(|text| (text, heard))
    });
    let replies = EchoClient::new(channel.clone()).chat(timed(texts)).await.must();
    let mut replies = replies.into_inner();
    for turn in 0..50 {
        say.send(SayRequest { text: turn.to_string() }).await.expect("open");
        let reply = replies.message().await.must().expect("a reply");
        assert_eq!(reply.text, format!("Echo: {turn}"));
    }
    drop(say);
    assert!(replies.message().await.must().is_none(), "ends when both have ended");
}

/// A call that is given up is ended at the other side.
async fn give_up(channel: &LinkChannel) {
    let mut probe = ProbeClient::new(channel.clone());
    let mut request = Request::new(LingerRequest { key: "relayed".into(), millis: 60_000 });
    request.set_timeout(Duration::from_millis(400));
    let status = probe.linger(request).await.expect_err("too slow");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    until("the plugin knows that nobody waits", KNOWN_WITHIN, || async {
        let asked = timed(OutcomeRequest { key: "relayed".into() });
        let seen = ProbeClient::new(channel.clone()).outcome(asked).await;
        let seen = seen.map_err(|status| status.to_string())?.into_inner();
        if seen.cancelled == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
    .must();
}

/// Much in one answer, and small calls beside it, of which the slowest is told.
async fn transfer_beside_small_calls(channel: &LinkChannel) -> Duration {
    let text = "x".repeat(MESSAGE_BYTES);
    let request = Request::new(RepeatRequest { text: text.clone(), times: MESSAGES });
    let mut moving = EchoClient::new(channel.clone()).repeat(request).await.must().into_inner();
    let expected = format!("Echo: {text}");
    let reading = async {
        let mut count = 0;
        while let Some(reply) = moving.message().await.must() {
            assert!(reply.text == expected, "message {count} is another");
            count += 1;
        }
        assert_eq!(count, MESSAGES);
    };
    let mut reading = std::pin::pin!(reading);
    let mut slowest = Duration::ZERO;
    loop {
        let begun = Instant::now();
        tokio::select! {
            () = &mut reading => return slowest,
            () = say(channel) => slowest = slowest.max(begun.elapsed()),
        }
    }
}

#[tokio::test]
async fn control_small_calls_streams_and_bulk_all_pass_a_relay() {
    let mut cluster = through_a_relay().await;
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    let channel = LinkChannel::unix(&a.ready().mesh);
    say(&channel).await;
    only_the_relay_is_between([a, b]).await;

    // What a peer asks another about its services.
    let asked = admin::DescribeRequest { service: ECHO.into() };
    let described = a.admin().must().describe(asked).await.must().into_inner();
    assert!(!described.descriptor_set.is_empty());
    give_up(&channel).await;
    converse(&channel).await;

    let slowest = transfer_beside_small_calls(&channel).await;
    assert!(slowest > Duration::ZERO && slowest < SMALL_WITHIN, "{slowest:?}");
    // As much the other way, in messages as large as gRPC takes.
    for _ in 0..8 {
        let request = timed(HandleRequest { data: vec![7; 2 * 1024 * 1024] });
        let reply = EchoClient::new(channel.clone()).handle(request).await.must().into_inner();
        assert_eq!(reply.data.len(), "Echo: ".len() + 2 * 1024 * 1024);
    }

    // It was the relay to the end: without it there is no way.
    only_the_relay_is_between([a, b]).await;
    cluster.kill_bootstrap().await.must();
    let mut client = EchoClient::new(channel);
    let refused = client.say(timed(SayRequest { text: "hi".into() })).await;
    assert_eq!(refused.expect_err("nobody carries it").code(), Code::Unavailable);
}
