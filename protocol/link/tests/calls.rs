//! Calls of all kinds arrive as they were sent.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{sync::Arc, time::Duration};

use blackhole_link::{LinkEnd, LinkSettings};
use bytes::Bytes;
use common::*;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http_body::{Body as _, Frame as BodyFrame};
use http_body_util::BodyExt as _;
use protocol::{
    failure::{Failure, Ran, Reason},
    ports::{Call, Caller, Invoke as _, Reply},
};

/// Everything in this file holds over memory and over sockets.
fn pairs(handler: &Arc<dyn protocol::ports::Invoke>) -> [Pair; 2] {
    [pair(handler.clone()), unix_pair(handler.clone())]
}

#[tokio::test]
async fn a_unary_call_brings_metadata_bytes_and_trailers_both_ways() {
    for pair in pairs(&echo()) {
        let (sender, body) = pipe();
        let mut request = call(body);
        request.head.metadata.extend(map(&[("x-user", "a"), ("x-user", "b"), ("x-bin", "AAE=")]));
        let sent = request.head.metadata.clone();
        let answer = pair.link.invoke(request);
        send(&sender, b"\0\0\0\0\x02hi").await;
        let trailers = BodyFrame::trailers(map(&[("x-after", "request")]));
        sender.send(Ok(trailers)).await.expect("read");
        drop(sender);
        let reply = within("a reply", answer).await.expect("answered");
        assert_eq!(reply.metadata, sent);
        let (bytes, trailers) = collect(reply.body).await.expect("whole");
        assert_eq!(&bytes[..], b"\0\0\0\0\x02hi");
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-after", "request")]));
        assert_eq!(pair.link.calls_in_flight(), 0);
    }
}

#[tokio::test]
async fn the_serving_side_knows_caller_path_and_time_left() {
    let handler = handler(|call: Call| async move {
        assert_eq!(call.head.caller, Caller::Peer(peer(1)));
        let left = call.head.deadline.map(|at| at - std::time::Instant::now());
        Ok(reply(format!("{} {}", call.head.path, left.expect("a deadline").as_secs())))
    });
    for pair in pairs(&handler) {
        let answer = pair.link.invoke(call_within(empty(), Some(Duration::from_mins(1))));
        let (bytes, _) = collect(answer.await.expect("answered").body).await.expect("whole");
        assert_eq!(&bytes[..], b"/test.v1.Test/Call 59");
    }
}

#[tokio::test]
async fn a_trailers_only_answer_stays_one() {
    let handler = handler(|_| async {
        Ok(Reply { metadata: map(&[("grpc-status", "5"), ("grpc-message", "no")]), body: empty() })
    });
    for pair in pairs(&handler) {
        let reply = pair.link.invoke(call(full("x"))).await.expect("answered");
        assert_eq!(reply.metadata, map(&[("grpc-status", "5"), ("grpc-message", "no")]));
        assert!(reply.body.is_end_stream());
        assert_eq!(collect(reply.body).await.expect("whole"), (Bytes::new(), map(&[])));
    }
}

#[tokio::test]
async fn a_client_stream_is_read_while_it_is_sent() {
    let handler = handler(|call: Call| async move {
        let (bytes, _) = collect(call.body).await?;
        Ok(reply(bytes.len().to_string()))
    });
    for pair in pairs(&handler) {
        let answer = pair.link.invoke(call(repeated(&[7; 1000], 3000)));
        let (bytes, _) = collect(answer.await.expect("answered").body).await.expect("whole");
        assert_eq!(&bytes[..], b"3000000");
    }
}

#[tokio::test]
async fn a_server_stream_is_read_while_it_is_sent() {
    let handler =
        handler(|_| async { Ok(Reply { metadata: grpc(), body: repeated(&[7; 1000], 3000) }) });
    for pair in pairs(&handler) {
        let reply = pair.link.invoke(call(empty())).await.expect("answered");
        assert_eq!(drain(reply.body).await, 3_000_000);
    }
}

#[tokio::test]
async fn both_sides_of_a_bidirectional_call_take_turns() {
    for pair in pairs(&echo()) {
        let (sender, body) = pipe();
        let mut reply = within("a head", pair.link.invoke(call(body))).await.expect("answered");
        for text in [&b"one"[..], b"two", b"three"] {
            send(&sender, text).await;
            assert_eq!(&chunk(&mut reply.body).await[..], text);
        }
        drop(sender);
        let (bytes, trailers) = collect(reply.body).await.expect("whole");
        assert!(bytes.is_empty());
        assert_eq!(trailers, map(&[("grpc-status", "0")]));
    }
}

