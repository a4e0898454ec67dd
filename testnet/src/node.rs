//! One node as a real process: started on free ports in directories of its own, asked through its
//! admin socket, killed, stopped and started again.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use protocol::proto::admin::{self, admin_client::AdminClient};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::{
    binaries,
    client::Cli,
    process::{Process, Signal},
    residue::{self, Residue, Seen},
    wait::until,
};

/// How long a node may take to serve. An idle machine needs well under a second; two cores shared
/// with other builds and tests need patience.
pub const READY_WITHIN: Duration = Duration::from_mins(1);

/// How long a plugin may take to become ready, for the same reason.
pub const PLUGIN_READY_WITHIN: Duration = Duration::from_mins(1);

/// How long a clean stop may take.
pub const STOP_WITHIN: Duration = Duration::from_secs(30);

/// By which of its names the executable is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `bh-peer`.
    Peer,
    /// `bh-bootstrap`.
    Bootstrap,
}

/// How to start a node. The default is a peer on loopback with every port chosen by the kernel.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// By which name the executable is started.
    pub role: Role,
    /// The node's name, and its files' prefix.
    pub name: String,
    /// The directory that holds its data, its sockets and its logs.
    pub dir: PathBuf,
    /// The network it belongs to.
    pub network: String,
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs to join through.
    pub bootstrap: Vec<String>,
    /// What `--grpc`, `--http` and `--metrics` say.
    pub ports: [String; 3],
    /// Further arguments, as on a command line.
    pub arguments: Vec<String>,
    /// The executable, where it is not the built one: for a user who may not read that.
    pub executable: Option<PathBuf>,
    /// Words before the executable: a program that starts it in other surroundings.
    pub through_program: Vec<String>,
}

impl NodeSetup {
    /// A peer `name` of `network` that lives in `<world>/<name>`.
    pub fn peer(world: &Path, network: &str, name: &str) -> Self {
        Self {
            role: Role::Peer,
            name: name.to_owned(),
            dir: world.join(name),
            network: network.to_owned(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".into(), "/ip4/127.0.0.1/udp/0/quic-v1".into()],
            bootstrap: Vec::new(),
            ports: ["127.0.0.1:0"; 3].map(str::to_owned),
            arguments: Vec::new(),
            executable: None,
            through_program: Vec::new(),
        }
    }

    /// A bootstrap node.
    pub fn bootstrap(world: &Path, network: &str, name: &str) -> Self {
        Self { role: Role::Bootstrap, ..Self::peer(world, network, name) }
    }

    /// Joins through `addresses`.
    #[must_use]
    pub fn through(mut self, addresses: impl IntoIterator<Item = String>) -> Self {
        self.bootstrap.extend(addresses);
        self
    }

    /// Adds arguments as on a command line.
    #[must_use]
    pub fn with<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// Where its key and store live.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where a peer's sockets live.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The command that starts it.
    pub fn command(&self) -> Result<Command> {
        let executable = match &self.executable {
            Some(executable) => executable.clone(),
            None => binaries::find("bh-peer")?,
        };
        let mut command = match self.through_program.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(executable);
                command
            }
            None => Command::new(executable),
        };
        if self.role == Role::Bootstrap {
            command.arg0("bh-bootstrap");
        }
        command.args(["--json", "--network", &self.network]);
        command.arg("--data-dir").arg(self.data_dir());
        for address in &self.listen {
            command.args(["--listen", address]);
        }
        for address in &self.bootstrap {
            command.args(["--bootstrap", address]);
        }
        if self.role == Role::Peer {
            command.args(["--name", &self.name]).arg("--run-dir").arg(self.run_dir());
            for (flag, port) in ["--grpc", "--http", "--metrics"].into_iter().zip(&self.ports) {
                command.args([flag, port]);
            }
        }
        command.args(&self.arguments);
        // Whatever the surroundings set for their own nodes must not reach these.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("BH_")) {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&self) -> Result<Process> {
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.dir.display()))?;
        Process::spawn(&self.name, self.command()?, &self.dir)
    }

    /// Starts it and waits until it serves.
    pub async fn start(self) -> Result<Node> {
        let process = self.spawn()?;
        let ready = event(&process, 0, "ready", READY_WITHIN).await;
        let ready = ready.and_then(|event| Ready::read(&event));
        let ready = ready.map_err(|error| error.context(process.evidence(40)))?;
        Ok(Node { setup: self, process, ready })
    }

    /// Starts it where it is expected to give up, and tells how it ended and what it said.
    pub async fn refused(&self, within: Duration) -> Result<(ExitStatus, String)> {
        let process = self.spawn()?;
        let status = process.exit(within).await;
        let status = status.map_err(|error| error.context(process.evidence(40)))?;
        let output = process.output().clone();
        drop(process); // ends the readers, so that the last line is there
        Ok((status, output.text()))
    }
}

