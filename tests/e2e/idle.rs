//! What a node costs while it does nothing.

use std::{fs, time::Duration};

use testnet::{Cluster, Must, Node};

/// Resident memory of an idle peer.
const RESIDENT_BYTES_MAX: u64 = 60 * 1024 * 1024;

/// Part of one core that an idle peer uses.
const CPU_SHARE_MAX: f64 = 0.01;

/// How long a node is watched: 1 % of this is ten clock ticks, enough to tell.
const WATCHED: Duration = Duration::from_secs(10);

/// Clock ticks a second of `/proc/<pid>/stat`: 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

fn resident_bytes(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.process().pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

fn cpu_seconds(node: &Node) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.process().pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

#[tokio::test]
async fn an_idle_peer_is_small_and_quiet() {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    let a = cluster.peer("a").must();
    // Joining is not idling: routing tables are filled, meshes are grafted.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_seconds(a);
    tokio::time::sleep(WATCHED).await;
    let share = (cpu_seconds(a) - before) / WATCHED.as_secs_f64();
    let resident = resident_bytes(a);
    assert!(resident <= RESIDENT_BYTES_MAX, "{} MiB resident", resident >> 20);
    assert!(share <= CPU_SHARE_MAX, "{:.2} % of a core", share * 100.0);
}
