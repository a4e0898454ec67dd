//! The egress proxy: the one way out of a jail's network, and it leads through the host.
//!
//! The jail's first process opens a port on the jail's own loopback and hands the listener here.
//! What connects there says by HTTP `CONNECT`, by an HTTP request in absolute form, or by SOCKS5
//! where it wants to go. The host looks names up itself, judges name, port and address
//! ([`decide`]), and connects to the very address that it judged, so that no second look-up can
//! lead elsewhere.
//!
//! Owns the connections of one run: they end with the task that [`serve`] gives. Refuses to look
//! into what is carried. Every refusal is answered in the client's own protocol, counted, and
//! says which permission to add.
//!
//! - `decide`: pure. `lookup`: names to addresses, bounded.
//! - `http`, `socks`: the two protocols. `metered`: bytes counted, shaped, and ended when idle.

pub(crate) mod bucket;
mod decide;
mod http;
mod lookup;
mod metered;
mod socks;

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use protocol::manifest::{
    Permission,
    permission::{HostRule, IpNet, NetworkRule, PortRange},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

pub use self::decide::{Refusal, decide};
pub(crate) use self::lookup::Lookups;
use self::{decide::Reason, metered::Metered};
use crate::permissions::{Access, Host, Resolved};

/// Connections of one plugin at once; further ones wait until one ends. A client library's pool
/// has tens; each costs the host two descriptors and some kilobytes.
const CONNECTIONS_MAX: usize = 256;

/// Look-ups of one plugin at once, so that none keeps all others from looking up.
const LOOKUPS_MAX: usize = 4;

/// How long a client may take to say its first byte, and each whole head after that.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long connecting to all addresses of a host may take together.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection may carry nothing in either direction.
const IDLE_MAX: Duration = Duration::from_mins(5);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// What a refusal costs whoever asks: a plugin that asks in a loop must not cost the host a core.
const REFUSAL_REST: Duration = Duration::from_millis(20);

/// How long accepting rests when the machine is out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The port of the proxy on the jail's loopback, and the one it takes where the plugin itself
/// listens on that.
const PORTS: [u16; 2] = [3_128, 3_129];

/// The proxy's port for a plugin that listens on `taken` itself.
pub(crate) fn port(taken: Option<u16>) -> u16 {
    if taken == Some(PORTS[0]) { PORTS[1] } else { PORTS[0] }
}

/// What tells common HTTP, gRPC and command-line clients where the proxy is. `ALL_PROXY` names
/// HTTP, because many clients that read it know no SOCKS.
pub(crate) fn environment(port: u16) -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{port}");
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let lower = ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy"];
    let proxies = names.into_iter().chain(lower).map(|name| (name.to_owned(), proxy.clone()));
    // Its own loopback is its own.
    let direct = ["NO_PROXY", "no_proxy", "no_grpc_proxy"]
        .map(|name| (name.to_owned(), "localhost,127.0.0.1,::1".to_owned()));
    proxies.chain(direct).collect()
}

/// Serves the jail that `listener` came from until the handle is dropped; every connection ends
/// with it.
pub(crate) fn serve(
    listener: OwnedFd,
    access: Arc<Access>,
    lookups: Lookups,
) -> io::Result<AbortOnDropHandle<()>> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let own = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let gate = Gate { access, lookups, own };
    Ok(AbortOnDropHandle::new(tokio::spawn(accept(listener, gate))))
}

async fn accept(listener: TcpListener, gate: Gate) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((client, _)) => {
                    connections.spawn(one(client, gate.clone()));
                    if connections.len() == CONNECTIONS_MAX {
                        let text = format!(
                            "{CONNECTIONS_MAX} outbound connections are open; further ones wait"
                        );
                        gate.access.log(&text);
                    }
                }
                Err(_) => sleep(ACCEPT_REST).await,
            },
        }
    }
}

/// One connection of the plugin. SOCKS5 begins with a 5, and no HTTP method does.
async fn one(client: TcpStream, gate: Gate) {
    let _ = client.set_nodelay(true);
    let mut first = [0_u8];
    match timeout(HEAD_PATIENCE, client.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == socks::VERSION => socks::serve(client, gate).await,
        Ok(Ok(1)) => http::serve(client, gate).await,
        // It went away, or said nothing for too long.
        _ => {}
    }
}

/// Why there is no connection.
#[derive(Debug)]
enum NoWay {
    /// It is not granted.
    Refused(String),
    /// The name led nowhere.
    Unknown(String),
    /// Nobody answered there.
    Unreachable(String),
}

/// What every connection of one plugin goes through.
#[derive(Clone)]
struct Gate {
    access: Arc<Access>,
    lookups: Lookups,
    /// This plugin's share of look-ups.
    own: Arc<Semaphore>,
}

impl Gate {
    /// Connects to `host`, if that is granted.
    async fn connect(&self, host: &Host, port: u16) -> Result<Metered, NoWay> {
        let grants = &self.access.granted().network;
        // Before anything is looked up: the question itself would tell something.
        if port == 0 || !grants.may_ask(host, port) {
            return Err(self.refused(host, port, &Refusal::unasked(grants, host, port)).await);
        }
        let resolved = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = self.lookups.addresses(name, &self.own).await;
                found.map_err(|error| NoWay::Unknown(format!("{host}: {error}")))?
            }
        };
        let resolved: Vec<Resolved> = resolved
            .into_iter()
            .take(ADDRESSES_MAX)
            .map(|address| Resolved { address, own: lookup::is_own(address) })
            .collect();
        let addresses = match decide(grants, host, port, &resolved) {
            Ok(addresses) => addresses,
            Err(refusal) => return Err(self.refused(host, port, &refusal).await),
        };
        let stream = timeout(CONNECT_PATIENCE, reach(&addresses)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream =
            stream.map_err(|error| NoWay::Unreachable(format!("{host}:{port}: {error}")))?;
        let _ = stream.set_nodelay(true);
        self.access.connected();
        Ok(Metered::new(stream, Arc::clone(&self.access), IDLE_MAX))
    }

    async fn refused(&self, host: &Host, port: u16, refusal: &Refusal) -> NoWay {
        let (what, wanted) = match &refusal.reason {
            Reason::Special { address, block } => (
                format!(
                    "connect to {host}:{port} at {address}, which is no ordinary address ({block})"
                ),
                HostRule::Net(IpNet::of(*address)),
            ),
            Reason::NotGranted | Reason::DeniedBy(_) => {
                let rule = match host {
                    Host::Name(name) => HostRule::Name(name.clone()),
                    Host::Address(address) => HostRule::Net(IpNet::of(*address)),
                };
                (format!("connect to {host}:{port}"), rule)
            }
        };
        let ports = PortRange::new(port, port).unwrap_or(PortRange::ALL);
        let wanted = Permission::Network(NetworkRule { host: wanted, ports });
        let denied_by = match &refusal.reason {
            Reason::DeniedBy(rule) => Some(rule.to_string()),
            _ => None,
        };
        let asked = decide::is_asked(self.access.asked(), host, port);
        let text = self.access.refuse(&what, &wanted, asked, denied_by);
        sleep(REFUSAL_REST).await;
        NoWay::Refused(text)
    }
}

/// The first of `addresses` that answers.
async fn reach(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
