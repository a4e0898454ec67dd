//! The admin service: what operators and the `blackhole` command ask of this node.
//!
//! Owns how the node shows itself. Refuses to do anything itself: each request is passed to the
//! part that owns it, and its answer is written down in the contract's words.

mod probe;
pub mod show;
mod trace;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use plugin_host::{ChangeError, Command, Host, LoadError, LoadRequest, Source, UnloadError};
use prometheus_client::registry::Registry;
use protocol::{
    failure::{Failure, Reason},
    limits::LOOKUP_MILLIS_MAX,
    ports::Locality,
    proto::admin::{self as api, admin_server::Admin, plugin_load_request::From as LoadFrom},
    service::ServiceName,
};
use router::{Requirement, Router};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    config::Settings, knowledge::Knowledge, log::Level, store::Database, usage::Usage, voice::Ready,
};

/// How long a plugin that is ready may take to be found by calls, before its load is answered.
const ROUTED_WITHIN: Duration = Duration::from_secs(1);

/// Everything the service shows or passes requests to.
pub struct Node {
    pub settings: Settings,
    pub ready: Ready,
    pub host: Host,
    pub knowledge: Knowledge,
    pub router: Router,
    pub database: Database,
    pub usage: Usage,
    /// Of the node's own log.
    pub log: Level,
    /// Everything that the metrics page shows.
    pub registry: Arc<Registry>,
    pub began: Instant,
    /// Bootstrap addresses that did not answer when last tried, and why.
    pub unreachable: Mutex<BTreeMap<String, String>>,
    pub stop: CancellationToken,
}

