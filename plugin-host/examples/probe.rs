//! The test double of a plugin: a plain gRPC server that tells what it sees of its jail and
//! misbehaves on demand. With `host` as first argument it is a node in miniature instead, and
//! started as `__launch` it is the launcher.
//!
//! ```text
//! probe [--fd | --tcp PORT | --tls PORT [--strange]] [--lifecycle] [--no-health]
//!       [--no-reflection] [--not-serving]
//!       [--exit CODE] [--silent] [--ignore-term] [--fork] [--say TEXT] [--unhealthy-after N]
//!       [--try JSON] [--eat MIB] [--burn] [--fill MIB]
//! probe host RUN_DIR DATA_DIR [--namespaces-off] [--permission 'P P…'] [--rebind] [--listen L]
//!       [--exec COMMAND… | its own options]
//! ```

#[path = "probe/dial.rs"]
mod dial;
#[path = "probe/exceed.rs"]
mod exceed;
#[path = "probe/listen.rs"]
mod listen;
#[path = "probe/rebind.rs"]
mod rebind;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use prost_types::{
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};
use protocol::proto::plugin::{
    ConfigureRequest, ConfigureResponse, DescribeRequest, DescribeResponse, DrainRequest,
    DrainResponse, ExportStateRequest, ImportStateResponse, Metric, MetricsRequest,
    MetricsResponse, StateChunk,
    lifecycle_server::{Lifecycle, LifecycleServer},
};
use tonic::{Request, Response, body::Body, service::Routes};

const SERVICE: &str = "probe.v1.Probe";
const LIFECYCLE: &str = "blackhole.plugin.v1.Lifecycle";

fn main() {
    launcher::run_if_invoked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if arguments.first().is_some_and(|first| first == "host") {
        runtime.block_on(host(&arguments[1..]));
    } else {
        runtime.block_on(serve(arguments));
    }
}

struct Options(Vec<String>);

impl Options {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }
}

async fn serve(arguments: Vec<String>) {
    let options = Options(arguments);
    if let Some(text) = options.value("--say") {
        println!("{text}");
        eprintln!("{{\"level\":\"warn\",\"message\":\"as json\",\"fields\":{{\"n\":1}}}}");
    }
    if let Some(wish) = options.value("--try") {
        println!("tried: {}", String::from_utf8_lossy(&dial::try_it(wish.as_bytes())));
    }
    if let Some(code) = options.value("--exit") {
        std::process::exit(code.parse().expect("a number"));
    }
    if options.has("--silent") {
        std::future::pending::<()>().await;
    }
    if options.has("--fork") {
        let script = "setsid sleep 1000 >/dev/null 2>&1 &";
        std::process::Command::new("/bin/sh").args(["-c", script]).status().expect("sh");
    }
    exceed::exceed(&options);
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("a signal handler");
    let ignores = options.has("--ignore-term");
    let end = async move {
        term.recv().await;
        if ignores {
            std::future::pending::<()>().await;
        }
    };
    let router = tonic::transport::Server::builder().add_routes(routes(&options));
    listen::serve(router, &options, end).await;
}

fn routes(options: &Options) -> Routes {
    let calls = Arc::new(AtomicU32::new(0));
    let mut routes = Routes::new(Probe { calls: Arc::clone(&calls) });
    if !options.has("--no-health") {
        let (reporter, service) = tonic_health::server::health_reporter();
        let serving = !options.has("--not-serving");
        let limit: Option<u64> =
            options.value("--unhealthy-after").map(|text| text.parse().expect("milliseconds"));
        tokio::spawn(async move {
            let status = |serving| {
                use tonic_health::ServingStatus::{NotServing, Serving};
                if serving { Serving } else { NotServing }
            };
            reporter.set_service_status("", status(serving)).await;
            if let Some(limit) = limit {
                tokio::time::sleep(std::time::Duration::from_millis(limit)).await;
                reporter.set_service_status("", status(false)).await;
            }
        });
        routes = routes.add_service(service);
    }
    if !options.has("--no-reflection") {
        let descriptors = descriptors();
        let mut service = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(&descriptors);
        if options.has("--mute") {
            service = service.with_service_name(SERVICE).with_service_name(LIFECYCLE);
        }
        let service = service.build_v1().expect("reflection");
        routes = routes.add_service(service);
    }
    if options.has("--lifecycle") {
        let (mute, stuck) = (options.has("--mute"), options.has("--stuck"));
        let contract = Contract { mute, stuck, ..Contract::default() };
        routes = routes.add_service(LifecycleServer::new(contract));
    }
    routes
}

/// The optional contract: tells, counts, and takes any configuration but `{"refuse": true}`.
#[derive(Default)]
struct Contract {
    configured: AtomicU32,
    drained: AtomicU32,
    counted: AtomicU32,
    /// It does not say what it is.
    mute: bool,
    /// It never has drained.
    stuck: bool,
}

