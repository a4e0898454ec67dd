//! Suite `calls`: what the mesh costs a call.
//!
//! The same program (`echo`, in Rust) is asked the same question (32 bytes) by the same client:
//! directly, through the peer that runs it, and through another peer. NATS carries the same bytes
//! through its server to a responder in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use testnet::cluster::World;
use testnet::process::Process;
use testnet::{Cluster, binaries, packages};

use crate::report::{self, Better, Figure};
use crate::{Effort, grpc, load::Sample, machine, nats};

/// Calls at once, besides one after another.
const IN_FLIGHT: [usize; 2] = [64, 256];
/// The client differs from that of gRPC, which has a task for each call: said with every figure.
const NATS_WAY: &str = "NATS, request and reply, one loop that writes in batches";
/// How long a helper program may take to say that it is there.
const STARTED_WITHIN: Duration = Duration::from_secs(20);
/// How long the second peer may take to learn of the first one's plugin.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// With more programs busy than this, on average, before anything began, the figures say so.
const BUSY_MAX: f64 = 1.0;
/// More than this much of the processors' time gone to others, in percent, is said.
const STOLEN_PERCENT_MAX: f64 = 2.0;

/// Starts everything, measures it in turns, and ends it.
pub async fn measure(effort: Effort, only: &str) -> Result<Vec<Figure>> {
    let busy = machine::busy_before();
    println!("{}; {busy:.1} programs were busy before", machine::described());
    let world = World::new()?;
    let mut subjects = Vec::new();
    let mut helpers = Vec::new();
    let mut cluster = None;
    let wanted = |names: &[&str]| names.iter().any(|name| name.contains(only));
    if wanted(&["direct-unix", "direct-tcp"]) {
        helpers.extend(plain_servers(&world, &mut subjects).await?);
    }
    if wanted(&["one-peer", "two-peers"]) {
        cluster = Some(through_peers(&mut subjects).await?);
    }
    if wanted(&["nats"]) {
        match nats_server(&world).await {
            Ok((processes, load)) => {
                subjects.push(Subject::new("nats", NATS_WAY, Load::Nats(load)));
                helpers.extend(processes);
            }
            Err(error) => eprintln!("\n*** NATS is left out: {error:#} ***\n"),
        }
    }
    subjects.retain(|subject| subject.name.contains(only));
    ensure!(!subjects.is_empty(), "no subject's name contains {only:?}");
    let before = machine::Ticks::now();
    for run in 1..=effort.runs {
        for subject in &mut subjects {
            subject.measure(effort).await.with_context(|| subject.name.to_owned())?;
        }
        println!("run {run} of {} done", effort.runs);
    }
    let stolen = machine::Ticks::now().stolen_percent_since(before);
    if stolen > STOLEN_PERCENT_MAX {
        println!("careful: {stolen:.1} % of the processors' time went to others meanwhile");
    }
    let mut figures = figures(&subjects, effort);
    if busy > BUSY_MAX {
        println!("careful: the machine was busy with other work; quote none of these figures");
        let beside = format!("; beside other work (load {busy:.1})");
        for figure in &mut figures {
            figure.method.push_str(&beside);
        }
    }
    print!("{}", report::table(&figures));
    drop(subjects);
    drop(helpers);
    if let Some(cluster) = cluster {
        cluster.stop().await?;
    }
    Ok(figures)
}

/// One way to ask, and what was measured of it.
struct Subject {
    name: &'static str,
    way: &'static str,
    load: Load,
    p50: Vec<f64>,
    p99: Vec<f64>,
    rates: [Vec<f64>; IN_FLIGHT.len()],
}

enum Load {
    Grpc(grpc::Load),
    Nats(nats::Load),
}

impl Load {
    async fn run(&mut self, in_flight: usize, duration: Duration) -> Result<Sample> {
        match self {
            Self::Grpc(load) => load.run(in_flight, duration).await,
            Self::Nats(load) => load.run(in_flight, duration).await,
        }
    }
}

impl Subject {
    fn new(name: &'static str, way: &'static str, load: Load) -> Self {
        Self { name, way, load, p50: Vec::new(), p99: Vec::new(), rates: Default::default() }
    }

    async fn measure(&mut self, effort: Effort) -> Result<()> {
        self.load.run(1, effort.warm_up).await?;
        let mut single = self.load.run(1, effort.single).await?;
        self.p50.push(single.percentile(0.5));
        self.p99.push(single.percentile(0.99));
        for (in_flight, rates) in IN_FLIGHT.into_iter().zip(&mut self.rates) {
            self.load.run(in_flight, effort.warm_up).await?;
            rates.push(self.load.run(in_flight, effort.loaded).await?.rate());
        }
        Ok(())
    }

    fn figures(&self, effort: Effort) -> Vec<Figure> {
        let of = |measure: &str, unit, runs: &[f64], how: String| {
            let better = if unit == "µs" { Better::Lower } else { Better::Higher };
            Figure::of(format!("calls.{}.{measure}", self.name), unit, better, runs, how)
        };
        let (way, each) = (self.way, effort.single.as_secs_f64());
        let alone = format!("{way}; 32 B, one call after another, {each} s a run");
        let mut figures =
            vec![of("p50", "µs", &self.p50, alone.clone()), of("p99", "µs", &self.p99, alone)];
        for (in_flight, rates) in IN_FLIGHT.into_iter().zip(&self.rates) {
            let each = effort.loaded.as_secs_f64();
            let how =
                format!("{way}; 32 B, {in_flight} in flight on one connection, {each} s a run");
            figures.push(of(&format!("rate-{in_flight}"), "req/s", rates, how));
        }
        figures
    }
}

