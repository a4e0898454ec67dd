//! Where a plugin answers, as its manifest says it.

use std::fmt;

/// Where a plugin answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listen {
    /// It binds the Unix socket that `BH_PLUGIN_SOCKET` names.
    #[default]
    Unix,
    /// It accepts on descriptor 3, which the host has bound already.
    Fd,
    /// It listens on this TCP port of its own loopback.
    Tcp(u16),
    /// As [`Listen::Tcp`], with TLS, under the certificate that its node issued for this run.
    Tls(u16),
}

impl Listen {
    /// The TCP port it listens on, if it does.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Unix | Self::Fd => None,
            Self::Tcp(port) | Self::Tls(port) => Some(port),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Fd => f.write_str("fd"),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
            Self::Tls(port) => write!(f, "tls:{port}"),
        }
    }
}

impl std::str::FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unix" => Ok(Self::Unix),
            "fd" => Ok(Self::Fd),
            _ => {
                let port = |port: &str| port.parse().ok().filter(|port: &u16| *port > 0);
                let on = match text.split_once(':') {
                    Some(("tcp", number)) => port(number).map(Self::Tcp),
                    Some(("tls", number)) => port(number).map(Self::Tls),
                    _ => None,
                };
                on.ok_or_else(|| InvalidListen(text.chars().take(40).collect()))
            }
        }
    }
}

/// The text does not say where a plugin listens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a way to listen: unix, fd, or tcp:PORT or tls:PORT with a port from 1 to 65535"
)]
pub struct InvalidListen(String);