#[tonic::async_trait]
impl Lifecycle for Contract {
    type ExportStateStream = futures::stream::Empty<Result<StateChunk, tonic::Status>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Told<DescribeResponse> {
        if self.mute {
            return Err(tonic::Status::unimplemented("it says nothing of itself"));
        }
        Ok(Response::new(DescribeResponse {
            name: "probe".into(),
            version: "3.2.1".into(),
            description: "A test double".into(),
            capabilities: vec!["testing".into()],
            dependencies: vec!["nobody >=1".into()],
            ..DescribeResponse::default()
        }))
    }

    async fn configure(&self, request: Request<ConfigureRequest>) -> Told<ConfigureResponse> {
        let part = serde_json::from_slice::<serde_json::Value>(&request.get_ref().configuration);
        let part = part.map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        if part["refuse"] == true {
            return Err(tonic::Status::invalid_argument("refuse is true"));
        }
        self.configured.fetch_add(1, Ordering::Relaxed);
        println!("configured with {part}");
        Ok(Response::new(ConfigureResponse {}))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Told<DrainResponse> {
        self.drained.fetch_add(1, Ordering::Relaxed);
        println!("draining within {} ms", request.get_ref().deadline_ms);
        if self.stuck {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(DrainResponse {}))
    }

    async fn export_state(&self, _: Request<ExportStateRequest>) -> Told<Self::ExportStateStream> {
        Err(tonic::Status::unimplemented("no state"))
    }

    async fn import_state(
        &self,
        _: Request<tonic::Streaming<StateChunk>>,
    ) -> Told<ImportStateResponse> {
        Err(tonic::Status::unimplemented("no state"))
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Told<MetricsResponse> {
        let metric = |name: &str, value: u32| Metric {
            name: name.into(),
            value: value.into(),
            ..Metric::default()
        };
        let configured = self.configured.load(Ordering::Relaxed);
        let asked = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        // The last is no name, and must not be shown.
        let metrics =
            vec![metric("configured", configured), metric("asked", asked), metric("No Name", 1)];
        Ok(Response::new(MetricsResponse { metrics }))
    }
}

type Told<T> = Result<Response<T>, tonic::Status>;

fn descriptors() -> Vec<u8> {
    let method = |name: &str| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".google.protobuf.Empty".into()),
        output_type: Some(".google.protobuf.Empty".into()),
        ..MethodDescriptorProto::default()
    };
    let empty = FileDescriptorProto {
        name: Some("google/protobuf/empty.proto".into()),
        package: Some("google.protobuf".into()),
        message_type: vec![prost_types::DescriptorProto {
            name: Some("Empty".into()),
            ..prost_types::DescriptorProto::default()
        }],
        syntax: Some("proto3".into()),
        ..FileDescriptorProto::default()
    };
    let probe = FileDescriptorProto {
        name: Some("probe.proto".into()),
        package: Some("probe.v1".into()),
        dependency: vec!["google/protobuf/empty.proto".into()],
        service: vec![ServiceDescriptorProto {
            name: Some("Probe".into()),
            method: ["Echo", "Collect", "Count", "See"].map(method).to_vec(),
            ..ServiceDescriptorProto::default()
        }],
        syntax: Some("proto3".into()),
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![empty, probe] }.encode_to_vec()
}

/// Bytes in, bytes out: whatever the messages are.
#[derive(Clone)]
struct Probe {
    calls: Arc<AtomicU32>,
}

impl tonic::server::NamedService for Probe {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for Probe {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(answer(request).await) })
    }
}

async fn answer(request: http::Request<Body>) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let seen = request.headers().clone();
    match method.as_str() {
        // Every message comes back at once: unary and bidirectional alike.
        "Echo" => {
            let frames = request.into_body().into_data_stream().map(|chunk| match chunk {
                Ok(bytes) => Ok(Frame::data(bytes)),
                Err(status) => Err(status),
            });
            respond(frames, 0, &seen)
        }
        // The caller's stream is read to its end first.
        "Collect" => {
            let all = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
            respond(futures::stream::iter([all.map(Frame::data)]), 0, &seen)
        }
        // One message in, ten out.
        "Count" => {
            let frames = (0..10_u8).map(|n| Ok(Frame::data(message(&[n]))));
            respond(futures::stream::iter(frames), 0, &seen)
        }
        "See" => respond(one(&see()), 0, &seen),
        "Try" => {
            let body = request.into_body().collect().await;
            let message = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            // Past the five bytes before the message.
            let wish = message.get(5..).unwrap_or_default().to_vec();
            let tried = tokio::task::spawn_blocking(move || dial::try_it(&wish)).await;
            respond(one(&tried.unwrap_or_default()), 0, &seen)
        }
        "Crash" => std::process::abort(),
        "Exit" => std::process::exit(0),
        "Eat" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1_u8; 1 << 20]);
            }
        }
        "Hang" => std::future::pending().await,
        // One message, then silence.
        "Stall" => {
            let frames = one(b"first").chain(futures::stream::pending());
            respond(frames, 0, &seen)
        }
        "Refuse" => respond(futures::stream::empty(), 7, &seen),
        _ => respond(futures::stream::empty(), 12, &seen),
    }
}

