//! Calls from their client to a provider and back: everything arrives as it was sent.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_gateway::{Grpc, serve_grpc, serve_grpc_stream};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use protocol::{
    failure::{Failure, Reason},
    id::NodeKey,
    limits::MESSAGE_BYTES_MAX,
    ports::{Body, Caller, Locality, Reply},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    demo::bytes,
    support::{DRAIN, Gateway, Mesh, TestCatalog, client, collect, io, message},
};

fn codec() -> ProstCodec<String, String> {
    ProstCodec::default()
}

fn path(path: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(path)
}

async fn unary(
    gateway: &Gateway,
    method: &'static str,
    request: Request<String>,
) -> Result<Response<String>, Status> {
    gateway.client().await.unary(request, path(method), codec()).await
}

fn said(text: &str) -> Request<String> {
    Request::new(text.to_owned())
}

#[tokio::test]
async fn all_four_kinds_of_call_pass() {
    let gateway = Gateway::start(&Mesh::new()).await;

    let answer = unary(&gateway, "/demo.v1.Echo/Unary", said("you")).await.expect("an answer");
    assert_eq!(answer.into_inner(), "hello you");

    let mut client = gateway.client().await;
    let answer = client.server_streaming(said("a b c"), path("/demo.v1.Echo/Words"), codec()).await;
    let words: Vec<String> =
        answer.expect("an answer").into_inner().map(|word| word.expect("a word")).collect().await;
    assert_eq!(words, ["a", "b", "c"]);

    let mut client = gateway.client().await;
    let words = tokio_stream::iter(["x", "y", "z"].map(str::to_owned));
    let answer =
        client.client_streaming(Request::new(words), path("/demo.v1.Echo/Join"), codec()).await;
    assert_eq!(answer.expect("an answer").into_inner(), "x y z");

    // Each message is answered before the next is sent: nothing on the way waits for more.
    let mut client = gateway.client().await;
    let (say, heard) = mpsc::channel(1);
    let request = Request::new(ReceiverStream::new(heard));
    let answer = client.streaming(request, path("/demo.v1.Echo/Chat"), codec()).await;
    let mut answers = answer.expect("an answer").into_inner();
    for word in ["one", "two"] {
        say.send(word.to_owned()).await.expect("the call goes on");
        assert_eq!(answers.message().await.expect("no failure"), Some(format!("{word}?")));
    }
    drop(say);
    assert_eq!(answers.message().await.expect("no failure"), None);
    gateway.stop().await;
}

#[tokio::test]
async fn metadata_passes_both_ways_text_and_binary() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let mut request = said("you");
    request.metadata_mut().insert("x-text", MetadataValue::from_static("some text"));
    request.metadata_mut().append("x-twice", MetadataValue::from_static("1"));
    request.metadata_mut().append("x-twice", MetadataValue::from_static("2"));
    request.metadata_mut().insert_bin("x-bytes-bin", bytes());
    let answer = unary(&gateway, "/demo.v1.Echo/Unary", request).await.expect("an answer");
    let metadata = answer.metadata();
    assert_eq!(metadata.get("x-text").expect("text"), "some text");
    assert_eq!(metadata.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(metadata.get_bin("x-bytes-bin").expect("bytes"), bytes());
    assert!(metadata.get("bh-ran").is_none(), "a plugin cannot speak for the mesh");
    assert_eq!(metadata.get("grpc-status").expect("trailers"), "0");
    assert_eq!(mesh.last_head().caller, Caller::Client);
}

#[tokio::test]
async fn a_plugins_own_status_passes_with_its_details() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let mut request = said("you");
    request.metadata_mut().insert_bin("x-bytes-bin", bytes());
    let status = unary(&gateway, "/demo.v1.Echo/Refuse", request).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "no: 100 % of ünïcode");
    assert_eq!(status.details(), b"\x08\x05\x12\x03any");
    assert_eq!(status.metadata().get_bin("x-bytes-bin").expect("bytes"), bytes());
    assert!(status.metadata().get("bh-ran").is_none());

    // In the middle of a stream, after messages that arrive.
    let mut client = gateway.client().await;
    let request = said("a stop b");
    let answer = client.server_streaming(request, path("/demo.v1.Echo/Words"), codec()).await;
    let mut words = answer.expect("an answer").into_inner();
    assert_eq!(words.message().await.expect("a word").as_deref(), Some("a"));
    assert_eq!(words.message().await.expect_err("stopped").code(), Code::Aborted);
}

