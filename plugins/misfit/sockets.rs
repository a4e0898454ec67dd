//! The tricks that are played on the socket, past the SDK or through it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::{Context, Poll};
use std::{env, mem, process};

use listenfd::ListenFd;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

/// What `garbage` answers: neither HTTP/2 nor anything else that is known.
const NONSENSE: &[u8] = b"\x00\xff\x13\x37 this is no HTTP/2 frame \xde\xad\xbe\xef\r\n";

/// Accepts, and answers with nonsense.
pub fn garbage() -> ! {
    answer_each(|mut connection| {
        for _ in 0..100 {
            if connection.write_all(NONSENSE).is_err() {
                return;
            }
        }
        // Open, so that it is the nonsense that the other side must act upon.
        mem::forget(connection);
    })
}

/// Accepts, and says nothing.
pub fn silent() -> ! {
    answer_each(mem::forget)
}

fn answer_each(answer: impl Fn(UnixStream)) -> ! {
    let ended = listener().and_then(|listener| {
        loop {
            answer(listener.accept()?.0);
        }
    });
    let Err::<Infallible, _>(error) = ended;
    eprintln!("misfit: this trick needs the socket of a node: {error}");
    process::exit(1)
}

fn listener() -> io::Result<UnixListener> {
    if let Some(inherited) = ListenFd::from_env().take_unix_listener(0)? {
        // The node may have opened it as it needs it; here it must block.
        inherited.set_nonblocking(false)?;
        return Ok(inherited);
    }
    let path = env::var_os("BH_PLUGIN_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    UnixListener::bind(path)
}

/// Claims to be `demo.v1.Counter`, and is not.
#[derive(Debug, Clone)]
pub struct Pretender;

impl NamedService for Pretender {
    const NAME: &'static str = "demo.v1.Counter";
}

impl Service<http::Request<Body>> for Pretender {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(Status::unimplemented("misfit lied: it is no counter").into_http()))
    }
}
