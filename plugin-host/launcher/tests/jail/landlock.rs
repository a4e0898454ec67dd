//! Landlock: beside the private root, and in its place.

use std::{
    fs,
    io::Read,
    os::unix::net::{SocketAddr, UnixListener},
    path::Path,
};

use blackhole_launcher::{Bind, Internet, JailSpec};

use crate::world::{Running, output, outside, show, spec};

/// Without namespaces: Landlock alone.
fn bare(script: &str) -> JailSpec {
    let mut spec = spec(script);
    spec.namespaces = false;
    spec.outside_id = None;
    spec.working_dir = "/".into();
    spec
}

fn writable(path: &str) -> Bind {
    Bind { writable: true, ..show(path) }
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

#[test]
fn the_version_in_force_is_named() {
    let mut running = Running::start(&spec("true"));
    let layers = running.started();
    let version = layers.iter().find_map(|layer| layer.strip_prefix("landlock-v"));
    let version: u32 = version.expect("named").parse().expect("a number");
    assert!(version >= 1, "{layers:?}");
    running.finish();
    let mut open = spec("true");
    open.landlock = false;
    let mut running = Running::start(&open);
    let layers = running.started();
    assert!(!layers.iter().any(|layer| layer.starts_with("landlock")), "{layers:?}");
    running.finish();
}

#[test]
fn what_a_writable_mount_shows_is_not_written_unless_the_spec_says_so() {
    // /proc is mounted writable, and only its own entry may be written.
    let script = "echo 500 > /proc/self/oom_score_adj && echo own; \
                  echo 500 > /proc/$$/oom_score_adj && echo self; \
                  (echo x > /dev/null) && echo null; echo x > /tmp/f && cat /tmp/f";
    let said = output(&spec(script));
    assert!(said.contains("own") || said.contains("self"), "{said}");
    assert!(said.ends_with("null\nx\n"), "{said}");
}

#[test]
fn without_namespaces_only_what_is_listed_can_be_read() {
    let directory = tempfile::tempdir().expect("made");
    let shown = directory.path().join("shown");
    let hidden = directory.path().join("hidden");
    for path in [&shown, &hidden] {
        fs::create_dir(path).expect("made");
        fs::write(path.join("f"), "contents\n").expect("written");
    }
    let script = format!(
        "cat {0}/f; cat {1}/f 2>&1; ls {1} 2>&1; echo x > {0}/g; ls / >/dev/null 2>&1 || echo no list; true",
        text(&shown),
        text(&hidden)
    );
    assert_eq!(outside(&format!("cat {}/f", text(&hidden))), "contents\n", "the control reads it");
    let mut spec = bare(&script);
    spec.root.binds.push(show(&text(&shown)));
    let said = output(&spec);
    assert!(said.starts_with("contents\n"), "{said}");
    assert_eq!(said.matches("contents").count(), 1, "{said}");
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    assert!(said.contains("no list"), "{said}");
    assert!(!shown.join("g").exists(), "shown is not writable");
}

#[test]
fn without_namespaces_only_writable_binds_are_written() {
    let directory = tempfile::tempdir().expect("made");
    let own = directory.path().join("own");
    fs::create_dir(&own).expect("made");
    let mark = format!("/tmp/bh-landlock-{}", std::process::id());
    let script = format!("echo x > {0}/f && cat {0}/f; echo x > {mark}; true", text(&own));
    let mut spec = bare(&script);
    spec.root.binds.push(writable(&text(&own)));
    assert_eq!(output(&spec), "x\n");
    assert!(!Path::new(&mark).exists(), "the machine's /tmp is shut");
    outside(&format!("echo x > {mark}"));
    assert!(Path::new(&mark).exists(), "the control writes it");
    fs::remove_file(mark).expect("removed");
}

#[test]
fn without_namespaces_masks_hold_and_their_neighbours_are_shown() {
    let directory = tempfile::tempdir().expect("made");
    for (name, contents) in [("keys", "secret\n"), ("open", "open\n")] {
        fs::create_dir(directory.path().join(name)).expect("made");
        fs::write(directory.path().join(name).join("f"), contents).expect("written");
    }
    let path = text(directory.path());
    let keys = directory.path().join("keys");
    std::os::unix::fs::symlink(&keys, directory.path().join("link")).expect("linked");
    let mut spec =
        bare(&format!("cat {path}/open/f {path}/keys/f {path}/link/f 2>/dev/null; true"));
    spec.root.binds.push(show(&path));
    assert_eq!(output(&spec).matches("secret").count(), 2, "the control must see it");
    spec.root.masks = vec![keys];
    assert_eq!(output(&spec), "open\n");
}

#[test]
fn without_namespaces_other_processes_can_neither_be_signalled_nor_looked_into() {
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let pid = sleeper.id();
    let script = format!(
        "kill -0 {pid} 2>&1; cat /proc/{pid}/environ 2>&1 | tr '\\0' '\\n' | head -3; \
         ls /proc/{pid}/root/ 2>&1; kill -0 $$ && echo self"
    );
    let control = outside(&format!("kill -0 {pid} && echo signalled; ls /proc/{pid}/root/"));
    assert!(control.contains("signalled") && control.contains("usr"), "{control}");
    let said = output(&bare(&script));
    sleeper.kill().expect("killed");
    sleeper.wait().expect("reaped");
    assert!(said.ends_with("self\n"), "{said}");
    assert_eq!(said.matches("denied").count() + said.matches("not permitted").count(), 3, "{said}");
}

#[test]
fn without_namespaces_abstract_sockets_of_others_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("bh-jail-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("bound");
    let script = format!(
        "import socket,sys\ns = socket.socket(socket.AF_UNIX)\n\
         try:\n  s.connect('\\0{name}'); print('connected')\n\
         except OSError as e: print(e.errno)"
    );
    let python = |spec: &JailSpec| {
        let mut spec = spec.clone();
        spec.argv = vec!["/usr/bin/python3".into(), "-c".into(), script.clone()];
        output(&spec)
    };
    assert_eq!(python(&bare("")), format!("{}\n", libc::EPERM));
    let mut open = bare("");
    open.landlock = false;
    assert_eq!(python(&open), "connected\n", "the control");
    drop(listener);
}

#[test]
fn a_plugin_that_listens_on_a_shared_network_listens_there_and_connects_nowhere() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = listener.local_addr().expect("known").port();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let own = free.local_addr().expect("known").port();
    drop(free);
    let script = format!(
        "import socket\n\
         def tried(f):\n  try:\n    f(); return 'yes'\n  except OSError as e: return e.errno\n\
         def bind(p): socket.socket().bind(('127.0.0.1', p))\n\
         print(tried(lambda: bind({own})), tried(lambda: bind({own} ^ 1)), \
         tried(lambda: socket.create_connection(('127.0.0.1', {taken}))))"
    );
    let mut spec = bare("");
    spec.argv = vec!["/usr/bin/python3".into(), "-c".into(), script];
    spec.internet = Internet::Listen(own);
    assert_eq!(output(&spec), format!("yes {0} {0}\n", libc::EACCES));
    spec.internet = Internet::Any;
    let control = output(&spec);
    assert!(control.starts_with("yes ") && control.ends_with(" yes\n"), "the control: {control}");
}

