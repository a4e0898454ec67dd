//! What is remembered of loaded plugins, so that the next host loads them again.

use std::sync::Arc;

use protocol::{
    manifest::Resources,
    ports::{Store, StoreError},
};
use serde::{Deserialize, Serialize};

use crate::{
    level::Code,
    status::{LoadRequest, Overrides, Source},
};

/// Where the store keeps what is loaded, by name.
const LOADED: &str = "plugin-host/loaded/";

/// What is remembered of a loaded plugin. Version 1; fields may be added with defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Loaded {
    v: u32,
    pub(super) source: Source,
    pub(super) name: Option<String>,
    /// What was asked for when it was loaded or scaled; `None` leaves it to the manifest.
    #[serde(default)]
    pub(super) instances: Option<u32>,
    /// What the operator gave it instead of what its manifest asks for.
    #[serde(default)]
    pub(super) limits: Resources,
    /// The operator's word; not remembered, for its place is the configuration.
    #[serde(skip)]
    pub(super) overrides: Overrides,
    /// The node's own code; whoever loads it again brings it again.
    #[serde(skip)]
    pub(super) code: Option<Code>,
}

impl Loaded {
    pub(super) fn new(source: Source, name: Option<String>, instances: Option<u32>) -> Self {
        Self {
            v: 1,
            source,
            name,
            instances,
            limits: Resources::default(),
            overrides: Overrides::default(),
            code: None,
        }
    }

    /// What is asked for.
    pub(super) fn of(request: LoadRequest) -> Self {
        let LoadRequest { source, name, instances, overrides, code, .. } = request;
        Self { overrides, code, ..Self::new(source, name, instances) }
    }

    /// Writes it down under `name`. On disk when this returns.
    pub(super) async fn remember(
        &self,
        store: &Arc<dyn Store>,
        name: &str,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| StoreError { action: "write", cause: error.to_string() })?;
        write(store, name, Some(bytes)).await
    }
}

/// `name` is not to be loaded again.
pub(super) async fn forget(store: &Arc<dyn Store>, name: &str) -> Result<(), StoreError> {
    write(store, name, None).await
}

async fn write(
    store: &Arc<dyn Store>,
    name: &str,
    value: Option<Vec<u8>>,
) -> Result<(), StoreError> {
    let store = Arc::clone(store);
    let key = format!("{LOADED}{name}").into_bytes();
    let written = tokio::task::spawn_blocking(move || store.write(vec![(key, value)]));
    written
        .await
        .unwrap_or_else(|error| Err(StoreError { action: "write", cause: error.to_string() }))
}

/// All that is remembered, at most `entries_max`, by name. What cannot be understood is said and
/// left alone.
pub(super) async fn all(
    store: Arc<dyn Store>,
    entries_max: usize,
) -> Result<Vec<(String, Loaded)>, StoreError> {
    let scanned =
        tokio::task::spawn_blocking(move || store.scan(LOADED.as_bytes(), entries_max)).await;
    let entries = scanned
        .unwrap_or_else(|error| Err(StoreError { action: "read", cause: error.to_string() }))?;
    let mut loaded = Vec::new();
    for (key, value) in entries {
        let name = String::from_utf8_lossy(&key).trim_start_matches(LOADED).to_owned();
        match serde_json::from_slice::<Loaded>(&value) {
            Ok(found) if found.v == 1 => loaded.push((name, found)),
            _ => tracing::error!(plugin = %name, "what was loaded is written in an unknown way"),
        }
    }
    Ok(loaded)
}
