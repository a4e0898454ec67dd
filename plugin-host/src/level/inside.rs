//! A run within this process: something that answers gRPC over connections in memory.
//!
//! It is called through the same channel as a process, so that deadlines, bounds and failures are
//! the same. Refuses: to be a boundary of its own. What holds the code is the level's business.

use std::{convert::Infallible, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{channel::Tasks, process::End};

/// Connections that wait to be accepted. The channel opens four at most.
const BACKLOG: usize = 8;

/// Bytes on their way in each direction of a connection.
const PIPE_BYTES: usize = 256 * 1024;

/// Calls at once on one connection, as the SDK has it for processes.
const CALLS_PER_CONNECTION_MAX: u32 = 4_096;

/// What answers calls.
pub(crate) trait Answer: Send + Sync + 'static {
    /// Answers one call. Whatever goes wrong is a gRPC status.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<tonic::body::Body>>;
}

/// How a run ended, and why.
type Ending = Option<(End, String)>;

/// Ends a run from within.
#[derive(Clone)]
pub(crate) struct Ender(Arc<watch::Sender<Ending>>);

impl Ender {
    /// It failed; the first reason counts.
    pub(crate) fn fail(&self, reason: &str) {
        self.0.send_if_modified(|ending| {
            let first = ending.is_none();
            if first {
                *ending = Some((End::default(), reason.to_owned()));
            }
            first
        });
    }
}

/// A way to connect. Clones lead to the same run.
#[derive(Clone)]
pub(crate) struct Door(mpsc::Sender<DuplexStream>);

impl Door {
    /// A new connection.
    pub(crate) async fn connect(&self) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        self.0.send(far).await.map_err(gone)?;
        Ok(near)
    }
}

/// Connections to a run that were not accepted yet.
type Connections = mpsc::Receiver<DuplexStream>;

/// A run within this process. Dropping it ends it.
pub(crate) struct Inside {
    pub(crate) layers: Vec<String>,
    door: Door,
    ending: watch::Receiver<Ending>,
    fuse: Ender,
    closing: CancellationToken,
    tasks: TaskTracker,
    server: Server,
}

/// What accepts connections.
enum Server {
    Task(#[allow(dead_code, reason = "ends it when dropped")] AbortOnDropHandle<()>),
    /// Told when the thread has ended.
    Thread(oneshot::Receiver<()>),
}

impl Inside {
    /// Begins to serve what `make` makes, which is told how to end the run.
    pub(crate) fn begin<A: Answer>(
        layers: Vec<String>,
        make: impl FnOnce(Ender) -> Arc<A>,
    ) -> Self {
        let Ok(inside) = Self::served(layers, |connections, executor, fuse, _| {
            let server = serve(connections, make(fuse.clone()), executor, fuse);
            let server = Server::Task(AbortOnDropHandle::new(tokio::spawn(server)));
            Ok::<_, Infallible>(server)
        });
        inside
    }

    /// The same on a thread of its own with a runtime of its own, which both end with the run.
    pub(crate) fn begin_thread<A: Answer>(
        name: &str,
        layers: Vec<String>,
        answer: Arc<A>,
    ) -> io::Result<Self> {
        Self::served(layers, |connections, executor, fuse, until| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (over, ended) = oneshot::channel();
            std::thread::Builder::new().name(format!("plugin-{name}")).spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = until.cancelled() => {}
                        () = serve(connections, answer, executor, fuse) => {}
                    }
                });
                drop(runtime);
                // Whoever waits for the thread may have given up.
                let _ = over.send(());
            })?;
            Ok(Server::Thread(ended))
        })
    }

    /// A run whose connections `serve` has accepted until the token is cancelled.
    fn served<E>(
        layers: Vec<String>,
        serve: impl FnOnce(Connections, Tasks, Ender, CancellationToken) -> Result<Server, E>,
    ) -> Result<Self, E> {
        let (door, connections) = mpsc::channel(BACKLOG);
        let (sender, ending) = watch::channel(None);
        let fuse = Ender(Arc::new(sender));
        let closing = CancellationToken::new();
        let tasks = TaskTracker::new();
        let executor = Tasks::new(&tasks, &closing);
        let server = serve(connections, executor, fuse.clone(), closing.clone())?;
        Ok(Self { layers, door: Door(door), ending, fuse, closing, tasks, server })
    }

    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Waits until it has ended by itself. Cancel-safe.
    pub(crate) async fn ended(&self) -> End {
        let mut ending = self.ending.clone();
        let found = ending.wait_for(Option::is_some).await;
        found.ok().and_then(|ending| ending.as_ref().map(|(end, _)| *end)).unwrap_or_default()
    }

    /// Why it ended, where it has.
    pub(crate) fn cause(&self) -> Option<String> {
        self.ending.borrow().as_ref().map(|(_, cause)| cause.clone())
    }

    /// Ends it: calls were given their time before.
    ///
    /// A thread that never yields cannot be ended; false says that it is still there.
    pub(crate) async fn stop(mut self, grace: Duration) -> (End, bool) {
        self.closing.cancel();
        self.tasks.close();
        let (tasks, server) = (&self.tasks, &mut self.server);
        let gone = async {
            tasks.wait().await;
            if let Server::Thread(ended) = server {
                let _ = ended.await;
            }
        };
        let by_itself = timeout(grace.max(LEAST_GRACE), gone).await.is_ok();
        self.fuse.fail("stopped");
        (End { code: Some(0), signal: None }, by_itself)
    }
}

/// Tasks that are told to end do so at their next step.
const LEAST_GRACE: Duration = Duration::from_millis(100);

impl Drop for Inside {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

async fn serve<A: Answer>(
    mut connections: Connections,
    answer: Arc<A>,
    executor: Tasks,
    fuse: Ender,
) {
    while let Some(stream) = connections.recv().await {
        let (answer, fuse) = (Arc::clone(&answer), fuse.clone());
        let service = service_fn(move |request| {
            let answered = contained(Arc::clone(&answer), request, fuse.clone());
            answered.map(Ok::<_, Infallible>)
        });
        let connection = http2::Builder::new(executor.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // How a connection ended is told to each of its calls.
        hyper::rt::Executor::execute(&executor, async move {
            let _ = connection.await;
        });
    }
}

/// A panic fails its own call, and ends the run.
async fn contained<A: Answer>(
    answer: Arc<A>,
    request: Request<Incoming>,
    fuse: Ender,
) -> Response<tonic::body::Body> {
    match AssertUnwindSafe(answer.answer(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            fuse.fail(&format!("panicked: {}", text.unwrap_or("without a message")));
            tonic::Status::internal("the plugin panicked during the call").into_http()
        }
    }
}
