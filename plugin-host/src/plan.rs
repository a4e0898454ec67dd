//! What a plugin's jail looks like: from a program and the operator's policy to a [`JailSpec`].
//! Pure but for looking at which paths exist, and at variables that were granted.
//!
//! A plugin sees the system's programs and libraries, its own files, what it was granted to
//! read or write, a private `/tmp`, and its sockets; all of it read-only but for the last three.
//! The node's data, its run directory and the usual places of credentials are covered wherever a
//! granted directory would show them.

mod check;
mod environment;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use launcher::{Bind, Internet, JailSpec, Limits, RootSpec};
use protocol::manifest::{Listen, Permission};

use crate::{
    config::{HostConfig, LayerPolicy, NamespacePolicy},
    egress,
    permissions::Granted,
    seat::Seat,
    source::Program,
};

pub(crate) use check::{check, warnings};
use environment::{arguments, environment};

/// Size of a plugin's private `/tmp`, and of its `/dev/shm`, each: memory of the machine.
const TMP_BYTES: u64 = 64 << 20;

/// The jail's own directory for sockets: short, because a socket's path has 107 bytes.
const INSIDE: &str = "/run/plugin";

/// Where a jail has the plugin's state directory.
const INSIDE_STATE: &str = "/var/lib/plugin";

/// The most bytes a socket's path may have; source: unix(7).
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What every program may need of the system.
const SYSTEM: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store"];

/// Of `/etc`, what programs read and what holds no secret.
const SYSTEM_ETC: [&str; 17] = [
    "alternatives",
    "ca-certificates",
    "debian_version",
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "mime.types",
    "os-release",
    "pki",
    "protocols",
    "services",
    "ssl",
    "timezone",
];

/// Further names in `/etc` by their beginning: run-times with versions in their names.
const SYSTEM_ETC_BEGINNING: [&str; 3] = ["java", "python", "node"];

/// Where people keep credentials in a home directory.
const SECRETS: [&str; 12] = [
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".netrc",
    ".git-credentials",
    ".config/gcloud",
    ".config/gh",
    ".password-store",
    ".npmrc",
];

/// Never bound over: the jail has its own.
const OWN: [&str; 6] = ["/", "/proc", "/sys", "/dev", "/tmp", "/run"];

/// Where the plugin `name` may keep state, if it may.
pub fn state_dir(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("plugins").join(name).join("state")
}

/// Where the first instance of the plugin `name` reaches the mesh, seen from the node.
pub fn mesh_socket(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join("plugins").join(name).join("mesh.sock")
}

/// The paths of one instance of a plugin on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// `<run-dir>/plugins/<key>`.
    pub(crate) directory: PathBuf,
    /// `<data-dir>/plugins/<key>/state`: what it may keep, where it has that.
    pub(crate) state: PathBuf,
}

impl Paths {
    /// For the instance with this [`Seat::key`].
    pub(crate) fn new(config: &HostConfig, key: &str) -> Self {
        let state = state_dir(&config.data_dir, key);
        Self { directory: config.run_dir.join("plugins").join(key), state }
    }

    /// What the plugin may write to; holds its socket where it binds that itself.
    pub(crate) fn own(&self) -> PathBuf {
        self.directory.join("own")
    }

    /// Where it answers. A socket that the host binds lies where the plugin cannot write.
    pub(crate) fn plugin_socket(&self, listen: Listen) -> PathBuf {
        match listen {
            Listen::Fd => self.directory.join("plugin.sock"),
            Listen::Unix | Listen::Tcp(_) | Listen::Tls(_) => self.own().join("plugin.sock"),
        }
    }

    /// Where its certificate and key lie, if it has them.
    pub(crate) fn tls(&self) -> PathBuf {
        self.directory.join("tls")
    }

    /// Where it calls others.
    pub(crate) fn mesh_socket(&self) -> PathBuf {
        self.directory.join("mesh.sock")
    }

    /// The longest of them, for the check of its length.
    pub(crate) fn longest(&self) -> PathBuf {
        self.own().join("plugin.sock")
    }
}

