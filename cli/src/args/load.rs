//! `ping` and `bench`: how much is sent to whom, and how fast.

use std::time::Duration;

use clap::{ArgGroup, Args};
use protocol::service::{MethodPath, ServiceName};

use super::{Whither, parse_header};
use crate::units::parse_timeout;

/// Calls in progress at once: what a node takes on one connection.
const CONCURRENCY_MAX: i64 = 1_000;

/// `ping`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole ping demo.v1.Counter
  blackhole ping demo.v1.Counter --peer b --count 100 --interval 50ms --json

Each probe is a call through this node and the mesh to the plugin and back, of a method that no
service has: the plugin's refusal is the reply, so nothing runs. Exit code 1 when a provider
answered no probe, 4 when nobody offers the service.")]
pub struct Ping {
    /// The service's full name, such as demo.v1.Counter
    pub service: ServiceName,
    /// How many probes each provider gets
    #[arg(long, short, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: u32,
    /// How long from one probe to the next
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = parse_timeout)]
    pub interval: Duration,
    /// A probe without a reply after this time is lost
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Only this peer: its id, the end of its id, or its name [default: every provider]
    #[arg(long, value_name = "ID")]
    pub peer: Option<String>,
}

/// `bench`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("end").args(["duration", "count"]))]
#[command(after_help = "Examples:
  blackhole bench demo.v1.Echo/Say -d '{\"text\": \"hi\"}' --concurrency 64 --duration 30s
  blackhole bench demo.v1.Counter/Get --count 10000 --peer b --json

The method runs for real, as often as is counted: mind what it does. Each of the callers waits for
its answer before it calls again. Ctrl-C ends the run and prints what was measured so far. Exit code
1 when a call failed.")]
pub struct Bench {
    /// The method, such as demo.v1.Counter/Add
    #[arg(value_name = "SERVICE/METHOD")]
    pub method: MethodPath,
    /// The request: JSON, @FILE, or - for standard input; of a method that takes a stream, all
    /// values are sent with every call [default: an empty message]
    #[arg(long, short, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub data: Option<String>,
    /// How many calls are in progress at once
    #[arg(long, short, value_name = "N", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=CONCURRENCY_MAX))]
    pub concurrency: u32,
    /// How long calls are begun [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub duration: Option<Duration>,
    /// How many calls are made, instead of for how long
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// How long calls are made before anything is measured; 0 for not at all
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_warm_up)]
    pub warm_up: Duration,
    /// A call without an answer after this time has failed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Metadata to send, as KEY:VALUE; may be repeated. Values of keys in -bin are base64
    #[arg(long = "header", short = 'H', value_name = "KEY:VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Where calls may go.
    #[command(flatten)]
    pub whither: Whither,
}

fn parse_warm_up(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { parse_timeout(text) }
}
