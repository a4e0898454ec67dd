//! Built-in services: plugins that this executable contains. Each runs as a subprocess under the
//! plugin host like any other, `bh-peer service NAME`, and is written with the SDK like any other.

pub mod door;
pub mod figures;
mod identity;
mod keys;
mod telemetry;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use futures::FutureExt;
use plugin_host::{BuiltIn, Code, LoadRequest, Overrides, Source};
use protocol::manifest::Isolation;

use crate::{
    EXIT_USAGE,
    args::ServiceArgs,
    complain,
    config::{BUILT_IN, Service, Settings},
};

/// Where the plugin contract says what a plugin may keep.
const STATE_VARIABLE: &str = "BH_PLUGIN_STATE";

/// `bh-peer service NAME`.
pub fn main(args: &ServiceArgs) -> ExitCode {
    if !BUILT_IN.contains(&args.name.as_str()) {
        let known = BUILT_IN.join(", ");
        complain(false, &format!("there is no built-in service {}; there is: {known}", args.name));
        return ExitCode::from(EXIT_USAGE);
    }
    let state = std::env::var_os(STATE_VARIABLE).map(PathBuf::from);
    match plugin(&args.name, state, telemetry::Way::Environment) {
        Ok(mut plugin) => {
            if let Some(socket) = &args.socket {
                plugin = plugin.socket(socket);
            }
            if let Some(port) = args.port {
                plugin = plugin.port(port);
            }
            plugin.run()
        }
        Err(error) => {
            complain(false, &error);
            ExitCode::FAILURE
        }
    }
}

/// The service `name`, with what it keeps in `state`, and its `way` to the node. Reads what it
/// keeps.
fn plugin(name: &str, state: Option<PathBuf>, way: telemetry::Way) -> Result<sdk::Plugin, String> {
    match name {
        "telemetry" => Ok(telemetry::plugin(way)),
        _ => identity::plugin(state)
            .map_err(|error| format!("what the service keeps cannot be read: {error}")),
    }
}

/// What the service `name` asks for.
fn permissions(name: &str) -> Vec<String> {
    let asked: &[&str] = if name == "telemetry" { &[telemetry::PERMISSION] } else { &[] };
    asked.iter().map(ToString::to_string).collect()
}

/// Whether the service `name` keeps anything.
fn keeps_state(name: &str) -> bool {
    name == "identity"
}

/// The services of the configuration, as the host is told of them: how each is started, or that
/// it is not to run.
pub fn built_in(settings: &Settings) -> Vec<BuiltIn> {
    let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut program = vec![this.display().to_string()];
    // Under another name it must be told that it is a peer.
    if crate::role(&[this.into_os_string()]).0 != crate::Role::Peer {
        program.push("bh-peer".into());
    }
    // One that is switched off is shown, also where this version could not run it.
    let services = settings.services.iter();
    services
        .map(|(name, service)| BuiltIn {
            name: name.clone(),
            request: service.enabled.then(|| request(&program, name, service, settings)),
        })
        .collect()
}

/// The code of the service itself, where it is to run within this process.
fn code(isolation: Isolation, settings: &Settings, name: &str) -> Option<Code> {
    let state = plugin_host::state_dir(&settings.data_dir, name);
    let way = telemetry::Way::Socket(plugin_host::mesh_socket(&settings.run_dir, name));
    let name = name.to_owned();
    let make = Arc::new(move || {
        let (name, state, way) = (name.clone(), state.clone(), way.clone());
        let made = async move {
            let made = tokio::task::spawn_blocking(move || plugin(&name, Some(state), way)).await;
            let plugin = made.map_err(|_| "the node is shutting down".to_owned())??;
            plugin.into_routes().await.map_err(|error| error.to_string())
        };
        made.boxed()
    });
    match isolation {
        Isolation::None => Some(Code::inline(make)),
        Isolation::Thread => Some(Code::on_thread(make)),
        _ => None,
    }
}

/// What the service `name` is told on its command line, as the host completes it.
fn told(name: &str, service: &Service, settings: &Settings) -> Vec<String> {
    let mut told = vec!["service".into(), name.into()];
    if let Some(port) = own_port(service, settings) {
        told.extend(["--port".into(), port.to_string()]);
    }
    told.extend(["--socket".into(), "$BH_PLUGIN_SOCKET".into()]);
    told
}

/// The port that the service opens in its own network. On the node's loopback the same port is the
/// node's [`door`], which leads to all instances and to nothing but what the service offers. A
/// service that shares the node's network therefore has none beside it; and below 1024 only the
/// node may have one.
fn own_port(service: &Service, settings: &Settings) -> Option<u16> {
    const UNPRIVILEGED: u16 = 1_024;
    service.port.filter(|port| settings.namespaces && *port >= UNPRIVILEGED)
}

fn request(program: &[String], name: &str, service: &Service, settings: &Settings) -> LoadRequest {
    let source = Source::Exec(plugin_host::Command {
        argv: [program, &told(name, service, settings)].concat(),
        listen: "unix".into(),
        permissions: permissions(name),
        ..plugin_host::Command::default()
    });
    LoadRequest {
        name: Some(name.into()),
        instances: service.instances,
        overrides: Overrides {
            restart: service.restart_policy,
            resources: service.resources,
            health: service.health.clone(),
            part: Some(service.part.clone()),
            state: keeps_state(name),
        },
        code: code(service.isolation, settings, name),
        ..LoadRequest::new(source)
    }
}
