//! A peer to measure on: started with a configuration of its own, asked over one connection to its
//! admin socket, called over one to its gRPC port.

use std::{collections::BTreeSet, path::Path, time::Duration, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use protocol::proto::admin::{
    self, LogLine, Plugin, PluginListRequest, PluginLoadRequest, PluginLogsRequest,
    PluginUnloadRequest, admin_client::AdminClient, plugin_load_request::From,
};
use testnet::{Node, NodeSetup, cluster::World};
use tonic::transport::Channel;

use super::proc::Family;
use crate::grpc::{Address, Call, Connection};

/// How long any one step may take before measuring is given up.
const STEP_WITHIN: Duration = Duration::from_mins(2);

/// How long between two looks at what a peer tells. Each costs the peer a little.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A network that nobody else is in.
const NETWORK: &str = "bench";

/// A running peer.
pub struct Stand {
    // Fields are dropped in this order: connections, the node, and the directory it lives in.
    admin: AdminClient<Channel>,
    calls: Connection,
    pub node: Node,
    pub world: World,
}

/// What the host noted of one start, in milliseconds since it began: before anything was spawned.
#[allow(clippy::struct_field_names, reason = "the names of the log's fields")]
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub struct Steps {
    /// The jail stood and the program was executed.
    pub executed_ms: f64,
    /// The program had answered its first call, the host's question for its health.
    pub answered_ms: f64,
    /// Its interface was read, and callers may come.
    pub ready_ms: f64,
}

impl Stand {
    /// Starts a peer with these lines as its configuration.
    pub async fn start(configuration: &str) -> Result<Self> {
        let world = World::new()?;
        let path = world.path().join("blackhole.yaml");
        std::fs::write(&path, configuration).context("cannot write the configuration")?;
        let path = path.to_str().context("a path in UTF-8")?.to_owned();
        let setup = NodeSetup::peer(world.path(), NETWORK, "bench");
        let node = setup.with(["--log-level", "warn", "--config", &path]).start().await?;
        Self::of(node, world).await
    }

    async fn of(node: Node, world: World) -> Result<Self> {
        let address = node.ready().grpc.parse().context("a peer's gRPC address")?;
        let calls = Connection::open(&Address::Tcp(address)).await?;
        Ok(Self { admin: node.admin()?, calls, node, world })
    }

    /// Kills the peer and starts another in its place, with the same data.
    pub async fn start_again(self) -> Result<Self> {
        let Self { mut node, world, .. } = self;
        node.restart().await?;
        Self::of(node, world).await
    }

    /// The peer's process.
    pub fn pid(&self) -> u32 {
        self.node.process().pid()
    }

    /// Where plugins of this measurement are put together.
    pub fn plugins(&self) -> std::path::PathBuf {
        self.world.path().join("plugins")
    }

    /// A handle for loading; clones share one connection.
    pub fn loader(&self) -> Loader {
        Loader { admin: self.admin.clone() }
    }

    /// Unloads a plugin, and returns when nothing of it is left.
    pub async fn unload(&self, name: &str) -> Result<()> {
        let request = PluginUnloadRequest { name: name.to_owned() };
        let unloading = self.admin.clone();
        let unloaded = async move { { unloading }.plugin_unload(request).await };
        let answer = tokio::time::timeout(STEP_WITHIN, unloaded).await;
        answer.with_context(|| format!("unloading {name} does not end"))??;
        Ok(())
    }

    /// Makes one call through the peer.
    pub async fn call(&self, call: &Call) -> Result<bytes::Bytes> {
        tokio::time::timeout(STEP_WITHIN, self.calls.call(call)).await.context("no answer")?
    }

    /// The same once the peer routes to it: the table of routes follows readiness by a moment.
    pub async fn call_when_routed(&self, call: &Call) -> Result<()> {
        let until = Instant::now() + STEP_WITHIN;
        loop {
            match self.calls.call(call).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_micros(100)).await,
            }
        }
    }

    /// All plugins.
    pub async fn list(&self) -> Result<Vec<Plugin>> {
        let answer = self.admin.clone().plugin_list(PluginListRequest {}).await?;
        Ok(answer.into_inner().plugins)
    }

    /// Waits until all plugins are as wanted, and gives them.
    pub async fn all(&self, count: usize, wanted: impl Fn(&Plugin) -> bool) -> Result<Vec<Plugin>> {
        let until = Instant::now() + STEP_WITHIN;
        loop {
            let plugins = self.list().await?;
            let there = plugins.iter().filter(|plugin| wanted(plugin)).count();
            if there == count {
                return Ok(plugins);
            }
            if Instant::now() > until {
                let stray = plugins.iter().find(|plugin| !wanted(plugin));
                let stray = stray.map(|it| format!("{} is {}: {}", it.name, it.state, it.reason));
                bail!("{there} of {count} plugins are as wanted; one that is not: {stray:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The peer's processes.
    pub async fn family(&self) -> Result<Family> {
        let programs: BTreeSet<u32> = self.list().await?.iter().map(|plugin| plugin.pid).collect();
        Ok(Family::of(self.pid(), &programs))
    }

    /// The lines that are kept of a plugin's log.
    pub async fn log(&self, name: &str) -> Result<Vec<LogLine>> {
        let request = PluginLogsRequest { name: name.to_owned(), ..PluginLogsRequest::default() };
        let lines = self.admin.clone().plugin_logs(request).await?.into_inner();
        Ok(lines.try_collect().await?)
    }

    /// What the host noted of the last start of `name`.
    pub async fn steps(&self, name: &str) -> Result<Steps> {
        let lines = self.log(name).await?;
        let noted = lines.iter().rev().find(|line| line.message.starts_with("ready after"));
        let noted = noted.with_context(|| format!("the host did not note the start of {name}"))?;
        let fields = &noted.fields_json;
        serde_json::from_str(fields).with_context(|| format!("{fields} are no steps of a start"))
    }

    /// Ends the peer cleanly; whatever it leaves behind is an error.
    pub async fn stop(self) -> Result<()> {
        let Self { admin, calls, node, world } = self;
        drop((admin, calls));
        let status = node.stop().await?;
        ensure!(status.success(), "{} ended: {status}", node.process().evidence(40));
        let residue = testnet::residue::Residue::of(world.path());
        ensure!(residue.processes.is_empty(), "{residue}");
        Ok(())
    }
}

/// Loads plugins.
#[derive(Clone)]
pub struct Loader {
    admin: AdminClient<Channel>,
}

impl Loader {
    /// Loads a plugin from its directory and waits until it is ready.
    pub async fn load(&self, path: &Path) -> Result<Plugin> {
        let path = path.to_str().context("a path in UTF-8")?.to_owned();
        self.load_from(From::Path(path), "").await
    }

    /// Loads a plugin under `name`, if not empty, and waits until it is ready.
    pub async fn load_from(&self, from: From, name: &str) -> Result<Plugin> {
        let request = PluginLoadRequest {
            from: Some(from),
            wait: true,
            name: name.to_owned(),
            ..PluginLoadRequest::default()
        };
        let mut admin = self.admin.clone();
        let answer = tokio::time::timeout(STEP_WITHIN, admin.plugin_load(request)).await;
        let answer: admin::PluginLoadResponse =
            answer.with_context(|| format!("loading {name} does not end"))??.into_inner();
        answer.plugin.context("loaded, but no plugin was told")
    }
}
