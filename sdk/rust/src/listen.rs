//! Where a plugin listens: the descriptor or socket its node gives, or a loopback port by hand.

use std::{env, io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path, path::PathBuf};
use std::{os::unix, time::Duration};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

/// How long accepting rests after an error. Errors come where descriptors run out; trying again
/// at once would burn a core without helping.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that is open and listens.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// The first of: descriptor 3 with `LISTEN_FDS=1`, the socket named by `BH_PLUGIN_SOCKET`,
    /// a free loopback port. Must run inside a runtime.
    pub(crate) fn from_environment() -> Result<Self, ListenError> {
        if let Some(inherited) = inherited()? {
            return Ok(inherited);
        }
        match env::var_os("BH_PLUGIN_SOCKET") {
            Some(path) => bind_unix(Path::new(&path)),
            None => loopback(),
        }
    }

    /// The address, where it is one to print: not for sockets that a node gave.
    pub(crate) fn loopback_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

/// A listener on a free port of the loopback address.
pub(crate) fn loopback() -> Result<Listener, ListenError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(ListenError::Loopback)?;
    from_std_tcp(listener).map_err(ListenError::Loopback)
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
    #[error("cannot listen on {path}, named by BH_PLUGIN_SOCKET: {error}", path = path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Another program listens on the path.
    #[error(
        "another program already listens on {path}; end it, or name another path in \
         BH_PLUGIN_SOCKET", path = .0.display()
    )]
    Taken(PathBuf),
    /// There is something on the path that is no socket.
    #[error(
        "{path} exists and is no socket; name another path in BH_PLUGIN_SOCKET", path = .0.display()
    )]
    Occupied(PathBuf),
    /// Not even a loopback port is to be had.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Loopback(#[source] io::Error),
}

fn inherited() -> Result<Option<Listener>, ListenError> {
    let mut given = ListenFd::from_env();
    let listener = match given.take_unix_listener(0) {
        Ok(Some(listener)) => from_std_unix(listener).map(Some),
        Ok(None) => Ok(None),
        Err(_) => given.take_tcp_listener(0).and_then(|tcp| tcp.map(from_std_tcp).transpose()),
    };
    listener.map_err(ListenError::Inherited)
}

/// Binds, after removing a socket that a program of the past left behind.
fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
    let failed = |error| ListenError::Bind { path: path.into(), error };
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(ListenError::Occupied(path.into()));
        }
        if unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken(path.into()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    UnixListener::bind(path).map(Listener::Unix).map_err(failed)
}

fn from_std_unix(listener: unix::net::UnixListener) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Listener::Unix)
}

fn from_std_tcp(listener: std::net::TcpListener) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Listener::Tcp)
}

/// The connections that arrive, resting after errors.
pub(crate) fn unix_connections(
    listener: UnixListener,
) -> impl futures::Stream<Item = io::Result<tokio::net::UnixStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => rest(&error).await,
            }
        }
    })
}

/// The connections that arrive, without Nagle's delay, resting after errors.
pub(crate) fn tcp_connections(
    listener: TcpListener,
) -> impl futures::Stream<Item = io::Result<tokio::net::TcpStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    let ready = connection.set_nodelay(true).map(|()| connection);
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
        drop(unix::net::UnixListener::bind(&path).expect("first"));
        assert!(path.exists());
        assert!(matches!(bind_unix(&path), Ok(Listener::Unix(_))));
    }

    #[tokio::test]
    async fn a_socket_in_use_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        let _first = unix::net::UnixListener::bind(&path).expect("first");
        assert!(matches!(bind_unix(&path), Err(ListenError::Taken(_))));
        assert!(unix::net::UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_file_is_never_removed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "precious").expect("file");
        assert!(matches!(bind_unix(&path), Err(ListenError::Occupied(_))));
        assert!(path.exists());
    }
}
