//! Whatever goes wrong costs what it must and says whether the call ran.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use blackhole_link::{LinkEnd, LinkSettings};
use bytes::Bytes;
use common::*;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use protocol::{
    failure::{Failure, Ran, Reason},
    frame::{CALL_CREDIT_BYTES, CallId, Frame, FrameError, GoAwayCode, data_cost},
    limits::METADATA_BYTES_MAX,
    ports::{Body, Call, Caller, Invoke, Reply},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

/// Never answers; reports each call with a guard that is dropped when the call is.
fn never() -> (Arc<dyn Invoke>, mpsc::Receiver<oneshot::Receiver<()>>) {
    let (sender, receiver) = mpsc::channel(16);
    let handler = handler(move |call: Call| {
        let sender = sender.clone();
        async move {
            let (guard, ended) = oneshot::channel::<()>();
            sender.send(ended).await.expect("the test listens");
            let _held = (guard, call);
            std::future::pending().await
        }
    });
    (handler, receiver)
}

fn open(id: u32, time_left: Option<Duration>) -> Frame {
    Frame::Open {
        call: CallId(id),
        path: "/test.v1.Test/Call".parse().expect("a path"),
        time_left,
        metadata: grpc(),
        data: Bytes::from_static(b"hi"),
        end: true,
    }
}

async fn failure_of(answer: impl Future<Output = Result<Reply, Failure>>) -> Failure {
    within("a failure", answer).await.err().expect("a failure, not an answer")
}

#[tokio::test]
async fn a_deadline_ends_the_call_on_both_sides() {
    let (handler, mut calls) = never();
    let pair = pair(handler);
    let answer = pair.link.invoke(call_within(full("x"), Some(Duration::from_millis(100))));
    let ended = within("the call", calls.recv()).await.expect("begun");
    let failure = failure_of(answer).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
    within("the handler's end", ended).await.expect_err("dropped");
    assert_eq!(pair.link.calls_in_flight(), 0);
}

#[tokio::test]
async fn the_serving_side_keeps_the_deadline_by_itself() {
    let (handler, mut calls) = never();
    let (near, far) = tokio::io::duplex(4096);
    let server = blackhole_link::serve(far, LinkSettings::default(), Caller::Client, handler);
    let server = tokio::spawn(server);
    let mut near = ByHand::calling(near).await;
    near.send(&open(1, Some(Duration::from_millis(50)))).await;
    let ended = within("the call", calls.recv()).await.expect("begun");
    let Some(Frame::End { outcome: Err(failure), .. }) = near.next().await else {
        panic!("an end")
    };
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
    within("the handler's end", ended).await.expect_err("dropped");
    drop(near);
    assert_eq!(within("the server", server).await.expect("no panic"), LinkEnd::ClosedByOther);
}

#[tokio::test]
async fn a_deadline_that_has_passed_starts_nothing() {
    let (handler, mut calls) = never();
    let pair = pair(handler);
    let failure = failure_of(pair.link.invoke(call_within(full("x"), Some(Duration::ZERO)))).await;
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::DeadlineExceeded));
    drop(pair.link);
    within("the server", pair.server).await.expect("no panic");
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn a_call_without_deadline_and_progress_ends_as_well() {
    let (handler, _calls) = never();
    let settings = LinkSettings { call_idle: Duration::from_millis(50), ..LinkSettings::default() };
    let pair = pair_with(settings.clone(), settings, handler);
    let failure = failure_of(pair.link.invoke(call(full("x")))).await;
    assert_eq!(failure.reason, Reason::DeadlineExceeded);
}

#[tokio::test]
async fn dropping_the_future_cancels_the_handler() {
    let (handler, mut calls) = never();
    let pair = pair(handler);
    let answer = pair.link.invoke(call(full("x")));
    let ended = within("the call", calls.recv()).await.expect("begun");
    drop(answer);
    within("the handler's end", ended).await.expect_err("dropped");
}

#[tokio::test]
async fn dropping_the_reply_cancels_its_making() {
    let (guard, ended) = dropped();
    let guard = Mutex::new(Some(guard));
    let handler = handler(move |_| {
        let held = guard.lock().take();
        async move {
            let parts = futures::stream::unfold(held, |held| async {
                std::future::pending::<()>().await;
                Some((Ok(BodyFrame::data(Bytes::new())), held))
            });
            Ok(Reply { metadata: grpc(), body: Body::new(StreamBody::new(parts)) })
        }
    });
    let pair = pair(handler);
    let reply = within("a head", pair.link.invoke(call(full("x")))).await.expect("answered");
    drop(reply);
    ended.await;
}

