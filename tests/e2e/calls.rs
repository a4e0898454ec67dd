//! A call arrives as it was sent, and so does its answer: all four kinds, here and across peers,
//! over HTTP/2 and in frames.

use std::time::{Duration, Instant};

use plugins::demo::{
    FailRequest, HandleRequest, InspectRequest, LingerRequest, Metadatum, OutcomeReply,
    OutcomeRequest, RepeatRequest, SayRequest,
};
use protocol::limits::MESSAGE_BYTES_MAX;
use testnet::{Cluster, Must, packages, until};
use tonic::{Code, Request, metadata::MetadataValue};

use crate::dialects::{Via, callers, echo, probe, say};
use crate::support::{ECHO, KNOWN_WITHIN, pair_with, timed};

/// A message that gRPC libraries take by default, with room for what wraps it.
const PLUGIN_BYTES_MAX: usize = 4 * 1024 * 1024 - 1024;

async fn outcome(node: &Via<'_>, key: &str) -> Result<OutcomeReply, String> {
    let request = timed(OutcomeRequest { key: key.into() });
    let outcome = probe(node).outcome(request).await.map_err(|status| status.to_string())?;
    Ok(outcome.into_inner())
}

#[tokio::test]
async fn all_four_kinds_of_call_arrive_here_and_across_peers() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        assert_eq!(say(node, "one").await.must(), "Echo: one");

        let request = timed(RepeatRequest { text: "again".into(), times: 100 });
        let mut stream = echo(node).repeat(request).await.must().into_inner();
        let mut count = 0;
        while let Some(reply) = stream.message().await.must() {
            assert!(reply.text.contains("again"));
            count += 1;
        }
        assert_eq!(count, 100);

        let said = ["a", "b", "c"].map(|text| SayRequest { text: text.into() });
        let joined = echo(node).join(timed(futures::stream::iter(said))).await.must();
        assert!(joined.into_inner().text.contains("a b c"));
    }
}

#[tokio::test]
async fn a_conversation_goes_back_and_forth_message_by_message() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let (say, heard) = tokio::sync::mpsc::channel::<SayRequest>(1);
        let texts = futures::stream::unfold(heard, |mut heard| async {
            heard.recv().await.map(|text| (text, heard))
        });
        say.send(SayRequest { text: "0".into() }).await.expect("open");
        let mut replies = echo(node).chat(timed(texts)).await.must().into_inner();
        for turn in 0..50 {
            // The next text is said only when the one before has been answered.
            let reply = replies.message().await.must().expect("a reply");
            assert!(reply.text.ends_with(&turn.to_string()), "{} at {turn}", reply.text);
            say.send(SayRequest { text: (turn + 1).to_string() }).await.expect("open");
        }
        drop(say);
        replies.message().await.must().expect("the last");
        assert!(replies.message().await.must().is_none(), "ends when both have ended");
    }
}

#[tokio::test]
async fn metadata_arrives_as_sent_binary_and_repeated_included() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let mut request = timed(InspectRequest::default());
        let binary = [0_u8, 255, 1, 254];
        let metadata = request.metadata_mut();
        metadata.insert("x-tenant", "blue".parse().expect("ascii"));
        metadata.append("x-many", "one".parse().expect("ascii"));
        metadata.append("x-many", "two".parse().expect("ascii"));
        metadata.insert_bin("x-raw-bin", MetadataValue::from_bytes(&binary));
        let seen = probe(node).inspect(request).await.must().into_inner();
        let values = |name: &str| -> Vec<Vec<u8>> {
            let of_name = seen.metadata.iter().filter(|entry| entry.name == name);
            of_name.map(|entry| entry.value.clone()).collect()
        };
        assert_eq!(values("x-tenant"), [b"blue"]);
        assert_eq!(values("x-many"), [b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(values("x-raw-bin"), [binary.to_vec()]);
        assert!(values("bh-peer").is_empty() && values("bh-locality").is_empty());
        // The deadline is told as what is left of it.
        assert!((1..=10_000).contains(&seen.time_left_ms), "{}", seen.time_left_ms);
    }
}

