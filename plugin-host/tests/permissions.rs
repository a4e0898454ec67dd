//! Permissions on real processes in real jails: what is granted works, what is not is refused,
//! counted and said. Every refusal has its positive control.

mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use blackhole_plugin_host::{
    Command, Host, HostConfig, HostEvent, LoadRequest, PluginStatus, Source, permissions::Grants,
};
use protocol::{
    id::InstanceId,
    manifest::{Permission, permission::Kind},
};
use serde_json::{Value, json};
use support::{Door, Memory, body, call, message as framed, probe_program};
use tokio::time::timeout;

/// Longer than any test needs on a machine that is busy compiling.
const PATIENCE: Duration = Duration::from_secs(60);

fn read(list: &[&str]) -> Vec<Permission> {
    list.iter().map(|text| text.parse().unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// One plugin in its jail.
struct Jailed {
    host: Host,
    instance: InstanceId,
    _directory: tempfile::TempDir,
}

impl Jailed {
    async fn new(asked: &[&str], allow: &[&str], deny: &[&str]) -> Self {
        Self::load(asked, allow, deny).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn load(asked: &[&str], allow: &[&str], deny: &[&str]) -> Result<Self, String> {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path();
        let mut config = HostConfig::new(path.join("run"), path.join("data"));
        config.launcher = vec![probe_program().into(), "__launch".into()];
        let grants = Grants { allow: read(allow), deny: read(deny) };
        config.permissions.grants.insert("probe".into(), grants);
        let (host, mut events) =
            Host::start(config, Arc::new(Memory::default()), Arc::new(Door)).await.expect("starts");
        let source = Source::Exec(Command {
            argv: vec![probe_program().display().to_string()],
            permissions: asked.iter().map(ToString::to_string).collect(),
            ..Command::default()
        });
        let request = LoadRequest { wait: true, ..LoadRequest::new(source) };
        let loaded = timeout(PATIENCE, host.load(request)).await.expect("an answer in time");
        loaded.map_err(|error| error.to_string())?;
        let ready = timeout(PATIENCE, events.recv()).await.expect("in time").expect("an event");
        let HostEvent::Ready(ready) = ready else { panic!("not ready: {ready:?}") };
        Ok(Self { host, instance: ready.instance, _directory: directory })
    }

    fn status(&self) -> PluginStatus {
        self.host.info("probe").expect("loaded")
    }

    fn denials(&self) -> u64 {
        self.status().counts.denials[Kind::Network as usize]
    }

    fn said_of_it(&self) -> Vec<String> {
        let log = self.host.logs("probe").expect("loaded").tail(0);
        log.iter().map(|record| record.message.clone()).collect()
    }

    async fn invoke(&self, method: &str, message: &[u8]) -> Value {
        let channel = self.host.channels().reach(self.instance, Instant::now() + PATIENCE).await;
        let reply = channel.expect("ready").invoke(call(method, body(framed(message)), None));
        let reply = timeout(PATIENCE, reply).await.expect("in time").expect("answered");
        let answer = timeout(PATIENCE, support::read(reply)).await.expect("in time");
        serde_json::from_slice(&answer.messages[0]).expect("JSON")
    }

    /// What the plugin was told, or why not.
    async fn tries(&self, wish: Value) -> Result<String, String> {
        let answer = self.invoke("Try", wish.to_string().as_bytes()).await;
        match answer["said"].as_str() {
            Some(said) => Ok(said.into()),
            None => Err(answer["error"].as_str().unwrap_or("no answer").into()),
        }
    }

    async fn dials(&self, how: &str, host: &str, port: u16) -> Result<String, String> {
        self.tries(json!({ "how": how, "host": host, "port": port })).await
    }
}

/// A server outside of every jail: answers one line, or one HTTP request with what it saw of it.
fn outside() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
    let mut seen = String::new();
    let _ = reader.read_line(&mut seen);
    if !seen.contains("HTTP/1.1") {
        let _ = write!(stream, "outside heard {seen}");
        return;
    }
    while !seen.ends_with("\r\n\r\n") && reader.read_line(&mut seen).is_ok_and(|read| read > 0) {}
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", seen.len());
    let _ = write!(stream, "{head}{seen}");
}

#[tokio::test]
async fn what_is_granted_is_reached_by_every_protocol_and_counted() {
    let outside = outside();
    let rule = format!("network:{outside}");
    let plugin = Jailed::new(&[&rule], &[&rule], &[]).await;
    let (host, port) = ("127.0.0.1", outside.port());
    for how in ["connect", "socks"] {
        let said = plugin.dials(how, host, port).await;
        assert_eq!(said.as_deref(), Ok("outside heard hello from inside\n"), "{how}");
    }
    let said = plugin.dials("http", host, port).await.expect("answered");
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    assert!(said.contains("GET /a?b=c HTTP/1.1\r\n"), "origin form: {said}");
    assert!(said.to_lowercase().contains(&format!("host: 127.0.0.1:{port}\r\n")), "{said}");
    let lower = said.to_lowercase();
    assert!(lower.contains("x-end: 2") && !lower.contains("x-hop") && !lower.contains("proxy-"));
    let counts = plugin.status().counts;
    assert_eq!((counts.connections, counts.denied()), (3, 0));
    assert!(counts.sent_bytes > 30 && counts.received_bytes > 60, "{counts:?}");
    let layers = plugin.status().layers;
    assert!(layers.iter().any(|layer| layer == "egress-proxy"), "{layers:?}");
}

#[tokio::test]
async fn the_proxy_is_the_only_way() {
    let outside = outside();
    let rule = format!("network:{outside}");
    let plugin = Jailed::new(&[&rule], &[&rule], &[]).await;
    assert!(TcpStream::connect(outside).is_ok(), "the control, outside, must succeed");
    let refused = plugin.dials("direct", "127.0.0.1", outside.port()).await;
    assert!(refused.expect_err("its loopback is its own").contains("refused"));
    let refused = plugin.dials("direct", "192.0.2.1", 80).await;
    assert!(refused.expect_err("no route").contains("unreachable"));
}

#[tokio::test]
async fn what_is_not_granted_is_refused_counted_and_says_what_to_add() {
    let outside = outside();
    let other = self::outside();
    let rule = format!("network:{outside}");
    let plugin = Jailed::new(&[&rule], &[&rule], &[]).await;
    let port = other.port();
    for (how, told) in [("connect", "HTTP/1.1 403"), ("socks", "socks 2")] {
        let refused = plugin.dials(how, "127.0.0.1", port).await.expect_err("refused");
        assert!(refused.contains(told), "{how}: {refused}");
    }
    let refused = plugin.dials("http", "127.0.0.1", port).await.expect("an HTTP answer");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(refused.contains(&format!("add `network:127.0.0.1:{port}`")), "{refused}");
    assert_eq!(plugin.denials(), 3);
    let said = plugin.said_of_it();
    let denials = said.iter().filter(|line| line.starts_with("denied: ")).count();
    assert_eq!(denials, 3, "{said:#?}");
    assert_eq!(plugin.status().counts.connections, 0);
}

#[tokio::test]
async fn a_name_or_address_that_leads_home_or_to_metadata_is_no_ordinary_network() {
    let outside = outside();
    let plugin = Jailed::new(&["network"], &["network"], &[]).await;
    // As an attacker's name would after it was rebound.
    let refused = plugin.dials("connect", "localhost", outside.port()).await.expect_err("refused");
    assert!(refused.contains("403") && refused.contains("127.0.0.0/8"), "{refused}");
    for host in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        let refused = plugin.dials("connect", host, outside.port()).await.expect_err(host);
        assert!(refused.contains("no ordinary address"), "{host}: {refused}");
    }
    assert_eq!(plugin.denials(), 6);
    // The control: the same name is reached once the operator names its address.
    let rule = format!("network:{outside}");
    let plugin = Jailed::new(&["network"], &["network", &rule], &[]).await;
    let said = plugin.dials("connect", "localhost", outside.port()).await;
    assert_eq!(said.as_deref(), Ok("outside heard hello from inside\n"));
    let said = plugin.dials("socks", "localhost", outside.port()).await;
    assert!(said.is_ok(), "{said:?}");
}

#[tokio::test]
async fn a_plugin_without_a_grant_is_told_which_line_brings_it() {
    let plugin = Jailed::new(&["network:example.org:443"], &[], &[]).await;
    let status = plugin.status();
    assert!(status.granted.words().is_empty());
    let line = "grants: { probe: [\"network:example.org:443\"] }";
    assert!(status.warnings.iter().any(|it| it.contains(line)), "{:?}", status.warnings);
    let refused = plugin.dials("connect", "example.org", 443).await.expect_err("refused");
    assert!(refused.contains("plugins.grants.probe"), "{refused}");
    // One that does not even ask has no proxy at all.
    let silent = Jailed::new(&[], &["network"], &[]).await;
    let seen = silent.invoke("See", b"").await;
    assert!(seen["environment"].get("HTTPS_PROXY").is_none(), "{seen}");
    assert!(silent.dials("connect", "example.org", 443).await.is_err());
}

#[tokio::test]
async fn a_head_that_never_ends_holds_nobody_up() {
    let outside = outside();
    let rule = format!("network:{outside}");
    let plugin = Jailed::new(&[&rule], &[&rule], &[]).await;
    let slow = async { plugin.tries(json!({ "how": "slow" })).await };
    let others = async {
        for _ in 0..20 {
            let said = plugin.dials("connect", "127.0.0.1", outside.port()).await;
            assert!(said.is_ok(), "{said:?}");
        }
    };
    let (slow, ()) = tokio::join!(slow, others);
    // The end of it is seen by the plugin: its connection was closed.
    assert!(slow.expect("closed, not waited for").starts_with("closed"));
}

#[tokio::test]
async fn connections_end_with_the_plugin() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // Until the other side is gone.
        ended.send(stream.read_to_end(&mut Vec::new()).is_ok()).expect("awaited");
    });
    let rule = format!("network:{address}");
    let plugin = Jailed::new(&[&rule], &[&rule], &[]).await;
    let head = plugin.dials("hold", "127.0.0.1", address.port()).await.expect("open");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(end.try_recv().is_err(), "it is open while the plugin lives");
    plugin.host.unload("probe").await.expect("unloads");
    let seen = tokio::task::spawn_blocking(move || end.recv_timeout(PATIENCE)).await;
    assert!(seen.expect("no panic").is_ok(), "the server outside sees the end");
}