#[tokio::test]
async fn a_request_that_fails_cancels_the_call_and_keeps_its_failure() {
    let (handler, mut calls) = never();
    let pair = pair(handler);
    let (sender, body) = pipe();
    let answer = pair.link.invoke(call(body));
    let ended = within("the call", calls.recv()).await.expect("begun");
    sender.send(Err(Failure::failed(Reason::TooLarge, "too much"))).await.expect("read");
    let failure = failure_of(answer).await;
    assert_eq!(failure, Failure::failed(Reason::TooLarge, "too much"));
    within("the handler's end", ended).await.expect_err("dropped");
}

#[tokio::test]
async fn the_request_of_a_cancelled_call_ends_for_whoever_still_reads_it() {
    let (sender, mut bodies) = mpsc::channel(1);
    let handler = handler(move |call: Call| {
        let sender = sender.clone();
        async move {
            sender.send(call.body).await.expect("the test listens");
            std::future::pending().await
        }
    });
    let pair = pair(handler);
    let (_open, body) = pipe();
    let answer = pair.link.invoke(call(body));
    let mut request = within("the call", bodies.recv()).await.expect("begun");
    drop(answer);
    let end = within("the end", request.frame()).await.expect("not just over");
    assert_eq!(end.expect_err("a failure").reason, Reason::Cancelled);
}

/// A body without end that counts what was taken of it.
fn endless(taken: Arc<AtomicUsize>) -> Body {
    let parts = futures::stream::repeat_with(move || {
        taken.fetch_add(1000, Ordering::Relaxed);
        Ok(BodyFrame::data(Bytes::from_static(&[7; 1000])))
    });
    Body::new(StreamBody::new(parts))
}

#[tokio::test]
async fn a_slow_reader_slows_its_writer_and_nobody_else() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let handler = handler(move |call: Call| {
        let taken = counted.clone();
        async move {
            if call.head.metadata.contains_key("x-endless") {
                return Ok(Reply { metadata: grpc(), body: endless(taken) });
            }
            Ok(reply("quick"))
        }
    });
    for pair in [pair(handler.clone()), unix_pair(handler)] {
        taken.store(0, Ordering::Relaxed);
        let mut slow = Vec::new();
        for _ in 0..50 {
            let mut request = call(empty());
            request.head.metadata.extend(map(&[("x-endless", "1")]));
            slow.push(within("a head", pair.link.invoke(request)).await.expect("answered"));
        }
        for _ in 0..500 {
            let answer = pair.link.invoke(call(full("x")));
            let reply = within("a quick call beside slow readers", answer).await.expect("answered");
            assert_eq!(&collect(reply.body).await.expect("whole").0[..], b"quick");
        }
        let most = 50 * (CALL_CREDIT_BYTES + 2000);
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken <= most, "{taken} bytes taken for readers who read nothing, at most {most}");
        // The slow ones are still whole.
        assert_eq!(chunk(&mut slow[0].body).await.len(), 1000);
    }
}

#[tokio::test]
async fn what_readers_leave_unread_is_bounded_over_all_calls() {
    let handler =
        handler(|_| async { Ok(Reply { metadata: grpc(), body: endless(Arc::default()) }) });
    let held = 4 * CALL_CREDIT_BYTES;
    let settings = LinkSettings { queued_bytes_max: held, ..LinkSettings::default() };
    let pair = pair_with(settings, LinkSettings::default(), handler);
    let mut slow = Vec::new();
    for _ in 0..8 {
        let answer = pair.link.invoke(call(empty()));
        slow.push(within("a head or a refusal", answer).await);
    }
    let mut shed = 0;
    for mut reply in slow.into_iter().filter_map(Result::ok) {
        // Reads what waits, until the call is shed or more than waited has come.
        let mut read = 0;
        while read < held {
            match within("a chunk", reply.body.frame()).await.expect("endless") {
                Ok(frame) => read += frame.into_data().expect("data").len(),
                Err(failure) => {
                    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::Busy));
                    shed += 1;
                    break;
                }
            }
        }
    }
    assert!(shed > 0, "eight windows do not fit where four do");
    assert!(!pair.link.is_closed(), "only calls were shed");
}

