//! Real jails around `/bin/sh` and around this test itself. Each claim has a positive control
//! outside the jail, so that a missing tool is a failed test and not a pass.

mod filter;
mod groups;
mod landlock;
mod user;
mod world;

use std::{
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use blackhole_launcher::{Bind, Limits, Order, Report, control};
use rustix::net::SendFlags;
use world::{Running, output, outside, show, spec};

#[test]
fn the_program_sees_only_itself_and_its_first_process() {
    let script = "for d in /proc/[0-9]*; do echo ${d#/proc/}; done";
    assert!(outside(script).lines().count() > 2, "the control must see more");
    let text = output(&spec(script));
    let seen: Vec<&str> = text.lines().collect();
    assert_eq!(seen, ["1", "2"]);
}

#[test]
fn nothing_of_the_hosts_environment_is_inherited() {
    let text = output(&spec("export -p; cat /proc/self/environ | tr '\\0' '\\n'"));
    assert!(text.contains("PATH"), "{text}");
    assert!(!text.contains("SECRET_OF_THE_HOST"), "{text}");
}

#[test]
fn only_granted_descriptors_are_open() {
    // One more is the directory that ls itself reads.
    let text = output(&spec("exec ls /proc/self/fd"));
    let open: Vec<&str> = text.lines().collect();
    assert_eq!(open, ["0", "1", "2", "3"]);
    assert!(output(&spec("readlink /proc/self/fd/0")).contains("/dev/null"));
}

#[test]
fn the_program_has_no_capabilities_and_cannot_gain_any() {
    let text = output(&spec("grep -E '^(Cap|NoNewPrivs)' /proc/self/status; id -u"));
    for line in text.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.ends_with("1000\n"), "{text}");
}

#[test]
fn no_further_namespaces_can_be_made() {
    let attempt = "unshare --user true 2>&1";
    assert_eq!(outside(&format!("{attempt} && echo made")), "made\n", "the control must succeed");
    let text = output(&spec(&format!("{attempt} && echo made; true")));
    assert!(!text.contains("made"), "{text}");
}

