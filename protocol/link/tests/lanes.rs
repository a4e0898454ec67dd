//! What is large waits for what is small: on the link, and on a lane beside it.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use blackhole_link::{
    Arrival, Link, LinkEnd, LinkSettings, OpenLane, Seat, Unread, arrival, client_with_lane, serve,
    serve_with_lane,
};
use bytes::Bytes;
use common::*;
use futures::FutureExt as _;
use http_body::Frame as BodyFrame;
use http_body_util::BodyExt as _;
use protocol::{
    failure::{Ran, Reason},
    frame::{
        CALL_CREDIT_BYTES, CallId, FRAME_DATA_BYTES_MAX, Frame, GoAwayCode, LANE_PREFACE_BYTES,
        data_cost, lane_preface,
    },
    ports::{Call, Caller, Invoke},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::oneshot,
    task::JoinHandle,
};

const NUMBER: u64 = 7;
const LARGE: &str = "/test.v1.Test/Large";
const PIECE: &[u8] = &[b'l'; FRAME_DATA_BYTES_MAX];

/// What of a large call finds room for: queued, in the slice that fills it, and in the pipe.
const BEFORE_SMALL_MAX: usize = 32 * 1024 + 32 * 1024 + PIPE_BYTES;
const PIPE_BYTES: usize = 4 * 1024;

fn open(id: u32, path: &str) -> Frame {
    Frame::Open {
        call: CallId(id),
        path: path.parse().expect("a path"),
        time_left: None,
        metadata: grpc(),
        data: Bytes::new(),
        end: true,
    }
}

fn data(id: u32, bytes: usize) -> Frame {
    Frame::Data { call: CallId(id), data: Bytes::from(vec![b'd'; bytes]), end: false }
}

fn headers(id: u32) -> Frame {
    Frame::Headers { call: CallId(id), metadata: grpc(), data: Bytes::new(), end: None }
}

fn end(id: u32) -> Frame {
    Frame::End { call: CallId(id), outcome: Ok(map(&[("grpc-status", "0")])) }
}

/// Streams 64 MiB from [`LARGE`], and answers every other call at once.
fn large_or_small() -> Arc<dyn Invoke> {
    handler(|call: Call| async move {
        if call.head.path.as_str() == LARGE {
            let body = repeated(PIECE, 1024);
            return Ok(protocol::ports::Reply { metadata: grpc(), body });
        }
        Ok(reply("small"))
    })
}

/// A server with a seat for a lane, and the other side of its link by hand.
struct Served {
    link: ByHand,
    way: Option<oneshot::Sender<Unread<DuplexStream>>>,
    server: JoinHandle<LinkEnd>,
    drain: Option<oneshot::Sender<()>>,
}

impl Served {
    async fn start(handler: Arc<dyn Invoke>) -> Self {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (seat, way) = Seat::new(NUMBER);
        let (drain, drained) = oneshot::channel();
        let settings = LinkSettings { quiet: Duration::from_secs(5), ..LinkSettings::default() };
        let drained = async move { drop(drained.await) };
        let server = serve_with_lane(far.into(), seat, settings, Caller::Client, handler, drained);
        let server = tokio::spawn(server);
        let mut link = ByHand::calling(near).await;
        assert_eq!(link.next().await, Some(Frame::Lanes(NUMBER)));
        Self { link, way: Some(way), server, drain: Some(drain) }
    }

    /// Attaches a lane, by hand.
    async fn lane(&mut self) -> ByHand {
        let (mut near, far) = tokio::io::duplex(PIPE_BYTES);
        near.write_all(&lane_preface(NUMBER)).await.expect("written");
        let Ok(Arrival::Lane { number: NUMBER, stream }) = arrival(far).await else {
            panic!("a lane")
        };
        let way = self.way.take().expect("one lane");
        assert!(way.send(stream).is_ok(), "the server waits for it");
        expect_greeting(&mut near).await;
        ByHand::silent(near)
    }

    /// Reads answers of call 1 on the link until it is large, having given it credit.
    async fn until_large(&mut self) -> usize {
        self.link.send(&open(1, LARGE)).await;
        self.link.send(&Frame::Credit { call: CallId(1), bytes: 1 << 20 }).await;
        let mut bytes = 0;
        while bytes < CALL_CREDIT_BYTES {
            match self.link.next().await {
                Some(Frame::Data { data, .. } | Frame::Headers { data, .. }) => bytes += data.len(),
                other => panic!("an answer's head or data, not {other:?}"),
            }
        }
        bytes
    }