#[tokio::test]
async fn the_other_side_vanishing_leaves_written_calls_unknown() {
    let (near, far) = tokio::io::duplex(4096);
    let (link, driver) = blackhole_link::client(near, LinkSettings::default());
    let driver = tokio::spawn(driver);
    let mut far = ByHand::answering(far).await;
    let answer = link.invoke(call(full("x")));
    assert!(matches!(far.next().await, Some(Frame::Open { .. })));
    drop(far);
    let failure = failure_of(answer).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PeerLost));
    assert_eq!(within("the client", driver).await.expect("no panic"), LinkEnd::ClosedByOther);
    let failure = failure_of(link.invoke(call(full("x")))).await;
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::PeerLost));
}

#[tokio::test]
async fn the_other_side_vanishing_leaves_unwritten_calls_not_started() {
    // Room for the preface and the beginning of a frame.
    let (near, far) = tokio::io::duplex(16);
    let (link, driver) = blackhole_link::client(near, LinkSettings::default());
    let driver = tokio::spawn(driver);
    let answers: Vec<_> = (0..3).map(|_| link.invoke(call(full("x")))).collect();
    let far = ByHand::answering(far).await;
    drop(far);
    for answer in answers {
        let failure = failure_of(answer).await;
        assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::PeerLost));
    }
    within("the client", driver).await.expect("no panic");
}

#[tokio::test]
async fn dropping_the_driver_fails_its_calls() {
    let (near, _far) = tokio::io::duplex(4096);
    let (link, driver) = blackhole_link::client(near, LinkSettings::default());
    let answer = link.invoke(call(full("x")));
    drop(driver);
    let failure = failure_of(answer).await;
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::PeerLost));
    assert!(link.is_closed());
    assert_eq!(link.calls_in_flight(), 0);
}

#[tokio::test]
async fn a_silent_other_side_is_pinged_and_given_up() {
    let settings = LinkSettings {
        quiet: Duration::from_millis(50),
        silence: Duration::from_millis(100),
        ..LinkSettings::default()
    };
    let (near, far) = tokio::io::duplex(4096);
    let (link, driver) = blackhole_link::client(near, settings);
    let driver = tokio::spawn(driver);
    let mut far = ByHand::answering(far).await;
    let answer = link.invoke(call(full("x")));
    assert!(matches!(far.next().await, Some(Frame::Open { .. })));
    // An answered ping keeps it alive.
    let Some(Frame::Ping(content)) = far.next().await else { panic!("a ping") };
    far.send(&Frame::Pong(content)).await;
    let Some(Frame::Ping(_)) = far.next().await else { panic!("another ping") };
    let failure = failure_of(answer).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PeerLost));
    let end = within("the client", driver).await.expect("no panic");
    assert!(matches!(end, LinkEnd::Silent { .. }), "{end}");
}

#[tokio::test]
async fn a_slow_other_side_that_still_reads_is_not_given_up() {
    let settings = LinkSettings {
        quiet: Duration::from_millis(50),
        silence: Duration::from_secs(1),
        ..LinkSettings::default()
    };
    let (near, far) = tokio::io::duplex(256);
    let (link, driver) = blackhole_link::client(near, settings);
    let _driver = tokio::spawn(driver);
    let mut far = ByHand::answering(far).await;
    let _answer = link.invoke(call(full(vec![7; CALL_CREDIT_BYTES])));
    // Twice the silence it bears; the pings wait behind the data.
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..20 {
        pace.tick().await;
        let mut some = [0; 256];
        within("some bytes", far.stream.read_exact(&mut some)).await.expect("still there");
    }
    assert!(!link.is_closed());
}

#[tokio::test]
async fn a_stream_that_never_says_it_is_a_link_is_given_up() {
    let settings =
        LinkSettings { preface_within: Duration::from_millis(50), ..LinkSettings::default() };
    let (_near, far) = tokio::io::duplex(4096);
    let end =
        within("the server", blackhole_link::serve(far, settings, Caller::Client, echo())).await;
    assert!(matches!(end, LinkEnd::Silent { .. }), "{end}");
}

