//! The built-in identity service: what it has told, it keeps.

use protocol::proto::identity::{
    CreateRequest, LookupRequest, SignRequest, VerifyRequest, identity_client::IdentityClient,
};
use testnet::{Must, NodeSetup, client::Caller, cluster::World};
use tonic::Code;

use crate::support::{KNOWN_WITHIN, timed};

#[tokio::test]
async fn identities_that_were_told_outlive_a_kill_of_the_node() {
    let world = World::new().must();
    let file = world.path().join("n.yaml");
    std::fs::write(&file, "services:\n  identity:\n    enabled: true\n").expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-identity", "n").with(["--config", path]);
    let mut node = setup.start().await.must();
    let mut told = Vec::new();
    for round in 0..3 {
        node.plugin_until("identity", KNOWN_WITHIN, |it| it.state == "running").await.must();
        let channel = Caller::of(&node.ready().grpc).must().channel();
        let mut identity = IdentityClient::new(channel);
        for (name, id) in &told {
            let lookup = LookupRequest { name: String::clone(name) };
            let found = identity.lookup(timed(lookup)).await.must().into_inner();
            assert_eq!(&found.id, id, "{name} in round {round}");
        }
        let name = format!("ada/{round}");
        let create = CreateRequest { name: name.clone() };
        let made = identity.create(timed(create.clone())).await.must().into_inner();
        // It was acknowledged: nothing that comes now may lose it.
        node.kill().await.must();
        node.restart().await.must();
        node.plugin_until("identity", KNOWN_WITHIN, |it| it.state == "running").await.must();
        let channel = Caller::of(&node.ready().grpc).must().channel();
        let mut identity = IdentityClient::new(channel);
        let taken = identity.create(timed(create)).await.expect_err("taken");
        assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
        let sign = SignRequest { name: name.clone(), message: "hello".into() };
        let signed = identity.sign(timed(sign)).await.must().into_inner();
        let verify = VerifyRequest {
            id: made.id.clone(),
            message: "hello".into(),
            signature: signed.signature,
        };
        assert!(identity.verify(timed(verify)).await.must().into_inner().valid);
        told.push((name, made.id));
    }
    assert!(node.stop().await.must().success());
}
