//! Starting: what is refused, how it is said, and that nothing is left of it.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use testnet::{
    Cluster, Must, Node, NodeSetup,
    cluster::World,
    residue::{Residue, files},
    until,
};

/// Refusals come at once; this is for a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

/// Starts `setup` and checks that it gives up with `code`, says all of `words`, and leaves no
/// process, socket or lock behind.
async fn refuses(setup: &NodeSetup, code: i32, words: &[&str]) {
    let (status, said) = setup.refused(REFUSED_WITHIN).await.must();
    assert_eq!(status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    let residue = Residue::of(&setup.dir);
    assert!(residue.is_empty(), "{residue}");
}

/// A peer that has run once in `world` and was stopped.
async fn stopped_node(world: &World) -> Node {
    let node = NodeSetup::peer(world.path(), "t-start", "n").start().await.must();
    assert!(node.stop().await.must().success());
    node
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_the_port_and_what_to_do() {
    let world = World::new().must();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for (place, flag) in ["--grpc", "--http", "--metrics"].into_iter().enumerate() {
        let mut setup = NodeSetup::peer(world.path(), "t-start", &format!("n{place}"));
        setup.ports[place].clone_from(&address);
        refuses(&setup, 1, &[&address, flag, "another"]).await;
    }
}

#[tokio::test]
async fn a_mesh_port_in_use_is_refused_for_tcp_and_quic() {
    let world = World::new().must();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let tcp = format!("/ip4/127.0.0.1/tcp/{}", tcp.local_addr().expect("bound").port());
    let quic = format!("/ip4/127.0.0.1/udp/{}/quic-v1", udp.local_addr().expect("bound").port());
    for (name, address) in [("t", tcp), ("q", quic)] {
        let mut setup = NodeSetup::peer(world.path(), "t-start", name);
        setup.listen = vec![address.clone()];
        refuses(&setup, 1, &[&address]).await;
    }
    drop(udp);
}

#[tokio::test]
async fn two_listeners_on_one_port_are_refused_naming_both() {
    let world = World::new().must();
    let mut setup = NodeSetup::peer(world.path(), "t-start", "n");
    setup.ports = ["127.0.0.1:39999".into(), "127.0.0.1:0".into(), "127.0.0.1:39999".into()];
    refuses(&setup, 2, &["--grpc", "--metrics", "39999"]).await;
    assert!(!setup.data_dir().exists(), "refused before anything was created");
}

#[tokio::test]
async fn a_bad_multiaddr_is_refused_with_what_is_expected() {
    let world = World::new().must();
    for flag in ["--listen", "--bootstrap", "--external"] {
        let setup = NodeSetup::peer(world.path(), "t-start", "n").with([flag, "127.0.0.1:4001"]);
        refuses(&setup, 2, &["127.0.0.1:4001", flag, "multiaddr"]).await;
        assert!(!setup.data_dir().exists(), "refused before anything was created");
    }
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_refused() {
    let world = World::new().must();
    let setup = NodeSetup::peer(world.path(), "t-start", "n");
    fs::create_dir_all(&setup.dir).expect("created");
    fs::write(setup.data_dir(), "not a directory").expect("written");
    let path = setup.data_dir().display().to_string();
    refuses(&setup, 1, &[&path, "--data-dir"]).await;
    assert_eq!(fs::read(setup.data_dir()).expect("still there"), b"not a directory");
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_with_its_holder() {
    let world = World::new().must();
    let node = NodeSetup::peer(world.path(), "t-start", "n").start().await.must();
    let mut second = node.setup().clone();
    second.name = "second".into();
    let (status, said) = second.refused(REFUSED_WITHIN).await.must();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&node.process().pid().to_string()), "{said}");
    // The one that was there has lost nothing.
    assert_eq!(node.status().await.must().peer_id, node.peer_id());
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_what_to_do_and_not_touched() {
    let world = World::new().must();
    let node = stopped_node(&world).await;
    let store = files(&node.setup().data_dir());
    let current = store.iter().find(|path| path.ends_with("CURRENT")).expect("a RocksDB");
    fs::write(current, "MANIFEST-does-not-exist\n").expect("damaged");
    let before = store.len();
    let dir = current.parent().expect("in a directory").display().to_string();
    refuses(node.setup(), 1, &[&dir]).await;
    assert!(files(&node.setup().data_dir()).len() + 2 >= before, "nothing was thrown away");
    assert!(current.exists());
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let world = World::new().must();
    let mut node = stopped_node(&world).await;
    let key = node.setup().data_dir().join("identity.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("loosened");
    let path = key.display().to_string();
    refuses(node.setup(), 1, &[&path, "chmod 600"]).await;
    assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o644);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mended");
    let id = node.peer_id().to_owned();
    node.restart().await.must();
    assert_eq!(node.peer_id(), id);
}

#[tokio::test]
async fn a_damaged_key_is_refused_and_never_replaced() {
    let world = World::new().must();
    let node = stopped_node(&world).await;
    let key = node.setup().data_dir().join("identity.key");
    let whole = fs::read(&key).expect("a key");
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    for damaged in [&whole[..30], &flipped, b""] {
        fs::write(&key, damaged).expect("damaged");
        refuses(node.setup(), 1, &[&key.display().to_string()]).await;
        assert_eq!(fs::read(&key).expect("there"), damaged, "left as it was found");
    }
}

#[tokio::test]
async fn a_socket_path_that_is_too_long_is_refused_with_the_limit() {
    let world = World::new().must();
    let long = "a-directory-with-a-very-long-name".repeat(4);
    let setup = NodeSetup::peer(&world.path().join(long), "t-start", "n");
    refuses(&setup, 1, &["107", "--run-dir"]).await;
}

#[tokio::test]
async fn an_unreachable_bootstrap_is_told_and_tried_until_it_is_there() {
    let mut cluster = Cluster::empty().await.must();
    let boot = cluster.bootstrap().must();
    let (mut setup, listen) = (boot.setup().clone(), boot.ready().listen.clone());
    let lone = cluster.setup("lone");
    cluster.kill_bootstrap().await.must();

    // It serves although it is alone, and says whom it misses, more than once.
    let lone = lone.start().await.must();
    let mut mark = 0;
    for _ in 0..2 {
        let told = lone.event_after(mark, "bootstrap_unreachable", REFUSED_WITHIN).await.must();
        let address = told["address"].as_str().expect("an address");
        assert!(listen.iter().any(|known| known.contains(address)), "{told}");
        assert!(told["cause"].as_str().is_some_and(|cause| !cause.is_empty()), "{told}");
        mark = lone.process().output().mark();
    }
    assert!(!lone.status().await.must().joined);

    // The same bootstrap node, on the same ports.
    setup.listen = listen
        .iter()
        .map(|address| address.split("/p2p/").next().unwrap_or_default().to_owned())
        .collect();
    let boot = setup.start().await.must();
    lone.joined(Duration::from_mins(1)).await.must();
    lone.event("joined", REFUSED_WITHIN).await.must();
    drop(boot);
}

#[tokio::test]
async fn the_same_data_directory_is_the_same_peer_and_a_fresh_one_another() {
    let world = World::new().must();
    let mut node = stopped_node(&world).await;
    let id = node.peer_id().to_owned();
    node.restart().await.must();
    assert_eq!(node.peer_id(), id);
    let other = NodeSetup::peer(world.path(), "t-start", "other").start().await.must();
    assert_ne!(other.peer_id(), id);
    let key = node.setup().data_dir().join("identity.key");
    assert_eq!(fs::metadata(key).expect("there").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn peers_of_different_networks_do_not_meet() {
    let cluster = Cluster::start(&["a"]).await.must();
    let a = cluster.peer("a").must();
    let stranger = NodeSetup::peer(cluster.dir(), "t-another", "x");
    let stranger = stranger.through(a.ready().listen.clone()).start().await.must();
    // Both names are told: this is how a typing mistake is found.
    let names = |line: &testnet::output::Line| {
        let both = line.text.contains("t-another") && line.text.contains(cluster.network());
        both.then_some(())
    };
    let output = stranger.process().output();
    output.find(1, REFUSED_WITHIN, names).await.must();
    until("the stranger is not among a's peers", REFUSED_WITHIN, || async {
        let mut admin = a.admin().map_err(|error| error.to_string())?;
        let peers = admin.peers(protocol::proto::admin::PeersRequest {}).await;
        let peers = peers.map_err(|error| error.to_string())?.into_inner().peers;
        if peers.iter().any(|peer| peer.peer_id == stranger.peer_id()) {
            Err(format!("{peers:?}"))
        } else {
            Ok(())
        }
    })
    .await
    .must();
    assert!(!stranger.status().await.must().joined);
}
