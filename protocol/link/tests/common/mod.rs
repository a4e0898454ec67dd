//! What the tests of links share: handlers made of closures, bodies made of parts, links over both
//! kinds of stream, and an other side that is written by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_link::{Link, LinkEnd, LinkSettings};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame as BodyFrame};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use protocol::{
    failure::Failure,
    frame::{Decoder, Encoder, Frame, PREFACE_BYTES, preface},
    id::{NodeKey, PeerId},
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// Longer than anything in these tests takes; whoever waits so long has failed.
pub const LONG: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// A handler made of a closure.
pub struct Handle<F>(pub F);

impl<F, R> Invoke for Handle<F>
where
    F: Fn(Call) -> R + Send + Sync,
    R: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        (self.0)(call).boxed()
    }
}

pub fn handler<F, R>(f: F) -> Arc<dyn Invoke>
where
    F: Fn(Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    Arc::new(Handle(f))
}

/// Sends back the caller's metadata and bytes, chunk by chunk, then its trailers and a status.
pub fn echo() -> Arc<dyn Invoke> {
    handler(|call: Call| async move {
        let metadata = call.head.metadata.clone();
        let (sender, body) = pipe();
        let mut request = call.body;
        // The reply is made as it is read, in the link's own task.
        let copy = async move {
            let mut trailers = map(&[("grpc-status", "0")]);
            while let Some(frame) = request.frame().await {
                match frame?.into_data() {
                    Ok(data) => {
                        if sender.send(Ok(BodyFrame::data(data))).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(frame) => trailers.extend(frame.into_trailers().expect("data or trailers")),
                }
            }
            let _ = sender.send(Ok(BodyFrame::trailers(trailers))).await;
            Ok::<_, Failure>(())
        };
        Ok(Reply { metadata, body: driven(body, copy) })
    })
}

/// `body`, with `work` polled whenever the body is.
fn driven(
    mut body: Body,
    work: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Body {
    let mut work = Box::pin(work.fuse());
    let stream = futures::stream::poll_fn(move |cx| {
        if let std::task::Poll::Ready(Err(failure)) = work.poll_unpin(cx) {
            return std::task::Poll::Ready(Some(Err(failure)));
        }
        Pin::new(&mut body).poll_frame(cx)
    });
    Body::new(StreamBody::new(stream))
}

/// Answers every call with `bytes` and status 0.
pub fn reply(bytes: impl Into<Bytes>) -> Reply {
    Reply { metadata: grpc(), body: whole(bytes.into(), &[("grpc-status", "0")]) }
}

pub fn whole(data: Bytes, trailers: &[(&str, &str)]) -> Body {
    let trailers = map(trailers);
    Body::new(
        Full::new(data)
            .map_err(|never| match never {})
            .with_trailers(async move { Some(Ok(trailers)) }),
    )
}

pub fn full(data: impl Into<Bytes>) -> Body {
    Body::new(Full::new(data.into()).map_err(|never| match never {}))
}

pub fn empty() -> Body {
    Body::new(Empty::new().map_err(|never| match never {}))
}

pub type Part = Result<BodyFrame<Bytes>, Failure>;

/// A body that brings what is sent.
pub fn pipe() -> (mpsc::Sender<Part>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let parts = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|part| (part, receiver))
    });
    (sender, Body::new(StreamBody::new(parts)))
}

pub async fn send(sender: &mpsc::Sender<Part>, data: &'static [u8]) {
    sender.send(Ok(BodyFrame::data(Bytes::from_static(data)))).await.expect("the body is read");
}

pub fn map(entries: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).expect(name);
        map.append(name, HeaderValue::from_str(value).expect(value));
    }
    map
}

pub fn grpc() -> HeaderMap {
    map(&[("content-type", "application/grpc")])
}

pub fn call(body: Body) -> Call {
    call_within(body, None)
}

pub fn call_within(body: Body, time_left: Option<Duration>) -> Call {
    let head = CallHead {
        path: "/test.v1.Test/Call".parse().expect("a path"),
        metadata: grpc(),
        deadline: time_left.map(|left| Instant::now() + left),
        locality: Locality::Any,
        caller: Caller::Client,
    };
    Call { head, body }
}

