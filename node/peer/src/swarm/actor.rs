//! The swarm's task: one owner, which waits for an action and then applies it.
//!
//! It waits for nothing but its own `select`. What takes long is begun here and ends as another
//! action: a swarm event, an answer that became ready, a tick.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, mdns,
    swarm::{ConnectionId, SwarmEvent as Libp2pEvent},
};
use protocol::id::NetworkName;
use tokio::{
    sync::{mpsc, watch},
    time::{Interval, timeout},
};

use super::{
    MessageToken, PeerView, SwarmEvent, Verdict, address,
    behaviour::{Behaviour, BehaviourEvent},
    book::Book,
    connections::Neighbour,
    dials::Dials,
    handle::Command,
    joining::Joining,
    lookups::Lookups,
    messages::{Answered, Exchanges},
    persist::{self, Batch},
    records::unix_millis,
    view::{Counters, NeighbourView},
};

/// How often the task looks after what nothing wakes it for.
pub(super) const TICK: Duration = Duration::from_millis(500);

/// How often the DHT is asked who is around although nothing has changed.
const LOOK_AROUND_EVERY: Duration = Duration::from_mins(1);

/// How often what has expired is dropped.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);

/// How long connections may take to close in an orderly way.
const CLOSING_MAX: Duration = Duration::from_millis(500);

/// How long what was said last has to leave.
const FAREWELL: Duration = Duration::from_millis(100);

/// The swarm's task.
pub(super) struct Actor {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) network: NetworkName,
    pub(super) kad_protocol: StreamProtocol,
    pub(super) neighbours_max: usize,
    pub(super) peers: HashMap<PeerId, Neighbour>,
    pub(super) book: Book,
    pub(super) joining: Joining,
    pub(super) dials: Dials,
    pub(super) lookups: Lookups,
    pub(super) exchanges: Exchanges,
    /// Peers that are not spoken to: until when, and why.
    pub(super) shunned: HashMap<PeerId, (Instant, String)>,
    /// Peers of other networks that are about to be disconnected, and when.
    pub(super) partings: VecDeque<(Instant, PeerId)>,
    /// Connections that this task closes because nobody answers on them.
    pub(super) silent: HashSet<ConnectionId>,
    pub(super) joined: bool,
    pub(super) look_around_at: Option<Instant>,
    pub(super) provide_at: Option<Instant>,
    pub(super) counters: Counters,
    /// Whether the view has to be published, and others told.
    pub(super) dirty: bool,
    /// Whether the view has to be published, which is no news to anybody.
    pub(super) stale: bool,
    pub(super) outbox: VecDeque<SwarmEvent>,
    pub(super) reach: Reach,
    pub(super) ends: Ends,
    pub(super) expire_at: Instant,
}

/// Where this peer can be reached, and how that is found out.
pub(super) struct Reach {
    /// Whether the listen addresses are taken as external: so it is while nothing but private
    /// addresses were met and the operator named none.
    pub(super) private: bool,
    /// Whether loopback addresses are of use to anybody else.
    pub(super) loopback: bool,
    /// Addresses that were taken as external because the network is private.
    pub(super) assumed: Vec<Multiaddr>,
    /// Relays that were asked for a place, with the listener that stands for it.
    pub(super) relays: Vec<(PeerId, libp2p::core::transport::ListenerId)>,
    /// When a relay may be asked: by then other peers' tests would have found an address.
    pub(super) relay_at: Instant,
}

/// The task's ends of its channels.
pub(super) struct Ends {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) verdicts: mpsc::Receiver<(MessageToken, Verdict)>,
    pub(super) events: mpsc::Sender<SwarmEvent>,
    pub(super) view: Arc<ArcSwap<PeerView>>,
    pub(super) changes: Arc<watch::Sender<u64>>,
    pub(super) writer: mpsc::Sender<Batch>,
}