/// Peers beside direct calls over TCP, which is how their clients reach them, and beside NATS.
fn figures(subjects: &[Subject], effort: Effort) -> Vec<Figure> {
    let all: Vec<_> = subjects.iter().map(|subject| (subject, subject.figures(effort))).collect();
    let direct = all.iter().find(|(subject, _)| subject.name == "direct-tcp");
    let mut figures = Vec::new();
    for (subject, own) in &all {
        match direct {
            Some((_, direct))
                if subject.name.ends_with("-peer") || subject.name.ends_with("-peers") =>
            {
                figures.extend(own.iter().zip(direct).map(|(own, peer)| own.clone().beside(peer)));
            }
            _ => figures.extend(own.iter().cloned()),
        }
    }
    figures
}

/// The plugin as a plain gRPC server, on a Unix socket and on TCP.
async fn plain_servers(world: &World, subjects: &mut Vec<Subject>) -> Result<Vec<Process>> {
    let path = world.path().join("echo.sock");
    let unix = echo(world.path(), "echo-unix", Some(&path))?;
    unix.output().find(0, STARTED_WITHIN, |line| line.text.contains("ready").then_some(())).await?;
    let load = grpc::Load::connect(&grpc::Address::Unix(path)).await?;
    subjects.push(Subject::new("direct-unix", "gRPC over a Unix socket", Load::Grpc(load)));

    let tcp = echo(world.path(), "echo-tcp", None)?;
    let address = tcp.output().find(0, STARTED_WITHIN, |line| address_in(&line.text)).await?;
    let load = grpc::Load::connect(&grpc::Address::Tcp(address)).await?;
    subjects.push(Subject::new("direct-tcp", "gRPC over TCP", Load::Grpc(load)));
    Ok(vec![unix, tcp])
}

fn echo(logs: &Path, name: &str, socket: Option<&PathBuf>) -> Result<Process> {
    let mut command = Command::new(binaries::find("echo")?);
    command.env_remove("BH_PLUGIN_SOCKET").env_remove("LISTEN_FDS");
    command.envs(socket.map(|path| ("BH_PLUGIN_SOCKET", path)));
    Process::spawn(name, command, logs)
}

/// The `host:port` at the end of a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let last = line.split_whitespace().last()?;
    last.trim_start_matches("http://").parse().ok()
}

/// Two peers that found each other; the plugin is on the first.
async fn through_peers(subjects: &mut Vec<Subject>) -> Result<Cluster> {
    let cluster = Cluster::start(&["near", "far"]).await?;
    let (near, far) = (cluster.peer("near")?, cluster.peer("far")?);
    near.load(&packages::plugin("echo")?).await?;
    far.sees("demo.v1.Echo", &[near.peer_id()], SEEN_WITHIN).await?;
    let ways = [
        ("one-peer", "gRPC client, peer, plugin", near),
        ("two-peers", "gRPC client, peer, peer, plugin", far),
    ];
    for (name, way, node) in ways {
        let address = node.ready().grpc.parse().context("a peer's gRPC address")?;
        let load = grpc::Load::connect(&grpc::Address::Tcp(address)).await?;
        subjects.push(Subject::new(name, way, Load::Grpc(load)));
    }
    Ok(cluster)
}

/// A NATS server and a responder behind it.
async fn nats_server(world: &World) -> Result<(Vec<Process>, nats::Load)> {
    let script = binaries::repository().join("tests").join("fixtures").join("prepare.sh");
    let prepared = Command::new(&script).arg("nats").output();
    let prepared = prepared.with_context(|| format!("cannot run {}", script.display()))?;
    if !prepared.status.success() {
        bail!("{}", String::from_utf8_lossy(&prepared.stderr).trim());
    }
    let said = String::from_utf8(prepared.stdout)?;
    let program = said.lines().find_map(|line| line.strip_prefix("NATS_SERVER="));
    let mut command = Command::new(program.context("prepare.sh did not tell NATS_SERVER")?);
    command.args(["--addr", "127.0.0.1", "--port", "-1"]);
    let server = Process::spawn("nats-server", command, world.path())?;
    let listens = |text: &str| text.contains("Listening for client connections");
    let address = server
        .output()
        .find(0, STARTED_WITHIN, |line| listens(&line.text).then(|| address_in(&line.text))?)
        .await?;

    let mut command = Command::new(std::env::current_exe()?);
    // The settings of this run are not the responder's.
    command.env_remove("SUITE").env_remove("QUICK").env_remove("ONLY");
    command.arg("nats-responder").arg(address.to_string());
    let responder = Process::spawn("nats-responder", command, world.path())?;
    responder.output().find(0, STARTED_WITHIN, |line| (line.text == "ready").then_some(())).await?;
    let load = nats::Load::connect(address).await?;
    Ok((vec![responder, server], load))
}
