//! What users run today: request and reply through a NATS server.
//!
//! A client of our own in its plain text protocol, one connection and one loop without a task for
//! each request: the least that any client can do, so that the server is measured at its best.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use futures::{FutureExt, future::LocalBoxFuture};
use testnet::{cluster::World, process::Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Group, STARTED_WITHIN, Started, Subject, address_in, programs, responder};
use crate::grpc::{PAYLOAD, PREFIX};
use crate::load::{self, Demand, Pipe, Sample};

/// NATS with a responder behind it.
pub const GROUP: Group = Group {
    names: &["nats"],
    start: |world| start(world).boxed_local(),
    respond: Some(|address| respond(address).boxed_local()),
};

const SUBJECT: &str = "bench.echo";
const INBOX: &str = "_INBOX.bench.";
/// Longer than any line that the server sends to such a client, its greeting included.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// How long the server and the responder may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server, and a responder in a process of its own.
async fn start(world: &World) -> Result<Started> {
    let mut command = Command::new(programs("nats")?.path("NATS_SERVER")?);
    command.args(["--addr", "127.0.0.1", "--port", "-1"]);
    let server = Process::spawn("nats-server", command, world.path())?;
    let listens = |text: &str| text.contains("Listening for client connections");
    let address = server
        .output()
        .find(0, STARTED_WITHIN, |line| listens(&line.text).then(|| address_in(&line.text))?)
        .await?;
    let address = address.to_string();
    let responder = responder(world, GROUP.names[0], &address).await?;
    let asking = async {
        let connection = Connection::open(&address, &format!("SUB {INBOX}* 1\r\n")).await?;
        let mut nats = Nats { connection, served: [server, responder] };
        nats.run(Demand::closed(1, Duration::ZERO)).await?;
        anyhow::Ok(nats)
    };
    let nats = tokio::time::timeout(PATIENCE, asking).await.context("NATS does not answer")??;
    Ok(vec![Box::new(nats)])
}

/// Answers every request with the payload behind the prefix, until the connection ends.
async fn respond(address: String) -> Result<()> {
    let mut connection = Connection::open(&address, &format!("SUB {SUBJECT} 1\r\n")).await?;
    println!("ready");
    loop {
        while let Some(message) = connection.next()? {
            let length = PREFIX.len() + message.payload.len();
            connection.publish(&message.reply, "", length, &[PREFIX, &message.payload]);
        }
        connection.exchange().await?;
    }
}

/// A connection that asks, and who answers.
struct Nats {
    connection: Connection,
    served: [Process; 2],
}

impl Subject for Nats {
    fn name(&self) -> &'static str {
        GROUP.names[0]
    }

    fn way(&self) -> &'static str {
        "NATS, request and reply, one loop that writes in batches"
    }

    fn pids(&self) -> Vec<u32> {
        self.served.iter().map(Process::pid).collect()
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        load::pipelined(demand, &mut self.connection).boxed_local()
    }
}

impl Pipe for Connection {
    fn ask(&mut self, number: u64) {
        self.publish(SUBJECT, &format!("{INBOX}{number}"), PAYLOAD.len(), &[PAYLOAD]);
    }

    async fn answered(&mut self, numbers: &mut Vec<u64>) -> Result<()> {
        self.exchange().await?;
        while let Some(message) = self.next()? {
            let answer = message.payload.strip_prefix(PREFIX.as_slice());
            ensure!(answer == Some(PAYLOAD.as_slice()), "an answer of another content");
            let number = message.subject.strip_prefix(INBOX).and_then(|n| n.parse().ok());
            numbers.push(number.context("an answer to nobody")?);
        }
        Ok(())
    }
}

struct Message {
    subject: String,
    reply: String,
    payload: Vec<u8>,
}

/// Bytes in, bytes out; everything that is to be written goes in one write.
struct Connection {
    stream: TcpStream,
    read: BytesMut,
    write: Vec<u8>,
}

impl Connection {
    async fn open(address: &str, subscribe: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect to NATS")?;
        stream.set_nodelay(true)?;
        let greeting = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\"}\r\n";
        let write = [greeting.as_slice(), subscribe.as_bytes(), b"PING\r\n"].concat();
        let mut connection = Self { stream, read: BytesMut::new(), write };
        // The answer to PING follows the subscription's registration.
        loop {
            connection.exchange().await?;
            while let Some(line) = connection.line()? {
                if line == "PONG" {
                    return Ok(connection);
                }
            }
        }
    }

    fn publish(&mut self, subject: &str, reply: &str, length: usize, payload: &[&[u8]]) {
        let separator = if reply.is_empty() { "" } else { " " };
        let head = format!("PUB {subject}{separator}{reply} {length}\r\n");
        self.write.extend_from_slice(head.as_bytes());
        for part in payload {
            self.write.extend_from_slice(part);
        }
        self.write.extend_from_slice(b"\r\n");
    }

    /// Writes what is due, then waits for bytes.
    async fn exchange(&mut self) -> Result<()> {
        if !self.write.is_empty() {
            self.stream.write_all(&self.write).await?;
            self.write.clear();
        }
        self.read.reserve(LINE_BYTES_MAX);
        let count = self.stream.read_buf(&mut self.read).await?;
        ensure!(count > 0, "NATS has closed the connection");
        Ok(())
    }

    /// A whole line, if there is one.
    fn line(&mut self) -> Result<Option<String>> {
        let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") else {
            ensure!(self.read.len() < LINE_BYTES_MAX, "NATS sends an endless line");
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.advance(end + 2);
        Ok(Some(line))
    }

    /// The next whole message, if there is one; a PING is answered on the way.
    fn next(&mut self) -> Result<Option<Message>> {
        loop {
            let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") else {
                return Ok(None);
            };
            let line = std::str::from_utf8(&self.read[..end]).context("a line of text")?;
            let mut words = line.split(' ');
            match words.next() {
                Some("MSG") => {}
                Some("PING") => {
                    self.write.extend_from_slice(b"PONG\r\n");
                    self.read.advance(end + 2);
                    continue;
                }
                Some("PONG" | "+OK" | "INFO") => {
                    self.read.advance(end + 2);
                    continue;
                }
                _ => bail!("NATS says: {line}"),
            }
            // MSG subject id [reply] length
            let words: Vec<&str> = words.collect();
            let (Some(subject), Some(length)) = (words.first(), words.last()) else {
                bail!("NATS says: {line}");
            };
            let length: usize = length.parse().with_context(|| format!("NATS says: {line}"))?;
            let reply = if words.len() == 4 { words[2] } else { "" };
            let (subject, reply) = ((*subject).to_owned(), reply.to_owned());
            let begin = end + 2;
            if self.read.len() < begin + length + 2 {
                return Ok(None);
            }
            let payload = self.read[begin..begin + length].to_vec();
            self.read.advance(begin + length + 2);
            return Ok(Some(Message { subject, reply, payload }));
        }
    }
}
