//! What a plugin's process is told at its start: its environment, and its arguments with what the
//! environment says in them.

use std::path::{Path, PathBuf};

use protocol::manifest::Listen;

use super::{INSIDE, INSIDE_STATE, Paths, egress_port};
use crate::{
    config::{HostConfig, NamespacePolicy},
    egress,
    permissions::Granted,
    source::Program,
    tls,
};

/// How the names of the variables begin that the contract defines.
const OWN: &str = "BH_";

/// What its environment says.
pub(super) fn environment(
    config: &HostConfig,
    program: &Program,
    granted: &Granted,
    paths: &Paths,
    instance: &str,
) -> Vec<(String, String)> {
    let listen = program.manifest.listen;
    let inside = |path: PathBuf| match config.namespaces {
        NamespacePolicy::Off => path,
        NamespacePolicy::Required => {
            let below = path.strip_prefix(&paths.directory).map(Path::to_path_buf);
            Path::new(INSIDE).join(below.unwrap_or_default())
        }
    };
    let socket = inside(paths.plugin_socket(listen)).display().to_string();
    let tmp = match config.namespaces {
        // The machine's is everybody's, and Landlock shuts it.
        NamespacePolicy::Off => paths.own().display().to_string(),
        NamespacePolicy::Required => "/tmp".into(),
    };
    let mut env = vec![
        ("PATH".into(), search_path(program)),
        ("HOME".into(), tmp.clone()),
        ("TMPDIR".into(), tmp),
        ("LANG".into(), "C.UTF-8".into()),
        // Logs are lines as they are said, not blocks of eight kilobytes.
        ("PYTHONUNBUFFERED".into(), "1".into()),
        ("BH_PLUGIN_NAME".into(), program.manifest.name.to_string()),
        ("BH_PLUGIN_VERSION".into(), program.manifest.version.to_string()),
        ("BH_PLUGIN_INSTANCE".into(), instance.into()),
        ("BH_MESH_SOCKET".into(), inside(paths.mesh_socket()).display().to_string()),
    ];
    match listen {
        Listen::Tcp(port) | Listen::Tls(port) => {
            env.push(("BH_PLUGIN_PORT".into(), port.to_string()));
        }
        Listen::Unix | Listen::Fd => env.push(("BH_PLUGIN_SOCKET".into(), socket)),
    }
    if let Listen::Tls(_) = listen {
        let files = tls::FILES.into_iter();
        env.extend(files.map(|(variable, file)| {
            (variable.to_owned(), inside(paths.tls().join(file)).display().to_string())
        }));
    }
    if program.state {
        let state = match config.namespaces {
            NamespacePolicy::Off => paths.state.clone(),
            NamespacePolicy::Required => PathBuf::from(INSIDE_STATE),
        };
        env.push(("BH_PLUGIN_STATE".into(), state.display().to_string()));
    }
    if let Some(port) = egress_port(config, program, granted) {
        env.extend(egress::environment(port));
    }
    // The manifest's own value stands where the node has none.
    let own = program.manifest.env.clone();
    let given = granted.env.iter().filter_map(|name| Some((name.clone(), node_value(name)?)));
    for (name, value) in own.into_iter().chain(given) {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    env
}

/// The node's own value of a variable, where that is text.
fn node_value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.contains('\0'))
}

fn search_path(program: &Program) -> String {
    let mut directories: Vec<String> = Vec::new();
    let system = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];
    let own = program.search_path.iter().filter_map(|path| path.to_str());
    for directory in own.chain(system) {
        if !directory.contains(':') && directories.iter().all(|known| known != directory) {
            directories.push(directory.into());
        }
    }
    directories.join(":")
}

/// `argv` with the values of the contract's variables in it, where it names them as a shell would:
/// `$BH_PLUGIN_SOCKET`, `${BH_TLS_CERT}`. So can programs be told that take addresses and files
/// as arguments only. Any other name stays as it is.
pub(super) fn arguments(argv: &[String], env: &[(String, String)]) -> Vec<String> {
    let (program, rest) = argv.split_at(argv.len().min(1));
    program.iter().cloned().chain(rest.iter().map(|text| filled(text, env))).collect()
}

fn filled(text: &str, env: &[(String, String)]) -> String {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        whole.push_str(before);
        let (name, beyond) = named(after);
        let value = env.iter().find(|(known, _)| known == name && name.starts_with(OWN));
        let (value, left) = value.map_or(("$", after), |(_, value)| (value.as_str(), beyond));
        whole.push_str(value);
        rest = left;
    }
    whole + rest
}

/// The name at the beginning of `text`, in braces or without, and what comes after it.
fn named(text: &str) -> (&str, &str) {
    if let Some((name, beyond)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) {
        return (name, beyond);
    }
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split_at(text.find(|c| !part(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_what_the_contract_defines_and_nothing_else() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env =
            [pair("BH_PLUGIN_SOCKET", "/run/s"), pair("BH_TLS_CERT", "/c"), pair("HOME", "h")];
        let told = |text: &str| {
            arguments(&["$BH_TLS_CERT".to_owned(), text.to_owned()], &env).pop().expect("two")
        };
        assert_eq!(told("unix:$BH_PLUGIN_SOCKET"), "unix:/run/s");
        assert_eq!(told("a${BH_TLS_CERT}b $BH_TLS_CERT$"), "a/cb /c$");
        for same in ["$HOME", "$$", "${BH_TLS_CERT", "$BH_TLS_CERTS", "$(x) ${y:-z}", "$5"] {
            assert_eq!(told(same), same);
        }
        assert_eq!(arguments(&["$BH_TLS_CERT".to_owned()], &env), ["$BH_TLS_CERT"]);
        assert!(arguments(&[], &env).is_empty());
    }
}
