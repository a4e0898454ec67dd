//! One hop of the product's own frames: a link (`protocol/link`) over a Unix socket, and over one
//! stream of libp2p's QUIC, with this program at both ends and neither peer nor plugin between.

use std::{future::poll_fn, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, LocalBoxFuture, ready},
};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt},
        transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
    },
    identity::Keypair,
    quic,
};
use link::{Link, LinkSettings};
use protocol::{
    failure::Failure,
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply},
    service::MethodPath,
};
use testnet::{cluster::World, process::Process};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{Group, STARTED_WITHIN, Started, Subject, responder};
use crate::grpc::PAYLOAD;
use crate::load::{self, Demand, Sample};

/// Frames on one socket, and on one QUIC stream.
pub const GROUP: Group = Group {
    names: &["frames-unix", "frames-quic"],
    start: |world| start(world).boxed_local(),
    respond: Some(|address| respond(address).boxed_local()),
};

/// Where the second one listens; whatever else is told is a socket's path.
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

async fn start(world: &World) -> Result<Started> {
    Ok(vec![Box::new(on_unix(world).await?), Box::new(on_quic(world).await?)])
}

async fn on_unix(world: &World) -> Result<Frames> {
    let socket = world.path().join("frames.sock");
    let socket = socket.to_str().context("a path in UTF-8")?;
    let responder = responder(world, GROUP.names[0], socket).await?;
    let stream = UnixStream::connect(socket).await?;
    let way = "calls on a link over a Unix socket, one hop, neither peer nor plugin";
    Frames::new(GROUP.names[0], way, responder, stream, None)
}

async fn on_quic(world: &World) -> Result<Frames> {
    let responder = responder(world, GROUP.names[0], QUIC).await?;
    let told = |text: &str| text.parse::<Multiaddr>().ok().filter(|it| !it.is_empty());
    let found = responder.output().find(0, STARTED_WITHIN, |line| told(&line.text));
    let address = found.await?;
    let connecting = async {
        let mut transport = transport();
        let dial = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let mut connection = transport.dial(address, dial)?.await?.1;
        let stream = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await?;
        anyhow::Ok((stream.compat(), Connected { _connection: connection, _transport: transport }))
    };
    let (stream, connected) =
        timeout(STARTED_WITHIN, connecting).await.context("no connection")??;
    let way = "calls on a link over one stream of libp2p's QUIC, one hop, neither peer nor plugin";
    Frames::new(GROUP.names[1], way, responder, stream, Some(connected))
}

/// Answers the calls of its one link.
async fn respond(address: String) -> Result<()> {
    if address == QUIC {
        return respond_on_quic(QUIC.parse()?).await;
    }
    let listener = UnixListener::bind(address)?;
    println!("ready");
    let (stream, _) = listener.accept().await?;
    serve(stream).await;
    Ok(())
}

/// The same; says where it listens first.
async fn respond_on_quic(address: Multiaddr) -> Result<()> {
    let mut transport = transport();
    transport.listen_on(ListenerId::next(), address)?;
    let mut connection = loop {
        match transport.select_next_some().await {
            TransportEvent::NewAddress { listen_addr, .. } => println!("{listen_addr}\nready"),
            TransportEvent::Incoming { upgrade, .. } => break upgrade.await?.1,
            TransportEvent::ListenerClosed { reason, .. } => bail!("closed: {reason:?}"),
            _ => {}
        }
    };
    let stream = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await?;
    serve(stream.compat()).await;
    Ok(())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let end = link::serve(stream, LinkSettings::default(), Caller::Client, Arc::new(Echo)).await;
    println!("{end}");
}

/// The transport alone: a swarm, which opens streams, has no part in what goes over them.
fn transport() -> Boxed<(PeerId, StreamMuxerBox)> {
    let transport = quic::tokio::Transport::new(quic::Config::new(&Keypair::generate_ed25519()));
    transport.map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection))).boxed()
}

/// What a stream lives on.
struct Connected {
    _connection: StreamMuxerBox,
    _transport: Boxed<(PeerId, StreamMuxerBox)>,
}

/// Answers with the request's own body and a status.
struct Echo;

impl Invoke for Echo {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = call.body.with_trailers(ready(Some(Ok(trailers))));
        ready(Ok(Reply { metadata: call.head.metadata, body: Body::new(body) })).boxed()
    }
}

struct Frames {
    name: &'static str,
    way: &'static str,
    link: Link,
    path: MethodPath,
    responder: Process,
    /// Drives the link; ends with it.
    _drivers: JoinSet<()>,
    _connected: Option<Connected>,
}

impl Frames {
    fn new(
        name: &'static str,
        way: &'static str,
        responder: Process,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        connected: Option<Connected>,
    ) -> Result<Self> {
        let (link, driver) = link::client(stream, LinkSettings::default());
        let mut drivers = JoinSet::new();
        drivers.spawn(async move { drop(driver.await) });
        let path = "/demo.v1.Echo/Say".parse()?;
        Ok(Self { name, way, link, path, responder, _drivers: drivers, _connected: connected })
    }

    fn call(path: &MethodPath) -> Call {
        let mut metadata = HeaderMap::new();
        metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let head = CallHead {
            path: path.clone(),
            metadata,
            deadline: None,
            locality: Locality::Any,
            caller: Caller::Client,
        };
        let body = Full::new(Bytes::from_static(PAYLOAD)).map_err(|never| match never {});
        Call { head, body: Body::new(body) }
    }
}

impl Subject for Frames {
    fn name(&self) -> &'static str {
        self.name
    }

    fn way(&self) -> &'static str {
        self.way
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.responder.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        let asking = load::closed(demand, || {
            let (link, path) = (self.link.clone(), self.path.clone());
            async move || {
                let reply = link.invoke(Self::call(&path)).await?;
                let answer = reply.body.collect().await?.to_bytes();
                ensure!(answer == PAYLOAD.as_slice(), "an answer of another content");
                Ok(())
            }
        });
        asking.boxed_local()
    }
}
