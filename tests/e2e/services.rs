//! Built-in services as processes of their own: what they are told at their start, and where they
//! answer.

use std::{net::TcpListener, path::Path, process::Command, time::Duration};

use protocol::proto::identity::{ListRequest, identity_client::IdentityClient};
use testnet::{
    Must, NodeSetup, binaries,
    client::{Caller, run},
    cluster::World,
    process::{Process, Signal},
    until,
};

use crate::support::{KNOWN_WITHIN, timed};

/// A port of loopback that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

fn service(arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::find("bh-peer").must());
    command.args(["service", "identity"]).args(arguments).env_remove("BH_PLUGIN_SOCKET");
    command
}

async fn answers(caller: &Caller) -> Result<(), String> {
    let listed = IdentityClient::new(caller.channel()).list(timed(ListRequest {})).await;
    listed.map(drop).map_err(|status| status.to_string())
}

/// Whether a socket listens on `port` in the network of the process `pid`.
fn listens(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("of its network");
    // Addresses are hexadecimal, loopback in the machine's order of bytes; 0A is LISTEN.
    let entry = format!(":{port:04X} 00000000:0000 0A");
    table.lines().any(|line| line.contains(&entry))
}

#[tokio::test]
async fn a_service_is_told_its_port_and_its_socket_and_answers_on_both() {
    let world = World::new().must();
    let (file, port) = (world.path().join("n.yaml"), free_port());
    let text = format!("services:\n  identity:\n    enabled: true\n    port: {port}\n");
    std::fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-services", "n").with(["--config", path]);
    let node = setup.start().await.must();
    let running = |it: &protocol::proto::admin::Plugin| it.state == "running";
    let it = node.plugin_until("identity", KNOWN_WITHIN, running).await.must();
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", it.pid)).expect("runs");
    let told: Vec<&str> = command.trim_end_matches('\0').split('\0').skip(1).collect();
    let number = port.to_string();
    let socket = "/run/plugin/own/plugin.sock";
    assert_eq!(told, ["service", "identity", "--port", &number, "--socket", socket]);
    assert!(listens(it.pid, port), "in its own network");
    answers(&Caller::of(&format!("127.0.0.1:{port}")).must()).await.must();
    answers(&Caller::of(&node.ready().grpc).must()).await.must();
    assert!(node.stop().await.must().success());
}

#[tokio::test]
async fn a_service_by_hand_serves_the_same_on_its_port_and_its_socket() {
    let world = World::new().must();
    let (socket, port) = (world.path().join("s"), free_port());
    let arguments = ["--port", &port.to_string(), "--socket", socket.to_str().expect("UTF-8")];
    let process = Process::spawn("identity", service(&arguments), world.path()).must();
    for caller in [Caller::of(&format!("127.0.0.1:{port}")), Caller::of_socket(&socket)] {
        let caller = caller.must();
        until("it answers", KNOWN_WITHIN, || answers(&caller)).await.must();
    }
    process.signal(Signal::TERM).must();
    assert!(process.exit(Duration::from_secs(10)).await.must().success());
    assert!(!Path::new("/proc").join(process.pid().to_string()).join("exe").exists());
}

#[tokio::test]
async fn a_service_without_its_port_or_socket_ends_and_says_which() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let told = run(service(&["--port", &port])).await.must();
    assert_eq!(told.code, Some(1), "{}", told.report());
    assert!(told.failure().must().contains(&format!("cannot listen on 127.0.0.1:{port}")));
    let told = run(service(&["--socket", "/proc/nowhere/s"])).await.must();
    assert_eq!(told.code, Some(1), "{}", told.report());
    assert!(told.failure().must().contains("cannot listen on /proc/nowhere/s"));
    let told = run(service(&["--port", "0"])).await.must();
    assert_eq!(told.code, Some(2), "{}", told.report());
}
