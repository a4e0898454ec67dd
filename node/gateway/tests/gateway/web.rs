//! gRPC-Web and Connect, byte for byte: what is well-formed passes, what is not is refused in the
//! words of the protocol that was asked in, and harms nobody.

use std::sync::Arc;

use blackhole_gateway::{Grpc, Meters, Origins, serve_http, web_routes};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, MethodOptions, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
    method_options::IdempotencyLevel,
};
use protocol::{
    failure::{Failure, Reason},
    limits::MESSAGE_BYTES_MAX,
    ports::Caller,
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpListener, net::TcpStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::{DRAIN, Mesh, TestCatalog, message};

/// The descriptors of [`crate::demo::Demo`]: each message is one string, `text`.
fn descriptors() -> Bytes {
    let text = FieldDescriptorProto {
        name: Some("text".into()),
        number: Some(1),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::String.into()),
        ..Default::default()
    };
    let said =
        DescriptorProto { name: Some("Said".into()), field: vec![text], ..Default::default() };
    let method = |name: &str, asks: bool, answers: bool| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".demo.v1.Said".into()),
        output_type: Some(".demo.v1.Said".into()),
        client_streaming: Some(asks),
        server_streaming: Some(answers),
        // `Hang` and `Join` do not say that they have no side effects.
        options: (!["Hang", "Join"].contains(&name)).then(|| MethodOptions {
            idempotency_level: Some(IdempotencyLevel::NoSideEffects.into()),
            ..Default::default()
        }),
    };
    let methods = [
        ("Unary", false, false),
        ("Refuse", false, false),
        ("Hang", false, false),
        ("Words", false, true),
        ("Join", true, false),
        ("Chat", true, true),
    ];
    let service = ServiceDescriptorProto {
        name: Some("Echo".into()),
        method: methods.map(|(name, asks, answers)| method(name, asks, answers)).to_vec(),
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("echo.proto".into()),
        package: Some("demo.v1".into()),
        syntax: Some("proto3".into()),
        message_type: vec![said],
        service: vec![service],
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec().into()
}

/// The web's side of a gateway, on a port of its own.
pub struct Web {
    pub address: String,
    pub mesh: Mesh,
    pub stop: CancellationToken,
    pub served: JoinHandle<()>,
}

/// What came back.
pub struct Told {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Told {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// The envelopes of the body: flags and what is in each.
    fn envelopes(&self) -> Vec<(u8, Bytes)> {
        let mut rest = self.body.clone();
        let mut found = Vec::new();
        while !rest.is_empty() {
            let prefix = rest.split_to(5);
            let length = u32::from_be_bytes(prefix[1..].try_into().expect("four")) as usize;
            found.push((prefix[0], rest.split_to(length)));
        }
        found
    }

    /// The end of a stream in Connect.
    fn end(&self) -> Value {
        let (flags, last) = self.envelopes().pop().expect("an envelope");
        assert_eq!(flags, 2);
        serde_json::from_slice(&last).expect("JSON")
    }

    /// The trailers of gRPC-Web.
    fn trailers(&self) -> String {
        let (flags, last) = self.envelopes().pop().expect("an envelope");
        assert_eq!(flags, 0x80);
        String::from_utf8(last.to_vec()).expect("text")
    }
}

impl Web {
    pub async fn start() -> Self {
        Self::start_with(Mesh::new(), Origins::default()).await
    }

    pub async fn start_with(mesh: Mesh, origins: Origins) -> Self {
        Self::start_counted(mesh, origins, Meters::default()).await
    }

    pub async fn start_counted(mesh: Mesh, origins: Origins, meters: Meters) -> Self {
        let catalog = TestCatalog::new([("demo.v1.Echo", Ok(descriptors()))]);
        let grpc = Grpc::new(Arc::new(mesh.clone()), catalog);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let stop = CancellationToken::new();
        let routes = web_routes(grpc, Caller::Client, origins);
        let served = tokio::spawn(serve_http(listener, routes, meters, stop.clone(), DRAIN));
        Self { address, mesh, stop, served }
    }