    async fn violation(self) -> String {
        let end = within("the server", self.server).await.expect("no panic");
        let LinkEnd::Violation { what } = end else { panic!("a violation, not {end:?}") };
        what.to_owned()
    }
}

async fn expect_greeting(lane: &mut DuplexStream) {
    let mut greeting = [0; LANE_PREFACE_BYTES];
    within("a greeting", lane.read_exact(&mut greeting)).await.expect("read");
    assert_eq!(greeting, lane_preface(NUMBER));
}

/// A client that may open a lane, and the other side of its link, and of its lane, by hand.
struct Calling {
    link: Link,
    client: JoinHandle<LinkEnd>,
    far: ByHand,
    lanes: oneshot::Receiver<DuplexStream>,
}

impl Calling {
    async fn start() -> Self {
        let (near, far) = tokio::io::duplex(2 << 20);
        let (sender, lanes) = oneshot::channel();
        let opened: OpenLane<DuplexStream> = Box::new(move || {
            let (near, far) = tokio::io::duplex(2 << 20);
            sender.send(far).expect("the test waits");
            async move { Some(near) }.boxed()
        });
        let (link, driver) = client_with_lane(near, LinkSettings::default(), opened);
        let client = tokio::spawn(driver);
        let mut far = ByHand::answering(far).await;
        far.send(&Frame::Lanes(NUMBER)).await;
        Self { link, client, far, lanes }
    }

    /// Begins a call whose answer is large, until the client has invited it to its lane. Returns
    /// the lane, the answer, and how much of it was sent.
    async fn invited(&mut self) -> (ByHand, protocol::ports::Body, usize) {
        let answering = self.link.invoke(call(empty()));
        let Some(Frame::Open { call: CallId(1), .. }) = self.far.next().await else {
            panic!("an open")
        };
        self.far.send(&headers(1)).await;
        let mut body = within("an answer", answering).await.expect("no failure").body;
        let first = CALL_CREDIT_BYTES - 32;
        self.far.send(&data(1, first)).await;
        assert_eq!(chunk(&mut body).await.len(), first);
        let mut lane = within("a lane", &mut self.lanes).await.expect("opened");
        expect_greeting(&mut lane).await;
        lane.write_all(&lane_preface(NUMBER)).await.expect("written");
        let (mut invited, mut credit) = (false, 0);
        while !invited || credit < CALL_CREDIT_BYTES {
            match self.far.next().await {
                Some(Frame::Invite { call: CallId(1) }) => invited = true,
                Some(Frame::Credit { bytes, .. }) => credit += bytes as usize,
                other => panic!("credit or an invitation, not {other:?}"),
            }
        }
        (ByHand::silent(lane), body, first)
    }

    async fn violation(self) -> String {
        let end = within("the client", self.client).await.expect("no panic");
        let LinkEnd::Violation { what } = end else { panic!("a violation, not {end:?}") };
        what.to_owned()
    }
}

/// A client and a server, and how often a lane was opened.
fn both(handler: Arc<dyn Invoke>) -> (Pair, Arc<AtomicUsize>) {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (seat, way) = Seat::new(NUMBER);
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let open: OpenLane<DuplexStream> = Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let (near, far) = tokio::io::duplex(256 * 1024);
        tokio::spawn(async move {
            let Ok(Arrival::Lane { stream, .. }) = arrival(far).await else { panic!("a lane") };
            assert!(way.send(stream).is_ok());
        });
        async move { Some(near) }.boxed()
    });
    let (link, client) = client_with_lane(near, LinkSettings::default(), open);
    (Pair { link, client: tokio::spawn(client), server: seated(far, seat, handler) }, opened)
}

/// A server with a seat for a lane.
fn seated(
    far: DuplexStream,
    seat: Seat<DuplexStream>,
    handler: Arc<dyn Invoke>,
) -> JoinHandle<LinkEnd> {
    let (settings, never) = (LinkSettings::default(), std::future::pending());
    tokio::spawn(serve_with_lane(far.into(), seat, settings, Caller::Client, handler, never))
}

/// What is sent to [`echo`] comes back as it is.
async fn comes_back(link: &Link, bytes: &Bytes) {
    let answer = within("an answer", link.invoke(call(full(bytes.clone())))).await;
    let (echoed, _) = collect(answer.expect("no failure").body).await.expect("no failure");
    assert!(echoed == *bytes, "what comes back is what was sent");
}

#[tokio::test]
async fn a_small_call_waits_for_no_more_than_a_slice_of_a_large_one() {
    let mut served = Served::start(large_or_small()).await;
    served.until_large().await;
    served.link.send(&open(2, "/test.v1.Test/Small")).await;
    let mut before = 0;
    loop {
        match served.link.next().await {
            Some(Frame::Data { call: CallId(1), data, .. }) => before += data.len(),
            Some(Frame::Headers { call: CallId(2), .. }) => break,
            other => panic!("data or an answer, not {other:?}"),
        }
    }
    assert!(before <= BEFORE_SMALL_MAX, "{before} bytes before the small call");
}

