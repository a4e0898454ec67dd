//! The connection to a running node: its admin socket, as a gRPC channel.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use protocol::{limits::DESCRIPTORS_BYTES_MAX, proto::admin::admin_client::AdminClient};
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::failed::{Exit, Failed};

/// How long a node may take to answer a question: far longer than a lookup in the DHT takes, short
/// enough that a hung node is noticed.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One answer of the admin API: descriptors and what surrounds them, or lists of services, which
/// grow with the mesh.
const ANSWER_BYTES_MAX: usize = 8 * DESCRIPTORS_BYTES_MAX;

/// A Unix socket's path has 108 bytes, one of them the closing zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A node that answers.
#[derive(Clone)]
pub struct Node {
    channel: Channel,
    /// The process behind the socket, where the system tells.
    pub pid: Option<i32>,
}

impl Node {
    /// Connects to the node whose admin socket this is.
    pub async fn connect(socket: &Path) -> Result<Self, ConnectError> {
        let refused = |source| ConnectError::new(socket, source);
        let first = UnixStream::connect(socket).await.map_err(refused)?;
        let pid = first.peer_cred().ok().and_then(|credentials| credentials.pid());
        let path = socket.to_owned();
        let first = Arc::new(Mutex::new(Some(first)));
        let connector = tower::service_fn(move |_| {
            let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let path = path.clone();
            async move {
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The name is never resolved: the connector knows where to go.
        let channel = Endpoint::from_static("http://node.blackhole")
            .connect_with_connector(connector)
            .await
            .map_err(|error| refused(io::Error::other(error)))?;
        Ok(Self { channel, pid })
    }

    /// The admin API.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The channel itself, for calls to any service of the mesh.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Waits for one answer of the admin API, but not for ever.
pub async fn answer<T>(
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failed> {
    answer_within(asked, Duration::ZERO).await
}

/// The same for a question whose answer takes up to `work` by itself.
pub async fn answer_within<T>(
    asked: impl Future<Output = Result<Response<T>, Status>>,
    work: Duration,
) -> Result<T, Failed> {
    let patience = ANSWER_MAX.saturating_add(work);
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failed::admin(&status)),
        Err(_) => {
            let seconds = patience.as_secs();
            let message = format!("the node took the question and did not answer in {seconds} s");
            Err(Failed::with(Exit::Unreachable, message))
        }
    }
}

/// The admin socket leads to no node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error(
        "no node answers at {}: start one with `blackhole start` or name its directory with \
         --data-dir", .socket.display()
    )]
    NotRunning {
        /// The socket asked.
        socket: PathBuf,
    },
    /// Somebody else's node.
    #[error("the node at {} belongs to another user: run this command as that user", .socket.display())]
    NotAllowed {
        /// The socket asked.
        socket: PathBuf,
    },
    /// No such socket can exist.
    #[error(
        "the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes: name a shorter directory \
         with --run-dir", .socket.display()
    )]
    TooLong {
        /// The socket asked.
        socket: PathBuf,
    },
    /// Something else.
    #[error("no connection to the node at {}: {source}", .socket.display())]
    Other {
        /// The socket asked.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ConnectError {
    fn new(socket: &Path, source: io::Error) -> Self {
        let length = socket.as_os_str().len();
        let socket = socket.to_owned();
        match source.kind() {
            _ if length > SOCKET_PATH_BYTES_MAX => Self::TooLong { socket },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Self::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => Self::NotAllowed { socket },
            _ => Self::Other { socket, source },
        }
    }
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        Self::with(Exit::Unreachable, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use protocol::proto::admin::StatusRequest;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    /// What `status` says of a node that sends `greeting` and hangs up.
    async fn hung_up(greeting: &'static [u8]) -> Failed {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let serving = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                stream.write_all(greeting).await.expect("written");
                if !greeting.is_empty() {
                    // Until the request is there.
                    let mut read = vec![0; 24];
                    stream.read_exact(&mut read).await.expect("read");
                    let _ = stream.read(&mut read).await.expect("read");
                }
            }
        };
        let asking = async {
            let node = Node::connect(&socket).await.map_err(Failed::from)?;
            answer(node.admin().status(StatusRequest {})).await
        };
        tokio::select! {
            asked = asking => asked.expect_err("nobody answered"),
            () = serving => unreachable!("it accepts for ever"),
        }
    }

    #[tokio::test]
    async fn a_node_that_hangs_up_is_unreachable() {
        // An empty SETTINGS frame: HTTP/2, so far.
        for greeting in [&[][..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]] {
            let failed = hung_up(greeting).await;
            assert_eq!(failed.exit, Exit::Unreachable, "{greeting:?}: {failed:?}");
        }
    }

    async fn refused(socket: &Path) -> Failed {
        match Node::connect(socket).await {
            Ok(_) => panic!("nobody listens there"),
            Err(error) => error.into(),
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_run_is_exit_code_three_and_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        let failed = refused(&socket).await;
        assert_eq!(failed.exit, Exit::Unreachable);
        assert_eq!(
            failed.message,
            format!(
                "no node answers at {}: start one with `blackhole start` or name its directory \
                 with --data-dir",
                socket.display()
            )
        );
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_taken_for_no_node() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
        assert!(refused(&socket).await.message.starts_with("no node answers at"));
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_named_as_such() {
        let failed = refused(Path::new(&format!("/{}", "x".repeat(120)))).await;
        assert!(failed.message.contains("longer than 107 bytes"), "{failed}");
    }
}
