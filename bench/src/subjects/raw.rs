//! A Unix socket and nothing on it: 32 bytes there, 32 bytes back. Nothing that crosses a process
//! can be faster.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BytesMut};
use futures::{FutureExt, future::LocalBoxFuture};
use testnet::{cluster::World, process::Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{Group, Started, Subject, responder};
use crate::grpc::PAYLOAD;
use crate::load::{self, Demand, Pipe, Sample};

/// The socket alone.
pub const GROUP: Group = Group {
    names: &["raw-unix"],
    start: |world| start(world).boxed_local(),
    respond: Some(|address| respond(address).boxed_local()),
};

/// What either side reads at once.
const READ_BYTES: usize = 64 * 1024;

async fn start(world: &World) -> Result<Started> {
    let socket = world.path().join("raw.sock");
    let socket = socket.to_str().context("a path in UTF-8")?;
    let responder = responder(world, GROUP.names[0], socket).await?;
    let stream = UnixStream::connect(socket).await?;
    let pipe = Socket { stream, read: BytesMut::new(), write: Vec::new(), open: VecDeque::new() };
    Ok(vec![Box::new(Raw { pipe, responder })])
}

/// Says back whatever comes on its one connection.
async fn respond(socket: String) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    println!("ready");
    let (mut stream, _) = listener.accept().await?;
    let mut bytes = BytesMut::with_capacity(READ_BYTES);
    while stream.read_buf(&mut bytes).await? > 0 {
        stream.write_all_buf(&mut bytes).await?;
        bytes.reserve(READ_BYTES);
    }
    Ok(())
}

struct Raw {
    pipe: Socket,
    responder: Process,
}

impl Subject for Raw {
    fn name(&self) -> &'static str {
        GROUP.names[0]
    }

    fn way(&self) -> &'static str {
        "32 bytes on a Unix socket, said back by another process, one loop that writes in batches"
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.responder.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        load::pipelined(demand, &mut self.pipe).boxed_local()
    }
}

/// Answers come in the order of the requests.
struct Socket {
    stream: UnixStream,
    read: BytesMut,
    write: Vec<u8>,
    open: VecDeque<u64>,
}

impl Pipe for Socket {
    fn ask(&mut self, number: u64) {
        self.write.extend_from_slice(PAYLOAD);
        self.open.push_back(number);
    }

    async fn answered(&mut self, numbers: &mut Vec<u64>) -> Result<()> {
        self.stream.write_all(&self.write).await?;
        self.write.clear();
        self.read.reserve(READ_BYTES);
        ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the responder has gone");
        while self.read.len() >= PAYLOAD.len() {
            ensure!(self.read.starts_with(PAYLOAD), "an answer of another content");
            self.read.advance(PAYLOAD.len());
            numbers.push(self.open.pop_front().context("an answer to nobody")?);
        }
        Ok(())
    }
}
