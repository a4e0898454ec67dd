//! The commands: each asks the node, and prints what it answers.

mod bench;
mod call;
mod explain;
mod mesh;
mod node;
mod ping;
mod plugin;

use std::{ffi::OsString, path::PathBuf};

use clap::CommandFactory;

use crate::{
    admin::Node,
    args::{Cli, Command, Completion, Config, Log, Mesh, Plugin, Registry, System},
    doctor,
    failed::{Exit, Failed},
    hand_over,
    places::Places,
    terminal::Terminal,
};

/// What a command needs to know of the process it runs in.
#[derive(Debug, Clone)]
pub struct World {
    /// Where the node's files are.
    pub places: Places,
    /// The current directory.
    pub directory: PathBuf,
    /// `$PATH`
    pub search_path: Option<OsString>,
}

impl World {
    /// Looks around.
    pub fn of_process(cli: &Cli) -> Result<Self, Failed> {
        let directory = std::env::current_dir()
            .map_err(|error| Failed::new(format!("the current directory is gone: {error}")))?;
        Ok(Self {
            places: Places::find(&cli.global.wishes(), |name| std::env::var_os(name)),
            directory,
            search_path: std::env::var_os("PATH"),
        })
    }

    async fn node(&self) -> Result<Node, Failed> {
        Ok(Node::connect(&self.places.admin_socket).await?)
    }
}

/// Performs one command line.
pub async fn run(cli: &Cli, world: &World, terminal: &mut Terminal) -> Result<Exit, Failed> {
    let json = cli.global.json;
    match &cli.command {
        Command::Init(args) => Err(hand_over::become_peer(hand_over::init(&cli.global, args)?)),
        Command::Start(args) => Err(hand_over::become_peer(hand_over::start(&cli.global, args)?)),
        Command::Config(Config::Check { file }) => {
            Err(hand_over::become_peer(hand_over::check_config(&cli.global, file)))
        }
        Command::Completion(args) => completion(args, terminal),
        Command::Doctor => doctor::run(world, terminal, json).await,
        Command::Stop(args) => node::stop(args, &world.node().await?, terminal, json).await,
        Command::Status(args) | Command::System(System::Status(args)) => {
            node::status(args, &world.node().await?, terminal, json).await
        }
        Command::Health(args) | Command::System(System::Health(args)) => {
            node::health(args, &world.node().await?, terminal, json).await
        }
        Command::Log(Log::Level(args)) => {
            node::log_level(args, &world.node().await?, terminal, json).await
        }
        Command::Plugin(Plugin::Check(args)) => {
            let request = plugin::load_request(&args.as_load(), world)?;
            Err(hand_over::become_peer(hand_over::check(&cli.global, request)))
        }
        Command::Plugin(command) => plugin::run(command, world, terminal, json).await,
        Command::Services | Command::Mesh(Mesh::Services) => {
            mesh::services(&world.node().await?, terminal, json).await
        }
        Command::Peers | Command::Mesh(Mesh::Peers) => {
            mesh::peers(&world.node().await?, terminal, json).await
        }
        Command::Describe(args) => {
            mesh::describe(&args.service, &world.node().await?, terminal, json).await
        }
        Command::Registry(Registry::Query(args)) => {
            mesh::query(&args.service, &world.node().await?, terminal, json).await
        }
        Command::Explain(args) => explain::run(args, &world.node().await?, terminal, json).await,
        Command::Ping(args) => ping::run(args, &world.node().await?, terminal, json).await,
        Command::Bench(args) => bench::run(args, &world.node().await?, terminal, json).await,
        Command::Call(args) => call::run(args, &world.node().await?, terminal, json).await,
    }
}

fn completion(args: &Completion, terminal: &mut Terminal) -> Result<Exit, Failed> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "blackhole", &mut script);
    terminal.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests;
