//! Built-in services: plugins that this executable contains. Each runs as a subprocess under the
//! plugin host like any other, `bh-peer service NAME`, and is written with the SDK like any other.

mod identity;

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use plugin_host::{LoadRequest, Source};

use crate::{
    EXIT_USAGE,
    args::ServiceArgs,
    complain,
    config::{BUILT_IN, Settings},
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
    identity::plugin().run()
}

/// What the host is asked to load for the services that are switched on.
pub fn requests(settings: &Settings) -> Vec<LoadRequest> {
    let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut program = vec![this.display().to_string()];
    // Under another name it must be told that it is a peer.
    if crate::role(&[this.into_os_string()]).0 != crate::Role::Peer {
        program.push("bh-peer".into());
    }
    let enabled = settings.services.iter().filter(|(_, service)| service.enabled);
    enabled
        .map(|(name, _)| LoadRequest {
            source: Source::Exec(plugin_host::Command {
                argv: [&program[..], &["service".into(), name.clone()]].concat(),
                listen: "unix".into(),
                ..plugin_host::Command::default()
            }),
            name: Some(name.clone()),
            wait: false,
        })
        .collect()
}
