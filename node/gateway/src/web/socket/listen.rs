//! What a caller says in a socket: messages, the end of them, signs of life.

use std::{
    io,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::SplitStream};
use http_body::Frame;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, error::ProtocolError::ResetWithoutClosingHandshake,
        protocol::frame::coding::CloseCode,
    },
};

use super::{
    gauge::{Gauge, Gauged},
    session::Last,
};
use crate::{
    bounds::KEEP_ALIVE_EVERY,
    calm::Allowance,
    meters::Ended,
    web::{envelope, kind::Form, refusal::No},
};

/// The head of a frame of control, which is masked: what there is of it beside what it carries.
const CONTROL_HEAD_BYTES: usize = 6;

/// Whether the caller lives. Who hears nothing wishes a ping, who speaks sends it.
#[derive(Default)]
pub(super) struct Pulse {
    wish: Notify,
    /// A ping was sent, and nothing was heard since.
    asked: AtomicBool,
}

impl Pulse {
    /// A ping is due.
    pub(super) async fn wished(&self) {
        self.wish.notified().await;
    }

    /// It was sent.
    pub(super) fn asked(&self) {
        self.asked.store(true, Relaxed);
    }
}

/// Either a message or the end of them; what is not said to have ended was broken off.
enum Said {
    Message(Bytes),
    End,
}

/// Hears one caller.
pub(super) struct Listener<'a, I> {
    stream: SplitStream<WebSocketStream<Gauged<I>>>,
    form: Form,
    gauge: Gauge,
    pulse: &'a Pulse,
    allowance: Allowance,
    /// Where messages go; `None` once all were said.
    call: Option<mpsc::Sender<Said>>,
}

impl<'a, I: AsyncRead + AsyncWrite + Unpin> Listener<'a, I> {
    /// Hears what comes by `stream`, and the call's messages as they are heard. One is read ahead:
    /// whoever does not read the next one does not let the caller say another.
    pub(super) fn new(
        stream: SplitStream<WebSocketStream<Gauged<I>>>,
        form: Form,
        gauge: Gauge,
        pulse: &'a Pulse,
    ) -> (Self, Heard) {
        let (call, said) = mpsc::channel(1);
        let allowance = Allowance::new(Instant::now());
        let listener = Self { stream, form, gauge, pulse, allowance, call: Some(call) };
        (listener, Heard { said, message: None, ended: false })
    }

    /// Listens until nothing more is to be heard, which ends the call.
    pub(super) async fn listen(&mut self) -> Last {
        loop {
            // Without room for it nothing is read. A call that takes no more has ended: what is
            // said to it is not kept.
            let room = match self.call.clone() {
                Some(call) => call.reserve_owned().await.ok(),
                None => None,
            };
            let Ok(heard) = timeout(KEEP_ALIVE_EVERY, self.stream.next()).await else {
                if self.pulse.asked.load(Relaxed) {
                    return Last::Gone;
                }
                self.pulse.wish.notify_one();
                continue;
            };
            self.pulse.asked.store(false, Relaxed);
            let said = match heard {
                Some(Ok(message)) => self.hear(message),
                Some(Err(error)) => Break(self.broke(error)),
                None => return Last::Gone,
            };
            match (said, room) {
                (Break(last), _) => return last,
                (Continue(Some(Said::End)), room) => {
                    self.call = None;
                    if let Some(room) = room {
                        room.send(Said::End);
                    }
                }
                (Continue(Some(message)), Some(room)) => {
                    room.send(message);
                }
                (Continue(Some(Said::Message(_))), None) if self.call.is_none() => {
                    return Last::broke(CloseCode::Policy, "a message comes after the last one");
                }
                (Continue(_), _) => {}
            }
        }
    }

    /// What a frame says, if it says anything to the call, or how the session ends by it.
    fn hear(&mut self, message: Message) -> ControlFlow<Last, Option<Said>> {
        let bytes = match (message, self.form) {
            (Message::Text(text), _) if text.is_empty() => {
                self.gauge.whole(Bytes::new());
                return Continue(Some(Said::End));
            }
            (Message::Text(text), Form::Json) => text.into(),
            (Message::Binary(bytes), Form::Proto) => bytes,
            (Message::Text(_), Form::Proto) => {
                let message = "with encoding=proto messages are binary frames";
                return Break(Last::broke(CloseCode::Unsupported, message));
            }
            (Message::Binary(_), Form::Json) => {
                let message = "with encoding=json messages are text frames";
                return Break(Last::broke(CloseCode::Unsupported, message));
            }
            (Message::Ping(carried) | Message::Pong(carried), _) => {
                self.gauge.forget(CONTROL_HEAD_BYTES + carried.len());
                if self.allowance.spend(Instant::now) {
                    return Continue(None);
                }
                let what = "a flood of pings and pongs";
                let (code, no) = (CloseCode::Policy, No::invalid(what));
                return Break(Last::Broke { code, no, ended: Some(Ended::Flood(what.into())) });
            }
            (Message::Close(_), _) => return Break(Last::Closed),
            (Message::Frame(_), _) => return Continue(None),
        };
        Continue(Some(Said::Message(self.gauge.whole(bytes))))
    }

    /// What an error of the socket means.
    fn broke(&self, error: Error) -> Last {
        match error {
            Error::Capacity(error) => {
                let no = No::too_large(format!("a message is larger than taken: {error}"));
                Last::Broke { code: CloseCode::Size, no, ended: None }
            }
            Error::Utf8(_) => Last::broke(CloseCode::Invalid, "a text frame is not UTF-8"),
            Error::Protocol(ResetWithoutClosingHandshake) => Last::Gone,
            Error::Protocol(error) => {
                let what = format!("it is no WebSocket: {error}");
                let (code, no) = (CloseCode::Protocol, No::invalid(what.clone()));
                Last::Broke { code, no, ended: Some(Ended::Malformed(what)) }
            }
            _ => match self.gauge.refused() {
                Some(no) => Last::Broke { code: CloseCode::Again, no, ended: None },
                None => Last::Gone,
            },
        }
    }

    /// What it listens to.
    pub(super) fn into_stream(self) -> SplitStream<WebSocketStream<Gauged<I>>> {
        self.stream
    }
}

/// A call's messages, in envelopes, as they are heard.
pub(super) struct Heard {
    said: mpsc::Receiver<Said>,
    /// Comes after its prefix.
    message: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Heard {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(message) = this.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.said.poll_recv(cx)) {
            Some(Said::Message(message)) => {
                let prefix = envelope::prefix(0, message.len());
                this.message = Some(message).filter(|message| !message.is_empty());
                Some(Ok(Frame::data(Bytes::copy_from_slice(&prefix))))
            }
            Some(Said::End) => {
                this.ended = true;
                None
            }
            // Never to be taken for the end: half of what was meant is not what was meant.
            None => {
                this.ended = true;
                Some(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.message.is_none()
    }
}
