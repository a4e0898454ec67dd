//! Plugins that misbehave in every way that is known by name. After each: the node and its other
//! plugin are well, what went wrong is said where the operator looks, and nothing is left of the
//! culprit once it is unloaded.

use std::time::Duration;

use plugins::demo::{MisbehaveRequest, misfit_client::MisfitClient};
use protocol::proto::admin::{self, plugin_load_request::From};
use testnet::{Must, client::Caller, packages, residue, residue::Seen, until};

use crate::victim::Victim;

/// How long a change of a plugin's state may take to be told, on a machine that is overloaded on
/// purpose.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// How long one trick may take.
const TRICK_WITHIN: Duration = Duration::from_secs(60);

impl Victim {
    /// Loads a misfit beside the counter.
    async fn misfit(&self, name: &str, tricks: &[&str], lines: &str) -> anyhow::Result<()> {
        let dir = packages::misfit(self.node.setup().dir.as_path(), name, tricks, lines)?;
        self.node.load(&dir).await.map(drop)
    }

    /// Asks the only misfit for a trick and tells what it said, or that it said nothing any more.
    async fn trick(&self, trick: &str, amount: u64) -> String {
        let mut request = tonic::Request::new(MisbehaveRequest {
            trick: trick.into(),
            amount,
            words: Vec::new(),
        });
        request.set_timeout(TRICK_WITHIN);
        let channel = Caller::of(&self.node.ready().grpc).must().channel();
        match MisfitClient::new(channel).misbehave(request).await {
            Ok(answer) => answer.into_inner().told,
            Err(status) => format!("no answer: {status}"),
        }
    }

    /// The plugin once it satisfies `wanted`.
    async fn told(&self, name: &str, wanted: impl Fn(&admin::Plugin) -> bool) -> admin::Plugin {
        self.node.plugin_until(name, TOLD_WITHIN, wanted).await.must()
    }

    /// Processes of the plugin `name`: whatever names its directory.
    fn processes(&self, name: &str) -> Vec<Seen> {
        residue::processes(&self.node.setup().dir.join(name))
    }

    /// Unloads it: no process of it is left, nor a socket, a directory or a control group of its
    /// own.
    async fn rid_of(&self, name: &str) {
        self.node.unload(name).await.must();
        self.nothing_is_left_of(name).await;
    }

    async fn nothing_is_left_of(&self, name: &str) {
        let counter = self.node.plugin("counter").await.must().pid;
        until(&format!("nothing is left of {name}"), TOLD_WITHIN, || async {
            let run = self.node.setup().run_dir().join("plugins").join(name);
            let (left, groups) = (self.processes(name), residue::control_groups(counter, name));
            if left.is_empty() && groups.is_empty() && !run.exists() {
                Ok(())
            } else {
                Err(format!("{left:?}, {groups:?}, {}: {}", run.display(), run.exists()))
            }
        })
        .await
        .must();
    }
}

#[tokio::test]
async fn a_fork_bomb_ends_at_its_bound() {
    let victim = Victim::start().await;
    victim.misfit("forks", &[], "resources: { processes: 40 }").await.must();
    let told = victim.trick("fork", 100).await;
    assert!(told.contains("after ") && told.contains("temporarily unavailable"), "{told}");
    println!("fork bomb: {told}");
    victim.is_well("a fork bomb").await;
    assert!(victim.processes("forks").len() <= 42, "{:?}", victim.processes("forks"));
    victim.rid_of("forks").await;
}

#[tokio::test]
async fn who_takes_too_much_memory_ends_and_it_is_said() {
    let victim = Victim::start().await;
    victim
        .misfit("glutton", &[], "resources: { memory: 64 }\nrestart: { policy: never }")
        .await
        .must();
    println!("memory bomb: {}", victim.trick("eat-memory", 4_096).await);
    let plugin = victim.told("glutton", |plugin| plugin.reason.contains("OOM:")).await;
    println!("its status: {} ({})", plugin.state, plugin.reason);
    assert!(plugin.crashes >= 1, "{plugin:?}");
    victim.is_well_but_for("a memory bomb", "glutton").await;
    victim.rid_of("glutton").await;
}

