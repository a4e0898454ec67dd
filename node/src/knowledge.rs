//! What this node knows of the mesh, brought together: its own plugins, the directory of adverts,
//! who is connected, and the interfaces of services, fetched once and kept.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, select_ok};
use parking_lot::Mutex;
use peer::Peer;
use protocol::{
    advert::ServiceOffer,
    failure::Failure,
    id::{InstanceId, PeerId},
    limits::LOOKUP_MILLIS_MAX,
    service::{MethodPath, ServiceName},
};
use router::{Candidate, Declaration, Standing, Table};
use semver::Version;

use crate::{declarations::Declarations, local::LocalPlugins};

/// Interfaces of others that are kept. One is a few KiB, at most
/// [`protocol::limits::DESCRIPTORS_BYTES_MAX`].
const INTERFACES_KEPT_MAX: usize = 256;

/// Providers that are asked for one interface at once.
const DESCRIBED_BY_MAX: usize = 3;

/// How long fetching an interface may take.
const DESCRIBE_MAX: Duration = Duration::from_secs(5);

/// Everything that routing, reflection and the operator ask about the mesh.
#[derive(Clone)]
pub struct Knowledge {
    inner: Arc<Inner>,
}

struct Inner {
    id: PeerId,
    labels: BTreeMap<String, String>,
    local: LocalPlugins,
    peer: Arc<Peer>,
    /// By provider and schema hash: a peer can only spoil what is asked of itself.
    interfaces: Mutex<HashMap<(PeerId, [u8; 32]), Bytes>>,
    declarations: Declarations,
}

/// One provider of one service, as the operator sees it.
#[derive(Debug, Clone)]
pub struct Offer {
    pub candidate: Candidate,
    pub connected: bool,
    pub transport: Option<String>,
    pub rtt: Option<Duration>,
    /// Unix time in milliseconds; `None` for local ones.
    pub expires: Option<u64>,
}

impl Knowledge {
    /// Of this node.
    pub fn new(peer: Arc<Peer>, local: LocalPlugins, labels: BTreeMap<String, String>) -> Self {
        let interfaces = Mutex::new(HashMap::new());
        let declarations = Declarations::default();
        let inner = Inner { id: peer.id(), labels, local, peer, interfaces, declarations };
        Self { inner: Arc::new(inner) }
    }

    /// The peer.
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// This node's plugins.
    pub fn local(&self) -> &LocalPlugins {
        &self.inner.local
    }

    /// Every service anyone is known to offer, with its providers, local ones first.
    pub fn offers(&self) -> BTreeMap<ServiceName, Vec<Offer>> {
        let mut offers: BTreeMap<ServiceName, Vec<Offer>> = BTreeMap::new();
        for plugin in self.inner.local.all().values() {
            for (service, _) in &plugin.services {
                offers.entry(service.clone()).or_default().push(self.local_offer(plugin));
            }
        }
        let view = self.inner.peer.view();
        let directory = self.inner.peer.directory();
        for (service, entries) in directory.services() {
            for entry in entries.iter().filter(|entry| !entry.local) {
                let neighbour = view.neighbour(entry.peer);
                let first = neighbour.and_then(|it| it.connections.first());
                offers.entry(service.clone()).or_default().push(Offer {
                    connected: neighbour.is_some(),
                    transport: first.map(|connection| connection.transport.to_string()),
                    rtt: neighbour.and_then(|it| it.rtt),
                    expires: Some(entry.expires()),
                    candidate: remote_candidate(entry),
                });
            }
        }
        offers
    }

    /// Whether anyone is known to offer `service`.
    pub fn is_offered(&self, service: &ServiceName) -> bool {
        self.inner.local.offers(service)
            || !self.inner.peer.directory().providers(service).is_empty()
    }

    /// The routing table of this moment.
    pub fn table(&self) -> Table {
        Table::new(self.offers().into_iter().flat_map(|(service, offers)| {
            offers.into_iter().map(move |offer| (service.clone(), offer.candidate))
        }))
    }