#[test]
fn the_file_system_shows_what_is_listed_and_is_read_only() {
    let text = output(&spec("ls /; touch /x /usr/x 2>&1; touch /tmp/y && echo wrote"));
    assert!(!text.contains("home") && !text.contains("root") && !text.contains("var"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.contains("wrote"), "{text}");
    assert!(!Path::new("/tmp/y").exists(), "/tmp is its own");
}

#[test]
fn a_directory_that_only_its_owner_may_read_is_shown_when_it_is_the_plugins_own() {
    let directory = tempfile::tempdir().expect("mode 0700");
    std::fs::write(directory.path().join("f"), "contents").expect("written");
    let path = directory.path().to_str().expect("text").to_owned();
    let mut spec = spec(&format!("cat {path}/f; touch {path}/g 2>&1; true"));
    spec.root.binds.push(Bind { own: true, ..show(&path) });
    let text = output(&spec);
    assert!(text.starts_with("contents"), "{text}");
    assert!(text.contains("Read-only"), "{text}");
}

#[test]
fn masked_paths_are_empty_wherever_a_bind_shows_them() {
    let directory = tempfile::tempdir().expect("mode 0700");
    let secret = directory.path().join("keys");
    std::fs::create_dir(&secret).expect("made");
    std::fs::write(secret.join("k"), "secret").expect("written");
    std::fs::write(directory.path().join("one"), "secret").expect("written");
    let path = directory.path().to_str().expect("text").to_owned();
    let mut spec = spec(&format!("ls {path}/keys; cat {path}/one; ls {path} 2>&1"));
    spec.root.binds.push(Bind { own: true, ..show(&path) });
    assert!(output(&spec).contains("secret"), "the control must see it");
    spec.root.masks = vec![secret, directory.path().join("one")];
    let text = output(&spec);
    assert!(!text.contains("secret"), "{text}");
    assert!(text.contains("keys"), "{text}");
}

#[test]
fn the_network_is_empty_but_for_loopback() {
    let script = "cat /proc/net/dev | tail -n +3 | cut -d: -f1";
    let text = output(&spec(script));
    assert_eq!(text.trim(), "lo");
    let mut shared = spec(script);
    shared.host_network = true;
    assert_eq!(output(&shared), outside(script));
}

#[test]
fn limits_are_those_asked_for() {
    let mut spec = spec("ulimit -n; ulimit -c; ulimit -f; ulimit -d; cat /proc/self/limits");
    spec.limits = Limits {
        files: Some(64),
        file_size: Some(1 << 20),
        data: Some(64 << 20),
        processes: Some(33),
        cpu_seconds: None,
    };
    let text = output(&spec);
    // -f counts blocks of 512 bytes, -d kilobytes.
    assert!(text.starts_with("64\n0\n2048\n65536\n"), "{text}");
    let processes = text.lines().find(|line| line.starts_with("Max processes")).expect("listed");
    assert!(processes.contains("33"), "{processes}");
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    let mut spec = spec("for i in $(seq 60); do sleep 5 & done 2>/dev/null; echo survived");
    spec.limits.processes = Some(20);
    let (text, _) = Running::start(&spec).finish();
    assert!(!text.contains("survived"), "dash gives up when it cannot fork: {text}");
}

#[test]
fn every_layer_is_reported() {
    let mut running = Running::start(&spec("true"));
    let layers = running.started();
    let expected = [
        "user-ns",
        "pid-ns",
        "mount-ns",
        "ipc-ns",
        "uts-ns",
        "cgroup-ns",
        "net-ns",
        "private-root",
        "no-nested-user-ns",
        "no-capabilities",
        "no-new-privs",
        "lifeline",
        "own-session",
        "closed-descriptors",
        "clean-environment",
        "rlimits",
    ];
    for layer in expected {
        assert!(layers.iter().any(|found| found == layer), "{layer} not in {layers:?}");
    }
    running.finish();
}

#[test]
fn a_layer_that_cannot_be_had_refuses_and_names_itself() {
    let mut spec = spec("true");
    spec.root.binds.push(Bind { optional: false, ..show("/no/such/place") });
    let mut running = Running::start(&spec);
    let refused = loop {
        match running.next().expect("an answer").message {
            Report::Refused { layer, reason, advice } => break (layer, reason, advice),
            Report::Started { .. } => panic!("must not start"),
            _ => {}
        }
    };
    assert_eq!(refused.0, "private-root");
    assert!(refused.1.contains("/no/such/place"), "{}", refused.1);
    assert!(!refused.2.is_empty());
    running.finish_refused();
}

#[test]
fn a_program_that_does_not_exist_is_refused_by_exec() {
    let mut spec = spec("true");
    spec.argv = vec!["/bin/no-such-program".into()];
    let mut running = Running::start(&spec);
    loop {
        match running.next().expect("an answer").message {
            Report::Refused { layer, reason, advice } => {
                assert_eq!(layer, "exec");
                assert!(reason.contains("/bin/no-such-program"), "{reason}");
                assert!(advice.contains("read paths"), "{advice}");
                break;
            }
            Report::Started { .. } => panic!("must not start"),
            _ => {}
        }
    }
    running.finish_refused();
}

/// Waits until the process is gone; what took longer than the promised second fails.
fn gone_within_a_second(pid: u32) {
    let begun = Instant::now();
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let alive = || {
        std::fs::read_to_string(&path)
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
    };
    while alive() {
        assert!(begun.elapsed() < Duration::from_secs(1), "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn descendants_of(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let mut all = Vec::new();
    for child in children.unwrap_or_default().split_whitespace() {
        let child: u32 = child.parse().expect("a pid");
        all.push(child);
        all.extend(descendants_of(child));
    }
    all
}

fn end_of_the_host_ends_all(namespaces: bool) {
    // A child that left its parent, session and output.
    let script = "(setsid sleep 1000 >/dev/null 2>&1 &) ; echo ready; exec sleep 1000";
    let mut spec = spec(script);
    spec.namespaces = namespaces;
    let mut running = Running::start(&spec);
    running.started();
    let mut output = running.launcher.stdout.take().expect("piped");
    let mut line = [0_u8; 6];
    output.read_exact(&mut line).expect("ready");
    let init = running.init.expect("told");
    // The double fork is adopted by the first process within moments.
    let begun = Instant::now();
    let all = loop {
        let all = descendants_of(init);
        if all.len() >= 2 {
            break all;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{all:?}");
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(running.control);
    running.launcher.wait().expect("reaped");
    for pid in all {
        gone_within_a_second(pid);
    }
    gone_within_a_second(init);
}

#[test]
fn the_end_of_the_host_ends_all_even_what_forked_twice() {
    end_of_the_host_ends_all(true);
}

#[test]
fn the_end_of_the_host_ends_all_without_namespaces_too() {
    end_of_the_host_ends_all(false);
}

#[test]
fn stop_reaches_the_program_as_sigterm() {
    let mut running = Running::start(&spec(
        "trap 'echo stopping; exit 3' TERM; echo on; while :; do sleep 0.05; done",
    ));
    running.started();
    let mut output = running.launcher.stdout.take().expect("piped");
    let mut line = [0_u8; 3];
    output.read_exact(&mut line).expect("on");
    control::send(&running.control, &Order::Stop, None, SendFlags::empty()).expect("sent");
    let mut code = None;
    while let Some(received) = running.next() {
        if let Report::Ended { code: ended, .. } = received.message {
            code = ended;
        }
    }
    assert_eq!(code, Some(3));
    running.launcher.wait().expect("reaped");
    running.reap();
}

#[test]
fn a_connection_to_a_closed_port_is_told() {
    let mut running = Running::start(&spec("sleep 1000"));
    running.started();
    let order = Order::Connect { id: 9, port: 4 };
    control::send(&running.control, &order, None, SendFlags::empty()).expect("sent");
    let answer = running.next().expect("an answer");
    match answer.message {
        Report::NotConnected { id, .. } => assert_eq!(id, 9),
        Report::Connected { id } => {
            assert_eq!(id, 9);
            let socket = answer.descriptors.into_iter().next().expect("comes with it");
            let mut polled = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
            rustix::event::poll(&mut polled, None).expect("settled");
            let error = rustix::net::sockopt::socket_error(socket.as_fd()).expect("told");
            assert_eq!(error, Err(rustix::io::Errno::CONNREFUSED));
        }
        other => panic!("{other:?}"),
    }
    control::send(&running.control, &Order::Kill, None, SendFlags::empty()).expect("sent");
    while running.next().is_some() {}
    running.launcher.wait().expect("reaped");
    running.reap();
}

#[test]
fn the_host_accepts_what_connects_inside_the_jail_and_nothing_else_is_there() {
    const PORT: u16 = 3128;
    let mut jail = spec("exec 3<>/dev/tcp/127.0.0.1/3128; head -n1 <&3; cat /proc/net/tcp");
    jail.argv[0] = "/bin/bash".into();
    jail.egress = Some(PORT);
    let mut running = Running::start(&jail);
    let listener = loop {
        let mut received = running.next().expect("an answer");
        match received.message {
            Report::Egress => break received.descriptors.pop().expect("the listener"),
            Report::Refused { layer, reason, .. } => panic!("{layer}: {reason}"),
            _ => {}
        }
    };
    let layers = running.started();
    assert!(layers.iter().any(|layer| layer == "egress-proxy"), "{layers:?}");
    let listener = std::net::TcpListener::from(listener);
    assert_eq!(listener.local_addr().expect("bound").port(), PORT);
    // Its own port of that number is another network's.
    assert!(std::net::TcpListener::bind(("127.0.0.1", PORT)).is_ok(), "nothing of it is outside");
    listener.set_nonblocking(false).expect("waits");
    let (mut connection, peer) = listener.accept().expect("the program connects");
    assert!(peer.ip().is_loopback());
    std::io::Write::write_all(&mut connection, b"from outside\n").expect("sent");
    let (text, code) = running.finish();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("from outside\n"), "{text}");
    let others = text.lines().skip(2).filter(|line| !line.contains(":0C38"));
    assert_eq!(others.count(), 0, "{text}");
}
