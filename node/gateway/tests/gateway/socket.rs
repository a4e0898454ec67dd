//! Calls in WebSockets, with a client of another hand and byte for byte: what is said in one, what
//! is told, and what is refused.

use blackhole_gateway::{Meters, Origins};
use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::Full;
use prometheus_client::{encoding::text, registry::Registry};
use protocol::limits::MESSAGE_BYTES_MAX;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::{
    support::{DRAIN, Mesh},
    web::{UNARY, Web, said},
};

const WORDS: &str = "/demo.v1.Echo/Words";
const JOIN: &str = "/demo.v1.Echo/Join";
pub const CHAT: &str = "/demo.v1.Echo/Chat";

/// A caller in a socket.
pub struct Socket(pub WebSocketStream<TcpStream>);

/// All that was said in one: the messages, how the call ended, and the code of the close.
#[derive(Debug)]
pub struct Told {
    pub messages: Vec<Message>,
    pub end: Option<Value>,
    pub code: CloseCode,
}

impl Socket {
    pub async fn open(web: &Web, target: &str) -> Self {
        Self::open_with(web, target, &[]).await.expect("a socket")
    }

    async fn open_with(
        web: &Web,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{}{target}", web.address).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        let stream = TcpStream::connect(&web.address).await.expect("it accepts");
        Ok(Self(client_async(request, stream).await?.0))
    }

    pub async fn say(&mut self, message: impl Into<Message>) {
        self.0.send(message.into()).await.expect("it is heard");
    }

    /// Says all of them, and that they are all.
    pub async fn say_all(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.say(message).await;
        }
        self.say("").await;
    }

    pub async fn next(&mut self) -> Message {
        self.0.next().await.expect("it goes on").expect("no failure")
    }

    /// Everything until it is closed.
    pub async fn rest(&mut self) -> Told {
        let (mut messages, mut end) = (Vec::new(), None);
        let mut over = false;
        loop {
            match self.next().await {
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(close) => {
                    let code = close.expect("a code").code;
                    return Told { messages, end, code };
                }
                Message::Text(text) if over => {
                    assert_eq!(end, None, "one end");
                    end = Some(serde_json::from_str(&text).expect("JSON"));
                }
                Message::Text(text) if text.is_empty() => over = true,
                message => {
                    assert!(!over, "{message:?} comes after the last one");
                    messages.push(message);
                }
            }
        }
    }
}

pub fn text(word: &str) -> Message {
    Message::text(json!({ "text": word }).to_string())
}

pub fn binary(word: &str) -> Message {
    Message::binary(said(word))
}

/// Asks once and hears everything.
async fn ask(web: &Web, target: &str, messages: impl IntoIterator<Item = Message>) -> Told {
    let mut socket = Socket::open(web, target).await;
    socket.say_all(messages).await;
    socket.rest().await
}

#[tokio::test]
async fn all_four_kinds_of_call_pass_in_json_and_in_protobuf() {
    let web = Web::start().await;
    for (encoding, word) in [("json", text as fn(&str) -> Message), ("proto", binary)] {
        let at = |method: &str| format!("{method}?connect=v1&encoding={encoding}");
        let told = ask(&web, &at(UNARY), [word("you")]).await;
        assert_eq!((told.messages, told.end), (vec![word("hello you")], Some(json!({}))));
        assert_eq!(told.code, CloseCode::Normal);

        let told = ask(&web, &at(WORDS), [word("one two stop")]).await;
        assert_eq!(told.messages, [word("one"), word("two")]);
        let stopped = json!({ "error": { "code": "aborted", "message": "stopped" } });
        assert_eq!((told.end, told.code), (Some(stopped), CloseCode::Normal));

        let told = ask(&web, &at(JOIN), ["x", "", "z"].map(word)).await;
        assert_eq!((told.messages, told.end), (vec![word("x  z")], Some(json!({}))));

        // Each message is answered before the next is sent: nothing on the way waits for more.
        let mut socket = Socket::open(&web, &at(CHAT)).await;
        for said in ["one", "two"] {
            socket.say(word(said)).await;
            assert_eq!(socket.next().await, word(&format!("{said}?")));
        }
        socket.say("").await;
        let told = socket.rest().await;
        assert_eq!((told.messages, told.end), (vec![], Some(json!({}))));
    }
    // JSON is what is spoken where nothing is said, and no message at all is fine as well.
    let told = ask(&web, JOIN, []).await;
    assert_eq!((told.messages, told.end), (vec![Message::text("{}")], Some(json!({}))));
}

