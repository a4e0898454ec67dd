//! Programs that nobody here changed: a grpcio server in Python, a Go server that only knows TCP,
//! and the clients grpcio and grpcurl. `tests/fixtures/prepare.sh` brings them.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use protocol::proto::admin::{Exec, plugin_load_request::From};

use crate::{
    binaries,
    client::{Outcome, run},
};

/// The service of the servers in Python and JavaScript.
pub const GREETER: &str = "greeter.v1.Greeter";

/// The service of the Go server.
pub const CLOCK: &str = "clock.v1.Clock";

/// Has the script bring `programs`, and tells what it said: names with paths.
fn prepare(programs: &[&str]) -> Result<BTreeMap<String, String>> {
    let script = binaries::repository().join("tests").join("fixtures").join("prepare.sh");
    let output = Command::new(&script)
        .args(programs)
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {complaint}", script.display());
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().filter_map(|line| line.split_once('='));
    Ok(said.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The program that tries to leave jails (`tests/fixtures/attack/main.c`).
pub fn attack() -> Result<PathBuf> {
    let said = prepare(&["attack"])?;
    Ok(said.get("ATTACK").context("prepare.sh did not tell ATTACK")?.into())
}

/// Where the foreign programs are.
#[derive(Debug, Clone)]
pub struct Foreign {
    said: BTreeMap<String, String>,
}

impl Foreign {
    /// The programs; brought or built by the first who asks, if they are not there.
    pub fn ready() -> Result<Self> {
        static READY: Mutex<Option<Foreign>> = Mutex::new(None);
        let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(foreign) = &*ready {
            return Ok(foreign.clone());
        }
        Ok(ready.insert(Self { said: prepare(&["python", "clock", "grpcurl"])? }).clone())
    }

    /// Only the server in JavaScript, which not every machine can run.
    pub fn with_node() -> Result<Self> {
        Ok(Self { said: prepare(&["node"])? })
    }

    fn get(&self, name: &str) -> Result<&str> {
        let value = self.said.get(name);
        value.map(String::as_str).with_context(|| format!("prepare.sh did not tell {name}"))
    }

    /// The Python server, on the Unix socket it is given.
    pub fn greeter(&self) -> Result<From> {
        let server = PathBuf::from(self.get("GREETER")?);
        let directory = server.parent().context("a file is in a directory")?;
        let address = "unix:$BH_PLUGIN_SOCKET";
        Ok(From::Exec(Exec {
            argv: [self.get("PYTHON")?, self.get("GREETER")?, "--address", address]
                .map(str::to_owned)
                .to_vec(),
            listen: "unix".into(),
            services: Vec::new(),
            working_dir: directory.display().to_string(),
            read_paths: self.get("PYTHON_READ")?.split(':').map(str::to_owned).collect(),
            permissions: Vec::new(),
        }))
    }

    /// The Python server that offers `blackhole.plugin.v1.Lifecycle`, without any SDK.
    pub fn with_contract(&self) -> Result<From> {
        let repository = binaries::repository();
        let directory = repository.join("tests/fixtures/python_lifecycle");
        let server = directory.join("server.py").display().to_string();
        let protos = repository.join("protocol/proto").display().to_string();
        let address = "unix:$BH_PLUGIN_SOCKET";
        let read = self.get("PYTHON_READ")?.split(':').map(str::to_owned);
        Ok(From::Exec(Exec {
            argv: [self.get("PYTHON")?, &server, "--address", address, "--protos", &protos]
                .map(str::to_owned)
                .to_vec(),
            listen: "unix".into(),
            services: Vec::new(),
            working_dir: directory.display().to_string(),
            read_paths: read.chain([protos]).collect(),
            permissions: Vec::new(),
        }))
    }

    /// The server in JavaScript, on the Unix socket it is given. It has neither reflection nor
    /// health.
    pub fn node_greeter(&self) -> Result<From> {
        let server = PathBuf::from(self.get("NODE_GREETER")?);
        let directory = server.parent().context("a file is in a directory")?;
        let address = "unix:$BH_PLUGIN_SOCKET";
        Ok(From::Exec(Exec {
            argv: [self.get("NODE")?, self.get("NODE_GREETER")?, "--address", address]
                .map(str::to_owned)
                .to_vec(),
            listen: "unix".into(),
            services: vec![GREETER.into()],
            working_dir: directory.display().to_string(),
            read_paths: self.get("NODE_READ")?.split(':').map(str::to_owned).collect(),
            permissions: Vec::new(),
        }))
    }

    /// The Go server, on a TCP port of its own network namespace.
    pub fn clock(&self) -> Result<From> {
        let program = PathBuf::from(self.get("CLOCK")?);
        let directory = program.parent().context("a file is in a directory")?;
        // Any port would do where it has a network of its own; a free one does everywhere.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(From::Exec(Exec {
            argv: vec![self.get("CLOCK")?.into(), "-port".into(), port.to_string()],
            listen: format!("tcp:{port}"),
            services: Vec::new(),
            working_dir: directory.display().to_string(),
            read_paths: vec![directory.display().to_string()],
            permissions: Vec::new(),
        }))
    }

    /// Runs the grpcio client's checks of `services` (`echo`, `greeter`, `clock`) against
    /// `host:port`. Its last line is `N passed, M failed`.
    pub async fn check(&self, address: &str, services: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(self.get("PYTHON")?);
        command.args([self.get("CHECK")?, "--address", address]).args(services);
        run(command).await
    }

    /// Runs grpcurl against `host:port`: `flags`, the address, then `words`.
    pub async fn grpcurl(&self, flags: &[&str], address: &str, words: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(self.get("GRPCURL")?);
        command.arg("-plaintext").args(flags).arg(address).args(words);
        run(command).await
    }
}
