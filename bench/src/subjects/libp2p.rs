//! libp2p as it is used without us: its request-response protocol, a stream for each request,
//! between two processes with nothing else on them. The same gives the speed of one raw stream.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt, StreamExt,
    future::LocalBoxFuture,
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    multiaddr::Protocol,
    noise,
    request_response::{
        Behaviour, Codec, Config, Event, Message, OutboundRequestId, ProtocolSupport,
    },
    swarm::SwarmEvent,
    tcp, yamux,
};
use std::{io, time::Duration};
use testnet::{cluster::World, process::Process};

use super::{Group, STARTED_WITHIN, Started, Subject, responder};
use crate::grpc::PAYLOAD;
use crate::load::{self, Demand, Pipe, Sample};

/// Over either transport.
pub const GROUP: Group = Group {
    names: &["libp2p-tcp", "libp2p-quic"],
    start: |world| start(world).boxed_local(),
    respond: Some(|address| respond(address).boxed_local()),
};

/// Where each listens.
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// More at once than are ever asked.
const STREAMS_MAX: usize = 1_024;

/// Longer than anything that is measured.
const PATIENCE: Duration = Duration::from_mins(10);

/// What is written at once of a long request.
const CHUNK: &[u8; 1024 * 1024] = &[7; 1024 * 1024];

async fn start(world: &World) -> Result<Started> {
    let mut subjects = Started::new();
    let ways = [
        (GROUP.names[0], TCP, "libp2p request-response over TCP, Noise and Yamux"),
        (GROUP.names[1], QUIC, "libp2p request-response over QUIC"),
    ];
    for (name, address, way) in ways {
        let asker = Asker::start(world, address).await?;
        subjects.push(Box::new(RequestResponse { name, way, asker }));
    }
    Ok(subjects)
}

struct RequestResponse {
    name: &'static str,
    way: &'static str,
    asker: Asker,
}

impl Subject for RequestResponse {
    fn name(&self) -> &'static str {
        self.name
    }

    fn way(&self) -> &'static str {
        self.way
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.asker.responder.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        load::pipelined(demand, &mut self.asker).boxed_local()
    }
}

/// One stream from another process, for as many bytes as are wanted.
pub struct RawStream(Asker);

impl RawStream {
    /// Over QUIC.
    pub async fn start(world: &World) -> Result<Self> {
        Ok(Self(Asker::start(world, QUIC).await?))
    }

    /// Sends so many bytes on one stream, and returns when all were read.
    pub async fn send(&mut self, bytes: u64) -> Result<()> {
        self.0.send(bytes, 0);
        let mut numbers = Vec::new();
        while numbers.is_empty() {
            self.0.answered(&mut numbers).await?;
        }
        Ok(())
    }
}

/// This side.
struct Asker {
    swarm: Swarm<Behaviour<Bytes>>,
    peer: PeerId,
    open: HashMap<OutboundRequestId, u64>,
    responder: Process,
}