/// What the task woke up for.
enum Action {
    Command(Option<Command>),
    Verdict(MessageToken, Verdict),
    Swarm(Box<Libp2pEvent<BehaviourEvent>>),
    Answered(Answered),
    Emitted,
    Tick,
}

impl Actor {
    /// Runs until it is told to end, or nobody is left to tell it.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match self.select(&mut tick).await {
                Action::Command(None | Some(Command::Shutdown)) => break,
                Action::Command(Some(command)) => self.obey(command),
                Action::Verdict(token, verdict) => self.judge(&token, verdict),
                Action::Swarm(event) => self.on_swarm(*event),
                Action::Answered(answered) => self.on_answered(answered),
                Action::Emitted => {}
                Action::Tick => self.on_tick(),
            }
            self.publish_view();
        }
        Box::pin(self.close()).await;
    }

    /// Waits. Every arm only returns a value, so that dropping the others loses nothing.
    async fn select(&mut self, tick: &mut Interval) -> Action {
        tokio::select! {
            command = self.ends.commands.recv() => Action::Command(command),
            Some((token, verdict)) = self.ends.verdicts.recv() => Action::Verdict(token, verdict),
            event = self.swarm.select_next_some() => Action::Swarm(Box::new(event)),
            answered = self.exchanges.next_answer() => Action::Answered(answered),
            Ok(place) = self.ends.events.reserve(), if !self.outbox.is_empty() => {
                if let Some(event) = self.outbox.pop_front() {
                    place.send(event);
                }
                Action::Emitted
            }
            _ = tick.tick() => Action::Tick,
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Provide(key) => self.provide(key),
            Command::StopProviding(key) => self.stop_providing(key),
            Command::FindProviders(key, found) => self.find(key, found),
            Command::Publish(data, reply) => {
                let _ = reply.send(self.publish(data));
            }
            Command::Connect(peer, reply) => self.connect(peer, Some(reply)),
            Command::Dial(address, reply) => self.dial_address(address, reply),
            Command::Request(peer, data, reply) => self.request(peer, data, reply),
            Command::Penalise(peer) => self.penalise(peer),
            // Taken by `run`.
            Command::Shutdown => {}
        }
    }

    /// Handles what the swarm says.
    pub(super) fn on_swarm(&mut self, event: Libp2pEvent<BehaviourEvent>) {
        match event {
            Libp2pEvent::Behaviour(event) => self.on_behaviour(event),
            Libp2pEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            Libp2pEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => self.on_closed(peer_id, connection_id, num_established, cause.as_ref()),
            Libp2pEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            Libp2pEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.counters.refused += 1;
                tracing::debug!(address = %send_back_addr, %error, "a connection was not accepted");
            }
            Libp2pEvent::Dialing { .. } => self.counters.dials += 1,
            Libp2pEvent::NewListenAddr { address, .. } => self.on_listening(address),
            Libp2pEvent::ExpiredListenAddr { address, .. } => self.on_deaf(&address),
            Libp2pEvent::ListenerClosed { listener_id, reason, .. } => {
                self.reach.relays.retain(|(_, listener)| *listener != listener_id);
                self.dirty = true;
                if let Err(error) = reason {
                    tracing::warn!(%error, "this peer no longer listens on one of its addresses");
                }
            }
            Libp2pEvent::ListenerError { error, .. } => tracing::debug!(%error, "listener"),
            Libp2pEvent::ExternalAddrConfirmed { .. } | Libp2pEvent::ExternalAddrExpired { .. } => {
                self.dirty = true;
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(&event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Registry(event) => self.on_registry(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.book.hear(peer, &[address::without_peer(address)], unix_millis());
                }
                self.meet_heard();
            }
            BehaviourEvent::Dcutr(event) => {
                tracing::debug!(peer = %event.remote_peer_id, result = ?event.result, "hole punch");
            }
            BehaviourEvent::RelayClient(event) => tracing::debug!(?event, "relay"),
            BehaviourEvent::Reachability(event) => {
                tracing::debug!(address = %event.tested_addr, result = ?event.result, "reachable?");
            }
            _ => {}
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.forgive(now);
        self.part(now);
        self.knock();
        self.meet_heard();
        if self.look_around_at.is_some_and(|at| at <= now) {
            self.look_around_at = Some(now + LOOK_AROUND_EVERY);
            if !self.peers.is_empty() {
                self.look_around();
            }
        }
        if self.provide_at.take_if(|at| *at <= now).is_some() {
            self.provide_all();
        }
        self.drop_abandoned();
        self.seek_relay(now);
        if self.expire_at <= now {
            self.expire_at = now + EXPIRE_EVERY;
            self.expire();
        }
        self.write_behind();
    }

    /// Says that a bootstrap address did not answer, if it is worth saying.
    pub(super) fn knock_failed(&mut self, connection: ConnectionId, error: &str) {
        let now = Instant::now();
        let said = self.joining.failed(connection, self.joined, now, rand::random());
        if let Some(super::joining::Unreachable { address, retry_in }) = said {
            let error = error.to_owned();
            self.emit(SwarmEvent::BootstrapUnreachable { address, error, retry_in });
        }
    }

    /// Passes an event on as soon as there is room for it.
    pub(super) fn emit(&mut self, event: SwarmEvent) {
        self.outbox.push_back(event);
    }

    fn expire(&mut self) {
        let now = unix_millis();
        let peers = &self.peers;
        for peer in self.book.expire(now, |peer| peers.contains_key(peer)) {
            self.unlist(&peer);
        }
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.store_mut().expire(now);
        }
        self.stale = true;
    }

    /// Hands what changed to the writer, if it has room; else it waits and is merged.
    fn write_behind(&mut self) {
        if self.ends.writer.capacity() == 0 {
            return;
        }
        let batch = self.take_unwritten();
        if !batch.is_empty() && self.ends.writer.try_send(batch).is_err() {
            tracing::warn!("what the network told is no longer kept: the writer has ended");
        }
    }

    fn take_unwritten(&mut self) -> Batch {
        let book = self.book.take_unwritten();
        let mut batch: Batch =
            book.into_iter().map(|(peer, known)| persist::book_change(peer, known)).collect();
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            let records = kad.store_mut().take_unwritten();
            batch.extend(records.into_iter().map(|(id, r)| persist::record_change(id, r)));
        }
        batch
    }

    pub(super) fn publish_view(&mut self) {
        if !self.dirty && !self.stale {
            return;
        }
        let admitted = self.peers.iter().filter(|(_, neighbour)| neighbour.admitted);
        let mut peers: Vec<_> = admitted
            .map(|(peer, neighbour)| NeighbourView {
                id: (*peer).into(),
                agent: neighbour.agent.clone(),
                rtt: neighbour.rtt,
                connections: neighbour.connections.iter().map(|(_, view)| view.clone()).collect(),
            })
            .collect();
        peers.sort_by_key(|neighbour| neighbour.id);
        self.ends.view.store(Arc::new(PeerView {
            id: (*self.swarm.local_peer_id()).into(),
            listen: self.swarm.listeners().cloned().collect(),
            external: self.swarm.external_addresses().cloned().collect(),
            peers,
            joined: self.joined,
            known: self.book.len(),
            counters: self.counters,
        }));
        if self.dirty {
            self.ends.changes.send_modify(|version| *version += 1);
        }
        (self.dirty, self.stale) = (false, false);
    }

    /// Closes every connection, and writes what is unwritten.
    async fn close(mut self) {
        // What was said last, withdrawals above all, is on its way to connections still.
        let sending = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        let _: Result<(), _> = timeout(FAREWELL, sending).await;
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        let _ = timeout(CLOSING_MAX, all_closed).await;
        let batch = self.take_unwritten();
        if !batch.is_empty() {
            // The writer ends when it has written this: its channel closes with this task.
            let _ = self.ends.writer.send(batch).await;
        }
    }
}
