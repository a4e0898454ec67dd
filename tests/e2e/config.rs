//! The configuration file: strict, and all mistakes at once.

use std::{fs, time::Duration};

use testnet::{Must, NodeSetup, client::Cli, cluster::World};

const REFUSED_WITHIN: Duration = Duration::from_secs(30);

const MISTAKES: &str = "\
node:
  nam: typo
network:
  listenAddrs: ['127.0.0.1:4001']
api:
  httpPort: 8080
  grpcPort: eight
monitoring:
  metricsPort: 8080
";

/// What must be said about [`MISTAKES`]: line, key and reason of each.
const COMPLAINTS: [&str; 4] = [
    "line 2: node.nam: unknown key",
    "line 4: network.listenAddrs",
    "line 7: api.grpcPort",
    "line 9: monitoring.metricsPort: port 8080",
];

#[tokio::test]
async fn every_mistake_is_told_at_once_with_line_key_and_reason() {
    let world = World::new().must();
    let file = world.path().join("blackhole.yaml");
    fs::write(&file, MISTAKES).expect("written");
    let path = file.to_str().expect("UTF-8");

    let setup = NodeSetup::peer(world.path(), "t-config", "n").with(["--config", path]);
    let (status, said) = setup.refused(REFUSED_WITHIN).await.must();
    assert_eq!(status.code(), Some(2), "{said}");
    for complaint in COMPLAINTS {
        assert!(said.contains(complaint), "`{complaint}` is not in:\n{said}");
    }
    assert!(!setup.data_dir().exists(), "refused before anything was created");

    let checked = Cli::alone().must().run(["config", "check", path]).await.must();
    assert_eq!(checked.code, Some(2), "{}", checked.report());
    for complaint in COMPLAINTS {
        let told = checked.out.contains(complaint) || checked.err.contains(complaint);
        assert!(told, "`{complaint}` is not in:\n{}", checked.report());
    }
}

#[tokio::test]
async fn a_file_is_followed_and_flags_win_over_it() {
    let world = World::new().must();
    let file = world.path().join("blackhole.yaml");
    let text =
        "node:\n  name: of-the-file\n  labels: {region: us-east}\nnetwork:\n  name: t-file\n";
    fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let checked = Cli::alone().must().run(["config", "check", path]).await.must();
    checked.success().must();

    // `--name` and `--network` are given by the setup as well, and win.
    let setup = NodeSetup::peer(world.path(), "t-flag", "of-the-flag").with(["--config", path]);
    let node = setup.start().await.must();
    let status = node.status().await.must();
    assert_eq!(status.name, "of-the-flag");
    assert_eq!(status.network, "t-flag");
    assert_eq!(status.labels.get("region").map(String::as_str), Some("us-east"));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_refused_by_name() {
    let world = World::new().must();
    let path = world.path().join("nowhere.yaml");
    let path = path.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-config", "n").with(["--config", path]);
    let (status, said) = setup.refused(REFUSED_WITHIN).await.must();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains(path), "{said}");
}

#[tokio::test]
async fn init_writes_what_start_runs() {
    let world = World::new().must();
    let data = world.path().join("d");
    let data = data.to_str().expect("UTF-8");
    let cli = Cli::alone().must();
    cli.run(["--data-dir", data, "init", "--topology", "local"]).await.must().success().must();
    let file = world.path().join("d").join("blackhole.yaml");
    let path = file.to_str().expect("UTF-8");
    cli.run(["config", "check", path]).await.must().success().must();
    // A second time it changes nothing.
    let before = fs::read(&file).expect("written");
    let key = fs::read(world.path().join("d").join("identity.key")).expect("a key");
    let again = cli.run(["--data-dir", data, "init"]).await.must();
    assert_eq!(fs::read(&file).expect("there"), before, "{}", again.report());
    let kept = fs::read(world.path().join("d").join("identity.key")).expect("a key");
    assert!(kept == key, "the key is the same");
}
