//! Everything that a node listens on.

use std::{
    net::SocketAddr, os::unix::net::UnixListener as StdUnixListener, path::PathBuf, sync::Arc,
};

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};

use crate::{config::Settings, services::door::Listeners};

/// Everything that listens, bound before anything starts, so that a port in use changes nothing.
pub struct Sockets {
    pub grpc: Option<TcpListener>,
    pub http: Option<TcpListener>,
    pub metrics: Option<TcpListener>,
    pub admin: UnixListener,
    pub mesh: UnixListener,
    pub services: Vec<Listeners>,
    pub files: Arc<SocketFiles>,
}

/// Sockets on disk; they go with the value, also where a later step of the start fails.
pub struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Sockets {
    /// Binds all of `settings`.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let unix = |name: &str| {
            let path = settings.run_dir.join(name);
            let listener = StdUnixListener::bind(&path)
                .with_context(|| format!("cannot listen on {}", path.display()))?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(UnixListener::from_std(listener)?)
        };
        let mut paths: Vec<PathBuf> =
            ["admin.sock", "mesh.sock"].map(|name| settings.run_dir.join(name)).into();
        let mut services = Vec::new();
        for (name, service) in settings.services.iter().filter(|(_, service)| service.enabled) {
            services.push(Listeners::bind(name, service).await?);
            paths.extend(service.unix_socket.clone());
        }
        Ok(Self {
            files: Arc::new(SocketFiles(paths)),
            services,
            grpc: bind("gRPC", "--grpc", settings.grpc).await?,
            http: bind("HTTP", "--http", settings.http).await?,
            metrics: bind("metrics", "--metrics", settings.metrics).await?,
            admin: unix("admin.sock")?,
            mesh: unix("mesh.sock")?,
        })
    }
}

async fn bind(
    what: &str,
    flag: &str,
    address: Option<SocketAddr>,
) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrInUse => anyhow::bail!(
            "cannot serve {what} on {address}: another program listens there; give another address with {flag}, or `{flag} off`"
        ),
        Err(cause) => anyhow::bail!("cannot serve {what} on {address}: {cause}; see {flag}"),
    }
}