#[tokio::test]
async fn paths_are_read_and_written_as_far_as_granted() {
    let directory = tempfile::tempdir().expect("made");
    let root = std::fs::canonicalize(directory.path()).expect("there");
    let file = |name: &str| root.join(name).display().to_string();
    for name in ["read", "write", "other", "read/hidden"] {
        std::fs::create_dir_all(root.join(name)).expect("made");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(root.join(name), mode).expect("set");
        std::fs::write(root.join(name).join("file"), name).expect("written");
    }
    let asked = [format!("read:{}", file("read")), format!("write:{}", file("write"))];
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let deny = format!("read:{}", file("read/hidden"));
    let plugin = Jailed::new(&asked, &asked, &[&deny]).await;
    let tries =
        async |how: &str, name: &str| plugin.tries(json!({ "how": how, "path": file(name) })).await;
    assert_eq!(tries("read", "read/file").await.as_deref(), Ok("read"));
    assert_eq!(tries("read", "write/file").await.as_deref(), Ok("write"));
    assert!(tries("read", "other/file").await.is_err(), "not asked for");
    assert!(tries("read", "read/hidden/file").await.is_err(), "denied");
    assert!(tries("write", "read/new").await.is_err(), "only reading");
    assert_eq!(tries("write", "write/new").await.as_deref(), Ok("written"));
    let new = std::fs::metadata(root.join("write/new")).expect("it is there, outside");
    let parent = std::fs::metadata(root.join("write")).expect("there");
    assert_eq!(new.uid(), parent.uid(), "the owner of the directory owns what is written");
}

