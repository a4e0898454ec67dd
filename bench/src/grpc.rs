//! Asking gRPC servers: one HTTP/2 connection, unary calls, nothing decoded; and load made of it.
//!
//! Written on hyper rather than on a gRPC library, so that on a machine with few cores as little as
//! can be goes to the side that only asks.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Uri, header::CONTENT_TYPE, header::HeaderName};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::load::{self, Demand, Sample};

/// What is sent: 32 bytes of text.
pub const PAYLOAD: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

/// What every server here puts in front of it.
pub const PREFIX: &[u8; 6] = b"Echo: ";

/// A byte on compression and four of length, before every message.
const GRPC_PREFIX_BYTES: usize = 5;

/// The size of what [`Call::repeat`] streams.
pub const MESSAGE_BYTES: usize = 1024 * 1024;

const SAY: &str = "http://localhost/demo.v1.Echo/Say";
const REPEAT: &str = "http://localhost/demo.v1.Echo/Repeat";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection; ends with it.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects, and asks nothing yet.
    pub async fn open(address: &Address) -> Result<Self> {
        let connected = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Self::over(stream).await
            }
            Address::Unix(path) => Self::over(UnixStream::connect(path).await?).await,
        };
        connected.with_context(|| format!("cannot connect to {address:?}"))
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self> {
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await?;
        let mut driver = JoinSet::new();
        // Its end shows in the calls.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _driver: driver })
    }

    /// Makes one call and gives the message of its answer, without gRPC's prefix.
    pub async fn call(&self, call: &Call) -> Result<Bytes> {
        call.once(&mut self.sender.clone()).await
    }

    /// Makes one call and reads whatever is streamed back, keeping nothing of it; as many bytes as
    /// the call expects must come.
    pub async fn drained(&self, call: &Call) -> Result<()> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let (head, mut body) = sender.send_request(call.request()?).await?.into_parts();
        let (mut bytes, mut status) = (0, told(&head.headers)?);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => bytes += data.len(),
                Err(frame) => status = frame.trailers_ref().map(told).transpose()?.flatten(),
            }
        }
        ensure!(status == Some(()), "an answer without a status ({})", head.status);
        ensure!(bytes >= call.streamed_bytes, "{bytes} bytes, not {}", call.streamed_bytes);
        Ok(())
    }

    /// Makes one call and reads [`MESSAGE_BYTES`] of what is streamed back `every` so often, until
    /// it is `over`; the rest is not waited for. Fails where it falls behind by more than half.
    pub async fn paced(&self, call: &Call, every: Duration, over: impl Fn() -> bool) -> Result<()> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let mut body = sender.send_request(call.request()?).await?.into_body();
        let begun = Instant::now();
        let (mut bytes, mut read) = (0, 0);
        while !over() {
            let frame = body.frame().await.context("the stream ended early")??;
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes >= MESSAGE_BYTES {
                (bytes, read) = (bytes - MESSAGE_BYTES, read + 1);
                tokio::time::sleep_until((begun + every * read).into()).await;
            }
        }
        let took = begun.elapsed();
        ensure!(every * read * 2 >= took, "only {read} MiB in {took:?} beside the small calls");
        Ok(())
    }
}

/// A connection, ready to carry load.
pub struct Load {
    connection: Connection,
    call: Call,
}

impl Load {
    /// Connects, and makes one call to see that it is answered.
    pub async fn connect(address: &Address) -> Result<Self> {
        let (connection, call) = (Connection::open(address).await?, Call::say());
        connection.call(&call).await.with_context(|| format!("at {address:?}"))?;
        Ok(Self { connection, call })
    }

    /// Keeps calls going over the one connection.
    pub async fn run(&self, demand: Demand) -> Result<Sample> {
        load::closed(demand, || {
            let (mut sender, call) = (self.connection.sender.clone(), self.call.clone());
            async move || call.once(&mut sender).await.map(drop)
        })
        .await
    }
}

/// A call that can be made over and over.
#[derive(Clone)]
pub struct Call {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    /// What the answer must be.
    expected: Option<Bytes>,
    /// At least so much must be streamed back.
    streamed_bytes: usize,
}

impl Call {
    /// `demo.v1.Echo/Say` with [`PAYLOAD`]; any answer but its echo is an error.
    pub fn say() -> Self {
        let text = |front: &[u8]| {
            // Both messages have one text, in field 1, length-delimited.
            let mut message = vec![0x0a, (front.len() + PAYLOAD.len()) as u8];
            message.extend_from_slice(front);
            message.extend_from_slice(PAYLOAD);
            message
        };
        let expected = Some(text(PREFIX).into());
        Self { expected, ..Self::of(SAY, &text(b"")) }
    }

    /// `demo.v1.Echo/Repeat`: so many messages of [`MESSAGE_BYTES`] are streamed back.
    pub fn repeat(messages: u32) -> Self {
        let mut message = vec![0x0a];
        put_varint(&mut message, MESSAGE_BYTES as u64);
        message.resize(message.len() + MESSAGE_BYTES, b'x');
        message.push(0x10);
        put_varint(&mut message, messages.into());
        let streamed_bytes = messages as usize * MESSAGE_BYTES;
        Self { streamed_bytes, ..Self::of(REPEAT, &message) }
    }

    /// A method (`http://localhost/service/Method`) with an encoded message; any answer will do.
    pub fn of(method: &'static str, message: &[u8]) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.len() as u32);
        body.put_slice(message);
        let (uri, body) = (Uri::from_static(method), body.freeze());
        Self { uri, headers, body, expected: None, streamed_bytes: 0 }
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::post(self.uri.clone()).body(Full::new(self.body.clone()))?;
        request.headers_mut().clone_from(&self.headers);
        Ok(request)
    }

    async fn once(&self, sender: &mut SendRequest<Full<Bytes>>) -> Result<Bytes> {
        sender.ready().await?;
        let (head, mut body) = sender.send_request(self.request()?).await?.into_parts();
        let (mut received, mut status) = (BytesMut::new(), told(&head.headers)?);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => received.extend_from_slice(&data),
                Err(frame) => status = frame.trailers_ref().map(told).transpose()?.flatten(),
            }
        }
        ensure!(status == Some(()), "an answer without a status ({})", head.status);
        ensure!(received.len() >= GRPC_PREFIX_BYTES, "an answer without a message");
        let message = received.freeze().slice(GRPC_PREFIX_BYTES..);
        let as_expected = self.expected.as_ref().is_none_or(|expected| *expected == message);
        ensure!(as_expected, "an answer of another content");
        Ok(message)
    }
}

/// A number as protobuf writes it.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Whether the call has ended well; an error when it has ended otherwise.
fn told(headers: &HeaderMap) -> Result<Option<()>> {
    match headers.get(GRPC_STATUS).map(http::HeaderValue::as_bytes) {
        None => Ok(None),
        Some(b"0") => Ok(Some(())),
        Some(status) => {
            let message = headers.get("grpc-message").map(http::HeaderValue::as_bytes);
            let message = String::from_utf8_lossy(message.unwrap_or_default()).into_owned();
            bail!("status {}: {message}", String::from_utf8_lossy(status))
        }
    }
}
