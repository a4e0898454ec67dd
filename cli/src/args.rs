//! The grammar of the command line, and nothing else: what is written here is what `--help` shows
//! and what the completions know.

mod check;
mod limit;
mod load;
mod log;

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint};
use protocol::{
    manifest::{Listen, Permission},
    service::{MethodPath, ServiceName},
};

use crate::{failed::EXIT_CODES, places::Wishes, units::parse_timeout};

pub use check::Check;
pub use limit::Limit;
pub use load::{Bench, Ping};
pub use log::{Level, Log};

const EXAMPLES: &str = "Examples:
  blackhole init && blackhole start        prepare a node here, then run it
  blackhole plugin load ./counter --wait   run a plugin and announce what it offers
  blackhole services                       what the mesh offers, and where
  blackhole call demo.v1.Counter/Add -d '{\"amount\": 2}'";

/// Runs, watches and calls a Blackhole node and its mesh.
#[derive(Debug, Parser)]
#[command(name = "blackhole", bin_name = "blackhole", version, propagate_version = true)]
#[command(max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which node, and how to print")]
pub struct Global {
    /// The node's data directory [default: $BH_DATA_DIR, or blackhole in the user's data directory]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// The node's directory for sockets [default: $BH_RUN_DIR, or run in the data directory]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run_dir: Option<PathBuf>,
    /// The node's admin socket, instead of the one in its run directory
    #[arg(long, global = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub admin: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// What was said about places.
    pub fn wishes(&self) -> Wishes {
        Wishes {
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            admin: self.admin.clone(),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write configuration, identity and data directory for a new node
    Init(Init),
    /// Run a node in the foreground until it is told to stop
    Start(Start),
    /// Drain and end the running node, and wait until it is gone
    Stop(Stop),
    /// Show who the node is, where it listens and how it does
    Status(Status),
    /// Tell whether all is well; exit code 5 if not
    Health(Health),
    /// Check this machine for what commonly goes wrong, and say what to do
    Doctor,
    /// Load, watch and unload plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// List every service of the mesh, its providers and where they are
    Services,
    /// Show a service's methods and messages, in the notation of .proto files
    Describe(OneService),
    /// Call a method of any service of the mesh
    Call(Call),
    /// List the peers this node is connected to
    Peers,
    /// Ask the registry of the mesh
    #[command(subcommand)]
    Registry(Registry),
    /// Say which provider a call would go to now, and why; or make one and tell every step of it
    Explain(Explain),
    /// See and change what the node itself logs
    #[command(subcommand)]
    Log(Log),
    /// Measure round trips through the mesh to each provider of a service
    Ping(Ping),
    /// Call a method many times, and measure how long that takes
    Bench(Bench),
    /// Look at configuration files
    #[command(subcommand)]
    Config(Config),
    /// Print the completions for a shell
    Completion(Completion),
    /// Other names for commands above
    #[command(subcommand, hide = true)]
    System(System),
    /// Other names for commands above
    #[command(subcommand, hide = true)]
    Mesh(Mesh),
}

/// `init`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  blackhole --data-dir ./node-a init --topology local")]
pub struct Init {
    /// What the node is for
    #[arg(long, value_enum, default_value_t = Topology::Local)]
    pub topology: Topology,
}

/// The kinds of mesh a node can be prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// This machine: everything but the mesh itself listens on loopback
    Local,
}

impl Topology {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
        }
    }
}

/// `start`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole start
  blackhole start --config production.yaml
  blackhole start --name b --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…

Every option of `bh-peer --help` is accepted as well.")]
pub struct Start {
    /// The configuration file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Options of `bh-peer`, passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    pub rest: Vec<std::ffi::OsString>,
}

/// `stop`
#[derive(Debug, Args)]
pub struct Stop {
    /// How long to wait until the node is gone
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Return when draining has begun
    #[arg(long)]
    pub no_wait: bool,
}

/// `status`
#[derive(Debug, Args)]
pub struct Status {
    /// Show plugins, connections, directories and resources too
    #[arg(long)]
    pub detailed: bool,
}

/// `health`
#[derive(Debug, Args)]
pub struct Health {
    /// Probe everything now instead of telling what was last seen
    #[arg(long)]
    pub check_all: bool,
}

/// `plugin …`
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// Run a plugin and announce what it offers
    Load(Load),
    /// List the plugins of this node
    #[command(alias = "ls")]
    List,
    /// Show all that is known about one plugin
    Info(Named),
    /// Print what a plugin and its supervisor said, oldest first
    Logs(Logs),
    /// Withdraw a plugin's services, let it finish, and end it
    Unload(Named),
    /// Start a plugin again; of several instances one after the other
    Restart(Named),
    /// Read a plugin's manifest and program anew, and start what was read
    Reload(Named),
    /// Change how many processes of a plugin share its calls; the youngest end first
    Scale(Scale),
    /// Change what a plugin may use, while it runs and for every later start
    Limit(Limit),
    /// Say rule by rule whether a plugin keeps the contract; needs no running node
    Check(Check),
}