    fn local_offer(&self, plugin: &plugin_host::ReadyPlugin) -> Offer {
        let mut labels = self.inner.labels.clone();
        labels.extend(plugin.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        let candidate = Candidate {
            peer: self.inner.id,
            local: true,
            instance: plugin.instance,
            plugin: plugin.name.clone(),
            version: plugin.version.clone(),
            labels,
            load_percent: 0,
            standing: Standing::Healthy,
        };
        Offer {
            candidate,
            connected: true,
            transport: Some("local".into()),
            rtt: None,
            expires: None,
        }
    }

    /// What the registry announces for a run of a plugin.
    pub fn announcement(&self, plugin: &plugin_host::ReadyPlugin) -> dht_registry::Offer {
        let labels = self.local_offer(plugin).candidate.labels;
        dht_registry::Offer {
            instance: plugin.instance,
            plugin: plugin.name.clone(),
            // Adverts carry semantic versions; a command line has none.
            version: plugin.version.parse().unwrap_or(Version::new(0, 0, 0)),
            services: plugin
                .services
                .iter()
                .map(|(name, schema)| ServiceOffer { name: name.clone(), schema: *schema })
                .collect(),
            labels,
            isolation: plugin.isolation.clone(),
            price: None,
        }
    }

    /// Whether any instance of this run is announced.
    pub fn is_announced(&self, instance: InstanceId) -> bool {
        let directory = self.inner.peer.directory();
        directory.entries().any(|(_, entry)| entry.local && entry.instance == instance)
    }

    /// A service's interface (`FileDescriptorSet`) and the peer it came from; fetched from a
    /// provider where it is not here, looked up in the DHT where no provider is known.
    pub async fn describe(&self, service: ServiceName) -> Result<(PeerId, Bytes), Failure> {
        if let Some(bytes) = self.inner.local.descriptors_of(&service) {
            return Ok((self.inner.id, bytes));
        }
        let lookup_until = Instant::now() + Duration::from_millis(LOOKUP_MILLIS_MAX);
        if self.inner.peer.directory().providers(&service).is_empty() {
            self.inner.peer.lookup(service.clone(), lookup_until).await;
        }
        let directory = self.inner.peer.directory();
        if let Some(known) = self.kept(directory.remote(&service)) {
            return Ok(known);
        }
        // Several at once: one of them may just have died, and somebody waits.
        let view = self.inner.peer.view();
        let mut providers: Vec<_> = directory.remote(&service).collect();
        providers.sort_by_key(|entry| (entry.suspect, view.neighbour(entry.peer).is_none()));
        let asked = providers.into_iter().take(DESCRIBED_BY_MAX);
        let asked: Vec<_> = asked.map(|entry| self.fetch(entry, &service).boxed()).collect();
        if asked.is_empty() {
            return Err(Failure::not_available(&service));
        }
        select_ok(asked).await.map(|(described, _)| described)
    }

    async fn fetch(
        &self,
        entry: &dht_registry::Entry,
        service: &ServiceName,
    ) -> Result<(PeerId, Bytes), Failure> {
        let deadline = Instant::now() + DESCRIBE_MAX;
        let bytes = self.inner.peer.descriptors(entry.peer, service.clone(), deadline).await?;
        self.keep(entry.peer, entry.schema, bytes.clone());
        Ok((entry.peer, bytes))
    }

    /// What was fetched before of one of these.
    fn kept<'a>(
        &self,
        mut entries: impl Iterator<Item = &'a dht_registry::Entry>,
    ) -> Option<(PeerId, Bytes)> {
        let kept = self.inner.interfaces.lock();
        entries.find_map(|entry| Some((entry.peer, kept.get(&(entry.peer, entry.schema))?.clone())))
    }

    fn keep(&self, peer: PeerId, schema: [u8; 32], bytes: Bytes) {
        // Zeros stand for "no hash known": such an interface is fetched each time.
        if schema == [0; 32] {
            return;
        }
        let mut interfaces = self.inner.interfaces.lock();
        if interfaces.len() >= INTERFACES_KEPT_MAX {
            interfaces.clear();
        }
        interfaces.insert((peer, schema), bytes);
    }
}

impl router::Lookup for Knowledge {
    fn lookup(&self, service: ServiceName, deadline: Instant) -> BoxFuture<'static, bool> {
        let peer = Arc::clone(&self.inner.peer);
        Box::pin(async move { peer.lookup(service, deadline).await })
    }
}

impl router::Declared for Knowledge {
    fn of(&self, path: MethodPath, _: Instant) -> BoxFuture<'static, Declaration> {
        let known = self.clone();
        Box::pin(async move {
            let service = path.service();
            match known.describe(service.clone()).await {
                Ok((_, descriptors)) => {
                    known.inner.declarations.of(&service, path.method(), &descriptors)
                }
                Err(_) => Declaration::default(),
            }
        })
    }
}

fn remote_candidate(entry: &dht_registry::Entry) -> Candidate {
    Candidate {
        peer: entry.peer,
        local: false,
        instance: entry.instance,
        plugin: entry.plugin().into(),
        version: entry.version().to_string(),
        labels: entry.labels().clone(),
        load_percent: entry.load(),
        standing: if entry.suspect { Standing::Suspect } else { Standing::Healthy },
    }
}
