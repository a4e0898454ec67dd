//! The product, met in frames: an SDK's client, a peer or two, a plugin made with the SDK.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::LocalBoxFuture};
use plugins::demo::{SayRequest, echo_client::EchoClient};
use sdk::LinkChannel;
use testnet::Cluster;

use super::mesh::{FAR, NEAR, Transport, two_peers};
use super::{Group, Started, Subject};
use crate::grpc::{PAYLOAD, PREFIX};
use crate::load::{self, Demand, Sample};

/// The plugin behind one peer, and behind two.
pub const GROUP: Group = Group {
    names: &["local-link", "remote-link"],
    start: |_| start().boxed_local(),
    respond: None,
};

async fn start() -> Result<Started> {
    let cluster = Rc::new(two_peers(Transport::Quic).await?);
    let ways = [
        (GROUP.names[0], "SDK client in frames, peer, SDK plugin", NEAR),
        (GROUP.names[1], "SDK client in frames, peer, peer (QUIC), SDK plugin", FAR),
    ];
    let mut subjects = Started::new();
    for (name, way, peer) in ways {
        subjects.push(Box::new(Linked::new(name, way, &cluster, peer).await?));
    }
    Ok(subjects)
}

/// An SDK's client at one of the peers.
pub struct Linked {
    name: &'static str,
    way: &'static str,
    client: EchoClient<LinkChannel>,
    cluster: Rc<Cluster>,
}

impl Linked {
    /// Asks `peer` of `cluster` once, to see that it answers.
    pub async fn new(
        name: &'static str,
        way: &'static str,
        cluster: &Rc<Cluster>,
        peer: &str,
    ) -> Result<Self> {
        let channel = LinkChannel::unix(&cluster.peer(peer)?.ready().mesh);
        let mut client = EchoClient::new(channel);
        ask(&mut client).await?;
        Ok(Self { name, way, client, cluster: Rc::clone(cluster) })
    }
}

impl Subject for Linked {
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
        let asking = load::closed(demand, || {
            let mut client = self.client.clone();
            async move || ask(&mut client).await
        });
        asking.boxed_local()
    }
}

async fn ask(client: &mut EchoClient<LinkChannel>) -> Result<()> {
    let text = String::from_utf8_lossy(PAYLOAD).into_owned();
    let reply = client.say(SayRequest { text }).await.context("a call")?.into_inner();
    let said = reply.text.as_bytes().strip_prefix(PREFIX.as_slice());
    ensure!(said == Some(PAYLOAD.as_slice()), "an answer of another content");
    Ok(())
}
