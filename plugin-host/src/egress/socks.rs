//! SOCKS5 (RFC 1928), without authentication: who speaks here is known by the jail it comes from.
//! `CONNECT` by name or address; nothing else.

use std::net::{IpAddr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use super::{Gate, HEAD_PATIENCE, NoWay};
use crate::permissions::Host;

/// The first byte of everything a client says.
pub(super) const VERSION: u8 = 5;

const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

const GRANTED: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const CONNECTION_REFUSED: u8 = 5;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const ADDRESS_NOT_SUPPORTED: u8 = 8;

/// Serves one connection to its end.
pub(super) async fn serve(mut client: TcpStream, gate: Gate) {
    // Every part of a head is bounded by its own length byte: at most 513 bytes in all.
    let Ok(Ok((host, port))) = timeout(HEAD_PATIENCE, head(&mut client)).await else { return };
    let Some(host) = host else {
        return answer(&mut client, ADDRESS_NOT_SUPPORTED).await;
    };
    match gate.connect(&host, port).await {
        Ok(mut outside) => {
            answer(&mut client, GRANTED).await;
            // However it ends, both sides see their connection end.
            let _ = copy_bidirectional(&mut client, &mut outside).await;
        }
        Err(NoWay::Refused(_)) => answer(&mut client, NOT_ALLOWED).await,
        Err(NoWay::Unknown(_)) => answer(&mut client, HOST_UNREACHABLE).await,
        Err(NoWay::Unreachable(_)) => answer(&mut client, CONNECTION_REFUSED).await,
    }
}

/// Where it wants to go; `None` for a name that is none.
async fn head(client: &mut TcpStream) -> std::io::Result<(Option<Host>, u16)> {
    let broken = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    if client.read_u8().await? != VERSION {
        return Err(broken());
    }
    let mut methods = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        client.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(broken());
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let [version, command, _, kind] = request;
    if version != VERSION {
        return Err(broken());
    }
    let host = match kind {
        ADDRESS_V4 => {
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).await?;
            Some(Host::Address(IpAddr::from(bytes)))
        }
        ADDRESS_V6 => {
            let mut bytes = [0; 16];
            client.read_exact(&mut bytes).await?;
            Some(Host::Address(IpAddr::from(bytes)))
        }
        ADDRESS_NAME => {
            let mut bytes = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut bytes).await?;
            std::str::from_utf8(&bytes).ok().and_then(Host::parse)
        }
        _ => {
            answer(client, ADDRESS_NOT_SUPPORTED).await;
            return Err(broken());
        }
    };
    let port = client.read_u16().await?;
    if command != CONNECT {
        answer(client, COMMAND_NOT_SUPPORTED).await;
        return Err(broken());
    }
    Ok((host, port))
}

/// The address it was connected from is the host's own affair: zeros.
async fn answer(client: &mut TcpStream, code: u8) {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut bytes = vec![VERSION, code, 0, ADDRESS_V4];
    if let IpAddr::V4(address) = nowhere.ip() {
        bytes.extend(address.octets());
    }
    bytes.extend(nowhere.port().to_be_bytes());
    // A client that is gone needs no answer.
    let _ = client.write_all(&bytes).await;
}
