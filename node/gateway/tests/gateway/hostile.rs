//! Whatever comes in on the port, others are served on; and stopping ends everything in time.

use std::{sync::Arc, time::Duration};

use blackhole_gateway::Grpc;
use bytes::Bytes;
use http::{Request, StatusCode, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_prost::ProstCodec;

use crate::support::{Gateway, Mesh, TestCatalog, message};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn still_serves(gateway: &Gateway) {
    let mut client = gateway.client().await;
    let request = tonic::Request::new("you".to_owned());
    let path = PathAndQuery::from_static("/demo.v1.Echo/Unary");
    let codec = ProstCodec::<String, String>::default();
    let answer = client.unary(request, path, codec).await.expect("an answer");
    assert_eq!(answer.into_inner(), "hello you");
}

/// Sends `bytes` and reads until the gateway closes.
async fn say(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway.address).await.expect("it accepts");
    // It may close before all is said.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn garbage_harms_nobody_else() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let mut open = gateway.client().await;
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    let mut garbage = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect()
    };
    say(&gateway, &[]).await;
    for length in [1, 23, 24, 500, 100_000] {
        say(&gateway, &garbage(length)).await;
        say(&gateway, &[PREFACE, &garbage(length)].concat()).await;
        say(&gateway, &[b"POST / HTTP/1.1\r\n", garbage(length).as_slice()].concat()).await;
    }
    // A frame that claims 16 MB.
    say(&gateway, &[PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()).await;
    still_serves(&gateway).await;
    open.ready().await.expect("still connected");
    let codec = ProstCodec::<String, String>::default();
    let path = PathAndQuery::from_static("/demo.v1.Echo/Unary");
    open.unary(tonic::Request::new(String::new()), path, codec).await.expect("an answer");
    gateway.stop().await;
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(gateway.address).await.expect("it accepts"));
    }
    still_serves(&gateway).await;
    gateway.stop().await;
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_client_that_only_opens_and_resets_calls_is_shut_out() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    // :method POST, :scheme http, :path and content-type as literals; then RST_STREAM (CANCEL).
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(":path", "/demo.v1.Echo/Hang"), ("content-type", "application/grpc")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    let mut flood = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for number in 0..5_000_u32 {
        let stream = number * 2 + 1;
        flood.extend(frame(1, 4, stream, &block));
        flood.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    let answer = say(&gateway, &flood).await;
    // GOAWAY (7) with ENHANCE_YOUR_CALM (11) is the last it hears.
    let enhance_your_calm = [0, 0, 0, 11];
    let goes = answer.windows(4).any(|window| window == enhance_your_calm);
    assert!(goes, "no GOAWAY in {} bytes", answer.len());
    mesh.demo.hanging_are(0).await;
    still_serves(&gateway).await;
}

#[tokio::test]
async fn what_is_not_grpc_is_told_so() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let answer = say(&gateway, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
    assert!(answer.contains("gRPC over HTTP/2"), "{answer}");

    let grpc_web = Request::post(format!("http://{}/demo.v1.Echo/Unary", gateway.address))
        .header("content-type", "application/grpc-web")
        .body(Full::new(Bytes::new()));
    let response = gateway.raw(grpc_web.expect("a request")).await;
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let get = Request::get(format!("http://{}/demo.v1.Echo/Unary", gateway.address))
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::new()));
    assert_eq!(gateway.raw(get.expect("a request")).await.status(), 405);

    let response = gateway.raw(gateway.request("/not-a-service/Do", message(0, b""))).await;
    assert_eq!(response.headers()["grpc-status"], "12");

    let mut request = gateway.request("/demo.v1.Echo/Unary", message(0, b""));
    request.headers_mut().insert("grpc-timeout", "soon".parse().expect("a value"));
    assert_eq!(gateway.raw(request).await.headers()["grpc-status"], "3");
}

#[tokio::test]
async fn headers_beyond_the_bound_are_refused() {
    let gateway = Gateway::start(&Mesh::new()).await;
    let mut request = gateway.request("/demo.v1.Echo/Unary", message(0, b""));
    let value = "x".repeat(1_000);
    for number in 0..70 {
        let name: http::HeaderName = format!("x-{number}").parse().expect("a name");
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    assert_eq!(gateway.raw(request).await.status(), 431);
    still_serves(&gateway).await;
}

#[tokio::test]
async fn stopping_lets_calls_end_and_accepts_no_more() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let mut client = gateway.client().await;
    let (say, heard) = tokio::sync::mpsc::channel::<String>(1);
    let words = tokio_stream::wrappers::ReceiverStream::new(heard);
    let path = PathAndQuery::from_static("/demo.v1.Echo/Chat");
    let codec = ProstCodec::<String, String>::default();
    let answer = client.streaming(tonic::Request::new(words), path, codec).await;
    let mut answers = answer.expect("an answer").into_inner();
    say.send("before".into()).await.expect("the call goes on");
    assert_eq!(answers.message().await.expect("no failure").as_deref(), Some("before?"));

    gateway.stop.cancel();
    say.send("after".into()).await.expect("the call goes on");
    assert_eq!(answers.message().await.expect("no failure").as_deref(), Some("after?"));
    assert!(!gateway.served.is_finished());
    drop(say);
    assert_eq!(answers.message().await.expect("no failure"), None);
    gateway.served.await.expect("it ends in order");
    assert!(TcpStream::connect(gateway.address).await.is_err());
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off() {
    let mesh = Mesh::new();
    let grpc = Grpc::new(Arc::new(mesh.clone()), TestCatalog::new([]));
    let gateway = Gateway::start_with(grpc, Duration::from_millis(50)).await;
    let mut client = gateway.client().await;
    let calling = tokio::spawn(async move {
        let path = PathAndQuery::from_static("/demo.v1.Echo/Hang");
        let codec = ProstCodec::<String, String>::default();
        client.unary(tonic::Request::new(String::new()), path, codec).await
    });
    mesh.demo.hanging_are(1).await;
    gateway.stop().await;
    mesh.demo.hanging_are(0).await;
    let status = calling.await.expect("it ends").expect_err("cut off");
    assert_ne!(status.code(), Code::Ok);
}

#[tokio::test]
async fn dropping_a_server_ends_its_connections() {
    let mesh = Mesh::new();
    let gateway = Gateway::start(&mesh).await;
    let mut client = gateway.client().await;
    let calling = tokio::spawn(async move {
        let path = PathAndQuery::from_static("/demo.v1.Echo/Hang");
        let codec = ProstCodec::<String, String>::default();
        client.unary(tonic::Request::new(String::new()), path, codec).await
    });
    mesh.demo.hanging_are(1).await;
    gateway.served.abort();
    mesh.demo.hanging_are(0).await;
    calling.await.expect("it ends").expect_err("cut off");
}

#[tokio::test]
async fn a_body_that_ends_early_is_the_callers_loss_only() {
    let gateway = Gateway::start(&Mesh::new()).await;
    // A prefix that promises ten bytes, and three of them.
    let wire = [&[0, 0, 0, 0, 10], b"abc".as_slice()].concat();
    let response = gateway.raw(gateway.request("/demo.v1.Echo/Unary", wire)).await;
    let status = response.headers().get("grpc-status").cloned();
    let collected = response.into_body().collect().await.expect("an answer");
    let status = status.or_else(|| collected.trailers()?.get("grpc-status").cloned());
    assert_ne!(status.expect("a status"), "0");
    still_serves(&gateway).await;
}
