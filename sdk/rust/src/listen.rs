//! Where a plugin listens: the descriptor, socket or port its node gives, those its author or its
//! command line name, or a loopback port by hand.

mod connection;

use std::{
    env, io,
    net::SocketAddr,
    os::{self, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt as _};
use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

pub(crate) use connection::Connection;

/// How long accepting rests after an error. Errors come where descriptors run out; trying again
/// at once would burn a core without helping.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where the contract says which socket a plugin binds.
const SOCKET_VARIABLE: &str = "BH_PLUGIN_SOCKET";

/// Where the contract says which port a plugin binds.
const PORT_VARIABLE: &str = "BH_PLUGIN_PORT";

/// Where the contract says that a plugin is to serve TLS.
const TLS_VARIABLE: &str = "BH_TLS_CERT";

/// Where a program says itself that it serves; both win over what its environment says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) port: Option<u16>,
}

/// All that is open and listens; the same is served on each.
#[derive(Default)]
pub(crate) struct Listeners {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
}

impl Listeners {
    /// The socket of `place`, or else descriptor 3 with `LISTEN_FDS=1`, or else the socket named by
    /// `BH_PLUGIN_SOCKET`; beside it the port of `place`, or else of `BH_PLUGIN_PORT`; where there
    /// is nothing of all this, a free loopback port. Must run inside a runtime.
    pub(crate) fn open(place: &Place) -> Result<Self, ListenError> {
        if env::var_os(TLS_VARIABLE).is_some() {
            return Err(ListenError::Tls);
        }
        let mut all = match &place.socket {
            Some(path) => Self { unix: Some(bind_unix(path)?), tcp: None },
            None => inherited()?,
        };
        let nothing = all.unix.is_none() && all.tcp.is_none();
        if let Some(path) = env::var_os(SOCKET_VARIABLE).filter(|_| nothing) {
            all.unix = Some(bind_unix(Path::new(&path))?);
        }
        let port = place.port.map_or_else(told_port, |port| Ok(Some(port)))?;
        if let Some(port) = port.filter(|_| all.tcp.is_none()) {
            all.tcp = Some(bind_tcp(port)?);
        }
        if all.unix.is_none() && all.tcp.is_none() {
            return loopback();
        }
        Ok(all)
    }

    /// The TCP address, where there is one to print: sockets that a node gave have none.
    pub(crate) fn loopback_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The connections that arrive on any of them, resting after errors.
    pub(crate) fn connections(self) -> BoxStream<'static, io::Result<Connection>> {
        let unix = self.unix.map(|listener| unix_connections(listener).boxed());
        let tcp = self.tcp.map(|listener| tcp_connections(listener).boxed());
        stream::select_all(unix.into_iter().chain(tcp)).boxed()
    }
}

/// A listener on a free port of the loopback address.
pub(crate) fn loopback() -> Result<Listeners, ListenError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(ListenError::Loopback)?;
    let tcp = from_std_tcp(listener).map_err(ListenError::Loopback)?;
    Ok(Listeners { unix: None, tcp: Some(tcp) })
}

/// The port that the environment names.
fn told_port() -> Result<Option<u16>, ListenError> {
    let Some(text) = env::var_os(PORT_VARIABLE) else { return Ok(None) };
    let port = text.to_str().and_then(|text| text.parse().ok()).filter(|port| *port > 0);
    let wrong = || ListenError::NoPort(text.to_string_lossy().into_owned());
    port.map(Some).ok_or_else(wrong)
}

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// `LISTEN_FDS` is set, but what was inherited does not listen.
    #[error(
        "LISTEN_FDS is set, but descriptor 3 is no listening stream socket ({0}); \
         unset LISTEN_FDS or pass one"
    )]
    Inherited(#[source] io::Error),
    /// The path cannot be bound.
    #[error("cannot listen on {path}: {error}", path = path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Another program listens on the path.
    #[error(
        "another program already listens on {path}; end it, or name another path \
         (BH_PLUGIN_SOCKET)", path = .0.display()
    )]
    Taken(PathBuf),
    /// There is something on the path that is no socket.
    #[error(
        "{path} exists and is no socket; name another path (BH_PLUGIN_SOCKET)", path = .0.display()
    )]
    Occupied(PathBuf),
    /// What is named as a port is none.
    #[error("BH_PLUGIN_PORT is `{0}`, which is no port from 1 to 65535")]
    NoPort(String),
    /// The port cannot be bound.
    #[error("cannot listen on 127.0.0.1:{port}: {error}; name another port")]
    Port {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Its node expects TLS of it.
    #[error(
        "its manifest says `listen: tls`, and this SDK serves without TLS: let it listen on \
         `unix`, which only its node can reach"
    )]
    Tls,
    /// Not even a loopback port is to be had.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Loopback(#[source] io::Error),
}