#[tokio::test]
async fn a_granted_path_that_is_missing_or_a_link_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("made");
    let root = std::fs::canonicalize(directory.path()).expect("there");
    let gone = format!("write:{}", root.join("gone").display());
    let refused = Jailed::load(&[&gone], &[&gone], &[]).await.err().expect("refused");
    assert!(refused.contains(&gone), "{refused}");
    std::os::unix::fs::symlink("/etc", root.join("link")).expect("made");
    let link = format!("read:{}", root.join("link").display());
    let refused = Jailed::load(&[&link], &[&link], &[]).await.err().expect("refused");
    assert!(refused.contains("leads to /etc"), "{refused}");
}

#[tokio::test]
async fn variables_and_devices_come_only_where_granted() {
    let name = "HOME";
    let outside = std::env::var(name).expect("the control: it is set here");
    assert_ne!(outside, "/tmp", "the control: a jail's own is another");
    let asked = [&format!("env:{name}")[..], "env:HOME_OF_NOBODY", "device:/dev/zero"];
    let granted = Jailed::new(&asked, &asked, &[]).await;
    let seen = granted.invoke("See", b"").await;
    assert_eq!(seen["environment"][name], json!(outside));
    assert!(seen["environment"].get("HOME_OF_NOBODY").is_none());
    let denied = Jailed::new(&asked, &[], &[]).await;
    let seen = denied.invoke("See", b"").await;
    assert_eq!(seen["environment"][name], "/tmp");
    assert_eq!(denied.status().granted.denied.len(), 3);
    // A device that no jail has by itself.
    let tty = ["device:/dev/tty"];
    let with = Jailed::new(&tty, &tty, &[]).await;
    let without = Jailed::new(&tty, &[], &[]).await;
    let wish = || json!({ "how": "device", "path": "/dev/tty" });
    // It has no terminal; but that is the device's own answer (ENXIO), not a missing file.
    let answered = with.tries(wish()).await.expect_err("no terminal");
    assert!(answered.contains("os error 6"), "{answered}");
    let missing = without.tries(wish()).await.expect_err("not there");
    assert!(missing.contains("os error 2"), "{missing}");
}

