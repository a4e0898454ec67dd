//! The view: every known service with its providers, as an immutable snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{
    advert::Advert,
    id::{InstanceId, PeerId},
    service::ServiceName,
};
use semver::Version;

/// One provider of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The peer that runs it.
    pub peer: PeerId,
    /// Which run of which plugin.
    pub instance: InstanceId,
    /// sha2-256 of the service's descriptors.
    pub schema: [u8; 32],
    /// True where `peer` is this node.
    pub local: bool,
    /// True where the connection to the peer was lost and nothing was heard of it since: to be
    /// called last.
    pub suspect: bool,
    /// What the provider signed.
    pub advert: Arc<Advert>,
}

impl Entry {
    /// The plugin's name.
    pub fn plugin(&self) -> &str {
        &self.advert.plugin
    }

    /// The plugin's version.
    pub fn version(&self) -> &Version {
        &self.advert.version
    }

    /// Region, role, hardware and whatever else callers choose by.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.advert.labels
    }

    /// How the plugin is confined.
    pub fn isolation(&self) -> &str {
        &self.advert.isolation
    }

    /// How busy the provider is, 0 to 100.
    pub fn load(&self) -> u8 {
        self.advert.load
    }

    /// Millionths of the network's unit for one call, where it asks for any.
    pub fn price(&self) -> Option<u64> {
        self.advert.price
    }

    /// When the lease ends, in Unix milliseconds, as known when this snapshot was made. Renewals
    /// are shown with some delay and ended entries removed at once, so there is no need to compare
    /// this with a clock.
    pub fn expires(&self) -> u64 {
        self.advert.expires
    }
}

/// Who offers what, at one moment. Services are sorted by name, providers by peer and instance;
/// the same knowledge always gives the same directory. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    services: BTreeMap<ServiceName, Arc<[Entry]>>,
}

impl Directory {
    /// All providers of `service`, here and elsewhere; empty where none is known.
    pub fn providers(&self, service: &ServiceName) -> &[Entry] {
        self.services.get(service).map_or(&[], |entries| entries)
    }

    /// Every known service with its providers, none of them empty.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &[Entry])> {
        self.services.iter().map(|(name, entries)| (name, &**entries))
    }

    /// Every provider of everything.
    pub fn entries(&self) -> impl Iterator<Item = (&ServiceName, &Entry)> {
        self.services().flat_map(|(name, entries)| entries.iter().map(move |entry| (name, entry)))
    }

    /// Whether this node itself offers `service`.
    pub fn has_local(&self, service: &ServiceName) -> bool {
        self.local(service).next().is_some()
    }

    /// This node's own providers of `service`.
    pub fn local(&self, service: &ServiceName) -> impl Iterator<Item = &Entry> {
        self.providers(service).iter().filter(|entry| entry.local)
    }

    /// Other peers' providers of `service`.
    pub fn remote(&self, service: &ServiceName) -> impl Iterator<Item = &Entry> {
        self.providers(service).iter().filter(|entry| !entry.local)
    }

    /// What `peer` offers.
    pub fn of_peer(&self, peer: PeerId) -> BTreeSet<&ServiceName> {
        self.entries().filter(|(_, entry)| entry.peer == peer).map(|(name, _)| name).collect()
    }

    /// How many services are known.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// True where nothing is known.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// A directory of these entries, for those who test what reads one.
    pub fn of(entries: impl IntoIterator<Item = (ServiceName, Entry)>) -> Self {
        let mut services: BTreeMap<ServiceName, Vec<Entry>> = BTreeMap::new();
        for (name, entry) in entries {
            services.entry(name).or_default().push(entry);
        }
        let mut directory = Self::default();
        for (name, entries) in services {
            directory.replace(name, entries);
        }
        directory
    }

    /// Makes `entries` all that is known of `name`.
    pub(crate) fn replace(&mut self, name: ServiceName, mut entries: Vec<Entry>) {
        if entries.is_empty() {
            self.services.remove(&name);
            return;
        }
        entries.sort_by_key(|entry| (entry.peer, entry.instance, entry.advert.part));
        self.services.insert(name, entries.into());
    }
}
