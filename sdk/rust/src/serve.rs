//! Serving: from the listener to the last answer.
//!
//! One current-thread runtime serves everything: a plugin's node is usually its only client, and
//! calls that never change threads are the fastest ones. A service that computes for long moves
//! that work to `tokio::task::spawn_blocking`.

use std::time::Duration;
use std::{collections::HashSet, future::Future, io, net::SocketAddr, pin::pin, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::dialects::{self, Announced};
use crate::listen::{self, Listeners};
use crate::{ListenError, Plugin, lifecycle, logs, plugin::Preparation, reflection};

/// Calls open at once on one connection; more wait at the sender. A node carries all its calls
/// on one connection, so this bounds what a plugin has in flight, streams included.
const CALLS_PER_CONNECTION_MAX: u32 = 4096;

/// How long work on blocking threads may go on after everything else has ended.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

/// Serves until told to end; see [`Plugin::run`].
pub(crate) fn run(plugin: Plugin) -> ExitCode {
    logs::init();
    let name = plugin.name.clone();
    match run_to_the_end(plugin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_to_the_end(plugin: Plugin) -> Result<(), PluginError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PluginError::Runtime)?;
    let ended = runtime.block_on(async {
        let stop = asked_to_end().map_err(PluginError::Runtime)?;
        let listener = Listeners::open(&plugin.place)?;
        if let Some(address) = listener.loopback_address() {
            println!("{} listens on http://{address}", plugin.name);
        }
        serve(plugin, listener, stop).await
    });
    runtime.shutdown_timeout(BLOCKING_GRACE);
    ended
}

/// Completes on SIGTERM, from a node, or SIGINT, from a keyboard.
fn asked_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves on a free loopback port until the returned handle ends it; see [`Plugin::start`].
pub(crate) fn start(plugin: Plugin) -> Result<Running, PluginError> {
    let listener = listen::loopback()?;
    let address = listener.loopback_address().ok_or(PluginError::NoAddress)?;
    check(&plugin)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let task = tokio::spawn(serve(plugin, listener, stopped));
    Ok(Running { address, stop: Some(stop), task })
}

/// A plugin that serves in the background; dropping it ends it at once.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), PluginError>>,
}

impl Running {
    /// Where it listens, on the loopback address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A channel to it, for generated clients. It connects at the first call.
    pub fn channel(&self) -> Channel {
        // A socket address with a scheme is always an address, so this cannot fail.
        Endpoint::from_shared(format!("http://{}", self.address))
            .expect("a socket address is a valid authority")
            .connect_lazy()
    }

