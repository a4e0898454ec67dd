//! The task: waits, lets the registry decide, performs.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use dht_registry::{
    Directory, Effect, Event, FetchId, LookupId, OfferRefused, Registry, Token, wire::Reply,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use protocol::{id::PeerId, limits::LOOKUP_MILLIS_MAX, service::ServiceName};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Command, LocalDescriptors, News, Setup, network::Network};
use crate::swarm::Verdict;

/// Publications and announcements that wait for the swarm. A node's adverts fit several times
/// over; one more is dropped, and said again at its next renewal.
const CHORES_MAX: usize = 4_096;

/// How long a peer may take to answer a registry request.
const FETCH_MAX: Duration = Duration::from_secs(5);

/// How long leaving may take: withdrawals go out as fast as the swarm takes them.
const LEAVING_MAX: Duration = Duration::from_secs(1);

/// Something for the swarm to do, in its turn.
enum Chore {
    Publish(Bytes),
    Provide([u8; 32]),
    StopProviding([u8; 32]),
    Penalise(PeerId),
}

/// What an event came with, for the effects that answer it.
struct Asker<T> {
    token: Option<T>,
    reply: Option<oneshot::Sender<Vec<u8>>>,
}

impl<T> Default for Asker<T> {
    fn default() -> Self {
        Self { token: None, reply: None }
    }
}

/// Answers to lookups of providers and to requests.
type Answers = FuturesUnordered<BoxFuture<'static, Event>>;

/// The task.
pub(super) struct Task<N: Network> {
    registry: Registry,
    network: N,
    descriptors: Arc<dyn LocalDescriptors>,
    directory: Arc<ArcSwap<Directory>>,
    changes: Arc<watch::Sender<u64>>,
    clock: fn() -> u64,
    commands: mpsc::Receiver<Command>,
    news: mpsc::Receiver<News<N::Token>>,
    lookups: HashMap<LookupId, oneshot::Sender<bool>>,
    lookup_next: u64,
    /// Bounded by the registry, which begins only so many.
    answers: Answers,
    chores: VecDeque<Chore>,
    /// The chore being done; true where it was a publication that nobody heard.
    chore: Option<BoxFuture<'static, bool>>,
}

/// What the task woke up for.
enum Action<T> {
    Command(Option<Command>),
    News(News<T>),
    Answer(Event),
    ChoreDone { unheard: bool },
    Tick,
}

impl<N: Network> Task<N> {
    pub(super) fn new(
        setup: Setup<N>,
        commands: mpsc::Receiver<Command>,
        news: mpsc::Receiver<News<N::Token>>,
        directory: Arc<ArcSwap<Directory>>,
    ) -> Self {
        Self {
            registry: Registry::new(setup.settings),
            network: setup.network,
            descriptors: setup.descriptors,
            directory,
            changes: setup.changes,
            clock: setup.clock,
            commands,
            news,
            lookups: HashMap::new(),
            lookup_next: 0,
            answers: FuturesUnordered::new(),
            chores: VecDeque::new(),
            chore: None,
        }
    }

    /// Runs until it is told to leave, or nobody is left to tell it.
    pub(super) async fn run(mut self) {
        loop {
            let asker = Asker::default();
            match self.select().await {
                Action::Command(None) => return,
                Action::Command(Some(Command::Leave(done))) => {
                    self.leave().await;
                    let _ = done.send(());
                    return;
                }
                Action::Command(Some(command)) => self.obey(command),
                Action::News(news) => self.hear(news),
                Action::Answer(event) => self.handle(event, asker),
                Action::ChoreDone { unheard } => self.chore_done(unheard),
                Action::Tick => self.handle(Event::Tick, asker),
            }
        }
    }

