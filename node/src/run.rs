//! Build, run, drain: the life of a node from its settings to its exit code.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway::{Grpc, serve_grpc, serve_http};
use parking_lot::Mutex;
use peer::{Notice, Peer, PeerConfig};
use plugin_host::{Host, HostConfig, HostEvent, LayerPolicy, NamespacePolicy, State, Transition};
use prometheus_client::registry::Registry;
use protocol::{
    id::{InstanceId, NodeKey, PeerId},
    ports::Caller,
    proto::admin::admin_server::AdminServer,
};
use router::Router;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{AdminService, Node},
    args::BootstrapArgs,
    bootstrapping::tell,
    catalog::MeshCatalog,
    complain,
    config::{self, Settings},
    data::{DataDir, prepare_run_dir},
    door::Door,
    figures::{OfNode, OfPlugins},
    health::Health,
    knowledge::Knowledge,
    late::Late,
    local::LocalPlugins,
    log,
    meters::PluginMeters,
    metrics,
    pace::{Pace, until},
    services,
    signals::{Signals, Told},
    sockets::{SocketFiles, Sockets},
    store::Database,
    usage::Usage,
    voice::{Ready, Say, Voice},
};

/// How long a stopping node waits for calls in flight and for its plugins.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What the admin socket answers itself; everything else there is a call to the mesh.
const ADMIN_SERVICES: [&str; 1] = ["blackhole.admin.v1.Admin"];

/// Threads that carry calls, and all else that is not waited for elsewhere: half of the machine,
/// the other half being the plugins'. A call handed from thread to thread waits for each to wake.
const WORKERS_MAX: usize = 8;

/// Runs a peer until it is told to stop.
pub fn peer(settings: Settings) -> ExitCode {
    let json = settings.json;
    on_runtime(json, async move {
        let node = Build::new(settings)?.start().await?;
        node.run().await
    })
}

/// Runs a bootstrap peer until it is told to stop.
pub fn bootstrap(args: BootstrapArgs) -> ExitCode {
    let json = args.mesh.json;
    on_runtime(json, crate::bootstrapping::run(args))
}