#[tokio::test]
async fn an_answer_that_moved_delays_nothing_on_the_link_though_nobody_reads_the_lane() {
    let mut served = Served::start(large_or_small()).await;
    let lane = served.lane().await;
    served.until_large().await;
    served.link.send(&Frame::Invite { call: CallId(1) }).await;
    while served.link.next().await != Some(Frame::Moved { call: CallId(1) }) {}
    for id in 2..200 {
        served.link.send(&open(id, "/test.v1.Test/Small")).await;
        let answer = served.link.next().await;
        assert!(matches!(answer, Some(Frame::Headers { call: CallId(n), .. }) if n == id));
    }
    drop(lane);
    let end = within("the server", served.server).await.expect("no panic");
    assert!(matches!(end, LinkEnd::Lost { .. }), "with the lane its calls are lost: {end:?}");
}

#[tokio::test]
async fn an_answer_goes_on_and_ends_on_the_lane_within_its_credit() {
    let three = CALL_CREDIT_BYTES * 3;
    let mut served =
        Served::start(handler(move |_| async move { Ok(reply(Bytes::from(vec![b'x'; three]))) }))
            .await;
    let mut lane = served.lane().await;
    served.link.send(&open(1, LARGE)).await;
    let (mut on_link, mut cost) = (0, 0);
    while on_link < CALL_CREDIT_BYTES - 1024 {
        if let Some(Frame::Data { data, .. } | Frame::Headers { data, .. }) =
            served.link.next().await
        {
            on_link += data.len();
            cost += data_cost(data.len());
        }
    }
    assert!(cost <= CALL_CREDIT_BYTES);
    served.link.send(&Frame::Invite { call: CallId(1) }).await;
    assert_eq!(served.link.next().await, Some(Frame::Moved { call: CallId(1) }));
    let bytes = (three + 4096) as u32;
    served.link.send(&Frame::Credit { call: CallId(1), bytes }).await;
    let mut on_lane = 0;
    loop {
        match lane.next().await {
            Some(Frame::Data { call: CallId(1), data, .. }) => on_lane += data.len(),
            Some(Frame::End { call: CallId(1), outcome: Ok(_) }) => break,
            other => panic!("data or an end, not {other:?}"),
        }
    }
    assert_eq!(on_link + on_lane, three);
}

#[tokio::test]
async fn what_comes_on_the_lane_early_waits_for_the_rest_on_the_link() {
    let mut calling = Calling::start().await;
    let (mut lane, body, _) = calling.invited().await;
    let piece =
        |byte| Frame::Data { call: CallId(1), data: Bytes::from(vec![byte; 3]), end: false };
    lane.send(&piece(b'c')).await;
    lane.send(&piece(b'd')).await;
    lane.send(&end(1)).await;
    calling.far.send(&piece(b'a')).await;
    calling.far.send(&piece(b'b')).await;
    calling.far.send(&Frame::Moved { call: CallId(1) }).await;
    let (bytes, trailers) = collect(body).await.expect("no failure");
    assert_eq!(&bytes[..], b"aaabbbcccddd");
    assert_eq!(trailers, map(&[("grpc-status", "0")]));
    assert_eq!(calling.link.calls_in_flight(), 0);
}

#[tokio::test]
async fn an_invitation_may_overtake_the_word_that_the_lane_was_taken() {
    let mut calling = Calling::start().await;
    let (sender, body) = pipe();
    let answering = tokio::spawn(calling.link.invoke(call(body)));
    sender.send(Ok(BodyFrame::data(Bytes::from_static(PIECE)))).await.expect("read");
    let mut bytes = 0;
    while bytes < CALL_CREDIT_BYTES - 64 {
        match calling.far.next().await {
            Some(Frame::Open { data, .. } | Frame::Data { data, .. }) => bytes += data.len(),
            other => panic!("a request, not {other:?}"),
        }
    }
    let mut lane = within("a lane", &mut calling.lanes).await.expect("opened");
    expect_greeting(&mut lane).await;
    calling.far.send(&Frame::Invite { call: CallId(1) }).await;
    calling.far.send(&Frame::Ping([1; 8])).await;
    assert_eq!(calling.far.next().await, Some(Frame::Pong([1; 8])));
    lane.write_all(&lane_preface(NUMBER)).await.expect("written");
    assert_eq!(calling.far.next().await, Some(Frame::Moved { call: CallId(1) }));
    calling.far.send(&Frame::Credit { call: CallId(1), bytes: 1 << 16 }).await;
    send(&sender, b"the rest").await;
    drop(sender);
    let mut lane = ByHand::silent(lane);
    let mut rest = FRAME_DATA_BYTES_MAX + 8 - bytes;
    while rest > 0 {
        let Some(Frame::Data { data, .. }) = lane.next().await else { panic!("data") };
        rest -= data.len();
    }
    drop(answering);
}