/// The outside id of one instance of a plugin, by its [`Seat::key`]: its own, so that not even
/// the same id connects two of them.
/// Above every range that distributions give to people, services and containers.
pub(crate) fn outside_id(config: &HostConfig, key: &str) -> Option<u32> {
    use sha2::{Digest, Sha256};
    const BASE: u32 = 2_000_000_000;
    let own = config.namespaces == NamespacePolicy::Required && commands_all_ids();
    own.then(|| {
        let hash = Sha256::new()
            .chain_update(config.run_dir.as_os_str().as_encoded_bytes())
            .chain_update([0])
            .chain_update(key)
            .finalize();
        BASE + (u32::from(hash[0]) << 16 | u32::from(hash[1]) << 8 | u32::from(hash[2]))
    })
}

/// True for a full root: all ids exist here, and this process may use them. Root in a container
/// usually is not.
fn commands_all_ids() -> bool {
    use rustix::thread::CapabilitySet as Can;
    let needed = Can::SYS_ADMIN | Can::SETUID | Can::SETGID | Can::CHOWN | Can::DAC_OVERRIDE;
    let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    may && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The jail of `program` in `seat`; `instance` is its run.
pub(crate) fn jail(
    config: &HostConfig,
    program: &Program,
    seat: &Seat,
    granted: &Granted,
    instance: &str,
) -> JailSpec {
    let manifest = &program.manifest;
    let key = seat.key();
    let namespaces = config.namespaces == NamespacePolicy::Required;
    let paths = Paths::new(config, &key);
    let landlock = config.landlock == LayerPolicy::Required;
    let mut root = RootSpec::default();
    if namespaces || landlock {
        root = private_root(config, program, granted, &paths);
    }
    let env = environment(config, program, granted, &paths, instance);
    JailSpec {
        outside_id: outside_id(config, &key),
        name: key,
        argv: arguments(&program.argv, &env),
        env,
        working_dir: program.working_dir.clone(),
        namespaces,
        host_network: shares_network(config, granted),
        egress: egress_port(config, program, granted),
        cgroup: Vec::new(),
        landlock,
        seccomp: config.seccomp == LayerPolicy::Required,
        internet: internet(config, program, granted),
        root,
        // Whoever starts it knows what it may use now.
        cores: Vec::new(),
        limits: Limits::default(),
        output: true,
        listener: manifest.listen == Listen::Fd,
    }
}

/// True where the plugin keeps the node's network.
pub(crate) fn shares_network(config: &HostConfig, granted: &Granted) -> bool {
    config.namespaces == NamespacePolicy::Off || granted.host_network
}

/// Which internet sockets it may have. Where it shares the node's network only because the
/// operator turned namespaces off, Landlock and the system-call filter stand in for the network
/// that it would not have had.
fn internet(config: &HostConfig, program: &Program, granted: &Granted) -> Internet {
    if config.namespaces == NamespacePolicy::Required || granted.host_network {
        return Internet::Any;
    }
    program.manifest.listen.port().map_or(Internet::None, Internet::Listen)
}

/// The port of the egress proxy inside the jail, for a plugin that asks for any network: also one
/// that gets none, so that it is told what it lacks.
fn egress_port(config: &HostConfig, program: &Program, granted: &Granted) -> Option<u16> {
    let asks = |permission: &Permission| matches!(permission, Permission::Network(_));
    let asks = program.manifest.permissions.iter().any(asks);
    let taken = program.manifest.listen.port();
    (asks && !shares_network(config, granted)).then(|| egress::port(taken))
}

fn private_root(
    config: &HostConfig,
    program: &Program,
    granted: &Granted,
    paths: &Paths,
) -> RootSpec {
    let mut root = RootSpec { tmp_bytes: TMP_BYTES, ..RootSpec::default() };
    for path in SYSTEM {
        let path = PathBuf::from(path);
        match std::fs::read_link(&path) {
            // `/bin` is `usr/bin` on most systems.
            Ok(target) => root.links.push((path, target)),
            Err(_) => root.binds.push(read(path, false)),
        }
    }
    root.binds.extend(etc());
    for (path, exact) in readable(program, granted) {
        let covered = |bind: &Bind| path.starts_with(&bind.target);
        let system = SYSTEM.iter().any(|system| path.starts_with(system));
        if !is_own(&path) && !system && !root.binds.iter().any(covered) {
            root.binds.push(Bind { exact, optional: !exact, ..read(path, true) });
        }
    }
    root.binds.extend(writable(granted));
    root.binds.push(place(paths.mesh_socket(), false));
    let namespaces = config.namespaces == NamespacePolicy::Required;
    if program.manifest.listen == Listen::Fd {
        root.binds.push(place(paths.plugin_socket(Listen::Fd), false));
    }
    if let Listen::Tls(_) = program.manifest.listen {
        root.binds.push(place(paths.tls(), false));
    }
    // Without namespaces it is also its `/tmp`.
    if program.manifest.listen != Listen::Fd || !namespaces {
        root.binds.push(place(paths.own(), true));
    }
    if program.state {
        let (source, target) = (paths.state.clone(), PathBuf::from(INSIDE_STATE));
        let kept = Bind { target, writable: true, optional: false, ..read(source, false) };
        root.binds.push(kept);
    }
    root.masks = masks(config, granted);
    root.files = files(program.manifest.name.as_str());
    if shares_network(config, granted) {
        let resolve = Path::new("/etc/resolv.conf");
        root.binds.push(read(resolve.into(), false));
    }
    root
}

/// A part of the plugin's place in the run directory, under its short name inside.
fn place(source: PathBuf, writable: bool) -> Bind {
    let target = Path::new(INSIDE).join(source.file_name().unwrap_or_default());
    Bind { source, target, writable, ..Bind::default() }
}

/// What the program may read beside the system's, ancestors first; true for what its permissions
/// name, which must be there and be what it was when it was judged.
fn readable(program: &Program, granted: &Granted) -> Vec<(PathBuf, bool)> {
    let mut readable: Vec<(PathBuf, bool)> =
        program.read_paths.iter().map(|path| (path.clone(), false)).collect();
    readable.push((program.working_dir.clone(), false));
    readable.extend(granted.reads.iter().map(|path| (PathBuf::from(path), true)));
    readable.sort();
    readable.dedup_by(|later, earlier| later.0 == earlier.0);
    readable
}

/// What it was granted to write to or to drive, as it was when it was judged.
fn writable(granted: &Granted) -> impl Iterator<Item = Bind> {
    let bind = |path: &String, device| Bind {
        writable: true,
        exact: true,
        optional: false,
        device,
        ..read(path.into(), true)
    };
    let writes = granted.writes.iter().map(move |path| bind(path, false));
    writes.chain(granted.devices.iter().map(move |path| bind(path, true)))
}

fn is_own(path: &Path) -> bool {
    OWN.iter().any(|own| path == Path::new(own)) || path.starts_with(INSIDE)
}

fn read(path: PathBuf, own: bool) -> Bind {
    Bind { source: path.clone(), target: path, own, optional: true, ..Bind::default() }
}

fn etc() -> Vec<Bind> {
    let entries = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            SYSTEM_ETC.contains(&name.as_str())
                || SYSTEM_ETC_BEGINNING.iter().any(|begin| name.starts_with(begin))
        })
        .collect();
    names.sort();
    names.into_iter().map(|name| read(Path::new("/etc").join(name), false)).collect()
}