#[tokio::test]
async fn a_leak_of_descriptors_ends_at_its_bound() {
    let victim = Victim::start().await;
    victim.misfit("leaks", &[], "resources: { max_files: 128 }").await.must();
    let told = victim.trick("leak-descriptors", 0).await;
    assert!(told.contains("Too many open files"), "{told}");
    println!("descriptor leak: {told}");
    victim.is_well("a leak of descriptors").await;
    victim.rid_of("leaks").await;
}

#[tokio::test]
async fn a_flood_of_log_lines_is_counted_and_not_kept() {
    let victim = Victim::start().await;
    victim.misfit("talker", &[], "").await.must();
    victim.trick("flood-logs", 0).await;
    victim.trick("long-line", 4 << 20).await;
    let plugin = victim.told("talker", |plugin| plugin.logs_lost > 100_000).await;
    println!("log flood: {} lines lost", plugin.logs_lost);
    // Where cores are few, it has none left to answer for its own health.
    victim.is_well_but_for("a flood of log lines", "talker").await;
    victim.rid_of("talker").await;
}

#[tokio::test]
async fn a_full_disk_is_the_plugins_alone() {
    let victim = Victim::start().await;
    victim.misfit("filler", &[], "").await.must();
    let told = victim.trick("fill-disk", 4_096).await;
    println!("disk fill: {told}");
    assert!(!told.contains("wrote 4096 MiB"), "{told}");
    victim.is_well("a full disk").await;
    victim.rid_of("filler").await;
}

/// Plugins that never answer: loading fails, says why, and leaves nothing.
#[tokio::test]
async fn who_never_becomes_ready_is_given_up_with_a_cause() {
    let victim = Victim::start().await;
    for trick in
        ["never-ready", "never-listen", "silent", "garbage", "crash-at-start", "fail-to-prepare"]
    {
        let lines = "start_timeout: 1s\nrestart: { policy: never }";
        let refused = victim.misfit(trick, &[trick], lines).await;
        let cause = format!("{:#}", refused.expect_err("it must not become ready"));
        println!("{trick}: {cause}");
        assert!(cause.contains(trick) && cause.len() > 40, "{cause}");
        victim.nothing_is_left_of(trick).await;
        victim.is_well_but_for(trick, trick).await;
        // Listed with its cause until the operator has seen it.
        if victim.node.plugin(trick).await.is_ok() {
            victim.node.unload(trick).await.must();
        }
    }
    victim.is_well("plugins that never became ready").await;
}

#[tokio::test]
async fn a_crash_loop_is_stopped_loudly() {
    let victim = Victim::start().await;
    let lines = "start_timeout: 10s\nrestart: { max_restarts: 3, window: 1m, backoff: 50ms }";
    victim.misfit("looper", &[], lines).await.must();
    let given_up =
        |plugin: &admin::Plugin| ["failed", "crash-loop"].contains(&plugin.state.as_str());
    let plugin = until("it is given up", TOLD_WITHIN, || async {
        // Where it is just being started again there is nobody to crash.
        victim.trick("crash", 0).await;
        let plugin = victim.node.plugin("looper").await.map_err(|error| error.to_string())?;
        if given_up(&plugin) { Ok(plugin) } else { Err(format!("{plugin:?}")) }
    })
    .await
    .must();
    println!("crash loop: {} after {} crashes: {}", plugin.state, plugin.crashes, plugin.reason);
    assert_eq!(plugin.crashes, 4, "{plugin:?}");
    assert!(!plugin.reason.is_empty(), "{plugin:?}");
    victim.is_well_but_for("a crash loop", "looper").await;
    victim.rid_of("looper").await;
}

/// Plugins that do not want to end: they are ended, and what they hid with them.
#[tokio::test]
async fn who_does_not_end_is_ended() {
    let victim = Victim::start().await;
    let stories: [(&str, &[&str], Option<&str>); 4] = [
        ("deaf", &["ignore-sigterm"], None),
        ("frozen", &[], Some("freeze")),
        ("hider", &["double-fork"], Some("double-fork")),
        ("breeder", &["fork=20"], None),
    ];
    for (name, tricks, trick) in stories {
        victim.misfit(name, tricks, "stop_grace: 500ms").await.must();
        if let Some(trick) = trick {
            // Whoever freezes does not answer: the call's own deadline would be waited for.
            let asked = victim.trick(trick, 0);
            let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
        }
        assert!(!victim.processes(name).is_empty(), "{name} must run");
        victim.rid_of(name).await;
        victim.is_well(name).await;
    }
}

