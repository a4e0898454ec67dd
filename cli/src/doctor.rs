//! `doctor`: what commonly goes wrong on a machine, looked at one by one, each with what to do.
//!
//! It works with and without a running node: a port in use is wrong before a node starts, and
//! right when the node itself holds it. It changes nothing.

use std::{
    fmt::Write,
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use protocol::proto::admin::{StatusRequest, StatusResponse};
use rustix::{
    fs::Access,
    process::{Resource, getrlimit},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    admin::{Node, SOCKET_PATH_BYTES_MAX, answer},
    commands::World,
    failed::{Exit, Failed},
    terminal::{Table, Terminal, Tone, clean, paint},
};

/// Where a node listens unless it is told otherwise.
const DEFAULT_PORTS: [(&str, &str, &str); 5] = [
    ("mesh (tcp)", "0.0.0.0:4001", "--listen"),
    ("mesh (udp)", "0.0.0.0:4001", "--listen"),
    ("http", "127.0.0.1:8080", "--http"),
    ("grpc", "127.0.0.1:9090", "--grpc"),
    ("metrics", "127.0.0.1:9091", "--metrics"),
];

/// What a node adds to its run directory for the socket of a plugin with a name of usual length.
const PLUGIN_SOCKET_BYTES: usize = 40;

/// Descriptors below which a node cannot do its work: its store, its listeners and a few peers.
const FILES_MIN: u64 = 256;

/// Descriptors that are enough for hundreds of peers and plugins.
const FILES_ENOUGH: u64 = 4096;

/// No clock that is right shows a time before this: 2025-01-01, in seconds since 1970.
const CLOCK_MIN: u64 = 1_735_689_600;

/// What a mode allows to anybody but the owner.
const OTHERS: u32 = 0o077;

/// How long the program that tries a user namespace may take.
const PROBE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Warn => Tone::Warn,
            Self::Fail => Tone::Bad,
        }
    }
}

/// What was found in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything, and prints what was found; exit code 5 if anything is wrong.
pub async fn run(world: &World, terminal: &mut Terminal, json: bool) -> Result<Exit, Failed> {
    let (status, node) = node(world).await;
    let data_dir = status.as_ref().map(|s| PathBuf::from(&s.data_dir));
    let data_dir = data_dir.unwrap_or_else(|| world.places.data_dir.clone());
    let run_dir = status.as_ref().map(|s| PathBuf::from(&s.run_dir));
    let run_dir = run_dir.unwrap_or_else(|| world.places.run_dir.clone());

    let mut findings = vec![executable(), node];
    findings.push(directory("data directory", &data_dir));
    findings.extend(keys(&data_dir));
    findings.push(directory("run directory", &run_dir));
    findings.push(socket_path(&world.places.admin_socket, &run_dir));
    findings.push(namespaces().await);
    findings.push(landlock());
    findings.push(seccomp());
    findings.extend(ports(status.as_ref()));
    findings.push(files(getrlimit(Resource::Nofile).current));
    findings.push(clock(SystemTime::now()));
    findings.extend(status.as_ref().map(mesh).unwrap_or_default());

    if json {
        terminal.json(&document(&findings))?;
    } else {
        let text = text(&findings, terminal.colour);
        terminal.print(&text)?;
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { Exit::Unhealthy } else { Exit::Ok })
}

fn text(findings: &[Finding], colour: bool) -> String {
    let mut table = Table::new(colour, &["", "CHECK", "FOUND"]);
    for finding in findings {
        table.row([
            (finding.level.name().into(), Some(finding.level.tone())),
            (finding.check.into(), None),
            (finding.found.clone(), None),
        ]);
    }
    let mut text = table.text();
    let advised = findings.iter().filter_map(|f| Some((f, f.advice.as_ref()?)));
    for (finding, advice) in advised {
        let check = paint(colour, finding.level.tone(), finding.check);
        // Writing to a text cannot fail.
        let _ = write!(text, "\n\n{check}: {}\n  {}", clean(&finding.found), clean(advice));
    }
    text
}

