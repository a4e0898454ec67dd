//! gRPC itself on the port for HTTP, beside everything else there.

use blackhole_gateway::{Meters, Origins};
use bytes::Bytes;
use http::{Request, uri::PathAndQuery};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prometheus_client::{encoding::text, registry::Registry};
use protocol::limits::MESSAGE_BYTES_MAX;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Request as Asked, client::Grpc, metadata::MetadataValue, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    demo::bytes,
    support::{self, DRAIN, Mesh, collect, message},
    web::{UNARY, Web},
};

fn codec() -> ProstCodec<String, String> {
    ProstCodec::default()
}

fn path(path: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(path)
}

async fn client(web: &Web) -> Grpc<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", web.address)).expect("an address");
    support::client(endpoint.connect().await.expect("it accepts")).await
}

#[tokio::test]
async fn all_four_kinds_of_grpc_call_pass_on_the_port_for_http() {
    let web = Web::start().await;
    let mut client = client(&web).await;
    let mut asked = Asked::new("you".to_owned());
    asked.metadata_mut().insert("x-text", MetadataValue::from_static("some text"));
    asked.metadata_mut().insert_bin("x-bytes-bin", bytes());
    let told = client.unary(asked, path(UNARY), codec()).await.expect("an answer");
    assert_eq!(told.metadata().get("x-text").expect("text"), "some text");
    assert_eq!(told.metadata().get_bin("x-bytes-bin").expect("bytes"), bytes());
    assert_eq!(told.into_inner(), "hello you");

    let asked = Asked::new("a b stop".to_owned());
    client.ready().await.expect("connected");
    let told = client.server_streaming(asked, path("/demo.v1.Echo/Words"), codec()).await;
    let told: Vec<_> = told.expect("an answer").into_inner().collect().await;
    let words: Vec<_> = told.iter().flatten().collect();
    assert_eq!(words, ["a", "b"]);
    assert_eq!(told[2].as_ref().expect_err("stopped").code(), Code::Aborted);

    let asked = Asked::new(tokio_stream::iter(["x", "y"].map(str::to_owned)));
    client.ready().await.expect("connected");
    let told = client.client_streaming(asked, path("/demo.v1.Echo/Join"), codec()).await;
    assert_eq!(told.expect("an answer").into_inner(), "x y");

    let (say, heard) = mpsc::channel(1);
    let asked = Asked::new(ReceiverStream::new(heard));
    client.ready().await.expect("connected");
    let told = client.streaming(asked, path("/demo.v1.Echo/Chat"), codec()).await;
    let mut told = told.expect("an answer").into_inner();
    for word in ["one", "two"] {
        say.send(word.to_owned()).await.expect("the call goes on");
        assert_eq!(told.message().await.expect("no failure"), Some(format!("{word}?")));
    }
    drop(say);
    assert_eq!(told.message().await.expect("no failure"), None);
    drop((told, client));
    web.still_serves().await;
    web.stop.cancel();
    tokio::time::timeout(DRAIN, web.served).await.expect("nothing is left").expect("in order");
}

#[tokio::test]
async fn statuses_details_and_refusals_are_grpcs_own() {
    let web = Web::start().await;
    let mut client = client(&web).await;
    let asked = Asked::new(String::new());
    let status = client.unary(asked, path("/demo.v1.Echo/Refuse"), codec()).await;
    let status = status.expect_err("refused");
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "no: 100 % of ünïcode")
    );
    assert_eq!(status.details(), b"\x08\x05\x12\x03any");

    client.ready().await.expect("connected");
    let asked = Asked::new(String::new());
    let status = client.unary(asked, path("/no.such.Service/Do"), codec()).await;
    let status = status.expect_err("nobody has it");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("bh-ran").expect("told"), "not-started");

    client.ready().await.expect("connected");
    let huge = Asked::new("x".repeat(MESSAGE_BYTES_MAX));
    let status = client.unary(huge, path(UNARY), codec()).await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted);

    // The gateway's own services are here too.
    client.ready().await.expect("connected");
    let mut health = tonic_health::pb::health_client::HealthClient::new(client_channel(&web).await);
    let asked = tonic_health::pb::HealthCheckRequest { service: String::new() };
    health.check(asked).await.expect("it serves");
}

async fn client_channel(web: &Web) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", web.address)).expect("an address");
    endpoint.connect().await.expect("it accepts")
}

#[tokio::test]
async fn grpc_that_is_not_over_http2_or_not_a_post_is_told_so() {
    let web = Web::start().await;
    let asked = |method: &str| {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{UNARY}", web.address))
            .header("content-type", "application/grpc")
            .body(Full::new(message(0, b"")))
            .expect("a request")
    };
    let told = web.send(asked("POST")).await;
    assert_eq!(told.status, 505);
    assert!(String::from_utf8_lossy(&told.body).contains("HTTP/2"));
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    assert_eq!(client.request(asked("PUT")).await.expect("an answer").status(), 405);
    let told = client.request(asked("POST")).await.expect("an answer");
    assert_eq!(told.headers()["content-type"], "application/grpc");
    let (body, trailers) = collect(told).await;
    assert_eq!((body.len(), &trailers["grpc-status"]), (13, &"0".parse().expect("text")));
}

#[tokio::test]
async fn pages_of_strangers_cannot_call_by_grpc_either() {
    let web = Web::start().await;
    let asked = Request::post(format!("http://{}{UNARY}", web.address))
        .header("content-type", "application/grpc")
        .header("origin", "https://other.example")
        .body(Full::new(message(0, b"")));
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let told = client.request(asked.expect("a request")).await.expect("an answer");
    assert_eq!((told.status(), web.calls()), (http::StatusCode::FORBIDDEN, 0));
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn floods_end_their_connection_here_as_on_the_port_for_grpc() {
    let mut registry = Registry::default();
    let meters = Meters::new(&mut registry);
    let web = Web::start_counted(Mesh::new(), Origins::default(), meters).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (one, _) in [(frame(6, 0, 0, b"flooding"), "PING"), (frame(4, 0, 0, &[]), "SETTINGS")] {
        let mut stream = TcpStream::connect(&web.address).await.expect("it accepts");
        let flood = [preface, frame(4, 0, 0, &[]).as_slice(), &one.repeat(20_000)].concat();
        // It may close before all is said.
        let _ = stream.write_all(&flood).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    web.still_serves().await;
    // All have been counted when all have ended.
    web.stop.cancel();
    web.served.await.expect("in order");
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("text");
    assert!(page.contains("connections_refused_total{why=\"flood\"} 2"), "{page}");
}