#[tokio::test]
async fn a_plugins_own_failure_arrives_with_code_words_details_and_trailers() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        for code in 1..=16 {
            let trailer =
                |name: &str, value: &[u8]| Metadatum { name: name.into(), value: value.to_vec() };
            let request = FailRequest {
                code,
                message: "tout est cassé: 100 %, \"vraiment\"".into(),
                details: vec![0, 1, 2, 255],
                trailers: vec![trailer("x-cause", b"demo"), trailer("x-cause-bin", &[7, 0, 7])],
            };
            let status = probe(node).fail(timed(request)).await.expect_err("told to fail");
            assert_eq!(status.code(), Code::from_i32(code));
            assert_eq!(status.message(), "tout est cassé: 100 %, \"vraiment\"");
            assert_eq!(status.details(), [0, 1, 2, 255]);
            let trailers = status.metadata();
            assert_eq!(trailers.get("x-cause").expect("a trailer"), "demo");
            let binary = trailers.get_bin("x-cause-bin").expect("a trailer").to_bytes();
            assert_eq!(binary.expect("base64").as_ref(), [7, 0, 7]);
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let key = format!("deadline-{}", node.name());
        let mut request = Request::new(LingerRequest { key: key.clone(), millis: 60_000 });
        request.set_timeout(Duration::from_millis(400));
        let start = Instant::now();
        let status = probe(node).linger(request).await.expect_err("too slow");
        let took = start.elapsed();
        let code = status.code();
        assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{status}");
        assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(5), "{took:?}");
        until("the plugin knows that nobody waits", KNOWN_WITHIN, || async {
            let seen = outcome(node, &key).await?;
            if seen.cancelled == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await
        .must();
    }
}

#[tokio::test]
async fn a_caller_that_gives_up_is_noticed_by_the_plugin() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let unary = format!("unary-{}", node.name());
        let request = timed(LingerRequest { key: unary.clone(), millis: 60_000 });
        let mut client = probe(node);
        let call = tokio::spawn(async move { client.linger(request).await });
        until("the call has begun", KNOWN_WITHIN, || async {
            let seen = outcome(node, &unary).await?;
            if seen.begun == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await
        .must();
        // Ending the task drops the call: this is how a caller gives up.
        call.abort();

        let stream = format!("stream-{}", node.name());
        let request = Request::new(LingerRequest { key: stream.clone(), millis: 10 });
        let mut drops = probe(node).drip(request).await.must().into_inner();
        for _ in 0..5 {
            drops.message().await.must().expect("without end");
        }
        drop(drops);

        for key in [unary, stream] {
            until("the plugin knows that nobody waits", KNOWN_WITHIN, || async {
                let seen = outcome(node, &key).await?;
                if seen.cancelled == 1 { Ok(()) } else { Err(format!("{key}: {seen:?}")) }
            })
            .await
            .must();
        }
    }
}

#[tokio::test]
async fn a_large_message_passes_and_a_larger_one_is_refused_and_harms_no_other_call() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let handle = |bytes: usize| {
            let mut client = echo(node).max_decoding_message_size(64 << 20);
            let data: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            async move { client.handle(timed(HandleRequest { data })).await }
        };
        // What the mesh carries; the plugin's own library refuses more than 4 MiB.
        let passed = handle(PLUGIN_BYTES_MAX).await.must().into_inner();
        assert!(passed.success && passed.data.len() >= PLUGIN_BYTES_MAX);

        let refused = handle(MESSAGE_BYTES_MAX + 1).await.expect_err("larger than allowed");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert_eq!(say(node, "still").await.must(), "Echo: still");
    }
}

