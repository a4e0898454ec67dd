//! The product, met by gRPC programs: the plugin's own peer, and another peer.

use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result};
use futures::{FutureExt, future::LocalBoxFuture};
use testnet::{Cluster, Node, NodeSetup, packages};

use super::{Group, Started, Subject};
use crate::grpc::{Address, Load};
use crate::load::{Demand, Sample};

/// How long the second peer may take to learn of the first one's plugin.
const SEEN_WITHIN: Duration = Duration::from_secs(30);

/// The peers of [`two_peers`]: the plugin is on the near one.
pub const NEAR: &str = "near";
pub const FAR: &str = "far";

/// The plugin behind one peer, and behind two.
pub const GROUP: Group =
    Group { names: &["one-peer", "two-peers"], start: |_| start().boxed_local(), respond: None };

async fn start() -> Result<Started> {
    let cluster = Rc::new(two_peers(Transport::Quic).await?);
    let ways = [
        (GROUP.names[0], "gRPC client, peer, plugin", NEAR),
        (GROUP.names[1], "gRPC client, peer, peer (QUIC), plugin", FAR),
    ];
    let mut subjects = Started::new();
    for (name, way, peer) in ways {
        let load = Load::connect(&grpc_of(cluster.peer(peer)?)?).await?;
        subjects.push(Box::new(Peers { name, way, load, cluster: cluster.clone() }));
    }
    Ok(subjects)
}

/// What peers have between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Quic,
    Tcp,
}

impl Transport {
    fn address(self) -> &'static str {
        match self {
            Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
        }
    }
}

/// Two peers that found each other, and `echo` on the near one.
pub async fn two_peers(transport: Transport) -> Result<Cluster> {
    let mut cluster = Cluster::empty().await?;
    let setups = [NEAR, FAR].map(|name| {
        let listen = vec![transport.address().into()];
        NodeSetup { listen, ..cluster.setup(name) }
    });
    cluster.add_all(setups.into()).await?;
    let (near, far) = (cluster.peer(NEAR)?, cluster.peer(FAR)?);
    near.load(&packages::plugin("echo")?).await?;
    far.sees("demo.v1.Echo", &[near.peer_id()], SEEN_WITHIN).await?;
    Ok(cluster)
}

/// Where gRPC programs meet a peer.
pub fn grpc_of(node: &Node) -> Result<Address> {
    Ok(Address::Tcp(node.ready().grpc.parse().context("a peer's gRPC address")?))
}

struct Peers {
    name: &'static str,
    way: &'static str,
    load: Load,
    cluster: Rc<Cluster>,
}

impl Subject for Peers {
    fn name(&self) -> &'static str {
        self.name
    }

    fn way(&self) -> &'static str {
        self.way
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.peers().map(|node| node.process().pid()).collect()
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        self.load.run(demand).boxed_local()
    }
}