#[test]
fn capabilities_are_given_up_without_namespaces_too() {
    let said = output(&bare("grep -E '^(Cap|NoNewPrivs)' /proc/self/status"));
    for line in said.lines().filter(|line| line.starts_with("Cap") && !line.starts_with("CapBnd")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(said.contains("NoNewPrivs:\t1"), "{said}");
}

#[test]
fn scripts_and_programs_alike_are_executed() {
    let directory = tempfile::tempdir().expect("made");
    let script = directory.path().join("script");
    fs::write(&script, "#!/bin/sh\necho \"$0\" \"$1\"\n").expect("written");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let path = text(&script);
    let mut spec = spec("");
    spec.root.binds.push(Bind { own: true, ..show(&text(directory.path())) });
    spec.argv = vec![path.clone(), "one".into()];
    assert_eq!(output(&spec), format!("{path} one\n"));
    // A binary, with its own name and not that of a descriptor.
    spec.argv = vec!["/bin/cat".into(), "/proc/self/cmdline".into()];
    assert_eq!(output(&spec), "/bin/cat\0/proc/self/cmdline\0");
    let mut running = Running::start(&spec);
    let mut said = String::new();
    running.started();
    running.launcher.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    running.launcher.stdout = None;
    running.finish_refused();
    assert!(said.starts_with("/bin/cat"), "{said}");
}