#[tokio::test]
async fn many_calls_at_once_each_get_their_own_answer() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let client = echo(node);
        let calls = (0..500).map(|number| {
            let mut client = client.clone();
            async move {
                let text = format!("call {number}");
                let reply = client.say(timed(SayRequest { text: text.clone() })).await;
                assert_eq!(reply.must().into_inner().text, format!("Echo: {text}"));
            }
        });
        futures::future::join_all(calls).await;
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented_not_unavailable() {
    let cluster = pair_with("echo", ECHO).await.must();
    for node in &callers(&cluster) {
        let caller = testnet::client::Caller::of(&node.peer.ready().grpc).must();
        let within = Duration::from_secs(10);
        let answer = caller.unary("/demo.v1.Echo/Nothing", Vec::new(), &[], within).await;
        assert_eq!(answer.expect_err("no such method").code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_plugin_calls_another_through_its_own_mesh_socket() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    let aside = tempfile::tempdir().must();
    let asks = "permissions: [\"call:demo.v1.Counter\"]";
    a.load(&packages::variant(aside.path(), "caller", "echo", asks).must()).await.must();
    b.load(&packages::plugin("counter").must()).await.must();
    cluster.all_see(crate::support::COUNTER, &["b"], KNOWN_WITHIN).await.must();
    let request = plugins::demo::CountThroughMeshRequest { name: "mesh".into(), amount: 5 };
    let counted =
        crate::support::probe(a).count_through_mesh(timed(request)).await.must().into_inner();
    assert_eq!(counted.value, 5);
    assert_eq!(counted.instance, b.plugin("counter").await.must().instance);
}

#[tokio::test]
async fn trace_tenant_baggage_and_deadline_travel_through_a_plugin_by_themselves() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let [a, b] = ["a", "b"].map(|name| cluster.peer(name).must());
    let aside = tempfile::tempdir().must();
    let asks = "permissions: [\"call:demo.v1.Probe\"]";
    for (node, name) in [(a, "near"), (b, "far")] {
        node.load(&packages::variant(aside.path(), name, "echo", asks).must()).await.must();
    }
    cluster.all_see("demo.v1.Probe", &["a", "b"], KNOWN_WITHIN).await.must();
    let travels = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("baggage", "user=alice"),
        ("bh-tenant", "blue"),
    ];
    for place in ["local", "any"] {
        let mut request = timed(InspectRequest { through_mesh: true });
        for (name, value) in travels.into_iter().chain([("bh-locality", place), ("x-own", "1")]) {
            request.metadata_mut().insert(name, value.parse().expect("ascii"));
        }
        let seen = crate::support::probe(a).inspect(request).await.must().into_inner();
        let value = |name: &str| seen.metadata.iter().find(|entry| entry.name == name);
        for (name, sent) in travels {
            assert_eq!(value(name).map(|it| &*it.value), Some(sent.as_bytes()), "{name}: {seen:?}");
        }
        assert!(value("x-own").is_none(), "what is not of the context stays: {seen:?}");
        assert!((1..=10_000).contains(&seen.time_left_ms), "{}", seen.time_left_ms);
    }
}

#[tokio::test]
async fn a_plugin_calls_nothing_that_it_does_not_ask_for_or_that_the_operator_denies() {
    let cluster = Cluster::start(&["a"]).await.must();
    let a = cluster.peer("a").must();
    // The paper's own manifest asks for no call.
    a.load(&packages::plugin("echo").must()).await.must();
    a.load(&packages::plugin("counter").must()).await.must();
    cluster.all_see(crate::support::COUNTER, &["a"], KNOWN_WITHIN).await.must();
    let request = plugins::demo::CountThroughMeshRequest { name: "mesh".into(), amount: 5 };
    let refused = crate::support::probe(a)
        .count_through_mesh(timed(request))
        .await
        .expect_err("not asked for");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("`call:demo.v1.Counter`"), "{refused}");
    let echo = a.plugin("echo").await.must();
    assert_eq!(echo.denials["call"], 1);
    assert_eq!(echo.permissions_asked, ["network"]);
    assert!(echo.permissions_granted.is_empty());
}

#[tokio::test]
async fn the_operators_sockets_carry_calls_too() {
    let cluster = pair_with("echo", ECHO).await.must();
    let a = cluster.peer("a").must();
    for socket in [&a.ready().admin, &a.ready().mesh] {
        let channel = testnet::client::Caller::of_socket(socket).must().channel();
        let mut client = plugins::demo::echo_client::EchoClient::new(channel);
        let reply = client.say(timed(SayRequest { text: "hi".into() })).await.must();
        assert_eq!(reply.into_inner().text, "Echo: hi");
    }
}
