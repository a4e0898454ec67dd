//! What this node itself offers, as far as others need to read it: one writer (the node's loop),
//! many readers.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use plugin_host::ReadyPlugin;
use protocol::{id::InstanceId, service::ServiceName};

/// The plugins that answer calls here, by run. Shared, so that a change costs one pointer for each.
type Plugins = BTreeMap<InstanceId, Arc<ReadyPlugin>>;

/// The plugins that answer calls here.
#[derive(Clone, Default)]
pub struct LocalPlugins(Arc<ArcSwap<Plugins>>);

impl LocalPlugins {
    /// All of them, as they are now.
    pub fn all(&self) -> Arc<Plugins> {
        self.0.load_full()
    }

    /// Adds a run. Only the node's loop calls it.
    pub fn insert(&self, plugin: ReadyPlugin) {
        let mut all = BTreeMap::clone(&self.0.load());
        all.insert(plugin.instance, Arc::new(plugin));
        self.0.store(Arc::new(all));
    }

    /// Removes a run. Only the node's loop calls it.
    pub fn remove(&self, instance: InstanceId) -> Option<Arc<ReadyPlugin>> {
        let mut all = BTreeMap::clone(&self.0.load());
        let removed = all.remove(&instance);
        self.0.store(Arc::new(all));
        removed
    }

    /// Whether a plugin here offers `service`.
    pub fn offers(&self, service: &ServiceName) -> bool {
        let all = self.0.load();
        all.values().any(|plugin| plugin.services.iter().any(|(name, _)| name == service))
    }

    /// The descriptors of a service that runs here; `None` where it does not, or gives none.
    pub fn descriptors_of(&self, service: &ServiceName) -> Option<Bytes> {
        let all = self.0.load();
        let mut offering =
            all.values().filter(|plugin| plugin.services.iter().any(|(name, _)| name == service));
        offering.find(|plugin| !plugin.descriptors.is_empty()).map(|it| it.descriptors.clone())
    }
}

impl peer::LocalDescriptors for LocalPlugins {
    fn descriptors(&self, service: &ServiceName) -> Option<Bytes> {
        self.descriptors_of(service)
    }
}
