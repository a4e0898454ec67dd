//! The builder: what a plugin is, before it serves.

use std::path::PathBuf;
use std::{convert::Infallible, env, fmt::Display, future::Future, pin::Pin, process::ExitCode};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::response::IntoResponse;
use futures::FutureExt;
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service;

use crate::figures::Figures;
use crate::listen::Place;
use crate::serve::{self, PluginError, Running};

/// What a method of a service answers.
pub type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// What a method that streams answers with: messages, and an error at most as the last.
pub type Stream<T> = Pin<Box<dyn futures::Stream<Item = Result<T, tonic::Status>> + Send>>;

/// What must be done before the plugin is ready; an error is the sentence to end with.
pub(crate) type Preparation = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Takes the plugin's part of its node's configuration, as JSON; an error is the refusal.
pub(crate) type Configure = Arc<dyn Fn(&[u8]) -> Result<(), String> + Send + Sync>;

/// The plugin's own figures at this moment, by name.
pub(crate) type Metrics = Arc<dyn Fn() -> Vec<(String, f64)> + Send + Sync>;

/// Finishes what would not end by itself; told how long that may take.
pub(crate) type Drain =
    Arc<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// How long calls in flight may go on after the plugin was told to end. Shorter than the grace
/// a node gives before it kills, so that ending by oneself is the normal case.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// A plugin in the making; [`run`](Plugin::run) turns it into a program.
pub struct Plugin {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) dependencies: Vec<String>,
    pub(crate) configure: Option<Configure>,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) figures: Option<Figures>,
    pub(crate) drain: Option<Drain>,
    pub(crate) descriptors: Vec<Vec<u8>>,
    pub(crate) services: Vec<&'static str>,
    pub(crate) routes: Routes,
    pub(crate) preparation: Option<Preparation>,
    pub(crate) drain_deadline: Duration,
    pub(crate) place: Place,
}

impl Plugin {
    /// A plugin of this name and version, as its manifest gives them.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            description: String::new(),
            capabilities: Vec::new(),
            dependencies: Vec::new(),
            configure: None,
            metrics: None,
            figures: None,
            drain: None,
            descriptors: Vec::new(),
            services: Vec::new(),
            routes: Routes::default(),
            preparation: None,
            drain_deadline: DRAIN_DEADLINE,
            place: Place::default(),
        }
    }

    /// One sentence on what it does.
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// Something it is able to do, as in its manifest; may be called several times.
    pub fn capability(mut self, name: impl Into<String>) -> Self {
        self.capabilities.push(name.into());
        self
    }

    /// A plugin it depends on, as in its manifest; may be called several times.
    pub fn dependency(mut self, name: impl Into<String>) -> Self {
        self.dependencies.push(name.into());
        self
    }

    /// Takes its part of the node's configuration (JSON): before it gets its first call, and
    /// whenever that changes. An error refuses it; at the start the plugin then fails with it.
    pub fn configure<F, E>(mut self, take: F) -> Self
    where
        F: Fn(&[u8]) -> Result<(), E> + Send + Sync + 'static,
        E: Display,
    {
        self.configure = Some(Arc::new(move |json| take(json).map_err(|error| error.to_string())));
        self
    }

    /// The figures that it counts, shown in the node's status and metrics: asked for every few
    /// seconds, as long as it does anything.
    pub fn figures(mut self, figures: &Figures) -> Self {
        self.figures = Some(figures.clone());
        self
    }

    /// Further figures, computed when they are asked for. Names are `a-z`, `0-9` and `_`.
    pub fn metrics<F>(mut self, count: F) -> Self
    where
        F: Fn() -> Vec<(String, f64)> + Send + Sync + 'static,
    {
        self.metrics = Some(Arc::new(count));
        self
    }

    /// What to do before it ends, beside finishing calls in flight, such as ending streams that
    /// would go on for ever: asked for by its node through `Lifecycle/Drain`, and on SIGTERM. It is
    /// told how long that may take; calls go on meanwhile.
    pub fn drain<F, W, E>(mut self, finish: F) -> Self
    where
        F: Fn(Duration) -> W + Send + Sync + 'static,
        W: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.drain = Some(Arc::new(move |within| {
            finish(within).map(|done| done.map_err(|error| error.to_string())).boxed()
        }));
        self
    }

    /// The encoded `google.protobuf.FileDescriptorSet` that describes its services; may be
    /// called several times. Every service needs one, or nobody could call it without its source.
    pub fn descriptors(mut self, encoded: &[u8]) -> Self {
        self.descriptors.push(encoded.to_vec());
        self
    }

    /// A service it offers: the generated `…Server::new(your type)`.
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.services.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Work to finish before the plugin is ready, such as opening a file or warming a cache. It
    /// answers NOT_SERVING meanwhile; an error ends the program with that sentence.
    pub fn prepare<F, E>(mut self, work: F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        self.preparation = Some(work.map(|done| done.map_err(|error| error.to_string())).boxed());
        self
    }

    /// How long calls in flight may go on once it was told to end; five seconds unless told.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// Serves on this Unix socket, instead of the one that its environment names.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.place.socket = Some(path.into());
        self
    }

    /// Serves on this TCP port of loopback, beside its Unix socket where it has one, and instead of
    /// the port that its environment names.
    pub fn port(mut self, port: u16) -> Self {
        self.place.port = Some(port);
        self
    }

    /// Serves until SIGTERM or SIGINT, finishes what was begun, and is done: the whole `main`.
    ///
    /// Fails with exit code 1 and one sentence on what to do about it.
    pub fn run(self) -> ExitCode {
        serve::run(self)
    }

    /// Its services as one, for a program that serves them within itself instead of running it:
    /// the author's, health, reflection and `Lifecycle`. Its preparation is done first.
    pub async fn into_routes(self) -> Result<Routes, PluginError> {
        serve::routes(self).await
    }

    /// Serves in the background of the caller's runtime on a free loopback port: for tests.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(self) -> Result<Running, PluginError> {
        serve::start(self)
    }
}

/// Which of possibly many instances of this plugin this process is: the id its node gave it in
/// `BH_PLUGIN_INSTANCE`, or `pid-` and the process id where it runs by hand.
pub fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        env::var("BH_PLUGIN_INSTANCE").unwrap_or_else(|_| format!("pid-{}", std::process::id()))
    })
}
