//! The process that forks launchers: its end touches no plugin, and the next start has another.

mod support;

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{World, alive};

/// Children of this process that are zygotes.
fn zygotes() -> Vec<u32> {
    let this = std::process::id();
    let threads = std::fs::read_dir(format!("/proc/{this}/task")).expect("readable").flatten();
    let lists =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    let zygote = |pid: &u32| {
        // The first process of a jail has the same command line and another pid namespace.
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let own = std::fs::read_link("/proc/self/ns/pid").ok();
        line.contains("__launch")
            && std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == own
            && alive(*pid)
    };
    children.into_iter().filter(zygote).collect()
}

#[tokio::test]
async fn kill_nine_of_the_zygote_touches_no_plugin_and_another_takes_its_place() {
    let mut world = World::new().await;
    let first = world.load("first", &[]).await.expect("loads").pid.expect("runs");
    let instance = world.ready().await.instance;
    let [zygote] = zygotes()[..] else { panic!("one zygote: {:?}", zygotes()) };
    let pid = Pid::from_raw(zygote as i32).expect("a pid");
    kill_process(pid, Signal::KILL).expect("killed");
    let begun = Instant::now();
    while alive(zygote) {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is gone");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The plugin goes on and answers.
    assert!(alive(first));
    assert_eq!(world.see(instance).await["environment"]["BH_PLUGIN_NAME"], "first");
    // The next start makes another zygote, and its plugin is a child of the host as well.
    let second = world.load("second", &[]).await.expect("loads").pid.expect("runs");
    assert!(alive(first) && alive(second));
    let [another] = zygotes()[..] else { panic!("one zygote: {:?}", zygotes()) };
    assert_ne!(another, zygote);
    world.host.unload("first").await.expect("unloads");
    assert!(!alive(first) && alive(second));
    world.host.shutdown().await;
    assert!(!alive(second));
}
