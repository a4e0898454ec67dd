//! `/blackhole/registry/1`: bytes there, bytes back, each after its length in four bytes, little
//! end first. Lengths are checked before anything is allocated, and memory grows with what has
//! arrived rather than with what was promised.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use protocol::limits::DESCRIPTORS_BYTES_MAX;

/// The protocol's name.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/blackhole/registry/1");

/// A request names what it wants; 64 KiB is generous.
pub(super) const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// A reply carries one peer's adverts or one service's descriptors, and a little around them.
pub(super) const REPLY_BYTES_MAX: usize = DESCRIPTORS_BYTES_MAX + 64 * 1024;

/// Reads and writes requests and replies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Codec;

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REQUEST_BYTES_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, REPLY_BYTES_MAX).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &request, REQUEST_BYTES_MAX).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        reply: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &reply, REPLY_BYTES_MAX).await
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length);
    if length as usize > bytes_max {
        return Err(too_large(length as usize, bytes_max));
    }
    let mut bytes = Vec::new();
    io.take(length.into()).read_to_end(&mut bytes).await?;
    if bytes.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    bytes_max: usize,
) -> io::Result<()> {
    if bytes.len() > bytes_max {
        return Err(too_large(bytes.len(), bytes_max));
    }
    io.write_all(&(bytes.len() as u32).to_le_bytes()).await?;
    io.write_all(bytes).await?;
    io.close().await
}

fn too_large(bytes: usize, bytes_max: usize) -> io::Error {
    let text = format!("{bytes} bytes are more than the {bytes_max} allowed");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let mut wire = Cursor::new(Vec::new());
        write(&mut wire, b"who offers echo?", REQUEST_BYTES_MAX).await.expect("written");
        let read = read(&mut Cursor::new(wire.into_inner()), REQUEST_BYTES_MAX).await;
        assert_eq!(read.expect("read"), b"who offers echo?");
    }

    #[tokio::test]
    async fn a_length_beyond_the_cap_is_refused_before_anything_is_read() {
        let mut wire = Cursor::new(u32::MAX.to_le_bytes().to_vec());
        let error = read(&mut wire, REPLY_BYTES_MAX).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_message_cut_short_is_an_error() {
        let mut wire = Cursor::new([10, 0, 0, 0, 1, 2, 3].to_vec());
        let error = read(&mut wire, REQUEST_BYTES_MAX).await.expect_err("cut short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
