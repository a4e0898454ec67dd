//! A host that comes up: what was loaded before is started again, in the order of dependencies.

use std::sync::Arc;

use futures::StreamExt;

use super::{
    Host,
    begin::{Resolved, nodes},
    loaded::Loaded,
};
use crate::{
    lifecycle::State,
    order,
    source::Program,
    status::{Command, Source},
};

/// Manifests that are read at once: reading is short, and mostly waits for the disk.
const READERS: usize = 8;

impl Host {
    /// Begins to start all of `loaded`, and the node's own services. One that cannot be tried stays
    /// visible, with the reason; the others do not wait for it.
    pub(super) async fn recover(&self, mut loaded: Vec<(String, Loaded)>) {
        let services = &self.inner.config.built_in;
        // The configuration alone says whether and how these run.
        loaded.retain(|(name, _)| services.iter().all(|service| service.name != *name));
        for service in services {
            if let Some(request) = service.request.clone() {
                loaded.push((service.name.clone(), Loaded::of(request)));
            } else {
                let nothing = Source::Exec(Command::default());
                let nothing = Loaded::new(nothing, Some(service.name.clone()), None);
                self.inner.note(&service.name, nothing, State::Stopped, "disabled");
            }
        }
        let resolving = loaded.into_iter().map(|(name, loaded)| async move {
            let resolved = self.resolve(loaded.clone()).await;
            (name, loaded, resolved)
        });
        let mut found: Vec<Resolved> = Vec::new();
        let mut all = futures::stream::iter(resolving).buffered(READERS);
        while let Some((name, loaded, resolved)) = all.next().await {
            match resolved {
                Ok(resolved) => found.push(resolved),
                Err(error) => self.not_again(&name, loaded, &error.to_string()),
            }
        }
        let programs: Vec<Arc<Program>> =
            found.iter().map(|resolved| Arc::clone(&resolved.program)).collect();
        let plan = order::plan(&nodes(&programs));
        let mut found: Vec<Option<Resolved>> = found.into_iter().map(Some).collect();
        for (place, refusal) in plan.refused {
            if let Some(resolved) = found[place].take() {
                let name = resolved.name().to_owned();
                self.not_again(&name, resolved.loaded, &refusal.to_string());
            }
        }
        // Each waits by itself for those it needs, so all levels can be entered at once.
        for place in plan.levels.into_iter().flatten() {
            let Some(resolved) = found[place].take() else { continue };
            let name = resolved.name().to_owned();
            let loaded = resolved.loaded.clone();
            let keep = services.iter().all(|service| service.name != name);
            if let Err(error) = self.enter(resolved, true, keep) {
                self.not_again(&name, loaded, &error.to_string());
            }
        }
    }

    fn not_again(&self, name: &str, loaded: Loaded, reason: &str) {
        tracing::error!(plugin = %name, reason, "cannot load the plugin again");
        self.inner.note(name, loaded, State::Failed, reason);
    }
}
