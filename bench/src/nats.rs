//! The peer that users run today: request and reply through a NATS server.
//!
//! A client of our own in its plain text protocol, one connection and one loop without a task for
//! each request: the least that any client can do, so that the server is measured at its best.

use std::{collections::HashMap, net::SocketAddr, time::Duration, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::grpc::{PAYLOAD, PREFIX};
use crate::load::Sample;

const SUBJECT: &str = "bench.echo";
const INBOX: &str = "_INBOX.bench.";
/// Longer than any line that the server sends to such a client, its greeting included.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// How long the server and the responder may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers every request with the payload behind the prefix, until the connection ends.
pub async fn respond(address: SocketAddr) -> Result<()> {
    let mut connection = Connection::open(address, &format!("SUB {SUBJECT} 1\r\n")).await?;
    println!("ready");
    loop {
        while let Some(message) = connection.next()? {
            let length = PREFIX.len() + message.payload.len();
            connection.publish(&message.reply, "", length, &[PREFIX, &message.payload]);
        }
        connection.exchange().await?;
    }
}

/// A connection that asks.
pub struct Load {
    connection: Connection,
    /// The number of the next request: no two have the same, so that no answer counts twice.
    next: u64,
}

impl Load {
    /// Connects, and waits until a request is answered.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let asking = async {
            let connection = Connection::open(address, &format!("SUB {INBOX}* 1\r\n")).await?;
            let mut load = Self { connection, next: 0 };
            load.run(1, Duration::ZERO).await?;
            anyhow::Ok(load)
        };
        tokio::time::timeout(PATIENCE, asking).await.context("NATS does not answer")?
    }

    /// Keeps `in_flight` requests going for `duration`: each is followed by the next at once.
    pub async fn run(&mut self, in_flight: usize, duration: Duration) -> Result<Sample> {
        let begun = Instant::now();
        let mut sample = Sample::default();
        let mut open = HashMap::with_capacity(in_flight);
        for _ in 0..in_flight {
            self.ask(&mut open);
        }
        while !open.is_empty() {
            self.connection.exchange().await?;
            while let Some(message) = self.connection.next()? {
                let answer = message.payload.strip_prefix(PREFIX.as_slice());
                ensure!(answer == Some(PAYLOAD.as_slice()), "an answer of another content");
                let number = message.subject.strip_prefix(INBOX).and_then(|n| n.parse().ok());
                let asked = number.and_then(|number: u64| open.remove(&number));
                sample.note(asked.context("an answer that nobody waits for")?);
                if begun.elapsed() < duration {
                    self.ask(&mut open);
                }
            }
        }
        sample.took = begun.elapsed();
        Ok(sample)
    }

    fn ask(&mut self, open: &mut HashMap<u64, Instant>) {
        let number = self.next;
        self.next += 1;
        open.insert(number, Instant::now());
        self.connection.publish(SUBJECT, &format!("{INBOX}{number}"), PAYLOAD.len(), &[PAYLOAD]);
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
    async fn open(address: SocketAddr, subscribe: &str) -> Result<Self> {
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
