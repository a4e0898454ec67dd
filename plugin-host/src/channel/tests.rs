use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::BodyExt;
use protocol::{
    failure::Ran,
    ports::{CallHead, Caller, Locality},
};
use tokio::net::UnixListener;

use super::*;

/// What a server does with one stream.
#[derive(Clone, Copy)]
enum Does {
    /// Answers with status 0.
    Answer,
    /// Resets it as not looked at.
    Refuse,
    /// Resets it in the middle.
    Break,
    /// Answers, and ends the connection.
    AnswerAndLeave,
    /// Reads it, and drops the connection.
    Vanish,
    /// Answers without a status.
    ForgetStatus,
    /// Answers as a plain web server.
    NotFound,
    /// Never answers.
    Hang,
    /// Begins to answer, and never ends.
    Stall,
}

/// A server that does to its streams, in turn, what `script` says.
fn server(script: Vec<Does>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    tokio::spawn(async move {
        let mut script = script.into_iter();
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((request, respond))) = connection.accept().await {
                let does = script.next().unwrap_or(Does::Answer);
                if !perform(does, request, respond) {
                    break;
                }
                if matches!(does, Does::AnswerAndLeave) {
                    connection.graceful_shutdown();
                }
            }
        }
    });
    (directory, path)
}

/// False where the connection is to be dropped.
fn perform(
    does: Does,
    _request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> bool {
    let head = |status: u16| http::Response::builder().status(status).body(()).expect("valid");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    match does {
        Does::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
        Does::Break => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Does::Vanish => return false,
        Does::Hang => {
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(respond);
            });
        }
        Does::Stall => {
            let body = respond.send_response(head(200), false).expect("sent");
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(body);
            });
        }
        Does::NotFound => {
            respond.send_response(head(404), true).expect("sent");
        }
        Does::ForgetStatus => {
            let mut body = respond.send_response(head(200), false).expect("sent");
            body.send_data(Bytes::from_static(b"x"), true).expect("sent");
        }
        Does::Answer | Does::AnswerAndLeave => {
            let mut body = respond.send_response(head(200), false).expect("sent");
            body.send_trailers(trailers).expect("sent");
        }
    }
    true
}

fn channel(path: PathBuf) -> Arc<Channel> {
    Channel::new("test", Address::Unix { path, listener: Listener::Host }, Handle::current())
}

async fn call(channel: &Channel) -> Result<HeaderMap, Failure> {
    call_within(channel, Duration::from_secs(20)).await
}

async fn call_within(channel: &Channel, within: Duration) -> Result<HeaderMap, Failure> {
    let head = CallHead {
        path: "/demo.v1.Counter/Add".parse().expect("a path"),
        metadata: HeaderMap::new(),
        deadline: Some(Instant::now() + within),
        locality: Locality::Local,
        caller: Caller::Operator,
    };
    let body = http_body_util::Empty::new().map_err(|never| match never {});
    let reply = channel.invoke(Call { head, body: Body::new(body) }).await?;
    let collected = reply.body.collect().await?;
    Ok(collected.trailers().cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_stream_that_the_plugin_refused_was_not_started() {
    let (_directory, path) = server(vec![Does::Refuse, Does::Answer]);
    let channel = channel(path);
    assert_eq!(call(&channel).await.expect_err("refused").ran, Ran::NotStarted);
    call(&channel).await.expect("the connection is as good as before");
    channel.close().await;
}

#[tokio::test]
async fn a_stream_that_broke_may_have_run() {
    for does in [Does::Break, Does::Vanish] {
        let (_directory, path) = server(vec![does]);
        let channel = channel(path);
        let failure = call(&channel).await.expect_err("broken");
        assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::PluginLost));
        call(&channel).await.expect("a new connection serves the next call");
        channel.close().await;
    }
}

#[tokio::test]
async fn a_plugin_that_leaves_gracefully_costs_no_call() {
    let (_directory, path) = server([Does::AnswerAndLeave; 50].to_vec());
    let channel = channel(path);
    for n in 0..50 {
        match call(&channel).await {
            Ok(_) => {}
            // It crossed the farewell: told as not begun, hence sent again by whoever routes.
            Err(failure) => assert_eq!(failure.ran, Ran::NotStarted, "call {n}: {failure}"),
        }
    }
    channel.close().await;
}

