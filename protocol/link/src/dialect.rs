//! Which dialect a stream speaks: frames, or something else that shares its address.
//!
//! The side that accepts looks at one byte and knows ([`sniff`]): no HTTP and no TLS begins with a
//! link's first byte. The side that connects never guesses: it sends frames only to whom told it
//! by other means that they are understood, and not before its preface was answered
//! ([`connect`]).

use std::{io, os::fd::AsFd};

use protocol::frame::{FrameError, MAGIC, PREFACE_BYTES, preface, read_preface};
use rustix::net::{RecvFlags, recv};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest},
    net::{TcpStream, UnixStream},
};

use crate::{Link, LinkEnd, LinkSettings, client};

/// What a stream that was accepted speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Frames: give it to [`serve`](crate::serve()).
    Link,
    /// Anything else.
    Other,
}

/// A socket that can be looked into without taking anything out of it.
pub trait Socket: Sync {
    /// Waits for the first byte and leaves it where it is; `None` at the end of the stream.
    fn first_byte(&self) -> impl Future<Output = io::Result<Option<u8>>> + Send;
}

impl Socket for UnixStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        self.async_io(Interest::READABLE, || peek(self)).await
    }
}

impl Socket for TcpStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        self.async_io(Interest::READABLE, || peek(self)).await
    }
}

fn peek(socket: impl AsFd) -> io::Result<Option<u8>> {
    let mut first = [0];
    let (bytes, _) = recv(socket, &mut first, RecvFlags::PEEK)?;
    Ok((bytes > 0).then_some(first[0]))
}

/// Tells what a socket that was accepted speaks, from its first byte. Waits for as long as the
/// other side says nothing: the caller bounds it.
pub async fn sniff(socket: &impl Socket) -> io::Result<Dialect> {
    let first = socket.first_byte().await?;
    Ok(if first == Some(MAGIC[0]) { Dialect::Link } else { Dialect::Other })
}

/// Makes a link as [`client`](crate::client()) does, once the other side has answered the preface.
/// Until then nothing but those eight bytes is sent. The caller bounds the time.
pub async fn connect<S>(
    mut stream: S,
    settings: LinkSettings,
) -> Result<(Link, impl Future<Output = LinkEnd> + Send + use<S>), LinkEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let lost = |error: io::Error| LinkEnd::Lost { cause: error.to_string() };
    stream.write_all(&preface()).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut answer = [0; PREFACE_BYTES];
    stream.read_exact(&mut answer).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkEnd::Format(FrameError::NotALink),
        _ => lost(error),
    })?;
    read_preface(&answer)?;
    Ok(client::new(stream, settings, true, None))
}