#[tokio::test]
async fn what_a_page_says_in_its_url_a_program_says_in_headers_and_both_arrive() {
    let web = Web::start().await;
    let by_url = "?header.x-text=a%20b&header.x-twice=1&header.x-twice=2&header.x-bytes-bin=AJ%2BS\
                  &header.connect-timeout-ms=5000";
    let said = [("x-text", "a b"), ("x-bytes-bin", "AJ+S"), ("connect-timeout-ms", "5000")];
    for (query, headers) in [(by_url, &said[..0]), ("", &said)] {
        let target = format!("{UNARY}{query}");
        let mut socket = Socket::open_with(&web, &target, headers).await.expect("a socket");
        socket.say_all([text("you")]).await;
        let told = socket.rest().await;
        let headers = &told.end.expect("an end")["headers"];
        assert_eq!(
            (&headers["x-text"], &headers["x-bytes-bin"]),
            (&json!(["a b"]), &json!(["AJ+S"]))
        );
        let head = web.mesh.last_head();
        assert!(head.deadline.is_some());
        let names: Vec<_> = head.metadata.keys().map(http::HeaderName::as_str).collect();
        assert!(!names.iter().any(|name| name.contains("websocket") || *name == "upgrade"));
    }
    let told = ask(&web, "/demo.v1.Echo/Refuse?header.x-text=a", [text("")]).await;
    let end = told.end.expect("an end");
    assert_eq!(end["error"]["code"], "failed_precondition");
    assert_eq!(end["error"]["message"], "no: 100 % of ünïcode");
    assert_eq!(end["metadata"]["x-text"], json!(["a"]));
}