#[tokio::test]
async fn an_answer_that_is_not_grpc_is_told_as_malformed() {
    for does in [Does::ForgetStatus, Does::NotFound] {
        let (_directory, path) = server(vec![does]);
        let channel = channel(path);
        let failure = call(&channel).await.expect_err("malformed");
        assert_eq!((failure.ran, failure.reason), (Ran::Failed, Reason::Malformed));
        channel.close().await;
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_the_plugin_does_not_end() {
    for does in [Does::Hang, Does::Stall] {
        let (_directory, path) = server(vec![does]);
        let channel = channel(path);
        let within = Duration::from_millis(100);
        let failure = call_within(&channel, within).await.expect_err("too late");
        assert_eq!((failure.ran, failure.reason), (Ran::Unknown, Reason::DeadlineExceeded));
        call(&channel).await.expect("the next call is unaffected");
        channel.close().await;
    }
}

#[tokio::test]
async fn nobody_there_is_not_started() {
    let channel = channel("/no/such/socket".into());
    let failure = call(&channel).await.expect_err("nobody");
    assert_eq!((failure.ran, failure.reason), (Ran::NotStarted, Reason::Unreachable));
}

#[tokio::test]
async fn somebody_elses_socket_in_the_plugins_place_is_not_called() {
    // The plugin put a link to a socket of this process where its own should be.
    let (directory, path) = server(vec![Does::Answer]);
    let link = directory.path().join("plugin.sock");
    std::os::unix::fs::symlink(path, &link).expect("linked");
    call(&channel(link.clone())).await.expect("the control must succeed");
    let jail = Listener::Jail { init: u32::MAX, user: Some(2_000_000_001) };
    let channel =
        Channel::new("test", Address::Unix { path: link, listener: jail }, Handle::current());
    let failure = call(&channel).await.expect_err("not the plugin's");
    assert_eq!(failure.ran, Ran::NotStarted);
    assert!(failure.message.contains("which is not the plugin's"), "{failure}");
}

/// A plugin whose socket says that it takes frames: it answers the first connection in HTTP/2, and
/// tells with which byte each of the others began.
fn announcing(
    frames: bool,
) -> (tempfile::TempDir, PathBuf, tokio::sync::mpsc::UnboundedReceiver<link::Dialect>) {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let dialect = link::sniff(&stream).await.expect("a first byte");
            tell.send(dialect).expect("heard");
            if dialect == link::Dialect::Other {
                tokio::spawn(announce(stream));
            } else if frames {
                let settings = link::LinkSettings::default();
                let handler = Arc::new(Answering);
                tokio::spawn(link::serve(stream, settings, Caller::Client, handler));
            }
        }
    });
    (directory, path, told)
}

async fn announce(stream: tokio::net::UnixStream) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let (name, value) = protocol::frame::ANNOUNCEMENT;
        let head = http::Response::builder().header(name, value).header("grpc-status", "0");
        respond.send_response(head.body(()).expect("valid"), true).expect("sent");
    }
}

struct Answering;

impl Invoke for Answering {
    fn invoke(&self, _: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let mut metadata = HeaderMap::new();
        metadata.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Body::new(http_body_util::Empty::new().map_err(|never| match never {}));
        Box::pin(ready(Ok(Reply { metadata, body })))
    }
}

#[tokio::test]
async fn a_socket_that_says_so_is_called_in_frames_from_the_next_call_on() {
    let (_directory, path, mut told) = announcing(true);
    let channel = channel(path);
    for _ in 0..3 {
        call(&channel).await.expect("answered");
    }
    assert_eq!(told.recv().await, Some(link::Dialect::Other));
    assert_eq!(told.recv().await, Some(link::Dialect::Link));
    assert!(told.try_recv().is_err(), "one link carries all calls");
    channel.close().await;
}

#[tokio::test]
async fn a_socket_that_says_so_and_does_not_answer_the_preface_is_called_in_http2_again() {
    let (_directory, path, mut told) = announcing(false);
    let channel = channel(path);
    for _ in 0..5 {
        call(&channel).await.expect("answered");
    }
    assert_eq!(told.recv().await, Some(link::Dialect::Other));
    assert_eq!(told.recv().await, Some(link::Dialect::Link));
    assert!(told.try_recv().is_err(), "it is tried once for a run");
    channel.close().await;
}

#[tokio::test]
async fn a_foreign_server_never_sees_a_frame() {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    let channel = channel(path);
    let serving = async {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            assert_eq!(link::sniff(&stream).await.expect("a byte"), link::Dialect::Other);
            tasks.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    perform(Does::Answer, request, respond);
                }
            });
        }
    };
    tokio::select! {
        () = async { for _ in 0..50 { call(&channel).await.expect("answered"); } } => {}
        () = serving => {}
    }
    channel.close().await;
}