/// The next event `name` that `process` prints after line `mark`.
async fn event(process: &Process, mark: usize, name: &str, within: Duration) -> Result<Value> {
    let wanted = |line: &crate::output::Line| {
        let event: Value = serde_json::from_str(&line.text).ok()?;
        (event["event"] == name).then_some(event)
    };
    let found = process.output().find(mark, within, wanted);
    tokio::select! {
        event = found => event.with_context(|| format!("{} never said `{name}`", process.name())),
        status = process.exit(within) => match status {
            // It ended; what it said last may still be on its way through the pipe.
            Ok(status) => {
                let late = process.output().find(mark, Duration::from_millis(200), wanted).await;
                late.map_err(|_| anyhow!("{} ended before `{name}`: {status}", process.name()))
            }
            Err(_) => bail!("{} never said `{name}`", process.name()),
        },
    }
}

/// What a node says when it serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Its peer id.
    pub peer_id: String,
    /// Its multiaddrs, each ending in its peer id.
    pub listen: Vec<String>,
    /// `host:port` of gRPC; empty when off.
    pub grpc: String,
    /// `host:port` of HTTP; empty when off.
    pub http: String,
    /// `host:port` of metrics; empty when off.
    pub metrics: String,
    /// The admin socket.
    pub admin: PathBuf,
    /// The mesh socket; empty when off.
    pub mesh: PathBuf,
}

impl Ready {
    fn read(event: &Value) -> Result<Self> {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let peer_id = text("peer_id");
        if !peer_id.starts_with("12D3KooW") {
            bail!("`ready` without a peer id: {event}");
        }
        let listen = event["listen"].as_array().context("`ready` without addresses")?;
        let with_id = |address: &str| {
            if address.contains("/p2p/") {
                address.to_owned()
            } else {
                format!("{address}/p2p/{peer_id}")
            }
        };
        Ok(Self {
            listen: listen.iter().filter_map(Value::as_str).map(with_id).collect(),
            grpc: text("grpc"),
            http: text("http"),
            metrics: text("metrics"),
            admin: text("admin").into(),
            mesh: text("mesh").into(),
            peer_id,
        })
    }
}

/// A node that has said it serves.
pub struct Node {
    setup: NodeSetup,
    process: Process,
    ready: Ready,
}