/// `plugin scale`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  blackhole plugin scale counter 3")]
pub struct Scale {
    /// What the plugin is called, as `blackhole plugin list` shows it
    pub name: String,
    /// How many processes there shall be
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub instances: u32,
}

/// `plugin load`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["path", "exec"]))]
#[command(after_help = "Examples:
  blackhole plugin load ./counter --wait
  blackhole plugin load --exec \"python3 server.py\" --listen unix --name greeter
  blackhole plugin load --exec \"./server --port 50051\" --listen tcp:50051 --service demo.v1.Echo

A program loaded with --exec runs in the current directory.")]
pub struct Load {
    /// A directory with a plugin.yaml, a manifest, or an executable
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// A command line to run instead, quoted as for a shell
    #[arg(long, value_name = "CMD…", requires = "listen")]
    pub exec: Option<String>,
    /// Where the program of --exec serves gRPC: unix ($BH_PLUGIN_SOCKET), tcp:PORT, or tls:PORT
    #[arg(long, value_name = "WHERE", conflicts_with = "path", value_parser = parse_listen)]
    pub listen: Option<String>,
    /// What to call the plugin [default: the manifest's name, or the program's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A service it offers, where it has no reflection; may be repeated
    #[arg(long = "service", value_name = "SERVICE", conflicts_with = "path")]
    pub services: Vec<ServiceName>,
    /// A path it may read, beside its own directory and the system's; may be repeated
    #[arg(long = "read", value_name = "PATH", conflicts_with = "path", value_hint = ValueHint::AnyPath)]
    pub read_paths: Vec<PathBuf>,
    /// Something it asks to be allowed, as a manifest writes it, such as call:demo.v1.Counter or
    /// network:example.org:443; may be repeated. The node's configuration decides
    #[arg(long = "permission", value_name = "PERMISSION", conflicts_with = "path")]
    pub permissions: Vec<Permission>,
    /// How many processes share its calls [default: what its manifest says, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub instances: Option<u32>,
    /// Return when the plugin is ready, or has failed
    #[arg(long)]
    pub wait: bool,
}

/// One plugin, by name.
#[derive(Debug, Args)]
pub struct Named {
    /// What the plugin is called, as `blackhole plugin list` shows it
    #[arg(value_name = "NAME", required_unless_present = "flag")]
    name: Option<String>,
    #[arg(long = "name", id = "flag", value_name = "NAME", hide = true, conflicts_with = "name")]
    flag: Option<String>,
}

impl Named {
    /// The plugin's name, however it was given.
    pub fn name(&self) -> &str {
        self.name.as_deref().or(self.flag.as_deref()).unwrap_or_default()
    }
}

/// `plugin logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Which plugin.
    #[command(flatten)]
    pub plugin: Named,
    /// Keep printing until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N lines [default: all that is kept]
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<u32>,
    /// Only what was said within this time, such as 90s, 5m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub since: Option<Duration>,
    /// Only lines of this level and worse
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub level: Option<String>,
    /// Only lines with this text in their message or fields
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// Only what came from here
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr", "supervisor"])]
    pub stream: Option<String>,
}

/// One service, by name.
#[derive(Debug, Args)]
pub struct OneService {
    /// The service's full name, such as demo.v1.Counter
    pub service: ServiceName,
}

/// Where a call may go.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where it may go")]
pub struct Whither {
    /// Only to this peer: its id, the end of its id, or its name
    #[arg(long, value_name = "ID", conflicts_with_all = ["local", "prefer_local", "any"])]
    pub peer: Option<String>,
    /// Only to a plugin of this node
    #[arg(long, conflicts_with_all = ["prefer_local", "any"])]
    pub local: bool,
    /// To a plugin of this node if it has one, else to another peer
    #[arg(long, conflicts_with = "any")]
    pub prefer_local: bool,
    /// To any provider alike
    #[arg(long)]
    pub any: bool,
}

impl Whither {
    /// The locality asked for, as the mesh spells it; `None` where nothing was asked.
    pub fn locality(&self) -> Option<&'static str> {
        match (self.local, self.prefer_local, self.any) {
            (true, _, _) => Some("local"),
            (_, true, _) => Some("prefer-local"),
            (_, _, true) => Some("any"),
            _ => None,
        }
    }
}

