//! The signals that end a node, and the one that has it read its configuration again.
//! Listened to from the first moment of a start, so that none of them
//! kills a node that is about to serve.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM; SIGHUP.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on they are told here instead of ending the process.
    pub fn listen() -> std::io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate, hang_up: signal(SignalKind::hangup())? })
    }

    /// What the next of them means. Cancel-safe.
    pub async fn told(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::ReadAgain,
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// To end.
    Stop,
    /// To read the configuration again.
    ReadAgain,
}
