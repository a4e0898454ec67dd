//! Several nodes of one network, and the directory they live in.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use crate::{
    node::{Node, NodeSetup},
    residue::{self, Residue},
    wait::until,
};

/// Set to keep every world's directory, also of those that went well.
pub const KEEP_VARIABLE: &str = "BH_KEEP";

/// How long a node may take to meet its network.
pub const JOIN_WITHIN: Duration = Duration::from_secs(30);

/// The directory of a world: removed with it, unless something went wrong in it.
pub struct World {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl World {
    /// A fresh directory. Its path is short, because sockets below it have room for 107 bytes.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bh-").tempdir().context("no directory")?;
        let path = dir.path().to_owned();
        Ok(Self { dir: Some(dir), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory behind when the world ends.
    pub fn keep(&mut self) {
        if let Some(dir) = self.dir.take() {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        residue::sweep(&self.path);
        if std::thread::panicking() || std::env::var_os(KEEP_VARIABLE).is_some() {
            self.keep();
        }
    }
}

/// A bootstrap node and peers that were told nothing but its address.
///
/// Dropping a cluster ends every process in it and removes its directory; when the thread is
/// panicking the directory stays, its path and the nodes' last lines are printed.
pub struct Cluster {
    // Fields are dropped in this order: nodes first, then the directory they live in.
    bootstrap: Option<Node>,
    peers: BTreeMap<String, Node>,
    network: String,
    world: World,
}

impl Cluster {
    /// The name of the bootstrap node.
    pub const BOOTSTRAP: &str = "boot";

    /// A bootstrap node alone.
    pub async fn empty() -> Result<Self> {
        let world = World::new()?;
        let network = network_of(&world);
        let setup = NodeSetup::bootstrap(world.path(), &network, Self::BOOTSTRAP);
        let bootstrap = Some(setup.start().await?);
        Ok(Self { bootstrap, peers: BTreeMap::new(), network, world })
    }

    /// A bootstrap node and peers with these names, all of them joined.
    pub async fn start(names: &[&str]) -> Result<Self> {
        let mut cluster = Self::empty().await?;
        let setups: Vec<NodeSetup> = names.iter().map(|name| cluster.setup(name)).collect();
        cluster.add_all(setups).await?;
        Ok(cluster)
    }

    /// How a further peer would be started: joined through the bootstrap node while there is one,
    /// else through any peer.
    pub fn setup(&self, name: &str) -> NodeSetup {
        let through = self.bootstrap.as_ref().or_else(|| self.peers.values().next());
        let addresses = through.map(|node| node.ready().listen.clone()).unwrap_or_default();
        NodeSetup::peer(self.world.path(), &self.network, name).through(addresses)
    }

    /// Starts peers side by side and waits until each has joined.
    pub async fn add_all(&mut self, setups: Vec<NodeSetup>) -> Result<()> {
        let started = try_join_all(setups.into_iter().map(NodeSetup::start)).await?;
        try_join_all(started.iter().map(|node| node.joined(JOIN_WITHIN))).await?;
        for node in started {
            self.peers.insert(node.name().to_owned(), node);
        }
        Ok(())
    }

    /// Starts one peer and waits until it has joined.
    pub async fn add(&mut self, setup: NodeSetup) -> Result<&Node> {
        let name = setup.name.clone();
        self.add_all(vec![setup]).await?;
        self.peer(&name)
    }

    /// Waits until every peer is connected to every other: then each can lose whom it joined
    /// through. Only for small clusters; large networks never are.
    pub async fn acquainted(&self, within: Duration) -> Result<()> {
        let others = self.nodes().count().saturating_sub(1);
        let each = self.peers().map(|node| async move {
            until(&format!("{} knows the others", node.name()), within, || async {
                let peers = node.status().await.map_err(|error| error.to_string())?.peers;
                let seen = format!("{peers} of {others} peers");
                if peers as usize >= others { Ok(()) } else { Err(seen) }
            })
            .await
        });
        try_join_all(each).await?;
        Ok(())
    }

    /// The bootstrap node.
    pub fn bootstrap(&self) -> Result<&Node> {
        self.bootstrap.as_ref().context("the bootstrap node is gone")
    }

    /// The peer `name`.
    pub fn peer(&self, name: &str) -> Result<&Node> {
        self.peers.get(name).with_context(|| format!("there is no peer {name}"))
    }

    /// The peer `name`, to start it again.
    pub fn peer_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.peers.get_mut(name).with_context(|| format!("there is no peer {name}"))
    }

    /// All peers, by name.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.peers.values()
    }

    /// All nodes, the bootstrap node first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.bootstrap.iter().chain(self.peers.values())
    }

    /// The network's name.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The directory everything lives in.
    pub fn dir(&self) -> &Path {
        self.world.path()
    }

    /// Kills the bootstrap node and forgets it.
    pub async fn kill_bootstrap(&mut self) -> Result<()> {
        self.bootstrap()?.kill().await?;
        self.bootstrap = None;
        Ok(())
    }

    /// Waits until every peer that runs knows exactly the named peers as providers of `service`.
    pub async fn all_see(&self, service: &str, names: &[&str], within: Duration) -> Result<()> {
        let ids: Result<Vec<&str>> =
            names.iter().map(|name| self.peer(name).map(Node::peer_id)).collect();
        let ids = ids?;
        let running = self.peers().filter(|node| node.process().ended().is_none());
        try_join_all(running.map(|node| node.sees(service, &ids, within))).await?;
        Ok(())
    }

    /// Stops every node that runs, cleanly, and tells what they left behind.
    pub async fn stop(&self) -> Result<Residue> {
        let running: Vec<&Node> =
            self.nodes().filter(|node| node.process().ended().is_none()).collect();
        let ends = try_join_all(running.iter().map(|node| node.stop())).await?;
        for (node, status) in running.iter().zip(ends) {
            ensure!(status.success(), "{} ended: {status}", node.process().evidence(40));
        }
        Ok(Residue::of(self.dir()))
    }

    /// The last `count` lines of every node.
    pub fn evidence(&self, count: usize) -> String {
        self.nodes().map(|node| node.process().evidence(count)).collect()
    }

    /// Leaves the directory behind when the cluster ends.
    pub fn keep(&mut self) {
        self.world.keep();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.evidence(30));
        }
    }
}

/// A network name that no other world uses, made from its directory's random part.
fn network_of(world: &World) -> String {
    let name = world.path().file_name().unwrap_or_default().to_string_lossy();
    let plain = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    format!("t-{}", plain.to_ascii_lowercase())
}