    /// How many calls the mesh has got.
    pub fn calls(&self) -> usize {
        self.mesh.heads.lock().expect("not poisoned").len()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Told {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let response: Response<_> = client.request(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        Told { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    fn request(&self, path: &str, kind: &str) -> http::request::Builder {
        Request::post(format!("http://{}{path}", self.address)).header("content-type", kind)
    }

    async fn ask(&self, path: &str, kind: &str, body: impl Into<Bytes>) -> Told {
        let request = self.request(path, kind).body(Full::new(body.into()));
        self.send(request.expect("a request")).await
    }

    pub async fn still_serves(&self) {
        let told = self.ask(UNARY, "application/json", r#"{"text": "you"}"#).await;
        assert_eq!(told.json(), json!({ "text": "hello you" }));
    }
}

pub const UNARY: &str = "/demo.v1.Echo/Unary";
const WORDS: &str = "/demo.v1.Echo/Words";

/// A string, as the demo's messages are.
pub fn said(text: &str) -> Vec<u8> {
    text.to_owned().encode_to_vec()
}

#[tokio::test]
async fn connect_calls_one_for_one_in_both_forms_with_metadata_both_ways() {
    let web = Web::start().await;
    for (kind, asked, wanted) in [
        ("application/proto", said("you"), said("hello you")),
        ("application/json", br#"{"text":"you"}"#.to_vec(), br#"{"text":"hello you"}"#.to_vec()),
    ] {
        let request = web.request(UNARY, kind).header("x-text", "a").header("x-bytes-bin", "AJ+S");
        let request = request.header("connect-protocol-version", "1");
        let request = request.header("connect-timeout-ms", "5000").body(Full::new(asked.into()));
        let told = web.send(request.expect("a request")).await;
        assert_eq!((told.status, &told.body[..]), (200, &wanted[..]), "{kind}");
        assert_eq!(told.headers["content-type"], kind);
        assert_eq!(told.headers["x-text"], "a");
        assert_eq!(told.headers["x-bytes-bin"], "AJ+S");
        let names: Vec<_> = told.headers.keys().map(http::HeaderName::as_str).collect();
        assert!(
            !names.iter().any(|name| name.contains("grpc") || name.contains("bh-")),
            "{names:?}"
        );
        let head = web.mesh.last_head();
        assert!(head.deadline.is_some());
        assert_eq!(head.metadata["content-type"], "application/grpc+proto");
        assert!(!head.metadata.contains_key("connect-protocol-version"));
    }
    web.stop.cancel();
}

#[tokio::test]
async fn a_body_of_unknown_length_is_a_message_too() {
    let web = Web::start().await;
    let client: Client<_, _> = Client::builder(TokioExecutor::new()).build_http();
    let said = said("you");
    let chunks = [&said[..2], &said[2..]]
        .map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(chunk))));
    let body = StreamBody::new(futures::stream::iter(chunks));
    let request = web.request(UNARY, "application/proto").body(body).expect("a request");
    let response = client.request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn errors_have_connects_code_status_message_details_and_trailers() {
    let web = Web::start().await;
    let path = "/demo.v1.Echo/Refuse";
    for (kind, asked) in [("application/proto", &b""[..]), ("application/json", b"{}")] {
        let request = web.request(path, kind).header("x-text", "a");
        let told = web.send(request.body(Full::new(asked.into())).expect("a request")).await;
        assert_eq!(
            (told.status, &told.headers["content-type"]),
            (400, &"application/json".parse().expect("text"))
        );
        let error = told.json();
        assert_eq!(error["code"], "failed_precondition");
        assert_eq!(error["message"], "no: 100 % of ünïcode");
        let trailing = ["trailer-x-text", "x-text"].map(|name| told.headers.get(name));
        assert!(trailing.iter().any(Option::is_some), "{:?}", told.headers);
    }
    let nobody = web.ask("/no.such.Service/Do", "application/proto", "").await;
    assert_eq!(nobody.status, 503);
    assert_eq!(nobody.json()["code"], "unavailable");
    assert_eq!(nobody.headers["trailer-bh-ran"], "not-started");
    assert_eq!(nobody.json()["details"][0]["type"], "google.rpc.ErrorInfo");
    let nothing = web.ask("/nothing", "application/json", "{}").await;
    assert_eq!((nothing.status, &nothing.json()["code"]), (501, &json!("unimplemented")));
}

#[tokio::test]
async fn who_is_busy_tells_when_to_come_back() {
    let busy = |_| async { Err(Failure::not_started(Reason::Busy, "too much")) };
    let web = Web::start_with(Mesh::with(busy), Origins::default()).await;
    let told = web.ask("/any.v1.Thing/Do", "application/proto", "").await;
    assert_eq!((told.status, &told.headers["retry-after"]), (429, &"1".parse().expect("text")));
}

#[tokio::test]
async fn streams_end_with_how_they_ended_in_each_protocol() {
    let web = Web::start().await;
    let asked = message(0, &said("one two stop"));
    let told = web.ask(WORDS, "application/connect+proto", asked.clone()).await;
    assert_eq!(told.status, 200);
    assert_eq!(told.envelopes()[..2], [(0, said("one").into()), (0, said("two").into())]);
    assert_eq!(told.end(), json!({ "error": { "code": "aborted", "message": "stopped" } }));

    let json = message(0, br#"{"text":"one two"}"#);
    let told = web.ask(WORDS, "application/connect+json", json).await;
    assert_eq!(told.envelopes()[1], (0, Bytes::from_static(br#"{"text":"two"}"#)));
    assert_eq!(told.end(), json!({}));

    let told = web.ask(WORDS, "application/grpc-web+proto", asked.clone()).await;
    assert_eq!(told.envelopes().len(), 3);
    assert!(told.trailers().contains("grpc-status: 10\r\n"), "{}", told.trailers());
    assert!(told.trailers().contains("grpc-message: stopped\r\n"));

    let told = web.ask("/no.such.Service/Do", "application/grpc-web", message(0, b"")).await;
    assert!(told.trailers().contains("grpc-status: 14\r\n"));
    assert!(told.trailers().contains("bh-ran: not-started\r\n"));
}

#[tokio::test]
async fn the_text_form_is_base64_in_segments() {
    let web = Web::start().await;
    // Two segments, each padded by itself, and cut in the middle of the prefix.
    let asked = "AAA=AAAFCgN5b3U=";
    let told = web.ask(UNARY, "application/grpc-web-text", asked).await;
    assert_eq!(told.headers["content-type"], "application/grpc-web-text+proto");
    let text = std::str::from_utf8(&told.body).expect("text");
    // "hello you" begins after prefix and tag.
    assert!(text.starts_with("AAAAAAsKCWhlbGxvIHlvd"), "{text}");
}

#[tokio::test]
async fn what_is_cut_short_or_malformed_is_refused_in_the_words_of_its_protocol() {
    let web = Web::start().await;
    let whole = message(0, &said("you"));
    let cut = whole.slice(..whole.len() - 1);
    let with = |flags: u8| message(flags, &said("you"));
    for (what, kind, body) in [
        ("cut", "application/grpc-web", cut.clone()),
        ("half a prefix", "application/grpc-web", whole.slice(..3)),
        ("trailers of a caller", "application/grpc-web", with(0x80)),
        ("flags", "application/grpc-web", with(0x7e)),
        ("compressed by nothing", "application/grpc-web", with(1)),
        ("cut", "application/grpc-web-text", "AAAAAAUKA3lvd".into()),
        ("not base64", "application/grpc-web-text", "????".into()),
        ("cut", "application/connect+proto", cut.clone()),
        ("an end of the caller", "application/connect+proto", with(2)),
        ("cut", "application/connect+json", message(0, b"{}").slice(..6)),
        ("no JSON", "application/connect+json", message(0, b"{")),
        ("no JSON", "application/json", "{\"text\": 1}".into()),
        ("two of them", "application/json", "{} {}".into()),
    ] {
        let told = web.ask(UNARY, kind, body).await;
        match kind {
            "application/json" => {
                assert_eq!((told.status, &told.json()["code"]), (400, &json!("invalid_argument")));
            }
            "application/grpc-web" => {
                assert!(
                    told.trailers().contains("grpc-status: 3\r\n"),
                    "{what}: {}",
                    told.trailers()
                );
            }
            "application/grpc-web-text" => assert!(!told.body.is_empty(), "{what}"),
            _ => assert_eq!(told.end()["error"]["code"], "invalid_argument", "{what} {kind}"),
        }
    }
    web.still_serves().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_held() {
    let web = Web::start().await;
    let mut huge = vec![0];
    huge.extend(u32::try_from(MESSAGE_BYTES_MAX + 1).expect("small").to_be_bytes());
    let told = web.ask(UNARY, "application/connect+proto", huge.clone()).await;
    assert_eq!(told.end()["error"]["code"], "resource_exhausted");
    let told = web.ask(UNARY, "application/grpc-web", huge).await;
    assert!(told.trailers().contains("grpc-status: 8\r\n"), "{}", told.trailers());
    let told = web.ask(UNARY, "application/proto", vec![0; MESSAGE_BYTES_MAX + 1]).await;
    assert_eq!((told.status, &told.json()["code"]), (429, &json!("resource_exhausted")));
    let told = web.ask(UNARY, "application/json", vec![b' '; MESSAGE_BYTES_MAX]).await;
    assert_eq!((told.status, &told.json()["code"]), (429, &json!("resource_exhausted")));
    web.still_serves().await;
}

#[tokio::test]
async fn what_no_protocol_says_is_told_in_https_own_words() {
    let web = Web::start().await;
    assert_eq!(web.ask(UNARY, "text/plain", "").await.status, 415);
    let get = Request::get(format!("http://{}{UNARY}", web.address));
    let get = get.header("content-type", "application/json").body(Full::default());
    let told = web.send(get.expect("a request")).await;
    assert_eq!((told.status, &told.headers["allow"]), (405, &"POST".parse().expect("text")));
    let nowhere = Request::get(format!("http://{}/nowhere", web.address)).body(Full::default());
    assert_eq!(web.send(nowhere.expect("a request")).await.status, 404);
    for (name, value) in [("connect-timeout-ms", "soon"), ("connect-protocol-version", "9")] {
        let request = web.request(UNARY, "application/json").header(name, value);
        let told = web.send(request.body(Full::new("{}".into())).expect("a request")).await;
        assert_eq!((told.status, &told.json()["code"]), (400, &json!("invalid_argument")));
    }
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_is_told() {
    let hang = |_| async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Err(Failure::unknown(Reason::DeadlineExceeded, "it took too long"))
    };
    let web = Web::start_with(Mesh::with(hang), Origins::default()).await;
    let request = web.request("/slow.v1.Thing/Do", "application/proto");
    let request = request.header("connect-timeout-ms", "50").body(Full::default());
    let told = web.send(request.expect("a request")).await;
    assert_eq!((told.status, &told.json()["code"]), (504, &json!("deadline_exceeded")));
}

#[tokio::test]
async fn who_hangs_up_ends_the_call() {
    let web = Web::start().await;
    let mut stream = TcpStream::connect(&web.address).await.expect("it accepts");
    let head = "POST /demo.v1.Echo/Hang HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n\
                content-length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    web.mesh.demo.hanging_are(1).await;
    drop(stream);
    web.mesh.demo.hanging_are(0).await;
}

#[tokio::test]
async fn pages_of_named_origins_may_call_and_read_everything() {
    let mut origins = Origins::default();
    origins.allow("https://app.example").expect("an origin");
    let web = Web::start_with(Mesh::new(), origins).await;
    let from = |origin: &'static str, method: Method| {
        let request =
            web.request(UNARY, "application/json").method(method).header("origin", origin);
        request.header("access-control-request-method", "POST")
    };
    let asked = from("https://app.example", Method::OPTIONS)
        .header("access-control-request-headers", "x-text,content-type")
        .body(Full::default());
    let told = web.send(asked.expect("a request")).await;
    assert_eq!(told.status, 204);
    assert_eq!(told.headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(told.headers["access-control-allow-headers"], "x-text,content-type");
    assert_eq!(told.headers["access-control-allow-methods"], "GET, POST");

    let asked = from("https://app.example", Method::POST).header("x-text", "a");
    let told = web.send(asked.body(Full::new("{}".into())).expect("a request")).await;
    assert_eq!(told.status, 200);
    let exposed = told.headers["access-control-expose-headers"].to_str().expect("text");
    assert!(exposed.split(", ").any(|name| name == "x-text"), "{exposed}");

    let before = web.mesh.heads.lock().expect("not poisoned").len();
    for method in [Method::OPTIONS, Method::POST] {
        let asked = from("https://other.example", method).body(Full::new("{}".into()));
        let told = web.send(asked.expect("a request")).await;
        assert_eq!(told.status, 403);
        assert!(!told.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(web.mesh.heads.lock().expect("not poisoned").len(), before, "nothing was called");
}

#[tokio::test]
async fn health_of_the_mesh_is_asked_in_json_too() {
    let web = Web::start().await;
    let told = web.ask("/grpc.health.v1.Health/Check", "application/json", "{}").await;
    assert_eq!((told.status, told.json()), (200, json!({ "status": "SERVING" })));
}