/// The service.
#[derive(Clone)]
pub struct AdminService(pub Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<api::StatusRequest>) -> Answer<api::StatusResponse> {
        Ok(Response::new(show::status(&self.0)))
    }

    async fn health(&self, _: Request<api::HealthRequest>) -> Answer<api::HealthResponse> {
        Ok(Response::new(show::health(&self.0).await))
    }

    async fn stop(&self, _: Request<api::StopRequest>) -> Answer<api::StopResponse> {
        self.0.stop.cancel();
        Ok(Response::new(api::StopResponse {}))
    }

    async fn log_level(
        &self,
        request: Request<api::LogLevelRequest>,
    ) -> Answer<api::LogLevelResponse> {
        let level = request.into_inner().level;
        let log = &self.0.log;
        let before = if level.is_empty() {
            log.now()
        } else {
            log.set(&level).map_err(Status::invalid_argument)?
        };
        if !level.is_empty() {
            tracing::info!(%level, %before, "the operator changed the log level");
        }
        Ok(Response::new(api::LogLevelResponse { level: log.now(), before }))
    }

    async fn plugin_load(
        &self,
        request: Request<api::PluginLoadRequest>,
    ) -> Answer<api::PluginLoadResponse> {
        let request = load_request(request.into_inner())?;
        let loaded = self.0.host.load(request).await.map_err(|error| refused(&error))?;
        if let Some(instance) = loaded.instance {
            let found = async {
                for service in &loaded.services {
                    self.0.router.finds(service, instance).await;
                }
            };
            // It may have ended meanwhile; its status says so.
            let _ = tokio::time::timeout(ROUTED_WITHIN, found).await;
        }
        let plugin = Some(show::plugin(&self.0, loaded));
        Ok(Response::new(api::PluginLoadResponse { plugin }))
    }

    async fn plugin_list(
        &self,
        _: Request<api::PluginListRequest>,
    ) -> Answer<api::PluginListResponse> {
        let plugins = self.0.host.list();
        let plugins = plugins.into_iter().map(|it| show::plugin(&self.0, it)).collect();
        Ok(Response::new(api::PluginListResponse { plugins }))
    }

    async fn plugin_info(&self, request: Request<api::PluginInfoRequest>) -> Answer<api::Plugin> {
        let name = request.into_inner().name;
        let found = self.0.host.info(&name);
        let found = found.map_err(|error| Status::not_found(error.to_string()))?;
        Ok(Response::new(show::plugin(&self.0, found)))
    }

    type PluginLogsStream = Pin<Box<dyn Stream<Item = Result<api::LogLine, Status>> + Send>>;

    async fn plugin_logs(
        &self,
        request: Request<api::PluginLogsRequest>,
    ) -> Answer<Self::PluginLogsStream> {
        let request = request.into_inner();
        let wanted = show::log_filter(&request, std::time::SystemTime::now());
        let api::PluginLogsRequest { name, follow, tail, .. } = request;
        let logs = self.0.host.logs(&name);
        let logs = logs.map_err(|error| Status::not_found(error.to_string()))?;
        let (mut kept, live) = logs.follow(0);
        kept.retain(|record| wanted.takes(record));
        let surplus = if tail == 0 { 0 } else { kept.len().saturating_sub(tail as usize) };
        let kept: Vec<_> = kept[surplus..].iter().map(|it| Ok(show::log(it))).collect();
        let kept = futures::stream::iter(kept);
        if !follow {
            return Ok(Response::new(Box::pin(kept)));
        }
        let live = tokio_stream::wrappers::BroadcastStream::new(live)
            // A reader that is too slow loses lines rather than slowing the plugin.
            .filter_map(move |line| {
                std::future::ready(line.ok().filter(|record| wanted.takes(record)))
            })
            .map(|line| Ok(show::log(&line)))
            .take_until(self.0.stop.clone().cancelled_owned());
        Ok(Response::new(Box::pin(kept.chain(live))))
    }

    async fn plugin_unload(
        &self,
        request: Request<api::PluginUnloadRequest>,
    ) -> Answer<api::PluginUnloadResponse> {
        let name = request.into_inner().name;
        match self.0.host.unload(&name).await {
            Ok(()) => Ok(Response::new(api::PluginUnloadResponse {})),
            Err(error @ UnloadError::Unknown(_)) => Err(Status::not_found(error.to_string())),
            Err(error @ UnloadError::Needed { .. }) => {
                Err(Status::failed_precondition(error.to_string()))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn plugin_restart(
        &self,
        request: Request<api::PluginRestartRequest>,
    ) -> Answer<api::Plugin> {
        let changed = self.0.host.restart(&request.into_inner().name).await;
        Ok(Response::new(show::plugin(&self.0, changed.map_err(|error| unchanged(&error))?)))
    }

    async fn plugin_reload(
        &self,
        request: Request<api::PluginReloadRequest>,
    ) -> Answer<api::Plugin> {
        let changed = self.0.host.reload(&request.into_inner().name).await;
        Ok(Response::new(show::plugin(&self.0, changed.map_err(|error| unchanged(&error))?)))
    }

    async fn plugin_scale(&self, request: Request<api::PluginScaleRequest>) -> Answer<api::Plugin> {
        let api::PluginScaleRequest { name, instances } = request.into_inner();
        let changed = self.0.host.scale(&name, instances).await;
        Ok(Response::new(show::plugin(&self.0, changed.map_err(|error| unchanged(&error))?)))
    }

    async fn plugin_limit(&self, request: Request<api::PluginLimitRequest>) -> Answer<api::Plugin> {
        let request = request.into_inner();
        let wish = protocol::manifest::Resources {
            cpu_percent: request.cpu_percent,
            // The manifest's and the configuration's to say.
            cpu_guaranteed: None,
            cpu_cores: request.cpu_cores,
            cpu_seconds: request.cpu_seconds,
            memory_bytes: request.memory_bytes,
            files_max: request.files_max,
            file_size_bytes: request.file_size_bytes,
            processes_max: request.processes_max,
            disk_bytes: request.disk_bytes,
            disk_bandwidth: request.disk_bandwidth,
            network_bandwidth: request.network_bandwidth,
        };
        let changed = self.0.host.limit(&request.name, wish).await;
        Ok(Response::new(show::plugin(&self.0, changed.map_err(|error| unchanged(&error))?)))
    }

    async fn services(&self, _: Request<api::ServicesRequest>) -> Answer<api::ServicesResponse> {
        let offers = self.0.knowledge.offers();
        let services = offers.into_iter().map(|(name, offers)| api::Service {
            name: name.to_string(),
            providers: offers.iter().map(|offer| show::provider(&self.0, offer)).collect(),
        });
        Ok(Response::new(api::ServicesResponse { services: services.collect() }))
    }

    async fn describe(
        &self,
        request: Request<api::DescribeRequest>,
    ) -> Answer<api::DescribeResponse> {
        let service = service_name(&request.into_inner().service)?;
        let described = self.0.knowledge.describe(service).await;
        let (provider, descriptor_set) = described.map_err(|failure| failed(&failure))?;
        let provider = provider.to_string();
        Ok(Response::new(api::DescribeResponse { descriptor_set, provider }))
    }

    async fn peers(&self, _: Request<api::PeersRequest>) -> Answer<api::PeersResponse> {
        Ok(Response::new(show::peers(&self.0)))
    }

    async fn registry_query(
        &self,
        request: Request<api::RegistryQueryRequest>,
    ) -> Answer<api::RegistryQueryResponse> {
        let service = service_name(&request.into_inner().service)?;
        let began = Instant::now();
        let deadline = began + Duration::from_millis(LOOKUP_MILLIS_MAX);
        let in_dht = self.0.knowledge.peer().query_dht(service.clone(), deadline).await;
        let lookup_ms = began.elapsed().as_millis() as u64;
        let offers = self.0.knowledge.offers().remove(&service).unwrap_or_default();
        let known = offers.iter().map(|offer| show::provider(&self.0, offer)).collect();
        let in_dht = in_dht.iter().map(ToString::to_string).collect();
        Ok(Response::new(api::RegistryQueryResponse { known, in_dht, lookup_ms }))
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Answer<api::ExplainResponse> {
        let api::ExplainRequest { service, locality } = request.into_inner();
        let service = service_name(&service)?;
        let locality = locality_of(&locality)?;
        let told = self.0.router.explain(&service, locality, &Requirement::default());
        let offers = self.0.knowledge.offers().remove(&service).unwrap_or_default();
        Ok(Response::new(show::explanation(&self.0, &told, &offers)))
    }

    async fn trace(&self, request: Request<api::TraceRequest>) -> Answer<api::TraceResponse> {
        Ok(Response::new(trace::trace(&self.0, request.into_inner()).await?))
    }
}

fn load_request(request: api::PluginLoadRequest) -> Result<LoadRequest, Status> {
    let source = match request.from {
        Some(LoadFrom::Path(path)) => Source::Path(path.into()),
        Some(LoadFrom::Exec(exec)) => Source::Exec(Command {
            argv: exec.argv,
            listen: exec.listen,
            services: exec.services,
            working_dir: (!exec.working_dir.is_empty()).then(|| exec.working_dir.into()),
            read_paths: exec.read_paths.into_iter().map(Into::into).collect(),
            permissions: exec.permissions,
        }),
        None => return Err(Status::invalid_argument("say what to load: a path or a command")),
    };
    let name = (!request.name.is_empty()).then_some(request.name);
    let instances = (request.instances > 0).then_some(request.instances);
    Ok(LoadRequest { name, wait: request.wait, instances, ..LoadRequest::new(source) })
}

fn service_name(text: &str) -> Result<ServiceName, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

fn locality_of(text: &str) -> Result<Locality, Status> {
    match text {
        "" | "prefer-local" => Ok(Locality::PreferLocal),
        "local" => Ok(Locality::Local),
        "any" => Ok(Locality::Any),
        _ => match text.strip_prefix("peer=").map(str::parse) {
            Some(Ok(peer)) => Ok(Locality::Peer(peer)),
            _ => Err(Status::invalid_argument(format!(
                "`{text}` is not a locality: local, prefer-local, any or peer=ID"
            ))),
        },
    }
}

fn refused(error: &LoadError) -> Status {
    let text = error.to_string();
    match error {
        LoadError::Unreadable { .. } => Status::not_found(text),
        LoadError::Manifest { .. } | LoadError::Invalid(_) => Status::invalid_argument(text),
        LoadError::AlreadyLoaded(_) => Status::already_exists(text),
        LoadError::TooMany(_) => Status::resource_exhausted(text),
        LoadError::NotStarted { .. } => Status::failed_precondition(text),
        LoadError::Store(_) => Status::internal(text),
        LoadError::ShuttingDown => Status::unavailable(text),
    }
}

fn unchanged(error: &ChangeError) -> Status {
    match error {
        ChangeError::Unknown(_) => Status::not_found(error.to_string()),
        ChangeError::Refused(cause) => refused(cause),
        ChangeError::NotReady { .. } => Status::failed_precondition(error.to_string()),
    }
}

/// The failure of a request to somebody else, in the admin API's own codes.
fn failed(failure: &Failure) -> Status {
    match failure.reason {
        Reason::NotAvailable => Status::not_found(failure.to_string()),
        _ => Status::new(tonic::Code::from(failure.grpc_code() as i32), failure.to_string()),
    }
}