/// `call`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole call demo.v1.Counter/Add -d '{\"amount\": 2}'
  blackhole call demo.v1.Echo/Chat -d @messages.json --timeout 5s -H tenant:blue
  tail -f events.json | blackhole call demo.v1.Log/Append -d -

Requests and answers are JSON as protobuf defines it. A method that takes a stream takes several
JSON values, one after the other, each sent as soon as it is complete.")]
pub struct Call {
    /// The method, such as demo.v1.Counter/Add
    #[arg(value_name = "SERVICE/METHOD")]
    pub method: MethodPath,
    /// The request: JSON, @FILE, or - for standard input [default: an empty message]
    #[arg(long, short, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    pub data: Option<String>,
    /// Give up after this time, such as 500ms or 5s
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    /// Metadata to send, as KEY:VALUE; may be repeated. Values of keys in -bin are base64
    #[arg(long = "header", short = 'H', value_name = "KEY:VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Show metadata and trailers on standard error
    #[arg(long, short)]
    pub verbose: bool,
    /// Print fields that have their default value too
    #[arg(long)]
    pub emit_defaults: bool,
    /// Where it may go.
    #[command(flatten)]
    pub whither: Whither,
}

/// `registry …`
#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Show who offers a service: the adverts held here, and the peers the DHT names
    Query(OneService),
}

/// `explain`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole explain demo.v1.Counter
  blackhole explain demo.v1.Counter/Add --call -d '{\"amount\": 2}' --any")]
pub struct Explain {
    /// The service's full name, such as demo.v1.Counter, or one of its methods
    #[arg(value_name = "SERVICE[/METHOD]", value_parser = parse_target)]
    pub target: Target,
    /// Make one call of the method, and tell every step of it with its time
    #[arg(long)]
    pub call: bool,
    /// The request of that call, as JSON [default: an empty message]
    #[arg(long, short, value_name = "JSON", requires = "call", allow_hyphen_values = true)]
    pub data: Option<String>,
    /// Give that call up after this time, such as 500ms or 5s [default: 10s]
    #[arg(long, value_name = "TIME", requires = "call", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    /// Metadata of that call, as KEY:VALUE; may be repeated
    #[arg(long = "header", short = 'H', value_name = "KEY:VALUE", requires = "call",
        value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Where it may go.
    #[command(flatten)]
    pub whither: Whither,
}

