//! Built-in services: plugins that this executable contains. Each runs as a subprocess under the
//! plugin host like any other, `bh-peer service NAME`, and is written with the SDK like any other.

pub mod door;
mod identity;
mod keys;

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use plugin_host::{BuiltIn, LoadRequest, Overrides, Source};

use crate::{
    EXIT_USAGE,
    args::ServiceArgs,
    complain,
    config::{BUILT_IN, Service, Settings},
};

/// Where the plugin contract says what `--socket` says.
const SOCKET_VARIABLE: &str = "BH_PLUGIN_SOCKET";

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
    match identity::plugin() {
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
            request: service.enabled.then(|| request(&program, name, service)),
        })
        .collect()
}

fn request(program: &[String], name: &str, service: &Service) -> LoadRequest {
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
        ..LoadRequest::new(source)
    }
}