fn masks(config: &HostConfig, granted: &Granted) -> Vec<PathBuf> {
    let mut masks = vec![config.data_dir.clone(), config.run_dir.clone()];
    masks.extend(config.hidden_paths.iter().cloned());
    masks.extend(granted.hidden.iter().map(PathBuf::from));
    let mut homes = vec![PathBuf::from("/root")];
    homes.extend(std::env::var_os("HOME").map(PathBuf::from));
    for home in homes {
        masks.extend(SECRETS.iter().map(|secret| home.join(secret)));
    }
    // The jail's own directory is not the host's, whatever its name.
    masks.retain(|path| path.is_absolute() && !Path::new(INSIDE).starts_with(path));
    masks.sort();
    masks.dedup();
    masks
}

/// The few files that tell a program about users and hosts.
fn files(name: &str) -> Vec<(PathBuf, String)> {
    let id = launcher::spec::INSIDE_ID;
    let file = |path: &str, contents: String| (PathBuf::from(path), contents);
    vec![
        file(
            "/etc/passwd",
            format!(
                "root:x:0:0:root:/:/usr/sbin/nologin\nplugin:x:{id}:{id}:plugin:/tmp:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
            ),
        ),
        file("/etc/group", format!("root:x:0:\nplugin:x:{id}:\nnogroup:x:65534:\n")),
        // Only IPv4: a program that listens on `localhost` must be where the host connects.
        file("/etc/hosts", format!("127.0.0.1\tlocalhost {name}\n")),
        file("/etc/hostname", format!("{name}\n")),
        file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".into()),
    ]
}