fn inherited() -> Result<Listeners, ListenError> {
    let mut given = ListenFd::from_env();
    let listener = match given.take_unix_listener(0) {
        Ok(Some(listener)) => from_std_unix(listener),
        Ok(None) => Ok(Listeners::default()),
        Err(_) => given
            .take_tcp_listener(0)
            .and_then(|tcp| Ok(Listeners { unix: None, tcp: tcp.map(from_std_tcp).transpose()? })),
    };
    listener.map_err(ListenError::Inherited)
}

/// Binds, after removing a socket that a program of the past left behind.
fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |error| ListenError::Bind { path: path.into(), error };
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(ListenError::Occupied(path.into()));
        }
        if os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken(path.into()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    UnixListener::bind(path).map_err(failed)
}

fn bind_tcp(port: u16) -> Result<TcpListener, ListenError> {
    let bound = std::net::TcpListener::bind(("127.0.0.1", port)).and_then(from_std_tcp);
    bound.map_err(|error| ListenError::Port { port, error })
}

fn from_std_unix(listener: os::unix::net::UnixListener) -> io::Result<Listeners> {
    listener.set_nonblocking(true)?;
    Ok(Listeners { unix: Some(UnixListener::from_std(listener)?), tcp: None })
}

fn from_std_tcp(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn unix_connections(
    listener: UnixListener,
) -> impl futures::Stream<Item = io::Result<Connection>> + Send {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    return Some((Ok(Connection::Unix(connection)), listener));
                }
                Err(error) => rest(&error).await,
            }
        }
    })
}

/// Without Nagle's delay.
fn tcp_connections(
    listener: TcpListener,
) -> impl futures::Stream<Item = io::Result<Connection>> + Send {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    let ready = connection.set_nodelay(true).map(|()| Connection::Tcp(connection));
                    return Some((ready, listener));
                }
                Err(error) => rest(&error).await,
            }
        }
    })
}

async fn rest(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        drop(os::unix::net::UnixListener::bind(&path).expect("first"));
        assert!(path.exists());
        assert!(bind_unix(&path).is_ok());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        let _first = os::unix::net::UnixListener::bind(&path).expect("first");
        assert!(matches!(bind_unix(&path), Err(ListenError::Taken(_))));
        assert!(os::unix::net::UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_file_is_never_removed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "precious").expect("file");
        assert!(matches!(bind_unix(&path), Err(ListenError::Occupied(_))));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_socket_and_a_port_are_both_listened_on() {
        let directory = tempfile::tempdir().expect("directory");
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("free");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let place = Place { socket: Some(directory.path().join("s")), port: Some(port) };
        let open = Listeners::open(&place).expect("opens");
        assert_eq!(open.loopback_address(), Some(([127, 0, 0, 1], port).into()));
        let mut connections = open.connections();
        let _tcp = std::net::TcpStream::connect(("127.0.0.1", port)).expect("listens");
        assert!(matches!(connections.next().await, Some(Ok(Connection::Tcp(_)))));
        let _unix = os::unix::net::UnixStream::connect(directory.path().join("s")).expect("too");
        assert!(matches!(connections.next().await, Some(Ok(Connection::Unix(_)))));
        let taken = bind_tcp(port).expect_err("taken").to_string();
        assert!(taken.contains(&format!("127.0.0.1:{port}")), "{taken}");
    }
}