fn document(findings: &[Finding]) -> Value {
    let checks = findings.iter().map(|finding| {
        json!({
            "check": finding.check,
            "level": finding.level.name(),
            "found": finding.found,
            "advice": finding.advice,
        })
    });
    let ok = findings.iter().all(|finding| finding.level != Level::Fail);
    json!({"ok": ok, "checks": checks.collect::<Vec<_>>()})
}

fn executable() -> Finding {
    const CHECK: &str = "executable";
    match std::env::current_exe() {
        Err(error) => Finding::fail(CHECK, error.to_string(), "mount /proc"),
        Ok(path) if path.to_string_lossy().ends_with(" (deleted)") => Finding::warn(
            CHECK,
            "it was replaced or removed while it runs",
            "restart what runs it, so that the new one is used",
        ),
        Ok(path) if rustix::fs::access(&path, Access::EXEC_OK).is_err() => {
            let found = format!("{} may not be executed", path.display());
            Finding::fail(CHECK, found, "`chmod +x` it, and see that its mount allows execution")
        }
        Ok(path) => Finding::ok(CHECK, path.display().to_string()),
    }
}

async fn node(world: &World) -> (Option<StatusResponse>, Finding) {
    const CHECK: &str = "node";
    let socket = &world.places.admin_socket;
    let node = match Node::connect(socket).await {
        Ok(node) => node,
        Err(crate::admin::ConnectError::NotRunning { .. }) => {
            return (None, Finding::ok(CHECK, "not running"));
        }
        Err(error) => {
            let advice = "see that you are the user who runs the node";
            return (None, Finding::fail(CHECK, error.to_string(), advice));
        }
    };
    match answer(node.admin().status(StatusRequest {})).await {
        Ok(status) => {
            let found = format!("{} runs, pid {}", status.name, status.pid);
            (Some(status), Finding::ok(CHECK, found))
        }
        Err(failed) => {
            let advice = "end it with a signal and start it anew; its last output says more";
            (None, Finding::fail(CHECK, failed.message, advice))
        }
    }
}

fn directory(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(check, path),
        Err(error) => {
            let advice = "see that you may enter every directory above it";
            return Finding::fail(check, format!("{shown}: {error}"), advice);
        }
    };
    if !metadata.is_dir() {
        let advice = "move it away, or name another directory";
        return Finding::fail(check, format!("{shown} is not a directory"), advice);
    }
    if rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let found = format!("{shown} is not yours to write");
        return Finding::fail(check, found, "run as its owner, or name another directory");
    }
    if metadata.mode() & OTHERS != 0 {
        let found = format!("{shown} is open to others (mode {:o})", metadata.mode() & 0o777);
        return Finding::warn(check, found, format!("`chmod 700 {shown}` closes it"));
    }
    Finding::ok(check, shown.to_string())
}

/// A directory that does not exist yet, and whether it can be made.
fn missing(check: &'static str, path: &Path) -> Finding {
    let above =
        path.ancestors().skip(1).find(|above| above.as_os_str().is_empty() || above.exists());
    let above = match above {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    if rustix::fs::access(above, Access::WRITE_OK).is_err() {
        let found = format!("{} cannot be made in {}", path.display(), above.display());
        return Finding::fail(check, found, "name a directory of your own");
    }
    Finding::ok(check, format!("{} will be made at the first start", path.display()))
}

/// Secret keys that others could read.
fn keys(data_dir: &Path) -> Vec<Finding> {
    let Ok(entries) = fs::read_dir(data_dir) else { return Vec::new() };
    let keys = entries.filter_map(Result::ok).map(|entry| entry.path());
    let keys = keys.filter(|path| path.extension().is_some_and(|end| end == "key"));
    keys.map(|path| {
        let shown = path.display();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.mode() & OTHERS == 0 => Finding::ok("key", shown.to_string()),
            Ok(metadata) => {
                let mode = metadata.mode() & 0o777;
                let found = format!("{shown} can be read by others (mode {mode:o})");
                Finding::fail("key", found, format!("`chmod 600 {shown}`"))
            }
            Err(error) => {
                let advice = "run as the user who owns the node's data";
                Finding::fail("key", format!("{shown}: {error}"), advice)
            }
        }
    })
    .collect()
}