#[tokio::test]
async fn what_is_wrong_with_a_call_is_told_in_its_socket() {
    let web = Web::start().await;
    for (target, messages, code, close) in [
        ("/no.such.Service/Do", vec![], "unavailable", CloseCode::Normal),
        ("/no.such.Service/Do?encoding=proto", vec![], "unavailable", CloseCode::Normal),
        ("/demo.v1.Echo/None", vec![], "unimplemented", CloseCode::Normal),
        ("/demo.v1.Echo/None?encoding=proto", vec![], "unimplemented", CloseCode::Normal),
        ("/nothing", vec![], "unimplemented", CloseCode::Normal),
        ("/demo.v1.Echo/Join?encoding=xml", vec![], "invalid_argument", CloseCode::Normal),
        ("/demo.v1.Echo/Join?connect=v2", vec![], "invalid_argument", CloseCode::Normal),
        ("/demo.v1.Echo/Join?header.cookie=a", vec![], "invalid_argument", CloseCode::Normal),
        (
            "/demo.v1.Echo/Join?header.connect-timeout-ms=soon",
            vec![],
            "invalid_argument",
            CloseCode::Normal,
        ),
        (JOIN, vec![Message::text("{")], "invalid_argument", CloseCode::Normal),
        (JOIN, vec![text("a"), Message::text("{} {}")], "invalid_argument", CloseCode::Normal),
        (JOIN, vec![text("a"), binary("b")], "invalid_argument", CloseCode::Unsupported),
        (
            "/demo.v1.Echo/Join?encoding=proto",
            vec![text("a")],
            "invalid_argument",
            CloseCode::Unsupported,
        ),
        (CHAT, vec![Message::text(""), text("a")], "invalid_argument", CloseCode::Policy),
    ] {
        let mut socket = Socket::open(&web, target).await;
        for message in messages {
            // It may have ended before all is said.
            let _ = socket.0.send(message).await;
        }
        let _ = socket.0.send(Message::text("")).await;
        let told = socket.rest().await;
        // Of a conversation that ended in the meantime there is nothing to be said any more.
        let end = told.end.expect("an end");
        if target == CHAT && told.code == CloseCode::Normal {
            continue;
        }
        assert_eq!((&end["error"]["code"], told.code), (&json!(code), close), "{target}: {end}");
    }
    web.still_serves().await;
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused_and_the_largest_pass() {
    let web = Web::start().await;
    // Tag and length before it; the answer has two letters more.
    let most = "x".repeat(MESSAGE_BYTES_MAX - 100);
    let told = ask(&web, "/demo.v1.Echo/Chat?encoding=proto", [binary(&most)]).await;
    assert_eq!(told.messages, [binary(&format!("{most}?"))]);
    for (target, message) in [
        ("/demo.v1.Echo/Chat?encoding=proto", Message::binary(vec![0; MESSAGE_BYTES_MAX + 1])),
        (CHAT, Message::text(" ".repeat(MESSAGE_BYTES_MAX))),
    ] {
        let mut socket = Socket::open(&web, target).await;
        socket.say(message).await;
        let told = socket.rest().await;
        assert_eq!(told.end.expect("an end")["error"]["code"], "resource_exhausted");
        assert_eq!(told.code, CloseCode::Size);
    }
    web.still_serves().await;
}

#[tokio::test]
async fn sockets_are_opened_only_for_programs_and_pages_of_named_origins() {
    let mut origins = Origins::default();
    origins.allow("https://app.example").expect("an origin");
    let web = Web::start_with(Mesh::new(), origins).await;
    for origin in ["https://other.example", "null", "http://app.example"] {
        let refused = Socket::open_with(&web, UNARY, &[("origin", origin)]).await;
        let Err(Error::Http(response)) = refused.map(|_| ()) else { panic!("{origin}") };
        assert_eq!(response.status(), 403, "{origin}");
    }
    assert_eq!(web.calls(), 0);
    let origin = [("origin", "https://app.example")];
    let mut socket = Socket::open_with(&web, UNARY, &origin).await.expect("a socket");
    socket.say_all([text("you")]).await;
    assert_eq!(socket.rest().await.messages, [text("hello you")]);
}

#[tokio::test]
async fn a_handshake_that_is_none_is_told_so_in_https_words() {
    let web = Web::start().await;
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let (connects, upgrades) = (("connection", "Upgrade"), ("upgrade", "websocket"));
    for (headers, status) in [
        (vec![connects, upgrades, key], 426),
        (vec![connects, upgrades, key, ("sec-websocket-version", "8")], 426),
        (vec![connects, upgrades, ("sec-websocket-version", "13")], 400),
        (vec![upgrades, key, ("sec-websocket-version", "13")], 400),
        (
            vec![connects, upgrades, ("sec-websocket-key", "?"), ("sec-websocket-version", "13")],
            400,
        ),
    ] {
        let mut request = Request::get(format!("http://{}{UNARY}", web.address));
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let told = web.send(request.body(Full::default()).expect("a request")).await;
        assert_eq!(told.status, status, "{headers:?}");
        let version = told.headers.get("sec-websocket-version").is_some();
        assert_eq!(version, status == 426);
    }
    assert_eq!(web.calls(), 0);
    web.still_serves().await;
}

/// Opens a socket by hand, and sends `bytes` in it.
async fn by_hand(web: &Web, target: &str, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&web.address).await.expect("it accepts");
    let head = format!(
        "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    assert!(!answer.contains("content-length"), "{answer}");
    // It may close before all is said.
    let _ = stream.write_all(bytes).await;
    stream
}

/// The code of the close at the end of what is read of `stream`.
async fn close_code(mut stream: TcpStream) -> Option<u16> {
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    // The last frame: its head, and two bytes.
    let close = heard.last_chunk::<4>()?;
    (close[..2] == [0x88, 2]).then(|| u16::from_be_bytes([close[2], close[3]]))
}

#[tokio::test]
async fn what_is_no_websocket_ends_its_own_connection_and_is_counted() {
    let mut registry = Registry::default();
    let meters = Meters::new(&mut registry);
    let web = Web::start_counted(Mesh::new(), Origins::default(), meters).await;
    let masked = |first: u8, second: u8| [first, second | 0x80, 0, 0, 0, 0];
    let ping = masked(0x89, 0);
    for (what, bytes, code) in [
        ("unmasked", b"\x81\x02{}".to_vec(), 1002),
        ("reserved bits", masked(0xf1, 0).to_vec(), 1002),
        ("an unknown kind", masked(0x83, 0).to_vec(), 1002),
        ("a long ping", [&masked(0x89, 126)[..2], &[0, 200], &[0; 204]].concat(), 1002),
        ("a ping in parts", masked(0x09, 0).to_vec(), 1002),
        ("nothing to continue", masked(0x80, 0).to_vec(), 1002),
        ("no UTF-8", [&masked(0x81, 1)[..], b"\xff"].concat(), 1007),
        ("16 exabytes", [&masked(0x81, 127)[..2], &[0x7f; 8], &[0; 4]].concat(), 1009),
        ("pings without end", ping.repeat(20_000), 1008),
    ] {
        let stream = by_hand(&web, CHAT, &bytes).await;
        let told = timeout(DRAIN, close_code(stream)).await.expect("it ends");
        // Of a connection that is closed while it sends, the last words may be lost.
        assert!(told == Some(code) || (told.is_none() && bytes.len() > 1_000), "{what}: {told:?}");
    }
    web.still_serves().await;
    // All have been counted when all have ended.
    web.stop.cancel();
    web.served.await.expect("in order");
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("text");
    assert!(page.contains("connections_refused_total{why=\"flood\"} 1"), "{page}");
    assert!(page.contains("connections_refused_total{why=\"malformed\"} 6"), "{page}");
}

#[tokio::test]
async fn a_deadline_ends_the_call_and_is_told() {
    let hang = |_| async {
        let failure = protocol::failure::Reason::DeadlineExceeded;
        Err(protocol::failure::Failure::unknown(failure, "it took too long"))
    };
    let web = Web::start_with(Mesh::with(hang), Origins::default()).await;
    let told = ask(&web, "/slow.v1.Thing/Do?encoding=proto&header.connect-timeout-ms=50", []).await;
    let end = told.end.expect("an end");
    assert_eq!(end["error"]["code"], "deadline_exceeded");
    assert_eq!(end["metadata"]["bh-ran"], json!(["unknown"]));
}
