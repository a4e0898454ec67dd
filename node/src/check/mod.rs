//! `bh-peer check`: does a plugin keep the contract of `docs/src/reference/plugin-contract.md`?
//!
//! The plugin runs in a private host of its own, in the jail that a node would give it, with no
//! mesh behind it. It is asked one thing after the other, by the rules of
//! `docs/src/reference/conformance.md`; each is kept, broken, or does not apply, and says so.
//!
//! - `ask`: calls to the plugin, and what they answer.
//! - `rules`: the rules; `last`: those on configuration and the end.
//! - `report`: what is shown.
//!
//! Refuses: to judge what a plugin means, and to touch a node that runs.

mod ask;
mod last;
mod report;
mod rules;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc};

use parking_lot::Mutex;
use plugin_host::{Command, Host, HostConfig, HostEvent, LoadRequest, MeshDoor, Source};
use protocol::ports::{Change, Entry, Store, StoreError};
use tokio::sync::watch;

use crate::{EXIT_USAGE, args::CheckArgs, complain};
use report::Report;

/// `bh-peer check`.
pub fn main(args: &CheckArgs) -> ExitCode {
    let source = match source(args) {
        Ok(source) => source,
        Err(reason) => {
            complain(args.json, &reason);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let checked = match runtime {
        Ok(runtime) => runtime.block_on(check(source, args)),
        Err(error) => Err(error.into()),
    };
    match checked {
        Ok(report) => {
            report.show(args.json);
            if report.is_kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            complain(args.json, &format!("the check could not be made: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn source(args: &CheckArgs) -> Result<Source, String> {
    if let Some(path) = &args.path {
        return Ok(Source::Path(path.clone()));
    }
    if args.exec.is_empty() {
        return Err("give a path, or a command line after --exec".into());
    }
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    Ok(Source::Exec(Command {
        argv: args.exec.clone(),
        listen: args.listen.clone().unwrap_or_else(|| "unix".into()),
        services: args.service.clone(),
        working_dir: std::env::current_dir().ok(),
        permissions: args.permission.clone(),
        read_paths: args.read.iter().map(absolute).collect::<Result<_, _>>()?,
    }))
}

async fn check(source: Source, args: &CheckArgs) -> anyhow::Result<Report> {
    let home = Home::new()?;
    let mut config = HostConfig::new(home.0.join("run"), home.0.join("data"));
    config.node_id = "check".into();
    if let Some(limit) = args.start_timeout {
        config.start_timeout = std::time::Duration::from_secs(limit);
    }
    let store = Arc::new(Memory::default());
    let (host, mut events) = Host::start(config.clone(), store, Arc::new(NoMesh)).await?;
    // What happens is read, so that no supervisor waits; the descriptors are kept.
    let (keeps, described) = watch::channel(None);
    let reading = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let HostEvent::Ready(ready) = event {
                keeps.send_replace(Some(ready.descriptors));
            }
        }
    });
    let request = LoadRequest { name: args.name.clone(), wait: true, ..LoadRequest::new(source) };
    let loaded = host.load(request).await;
    let report = rules::all(&host, &config, loaded, described).await;
    host.shutdown().await;
    drop(host);
    reading.abort();
    Ok(report)
}

/// A directory of its own, short enough for sockets; it goes with the check.
struct Home(PathBuf);

impl Home {
    fn new() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let name = format!("bh-check-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// There is no mesh: what the plugin calls waits in the backlog and fails at its own deadline.
struct NoMesh;

impl MeshDoor for NoMesh {
    fn open(
        &self,
        _: &str,
        _: Arc<plugin_host::permissions::Access>,
        listener: std::os::unix::net::UnixListener,
    ) -> Box<dyn Send> {
        Box::new(listener)
    }
}

/// Nothing outlives a check.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Store for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut entries = self.0.lock();
        for (key, value) in changes {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], entries_max: usize) -> Result<Vec<Entry>, StoreError> {
        let entries = self.0.lock();
        let found = entries.iter().filter(|(key, _)| key.starts_with(prefix)).take(entries_max);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