    /// Ends it as SIGTERM would: calls in flight are finished, within the drain deadline.
    pub async fn stop(mut self) -> Result<(), PluginError> {
        drop(self.stop.take());
        match (&mut self.task).await {
            Ok(ended) => ended,
            Err(error) => Err(PluginError::Panicked(error.to_string())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a plugin does not serve, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// There is nothing to serve.
    #[error("it offers no service: add at least one with Plugin::service")]
    NoService,
    /// A service that nobody could describe.
    #[error(
        "{service} is in none of the descriptor sets: pass the one that your build.rs wrote to \
         Plugin::descriptors"
    )]
    Undescribed {
        /// The service's full name.
        service: &'static str,
    },
    /// What was given as descriptors is something else.
    #[error("a descriptor set cannot be read: {0}")]
    Descriptors(#[source] prost::DecodeError),
    /// There is nothing to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The author's own preparation failed.
    #[error("it could not get ready: {0}")]
    NotPrepared(String),
    /// Threads, timers or signals are not to be had.
    #[error("the runtime cannot start: {0}")]
    Runtime(#[source] io::Error),
    /// The listener has no address.
    #[error("the listener has no address")]
    NoAddress,
    /// Serving ended by itself.
    #[error("serving failed: {0}")]
    Serving(#[source] tonic::transport::Error),
    /// A panic of the author's code outside any call.
    #[error("it panicked: {0}")]
    Panicked(String),
}

/// Serves until `stop`, then finishes what was begun.
async fn serve(
    mut plugin: Plugin,
    listener: Listeners,
    stop: impl Future<Output = ()>,
) -> Result<(), PluginError> {
    check(&plugin)?;
    let preparation = plugin.preparation.take();
    let health = Health::new(&plugin.services, preparation.is_none()).await;
    let routes = assemble(&plugin).add_service(Announced(health.service()));
    let (draining, drained) = oneshot::channel::<()>();
    let mut server = pin!(transport(routes, listener, async { drop(drained.await) }));
    tokio::select! {
        ended = &mut server => return ended.map_err(PluginError::Serving),
        told = until_told(&health, preparation, stop) => told?,
    }
    health.retire().await;
    drop(draining);
    let finish = async {
        if let Some(drain) = &plugin.drain
            && let Err(reason) = drain(plugin.drain_deadline).await
        {
            tracing::warn!("not drained: {reason}");
        }
    };
    let all = async { futures::join!(server, finish).0 };
    if let Ok(ended) = timeout(plugin.drain_deadline, all).await {
        tracing::info!("ended");
        return ended.map_err(PluginError::Serving);
    }
    tracing::warn!(deadline = ?plugin.drain_deadline, "ended with calls still open");
    Ok(())
}

/// Gets ready, then waits for `stop`, which may also come first.
async fn until_told(
    health: &Health,
    preparation: Option<Preparation>,
    stop: impl Future<Output = ()>,
) -> Result<(), PluginError> {
    let ready = async {
        if let Some(work) = preparation {
            work.await.map_err(PluginError::NotPrepared)?;
            health.say(ServingStatus::Serving).await;
        }
        tracing::info!(services = ?health.names[1..], "ready");
        std::future::pending().await
    };
    tokio::select! {
        // A preparation that has failed is told even to those who have just said stop.
        biased;
        failed = ready => failed,
        () = stop => Ok(()),
    }
}

/// All that a plugin serves, once it is prepared.
pub(crate) async fn routes(mut plugin: Plugin) -> Result<Routes, PluginError> {
    check(&plugin)?;
    if let Some(work) = plugin.preparation.take() {
        work.await.map_err(PluginError::NotPrepared)?;
    }
    let health = Health::new(&plugin.services, true).await;
    Ok(assemble(&plugin).add_service(health.service()))
}

/// Refuses a plugin that could not be called.
fn check(plugin: &Plugin) -> Result<(), PluginError> {
    if plugin.services.is_empty() {
        return Err(PluginError::NoService);
    }
    let mut described = HashSet::new();
    for encoded in &plugin.descriptors {
        described.extend(reflection::services(encoded).map_err(PluginError::Descriptors)?);
    }
    match plugin.services.iter().find(|&&service| !described.contains(service)) {
        Some(service) => Err(PluginError::Undescribed { service }),
        None => Ok(()),
    }
}

/// The author's services, with reflection and `Lifecycle`, which is between a plugin and its node
/// and which reflection does not name.
fn assemble(plugin: &Plugin) -> Routes {
    reflection::add(plugin.routes.clone(), plugin).add_service(lifecycle::service(plugin))
}

async fn transport(
    routes: Routes,
    listener: Listeners,
    drain: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let server = Server::builder().max_concurrent_streams(CALLS_PER_CONNECTION_MAX);
    dialects::serve(server, routes, listener.connections(), drain).await
}

/// What the plugin says about its health: all of its services are as ready as it is.
struct Health {
    reporter: HealthReporter,
    names: Vec<&'static str>,
}

impl Health {
    async fn new(services: &[&'static str], ready: bool) -> Self {
        // The empty name asks for the program as a whole.
        let names = std::iter::once("").chain(services.iter().copied()).collect();
        let health = Self { reporter: HealthReporter::new(), names };
        let first = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.say(first).await;
        health
    }

    fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    async fn say(&self, status: ServingStatus) {
        for name in &self.names {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Says NOT_SERVING and ends the streams of those who watch, which would else hold the
    /// program open until its drain deadline.
    async fn retire(&self) {
        self.say(ServingStatus::NotServing).await;
        let mut reporter = self.reporter.clone();
        for name in &self.names {
            reporter.clear_service_status(name).await;
        }
    }
}