#[tokio::test]
async fn hostile_bytes_end_their_link_and_no_other() {
    let other = pair(echo());
    let long = [0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 2, 0];
    let inputs: [(&[u8], bool, FrameError); 3] = [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, FrameError::NotALink),
        (&[0, 0, 0, 0, 0, 0, 0, 1, 99, 0], true, FrameError::UnknownKind { kind: 99 }),
        (
            &long,
            true,
            FrameError::TooLong { kind: "data", bytes: 0x7FFF_FFFF, bytes_max: 64 * 1024 },
        ),
    ];
    for (bytes, after_preface, error) in inputs {
        let (near, far) = tokio::io::duplex(4096);
        let server = blackhole_link::serve(far, LinkSettings::default(), Caller::Client, echo());
        let server = tokio::spawn(server);
        let mut near =
            if after_preface { ByHand::calling(near).await } else { ByHand::silent(near) };
        near.stream.write_all(bytes).await.expect("written");
        let end = within("the server", server).await.expect("no panic");
        assert_eq!(end, LinkEnd::Format(error));
        if after_preface {
            let said = near.next().await;
            assert!(
                matches!(said, Some(Frame::GoAway { code: GoAwayCode::Violation, .. })),
                "{said:?}"
            );
        }
        let reply = other.link.invoke(call(full("x"))).await.expect("others go on");
        assert_eq!(&collect(reply.body).await.expect("whole").0[..], b"x");
    }
}

#[tokio::test]
async fn frames_out_of_place_end_the_link() {
    let data =
        |bytes: usize, end| Frame::Data { call: CallId(1), data: Bytes::from(vec![7; bytes]), end };
    let too_much: Vec<Frame> =
        (0..=CALL_CREDIT_BYTES / data_cost(60_000)).map(|_| data(60_000, false)).collect();
    let mut unfinished = open(1, None);
    if let Frame::Open { end, .. } = &mut unfinished {
        *end = false;
    }
    let conversations = [
        vec![open(1, None), open(1, None)],
        vec![Frame::End { call: CallId(1), outcome: Ok(map(&[])) }],
        vec![open(1, None), data(1, false)],
        [vec![unfinished], too_much].concat(),
    ];
    for frames in conversations {
        let (handler, _calls) = never();
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let server = blackhole_link::serve(far, LinkSettings::default(), Caller::Client, handler);
        let server = tokio::spawn(server);
        let mut near = ByHand::calling(near).await;
        for frame in frames {
            near.send(&frame).await;
        }
        let end = within("the server", server).await.expect("no panic");
        assert!(matches!(end, LinkEnd::Violation { .. }), "{end}");
    }
}

#[tokio::test]
async fn answers_out_of_place_end_the_link_and_fail_its_calls() {
    let headers =
        || Frame::Headers { call: CallId(1), metadata: grpc(), data: Bytes::new(), end: None };
    let conversations = [
        vec![open(1, None)],
        vec![Frame::Data { call: CallId(1), data: Bytes::from_static(b"x"), end: false }],
        vec![Frame::End { call: CallId(1), outcome: Ok(map(&[])) }],
        vec![headers(), headers()],
    ];
    for frames in conversations {
        let (near, far) = tokio::io::duplex(4096);
        let (link, driver) = blackhole_link::client(near, LinkSettings::default());
        let driver = tokio::spawn(driver);
        let mut far = ByHand::answering(far).await;
        let answer = link.invoke(call(full("x")));
        assert!(matches!(far.next().await, Some(Frame::Open { .. })));
        for frame in frames {
            far.send(&frame).await;
        }
        let failure = match within("an answer", answer).await {
            Err(failure) => failure,
            Ok(reply) => collect(reply.body).await.expect_err("a failure"),
        };
        assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PeerLost));
        let end = within("the client", driver).await.expect("no panic");
        assert!(matches!(end, LinkEnd::Violation { .. }), "{end}");
    }
}

#[tokio::test]
async fn who_sends_without_reading_is_given_up_before_memory_is() {
    let (near, far) = tokio::io::duplex(4096);
    // No calls are taken, so that every open is answered with a refusal that nobody reads.
    let settings = LinkSettings { calls_max: 0, ..LinkSettings::default() };
    let server = tokio::spawn(blackhole_link::serve(far, settings, Caller::Client, echo()));
    let mut near = ByHand::calling(near).await;
    let flood = async {
        let mut id = 1;
        while near.try_send(&open(id, None)).await.is_ok() {
            id += 1;
        }
    };
    within("the flood's end", flood).await;
    let end = within("the server", server).await.expect("no panic");
    assert!(matches!(end, LinkEnd::Violation { .. }), "{end}");
}