impl Node {
    /// How it was started.
    pub fn setup(&self) -> &NodeSetup {
        &self.setup
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Its peer id.
    pub fn peer_id(&self) -> &str {
        &self.ready.peer_id
    }

    /// What it said when it began to serve.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its first TCP address, or `scheme` (`tcp`, `quic-v1`) where named.
    pub fn address(&self, scheme: &str) -> Result<String> {
        let part = format!("/{scheme}/");
        let found = self.ready.listen.iter().find(|address| address.contains(&part));
        found.cloned().with_context(|| format!("{} has no {scheme} address", self.name()))
    }

    /// Waits for the next event `name`, from the node's first line on.
    pub async fn event(&self, name: &str, within: Duration) -> Result<Value> {
        event(&self.process, 0, name, within).await
    }

    /// Waits for an event `name` that is printed after line `mark` of its output.
    pub async fn event_after(&self, mark: usize, name: &str, within: Duration) -> Result<Value> {
        event(&self.process, mark, name, within).await
    }

    /// A client of its admin contract.
    pub fn admin(&self) -> Result<AdminClient<Channel>> {
        let socket = Endpoint::from_shared(format!("unix:{}", self.ready.admin.display()))?;
        Ok(AdminClient::new(socket.connect_lazy()))
    }

    /// The `blackhole` command, pointed at it.
    pub fn cli(&self) -> Result<Cli> {
        Cli::of(&self.ready.admin)
    }

    /// Waits until it has met a peer of its network.
    pub async fn joined(&self, within: Duration) -> Result<()> {
        until(&format!("{} has joined", self.name()), within, || async {
            let status = self.status().await.map_err(|error| error.to_string())?;
            let peers = format!("joined: {}, peers: {}", status.joined, status.peers);
            (status.joined && status.peers > 0).then_some(()).ok_or(peers)
        })
        .await
    }

    /// Its status.
    pub async fn status(&self) -> Result<admin::StatusResponse> {
        Ok(self.admin()?.status(admin::StatusRequest {}).await?.into_inner())
    }

    /// Loads a plugin from a directory, manifest or executable and waits until it is ready.
    pub async fn load(&self, path: &Path) -> Result<admin::Plugin> {
        let path = path.to_str().context("a path in UTF-8")?.to_owned();
        self.load_from(admin::plugin_load_request::From::Path(path), "").await
    }

    /// Loads a plugin from what `from` says, under `name` if not empty, and waits for it.
    pub async fn load_from(
        &self,
        from: admin::plugin_load_request::From,
        name: &str,
    ) -> Result<admin::Plugin> {
        let request = admin::PluginLoadRequest {
            from: Some(from),
            wait: true,
            name: name.to_owned(),
            ..admin::PluginLoadRequest::default()
        };
        let mut admin = self.admin()?;
        let answer = tokio::time::timeout(PLUGIN_READY_WITHIN, admin.plugin_load(request))
            .await
            .with_context(|| format!("{}: loading did not end", self.name()))?;
        let plugin = answer?.into_inner().plugin.context("loaded, but no plugin was told")?;
        if plugin.state != "running" {
            bail!("{} is {}: {}", plugin.name, plugin.state, plugin.reason);
        }
        Ok(plugin)
    }

    /// Unloads the plugin `name`.
    pub async fn unload(&self, name: &str) -> Result<()> {
        let request = admin::PluginUnloadRequest { name: name.to_owned() };
        self.admin()?.plugin_unload(request).await?;
        Ok(())
    }

    /// What is known of the plugin `name`.
    pub async fn plugin(&self, name: &str) -> Result<admin::Plugin> {
        let request = admin::PluginInfoRequest { name: name.to_owned() };
        Ok(self.admin()?.plugin_info(request).await?.into_inner())
    }

    /// Waits until the plugin `name` satisfies `wanted`.
    pub async fn plugin_until(
        &self,
        name: &str,
        within: Duration,
        wanted: impl Fn(&admin::Plugin) -> bool,
    ) -> Result<admin::Plugin> {
        let what = format!("plugin {name} of {} is as wanted", self.name());
        until(&what, within, || async {
            let plugin = self.plugin(name).await.map_err(|error| error.to_string())?;
            if wanted(&plugin) { Ok(plugin) } else { Err(format!("{plugin:?}")) }
        })
        .await
    }

    /// Peer ids of those that offer `service`, as this node knows it.
    pub async fn providers(&self, service: &str) -> Result<Vec<admin::Provider>> {
        let answer = self.admin()?.services(admin::ServicesRequest {}).await?.into_inner();
        let of_service = answer.services.into_iter().find(|known| known.name == service);
        Ok(of_service.map(|service| service.providers).unwrap_or_default())
    }

    /// Waits until exactly the nodes with `peer_ids` are known here to offer `service`.
    pub async fn sees(&self, service: &str, peer_ids: &[&str], within: Duration) -> Result<()> {
        let mut wanted: Vec<&str> = peer_ids.to_vec();
        wanted.sort_unstable();
        let what = format!("{} sees {} provider(s) of {service}", self.name(), wanted.len());
        until(&what, within, || async {
            let known = self.providers(service).await.map_err(|error| error.to_string())?;
            let mut known: Vec<&str> = known.iter().map(|p| p.peer_id.as_str()).collect();
            known.sort_unstable();
            if known == wanted { Ok(()) } else { Err(format!("{known:?}, wanted {wanted:?}")) }
        })
        .await
    }

    /// Its descendants: launchers and plugins.
    pub fn children(&self) -> Vec<Seen> {
        residue::descendants(self.process.pid())
    }

    /// `kill -9`; the processes it had are returned, so that one can see them go.
    pub async fn kill(&self) -> Result<Vec<Seen>> {
        let children = self.children();
        self.process.kill().await?;
        Ok(children)
    }

    /// Stops it (`SIGSTOP`): it keeps its connections and says nothing.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets it go on (`SIGCONT`).
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Asks it to end (`SIGTERM`) and waits until it has.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.exit(STOP_WITHIN).await;
        status.map_err(|error| error.context(self.process.evidence(40)))
    }

    /// Starts it again as it was started before; it must have ended.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.ended().is_none() {
            bail!("{} still runs", self.name());
        }
        let again = self.setup.clone().start().await?;
        *self = again;
        Ok(())
    }

    /// What is left below its directory.
    pub fn residue(&self) -> Residue {
        Residue::of(&self.setup.dir)
    }
}
