//! A host of its own for each test, with the test double in `examples/probe.rs`.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    collections::BTreeMap,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_plugin_host::{
    Command, Host, HostConfig, HostEvent, LoadError, LoadRequest, MeshDoor, PluginStatus,
    ReadyPlugin, Source, permissions::Access,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use protocol::{
    failure::Failure,
    id::InstanceId,
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply, Store, StoreError},
};
use tokio::{sync::mpsc, time::timeout};

/// Longer than any test needs on a machine that is busy compiling.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The store's twin in memory.
#[derive(Default)]
pub struct Memory(pub Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Store for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut map = self.0.lock();
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], most: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let map = self.0.lock();
        let found = map.iter().filter(|(key, _)| key.starts_with(prefix)).take(most);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Holds the listeners, and serves nothing on them.
pub struct Door;

impl MeshDoor for Door {
    fn open(&self, _: &str, _: Arc<Access>, listener: UnixListener) -> Box<dyn Send> {
        Box::new(listener)
    }
}

pub fn probe_program() -> PathBuf {
    let test = std::env::current_exe().expect("known");
    let program = test.parent().and_then(Path::parent).expect("deps").join("examples/probe");
    assert!(program.is_file(), "{} is built with the tests", program.display());
    program
}

pub struct World {
    pub host: Host,
    pub events: mpsc::Receiver<HostEvent>,
    pub store: Arc<Memory>,
    pub config: HostConfig,
    _directory: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut HostConfig)) -> Self {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path();
        let mut config = HostConfig::new(path.join("run"), path.join("data"));
        config.launcher = vec![probe_program().into(), "__launch".into()];
        config.node_id = "node-1".into();
        config.start_timeout = Duration::from_secs(20);
        config.stop_grace = Duration::from_secs(4);
        config.permissions.allow.push("read:/".parse().expect("a permission"));
        change(&mut config);
        let store = Arc::new(Memory::default());
        let (host, events) =
            Host::start(config.clone(), store.clone(), Arc::new(Door)).await.expect("starts");
        Self { host, events, store, config, _directory: directory }
    }

    pub async fn load(&self, name: &str, arguments: &[&str]) -> Result<PluginStatus, LoadError> {
        self.load_listening(name, "", arguments).await
    }

    pub async fn load_listening(
        &self,
        name: &str,
        listen: &str,
        arguments: &[&str],
    ) -> Result<PluginStatus, LoadError> {
        let mut argv = vec![probe_program().display().to_string()];
        argv.extend(arguments.iter().map(ToString::to_string));
        let command = Command { argv, listen: listen.into(), ..Command::default() };
        let source = Source::Exec(command);
        let request =
            LoadRequest { name: Some(name.into()), wait: true, ..LoadRequest::new(source) };
        timeout(PATIENCE, self.host.load(request)).await.expect("an answer in time")
    }

    /// A package with this manifest, whose program is the test double.
    pub async fn load_manifest(
        &self,
        manifest: &str,
        script: &str,
    ) -> Result<PluginStatus, LoadError> {
        let directory = tempfile::tempdir().expect("made");
        let program = directory.path().join("run.sh");
        std::fs::write(&program, script.replace("PROBE", &probe_program().display().to_string()))
            .expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&program, mode).expect("mode");
        let read = probe_program().parent().expect("a directory").display().to_string();
        let text = format!("{manifest}\nentrypoint: run.sh\npermissions: [\"read:{read}\"]\n");
        std::fs::write(directory.path().join("plugin.yaml"), text).expect("written");
        let source = Source::Path(directory.keep());
        let request = LoadRequest { wait: true, ..LoadRequest::new(source) };
        timeout(PATIENCE, self.host.load(request)).await.expect("an answer in time")
    }

    pub async fn ready(&mut self) -> ReadyPlugin {
        loop {
            match self.event().await {
                HostEvent::Ready(ready) => return ready,
                HostEvent::Gone { .. } => {}
            }
        }
    }

    pub async fn event(&mut self) -> HostEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("in time").expect("the host lives")
    }

    pub async fn reach(&self, instance: InstanceId) -> Result<Arc<dyn Invoke>, Failure> {
        self.host.channels().reach(instance, Instant::now() + PATIENCE).await
    }

    pub async fn see(&self, instance: InstanceId) -> serde_json::Value {
        let channel = self.reach(instance).await.expect("ready");
        let reply = channel.invoke(call("See", empty(), None)).await.expect("answers");
        let answer = read(reply).await;
        serde_json::from_slice(&answer.messages[0]).expect("JSON")
    }
}

pub fn message(bytes: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed.into()
}

pub fn body(bytes: impl Into<Bytes>) -> Body {
    let bytes = bytes.into();
    Body::new(http_body_util::Full::new(bytes).map_err(|never| match never {}))
}

pub fn empty() -> Body {
    body(message(b""))
}

pub fn call(method: &str, body: Body, within: Option<Duration>) -> Call {
    let mut metadata = HeaderMap::new();
    metadata.insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    metadata.insert("x-user", HeaderValue::from_static("somebody"));
    metadata.insert("data-bin", HeaderValue::from_static("AAEC"));
    let head = CallHead {
        path: format!("/probe.v1.Probe/{method}").parse().expect("a path"),
        metadata,
        deadline: within.map(|within| Instant::now() + within),
        locality: Locality::Local,
        caller: Caller::Operator,
    };
    Call { head, body }
}

pub struct Answer {
    pub messages: Vec<Vec<u8>>,
    pub metadata: HeaderMap,
    pub trailers: HeaderMap,
}

pub async fn read(reply: Reply) -> Answer {
    let collected = reply.body.collect().await.expect("no failure of the mesh");
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let mut bytes = collected.to_bytes();
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let header = bytes.split_to(5);
        let length = u32::from_be_bytes(header[1..].try_into().expect("four bytes"));
        messages.push(bytes.split_to(length as usize).to_vec());
    }
    Answer { messages, metadata: reply.metadata, trailers }
}

pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

pub async fn gone_within(pid: u32, limit: Duration) {
    let begun = Instant::now();
    while alive(pid) {
        assert!(begun.elapsed() < limit, "process {pid} lives on after {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