#[tokio::test]
async fn both_directions_move_and_arrive_whole() {
    let (pair, opened) = both(echo());
    let bytes: Bytes = (0..5_000_000u32).map(|n| (n * 7 / 3) as u8).collect::<Vec<_>>().into();
    for _ in 0..3 {
        comes_back(&pair.link, &bytes).await;
    }
    assert_eq!(opened.load(Ordering::Relaxed), 1);
    drop(pair.link);
    assert_eq!(within("the client", pair.client).await.expect("no panic"), LinkEnd::Closed);
    within("the server", pair.server).await.expect("no panic");
}

#[tokio::test]
async fn small_calls_open_no_lane() {
    let (pair, opened) = both(echo());
    for _ in 0..100 {
        comes_back(&pair.link, &Bytes::from(vec![1; 1000])).await;
    }
    assert_eq!(opened.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn who_knows_no_lanes_is_served_on_the_link() {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let open: OpenLane<DuplexStream> = Box::new(|| panic!("nobody takes a lane"));
    let (link, client) = client_with_lane(near, LinkSettings::default(), open);
    let _client = tokio::spawn(client);
    let _server = tokio::spawn(serve(far, LinkSettings::default(), Caller::Client, echo()));
    let bytes = Bytes::from(vec![5; 3_000_000]);
    comes_back(&link, &bytes).await;

    let (near, far) = tokio::io::duplex(256 * 1024);
    let (link, client) = blackhole_link::client(near, LinkSettings::default());
    let _client = tokio::spawn(client);
    let (seat, _way) = Seat::new(NUMBER);
    let _server = seated(far, seat, echo());
    comes_back(&link, &bytes).await;
}

#[tokio::test]
async fn a_lane_that_cannot_be_opened_is_done_without() {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let open: OpenLane<DuplexStream> = Box::new(|| async { None }.boxed());
    let (link, client) = client_with_lane(near, LinkSettings::default(), open);
    let _client = tokio::spawn(client);
    let (seat, _way) = Seat::new(NUMBER);
    let _server = seated(far, seat, echo());
    let bytes = Bytes::from(vec![5; 3_000_000]);
    comes_back(&link, &bytes).await;
}

#[tokio::test]
async fn a_drained_link_ends_after_what_is_on_its_lane() {
    let mut served = Served::start(handler(move |_| async move {
        Ok(reply(Bytes::from(vec![b'x'; CALL_CREDIT_BYTES * 4])))
    }))
    .await;
    let mut lane = served.lane().await;
    let on_link = served.until_large().await;
    served.link.send(&Frame::Invite { call: CallId(1) }).await;
    drop(served.drain.take());
    let (mut left, mut gone) = (CALL_CREDIT_BYTES * 4 - on_link, false);
    loop {
        match served.link.next().await {
            Some(Frame::Data { data, .. }) => left -= data.len(),
            Some(Frame::GoAway { code: GoAwayCode::Closing, .. }) => gone = true,
            Some(Frame::Moved { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    while left > 0 {
        let Some(Frame::Data { data, .. }) = lane.next().await else { panic!("data") };
        left -= data.len();
    }
    assert_eq!(lane.next().await, Some(end(1)));
    if !gone {
        let next = served.link.next().await;
        assert!(matches!(next, Some(Frame::GoAway { code: GoAwayCode::Closing, .. })));
    }
    assert!(!served.server.is_finished(), "the caller ends it");
    drop((served.link, lane));
    within("the server", served.server).await.expect("no panic");
}

#[tokio::test]
async fn a_lost_lane_makes_its_calls_unknown() {
    let mut calling = Calling::start().await;
    let (lane, body, _) = calling.invited().await;
    drop(lane);
    let failure = collect(body).await.expect_err("lost");
    assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PeerLost));
}

#[tokio::test]
async fn every_other_order_is_a_violation_of_an_answer() {
    let on_link: [(&str, &[Frame]); 5] = [
        ("a second offer", &[Frame::Lanes(8)]),
        ("moved uninvited", &[Frame::Moved { call: CallId(1) }]),
        ("moved twice", &[Frame::Moved { call: CallId(1) }, Frame::Moved { call: CallId(1) }]),
        ("data after it moved", &[Frame::Moved { call: CallId(1) }, data(1, 1)]),
        ("an end after it moved", &[Frame::Moved { call: CallId(1) }, end(1)]),
    ];
    for (what, frames) in on_link {
        let mut calling = Calling::start().await;
        let uninvited = what == "moved uninvited";
        let held = if uninvited {
            let answering = calling.link.invoke(call(empty()));
            calling.far.next().await.expect("an open");
            calling.far.send(&headers(1)).await;
            (None, within("an answer", answering).await.expect("no failure").body)
        } else {
            let (lane, body, _) = calling.invited().await;
            (Some(lane), body)
        };
        for frame in frames {
            calling.far.send(frame).await;
        }
        calling.violation().await;
        drop((what, held));
    }
}

#[tokio::test]
async fn what_does_not_belong_on_a_lane_is_a_violation() {
    let on_lane: [(&str, &[Frame]); 6] = [
        ("a cancel", &[Frame::Cancel { call: CallId(1) }]),
        ("headers", &[headers(1)]),
        ("credit", &[Frame::Credit { call: CallId(1), bytes: 1 }]),
        ("a ping", &[Frame::Ping([0; 8])]),
        ("an end of a caller", &[Frame::Data { call: CallId(1), data: "x".into(), end: true }]),
        ("data after an end that is held", &[end(1), data(1, 1)]),
    ];
    for (what, frames) in on_lane {
        let mut calling = Calling::start().await;
        let (mut lane, body, _) = calling.invited().await;
        for frame in frames {
            lane.send(frame).await;
        }
        calling.violation().await;
        drop((what, body));
    }
}

#[tokio::test]
async fn data_that_is_held_for_the_link_costs_credit() {
    let mut calling = Calling::start().await;
    let (mut lane, mut body, _) = calling.invited().await;
    // Read nothing: what was granted is all there is.
    let mut sent = 0;
    while sent <= 4 * CALL_CREDIT_BYTES {
        if lane.try_send(&data(1, FRAME_DATA_BYTES_MAX)).await.is_err() {
            break;
        }
        sent += data_cost(FRAME_DATA_BYTES_MAX);
    }
    let what = calling.violation().await;
    assert_eq!(what, "it sent more than it had credit for");
    assert!(within("the body", body.frame()).await.expect("an end").is_err());
}

#[tokio::test]
async fn requests_on_a_lane_obey_the_same_order() {
    let cases: [(&str, &[Frame], &[Frame]); 4] = [
        ("uninvited data", &[], &[data(1, 1)]),
        ("an open", &[], &[open(9, LARGE)]),
        ("uninvited move", &[Frame::Moved { call: CallId(1) }], &[]),
        ("an offer", &[Frame::Lanes(1)], &[]),
    ];
    for (what, on_link, on_lane) in cases {
        let mut served = Served::start(handler(|call: Call| async move {
            let _held = call;
            std::future::pending().await
        }))
        .await;
        let mut lane = served.lane().await;
        let Frame::Open { call, path, time_left, metadata, data, .. } = open(1, LARGE) else {
            unreachable!()
        };
        let begun = Frame::Open { call, path, time_left, metadata, data, end: false };
        served.link.send(&begun).await;
        served.link.send(&Frame::Ping([1; 8])).await;
        assert_eq!(served.link.next().await, Some(Frame::Pong([1; 8])));
        for frame in on_link {
            served.link.send(frame).await;
        }
        for frame in on_lane {
            lane.send(frame).await;
        }
        assert!(!served.violation().await.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn an_invitation_without_a_lane_or_twice_is_a_violation() {
    let mut served = Served::start(large_or_small()).await;
    served.link.send(&Frame::Invite { call: CallId(1) }).await;
    assert_eq!(served.violation().await, "it invited to a lane that there is not");

    let mut served = Served::start(large_or_small()).await;
    let _lane = served.lane().await;
    served.until_large().await;
    for _ in 0..2 {
        served.link.send(&Frame::Invite { call: CallId(1) }).await;
    }
    assert_eq!(served.violation().await, "it invited to the lane twice");
}

#[tokio::test]
async fn streams_that_are_no_lanes_are_taken_for_links() {
    for bytes in [&b"PRI * HTTP/2.0"[..], b"", b"\xBBhli", b"\xBBhlane\n\0"] {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(bytes).await.expect("written");
        drop(near);
        let arrived = within("an arrival", arrival(far)).await.expect("read");
        assert!(matches!(arrived, Arrival::Link(_)));
    }
}