#[tokio::test]
async fn deadline_and_locality_reach_the_mesh() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let mut request = said("you");
    request.set_timeout(Duration::from_secs(20));
    request.metadata_mut().insert("bh-locality", MetadataValue::from_static("any"));
    unary(&gateway, "/demo.v1.Echo/Unary", request).await.expect("an answer");
    let head = mesh.last_head();
    let left = head.deadline.expect("a deadline") - Instant::now();
    assert!(left > Duration::from_secs(15) && left <= Duration::from_secs(20), "{left:?}");
    assert_eq!(head.locality, Locality::Any);
    assert!(!head.metadata.contains_key("grpc-timeout"));
    assert!(!head.metadata.contains_key("bh-locality"));

    let peer = NodeKey::from_seed([9; 32]).peer_id();
    let mut request = said("you");
    request.metadata_mut().insert("bh-peer", peer.to_string().parse().expect("a value"));
    unary(&gateway, "/demo.v1.Echo/Unary", request).await.expect("an answer");
    assert_eq!(mesh.last_head().locality, Locality::Peer(peer));
    assert_eq!(mesh.last_head().deadline, None);

    let mut request = said("you");
    request.metadata_mut().insert("bh-locality", MetadataValue::from_static("near"));
    let status = unary(&gateway, "/demo.v1.Echo/Unary", request).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("local, prefer-local, any"), "{status}");
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_its_call() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let mut client = gateway.client().await;
    let calling = tokio::spawn(async move {
        client.unary(said("you"), path("/demo.v1.Echo/Hang"), codec()).await
    });
    mesh.demo.hanging_are(1).await;
    calling.abort();
    mesh.demo.hanging_are(0).await;
    // The connection lives on for others.
    unary(&gateway, "/demo.v1.Echo/Unary", said("you")).await.expect("an answer");
}

#[tokio::test]
async fn a_caller_whose_connection_breaks_cancels_its_calls() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let address = gateway.address;
    // The client's connection is of a runtime of its own, which ends with it.
    let (broken, breaks) = tokio::sync::oneshot::channel::<()>();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            let mut client = client(endpoint.connect().await.expect("it accepts")).await;
            tokio::select! {
                _ = client.unary(said("you"), path("/demo.v1.Echo/Hang"), codec()) => {}
                _ = breaks => {}
            }
        });
    });
    mesh.demo.hanging_are(1).await;
    broken.send(()).expect("the client waits");
    mesh.demo.hanging_are(0).await;
    client.join().expect("it ends in order");
}

/// Sends back every byte of the request, its metadata included.
fn parrot() -> Mesh {
    Mesh::with(|call| async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let end = stream::iter([Ok(Frame::trailers(trailers))]);
        let frames = futures::StreamExt::chain(
            call.body.into_data_stream().map(|data| data.map(Frame::data)),
            end,
        );
        Ok(Reply { metadata: call.head.metadata, body: Body::new(StreamBody::new(frames)) })
    })
}

#[tokio::test]
async fn compressed_messages_of_unknown_types_pass_untouched() {
    let gateway = Gateway::start(&parrot()).await;
    // Not valid gzip, not valid protobuf: nobody on the way looks.
    let wire = [message(1, b"\x1f\x8b anything"), message(0, &[0xff; 300])].concat();
    let mut request = gateway.request("/any.Thing/At_all", wire.clone());
    request.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+cbor"));
    let response = gateway.raw(request).await;
    assert_eq!(response.headers()["grpc-encoding"], "gzip");
    assert_eq!(response.headers()["content-type"], "application/grpc+cbor");
    let (body, trailers) = collect(response).await;
    assert_eq!(body, wire);
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn messages_up_to_the_bound_pass() {
    let gateway = Gateway::start(&parrot()).await;
    let wire = message(0, &vec![7; MESSAGE_BYTES_MAX]);
    let (body, _) =
        collect(gateway.raw(gateway.request("/any.Thing/Do", wire.clone())).await).await;
    assert!(body == wire);
}

#[tokio::test]
async fn larger_messages_are_refused_as_soon_as_their_length_is_known() {
    let gateway = Gateway::start(&parrot()).await;
    // A small message, then the length of one too large, and nothing of it.
    let mut wire = message(0, b"small").to_vec();
    wire.push(0);
    wire.extend(u32::try_from(MESSAGE_BYTES_MAX + 1).expect("small").to_be_bytes());
    let response = gateway.raw(gateway.request("/any.Thing/Do", wire)).await;
    let head = response.headers().clone();
    let (_, trailers) = collect(response).await;
    let status = Status::from_header_map(&trailers).or_else(|| Status::from_header_map(&head));
    let status = status.expect("a status");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("8388609 bytes"), "{status}");

    // Also towards a client that would send it all.
    let huge = || Request::new("x".repeat(MESSAGE_BYTES_MAX + 1));
    let status = unary(&gateway, "/any.Thing/Do", huge()).await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");

    // Whatever a provider makes of the broken request, the mesh's word counts.
    let status = unary(&gateway, "/demo.v1.Echo/Unary", huge()).await.expect_err("refused");
    assert_eq!(status.metadata().get("bh-reason").expect("why"), "too-large");
}

