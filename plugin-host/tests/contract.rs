//! The optional `Lifecycle` contract, on real processes: what is asked, when, and what comes of it.

mod support;

use std::time::{Duration, Instant};

use blackhole_plugin_host::{Command, LoadRequest, Overrides, Parts, PluginStatus, Source};
use serde_json::{Value, json};
use support::{PATIENCE, World, call, empty, probe_program};

/// Between two samples: short enough for a test.
const SAMPLES: Duration = Duration::from_millis(20);

const SCRIPT: &str = "#!/bin/sh\nexec PROBE --lifecycle\n";

impl World {
    /// One whose samples come often, and whose events are read.
    async fn quick(change: impl FnOnce(&mut blackhole_plugin_host::HostConfig)) -> Self {
        let mut world = Self::with(|config| {
            config.stats_interval = SAMPLES;
            change(config);
        })
        .await;
        let (_, none) = tokio::sync::mpsc::channel(1);
        let mut events = std::mem::replace(&mut world.events, none);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        world
    }

    /// Waits until what is shown of the plugin is as it should be.
    async fn until(&self, what: &str, right: impl Fn(&PluginStatus) -> bool) -> PluginStatus {
        let begun = Instant::now();
        loop {
            let status = self.host.info("probe").expect("known");
            if right(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {status:#?}");
            tokio::time::sleep(SAMPLES / 4).await;
        }
    }

    /// Waits until its log has a line with these words.
    async fn until_said(&self, words: &str) {
        self.until(words, |_| self.said().iter().any(|line| line.contains(words))).await;
    }

    fn said(&self) -> Vec<String> {
        let logs = self.host.logs("probe").expect("known");
        logs.tail(0).iter().map(|record| record.message.clone()).collect()
    }
}

fn figure(status: &PluginStatus, name: &str) -> Option<u32> {
    let found = status.metrics.iter().find(|metric| metric.name == name);
    found.map(|metric| metric.value as u32)
}

fn parts(of_probe: Value) -> Parts {
    let Value::Object(part) = of_probe else { panic!("a map") };
    Parts::from([("probe".to_owned(), part)])
}

#[tokio::test]
async fn a_plugin_with_the_contract_is_described_configured_counted_and_drained() {
    let with = |part: Value| {
        let argv = vec![probe_program().display().to_string(), "--lifecycle".into()];
        let source = Source::Exec(Command { argv, ..Command::default() });
        LoadRequest {
            name: Some("probe".into()),
            wait: true,
            overrides: Overrides { part: Some(part), ..Overrides::default() },
            ..LoadRequest::new(source)
        }
    };
    let world = World::quick(|_| {}).await;
    let refused = world.host.load(with(json!({"refuse": true}))).await;
    let text = refused.expect_err("it says no").to_string();
    assert!(text.contains("configuration: it refuses its part: refuse is true"), "{text}");

    let part = json!({"depth": 3});
    let status = world.host.load(with(part.clone())).await.expect("loads");
    let described = status.described.expect("it has the contract");
    assert_eq!(described.description, "A test double");
    assert_eq!(described.contradictions, [""; 0], "a command line has no manifest");
    assert_eq!(status.version, "3.2.1", "nor another version");
    let counted = world.until("configured", |it| figure(it, "configured") == Some(1)).await;
    assert_eq!((counted.metrics.len(), counted.figures_refused), (2, 1));
    world.until_said("1 of its figures cannot be shown; the first: \"No Name\"").await;

    // The same again is no change; another is handed on while it runs.
    world.host.configure("probe", part).expect("known");
    world.host.configure("probe", json!({"depth": 4})).expect("known");
    world.until("configured anew", |it| figure(it, "configured") == Some(2)).await;
    world.host.configure("probe", json!({"refuse": true})).expect("known");
    world.until_said("it refuses its changed configuration: refuse is true").await;
    assert!(world.host.configure("nobody", Value::Null).is_err());

    let logs = world.host.logs("probe").expect("known");
    world.host.shutdown().await;
    let said: Vec<String> = logs.tail(0).iter().map(|record| record.message.clone()).collect();
    assert!(said.iter().any(|line| line == r#"configured with {"depth":4}"#), "{said:#?}");
    assert!(said.iter().any(|line| line == "draining within 2000 ms"), "{said:#?}");
}

#[tokio::test]
async fn what_it_says_beyond_its_manifest_is_told_and_grants_nothing() {
    let world = World::quick(|_| {}).await;
    let manifest = "name: probe\nversion: 1.0.0\ncapabilities: [waiting]";
    let status = world.load_manifest(manifest, SCRIPT).await.expect("loads");
    assert_eq!(status.version, "1.0.0", "its manifest counts");
    let told = status.described.expect("described").contradictions;
    for (text, words) in told.iter().zip(["it says 3.2.1", "can do testing", "depends on nobody"]) {
        assert!(text.contains(words), "{told:#?}");
        assert!(status.warnings.contains(text), "{:#?}", status.warnings);
        assert!(world.said().contains(text), "{:#?}", world.said());
    }
    assert_eq!(told.len(), 3, "{told:#?}");
    world.host.shutdown().await;
}

#[tokio::test]
async fn the_manifests_configuration_lies_under_the_operators_also_when_that_changes() {
    let world = World::quick(|config| config.parts = parts(json!({"mode": "quick"}))).await;
    let manifest = "name: probe\nversion: 3.2.1\nconfig: { depth: 1, mode: slow }";
    world.load_manifest(manifest, SCRIPT).await.expect("loads");
    world.until_said(r#"configured with {"depth":1,"mode":"quick"}"#).await;
    world.host.configure_all(parts(json!({"depth": 2})));
    world.until_said(r#"configured with {"depth":2,"mode":"slow"}"#).await;
    world.host.configure_all(Parts::new());
    world.until_said(r#"configured with {"depth":1,"mode":"slow"}"#).await;
    // It is what the next start is told as well.
    world.host.configure_all(parts(json!({"refuse": true})));
    let refused = world.host.restart("probe").await.expect_err("it says no").to_string();
    assert!(refused.contains("configuration: it refuses its part"), "{refused}");
    world.host.configure_all(Parts::new());
    world.host.restart("probe").await.expect("it takes the manifest's");
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_does_nothing_is_not_asked_for_figures_and_one_that_was_called_is() {
    let world = World::quick(|config| config.health.interval = SAMPLES).await;
    let ready = world.load("probe", &["--lifecycle"]).await.expect("loads");
    world.until("asked", |it| figure(it, "asked").is_some()).await;
    // It settles: nothing but the host's own questions, which do not count, one after the other.
    let mut left_alone = false;
    for _ in 0..20 {
        let asked = figure(&world.host.info("probe").expect("known"), "asked");
        tokio::time::sleep(SAMPLES * 15).await;
        left_alone = figure(&world.host.info("probe").expect("known"), "asked") == asked;
        if left_alone {
            break;
        }
    }
    assert!(left_alone, "fifteen samples, and as many probes of its health");
    let asked = figure(&world.host.info("probe").expect("known"), "asked");
    let channel = world.reach(ready.instance.expect("ready")).await.expect("ready");
    channel.invoke(call("Echo", empty(), None)).await.expect("answers");
    world.until("asked again", |it| figure(it, "asked") > asked).await;
    world.host.shutdown().await;
}

#[tokio::test]
async fn the_contract_is_offered_method_by_method() {
    let world = World::quick(|config| config.parts = parts(json!({"depth": 5}))).await;
    let status = world.load("probe", &["--lifecycle", "--mute"]).await.expect("loads");
    assert_eq!((status.described, status.version.as_str()), (None, "0.0.0"));
    world.until_said(r#"configured with {"depth":5}"#).await;
    world.until("counted", |it| figure(it, "configured") == Some(1)).await;
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_configuration_that_nobody_takes_is_told() {
    let world = World::quick(|config| config.parts = parts(json!({"depth": 5}))).await;
    let status = world.load("probe", &[]).await.expect("loads");
    let told = "there is a configuration for it, and it takes none";
    assert!(status.warnings.iter().any(|text| text == told), "{:#?}", status.warnings);
    world.host.shutdown().await;
}

#[tokio::test]
async fn whoever_never_has_drained_is_ended_all_the_same() {
    let grace = Duration::from_millis(400);
    let world = World::quick(|config| config.stop_grace = grace).await;
    world.load("probe", &["--lifecycle", "--stuck"]).await.expect("loads");
    let logs = world.host.logs("probe").expect("known");
    let begun = Instant::now();
    world.host.unload("probe").await.expect("unloads");
    assert!(begun.elapsed() >= grace / 2, "it had its time");
    let said: Vec<String> = logs.tail(0).iter().map(|record| record.message.clone()).collect();
    assert!(said.iter().any(|line| line == "draining within 200 ms"), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("it ended as asked")), "{said:#?}");
}
