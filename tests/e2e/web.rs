//! Web pages, and programs that have HTTP and nothing else, call plugins that know gRPC only.

use testnet::{
    Cluster, Must,
    foreign::{CLOCK, Foreign, web_client},
};

use crate::support::KNOWN_WITHIN;

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
