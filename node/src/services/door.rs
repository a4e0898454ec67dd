//! The way to one service alone: `services.NAME.port` and `services.NAME.unix_socket`.
//!
//! Beside the gateway, through which everything is reached, the papers give each service a port and
//! a socket of its own. Both serve what that service offers, whichever of its instances answers,
//! and nothing else: neither its siblings nor the mesh.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, net::UnixListener as StdUnixListener},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use gateway::Catalog;
use plugin_host::ReadyPlugin;
use protocol::{
    failure::{Failure, Reason},
    ports::{Call, Invoke, Reply},
    service::ServiceName,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{config::Service, local::LocalPlugins};

/// What one service listens on, bound before anything starts.
pub struct Listeners {
    pub name: String,
    pub tcp: Option<TcpListener>,
    pub unix: Option<UnixListener>,
}

impl Listeners {
    /// Binds what `service` is to listen on; nothing where it says nothing.
    pub async fn bind(name: &str, service: &Service) -> anyhow::Result<Self> {
        let tcp = match service.port {
            None => None,
            Some(port) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let bound = TcpListener::bind(address).await;
                Some(bound.with_context(|| {
                    format!(
                        "cannot serve {name} on {address}: give it another port with \
                         services.{name}.port"
                    )
                })?)
            }
        };
        let unix = match &service.unix_socket {
            None => None,
            Some(path) => Some(bind_unix(path).with_context(|| {
                format!(
                    "cannot serve {name} on {}: give it another path with \
                     services.{name}.unix_socket",
                    path.display()
                )
            })?),
        };
        Ok(Self { name: name.into(), tcp, unix })
    }
}

/// Binds a socket that only this user can open. One that a dead node left is replaced; one that
/// answers is somebody's, and so is anything that is no socket.
fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    use std::io::{Error, ErrorKind};
    use std::os::unix::{fs::FileTypeExt, net::UnixStream};
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(ErrorKind::AlreadyExists, "something else is there"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(Error::new(ErrorKind::AddrInUse, "another program answers there"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = StdUnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// One service of this node, as its own listeners see the world.
#[derive(Clone)]
pub struct Door {
    name: Arc<str>,
    /// Reaches plugins of this node only.
    invoke: Arc<dyn Invoke>,
    local: LocalPlugins,
    tables: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl Door {
    /// To the service that runs as plugin `name`.
    pub fn new(
        name: &str,
        invoke: Arc<dyn Invoke>,
        local: LocalPlugins,
        tables: watch::Receiver<u64>,
        stop: CancellationToken,
    ) -> Self {
        Self { name: name.into(), invoke, local, tables, stop }
    }

    fn runs(&self) -> Vec<Arc<ReadyPlugin>> {
        let all = self.local.all();
        all.values().filter(|plugin| *plugin.name == *self.name).cloned().collect()
    }
}

impl Invoke for Door {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let service = call.head.path.service();
        if !self.is_offered(&service) {
            let message = format!("only {} answers here, and it has no {service}", self.name);
            let failure = Failure::not_started(Reason::NotAvailable, message);
            return Box::pin(std::future::ready(Err(failure)));
        }
        self.invoke.invoke(call)
    }
}

impl Catalog for Door {
    fn services(&self) -> Vec<ServiceName> {
        let runs = self.runs();
        let first = runs.first().map(|run| run.services.iter().map(|(name, _)| name.clone()));
        first.map(Iterator::collect).unwrap_or_default()
    }

    fn is_offered(&self, service: &ServiceName) -> bool {
        self.runs().iter().any(|run| run.services.iter().any(|(name, _)| name == service))
    }

    fn descriptors(
        &self,
        service: ServiceName,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let found = self.local.descriptors_of(&service).filter(|_| self.is_offered(&service));
        let found = found.ok_or_else(|| Failure::not_available(&service));
        Box::pin(std::future::ready(found))
    }

    fn is_serving(&self) -> bool {
        !self.stop.is_cancelled() && !self.runs().is_empty()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.tables.clone()
    }
}
