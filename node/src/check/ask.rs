//! Calls to the plugin under check, by raw bytes: nothing is known of its messages.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use plugin_host::Host;
use protocol::{
    failure::Failure,
    ports::{Body, Call, CallHead, Caller, Locality, Reply},
};
use tokio::sync::oneshot;

/// How long an answer may take that is to come.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Status codes; source: gRPC status codes.
pub const OK: u32 = 0;
pub const UNIMPLEMENTED: u32 = 12;

/// What a call came to.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub code: u32,
    pub text: String,
    /// The first message.
    pub message: Bytes,
}

/// The plugin under check.
#[derive(Clone)]
pub struct Asked {
    pub host: Host,
    pub name: String,
}

impl Asked {
    /// Begins a call of `method`, a whole path, with one message.
    pub async fn begin(
        &self,
        method: &str,
        message: &[u8],
        within: Duration,
    ) -> Result<Reply, Failure> {
        let body = Full::new(framed(message)).map_err(|never| match never {});
        self.begin_with(method, Body::new(body), within).await
    }

    /// The same with a body that is still on its way.
    async fn begin_with(
        &self,
        method: &str,
        body: Body,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let deadline = Instant::now() + within;
        let gone = || {
            let text = format!("{} does not run", self.name);
            Failure::not_started(protocol::failure::Reason::Unreachable, text)
        };
        let status = self.host.info(&self.name).map_err(|_| gone())?;
        let instance = status.instance.ok_or_else(gone)?;
        let channel = self.host.channels().reach(instance, deadline).await?;
        let path = method.parse().map_err(|_| gone())?;
        let mut metadata = HeaderMap::new();
        let kind = HeaderValue::from_static("application/grpc");
        metadata.insert(http::header::CONTENT_TYPE, kind);
        let head = CallHead {
            path,
            metadata,
            deadline: Some(deadline),
            locality: Locality::Local,
            caller: Caller::Operator,
        };
        channel.invoke(Call { head, body }).await
    }

    /// One whole call.
    pub async fn call(
        &self,
        method: &str,
        message: &[u8],
        within: Duration,
    ) -> Result<Answer, Failure> {
        finish(self.begin(method, message, within).await?).await
    }

    /// One whole call whose message, an empty one, comes when `finished` says so.
    pub async fn call_slowly(
        &self,
        method: &str,
        finished: oneshot::Receiver<()>,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let message = futures::stream::once(async {
            // Whoever goes away without a word wants it now.
            let _ = finished.await;
            Ok(Frame::data(framed(b"")))
        });
        let body = Body::new(StreamBody::new(message));
        finish(self.begin_with(method, body, within).await?).await
    }

    /// It still answers a call that it does not know.
    pub async fn answers(&self) -> Result<(), String> {
        let method = "/blackhole.conformance.v1.Nothing/Nothing";
        self.call(method, b"", PATIENCE).await.map(|_| ()).map_err(|failure| failure.message)
    }
}

async fn finish(reply: Reply) -> Result<Answer, Failure> {
    let mut head = reply.metadata;
    let collected = reply.body.collect().await?;
    head.extend(collected.trailers().cloned().unwrap_or_default());
    let told = |name: &str| head.get(name).and_then(|value| value.to_str().ok());
    let code = told("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(2);
    let text = told("grpc-message").unwrap_or_default().to_owned();
    let bytes = collected.to_bytes();
    let message = if bytes.len() > 5 { bytes.slice(5..) } else { Bytes::new() };
    Ok(Answer { code, text, message })
}

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}
