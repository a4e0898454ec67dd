//! Plugins that listen with TLS, each under the certificate that the host issued for its run.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use blackhole_plugin_host::{NamespacePolicy, PluginStatus};
use protocol::id::InstanceId;
use serde_json::{Value, json};

use crate::support::{World, body, call, message, read};

const FILES: [&str; 3] = ["cert.pem", "key.pem", "ca.pem"];

fn files(world: &World, key: &str) -> PathBuf {
    world.config.run_dir.join("plugins").join(key).join("tls")
}

/// What the run was told when it tried `wish`.
async fn tries(world: &World, instance: InstanceId, wish: Value) -> Value {
    let wish = message(wish.to_string().as_bytes());
    let channel = world.reach(instance).await.expect("ready");
    let reply = channel.invoke(call("Try", body(wish), None)).await.expect("answers");
    serde_json::from_slice(&read(reply).await.messages[0]).expect("JSON")
}

async fn reads(world: &World, instance: InstanceId, path: &Path) -> Result<String, String> {
    let answer = tries(world, instance, json!({"how": "read", "path": path})).await;
    let text = |key: &str| answer[key].as_str().map(str::to_owned);
    text("said").ok_or_else(|| text("error").unwrap_or_default())
}

async fn load(world: &World, name: &str) -> PluginStatus {
    world.load_listening(name, "tls:50051", &["--tls", "50051"]).await.expect("loads")
}

#[tokio::test]
async fn a_plugin_with_tls_answers_under_its_own_certificate_and_takes_only_its_host() {
    let mut world = World::new().await;
    let status = load(&world, "one").await;
    let shown = status.certificate.expect("it has one");
    assert_eq!(shown.fingerprint.split(':').count(), 32, "{}", shown.fingerprint);
    let left = shown.expires.duration_since(SystemTime::now()).expect("to come");
    assert!(left > Duration::from_secs(364 * 24 * 60 * 60));
    let one = world.ready().await.instance;
    let seen = world.see(one).await;
    for (variable, name) in
        [("BH_TLS_CERT", FILES[0]), ("BH_TLS_KEY", FILES[1]), ("BH_TLS_CA", FILES[2])]
    {
        let inside = format!("/run/plugin/tls/{name}");
        assert_eq!(seen["environment"][variable], inside.as_str());
        let outside = std::fs::read_to_string(files(&world, "one").join(name)).expect("there");
        assert_eq!(reads(&world, one, Path::new(&inside)).await.expect("its own"), outside);
        let write = json!({"how": "write", "path": inside});
        assert!(tries(&world, one, write).await["error"].is_string());
    }
    assert_eq!(seen["environment"]["BH_PLUGIN_PORT"], "50051");
    // The same port, another certificate.
    let two = load(&world, "two").await.certificate.expect("it has one");
    assert_ne!(two.fingerprint, shown.fingerprint);
    let plain = world.load("plain", &[]).await.expect("loads");
    assert!(plain.certificate.is_none() && !files(&world, "plain").exists());
    world.host.shutdown().await;
}

#[tokio::test]
async fn a_new_run_has_a_new_certificate_and_an_unloaded_plugin_leaves_none() {
    let world = World::new().await;
    let first = load(&world, "one").await.certificate.expect("it has one");
    let read = |name: &str| std::fs::read(files(&world, "one").join(name)).expect("there");
    let (key, authority) = (read(FILES[1]), read(FILES[2]));
    let again = world.host.restart("one").await.expect("restarts");
    assert_ne!(again.certificate.expect("it has one").fingerprint, first.fingerprint);
    assert_ne!(read(FILES[1]), key);
    assert_eq!(read(FILES[2]), authority);
    world.host.unload("one").await.expect("unloads");
    assert!(!files(&world, "one").exists());
    let left = world.config.data_dir.join("plugin-ca.key");
    let mode = std::fs::metadata(left).expect("the node's own").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    world.host.shutdown().await;
}

#[tokio::test]
async fn no_other_plugin_can_read_a_plugins_key_nor_anyone_that_of_the_authority() {
    for namespaces in [NamespacePolicy::Required, NamespacePolicy::Off] {
        let mut world = World::with(|config| config.namespaces = namespaces).await;
        // Without namespaces the port is the machine's.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
        let port = free.local_addr().expect("bound").port().to_string();
        drop(free);
        let listen = format!("tls:{port}");
        let loaded = world.load_listening("one", &listen, &["--tls", &port]).await;
        loaded.expect("loads");
        let one = world.ready().await.instance;
        world.load("other", &[]).await.expect("loads");
        let other = world.ready().await.instance;
        let key = files(&world, "one").join(FILES[1]);
        let metadata = std::fs::metadata(&key).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o400);
        let own = rustix::process::geteuid().as_raw();
        if namespaces == NamespacePolicy::Required && own == 0 {
            assert!(metadata.uid() == 0 || metadata.uid() >= 2_000_000_000, "its own id");
        }
        reads(&world, other, &key).await.expect_err("another's");
        let authority = world.config.data_dir.join("plugin-ca.key");
        assert!(authority.is_file());
        for who in [one, other] {
            reads(&world, who, &authority).await.expect_err("the node's");
        }
        world.host.shutdown().await;
    }
}

#[tokio::test]
async fn plain_text_or_a_strange_certificate_on_a_tls_port_is_never_ready_and_the_reason_says_so() {
    let world = World::with(|config| config.start_timeout = Duration::from_millis(1_500)).await;
    for (arguments, reason) in [
        (&["--tcp", "50051"][..], "says that it listens with TLS, and it"),
        (&["--tls", "50051", "--strange"], "not the one that the node issued"),
    ] {
        let refused = world.load_listening("one", "tls:50051", arguments).await;
        let told = refused.expect_err("not ready").to_string();
        assert!(told.contains(reason), "{told}");
        let status = world.host.info("one");
        assert!(status.is_err() || status.expect("shown").pid.is_none());
        let _ = world.host.unload("one").await;
    }
    world.host.shutdown().await;
}
