//! Calls as users make them: the `blackhole` command, any other program, gRPC, HTTP.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::{Buf, BufMut, Bytes};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{AsciiMetadataKey, MetadataMap},
    transport::{Channel, Endpoint},
};

use crate::binaries;

/// How long any one command may take before it counts as hanging.
pub const COMMAND_WITHIN: Duration = Duration::from_mins(1);

/// What a command did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Its output, where exit code 0 is expected.
    pub fn success(self) -> Result<String> {
        ensure!(self.code == Some(0), "{}", self.report());
        Ok(self.out)
    }

    /// Its output as one JSON value, where exit code 0 is expected.
    pub fn json(self) -> Result<Value> {
        let report = self.report();
        let out = self.success()?;
        serde_json::from_str(&out).with_context(|| format!("not JSON: {report}"))
    }

    /// Its complaint, where an exit code other than 0 is expected.
    pub fn failure(self) -> Result<String> {
        ensure!(self.code.is_some_and(|code| code != 0), "{}", self.report());
        Ok(self.err)
    }

    /// All of it, for a person.
    pub fn report(&self) -> String {
        let Self { command, code, out, err, took } = self;
        format!("`{command}` ended with {code:?} after {took:?}\nout: {out}\nerr: {err}")
    }
}

/// Runs `command` to its end and keeps what it printed; it is killed when it takes too long.
pub async fn run(mut command: Command) -> Result<Outcome> {
    let line = format!("{command:?}");
    command.stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let start = Instant::now();
    let output = tokio::time::timeout(COMMAND_WITHIN, command.output()).await;
    let output = output.map_err(|_| anyhow!("{line} took longer than {COMMAND_WITHIN:?}"))?;
    let output = output.with_context(|| format!("cannot run {line}"))?;
    Ok(Outcome {
        command: line,
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: start.elapsed(),
    })
}

/// The `blackhole` command.
#[derive(Debug, Clone)]
pub struct Cli {
    executable: PathBuf,
    admin: Option<PathBuf>,
}

impl Cli {
    /// The command, pointed at the node with this admin socket.
    pub fn of(admin: &Path) -> Result<Self> {
        Ok(Self { executable: binaries::find("bh-peer")?, admin: Some(admin.to_owned()) })
    }

    /// The command, pointed at no node.
    pub fn alone() -> Result<Self> {
        Ok(Self { executable: binaries::find("bh-peer")?, admin: None })
    }

    /// The command with `arguments`, not yet run.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.executable);
        command.arg0("blackhole");
        if let Some(admin) = &self.admin {
            command.arg("--admin").arg(admin);
        }
        command.args(arguments);
        command
    }

    /// Runs the command with `arguments`.
    pub async fn run<const N: usize>(&self, arguments: [&str; N]) -> Result<Outcome> {
        run(self.command(arguments)).await
    }
}

/// A gRPC client that neither knows nor cares what the messages are.
#[derive(Clone)]
pub struct Caller {
    channel: Channel,
}

/// What a call was answered with.
#[derive(Debug)]
pub struct Answer {
    /// The message, encoded as it came.
    pub message: Bytes,
    /// Its headers.
    pub metadata: MetadataMap,
}

impl Caller {
    /// A client of `host:port`, connected with the first call.
    pub fn of(address: &str) -> Result<Self> {
        Ok(Self { channel: Endpoint::from_shared(format!("http://{address}"))?.connect_lazy() })
    }

    /// A client of a Unix socket.
    pub fn of_socket(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    /// The channel beneath, for generated clients.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A unary call of `method` (`/package.Service/Method`) with an encoded `message`.
    pub async fn unary(
        &self,
        method: &str,
        message: impl Into<Bytes>,
        metadata: &[(&str, &str)],
        within: Duration,
    ) -> Result<Answer, Status> {
        let invalid = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let path = method.parse().map_err(|error: http::uri::InvalidUri| invalid(&error))?;
        let mut request = Request::new(message.into());
        request.set_timeout(within);
        for (key, value) in metadata {
            let key = AsciiMetadataKey::from_bytes(key.as_bytes()).map_err(|e| invalid(&e))?;
            let value = value.parse().map_err(|_| Status::internal("not a metadata value"))?;
            request.metadata_mut().insert(key, value);
        }
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let response = grpc.unary(request, path, RawCodec).await?;
        let (metadata, message, _) = response.into_parts();
        Ok(Answer { message, metadata })
    }
}

/// Passes encoded messages through.
#[derive(Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// `GET path` from `host:port`: the status code and the body.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(COMMAND_WITHIN, exchange).await;
    let answer = answer.with_context(|| format!("GET {address}{path} hangs"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("no status code in {head}"))?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((code, if chunked { unchunk(body)? } else { body.to_owned() }))
}

/// Joins the chunks of a body that was sent without a length.
fn unchunk(body: &str) -> Result<String> {
    let mut rest = body;
    let mut whole = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").context("a chunk without length")?;
        let length = usize::from_str_radix(length.trim(), 16).context("a chunk without length")?;
        if length == 0 {
            return Ok(whole);
        }
        whole.push_str(after.get(..length).context("a chunk cut short")?);
        rest = after.get(length..).unwrap_or_default().trim_start_matches("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").expect("whole"), "abcde");
        assert!(unchunk("3\r\nab").is_err());
    }

    #[tokio::test]
    async fn a_command_tells_its_code_and_both_outputs() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let outcome = run(command).await.expect("runs");
        assert_eq!((outcome.code, outcome.out.trim()), (Some(3), "out"));
        assert_eq!(outcome.failure().expect("a failure").trim(), "err");
    }
}