#[tokio::test]
async fn answers_with_larger_messages_are_refused() {
    let long = Mesh::with(|_| async {
        let frame = Frame::data(message(0, &vec![0; MESSAGE_BYTES_MAX + 1]));
        let body = Body::new(StreamBody::new(stream::iter([Ok(frame)])));
        Ok(Reply { metadata: HeaderMap::new(), body })
    });
    let gateway = Gateway::start(&long).await;
    let status = unary(&gateway, "/any.Thing/Do", said("")).await.expect_err("refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(status.metadata().get("bh-reason").expect("a reason"), "too-large");
}

#[tokio::test]
async fn a_service_that_nobody_offers_is_named() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let status = unary(&gateway, "/no.such.Service/Do", said("")).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "service no.such.Service not available");
    assert_eq!(status.metadata().get("bh-ran").expect("whether it ran"), "not-started");
    assert_eq!(status.metadata().get("bh-reason").expect("why"), "not-available");
}

#[tokio::test]
async fn a_mesh_that_fails_in_the_middle_says_so_in_the_trailers() {
    let peer = NodeKey::from_seed([4; 32]).peer_id();
    let failing = Mesh::with(move |_| async move {
        let frames = [
            Ok(Frame::data(message(0, b"\x0a\x03abc"))),
            Err(Failure::unknown(Reason::PeerLost, "the peer went away").at(peer)),
        ];
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        Ok(Reply { metadata: HeaderMap::new(), body })
    });
    let gateway = Gateway::start(&failing).await;
    let mut client = gateway.client().await;
    let answer = client.server_streaming(said(""), path("/any.Thing/Do"), codec()).await;
    let mut words = answer.expect("an answer").into_inner();
    assert_eq!(words.message().await.expect("a word").as_deref(), Some("abc"));
    let status = words.message().await.expect_err("lost");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("bh-ran").expect("whether it ran"), "unknown");
    assert_eq!(status.metadata().get("bh-peer").expect("where"), &*peer.to_string());
}

#[tokio::test]
async fn an_answer_without_a_status_gets_one() {
    let silent = Mesh::with(|_| async {
        let body = Body::new(StreamBody::new(stream::iter([Ok(Frame::data(Bytes::new()))])));
        Ok(Reply { metadata: HeaderMap::new(), body })
    });
    let gateway = Gateway::start(&silent).await;
    let status = unary(&gateway, "/any.Thing/Do", said("")).await.expect_err("no status");
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("without a status"), "{status}");
}

#[tokio::test]
async fn unix_sockets_and_streams_at_hand_are_served_alike() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("mesh.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mesh = Mesh::new();
    let grpc = Grpc::new(Arc::new(mesh.clone()), TestCatalog::new([]));
    let stop = CancellationToken::new();
    let caller = Caller::Plugin("counter".into());
    let served = tokio::spawn(serve_grpc(listener, grpc.clone(), caller, stop.clone(), DRAIN));
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(io) }
    });
    let channel = Endpoint::from_static("http://mesh").connect_with_connector(connector).await;
    let mut unix = client(channel.expect("it accepts")).await;
    let answer = unix.unary(said("unix"), path("/demo.v1.Echo/Unary"), codec()).await;
    assert_eq!(answer.expect("an answer").into_inner(), "hello unix");
    assert_eq!(mesh.last_head().caller, Caller::Plugin("counter".into()));

    let (near, far) = tokio::io::duplex(4_096);
    let operator = Caller::Operator;
    let alone = tokio::spawn(serve_grpc_stream(far, grpc, operator, stop.clone(), DRAIN));
    let mut near = Some(near);
    let connector = service_fn(move |_| {
        let near = near.take().map(io).ok_or("one connection only");
        async move { near }
    });
    let channel = Endpoint::from_static("http://mesh").connect_with_connector(connector).await;
    let mut client = client(channel.expect("it accepts")).await;
    let answer = client.unary(said("stream"), path("/demo.v1.Echo/Unary"), codec()).await;
    assert_eq!(answer.expect("an answer").into_inner(), "hello stream");
    assert_eq!(mesh.last_head().caller, Caller::Operator);
    drop(client);
    alone.await.expect("it ends when its connection does");
    stop.cancel();
    served.await.expect("it ends in order");
}