#[tokio::test]
async fn metadata_over_the_limit_fails_its_call_and_no_other() {
    let large = "v".repeat(METADATA_BYTES_MAX);
    let handler = handler(move |call: Call| {
        let large = large.clone();
        async move {
            let mut reply = reply("x");
            if call.head.metadata.contains_key("x-much") {
                reply.metadata.extend(map(&[("x-large", &large)]));
            }
            Ok(reply)
        }
    });
    let pair = pair(handler);
    let mut request = call(full("x"));
    request.head.metadata.extend(map(&[("x-large", &"v".repeat(METADATA_BYTES_MAX))]));
    let failure = failure_of(pair.link.invoke(request)).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::TooLarge));
    let mut request = call(full("x"));
    request.head.metadata.extend(map(&[("x-much", "please")]));
    let failure = failure_of(pair.link.invoke(request)).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::TooLarge));
    within("a call", pair.link.invoke(call(full("x")))).await.expect("others go on");
}

#[tokio::test]
async fn a_full_link_refuses_at_once_on_either_side() {
    for (client_max, server_max) in [(2, 100), (100, 2)] {
        let (handler, mut calls) = never();
        let settings = |calls_max| LinkSettings { calls_max, ..LinkSettings::default() };
        let pair = pair_with(settings(client_max), settings(server_max), handler);
        let first = pair.link.invoke(call(full("x")));
        let second = pair.link.invoke(call(full("x")));
        let guards = [calls.recv().await, calls.recv().await];
        let failure = failure_of(pair.link.invoke(call(full("x")))).await;
        assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Busy));
        drop(first);
        let [Some(ended), Some(_)] = guards else { panic!("two calls") };
        within("the first handler's end", ended).await.expect_err("dropped");
        let third = pair.link.invoke(call(full("x")));
        within("there is room again", calls.recv()).await.expect("begun");
        drop((second, third));
    }
}

#[tokio::test]
async fn draining_refuses_new_calls_and_finishes_old_ones() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (link, driver) = blackhole_link::client(near, LinkSettings::default());
    let (drain, drained) = oneshot::channel::<()>();
    let drained = async {
        let _ = drained.await;
    };
    let server =
        blackhole_link::serve_until(far, LinkSettings::default(), Caller::Client, echo(), drained);
    let (driver, server) = (tokio::spawn(driver), tokio::spawn(server));
    let (sender, body) = pipe();
    let mut reply = within("a head", link.invoke(call(body))).await.expect("answered");
    drain.send(()).expect("the server listens");
    send(&sender, b"old").await;
    assert_eq!(&chunk(&mut reply.body).await[..], b"old");
    let failure = failure_of(link.invoke(call(full("new")))).await;
    assert_eq!(failure.ran, Ran::NotStarted);
    drop(sender);
    assert_eq!(collect(reply.body).await.expect("whole").1, map(&[("grpc-status", "0")]));
    assert_eq!(within("the server", server).await.expect("no panic"), LinkEnd::Closed);
    within("the client", driver).await.expect("no panic");
}

#[tokio::test]
async fn a_panic_in_a_handler_costs_its_call_only() {
    let handler = handler(|call: Call| async move {
        assert!(!call.head.metadata.contains_key("x-panic"), "a fault, on purpose");
        Ok(reply("fine"))
    });
    let pair = pair(handler);
    let mut request = call(full("x"));
    request.head.metadata.extend(map(&[("x-panic", "1")]));
    let failure = failure_of(pair.link.invoke(request)).await;
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::Internal));
    within("a call", pair.link.invoke(call(full("x")))).await.expect("others go on");
}

/// Calls, drops, slow bodies and deadlines in a mix; whatever happens, nothing is left behind.
#[tokio::test]
async fn after_a_storm_nothing_is_left_in_flight() {
    let settings = LinkSettings { calls_max: 300, ..LinkSettings::default() };
    let pair = pair_with(settings.clone(), settings, echo());
    let storm: FuturesUnordered<_> = (0..2_000u32)
        .map(|n| {
            let link = pair.link.clone();
            async move {
                let time_left = (n % 7 == 0).then(|| Duration::from_millis(u64::from(n % 5)));
                let answer =
                    link.invoke(call_within(repeated(&[1; 5000], n as usize % 40), time_left));
                if n % 11 == 0 {
                    return;
                }
                tokio::task::yield_now().await;
                if let Ok(reply) = answer.await
                    && n % 3 != 0
                {
                    let _ = collect(reply.body).await;
                }
            }
        })
        .collect();
    within("the storm", storm.collect::<Vec<()>>()).await;
    drop(pair.link);
    assert_eq!(within("the client", pair.client).await.expect("no panic"), LinkEnd::Closed);
    let end = within("the server", pair.server).await.expect("no panic");
    assert_eq!(end, LinkEnd::ClosedByOther);
}
