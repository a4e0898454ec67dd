//! Built-in services: plugins that this executable contains. Each runs as a subprocess under the
//! plugin host like any other, `bh-peer service NAME`, and is written with the SDK like any other.

pub mod door;
mod identity;
mod keys;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use futures::FutureExt;
use plugin_host::{BuiltIn, Code, LoadRequest, Overrides, Source};
use protocol::manifest::Isolation;

use crate::{
    EXIT_USAGE,
    args::ServiceArgs,
    complain,
    config::{BUILT_IN, Service, Settings},
};

/// Where the plugin contract says what `--socket` says.
const SOCKET_VARIABLE: &str = "BH_PLUGIN_SOCKET";

/// Where the plugin contract says what a plugin may keep.
const STATE_VARIABLE: &str = "BH_PLUGIN_STATE";

/// `bh-peer service NAME`.
pub fn main(args: &ServiceArgs) -> ExitCode {
    if !BUILT_IN.contains(&args.name.as_str()) {
        let known = BUILT_IN.join(", ");
        complain(false, &format!("there is no built-in service {}; there is: {known}", args.name));
        return ExitCode::from(EXIT_USAGE);
    }
    if let Some(socket) = &args.socket
        && std::env::var_os(SOCKET_VARIABLE).as_deref() != Some(socket.as_os_str())
    {
        // The contract speaks through the environment, which only a new start can set.
        let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let failed = Command::new(this)
            .args(["bh-peer", "service", &args.name])
            .env(SOCKET_VARIABLE, socket)
            .env_remove("LISTEN_FDS")
            .exec();
        complain(false, &format!("cannot start again with {SOCKET_VARIABLE}: {failed}"));
        return ExitCode::FAILURE;
    }
    let state = std::env::var_os(STATE_VARIABLE).map(PathBuf::from);
    match identity::plugin(state) {
        Ok(plugin) => plugin.run(),
        Err(error) => {
            complain(false, &format!("what the service keeps cannot be read: {error}"));
            ExitCode::FAILURE
        }
    }
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

/// The code of the service itself, where it is to run within this process. There is one service.
fn code(isolation: Isolation, data_dir: &Path, name: &str) -> Option<Code> {
    let state = plugin_host::state_dir(data_dir, name);
    let make = Arc::new(move || {
        let state = state.clone();
        let made = async move {
            // It reads what it keeps.
            let plugin = tokio::task::spawn_blocking(move || identity::plugin(Some(state))).await;
            let plugin = plugin.map_err(|_| "the node is shutting down".to_owned())?;
            let plugin = plugin.map_err(|error| error.to_string())?;
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

fn request(program: &[String], name: &str, service: &Service, settings: &Settings) -> LoadRequest {
    let source = Source::Exec(plugin_host::Command {
        argv: [program, &["service".into(), name.into()]].concat(),
        listen: "unix".into(),
        ..plugin_host::Command::default()
    });
    LoadRequest {
        name: Some(name.into()),
        instances: service.instances,
        overrides: Overrides {
            restart: service.restart_policy,
            resources: service.resources,
            part: Some(service.part.clone()),
            state: true,
        },
        code: code(service.isolation, &settings.data_dir, name),
        ..LoadRequest::new(source)
    }
}