#[tokio::test]
async fn a_plugin_that_speaks_like_a_launcher_is_not_believed() {
    let victim = Victim::start().await;
    victim.misfit("actor", &["write-on-handshake"], "").await.must();
    let plugin = victim.node.plugin("actor").await.must();
    assert!(!plugin.layers.iter().any(|layer| layer == "everything"), "{plugin:?}");
    assert_eq!((plugin.state.as_str(), plugin.crashes), ("running", 0), "{plugin:?}");
    victim.trick("write-on-handshake", 0).await;
    victim.is_well("a plugin that spoke out of turn").await;
    victim.rid_of("actor").await;
}

#[tokio::test]
async fn a_plugin_that_closes_its_socket_is_noticed_and_started_again() {
    let victim = Victim::start().await;
    let lines = "health: { interval: 200ms, timeout: 500ms, threshold: 2 }";
    victim.misfit("closer", &[], lines).await.must();
    let before = victim.node.plugin("closer").await.must();
    println!("closed socket: {}", victim.trick("close-socket", 0).await);
    let again = |plugin: &admin::Plugin| plugin.state == "running" && plugin.pid != before.pid;
    let after = victim.told("closer", again).await;
    assert!(after.restarts > before.restarts, "{after:?}");
    victim.is_well("a plugin that closed its socket").await;
    victim.rid_of("closer").await;
}

/// Culprits at once, of all kinds together, beside the one that behaves. `BH_MISFITS` says how
/// many; the benchmark `bench/src/host` tells what they cost it.
const AT_ONCE: u32 = 1_000;

#[tokio::test]
async fn a_thousand_culprits_at_once_leave_the_others_served() {
    let at_once = std::env::var("BH_MISFITS").ok().and_then(|count| count.parse().ok());
    let at_once: u32 = at_once.unwrap_or(AT_ONCE);
    let victim = Victim::with("plugins:\n  max: 2000\n").await;
    let kinds: [&[&str]; 8] = [
        &["never-ready"],
        &["silent"],
        &["never-listen"],
        &["leak-descriptors=500"],
        &["double-fork"],
        &["ignore-sigterm"],
        &["crash-after=3000"],
        &["flood-logs=20000"],
    ];
    let each = at_once / kinds.len() as u32;
    for (number, tricks) in kinds.iter().enumerate() {
        let lines = "start_timeout: 2m\nstop_grace: 200ms\nrestart: { policy: never }\n\
                     resources: { processes: 40 }";
        let name = format!("culprit{number}");
        let dir = packages::misfit(&victim.node.setup().dir, &name, tricks, lines).must();
        let from = Some(From::Path(dir.to_str().expect("UTF-8").to_owned()));
        let request = admin::PluginLoadRequest {
            from,
            instances: each,
            ..admin::PluginLoadRequest::default()
        };
        victim.node.admin().must().plugin_load(request).await.must();
    }
    // Each has a first process and the program; those that crash are gone by then.
    let wanted = (each * (kinds.len() as u32 - 1) * 2) as usize;
    let mut most = 0;
    until("as many culprits run as were asked for", Duration::from_secs(120), || {
        let now = victim.node.children().len();
        most = most.max(now);
        let seen = format!("{most} of {wanted} processes");
        async move { if most >= wanted { Ok(()) } else { Err(seen) } }
    })
    .await
    .must();
    // Every call is answered while they are at it.
    for _ in 0..200 {
        victim.answers().await;
    }
    // Some are ill and some given up, and that is said.
    victim.is_well_but_for("a thousand culprits", "culprit").await;
    println!("{most} processes at once");
    for number in 0..kinds.len() {
        victim.node.unload(&format!("culprit{number}")).await.must();
    }
    for number in 0..kinds.len() {
        victim.nothing_is_left_of(&format!("culprit{number}")).await;
    }
    victim.is_well("the end of a thousand culprits").await;
}
