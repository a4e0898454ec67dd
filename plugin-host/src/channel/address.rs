//! Where a plugin answers, and the proof that it is the plugin who does.

use std::{io, path::PathBuf, sync::Arc};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use crate::{level::Door, process::Control, stats, tls};

/// Where a plugin answers.
#[derive(Clone)]
pub(crate) enum Address {
    /// A Unix socket, and who must be listening on it.
    Unix { path: PathBuf, listener: Listener },
    /// A port of its jail's loopback; with TLS, where there is a configuration for that.
    Jail { control: Control, port: u16, tls: Option<Arc<ClientConfig>> },
    /// Within this process.
    Inside(Door),
}

/// Who must be listening on a Unix socket. A plugin can put a symbolic link to somebody else's
/// socket in the place of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listener {
    /// This process bound it.
    Host,
    /// A process of the jail: by its outside id, where it has one of its own, or by its place in
    /// the tree of processes.
    Jail { init: u32, user: Option<u32> },
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Address {
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix { path, listener } => {
                let stream = UnixStream::connect(path).await?;
                listener.verify(&stream)?;
                Ok(Box::new(stream))
            }
            Self::Jail { control, port, tls } => {
                let stream = control.connect(*port).await?;
                match tls {
                    Some(tls) => Ok(Box::new(tls::connect(tls, stream).await?)),
                    None => Ok(Box::new(stream)),
                }
            }
            Self::Inside(door) => Ok(Box::new(door.connect().await?)),
        }
    }
}

impl Listener {
    fn verify(self, stream: &UnixStream) -> io::Result<()> {
        let who = rustix::net::sockopt::socket_peercred(stream)?;
        let pid = u32::try_from(who.pid.as_raw_nonzero().get()).unwrap_or(0);
        let expected = match self {
            Self::Host => pid == std::process::id(),
            Self::Jail { init, user } => {
                user == Some(who.uid.as_raw()) || stats::is_within(pid, init)
            }
        };
        if expected {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its socket is served by process {pid}, which is not the plugin's"),
        ))
    }
}
