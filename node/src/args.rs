//! The flags of `bh-peer` and `bh-bootstrap`. Owns how they read; what they mean together with a
//! configuration file is [`crate::config`]'s.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand};
use multiaddr::Multiaddr;
use protocol::id::NetworkName;

/// A peer of a Blackhole mesh: runs plugins as isolated processes, finds services in a DHT, and
/// carries any gRPC call to whoever offers it.
#[derive(Debug, Parser)]
#[command(
    name = "bh-peer",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  bh-peer                                             a peer with working defaults
  bh-peer --bootstrap /ip4/10.0.0.5/tcp/4001/p2p/12D3Koo…
  bh-peer --config blackhole.yaml
  bh-peer --data-dir /tmp/b --listen /ip4/127.0.0.1/tcp/0 --grpc off --http off --metrics off

Exit codes: 0 clean stop, 1 could not start or run, 2 wrong usage or configuration."
)]
pub struct PeerArgs {
    #[command(subcommand)]
    pub command: Option<PeerCommand>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What `bh-peer` does beside running a peer.
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Run one built-in service as a subprocess of a node.
    Service(ServiceArgs),
    /// Write configuration, identity and data directory for a topology.
    #[command(hide = true)]
    Init(InitArgs),
    /// Say rule by rule whether a plugin keeps the contract.
    #[command(hide = true)]
    Check(CheckArgs),
    /// Read a configuration file and tell every mistake in it.
    #[command(hide = true)]
    CheckConfig(CheckConfigArgs),
}

/// `bh-peer service NAME`.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// identity or telemetry
    pub name: String,
    /// Serve on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Serve on this TCP port of loopback, beside the socket.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
}

/// `bh-peer init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// What the node is part of.
    #[arg(long, default_value = "local", value_parser = ["local"])]
    pub topology: String,
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets are to live; default <data-dir>/run.
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where to write the configuration; default <data-dir>/blackhole.yaml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

/// `bh-peer check-config FILE`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    pub file: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// `bh-peer check PATH`, or `bh-peer check --listen unix --exec PROGRAM ARGUMENT…`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[arg(required_unless_present = "exec")]
    pub path: Option<PathBuf>,
    /// `unix`, `fd`, `tcp:PORT` or `tls:PORT`.
    #[arg(long)]
    pub listen: Option<String>,
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long)]
    pub service: Vec<String>,
    #[arg(long)]
    pub read: Vec<PathBuf>,
    #[arg(long)]
    pub permission: Vec<String>,
    /// Seconds, where its manifest does not say.
    #[arg(long)]
    pub start_timeout: Option<u64>,
    #[arg(long)]
    pub json: bool,
    /// Program and arguments; the rest of the line.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, conflicts_with = "path")]
    pub exec: Vec<String>,
}

/// What a running peer is told on its command line; everything is optional and wins over the
/// configuration file.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Read this configuration file [default: <data-dir>/blackhole.yaml where there is one].
    #[arg(long, value_name = "FILE", env = "BH_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where everything persistent lives [default: ~/.local/share/blackhole].
    #[arg(long, value_name = "DIR", env = "BH_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets live [default: <data-dir>/run].
    #[arg(long, value_name = "DIR", env = "BH_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// The node's name in logs and status [default: its peer id's last letters].
    #[arg(long)]
    pub name: Option<String>,
    /// Serve gRPC here [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDR|off")]
    pub grpc: Option<Listen>,
    /// Serve HTTP here [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR|off")]
    pub http: Option<Listen>,
    /// Serve Prometheus metrics here [default: 127.0.0.1:9091].
    #[arg(long, value_name = "ADDR|off")]
    pub metrics: Option<Listen>,
    /// A label of this node, for selection by role, region or hardware.
    #[arg(long, value_name = "K=V")]
    pub label: Vec<Label>,
    /// Find peers on the local network by mDNS.
    #[arg(long)]
    pub mdns: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
}

/// The first peer that others find a network through: keeps the DHT, gossips and relays; runs no
/// plugins and serves no clients.
#[derive(Debug, Parser)]
#[command(name = "bh-bootstrap", version)]
pub struct BootstrapArgs {
    /// Where identity and DHT records live [default: ~/.local/share/blackhole-bootstrap].
    #[arg(long, value_name = "DIR", env = "BH_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
}

/// How a peer of any kind takes part in its network, and how it speaks.
#[derive(Debug, Default, Args)]
pub struct MeshArgs {
    /// The network to be part of; peers of other networks are refused [default: local].
    #[arg(long)]
    pub network: Option<NetworkName>,
    /// Listen for peers here [default: TCP and QUIC on port 4001].
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// Join through this peer.
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
    /// Tell others to reach this peer here.
    #[arg(long, value_name = "MULTIADDR")]
    pub external: Vec<Multiaddr>,
    /// error, warn, info, debug or trace; or a filter such as `info,peer=debug` [default: info].
    #[arg(long, value_name = "L", env = "BH_LOG")]
    pub log_level: Option<String>,
    /// One JSON object a line on standard output; the log as JSON lines on standard error.
    #[arg(long)]
    pub json: bool,
}

/// A listening address, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| {
            format!("`{text}` is neither `off` nor an address such as 127.0.0.1:9090 or [::1]:9090")
        })?;
        Ok(Self(Some(address)))
    }
}

/// One `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(pub String, pub String);

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.into(), value.into())),
            _ => Err(format!("`{text}` is not a label (expected key=value)")),
        }
    }
}

impl RunArgs {
    /// The labels as a map; the last of equal keys wins.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.label.iter().map(|Label(key, value)| (key.clone(), value.clone())).collect()
    }
}
