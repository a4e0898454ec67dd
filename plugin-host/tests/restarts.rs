//! Crashing and starting again, again and again, leaves the host as it was. Alone in its process,
//! so that nothing else opens or closes descriptors meanwhile.

mod support;

use std::time::{Duration, Instant};

use blackhole_plugin_host::HostConfig;
use protocol::manifest::Restart;
use support::{World, call, empty};

/// Enough to tell a leak of one per cycle from a runtime's own threads.
const CYCLES: usize = 60;

/// The runtime's threads for blocking work come with need and go when idle: how many there are
/// tells of the last seconds, not of what was left behind.
const BLOCKING_THREADS: usize = 8;

fn count(path: &str) -> usize {
    std::fs::read_dir(path).expect("readable").count()
}

#[tokio::test]
async fn sixty_crashes_leave_descriptors_and_threads_as_they_were() {
    // Its crashes are ours: however many of them are seen before it is told to start again, it is
    // not given up.
    let patient = |config: &mut HostConfig| {
        let most = 2 * CYCLES as u32;
        let window = Duration::from_hours(24);
        config.restart = Restart { max_restarts: most, window, ..Restart::default() };
    };
    let mut world = World::with(patient).await;
    world.load("probe", &[]).await.expect("loads");
    let (_, none) = tokio::sync::mpsc::channel(1);
    let mut events = std::mem::replace(&mut world.events, none);
    let reading = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut before = None;
    for cycle in 0..CYCLES {
        let status = world.host.info("probe").expect("known");
        let channel = world.reach(status.instance.expect("ready")).await.expect("ready");
        assert!(channel.invoke(call("Crash", empty(), None)).await.is_err());
        drop(channel);
        // Sooner than its own delay, which grows with every crash.
        world.host.restart("probe").await.expect("starts again");
        // The first cycles start threads that stay.
        if cycle == 9 {
            before = Some((count("/proc/self/fd"), count("/proc/self/task")));
        }
    }
    let (descriptors, threads) = before.expect("taken");
    let threads = threads + BLOCKING_THREADS;
    // The last run's predecessor may be closing its sockets still.
    let begun = Instant::now();
    while count("/proc/self/fd") > descriptors || count("/proc/self/task") > threads {
        let now = (count("/proc/self/fd"), count("/proc/self/task"));
        assert!(begun.elapsed() < Duration::from_secs(5), "{now:?}, before {before:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = world.host.info("probe").expect("known");
    assert_eq!(status.restarts, CYCLES as u32, "{status:?}");
    world.host.shutdown().await;
    reading.abort();
}