impl Asker {
    async fn start(world: &World, address: &str) -> Result<Self> {
        let responder = responder(world, GROUP.names[0], address).await?;
        let told = |text: &str| text.parse::<Multiaddr>().ok().filter(|it| !it.is_empty());
        let found = responder.output().find(0, STARTED_WITHIN, |line| told(&line.text));
        let address = found.await?;
        let Some(Protocol::P2p(peer)) = address.iter().last() else { bail!("no peer id") };
        let mut swarm = swarm()?;
        swarm.dial(address)?;
        let mut asker = Self { swarm, peer, open: HashMap::new(), responder };
        let connected = async {
            loop {
                match asker.swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => return Ok(()),
                    SwarmEvent::OutgoingConnectionError { error, .. } => bail!("{error}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(STARTED_WITHIN, connected).await.context("no connection")??;
        Ok(asker)
    }

    fn send(&mut self, bytes: u64, number: u64) {
        let asked = Asked { bytes, first: *PAYLOAD };
        let id = self.swarm.behaviour_mut().send_request(&self.peer, asked);
        self.open.insert(id, number);
    }

    fn take(&mut self, event: SwarmEvent<Event<Asked, Asked>>) -> Result<Option<u64>> {
        match event {
            SwarmEvent::Behaviour(Event::Message {
                message: Message::Response { request_id, response },
                ..
            }) => {
                ensure!(response.first == *PAYLOAD, "an answer of another content");
                let number = self.open.remove(&request_id);
                Ok(Some(number.context("an answer to nobody")?))
            }
            SwarmEvent::Behaviour(Event::OutboundFailure { error, .. }) => bail!("{error}"),
            SwarmEvent::ConnectionClosed { cause, .. } => bail!("closed: {cause:?}"),
            _ => Ok(None),
        }
    }
}

impl Pipe for Asker {
    fn ask(&mut self, number: u64) {
        self.send(PAYLOAD.len() as u64, number);
    }

    async fn answered(&mut self, numbers: &mut Vec<u64>) -> Result<()> {
        let event = self.swarm.select_next_some().await;
        numbers.extend(self.take(event)?);
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            numbers.extend(self.take(event)?);
        }
        Ok(())
    }
}

/// Says where it listens, then answers.
async fn respond(address: String) -> Result<()> {
    let mut swarm = swarm()?;
    swarm.listen_on(address.parse()?)?;
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("{}/p2p/{}\nready", address, swarm.local_peer_id());
            }
            SwarmEvent::Behaviour(Event::Message {
                message: Message::Request { request, channel, .. },
                ..
            }) => {
                let answered = swarm.behaviour_mut().send_response(channel, request);
                ensure!(answered.is_ok(), "a request was given up");
            }
            _ => {}
        }
    }
}

fn swarm() -> Result<Swarm<Behaviour<Bytes>>> {
    let protocol = (StreamProtocol::new("/bench/echo/1"), ProtocolSupport::Full);
    let config =
        Config::default().with_request_timeout(PATIENCE).with_max_concurrent_streams(STREAMS_MAX);
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)?
        .with_quic()
        .with_behaviour(|_| Behaviour::with_codec(Bytes, [protocol], config))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    Ok(swarm)
}

/// How many bytes, and the first of them. The answer has the first only.
#[derive(Debug, Clone, Copy)]
struct Asked {
    bytes: u64,
    first: [u8; PAYLOAD.len()],
}

/// The number of bytes, then as many.
#[derive(Debug, Clone)]
struct Bytes;

async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Asked> {
    let (mut count, mut first) = ([0; 8], [0; PAYLOAD.len()]);
    io.read_exact(&mut count).await?;
    io.read_exact(&mut first).await?;
    let bytes = u64::from_le_bytes(count);
    let mut left = bytes.saturating_sub(first.len() as u64);
    let mut chunk = vec![0; left.min(CHUNK.len() as u64) as usize];
    while left > 0 {
        let room = left.min(chunk.len() as u64) as usize;
        let read = io.read(&mut chunk[..room]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= read as u64;
    }
    Ok(Asked { bytes, first })
}

async fn write<T: AsyncWrite + Unpin>(io: &mut T, asked: Asked) -> io::Result<()> {
    let mut head = [0; 8 + PAYLOAD.len()];
    head[..8].copy_from_slice(&asked.bytes.to_le_bytes());
    head[8..].copy_from_slice(&asked.first);
    io.write_all(&head).await?;
    let mut left = asked.bytes.saturating_sub(asked.first.len() as u64);
    while left > 0 {
        let chunk = &CHUNK[..left.min(CHUNK.len() as u64) as usize];
        io.write_all(chunk).await?;
        left -= chunk.len() as u64;
    }
    io.flush().await
}

impl Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Asked;
    type Response = Asked;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Asked>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Asked>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        asked: Asked,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, asked).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        asked: Asked,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let answer = Asked { bytes: asked.first.len() as u64, ..asked };
        write(io, answer).await
    }
}
