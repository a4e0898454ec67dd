//! Loading and unloading, again and again, leaves the host as it was. Alone in its process, so
//! that nothing else opens or closes descriptors meanwhile.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use blackhole_plugin_host::{Command, Host, HostConfig, LoadRequest, Source};
use support::{Door, Memory, probe_program};

fn count(path: &str) -> usize {
    std::fs::read_dir(path).expect("readable").count()
}

#[tokio::test]
async fn thirty_loads_and_unloads_leave_descriptors_threads_and_processes_as_they_were() {
    let program = probe_program();
    let directory = tempfile::tempdir().expect("made");
    let mut config = HostConfig::new(directory.path().join("run"), directory.path().join("data"));
    config.launcher = vec![program.clone().into(), "__launch".into()];
    let (host, mut events) =
        Host::start(config, Arc::new(Memory::default()), Arc::new(Door)).await.expect("starts");
    let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut starts = Vec::new();
    let mut stops = Vec::new();
    let mut before = None;
    for cycle in 0..32 {
        let argv = vec![program.display().to_string()];
        let source = Source::Exec(Command { argv, ..Command::default() });
        let begun = Instant::now();
        let request = LoadRequest { wait: true, ..LoadRequest::new(source) };
        host.load(request).await.expect("loads");
        starts.push(begun.elapsed());
        let begun = Instant::now();
        host.unload("probe").await.expect("unloads");
        stops.push(begun.elapsed());
        // The first cycles start threads that stay.
        if cycle == 1 {
            before = Some((count("/proc/self/fd"), count("/proc/self/task")));
        }
    }
    starts.sort();
    stops.sort();
    println!(
        "load to ready: median {:?}, worst {:?}; unload: median {:?}, worst {:?}",
        starts[16], starts[31], stops[16], stops[31]
    );
    let (descriptors, threads) = before.expect("taken");
    assert!(count("/proc/self/fd") <= descriptors + 1, "descriptors leak");
    assert!(count("/proc/self/task") <= threads + 2, "threads leak");
    // Reaping is the spawner's work, moments later.
    let begun = Instant::now();
    let this = std::process::id();
    let children = || -> usize {
        let threads = std::fs::read_dir(format!("/proc/{this}/task")).expect("readable").flatten();
        let lists = threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        lists.map(|list| list.split_whitespace().count()).sum()
    };
    let until = async |left: usize| {
        while children() > left {
            assert!(begun.elapsed() < Duration::from_secs(5), "processes are left unreaped");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // The zygote stays as long as the host.
    until(1).await;
    host.shutdown().await;
    drop(host);
    until(0).await;
    drain.abort();
}