fn socket_path(admin: &Path, run_dir: &Path) -> Finding {
    const CHECK: &str = "socket path";
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let length = absolute(admin).as_os_str().len();
    let longest = length.max(absolute(run_dir).as_os_str().len() + PLUGIN_SOCKET_BYTES);
    let advice = "name a shorter directory with --run-dir, such as one in /run or /tmp";
    if length > SOCKET_PATH_BYTES_MAX {
        let found = format!("{length} bytes; the system allows {SOCKET_PATH_BYTES_MAX}");
        return Finding::fail(CHECK, found, advice);
    }
    if longest > SOCKET_PATH_BYTES_MAX {
        let found = "too little is left for the sockets of plugins with long names";
        return Finding::warn(CHECK, found, advice);
    }
    Finding::ok(CHECK, format!("{length} of {SOCKET_PATH_BYTES_MAX} bytes"))
}

/// Whether plugins can be put into namespaces of their own.
async fn namespaces() -> Finding {
    const CHECK: &str = "user namespaces";
    let setting = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    if setting("user/max_user_namespaces") == Some(0) {
        return Finding::fail(
            CHECK,
            "switched off",
            "`sysctl -w user.max_user_namespaces=15000`; without them plugins cannot be isolated",
        );
    }
    let mut probe = Command::new("unshare");
    probe.args(["--user", "--map-root-user", "--pid", "--fork", "true"]).kill_on_drop(true);
    let tried = tokio::time::timeout(PROBE_MAX, probe.output()).await;
    let advice = if setting("kernel/unprivileged_userns_clone") == Some(0) {
        "`sysctl -w kernel.unprivileged_userns_clone=1`"
    } else if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or give the executable an \
         AppArmor profile that allows `userns`"
    } else {
        "in a container, start it with a seccomp profile that allows `unshare` and `clone`"
    };
    match tried {
        Ok(Ok(output)) if output.status.success() => Finding::ok(CHECK, "available"),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let found = format!("refused: {}", said.lines().next().unwrap_or("no reason given"));
            Finding::fail(CHECK, found, advice)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warn(CHECK, "not tried: there is no `unshare`", "install util-linux")
        }
        Ok(Err(error)) => Finding::warn(CHECK, format!("not tried: {error}"), advice),
        Err(_) => Finding::warn(CHECK, "the attempt did not end", advice),
    }
}

/// Whether the kernel can confine what plugins do with files.
fn landlock() -> Finding {
    const CHECK: &str = "Landlock";
    let advice = "boot with `lsm=landlock,…` on Linux 5.13 or later, or set \
                  `plugins.landlock: off`; a plugin that needs it and has it not is refused";
    match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(modules) if modules.trim().split(',').any(|module| module == "landlock") => {
            Finding::ok(CHECK, "among the security modules")
        }
        Ok(modules) => Finding::fail(CHECK, format!("not among them: {}", modules.trim()), advice),
        Err(error) => Finding::warn(
            CHECK,
            format!("/sys/kernel/security/lsm: {error}"),
            "`mount -t securityfs none /sys/kernel/security` to see; `blackhole plugin info` \
             shows what is in force",
        ),
    }
}

/// Whether the kernel can filter plugins' system calls.
fn seccomp() -> Finding {
    const CHECK: &str = "seccomp";
    const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";
    match fs::read_to_string(ACTIONS) {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => {
            Finding::ok(CHECK, "filters are available")
        }
        _ => Finding::fail(
            CHECK,
            format!("{ACTIONS} names no filters"),
            "use a kernel with CONFIG_SECCOMP_FILTER, or set `plugins.seccomp: off`",
        ),
    }
}