    /// Waits. Every arm only returns a value, so that dropping the others loses nothing.
    async fn select(&mut self) -> Action<N::Token> {
        self.begin_chore();
        let wait = self.registry.next_timer().map(|at| at.saturating_sub((self.clock)()));
        let timer = async {
            match wait {
                Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                None => pending().await,
            }
        };
        let chore = async {
            match &mut self.chore {
                Some(chore) => chore.await,
                None => pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => Action::Command(command),
            Some(news) = self.news.recv() => Action::News(news),
            Some(event) = self.answers.next() => Action::Answer(event),
            unheard = chore => Action::ChoreDone { unheard },
            () = timer => Action::Tick,
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Announce(offer, reply) => {
                let refused = self.act(Event::Offered(offer), Asker::default());
                let _ = reply.send(refused.map_or(Ok(()), Err));
            }
            Command::Withdraw(instance, done) => {
                self.handle(Event::Withdrawn(instance), Asker::default());
                let _ = done.send(());
            }
            Command::Load(load) => self.handle(Event::Load(load), Asker::default()),
            Command::Lookup(service, found) => {
                self.lookup_next += 1;
                let id = LookupId(self.lookup_next);
                self.lookups.insert(id, found);
                self.handle(Event::LookupRequested { id, service }, Asker::default());
            }
            // Taken by `run`.
            Command::Leave(_) => {}
        }
    }

    fn hear(&mut self, news: News<N::Token>) {
        // Effects that answer an event come back from the same `handle`: one token serves all.
        let token = Token(0);
        match news {
            News::Connected(peer) => self.handle(Event::PeerConnected(peer), Asker::default()),
            News::Disconnected { peer, abrupt } => {
                self.handle(Event::PeerDisconnected { peer, abrupt }, Asker::default());
            }
            News::Gossip { from, data, token: message } => {
                let asker = Asker { token: Some(message), reply: None };
                self.handle(Event::Gossip { from, data, token }, asker);
            }
            News::Requested { peer, data, reply } => {
                let asker = Asker { token: None, reply: Some(reply) };
                self.handle(Event::Requested { peer, data, token }, asker);
            }
        }
    }

    fn handle(&mut self, event: Event, asker: Asker<N::Token>) {
        if let Some(reason) = self.act(event, asker) {
            tracing::warn!(%reason, "an offer is not announced");
        }
    }

    /// Lets the registry decide and performs what it decided; gives back a refused offer's reason.
    fn act(&mut self, event: Event, mut asker: Asker<N::Token>) -> Option<OfferRefused> {
        let mut refused = None;
        for effect in self.registry.handle(event, (self.clock)()) {
            match effect {
                Effect::Publish(bytes) => self.queue(Chore::Publish(bytes)),
                Effect::Provide(key) => self.queue(Chore::Provide(key)),
                Effect::StopProviding(key) => self.queue(Chore::StopProviding(key)),
                Effect::Penalise(peer) => {
                    tracing::warn!(%peer, "a peer repeatedly sent what no honest peer sends");
                    self.queue(Chore::Penalise(peer));
                }
                Effect::FindProviders { service, key } => self.find(service, key),
                Effect::Fetch { id, peer, request } => self.fetch(id, peer, request),
                Effect::Verdict { verdict, .. } => {
                    if let Some(token) = asker.token.take() {
                        self.network.report(token, verdict_of(verdict));
                    }
                }
                Effect::Answer { reply, .. } => answer(&mut asker, reply),
                Effect::Describe { service, .. } => {
                    let described = self.descriptors.descriptors(&service);
                    answer(&mut asker, Reply::descriptors(described).encode());
                }
                Effect::DirectoryChanged => {
                    self.directory.store(self.registry.directory());
                    self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
                }
                Effect::LookupDone { id, found } => {
                    if let Some(waiting) = self.lookups.remove(&id) {
                        // Whoever gave up waiting has dropped the other end.
                        let _ = waiting.send(found);
                    }
                }
                Effect::OfferRefused { reason, .. } => refused = Some(reason),
            }
        }
        refused
    }

    fn find(&mut self, service: ServiceName, key: [u8; 32]) {
        let deadline = Instant::now() + Duration::from_millis(LOOKUP_MILLIS_MAX);
        let found = self.network.find_providers(key, deadline);
        let event = async { Event::ProvidersFound { service, peers: found.await } };
        self.answers.push(Box::pin(event));
    }

    fn fetch(&mut self, fetch: FetchId, peer: PeerId, request: Vec<u8>) {
        let reply = self.network.request(peer, request, Instant::now() + FETCH_MAX);
        let event = async move {
            let reply = reply.await;
            if let Err(failure) = &reply {
                tracing::debug!(%peer, %failure, "a peer was not asked for its adverts");
            }
            Event::Replied { fetch, reply: reply.ok() }
        };
        self.answers.push(Box::pin(event));
    }

    fn queue(&mut self, chore: Chore) {
        if self.chores.len() < CHORES_MAX {
            self.chores.push_back(chore);
        } else {
            tracing::debug!("the swarm is behind; an announcement waits for its renewal");
        }
    }

    fn begin_chore(&mut self) {
        if self.chore.is_some() {
            return;
        }
        let Some(chore) = self.chores.pop_front() else {
            return;
        };
        let network = self.network.clone();
        self.chore = Some(Box::pin(async move {
            match chore {
                Chore::Publish(bytes) => return !network.publish(bytes.into()).await,
                Chore::Provide(key) => network.provide(key).await,
                Chore::StopProviding(key) => network.stop_providing(key).await,
                Chore::Penalise(peer) => network.penalise(peer).await,
            }
            false
        }));
    }

    fn chore_done(&mut self, unheard: bool) {
        self.chore = None;
        if unheard {
            self.handle(Event::Unpublished, Asker::default());
        }
    }

    /// Withdraws everything and sees it out.
    async fn leave(&mut self) {
        self.handle(Event::Leaving, Asker::default());
        let all_out = async {
            loop {
                self.begin_chore();
                let Some(chore) = &mut self.chore else {
                    return;
                };
                chore.await;
                self.chore = None;
            }
        };
        if tokio::time::timeout(LEAVING_MAX, all_out).await.is_err() {
            tracing::debug!("not every withdrawal went out; the rest expires by itself");
        }
    }
}

fn answer<T>(asker: &mut Asker<T>, reply: Vec<u8>) {
    if let Some(waiting) = asker.reply.take() {
        // The peer may be gone by now.
        let _ = waiting.send(reply);
    }
}

fn verdict_of(verdict: dht_registry::Verdict) -> Verdict {
    match verdict {
        dht_registry::Verdict::Accept => Verdict::Accept,
        dht_registry::Verdict::Ignore => Verdict::Ignore,
        dht_registry::Verdict::Reject => Verdict::Reject,
    }
}
