//! Discovery: carries out on the real network what the registry decides.
//!
//! One task owns the registry. It waits for commands, for what the swarm reports, for answers and
//! for time; hands each to [`dht_registry::Registry::handle`]; and performs the effects. Readers
//! never ask it: they read the latest [`Directory`] from a snapshot. Requests to peers and the DHT
//! run inside the task's own `select`, so nothing outlives it. Refuses to decide anything about
//! trust, leases or lookups: that is the registry's.

mod network;
mod task;

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use dht_registry::{
    Directory, Offer, OfferRefused,
    keyspace::{SHARD, provider_key},
    wire::{Reply, Request},
};
use protocol::{
    failure::{Failure, Reason},
    id::{InstanceId, NetworkName, PeerId},
    service::ServiceName,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout_at,
};

use crate::swarm::{MessageToken, SwarmEvent, SwarmHandle};
use network::Network;
use task::Task;

/// Commands that wait for the task: each is one announcement or one caller's lookup. Beyond it
/// callers wait, until their deadlines.
const COMMANDS_MAX: usize = 256;

/// Network events that wait for the task. When it is full the swarm keeps them, and sheds gossip
/// first.
const NEWS_MAX: usize = 256;

/// What this node's services look like, for peers that ask.
pub trait LocalDescriptors: Send + Sync {
    /// A `google.protobuf.FileDescriptorSet` that describes `service`; `None` where it is not
    /// here. Called from the discovery task: must not block.
    fn descriptors(&self, service: &ServiceName) -> Option<Bytes>;
}

/// Something the network reports to discovery.
pub(crate) enum News<T> {
    Connected(PeerId),
    Disconnected { peer: PeerId, abrupt: bool },
    Gossip { from: PeerId, data: Vec<u8>, token: T },
    Requested { peer: PeerId, data: Vec<u8>, reply: oneshot::Sender<Vec<u8>> },
}

impl News<MessageToken> {
    /// The part of what the swarm reports that concerns discovery; the rest is given back.
    #[expect(clippy::result_large_err, reason = "the other half of a division, not an error")]
    pub(crate) fn of(event: SwarmEvent) -> Result<Self, SwarmEvent> {
        match event {
            SwarmEvent::PeerConnected(peer) => Ok(Self::Connected(peer)),
            SwarmEvent::PeerDisconnected { peer, abrupt } => {
                Ok(Self::Disconnected { peer, abrupt })
            }
            SwarmEvent::Gossip { from, data, token } => Ok(Self::Gossip { from, data, token }),
            SwarmEvent::Request { peer, data, reply } => Ok(Self::Requested { peer, data, reply }),
            other => Err(other),
        }
    }
}

enum Command {
    Announce(Offer, oneshot::Sender<Result<(), OfferRefused>>),
    Withdraw(InstanceId, oneshot::Sender<()>),
    Load(u8),
    Lookup(ServiceName, oneshot::Sender<bool>),
    Leave(oneshot::Sender<()>),
}

/// What discovery is made from.
pub(crate) struct Setup<N = SwarmHandle> {
    pub(crate) settings: dht_registry::Settings,
    pub(crate) network: N,
    pub(crate) descriptors: Arc<dyn LocalDescriptors>,
    /// Bumped whenever the directory has changed.
    pub(crate) changes: Arc<watch::Sender<u64>>,
    /// Milliseconds since the Unix epoch.
    pub(crate) clock: fn() -> u64,
}

/// Speaks to the discovery task. Clones are cheap and speak to the same task.
pub(crate) struct Discovery<N: Network = SwarmHandle> {
    commands: mpsc::Sender<Command>,
    news: mpsc::Sender<News<N::Token>>,
    directory: Arc<ArcSwap<Directory>>,
    network: N,
    name: NetworkName,
}

impl<N: Network> Clone for Discovery<N> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            news: self.news.clone(),
            directory: Arc::clone(&self.directory),
            network: self.network.clone(),
            name: self.name.clone(),
        }
    }
}

impl<N: Network> Discovery<N> {
    /// Discovery, and its task for the caller to run. The task ends after [`Discovery::leave`],
    /// or when nobody is left to speak to it.
    pub(crate) fn new(setup: Setup<N>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let (news, news_in) = mpsc::channel(NEWS_MAX);
        let directory = Arc::new(ArcSwap::default());
        let discovery = Self {
            commands,
            news,
            directory: Arc::clone(&directory),
            network: setup.network.clone(),
            name: setup.settings.network.clone(),
        };
        let task = Task::new(setup, commands_in, news_in, directory);
        (discovery, task.run())
    }

    /// Who offers what, as known now.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    /// Tells what happened in the network. Waits while the task is behind.
    pub(crate) async fn tell(&self, news: News<N::Token>) {
        // An error means that the task has ended, and nobody wants news.
        let _ = self.news.send(news).await;
    }

    /// Offers `offer` to the mesh until it is withdrawn. The directory has it when this returns;
    /// other peers follow.
    pub(crate) async fn announce(&self, offer: Offer) -> Result<(), OfferRefused> {
        self.ask(|reply| Command::Announce(offer, reply)).await.unwrap_or(Ok(()))
    }

    /// Offers an instance no longer.
    pub(crate) async fn withdraw(&self, instance: InstanceId) {
        self.ask(|reply| Command::Withdraw(instance, reply)).await;
    }

    /// Says how busy this node is, 0 to 100. When many commands wait it is not said.
    pub(crate) fn set_load(&self, load: u8) {
        let _ = self.commands.try_send(Command::Load(load));
    }

    /// Looks `service` up in the DHT unless it is known. True when the directory has it.
    pub(crate) async fn lookup(&self, service: ServiceName, deadline: Instant) -> bool {
        let asked = self.ask(|reply| Command::Lookup(service, reply));
        timeout_at(deadline.into(), asked).await.ok().flatten().unwrap_or(false)
    }

    /// Who the DHT says provides `service`, whatever is known here.
    pub(crate) async fn query_dht(&self, service: &ServiceName, deadline: Instant) -> Vec<PeerId> {
        let key = provider_key(&self.name, service, SHARD);
        self.network.find_providers(key, deadline).await
    }

    /// What `service` looks like, asked of a peer that offers it.
    pub(crate) async fn descriptors(
        &self,
        peer: PeerId,
        service: ServiceName,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        let missing = format!("the peer has no description of {service}");
        let request = Request::GetDescriptors { service };
        let reply = self.network.request(peer, request.encode(), deadline).await?;
        let failure = match Reply::decode(&reply) {
            Ok(Reply::Descriptors { bytes: Some(bytes) }) => {
                return Ok(Bytes::from(bytes.into_vec()));
            }
            Ok(Reply::Descriptors { bytes: None }) => {
                Failure::not_started(Reason::NotAvailable, missing)
            }
            Ok(Reply::Busy) => Failure::not_started(
                Reason::Busy,
                "the peer answers no more registry requests for now; try again in a second",
            ),
            Ok(Reply::Adverts { .. } | Reply::NotUnderstood) => Failure::failed(
                Reason::Malformed,
                "the peer does not understand the request; it may run another version",
            ),
            Err(error) => Failure::failed(Reason::Malformed, error.to_string()),
        };
        Err(failure.at(peer))
    }

    /// Withdraws every offer and ends the task.
    pub(crate) async fn leave(&self) {
        self.ask(Command::Leave).await;
    }

    async fn ask<R>(&self, command: impl FnOnce(oneshot::Sender<R>) -> Command) -> Option<R> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests;
