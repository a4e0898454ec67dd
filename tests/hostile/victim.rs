//! The node under attack, its doors, and the proof that it is well.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use plugins::demo::{AddRequest, counter_client::CounterClient};
use testnet::{
    Must, Node, NodeSetup,
    client::{Caller, get},
    cluster::World,
    packages,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// How much a node may grow under one attack: its connection and message bounds leave less.
const GROWTH_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Within this an honest caller is answered while others misbehave.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A node with a counter.
pub struct Victim {
    // Dropped in this order: the node first, then its directory.
    pub node: Node,
    resident: u64,
    _world: World,
}

/// A way in.
#[derive(Debug, Clone)]
pub enum Door {
    /// A TCP port.
    Tcp(&'static str, String),
    /// A Unix socket.
    Unix(&'static str, PathBuf),
}

/// What comes out of a door.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Door {
    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp(name, _) | Self::Unix(name, _) => name,
        }
    }

    /// Goes through it.
    pub async fn open(&self) -> std::io::Result<Box<dyn Wire>> {
        Ok(match self {
            Self::Tcp(_, address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(_, path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl Victim {
    /// A fresh node with a counter that answers.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// The same with a configuration file.
    pub async fn with(config: &str) -> Self {
        let world = World::new().must();
        let file = world.path().join("blackhole.yaml");
        fs::write(&file, config).must();
        let setup = NodeSetup::peer(world.path(), "t-victim", "v");
        let setup = setup.with(["--config", file.to_str().expect("UTF-8")]);
        let node = setup.start().await.must();
        node.load(&packages::plugin("counter").must()).await.must();
        let mut victim = Self { node, resident: 0, _world: world };
        victim.answers().await;
        victim.resident = victim.resident_bytes();
        victim
    }

    /// Every way in but QUIC.
    pub fn doors(&self) -> Vec<Door> {
        let ready = self.node.ready();
        let mesh = self.node.address("tcp").must();
        let port = mesh.split('/').nth(4).expect("/ip4/A/tcp/PORT");
        vec![
            Door::Tcp("mesh", format!("127.0.0.1:{port}")),
            Door::Tcp("grpc", ready.grpc.clone()),
            Door::Tcp("http", ready.http.clone()),
            Door::Tcp("metrics", ready.metrics.clone()),
            Door::Unix("admin socket", ready.admin.clone()),
            Door::Unix("mesh socket", ready.mesh.clone()),
        ]
    }

    /// The UDP port of QUIC.
    pub fn quic(&self) -> String {
        let address = self.node.address("quic-v1").must();
        format!("127.0.0.1:{}", address.split('/').nth(4).expect("/ip4/A/udp/PORT"))
    }

    /// An honest call is answered in time.
    pub async fn answers(&self) {
        let channel = Caller::of(&self.node.ready().grpc).must().channel();
        let mut request = tonic::Request::new(AddRequest { name: "calm".into(), amount: 1 });
        request.set_timeout(ANSWERED_WITHIN);
        let start = Instant::now();
        CounterClient::new(channel).add(request).await.must();
        assert!(start.elapsed() < ANSWERED_WITHIN, "{:?}", start.elapsed());
    }

    /// It runs, says nothing of a panic, answers at every door, and has not grown beyond bounds.
    pub async fn is_well(&self, after: &str) {
        self.is_well_but_for(after, "").await;
    }

    /// The same while plugins whose names begin with `culprit` are ill or given up: the node's
    /// health may say so, and must name nobody else.
    pub async fn is_well_but_for(&self, after: &str, culprit: &str) {
        let process = self.node.process();
        assert!(process.ended().is_none(), "after {after}: {}", process.evidence(40));
        let text = process.output().text();
        assert!(!text.contains("panicked"), "after {after}: {text}");
        self.answers().await;
        let (code, health) = get(&self.node.ready().http, "/health").await.must();
        let ill = health.split_once("not healthy: ").and_then(|(_, rest)| rest.split('"').next());
        let others = ill.unwrap_or_default().split(", ").find(|name| !name.starts_with(culprit));
        let excused = !culprit.is_empty() && ill.is_some() && others.is_none();
        assert!(code == 200 || excused, "after {after}: {code}: {health}");
        assert_eq!(get(&self.node.ready().metrics, "/metrics").await.must().0, 200);
        self.node.status().await.must();
        assert_eq!(self.node.plugin("counter").await.must().crashes, 0, "after {after}");
        let grown = self.resident_bytes().saturating_sub(self.resident);
        assert!(grown < GROWTH_BYTES_MAX, "after {after}: grown by {} MiB", grown >> 20);
    }

    fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.process().pid()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}