pub fn peer(seed: u8) -> PeerId {
    NodeKey::from_seed([seed; 32]).peer_id()
}

/// What a body brought: its bytes and its trailers.
pub async fn collect(body: Body) -> Result<(Bytes, HeaderMap), Failure> {
    let collected = within("a body", body.collect()).await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Ok((collected.to_bytes(), trailers))
}

pub async fn chunk(body: &mut Body) -> Bytes {
    let frame = within("a chunk", body.frame()).await.expect("not over").expect("no failure");
    frame.into_data().expect("data")
}

/// Both ends of a link with its drivers running.
pub struct Pair {
    pub link: Link,
    pub client: JoinHandle<LinkEnd>,
    pub server: JoinHandle<LinkEnd>,
}

pub fn pair(handler: Arc<dyn Invoke>) -> Pair {
    pair_with(LinkSettings::default(), LinkSettings::default(), handler)
}

pub fn pair_with(client: LinkSettings, server: LinkSettings, handler: Arc<dyn Invoke>) -> Pair {
    let (near, far) = tokio::io::duplex(256 * 1024);
    pair_over(near, far, client, server, handler)
}

pub fn unix_pair(handler: Arc<dyn Invoke>) -> Pair {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    pair_over(near, far, LinkSettings::default(), LinkSettings::default(), handler)
}

pub fn pair_over<S>(
    near: S,
    far: S,
    client: LinkSettings,
    server: LinkSettings,
    handler: Arc<dyn Invoke>,
) -> Pair
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (link, driver) = blackhole_link::client(near, client);
    let answering = blackhole_link::serve(far, server, Caller::Peer(peer(1)), handler);
    Pair { link, client: tokio::spawn(driver), server: tokio::spawn(answering) }
}

/// A value whose end can be awaited.
pub fn dropped() -> (oneshot::Sender<()>, impl Future<Output = ()>) {
    let (guard, ended) = oneshot::channel();
    (guard, async move {
        within("the end of what is guarded", ended).await.expect_err("dropped, not sent");
    })
}

/// One side of a link, frame by frame.
pub struct ByHand {
    pub stream: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

impl ByHand {
    /// The other side of `stream` is a driver; prefaces are exchanged when this returns.
    pub async fn calling(stream: DuplexStream) -> Self {
        let mut this = Self::silent(stream);
        this.stream.write_all(&preface()).await.expect("written");
        this.read_preface().await;
        this
    }

    pub async fn answering(stream: DuplexStream) -> Self {
        let mut this = Self::silent(stream);
        this.read_preface().await;
        this.stream.write_all(&preface()).await.expect("written");
        this
    }

    pub fn silent(stream: DuplexStream) -> Self {
        Self {
            stream,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
        }
    }

    async fn read_preface(&mut self) {
        let mut theirs = [0; PREFACE_BYTES];
        within("a preface", self.stream.read_exact(&mut theirs)).await.expect("a preface");
        assert_eq!(theirs, preface());
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.try_send(frame).await.expect("written");
    }

    pub async fn try_send(&mut self, frame: &Frame) -> io::Result<()> {
        let mut out = BytesMut::new();
        self.encoder.frame(&mut out, frame).expect("within limits");
        self.stream.write_all(&out).await
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).expect("whole frames") {
                return Some(frame);
            }
            let read = within("a frame", self.stream.read_buf(&mut self.input)).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

/// The frames of a body until its end.
pub async fn drain(mut body: Body) -> usize {
    let mut bytes = 0;
    while let Some(frame) = within("a chunk", body.frame()).await {
        bytes += frame.expect("no failure").into_data().map_or(0, |data| data.len());
    }
    bytes
}

/// A body of `chunks` times `data`.
pub fn repeated(data: &'static [u8], chunks: usize) -> Body {
    let parts = futures::stream::repeat_with(move || Ok(BodyFrame::data(Bytes::from_static(data))));
    Body::new(StreamBody::new(parts.take(chunks)))
}