/// How long starting may take.
pub(crate) fn start_timeout(config: &HostConfig, program: &Program) -> Duration {
    program.manifest.start_timeout.unwrap_or(config.start_timeout)
}

#[cfg(test)]
mod tests {
    use protocol::manifest::Manifest;

    use super::*;
    use crate::permissions::{Policies, Policy, meet};

    fn program(read_paths: &[&str]) -> Program {
        Program {
            manifest: Manifest::new("echo".parse().expect("a name"), semver::Version::new(1, 0, 0)),
            argv: vec!["/opt/echo/bin/echo".into()],
            working_dir: "/opt/echo".into(),
            read_paths: read_paths.iter().map(PathBuf::from).collect(),
            state: false,
            code: None,
            search_path: Vec::new(),
            descriptors: None,
            source: String::new(),
        }
    }

    fn config() -> HostConfig {
        HostConfig::new("/run/bh", "/var/lib/bh")
    }

    fn jail(config: &HostConfig, program: &Program, instance: &str) -> JailSpec {
        super::jail(config, program, &seat(), &Granted::default(), instance)
    }

    fn jail_of(config: &HostConfig, program: &Program, granted: &Granted) -> JailSpec {
        super::jail(config, program, &seat(), granted, "i")
    }

    fn seat() -> Seat {
        Seat::new("echo", 1, None)
    }

    #[test]
    fn instances_share_neither_directory_nor_user_nor_name() {
        let program = program(&[]);
        let second =
            super::jail(&config(), &program, &Seat::new("echo", 2, None), &Granted::default(), "i");
        assert_eq!(second.name, "echo.2");
        let mesh = Path::new("/run/bh/plugins/echo.2/mesh.sock");
        assert!(second.root.binds.iter().any(|bind| bind.source == mesh));
        let first = jail(&config(), &program, "i");
        assert!(first.outside_id.is_none() || first.outside_id != second.outside_id);
    }

    #[test]
    fn no_bind_lies_within_another_and_ancestors_come_first() {
        let wanted = ["/srv/a/b", "/srv/a", "/usr/share/x", "/bin/sh", "/"];
        let spec = jail(&config(), &program(&wanted), "i");
        for (at, bind) in spec.root.binds.iter().enumerate() {
            for earlier in &spec.root.binds[..at] {
                assert!(!bind.target.starts_with(&earlier.target), "{bind:?} in {earlier:?}");
            }
        }
        let targets: Vec<&Path> =
            spec.root.binds.iter().map(|bind| bind.target.as_path()).collect();
        assert!(targets.contains(&Path::new("/srv/a")));
        assert!(!targets.contains(&Path::new("/")));
        for (link, _) in &spec.root.links {
            assert!(!targets.iter().any(|target| target.starts_with(link)), "{link:?}");
        }
    }

    #[test]
    fn only_the_plugins_own_socket_directory_is_writable() {
        let spec = jail(&config(), &program(&["/srv/a"]), "i");
        let writable: Vec<_> = spec.root.binds.iter().filter(|bind| bind.writable).collect();
        assert_eq!(writable.len(), 1);
        assert_eq!(writable[0].target, Path::new("/run/plugin/own"));
        let mut fd = program(&[]);
        fd.manifest.listen = Listen::Fd;
        let spec = jail(&config(), &fd, "i");
        assert!(spec.root.binds.iter().all(|bind| !bind.writable));
        assert!(spec.listener);
    }

    #[test]
    fn the_nodes_data_and_credentials_are_masked() {
        let mut config = config();
        config.hidden_paths.push("/etc/bh/key".into());
        let spec = jail(&config, &program(&["/var"]), "i");
        for hidden in ["/var/lib/bh", "/run/bh", "/etc/bh/key", "/root/.ssh"] {
            assert!(spec.root.masks.iter().any(|mask| mask == Path::new(hidden)), "{hidden}");
        }
    }

