//! One call in one socket, from the handshake to the last byte. Runs in the connection's own task:
//! both directions end with it.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use futures::StreamExt as _;
use http::{Response, request::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use protocol::limits::MESSAGE_BYTES_MAX;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig, frame::coding::CloseCode},
};

use super::{
    gauge::Gauge,
    listen::{Listener, Pulse},
    speak::Speaker,
};
use crate::{
    bounds::JSON_BYTES_MAX,
    meters::Ended,
    web::{
        Web,
        hold::Budget,
        kind::{Form, Kind},
        refusal::No,
        words,
    },
};

/// How long a caller may take to hear how its call ended, and to go.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// What is read at once.
const READ_BYTES: usize = 16 * 1024;

/// What a caller may have sent before it hears that it need not: a message that is too large. It is
/// read, for what is not read makes the caller's system drop what it was told.
const UNHEARD_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// How a session comes to its end.
pub(super) enum Last {
    /// The call has ended, as this says in Connect's words.
    Told(Vec<u8>),
    /// The answer stopped without an end.
    CutOff,
    /// The caller did what is not done.
    Broke { code: CloseCode, no: No, ended: Option<Ended> },
    /// The caller closed the socket in order.
    Closed,
    /// Nobody is there.
    Gone,
}

impl Last {
    /// What was sent is no part of the dialect.
    pub(super) fn broke(code: CloseCode, message: &str) -> Self {
        Self::Broke { code, no: No::invalid(message), ended: None }
    }
}

/// Runs the call that `parts` ask for, in the socket that their connection becomes.
pub(super) async fn run(
    upgrade: OnUpgrade,
    web: Arc<Web>,
    asked: Result<Form, No>,
    parts: Parts,
) -> Option<Ended> {
    let stream = TokioIo::new(upgrade.await.ok()?);
    let call = async |form, body| web.answer(Kind::Stream(form), parts, body).await;
    talk(stream, web.budget.clone(), asked, call).await
}

/// Makes `call` of what is said by `stream`, and says there what it answers.
async fn talk<I>(
    stream: I,
    budget: Budget,
    asked: Result<Form, No>,
    call: impl AsyncFnOnce(Form, Body) -> Response<Body>,
) -> Option<Ended>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let form = asked.as_ref().map_or(Form::Json, |form| *form);
    let gauge = Gauge::new(budget);
    let stream = gauge.watch(stream);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(form))).await;
    let (sink, stream) = socket.split();
    let pulse = Pulse::default();
    let (mut listener, heard) = Listener::new(stream, form, gauge, &pulse);
    let mut speaker = Speaker::new(sink, form, &pulse);
    let last = match asked {
        Ok(form) => tokio::select! {
            biased;
            last = listener.listen() => last,
            last = speaker.tell(call(form, Body::new(heard))) => last,
        },
        Err(no) => Last::Told(words::end_of_stream(&no.trailers())),
    };
    // Whatever was under way of the call was dropped there, and is cancelled by that.
    let closing = async {
        let told = match &last {
            Last::Told(end) => speaker.end(Some(end), CloseCode::Normal).await,
            Last::CutOff => speaker.end(None, CloseCode::Error).await,
            Last::Broke { code, no, .. } => {
                speaker.end(Some(&words::end_of_stream(&no.trailers())), *code).await
            }
            Last::Closed => speaker.flush().await,
            Last::Gone => return,
        };
        if told.is_ok()
            && let Ok(socket) = speaker.into_sink().reunite(listener.into_stream())
        {
            part(socket.into_inner()).await;
        }
    };
    // Who does not want to hear it is left alone.
    let _ = timeout(CLOSE_WITHIN, closing).await;
    match last {
        Last::Broke { ended, .. } => ended,
        Last::Told(_) | Last::CutOff | Last::Closed | Last::Gone => None,
    }
}

fn config(form: Form) -> WebSocketConfig {
    let message_bytes_max = match form {
        Form::Json => JSON_BYTES_MAX,
        Form::Proto => MESSAGE_BYTES_MAX,
    };
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        // Each frame is written when it is sent: what waits is bounded by one of them.
        .write_buffer_size(0)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// Says that nothing more comes, and waits until the other side has gone as well.
async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let (mut unheard, mut read) = ([0; 4 * 1024], 0);
    while let Ok(bytes @ 1..) = stream.read(&mut unheard).await
        && read < UNHEARD_BYTES_MAX
    {
        read += bytes;
    }
}

#[cfg(test)]
mod tests {
    use futures::SinkExt as _;
    use tokio::{io::DuplexStream, time::sleep};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    /// A session whose call never ends, and its caller.
    async fn silent() -> (impl Future<Output = Option<Ended>>, WebSocketStream<DuplexStream>) {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let call = async |_, _body| std::future::pending().await;
        let session = talk(there, Budget::default(), Ok(Form::Json), call);
        (session, WebSocketStream::from_raw_socket(here, Role::Client, None).await)
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_no_ping_is_gone_and_who_does_is_left_alone() {
        let (session, caller) = silent().await;
        timeout(Duration::from_mins(2), session).await.expect("the call was given up");
        drop(caller);

        let (session, mut caller) = silent().await;
        let answers = async {
            let mut pings = 0;
            // Reading is answering.
            while let Some(Ok(message)) = caller.next().await {
                pings += usize::from(message.is_ping());
                if pings == 20 {
                    break;
                }
            }
        };
        tokio::select! {
            ended = session => panic!("{ended:?}"),
            () = answers => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_its_goodbye_is_not_waited_for() {
        let (session, mut caller) = silent().await;
        let session = tokio::spawn(timeout(Duration::from_mins(1), session));
        caller.send(Message::binary("of the wrong kind")).await.expect("it is heard");
        // Neither reads nor goes.
        sleep(CLOSE_WITHIN * 2).await;
        assert!(session.is_finished());
        drop(caller);
    }
}