fn on_runtime(json: bool, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = (processors / 2).clamp(1, WORKERS_MAX);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(anyhow::Error::from(error).context("cannot start threads")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(json, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What is held before anything is started; dropping it leaves nothing.
struct Build {
    settings: Settings,
    voice: Voice,
    data: DataDir,
    key: NodeKey,
    database: Database,
    log: log::Level,
}

impl Build {
    fn new(settings: Settings) -> anyhow::Result<Self> {
        let voice = Voice::new(settings.json);
        let data = DataDir::open(&settings.data_dir)?;
        let key = data.identity()?;
        prepare_run_dir(&settings.run_dir)?;
        let database = Database::open(&data.path().join("store"))?;
        let name = name_of(&settings, key.peer_id());
        let log = log::start(&settings.log_level, settings.json, &name);
        let log = log.map_err(anyhow::Error::msg)?;
        Ok(Self { settings, voice, data, key, database, log })
    }

    #[allow(clippy::too_many_lines, reason = "one list of what is wired to what, in its order")]
    async fn start(self) -> anyhow::Result<Running> {
        let Self { settings, voice, data, key, database, log } = self;
        let signals = Signals::listen()?;
        let sockets = Sockets::bind(&settings).await?;
        let mut registry = Registry::default();
        let local = LocalPlugins::default();
        let (plugins, peers) = (Late::<InstanceId>::new(), Late::<PeerId>::new());
        let known = crate::late::LateKnowledge::new();
        let router = Router::new(
            key.peer_id(),
            router::Ports {
                plugins: Arc::new(plugins.clone()),
                peers: Arc::new(peers.clone()),
                lookup: Arc::new(known.clone()),
                declared: Arc::new(known.clone()),
            },
            router::Settings { policies: settings.routing.clone(), ..router::Settings::default() },
            &mut registry,
        );
        let ports = peer::Ports {
            store: database.space("peer"),
            inbound: router.local_only(),
            descriptors: Arc::new(local.clone()),
        };
        let peer = Arc::new(Peer::start(peer_config(&settings, key.clone()), ports).await?);
        let notices = peer.notices();
        peers.give(peer.links());
        let knowledge = Knowledge::new(Arc::clone(&peer), local, settings.labels.clone());
        known.give(knowledge.clone());
        let stop = CancellationToken::new();
        let tables = watch::Sender::new(0);
        let catalog = MeshCatalog::new(knowledge.clone(), tables.subscribe(), stop.clone());
        let meters = gateway::Meters::new(&mut registry);
        let grpc = Grpc::new(Arc::new(router.clone()), Arc::new(catalog)).metered(meters);
        let servers = TaskTracker::new();
        let late_node = services::figures::LateNode::default();
        let door = Arc::new(Door {
            node: late_node.clone(),
            grpc: grpc.clone(),
            mesh: Arc::new(router.clone()),
            servers: servers.clone(),
            stop: stop.clone(),
            drain: DRAIN_MAX,
        });
        let (host, host_events) =
            Host::start(host_config(&settings, key.peer_id()), database.space("host"), door)
                .await?;
        plugins.give(host.channels());
        let began = Instant::now();
        registry.register_collector(Box::new(OfNode { knowledge: knowledge.clone(), began }));
        registry.register_collector(Box::new(OfPlugins(host.clone())));
        registry.register_collector(Box::new(PluginMeters(host.clone())));
        let steps = host.transitions();
        let ready = ready(&settings, &sockets, &peer);
        let node = Arc::new(Node {
            settings,
            ready,
            host,
            knowledge,
            router,
            database,
            usage: Usage::new(),
            log,
            registry: Arc::new(registry),
            began,
            unreachable: Mutex::default(),
            stop: stop.clone(),
        });
        // Only the first counts, and this is it.
        let _ = late_node.set(Arc::downgrade(&node));
        let running = Running {
            node,
            voice,
            data,
            peer,
            host_events,
            notices,
            steps,
            tables,
            routes: Pace::default(),
            servers,
            signals,
            _files: Arc::clone(&sockets.files),
        };
        running.serve(sockets, &grpc);
        Ok(running)
    }
}

fn name_of(settings: &Settings, id: PeerId) -> String {
    settings.name.clone().unwrap_or_else(|| {
        let text = id.to_string();
        text[text.len() - 8..].to_owned()
    })
}

fn peer_config(settings: &Settings, key: NodeKey) -> PeerConfig {
    let name = name_of(settings, key.peer_id());
    PeerConfig {
        name,
        listen: settings.listen.clone(),
        bootstrap: settings.bootstrap.clone(),
        external: settings.external.clone(),
        mdns: settings.mdns,
        labels: settings.labels.clone(),
        ..PeerConfig::new(key, settings.network.clone())
    }
}

fn host_config(settings: &Settings, id: PeerId) -> HostConfig {
    let watch = &settings.supervision;
    let mut config = HostConfig::new(&settings.run_dir, &settings.data_dir);
    config.node_id = name_of(settings, id);
    config.namespaces =
        if settings.namespaces { NamespacePolicy::Required } else { NamespacePolicy::Off };
    let layer = |asked| if asked { LayerPolicy::Required } else { LayerPolicy::Off };
    config.landlock = layer(settings.landlock);
    config.seccomp = layer(settings.seccomp);
    config.cgroups = settings.cgroups;
    config.isolation_min = settings.isolation_min;
    config.health = plugin_host::HealthCheck {
        interval: watch.health_interval,
        timeout: watch.health_timeout,
        threshold: watch.unhealthy_threshold,
    };
    config.log_records_kept = watch.log_lines;
    config.stats_interval = watch.sample_interval;
    config.restart = watch.restart.clone();
    config.plugins_max = watch.plugins_max;
    config.groups = settings.groups.clone();
    config.parts = settings.parts.clone();
    config.built_in = services::built_in(settings);
    config.permissions = settings.permissions.clone();
    config
}

fn ready(settings: &Settings, sockets: &Sockets, peer: &Peer) -> Ready {
    let view = peer.view();
    let tcp = |listener: &Option<TcpListener>| {
        listener.as_ref().and_then(|it| it.local_addr().ok()).map(|address| address.to_string())
    };
    let socket = |name: &str| Some(settings.run_dir.join(name).display().to_string());
    Ready {
        role: "peer",
        peer_id: view.id.to_string(),
        name: name_of(settings, view.id),
        network: settings.network.to_string(),
        listen: view.listen.iter().map(|address| format!("{address}/p2p/{}", view.id)).collect(),
        grpc: tcp(&sockets.grpc),
        http: tcp(&sockets.http),
        metrics: tcp(&sockets.metrics),
        admin: socket("admin.sock"),
        mesh: socket("mesh.sock"),
        data_dir: settings.data_dir.display().to_string(),
        bootstraps: settings.bootstrap.len(),
    }
}

/// A node that serves.
struct Running {
    node: Arc<Node>,
    voice: Voice,
    data: DataDir,
    peer: Arc<Peer>,
    host_events: mpsc::Receiver<HostEvent>,
    notices: tokio::sync::broadcast::Receiver<Notice>,
    steps: tokio::sync::broadcast::Receiver<Transition>,
    tables: watch::Sender<u64>,
    routes: Pace,
    servers: TaskTracker,
    signals: Signals,
    _files: Arc<SocketFiles>,
}

impl Running {
    fn serve(&self, sockets: Sockets, grpc: &Grpc) {
        let stop = || self.node.stop.clone();
        let admin = AdminServer::new(AdminService(Arc::clone(&self.node)));
        let admin = grpc.clone().with_routes(
            ADMIN_SERVICES.map(|name| name.parse().expect("a service name")),
            &tonic::service::Routes::new(admin).into_axum_router(),
        );
        let (mesh, clients) = (grpc.clone(), grpc.clone());
        let servers = &self.servers;
        servers.spawn(serve_grpc(sockets.admin, admin, Caller::Operator, stop(), DRAIN_MAX));
        servers.spawn(serve_grpc(sockets.mesh, mesh, Caller::Operator, stop(), DRAIN_MAX));
        for listeners in sockets.services {
            self.serve_alone(listeners, grpc.meters());
        }
        if let Some(listener) = sockets.grpc {
            servers.spawn(serve_grpc(listener, clients, Caller::Client, stop(), DRAIN_MAX));
        }
        if let Some(listener) = sockets.http {
            let origins = self.node.settings.cors_origins.clone();
            let calls = gateway::web_routes(grpc.clone(), Caller::Client, origins);
            let routes = gateway::health_routes(Arc::new(Health(Arc::clone(&self.node))));
            let routes = routes.merge(calls);
            servers.spawn(serve_http(listener, routes, grpc.meters(), stop(), DRAIN_MAX));
        }
        if let Some(listener) = sockets.metrics {
            let routes = metrics::routes(&self.node.registry, self.node.host.clone());
            servers.spawn(serve_http(listener, routes, grpc.meters(), stop(), DRAIN_MAX));
        }
    }

    /// Serves one service on listeners of its own.
    fn serve_alone(&self, listeners: services::door::Listeners, meters: gateway::Meters) {
        let services::door::Listeners { name, tcp, unix } = listeners;
        let stop = || self.node.stop.clone();
        let local = self.node.knowledge.local().clone();
        let only = self.node.router.local_only();
        let door = services::door::Door::new(&name, only, local, self.tables.subscribe(), stop());
        let grpc = Grpc::new(Arc::new(door.clone()), Arc::new(door)).metered(meters);
        if let Some(listener) = tcp {
            let serving = serve_grpc(listener, grpc.clone(), Caller::Client, stop(), DRAIN_MAX);
            self.servers.spawn(serving);
        }
        if let Some(listener) = unix {
            self.servers.spawn(serve_grpc(listener, grpc, Caller::Operator, stop(), DRAIN_MAX));
        }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        for warning in &self.node.settings.warnings {
            self.voice.say(&Say::Warning(warning));
        }
        self.voice.say(&Say::Ready(&self.node.ready));
        let mut changes = self.peer.changes();
        let stop = self.node.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                told = self.signals.told() => match told {
                    Told::Stop => break,
                    Told::ReadAgain => self.read_again(),
                },
                event = self.host_events.recv() => match event {
                    Some(event) => self.plugin_changed(event).await,
                    None => anyhow::bail!("the plugin host ended by itself; this is a fault of ours"),
                },
                () = until(self.routes.due()) => self.publish_routes(),
                news = changes.changed() => match news {
                    Ok(()) => self.routes.ask(Instant::now()),
                    Err(_) => anyhow::bail!("the peer ended by itself; this is a fault of ours"),
                },
                taken = self.steps.recv() => {
                    if let Ok(taken) = taken {
                        self.tell(&taken);
                    }
                }
                notice = self.notices.recv() => {
                    if let Ok(notice) = notice {
                        self.note(&notice);
                    }
                }
            }
        }
        self.drain().await;
        Ok(())
    }

    async fn plugin_changed(&mut self, event: HostEvent) {
        let knowledge = &self.node.knowledge;
        self.routes.ask(Instant::now());
        match event {
            HostEvent::Ready(plugin) => {
                self.voice.say(&Say::Plugin { name: &plugin.name, state: "running", detail: "" });
                let offer = knowledge.announcement(&plugin);
                knowledge.local().insert(plugin);
                self.publish_if_due();
                if let Err(refused) = self.peer.announce(offer).await {
                    self.voice.say(&Say::Warning(&refused.to_string()));
                }
            }
            HostEvent::Gone { name, instance, reason } => {
                self.voice.say(&Say::Plugin { name: &name, state: "gone", detail: &reason });
                knowledge.local().remove(instance);
                self.publish_if_due();
                self.peer.withdraw(instance).await;
            }
        }
    }

    /// Callers do not wait for what follows.
    fn publish_if_due(&mut self) {
        if self.routes.due().is_some_and(|due| due <= Instant::now()) {
            self.publish_routes();
        }
    }

    fn publish_routes(&mut self) {
        let begun = Instant::now();
        self.node.router.publish(self.node.knowledge.table());
        self.tables.send_modify(|count| *count += 1);
        self.routes.done(begun, Instant::now());
    }

    /// Says what of a plugin's life is not said by its routes coming and going.
    fn tell(&self, step: &Transition) {
        let name = match step.number {
            1 => step.plugin.clone(),
            number => format!("{}/{number}", step.plugin),
        };
        let worth = matches!(
            step.to,
            State::Initialised
                | State::Unhealthy
                | State::Draining
                | State::Stopped
                | State::Failed
                | State::CrashLoop
        );
        if worth {
            let say = Say::Plugin { name: &name, state: step.to.as_str(), detail: &step.reason };
            self.voice.say(&say);
        }
    }

    /// Reads the configuration file again, hands each service and plugin its part where that
    /// changed, and logs as it says. Everything else in it waits for the next start.
    fn read_again(&self) {
        let warn = |text: String| self.voice.say(&Say::Warning(&text));
        let again = match config::again(&self.node.settings) {
            Ok(again) => again,
            Err(error) => return warn(format!("the configuration stays as it was: {error}")),
        };
        for (name, service) in again.services {
            if self.node.host.configure(&name, service.part).is_err() {
                warn(format!("services.{name} is new: it starts with the next start"));
            }
        }
        self.node.host.configure_all(again.parts);
        let Some(level) = again.log_level else { return };
        match self.node.log.set(&level) {
            Ok(before) => tracing::info!(%level, %before, "the configuration was read again"),
            Err(reason) => warn(format!("monitoring.logLevel stays as it was: {reason}")),
        }
    }

    fn note(&self, notice: &Notice) {
        tell(self.voice, self.node.settings.network.as_str(), notice);
        match notice {
            Notice::BootstrapUnreachable { address, error, .. } => {
                self.node.unreachable.lock().insert(address.to_string(), error.clone());
            }
            Notice::Joined { .. } => self.node.unreachable.lock().clear(),
            _ => {}
        }
    }

    /// Takes nothing new, finishes what was begun, says goodbye, ends every process.
    async fn drain(self) {
        self.voice.say(&Say::Stopping);
        self.node.stop.cancel();
        // Nobody listens to the host any more; it must not wait for us.
        drop(self.host_events);
        // First the mesh hears that nothing is offered here any more, then plugins end.
        for instance in self.node.knowledge.local().all().keys() {
            self.peer.withdraw(*instance).await;
        }
        self.servers.close();
        self.servers.wait().await;
        self.node.host.shutdown().await;
        self.peer.shutdown().await;
        drop(self.data);
        self.voice.say(&Say::Stopped);
    }
}