fn one(
    bytes: &[u8],
) -> impl futures::Stream<Item = Result<Frame<Bytes>, tonic::Status>> + Send + use<> {
    futures::stream::iter([Ok(Frame::data(message(bytes)))])
}

fn message(bytes: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed.into()
}

fn respond(
    frames: impl futures::Stream<Item = Result<Frame<Bytes>, tonic::Status>> + Send + 'static,
    status: u32,
    seen: &HeaderMap,
) -> http::Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    trailers.insert("x-trailer", HeaderValue::from_static("last"));
    let body =
        StreamBody::new(frames.chain(futures::stream::iter([Ok(Frame::trailers(trailers))])));
    let mut response = http::Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    for name in ["grpc-timeout", "x-user", "data-bin"] {
        if let Some(value) = seen.get(name) {
            let echoed: http::HeaderName = format!("seen-{name}").parse().expect("a name");
            headers.insert(echoed, value.clone());
        }
    }
    response
}

/// What is visible from here, as JSON.
fn see() -> Vec<u8> {
    let names = |path: &str| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let processes: Vec<String> =
        names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).collect();
    let descriptors: Vec<String> = names("/proc/self/fd")
        .into_iter()
        .filter_map(|name| {
            let target = std::fs::read_link(format!("/proc/self/fd/{name}")).ok()?;
            Some(format!("{name} {}", target.display()))
        })
        .collect();
    let environment: std::collections::BTreeMap<String, String> = std::env::vars().collect();
    let mesh = std::env::var("BH_MESH_SOCKET")
        .map(|path| std::os::unix::net::UnixStream::connect(path).is_ok());
    let seen = serde_json::json!({
        "processes": processes,
        "descriptors": descriptors,
        "environment": environment,
        "root": names("/"),
        "mesh": mesh.unwrap_or(false),
        "interfaces": names("/sys/class/net"),
        "directory": std::env::current_dir().ok(),
    });
    seen.to_string().into_bytes()
}

/// A node in miniature, to be killed: loads itself as a plugin, and says which processes there
/// are.
#[allow(clippy::too_many_lines, reason = "one list of options and what each does")]
async fn host(arguments: &[String]) {
    use blackhole_plugin_host::{Command, Host, HostConfig, LoadRequest, MeshDoor, Source};

    struct NoDoor;
    impl MeshDoor for NoDoor {
        fn open(
            &self,
            _: &str,
            _: Arc<blackhole_plugin_host::permissions::Access>,
            listener: std::os::unix::net::UnixListener,
        ) -> Box<dyn Send> {
            Box::new(listener)
        }
    }
    struct NoStore;
    impl protocol::ports::Store for NoStore {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, protocol::ports::StoreError> {
            Ok(None)
        }
        fn write(
            &self,
            _: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        ) -> Result<(), protocol::ports::StoreError> {
            Ok(())
        }
        fn scan(
            &self,
            _: &[u8],
            _: usize,
        ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, protocol::ports::StoreError> {
            Ok(Vec::new())
        }
    }
    let mut config = HostConfig::new(&arguments[0], &arguments[1]);
    if arguments.iter().any(|argument| argument == "--namespaces-off") {
        config.namespaces = blackhole_plugin_host::NamespacePolicy::Off;
    }
    let permission = Options(arguments.to_vec()).value("--permission").map(str::to_owned);
    if let Some(permission) = &permission {
        // What it asks for it may have.
        config.permissions.allow =
            permission.split(' ').map(|one| one.parse().expect("a permission")).collect();
    }
    if arguments.iter().any(|argument| argument == "--rebind") {
        rebind::serve();
    }
    let (host, _events) =
        Host::start(config, Arc::new(NoStore), Arc::new(NoDoor)).await.expect("starts");
    let mut command = Command::default();
    if let Some(permission) = permission {
        command.permissions = permission.split(' ').map(str::to_owned).collect();
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--exec") {
        let listen = Options(arguments.to_vec()).value("--listen").map(str::to_owned);
        command.listen = listen.unwrap_or_default();
        command.argv = arguments[at + 1..].to_vec();
        command.working_dir = std::env::current_dir().ok();
    } else {
        command.argv.push(std::env::current_exe().expect("known").display().to_string());
        command.argv.extend(arguments[2..].iter().cloned());
    }
    let source = Source::Exec(command);
    let status = match host.load(LoadRequest { wait: true, ..LoadRequest::new(source) }).await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    eprintln!("{status:#?}");
    for record in host.logs(&status.name).expect("known").tail(0) {
        eprintln!("{}", serde_json::to_string(&*record).expect("plain data"));
    }
    println!("{}", status.pid.expect("runs"));
    std::future::pending::<()>().await;
}