    #[test]
    fn sockets_have_short_names_inside_and_their_own_outside() {
        let variable = |config: &HostConfig, name: &str| {
            let spec = jail(config, &program(&[]), "i");
            spec.env.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
        };
        let mut config = config();
        let socket = variable(&config, "BH_PLUGIN_SOCKET").expect("set");
        assert_eq!(socket, "/run/plugin/own/plugin.sock");
        config.namespaces = NamespacePolicy::Off;
        let socket = variable(&config, "BH_PLUGIN_SOCKET").expect("set");
        assert_eq!(socket, "/run/bh/plugins/echo/own/plugin.sock");
    }

    fn read_all(list: &[&str]) -> Vec<Permission> {
        list.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn granted(asked: &[&str]) -> Granted {
        let asked = read_all(asked);
        meet(&asked, &Policy { allow: asked.clone(), deny: Vec::new() })
    }

    #[test]
    fn the_network_is_shared_only_where_asked_for_and_granted() {
        let (config, mut program) = (config(), program(&[]));
        assert!(!jail_of(&config, &program, &Granted::default()).host_network);
        program.manifest.permissions = read_all(&["host-network", "network"]);
        let denied = meet(&program.manifest.permissions, &Policies::default().of("echo"));
        let spec = jail_of(&config, &program, &denied);
        assert!(!spec.host_network);
        assert!(spec.egress.is_some(), "it is told what it lacks");
        assert_eq!(warnings(&config, &program, &denied).len(), 2);
        let spec = jail_of(&config, &program, &granted(&["host-network", "network"]));
        assert!(spec.host_network && spec.egress.is_none());
    }

    #[test]
    fn a_plugin_that_asks_for_the_network_is_told_of_its_proxy() {
        let mut program = program(&[]);
        let spec = jail_of(&config(), &program, &Granted::default());
        assert!(spec.egress.is_none() && spec.env.iter().all(|(name, _)| name != "HTTP_PROXY"));
        program.manifest.permissions = read_all(&["network"]);
        program.manifest.listen = Listen::Tcp(3_128);
        let spec = jail_of(&config(), &program, &granted(&["network"]));
        let port = spec.egress.expect("asked for");
        assert_ne!(port, 3_128, "that is the plugin's own");
        let proxy = ("HTTPS_PROXY".to_owned(), format!("http://127.0.0.1:{port}"));
        assert!(spec.env.contains(&proxy), "{:?}", spec.env);
    }

    #[test]
    fn granted_paths_are_bound_as_they_were_judged() {
        let granted = granted(&["read:/srv", "write:/srv/data", "device:/dev/full"]);
        let spec = jail_of(&config(), &program(&[]), &granted);
        let bind = |path: &str| {
            let found = spec.root.binds.iter().find(|bind| bind.target == Path::new(path));
            found.unwrap_or_else(|| panic!("{path} is bound")).clone()
        };
        assert!(!bind("/srv").writable && bind("/srv").exact && !bind("/srv").optional);
        assert!(bind("/srv/data").writable && bind("/srv/data").own && bind("/srv/data").exact);
        assert!(bind("/dev/full").device);
        assert!(spec.root.binds.iter().filter(|bind| bind.device).count() == 1);
    }

    #[test]
    fn a_granted_path_must_be_there_and_be_itself() {
        let directory = tempfile::tempdir().expect("made");
        let real = std::fs::canonicalize(directory.path()).expect("there");
        let link = real.join("link");
        std::os::unix::fs::symlink("/etc", &link).expect("made");
        let refused = |path: &Path| {
            let granted = granted(&[&format!("read:{}", path.display())]);
            check(&config(), &program(&[]), &granted).expect_err("refused")
        };
        assert_eq!(check(&config(), &program(&[]), &granted(&["read:/usr"])), Ok(()));
        assert!(refused(&link).contains("leads to /etc"), "{}", refused(&link));
        let gone = real.join("gone");
        assert!(refused(&gone).contains(&format!("`read:{}`", gone.display())));
        assert!(refused(Path::new("/proc")).contains("has its own"));
    }
}