/// A service, or one of its methods.
#[derive(Debug, Clone)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The method, where one was named.
    pub method: Option<MethodPath>,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check a configuration file and list every mistake in it; nothing is started
    Check {
        /// The file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// `completion`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blackhole completion bash > ~/.local/share/bash-completion/completions/blackhole
  blackhole completion zsh  > \"${fpath[1]}/_blackhole\"
  blackhole completion fish > ~/.config/fish/completions/blackhole.fish")]
pub struct Completion {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// `system …`
#[derive(Debug, Subcommand)]
pub enum System {
    /// Another name for `blackhole status`
    Status(Status),
    /// Another name for `blackhole health`
    Health(Health),
}

/// `mesh …`
#[derive(Debug, Subcommand)]
pub enum Mesh {
    /// Another name for `blackhole peers`
    Peers,
    /// Another name for `blackhole services`
    Services,
}

fn parse_listen(text: &str) -> Result<String, String> {
    // Descriptor 3 is for programs that a manifest describes.
    match text.parse() {
        Ok(listen @ (Listen::Unix | Listen::Tcp(_) | Listen::Tls(_))) => Ok(listen.to_string()),
        Ok(Listen::Fd) | Err(_) => {
            Err("expected unix, or tcp: or tls: and a port from 1 to 65535, such as tcp:50051"
                .into())
        }
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    if text.contains('/') {
        let method: MethodPath = text.parse().map_err(|error| format!("{error}"))?;
        return Ok(Target { service: method.service(), method: Some(method) });
    }
    let service = text.parse().map_err(|error| format!("{error}"))?;
    Ok(Target { service, method: None })
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once(':').ok_or("expected KEY:VALUE, such as tenant:blue")?;
    let key = key.trim().to_ascii_lowercase();
    if key.starts_with("grpc-") || key == "content-type" || key == "te" {
        return Err(format!("`{key}` belongs to gRPC itself"));
    }
    http::HeaderName::from_bytes(key.as_bytes())
        .map_err(|_| format!("`{key}` is not a metadata key: a-z, 0-9, `-`, `_` and `.`"))?;
    let value = value.trim();
    http::HeaderValue::from_str(value)
        .map_err(|_| format!("the value of `{key}` is not printable ASCII; use a key in -bin"))?;
    Ok((key, value.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(shlex::split(line).expect("the test's own quoting is right"))
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_line_is_understood() {
        for line in [
            "blackhole init",
            "blackhole init --topology local",
            "blackhole start",
            "blackhole start --config production.yaml",
            "blackhole start --name b --bootstrap /ip4/192.0.2.7/tcp/4001 --config x.yaml",
            "blackhole stop",
            "blackhole status",
            "blackhole status --detailed",
            "blackhole health",
            "blackhole health --check-all",
            "blackhole doctor",
            "blackhole plugin load my-plugin",
            "blackhole plugin load ./counter --wait",
            "blackhole plugin load --exec 'python3 server.py' --listen unix",
            "blackhole plugin load --exec './s -p 1' --listen tcp:50051 --name n --service a.B --service c.D",
            "blackhole plugin list",
            "blackhole plugin info counter",
            "blackhole plugin logs counter --follow --tail 20",
            "blackhole plugin unload my-plugin",
            "blackhole plugin unload --name my-plugin",
            "blackhole plugin load ./counter --instances 3",
            "blackhole plugin restart counter",
            "blackhole plugin reload counter",
            "blackhole plugin scale counter 3",
            "blackhole services",
            "blackhole describe demo.v1.Counter",
            "blackhole call demo.v1.Counter/Add",
            "blackhole call /demo.v1.Counter/Add -d '{\"amount\":2}' --peer 12D3KooW --timeout 5s",
            "blackhole call demo.v1.Counter/Add -d - --local -H a:b -H c-bin:AAE=",
            "blackhole call demo.v1.Counter/Add -d @file --prefer-local",
            "blackhole call demo.v1.Counter/Add --any --json -v",
            "blackhole peers",
            "blackhole registry query demo.v1.Counter",
            "blackhole explain demo.v1.Counter",
            "blackhole explain demo.v1.Counter --local",
            "blackhole explain demo.v1.Counter/Add --call -d '{}' --timeout 2s -H a:b --any",
            "blackhole ping demo.v1.Counter",
            "blackhole ping demo.v1.Counter -c 3 -i 50ms --timeout 1s --peer b",
            "blackhole bench demo.v1.Counter/Add -d '{}' -c 64 --duration 5s --warm-up 0",
            "blackhole bench demo.v1.Counter/Add -n 100 --timeout 1s -H a:b --any",
            "blackhole config check blackhole.yaml",
            "blackhole completion bash",
            "blackhole completion zsh",
            "blackhole completion fish",
            "blackhole system status --detailed",
            "blackhole --data-dir /d --run-dir /r --admin /s --json status",
            "blackhole status --json --data-dir /d",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}\n{error}");
            }
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        for line in [
            "blackhole",
            "blackhole frobnicate",
            "blackhole plugin load",
            "blackhole plugin load ./x --exec y --listen unix",
            "blackhole plugin load --exec y",
            "blackhole plugin load ./x --listen unix",
            "blackhole plugin load --listen unix",
            "blackhole plugin load ./x --service a.B",
            "blackhole plugin load --exec y --listen tcp:0",
            "blackhole plugin load --exec y --listen tcp:99999",
            "blackhole plugin load --exec y --listen tls:0",
            "blackhole plugin load --exec y --listen udp:5",
            "blackhole plugin info",
            "blackhole plugin scale counter",
            "blackhole plugin scale counter 0",
            "blackhole plugin scale counter many",
            "blackhole call demo.v1.Counter",
            "blackhole call demo.v1.Counter/Add --local --any",
            "blackhole call demo.v1.Counter/Add --local --peer x",
            "blackhole call demo.v1.Counter/Add -H novalue",
            "blackhole call demo.v1.Counter/Add -H grpc-timeout:1S",
            "blackhole call demo.v1.Counter/Add --timeout 5parsecs",
            "blackhole ping demo.v1.Counter -c 0",
            "blackhole bench demo.v1.Counter/Add -n 1 --duration 1s",
            "blackhole bench demo.v1.Counter/Add -c 100000",
            "blackhole describe 'not a service'",
            "blackhole init --topology moon",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn options_of_the_peer_are_passed_on_untouched() {
        let cli = parse("blackhole start --config c.yaml --grpc off --label a=b").expect("valid");
        let Command::Start(start) = cli.command else { panic!("start expected") };
        assert_eq!(start.config, Some("c.yaml".into()));
        assert_eq!(start.rest, ["--grpc", "off", "--label", "a=b"]);
    }

    #[test]
    fn header_values_may_contain_colons() {
        assert_eq!(parse_header("Time: 12:30"), Ok(("time".into(), "12:30".into())));
    }

    #[test]
    fn every_command_and_option_explains_itself() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let (command, option, help) =
                    (command.get_name(), option.get_id(), option.get_help());
                assert!(help.is_some(), "{option} of {command} has no help");
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn the_help_names_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("3  no node answers"), "{help}");
    }
}