/// The ports a node needs: held by the running one, or free for the next.
fn ports(status: Option<&StatusResponse>) -> Vec<Finding> {
    let Some(status) = status else {
        return DEFAULT_PORTS
            .iter()
            .map(|(name, address, flag)| free(name, address, flag))
            .collect();
    };
    let mut held: Vec<String> = Vec::new();
    for (name, address) in
        [("grpc", &status.grpc), ("http", &status.http), ("metrics", &status.metrics)]
    {
        if !address.is_empty() {
            held.push(format!("{name} {address}"));
        }
    }
    held.extend(status.listen.iter().map(|address| {
        // The peer id at its end is the same for all of them.
        address.split("/p2p/").next().unwrap_or(address).to_owned()
    }));
    if status.listen.is_empty() {
        let advice = "give it an address with --listen, or other peers cannot reach it";
        return vec![Finding::warn("ports", "the node listens for no peers", advice)];
    }
    vec![Finding::ok("ports", format!("held by this node: {}", held.join(", ")))]
}

fn free(name: &str, address: &str, flag: &str) -> Finding {
    const CHECK: &str = "ports";
    let Ok(address) = address.parse::<SocketAddr>() else {
        return Finding::fail(CHECK, format!("{address} is not an address"), "report this");
    };
    let tried = if name.ends_with("(udp)") {
        UdpSocket::bind(address).map(drop)
    } else {
        TcpListener::bind(address).map(drop)
    };
    let port = address.port();
    match tried {
        Ok(()) => Finding::ok(CHECK, format!("{port} is free for {name}")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::fail(
            CHECK,
            format!("{port} for {name} is in use by another program"),
            format!(
                "`ss -lptun 'sport = :{port}'` shows which; end it, name the directory of the \
                 node that holds it with --data-dir, or start with another port: {flag}"
            ),
        ),
        Err(error) => {
            let found = format!("{port} for {name} cannot be opened: {error}");
            Finding::fail(CHECK, found, format!("start with another address: {flag}"))
        }
    }
}

/// `limit` is `None` where there is none.
fn files(limit: Option<u64>) -> Finding {
    const CHECK: &str = "open files";
    let advice = format!("`ulimit -n {FILES_ENOUGH}` before it starts, or LimitNOFILE in its unit");
    match limit {
        None => Finding::ok(CHECK, "no limit"),
        Some(limit) if limit < FILES_MIN => {
            Finding::fail(CHECK, format!("only {limit} allowed"), advice)
        }
        Some(limit) if limit < FILES_ENOUGH => {
            Finding::warn(CHECK, format!("{limit} allowed: few for many peers and plugins"), advice)
        }
        Some(limit) => Finding::ok(CHECK, format!("{limit} allowed")),
    }
}

/// Adverts carry the time: a peer whose clock is wrong is not believed.
fn clock(now: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let advice = "set it, and keep it right with NTP: adverts from a wrong clock are refused";
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() >= CLOCK_MIN => Finding::ok(CHECK, "plausible"),
        Ok(since) => {
            let years = since.as_secs() / 31_556_952;
            Finding::fail(CHECK, format!("it shows a time in {}", 1970 + years), advice)
        }
        Err(_) => Finding::fail(CHECK, "it shows a time before 1970", advice),
    }
}