/// Runs the probe as a host of its own, as an ordinary user, and gives what its plugin tried.
fn as_ordinary_user(permission: &str, wish: &Value) -> String {
    let directory = tempfile::tempdir().expect("made");
    let open = |path: &Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, mode).expect("set");
    };
    open(directory.path());
    // Where the build lies need not be open to everybody.
    let program = directory.path().join("probe");
    std::fs::copy(probe_program(), &program).expect("copied");
    open(&program);
    let (run, data) = (directory.path().join("run"), directory.path().join("data"));
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("host")
        .args([&run, &data])
        .args(["--permission", permission, "--try", &wish.to_string()]);
    told_by(command)
}

/// What a host says until its plugin has tried what it was to try; then it is ended.
fn told_by(mut command: std::process::Command) -> String {
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it is there");
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok) {
        said.push_str(&line);
        said.push('\n');
        if line.contains("tried: ") {
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    said
}

#[tokio::test]
async fn an_ordinary_users_plugins_have_the_same_one_way_out() {
    assert!(rustix::process::getuid().is_root(), "this test changes its user: run it as root");
    let outside = outside();
    let wish = |how: &str, port: u16| json!({ "how": how, "host": "127.0.0.1", "port": port });
    let rule = format!("network:{outside}");
    let said = as_ordinary_user(&rule, &wish("connect", outside.port()));
    assert!(said.contains("outside heard hello from inside"), "{said}");
    let said = as_ordinary_user(&rule, &wish("direct", outside.port()));
    assert!(said.contains("refused"), "{said}");
    let other = self::outside();
    let said = as_ordinary_user(&rule, &wish("socks", other.port()));
    assert!(said.contains("socks 2"), "{said}");
}

#[tokio::test]
async fn an_ordinary_user_gives_away_what_is_its_own_to_write() {
    assert!(rustix::process::getuid().is_root(), "this test changes its user: run it as root");
    let directory = tempfile::tempdir().expect("made");
    let root = std::fs::canonicalize(directory.path()).expect("there");
    std::os::unix::fs::chown(&root, Some(65_534), Some(65_534)).expect("given");
    let file = root.join("new");
    let wish = json!({ "how": "write", "path": file });
    let said = as_ordinary_user(&format!("write:{}", root.display()), &wish);
    assert!(said.contains("written"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "written inside");
    let said = as_ordinary_user(&format!("read:{}", root.display()), &wish);
    assert!(said.contains("Read-only file system"), "{said}");
}

#[tokio::test]
async fn a_name_that_is_rebound_between_judgement_and_connection_leads_where_it_was_judged() {
    assert!(rustix::process::getuid().is_root(), "this test makes a network: run it as root");
    let directory = tempfile::tempdir().expect("made");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("resolv.conf"), "nameserver 127.0.0.1\n").expect("written");
    let dial = json!({ "how": "connect", "host": "rebound.example", "port": 8000 });
    let script = format!(
        "ip link set lo up && ip address add 198.41.0.4/32 dev lo && \
         mount --bind {resolver} /etc/resolv.conf && \
         exec {probe} host {run} {data} --rebind \
         --permission 'network network:198.41.0.4:8000' --try '[{dial},{dial}]'",
        resolver = path("resolv.conf").display(),
        probe = probe_program().display(),
        run = path("run").display(),
        data = path("data").display(),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", &script]);
    let said = tokio::task::spawn_blocking(move || told_by(command)).await.expect("no panic");
    // One question for the first connection: what it led to was judged, and connected to.
    assert!(said.contains("dns: question 1 answered 198.41.0.4"), "{said}");
    assert!(said.contains("good heard hello from inside"), "{said}");
    // The second is led home, and refused there.
    assert!(said.contains("dns: question 2 answered 127.0.0.1"), "{said}");
    assert!(said.contains("HTTP/1.1 403") && said.contains("127.0.0.0/8"), "{said}");
    assert!(!said.contains("evil heard") && !said.contains("question 3"), "{said}");
}
