//! Web pages, and programs that have HTTP and nothing else, call plugins that know gRPC only; on
//! the same port programs that have gRPC do.

use testnet::{
    Cluster, Must,
    foreign::{CLOCK, Foreign, Interop, web_client},
};

use crate::support::KNOWN_WITHIN;

/// Cases of grpc-go's official client: every kind of call, and every way in which one ends.
const CASES: [&str; 12] = [
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
    "custom_metadata",
    "unimplemented_method",
];

#[tokio::test]
async fn clients_of_the_web_see_no_difference_through_another_peer() {
    let foreign = Foreign::ready().must();
    let cluster = Cluster::start(&["a", "b"]).await.must();
    cluster.peer("b").must().load_from(foreign.clock().must(), "clock").await.must();
    cluster.all_see(CLOCK, &["b"], KNOWN_WITHIN).await.must();
    for name in ["b", "a"] {
        let said = web_client(&cluster.peer(name).must().ready().http).await.must();
        let last = said.out.lines().last().unwrap_or_default();
        assert!(said.code == Some(0) && last.ends_with(", 0 failed"), "{}", said.report());
    }
}

#[tokio::test]
async fn the_official_grpc_client_passes_on_the_port_for_http() {
    let interop = Interop::ready().must();
    let cluster = Cluster::start(&["a", "b"]).await.must();
    cluster.peer("b").must().load_from(interop.server().must(), "interop").await.must();
    cluster.all_see(Interop::SERVICE, &["b"], KNOWN_WITHIN).await.must();
    for name in ["b", "a"] {
        let address = &cluster.peer(name).must().ready().http;
        for case in CASES {
            let ended = interop.case(address, case).await.must();
            assert_eq!(ended.code, Some(0), "{case} at {name}: {}", ended.report());
        }
    }
}
