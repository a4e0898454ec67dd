//! The plugin as a plain gRPC server, asked directly: on a Unix socket, on TCP, and on TCP by the
//! client that programs in Rust use, tonic's.

use std::{path::Path, path::PathBuf, process::Command, rc::Rc};

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::LocalBoxFuture};
use plugins::demo::{SayRequest, echo_client::EchoClient};
use testnet::{binaries, cluster::World, process::Process};
use tonic::transport::{Channel, Endpoint};

use super::{Group, STARTED_WITHIN, Started, Subject, address_in};
use crate::grpc::{Address, Load, PAYLOAD};
use crate::load::{self, Demand, Sample};

/// gRPC without anything between.
pub const GROUP: Group = Group {
    names: &["direct-tcp", "direct-unix", "direct-tonic"],
    start: |world| start(world).boxed_local(),
    respond: None,
};

async fn start(world: &World) -> Result<Started> {
    let tcp = echo(world.path(), "echo-tcp", None)?;
    let address = tcp.output().find(0, STARTED_WITHIN, |line| address_in(&line.text)).await?;
    let tcp = Rc::new(tcp);
    let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let tonic = Tonic { client: EchoClient::new(channel.connect().await?), server: tcp.clone() };
    let (unix, socket) = on_unix_socket(world, "echo-unix").await?;
    Ok(vec![
        Box::new(Direct {
            name: GROUP.names[0],
            way: "gRPC over TCP",
            load: Load::connect(&Address::Tcp(address)).await?,
            server: tcp,
        }),
        Box::new(Direct {
            name: GROUP.names[1],
            way: "gRPC over a Unix socket",
            load: Load::connect(&Address::Unix(socket)).await?,
            server: unix.into(),
        }),
        Box::new(tonic),
    ])
}

/// The plugin on a socket of its own, without a host.
pub async fn on_unix_socket(world: &World, name: &str) -> Result<(Process, PathBuf)> {
    let socket = world.path().join(format!("{name}.sock"));
    let process = echo(world.path(), name, Some(&socket))?;
    let ready =
        process.output().find(0, STARTED_WITHIN, |line| line.text.contains("ready").then_some(()));
    ready.await.with_context(|| process.evidence(20))?;
    Ok((process, socket))
}

fn echo(logs: &Path, name: &str, socket: Option<&PathBuf>) -> Result<Process> {
    let mut command = Command::new(binaries::find("echo")?);
    command.env_remove("BH_PLUGIN_SOCKET").env_remove("LISTEN_FDS");
    command.envs(socket.map(|path| ("BH_PLUGIN_SOCKET", path)));
    Process::spawn(name, command, logs)
}

/// Asked by the client of `grpc.rs`.
struct Direct {
    name: &'static str,
    way: &'static str,
    load: Load,
    server: Rc<Process>,
}

impl Subject for Direct {
    fn name(&self) -> &'static str {
        self.name
    }

    fn way(&self) -> &'static str {
        self.way
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.server.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        self.load.run(demand).boxed_local()
    }
}

/// Asked by tonic's own client.
struct Tonic {
    client: EchoClient<Channel>,
    server: Rc<Process>,
}

impl Subject for Tonic {
    fn name(&self) -> &'static str {
        GROUP.names[2]
    }

    fn way(&self) -> &'static str {
        "gRPC over TCP, generated client of tonic"
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.server.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        let text = String::from_utf8_lossy(PAYLOAD).into_owned();
        let client = self.client.clone();
        let asking = load::closed(demand, move || {
            let (mut client, text) = (client.clone(), text.clone());
            async move || {
                let reply = client.say(SayRequest { text: text.clone() }).await?.into_inner();
                ensure!(reply.text.ends_with(&text), "an answer of another content");
                Ok(())
            }
        });
        asking.boxed_local()
    }
}
