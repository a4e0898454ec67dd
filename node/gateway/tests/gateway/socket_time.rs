//! Sockets in time: who waits for whom, who slows whom, and what ends a call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use blackhole_gateway::Origins;
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use protocol::ports::{Body, Reply};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::{
    socket::{CHAT, Socket, binary, text},
    support::{DRAIN, Mesh, message},
    web::Web,
};

/// Long enough for whatever is on its way to have come, on a machine that does something else too.
const QUIET: Duration = Duration::from_secs(1);

const HANG: &str = "/demo.v1.Echo/Hang";

#[tokio::test]
async fn who_closes_or_is_gone_has_given_the_call_up() {
    let web = Web::start().await;
    for closes in [true, false] {
        let mut socket = Socket::open(&web, HANG).await;
        socket.say_all([text("you")]).await;
        web.mesh.demo.hanging_are(1).await;
        if closes {
            socket.0.close(None).await.expect("closed");
            assert!(matches!(socket.next().await, Message::Close(None)));
        }
        drop(socket);
        web.mesh.demo.hanging_are(0).await;
    }
    web.still_serves().await;
}

#[tokio::test]
async fn messages_that_are_broken_off_are_not_taken_for_all_of_them() {
    let (told, mut heard) = mpsc::channel(4);
    let mesh = Mesh::with(move |mut call| {
        let told = told.clone();
        async move {
            // In a task of its own, as what carries a call to another peer is.
            tokio::spawn(async move {
                while let Some(frame) = call.body.frame().await {
                    let _ = told.send(frame.is_ok()).await;
                }
            });
            std::future::pending().await
        }
    });
    let web = Web::start_with(mesh, Origins::default()).await;
    let mut socket = Socket::open(&web, "/any.v1.Thing/Do?encoding=proto").await;
    socket.say(binary("half of it")).await;
    for _ in 0..2 {
        assert_eq!(heard.recv().await, Some(true), "prefix and message");
    }
    drop(socket);
    assert_eq!(heard.recv().await, Some(false), "never an end without an error");
}

#[tokio::test]
async fn calls_in_two_sockets_do_not_wait_for_each_other() {
    let web = Web::start().await;
    let mut first = Socket::open(&web, CHAT).await;
    let mut second = Socket::open(&web, CHAT).await;
    first.say(text("a")).await;
    for word in ["b", "c"] {
        second.say(text(word)).await;
        assert_eq!(second.next().await, text(&format!("{word}?")));
    }
    second.say("").await;
    assert_eq!(second.rest().await.code, CloseCode::Normal);
    assert_eq!(first.next().await, text("a?"));
    first.say("").await;
    assert_eq!(first.rest().await.code, CloseCode::Normal);
}

/// A mesh whose answers are what a test sends.
fn answers(chunks: mpsc::Receiver<Bytes>) -> Mesh {
    let chunks = Arc::new(std::sync::Mutex::new(Some(chunks)));
    Mesh::with(move |_| {
        let chunks = chunks.lock().expect("not poisoned").take().expect("one call");
        async move {
            let frames = stream::unfold(chunks, |mut chunks| async move {
                let chunk = chunks.recv().await?;
                Some((Ok(Frame::data(chunk)), chunks))
            });
            let metadata = HeaderMap::new();
            Ok(Reply { metadata, body: Body::new(StreamBody::new(frames.boxed())) })
        }
    })
}

#[tokio::test]
async fn a_slow_reader_slows_its_writer() {
    let (say, said) = mpsc::channel(1);
    let web = Web::start_with(answers(said), Origins::default()).await;
    let mut socket = Socket::open(&web, "/any.v1.Thing/Do?encoding=proto").await;
    let chunk = message(0, &vec![7; 256 * 1024]);
    let mut sent = 0;
    // What the kernel holds of a connection is a few MB.
    while timeout(QUIET, say.send(chunk.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 200, "50 MB are held for a reader that does not read");
    }
    for _ in 0..sent {
        assert_eq!(socket.next().await, Message::binary(vec![7; 256 * 1024]));
    }
    timeout(DRAIN, say.send(chunk)).await.expect("there is room again").expect("it goes on");
    // An answer that stops without an end is told to have failed.
    drop(say);
    let told = socket.rest().await;
    assert_eq!(told.end.expect("an end")["error"]["code"], "internal");
}

#[tokio::test]
async fn an_answer_that_breaks_off_in_a_message_does_not_close_normally() {
    let (say, said) = mpsc::channel(1);
    let web = Web::start_with(answers(said), Origins::default()).await;
    let mut socket = Socket::open(&web, "/any.v1.Thing/Do?encoding=proto").await;
    say.send(message(0, &vec![7; 100_000]).slice(..70_000)).await.expect("it goes on");
    drop(say);
    let close = loop {
        match socket.0.next().await.expect("a close") {
            Ok(Message::Close(close)) => break close,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(close.expect("a code").code, CloseCode::Error);
}

#[tokio::test]
async fn a_plugin_that_does_not_read_slows_its_caller() {
    let read = Arc::new(AtomicUsize::new(0));
    let (go, gone) = tokio::sync::watch::channel(false);
    let mesh = {
        let read = Arc::clone(&read);
        Mesh::with(move |mut call| {
            let (read, mut gone) = (Arc::clone(&read), gone.clone());
            async move {
                gone.wait_for(|gone| *gone).await.expect("told");
                while let Some(Ok(frame)) = call.body.frame().await {
                    read.fetch_add(frame.data_ref().map_or(0, Bytes::len), SeqCst);
                }
                let failure = protocol::failure::Reason::Busy;
                Err(protocol::failure::Failure::not_started(failure, "all was read"))
            }
        })
    };
    let web = Web::start_with(mesh, Origins::default()).await;
    let mut socket = Socket::open(&web, "/any.v1.Thing/Do?encoding=proto").await;
    let mut sent = 0;
    let message = Message::binary(vec![7; 1 << 20]);
    while timeout(QUIET, socket.0.send(message.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 50, "50 MB are held for a plugin that does not read");
    }
    go.send_replace(true);
    // The one that was begun is sent to its end.
    socket.0.flush().await.expect("there is room again");
    socket.say("").await;
    let told = socket.rest().await;
    assert_eq!(told.end.expect("an end")["error"]["code"], "resource_exhausted");
    assert_eq!(read.load(SeqCst), (sent + 1) * ((1 << 20) + 5));
}

#[tokio::test]
async fn pings_are_answered_and_a_call_goes_on_when_the_server_stops() {
    let web = Web::start().await;
    let mut socket = Socket::open(&web, CHAT).await;
    socket.say(Message::Ping(Bytes::from_static(b"you?"))).await;
    assert_eq!(socket.next().await, Message::Pong(Bytes::from_static(b"you?")));
    web.stop.cancel();
    socket.say(text("a")).await;
    assert_eq!(socket.next().await, text("a?"));
    socket.say("").await;
    assert_eq!(socket.rest().await.code, CloseCode::Normal);
    drop(socket);
    timeout(DRAIN, web.served).await.expect("nothing is left").expect("in order");
}
