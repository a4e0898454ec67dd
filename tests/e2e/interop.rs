//! The official interop tests of gRPC: grpc-go's server as a plugin on one peer, grpc-go's client
//! at another. Neither was changed, and neither knows of a mesh.
//!
//! Source: grpc/doc/interop-test-descriptions.md.

use testnet::{Cluster, Must, client::Outcome, foreign::Interop, node::Ready};

use crate::support::KNOWN_WITHIN;

/// Every case of the official client that needs no cloud.
const CASES: [&str; 18] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
];

/// Two peers, and `plugin` at `b`, known to `a`.
async fn pair_with(plugin: protocol::proto::admin::plugin_load_request::From) -> Cluster {
    let cluster = Cluster::start(&["a", "b"]).await.must();
    cluster.peer("b").must().load_from(plugin, "interop").await.must();
    cluster.all_see(Interop::SERVICE, &["b"], KNOWN_WITHIN).await.must();
    cluster
}

fn addresses(cluster: &Cluster) -> [&str; 2] {
    ["b", "a"].map(|name| cluster.peer(name).must().ready().grpc.as_str())
}

fn passed(case: &str, ended: &Outcome) {
    assert_eq!(ended.code, Some(0), "{case}: {}", ended.report());
}

/// Every case at `b` and at `a`, on the port that `port` picks.
async fn every_case_passes_at(port: fn(&Ready) -> &str) {
    let interop = Interop::ready().must();
    let cluster = pair_with(interop.server().must()).await;
    let mut failed = Vec::new();
    for name in ["b", "a"] {
        let address = port(cluster.peer(name).must().ready());
        for case in CASES {
            let ended = interop.case(address, case).await.must();
            if ended.code != Some(0) {
                failed.push(format!("{case} at {name}: {}", ended.report()));
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test]
async fn every_official_case_passes_beside_the_plugin_and_through_another_peer() {
    every_case_passes_at(|ready| &ready.grpc).await;
}

#[tokio::test]
async fn every_official_case_passes_on_the_port_for_http_too() {
    every_case_passes_at(|ready| &ready.http).await;
}

#[tokio::test]
async fn messages_that_the_programs_compress_pass_as_they_are() {
    let interop = Interop::ready().must();
    let cluster = pair_with(interop.server_aged(0).must()).await;
    for address in addresses(&cluster) {
        passed("compressed", &interop.further(address, "compressed").await.must());
    }
}

#[tokio::test]
async fn a_plugin_that_ends_its_connections_by_age_loses_no_call() {
    let interop = Interop::ready().must();
    // Shorter than the streams that the callers have: every connection is told to go in use.
    let cluster = pair_with(interop.server_aged(300).must()).await;
    let [near, far] = addresses(&cluster);
    let both = tokio::join!(interop.further(near, "steady"), interop.further(far, "steady"));
    passed("steady beside the plugin", &both.0.must());
    passed("steady through a peer", &both.1.must());
}

#[tokio::test]
async fn keep_alives_of_both_sides_are_answered_and_a_silent_conversation_goes_on() {
    let interop = Interop::ready().must();
    // This server closes a connection that leaves a ping of its unanswered for a second.
    let cluster = pair_with(interop.server_aged(0).must()).await;
    let [near, far] = addresses(&cluster);
    let both = tokio::join!(interop.further(near, "quiet"), interop.further(far, "quiet"));
    passed("quiet beside the plugin", &both.0.must());
    passed("quiet through a peer", &both.1.must());
}
