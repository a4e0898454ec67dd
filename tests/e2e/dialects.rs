//! The ways in which a program calls the mesh: HTTP/2 and frames, each with the same generated
//! code.

use plugins::demo::{SayRequest, echo_client::EchoClient, probe_client::ProbeClient};
use sdk::LinkChannel;
use testnet::{Cluster, Must, Node, client::Caller};
use tonic::{Status, body::Body, codegen::http};
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::support::timed;

type Way = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

/// A caller at a peer, by one dialect.
pub struct Via<'a> {
    /// The peer.
    pub peer: &'a Node,
    dialect: &'static str,
    way: Way,
}

impl<'a> Via<'a> {
    /// HTTP/2, to the peer's gRPC listener.
    fn http(peer: &'a Node) -> Self {
        let channel = Caller::of(&peer.ready().grpc).must().channel();
        let way = channel.map_err(|error| Status::from_error(Box::new(error)));
        Self { peer, dialect: "http2", way: BoxCloneSyncService::new(way) }
    }

    fn frames(peer: &'a Node, dialect: &'static str, channel: LinkChannel) -> Self {
        let way = channel.map_response(|answer| answer.map(Body::new));
        Self { peer, dialect, way: BoxCloneSyncService::new(way) }
    }

    /// The peer and the dialect.
    pub fn name(&self) -> String {
        format!("{}-{}", self.peer.name(), self.dialect)
    }
}

/// Callers beside the plugin and at another peer, in both dialects and by both sockets.
pub fn callers(cluster: &Cluster) -> Vec<Via<'_>> {
    let at = |name| {
        let peer: &Node = cluster.peer(name).must();
        let tcp = LinkChannel::tcp(&peer.ready().grpc);
        let unix = LinkChannel::unix(&peer.ready().mesh);
        [Via::http(peer), Via::frames(peer, "tcp", tcp), Via::frames(peer, "unix", unix)]
    };
    ["b", "a"].into_iter().flat_map(at).collect()
}

pub fn echo(via: &Via<'_>) -> EchoClient<Way> {
    EchoClient::new(via.way.clone())
}

pub fn probe(via: &Via<'_>) -> ProbeClient<Way> {
    ProbeClient::new(via.way.clone())
}

pub async fn say(via: &Via<'_>, text: &str) -> Result<String, Status> {
    let request = timed(SayRequest { text: text.to_owned() });
    Ok(echo(via).say(request).await?.into_inner().text)
}
