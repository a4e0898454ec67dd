//! nginx with `grpc_pass` in front of the same plugin: what one puts before gRPC servers today.

use std::{
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{FutureExt, future::LocalBoxFuture};
use testnet::{cluster::World, process::Process};

use super::{Group, STARTED_WITHIN, Started, Subject, direct, programs};
use crate::grpc::{Address, Load};
use crate::load::{Demand, Sample};

/// nginx and the plugin behind it.
pub const GROUP: Group =
    Group { names: &["nginx"], start: |world| start(world).boxed_local(), respond: None };

async fn start(world: &World) -> Result<Started> {
    let program = programs("nginx")?.path("NGINX")?;
    let (plugin, socket) = direct::on_unix_socket(world, "echo-nginx").await?;
    let dir = world.path().join("nginx");
    std::fs::create_dir_all(&dir)?;
    // It cannot choose a port and tell which; nobody else here asks for this one meanwhile.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let (dir, socket) = (dir.display(), socket.display());
    // One process, which does what a worker does: no worker outlives a master that was killed.
    // Limits that would end connections, or let calls wait, are out of the way.
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\ntcp_nodelay on;\nkeepalive_requests 1000000000;\n\
         http2_max_concurrent_streams 1024;\nclient_body_temp_path {dir}/body;\n\
         proxy_temp_path {dir}/proxy;\nfastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\nscgi_temp_path {dir}/scgi;\n\
         upstream echo {{ server unix:{socket}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} http2; location / {{ grpc_pass grpc://echo; }} }}\n\
         }}\n"
    );
    let path = world.path().join("nginx.conf");
    std::fs::write(&path, configuration)?;
    let mut command = Command::new(program);
    command.arg("-e").arg("stderr").arg("-p").arg(world.path()).arg("-c").arg(path);
    let nginx = Process::spawn("nginx", command, world.path())?;
    let load = connect(Address::Tcp(address)).await.with_context(|| nginx.evidence(20))?;
    Ok(vec![Box::new(Nginx { load, served: [nginx, plugin] })])
}

/// Connects as soon as it can be.
async fn connect(address: Address) -> Result<Load> {
    let until = Instant::now() + STARTED_WITHIN;
    loop {
        match Load::connect(&address).await {
            Err(_) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            connected => return connected,
        }
    }
}

struct Nginx {
    load: Load,
    served: [Process; 2],
}

impl Subject for Nginx {
    fn name(&self) -> &'static str {
        GROUP.names[0]
    }

    fn way(&self) -> &'static str {
        "gRPC client, nginx with grpc_pass and kept connections, plugin on a Unix socket"
    }

    fn pids(&self) -> Vec<u32> {
        self.served.iter().map(Process::pid).collect()
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        self.load.run(demand).boxed_local()
    }
}
