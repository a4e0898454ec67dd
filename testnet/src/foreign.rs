//! Programs that nobody here changed: a grpcio server in Python, a Go server that only knows TCP,
//! and the clients grpcio and grpcurl; grpc-go's interop programs. `tests/fixtures/prepare.sh`
//! brings them.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
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

/// grpc-go's interop programs: the official server and client, and both with further options
/// (`tests/fixtures/go_interop/main.go`).
#[derive(Debug, Clone)]
pub struct Interop {
    said: BTreeMap<String, String>,
}

impl Interop {
    /// The service of both servers.
    pub const SERVICE: &str = "grpc.testing.TestService";

    /// What the official server is loaded for. It has reflection for nothing, and the second it
    /// does not have at all: that it says so is one of the cases.
    const OFFICIAL: [&str; 3] =
        [Self::SERVICE, "grpc.testing.UnimplementedService", "xds.service.orca.v3.OpenRcaService"];

    /// The programs; built by the first who asks, if they are not there.
    pub fn ready() -> Result<Self> {
        static READY: Mutex<Option<Interop>> = Mutex::new(None);
        let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interop) = &*ready {
            return Ok(interop.clone());
        }
        Ok(ready.insert(Self { said: prepare(&["interop"])? }).clone())
    }

    fn get(&self, name: &str) -> Result<&str> {
        let value = self.said.get(name);
        value.map(String::as_str).with_context(|| format!("prepare.sh did not tell {name}"))
    }

    /// The official server, as a plugin. It has neither reflection nor health.
    pub fn server(&self) -> Result<From> {
        on_tcp_port("-port", &[self.get("INTEROP_SERVER")?], &Self::OFFICIAL)
    }

    /// The same service on a server that takes gzip and pings its clients every second; it tells
    /// each connection to go after `age_millis`, 0 for never.
    pub fn server_aged(&self, age_millis: u32) -> Result<From> {
        let age = format!("{age_millis}ms");
        let argv = [self.get("INTEROP")?, "serve", "-max_age", &age];
        on_tcp_port("-port", &argv, &[Self::SERVICE])
    }

    /// Runs one case of the official client against `host:port`.
    pub async fn case(&self, address: &str, case: &str) -> Result<Outcome> {
        let (host, port) = address.rsplit_once(':').context("an address has a port")?;
        let mut command = Command::new(self.get("INTEROP_CLIENT")?);
        command.args(["-server_host", host, "-server_port", port, "-test_case", case]);
        // Those about load reports look at what this balancer of the client's own is told.
        let balancer = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;
        if case.starts_with("orca") {
            command.args(["-service_config_json", balancer]);
        }
        run(command).await
    }

    /// Runs a case that the official client lacks: `compressed`, `steady` or `quiet`.
    pub async fn further(&self, address: &str, case: &str) -> Result<Outcome> {
        let mut command = Command::new(self.get("INTEROP")?);
        command.args(["call", "-address", address, "-case", case]);
        run(command).await
    }
}

/// Runs the checks of the client in JavaScript, by Connect's and gRPC-Web's own libraries, against
/// the Go server behind `host:port`. Its last line is `N passed, M failed`.
pub async fn web_client(address: &str) -> Result<Outcome> {
    let said = prepare(&["web"])?;
    let get =
        |name: &str| said.get(name).with_context(|| format!("prepare.sh did not tell {name}"));
    let mut command = Command::new(get("NODE")?);
    command.arg(get("WEB")?).arg(format!("http://{address}"));
    run(command).await
}

/// A server as a plugin on a TCP port of its own network namespace, which the argument after
/// `flag` tells it.
fn on_tcp_port(flag: &str, argv: &[&str], services: &[&str]) -> Result<From> {
    let program = PathBuf::from(argv.first().context("a program")?);
    let directory = program.parent().context("a file is in a directory")?;
    // Any port would do where it has a network of its own; a free one does everywhere.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
    argv.extend([flag.to_owned(), port.to_string()]);
    Ok(From::Exec(Exec {
        argv,
        listen: format!("tcp:{port}"),
        services: services.iter().map(|&service| service.to_owned()).collect(),
        working_dir: directory.display().to_string(),
        read_paths: vec![directory.display().to_string()],
        permissions: Vec::new(),
    }))
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

    /// The Python server with TLS on a TCP port of its own network namespace: under the certificate
    /// that its node issued for it, and for its node alone.
    pub fn greeter_with_tls(&self) -> Result<From> {
        let From::Exec(exec) = self.greeter()? else { bail!("it is a command line") };
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let program = [self.get("PYTHON")?, self.get("GREETER")?, "--address", &address];
        let files = ["--certificate", "$BH_TLS_CERT", "--key", "$BH_TLS_KEY"];
        let clients = ["--clients", "$BH_TLS_CA"];
        let argv = [&program[..], &files, &clients].concat();
        let argv = argv.into_iter().map(str::to_owned).collect();
        Ok(From::Exec(Exec { argv, listen: format!("tls:{port}"), ..exec }))
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
        on_tcp_port("-port", &[self.get("CLOCK")?], &[])
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