#[tokio::test]
async fn messages_much_larger_than_frames_and_credit_pass_whole() {
    let message: Bytes = (0..8 * 1024 * 1024u32).map(|n| (n / 7) as u8).collect();
    for pair in pairs(&echo()) {
        let reply = pair.link.invoke(call(full(message.clone()))).await.expect("answered");
        let (bytes, _) = collect(reply.body).await.expect("whole");
        assert!(bytes == message);
    }
}

#[tokio::test]
async fn ten_thousand_calls_are_all_answered_with_their_own_answer() {
    const CALLS: usize = 10_000;
    const AT_ONCE: usize = 200;
    for pair in pairs(&echo()) {
        let next = AtomicUsize::new(0);
        let workers = (0..AT_ONCE).map(|_| async {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= CALLS {
                    return;
                }
                let reply = pair.link.invoke(call(full(n.to_string()))).await.expect("answered");
                let (bytes, _) = collect(reply.body).await.expect("whole");
                assert_eq!(&bytes[..], n.to_string().as_bytes());
            }
        });
        let workers: FuturesUnordered<_> = workers.collect();
        within("ten thousand calls", workers.collect::<Vec<()>>()).await;
        assert_eq!(pair.link.calls_in_flight(), 0);
    }
}

#[tokio::test]
async fn a_failure_of_the_handler_crosses_and_names_the_peer() {
    let handler = handler(|_| async {
        Err(Failure::not_started(Reason::NotAvailable, "service x.Y not available"))
    });
    let settings = LinkSettings { peer: Some(peer(9)), ..LinkSettings::default() };
    let pair = pair_with(settings, LinkSettings::default(), handler);
    let failure = pair.link.invoke(call(empty())).await.err().expect("failed");
    let expected = Failure::not_started(Reason::NotAvailable, "service x.Y not available");
    assert_eq!(failure, expected.at(peer(9)));
}

#[tokio::test]
async fn a_failure_in_the_reply_comes_after_what_was_said_before_it() {
    let handler = handler(|_| async {
        let (sender, body) = pipe();
        tokio::spawn(async move {
            send(&sender, b"first").await;
            let lost = Failure::unknown(Reason::PluginLost, "the plugin ended");
            sender.send(Err(lost)).await.expect("read");
        });
        Ok(Reply { metadata: grpc(), body })
    });
    for pair in pairs(&handler) {
        let mut reply = pair.link.invoke(call(empty())).await.expect("answered");
        assert_eq!(&chunk(&mut reply.body).await[..], b"first");
        let failure = reply.body.frame().await.expect("not over").expect_err("a failure");
        assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PluginLost));
        assert!(reply.body.frame().await.is_none());
    }
}

#[tokio::test]
async fn a_link_ends_when_its_last_handle_is_dropped_and_its_last_call_is_over() {
    for pair in pairs(&echo()) {
        let (sender, body) = pipe();
        let reply = pair.link.invoke(call(body)).await.expect("answered");
        drop(pair.link);
        send(&sender, b"still here").await;
        drop(sender);
        assert_eq!(&collect(reply.body).await.expect("whole").0[..], b"still here");
        assert_eq!(within("the client", pair.client).await.expect("no panic"), LinkEnd::Closed);
        let end = within("the server", pair.server).await.expect("no panic");
        assert_eq!(end, LinkEnd::ClosedByOther);
    }
}

#[tokio::test]
async fn an_unused_link_ends_by_itself_if_asked_to() {
    let idle = Some(Duration::from_millis(50));
    let settings = LinkSettings { link_idle: idle, ..LinkSettings::default() };
    let pair = pair_with(settings, LinkSettings::default(), echo());
    drain(pair.link.invoke(call(full("x"))).await.expect("answered").body).await;
    assert_eq!(within("the client", pair.client).await.expect("no panic"), LinkEnd::Idle);
    assert!(pair.link.is_closed());
    let failure = pair.link.invoke(call(empty())).await.err().expect("failed");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::PeerLost));
}
