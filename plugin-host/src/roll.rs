//! Who is ready: how those that depend on a plugin learn that it answers.

use std::collections::HashMap;

use parking_lot::Mutex;
use semver::Version;
use tokio::sync::watch;

/// What is known of one plugin's readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Presence {
    /// Instances that answer now.
    pub(crate) ready: u32,
    /// The version of those.
    pub(crate) version: Option<Version>,
}

/// The readiness of all plugins of a host, by name; of those not yet loaded, too, for somebody
/// may wait for them.
#[derive(Default)]
pub(crate) struct Roll {
    plugins: Mutex<HashMap<String, watch::Sender<Presence>>>,
}

impl Roll {
    /// One more instance of `name` answers.
    pub(crate) fn enter(&self, name: &str, version: &Version) {
        let mut plugins = self.plugins.lock();
        plugins.entry(name.into()).or_default().send_modify(|presence| {
            presence.ready += 1;
            presence.version = Some(version.clone());
        });
    }

    /// One instance of `name` answers no more.
    pub(crate) fn leave(&self, name: &str) {
        let mut plugins = self.plugins.lock();
        let Some(plugin) = plugins.get(name) else { return };
        plugin.send_modify(|presence| presence.ready = presence.ready.saturating_sub(1));
        // Names come and go; only those that somebody waits for or that answer are kept.
        if plugin.borrow().ready == 0 && plugin.receiver_count() == 0 {
            plugins.remove(name);
        }
    }

    /// What becomes of `name` from now on.
    pub(crate) fn watch(&self, name: &str) -> watch::Receiver<Presence> {
        self.plugins.lock().entry(name.into()).or_default().subscribe()
    }
}
