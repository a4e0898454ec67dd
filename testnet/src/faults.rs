//! A wire that can be cut: a TCP relay between a caller and a port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What a wire does with what is sent through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Passes it on.
    Whole,
    /// Swallows it and says nothing, as a network that has lost its path.
    Silent,
    /// Ends every connection and refuses new ones.
    Cut,
}

/// A relay to one TCP port; dropping it cuts it for good.
pub struct Wire {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Wire {
    /// A whole wire to `target`, on a free port of loopback.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::Whole);
        let task = tokio::spawn(relay(listener, target, watched));
        Ok(Self { address, state, task })
    }

    /// Where to connect instead of the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection; new ones are closed at once.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// From now on nothing gets through, and nobody is told.
    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    /// Makes the wire whole for new connections.
    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts for ever; its connections end with it.
async fn relay(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let state = Arc::new(state);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                connections.spawn(carry(near, target, watch::Receiver::clone(&state)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    if *state.borrow_and_update() == State::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    let hurt = state.wait_for(|state| *state != State::Whole);
    let hurt = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        hurt = hurt => hurt.map(|state| *state),
    };
    if matches!(hurt, Ok(State::Silent)) {
        // Both ends are kept open and drained, as by a network that delivers nothing.
        tokio::select! {
            () = swallow(&mut near) => {}
            () = swallow(&mut far) => {}
            _ = state.wait_for(|state| *state == State::Cut) => {}
        }
    }
}

async fn swallow(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes).await, Ok(length) if length > 0) {}
    // The end of one side is not passed on either; the wire stays silent until it is cut.
    tokio::time::sleep(Duration::from_hours(1)).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wire_carries_until_it_is_cut_and_again_when_mended() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let wire = Wire::to(echo.local_addr().expect("bound")).await.expect("wired");
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = echo.accept().await.expect("accepted");
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    stream.write_all(&byte).await.expect("written");
                }
            }
        });
        let mut byte = [0];
        for _ in 0..2 {
            wire.mend();
            let mut stream = TcpStream::connect(wire.address()).await.expect("connected");
            stream.write_all(b"x").await.expect("written");
            stream.read_exact(&mut byte).await.expect("echoed");
            wire.cut();
            assert!(stream.read_exact(&mut byte).await.is_err(), "cut");
        }
        server.abort();
    }
}