/// What the running node says about its neighbours, and what it warns of.
fn mesh(status: &StatusResponse) -> Vec<Finding> {
    let mut findings = vec![if status.joined {
        Finding::ok("mesh", format!("joined `{}`, connected to {}", status.network, status.peers))
    } else {
        let advice = "name a peer with --bootstrap, unless this node is meant to be the first";
        Finding::warn("mesh", "no peer met yet", advice)
    }];
    findings.extend(status.warnings.iter().map(|warning| {
        let unreachable = warning.contains("bootstrap");
        let check = if unreachable { "bootstrap" } else { "node" };
        let advice = if unreachable {
            "see that it runs, that its address and peer id are right, and that no firewall is \
             between; the node keeps trying"
        } else {
            "the node runs, with less than was asked for"
        };
        Finding::warn(check, warning.clone(), advice)
    }));
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("allowed");
    }

    #[test]
    fn directories_open_to_others_are_warned_of() {
        let directory_ = tempfile::tempdir().expect("a directory");
        with_mode(directory_.path(), 0o700);
        assert_eq!(directory("data directory", directory_.path()).level, Level::Ok);
        with_mode(directory_.path(), 0o755);
        let finding = directory("data directory", directory_.path());
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.advice.is_some_and(|advice| advice.contains("chmod 700")));
    }

    #[test]
    fn a_directory_that_can_be_made_is_fine_and_a_file_in_its_place_is_not() {
        let base = tempfile::tempdir().expect("a directory");
        let finding = directory("data directory", &base.path().join("a/b"));
        assert_eq!(finding.level, Level::Ok);
        let file = base.path().join("file");
        fs::write(&file, "").expect("written");
        assert_eq!(directory("data directory", &file).level, Level::Fail);
    }

    #[test]
    fn keys_that_others_can_read_fail() {
        let base = tempfile::tempdir().expect("a directory");
        let key = base.path().join("node.key");
        fs::write(&key, "secret").expect("written");
        with_mode(&key, 0o600);
        assert_eq!(keys(base.path())[0].level, Level::Ok);
        with_mode(&key, 0o644);
        assert_eq!(keys(base.path())[0].level, Level::Fail);
    }

    #[test]
    fn long_socket_paths_are_found_before_a_node_fails_on_them() {
        let check = |length: usize| {
            let run = PathBuf::from(format!("/{}", "x".repeat(length - 1)));
            socket_path(&run.join("admin.sock"), &run).level
        };
        assert_eq!(check(40), Level::Ok);
        assert_eq!(check(80), Level::Warn);
        assert_eq!(check(100), Level::Fail);
    }

    #[test]
    fn a_port_in_use_names_the_flag_that_chooses_another() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = taken.local_addr().expect("an address").to_string();
        let finding = free("http", &address, "--http");
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.advice.is_some_and(|advice| advice.contains("--http")));
        drop(taken);
        assert_eq!(free("http", &address, "--http").level, Level::Ok);
    }

    #[test]
    fn ports_of_the_running_node_are_its_own() {
        let status = StatusResponse {
            grpc: "127.0.0.1:9090".into(),
            listen: vec!["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWA".into()],
            ..StatusResponse::default()
        };
        let findings = ports(Some(&status));
        assert_eq!(
            findings,
            [Finding::ok(
                "ports",
                "held by this node: grpc 127.0.0.1:9090, /ip4/127.0.0.1/tcp/4001"
            )]
        );
    }

    #[test]
    fn few_descriptors_are_warned_of_and_very_few_fail() {
        assert_eq!(files(None).level, Level::Ok);
        assert_eq!(files(Some(65_536)).level, Level::Ok);
        assert_eq!(files(Some(1024)).level, Level::Warn);
        assert_eq!(files(Some(64)).level, Level::Fail);
    }

    #[test]
    fn a_clock_in_the_past_fails() {
        assert_eq!(clock(UNIX_EPOCH + Duration::from_secs(CLOCK_MIN)).level, Level::Ok);
        let finding = clock(UNIX_EPOCH + Duration::from_mins(1));
        assert_eq!(
            (finding.level, finding.found.as_str()),
            (Level::Fail, "it shows a time in 1970")
        );
        assert_eq!(clock(UNIX_EPOCH - Duration::from_mins(1)).level, Level::Fail);
    }

    #[test]
    fn an_unreachable_bootstrap_peer_is_warned_of() {
        let warning = "bootstrap peer /ip4/192.0.2.1/tcp/4001 cannot be reached";
        let status =
            StatusResponse { warnings: vec![warning.into()], joined: true, ..Default::default() };
        let findings = mesh(&status);
        assert_eq!(findings[0].level, Level::Ok);
        assert_eq!((findings[1].check, findings[1].level), ("bootstrap", Level::Warn));
    }

    #[test]
    fn findings_are_printed_with_what_to_do() {
        let findings =
            [Finding::ok("clock", "plausible"), Finding::fail("ports", "8080 is in use", "end it")];
        let expected = "      CHECK  FOUND
ok    clock  plausible
fail  ports  8080 is in use

ports: 8080 is in use
  end it";
        assert_eq!(text(&findings, false), expected);
        assert_eq!(document(&findings)["ok"], false);
    }
}
