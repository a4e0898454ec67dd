//! What is refused and what is said before there is a jail: what could not work, and what a
//! plugin wants and does not get.

use std::path::Path;

use super::{is_own, readable};
use crate::{
    config::{HostConfig, LayerPolicy, NamespacePolicy},
    permissions::Granted,
    source::{self, Program},
};

/// What the plugin wants and does not get, for its status.
pub(crate) fn warnings(config: &HostConfig, program: &Program, granted: &Granted) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.namespaces == NamespacePolicy::Off {
        warnings.push(
            "isolation is reduced: the operator turned namespaces off; the plugin sees the \
             node's processes and network, and only Landlock keeps it from its files"
                .into(),
        );
        if !granted.network.is_empty() && !granted.host_network {
            warnings.push(
                "its network permissions are not in force: the way through the node needs \
                 namespaces; `host-network` does not"
                    .into(),
            );
        }
    }
    for (layer, policy) in [("landlock", config.landlock), ("seccomp", config.seccomp)] {
        if policy == LayerPolicy::Off {
            warnings.push(format!("isolation is reduced: the operator turned {layer} off"));
        }
    }
    let broad = readable(program, granted).into_iter().map(|(path, _)| path);
    let broad = broad.filter(|path| source::is_broad(path) && !is_own(path));
    warnings.extend(broad.map(|path| {
        format!("it can read all of {}: give it a directory of its own to work in", path.display())
    }));
    let name = program.manifest.name.as_str();
    warnings.extend(granted.denied.iter().map(|denied| denied.explain(name)));
    warnings
}

/// What would make a jail that cannot work: a program inside a covered directory, which could not
/// be seen by itself, and granted paths that are not there or are something else.
pub(crate) fn check(
    config: &HostConfig,
    program: &Program,
    granted: &Granted,
) -> Result<(), String> {
    if config.namespaces == NamespacePolicy::Off && config.landlock == LayerPolicy::Off {
        return Ok(());
    }
    check_paths(config, granted)?;
    let own = [Path::new(&program.argv[0]), program.working_dir.as_path()];
    for hidden in [&config.data_dir, &config.run_dir].into_iter().chain(&config.hidden_paths) {
        if let Some(path) = own.iter().find(|path| path.starts_with(hidden)) {
            return Err(format!(
                "{} lies in {}, which no plugin may see: move the plugin elsewhere",
                path.display(),
                hidden.display()
            ));
        }
    }
    Ok(())
}

fn check_paths(config: &HostConfig, granted: &Granted) -> Result<(), String> {
    let reads = granted.reads.iter().map(|path| ("read", path));
    let writes = granted.writes.iter().map(|path| ("write", path));
    let devices = granted.devices.iter().map(|path| ("device", path));
    for (kind, path) in reads.chain(writes).chain(devices) {
        let refuse = |why: String| Err(format!("permission `{kind}:{path}`: {why}"));
        if is_own(Path::new(path)) {
            return refuse("the jail has its own; name what is needed of it".into());
        }
        match std::fs::canonicalize(path) {
            Ok(found) if found == Path::new(path) => {}
            Ok(found) => {
                let found = found.display();
                return refuse(format!("it leads to {found}: ask for `{kind}:{found}` instead"));
            }
            Err(error) => return refuse(format!("{error}: make it, or take the permission out")),
        }
        for hidden in [&config.data_dir, &config.run_dir].into_iter().chain(&config.hidden_paths) {
            if Path::new(path).starts_with(hidden) {
                let hidden = hidden.display();
                return refuse(format!("it lies in {hidden}, which no plugin may see"));
            }
        }
    }
    Ok(())
}
