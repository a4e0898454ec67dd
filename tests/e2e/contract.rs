//! The optional `Lifecycle` contract through the executable, offered by a server in Python that has
//! nothing of Blackhole but the contract's `.proto`.

use std::fs;

use serde_json::Value;
use testnet::{
    Must, Node, NodeSetup, client::get, cluster::World, foreign::Foreign, process::Signal, until,
};

use crate::support::KNOWN_WITHIN;

/// What the node is configured with.
fn config(greeting: &str) -> String {
    format!(
        "monitoring: {{ sampleInterval: 100ms }}\n\
         plugins: {{ config: {{ greeter: {{ greeting: {greeting} }} }} }}\n"
    )
}

async fn greet(foreign: &Foreign, node: &Node) -> String {
    let call = ["-d", r#"{"name": "Ada"}"#];
    let answer = foreign.grpcurl(&call, &node.ready().grpc, &["greeter.v1.Greeter/Hello"]).await;
    answer.must().json().must()["message"].as_str().unwrap_or_default().to_owned()
}

async fn info(node: &Node) -> Value {
    let words = ["--json", "plugin", "info", "greeter"];
    node.cli().must().run(words).await.must().json().must()
}

#[tokio::test]
async fn a_foreign_plugin_is_described_configured_counted_and_drained() {
    let foreign = Foreign::ready().must();
    let world = World::new().must();
    let file = world.path().join("n.yaml");
    fs::write(&file, config("Moin")).expect("written");
    let path = file.to_str().expect("UTF-8");
    let setup = NodeSetup::peer(world.path(), "t-contract", "n").with(["--config", path]);
    let node = setup.start().await.must();
    let loaded = node.load_from(foreign.with_contract().must(), "greeter").await.must();
    assert_eq!((loaded.version.as_str(), loaded.description.is_empty()), ("1.4.0", false));
    assert_eq!(loaded.services, ["greeter.v1.Greeter"], "the contract is no service of the mesh");

    assert_eq!(greet(&foreign, &node).await, "Moin, Ada!");
    until("it is counted", KNOWN_WITHIN, || async {
        let told = info(&node).await;
        let figure = &told["figures"][0];
        let counted = figure["name"] == "greeted"
            && figure["value"] == 1.0
            && figure["labels"]["greeting"] == "Moin"
            && told["figures_refused"] == 1;
        if counted { Ok(()) } else { Err(format!("{told:#}")) }
    })
    .await
    .must();
    let told = info(&node).await;
    assert_eq!(told["dependencies"][0], "dictionary >=1", "{told:#}");
    for at in ["/metrics", "/metrics/greeter"] {
        let (_, page) = get(&node.ready().metrics, at).await.must();
        let own = page.lines().find(|line| line.starts_with("blackhole_plugin_figure{"));
        let own = own.unwrap_or_default();
        for part in ["name=\"greeted\"", "own_greeting=\"Moin\""] {
            assert!(own.contains(part), "{at}: {page}");
        }
        assert!(page.contains("blackhole_plugin_figures_refused{"), "{at}: {page}");
    }

    fs::write(&file, config("Ahoi")).expect("written");
    node.process().signal(Signal::HUP).must();
    until("it is configured anew", KNOWN_WITHIN, || async {
        let said = greet(&foreign, &node).await;
        if said == "Ahoi, Ada!" { Ok(()) } else { Err(said) }
    })
    .await
    .must();

    let cli = node.cli().must();
    cli.run(["plugin", "restart", "greeter"]).await.must().success().must();
    let logs = cli.run(["plugin", "logs", "greeter"]).await.must().success().must();
    assert!(logs.contains("draining within 5000 ms"), "{logs}");
    assert_eq!(greet(&foreign, &node).await, "Ahoi, Ada!", "every start is told");

    // What it refuses, it does not start with.
    fs::write(&file, config("5")).expect("written");
    node.process().signal(Signal::HUP).must();
    until("it refuses", KNOWN_WITHIN, || async {
        let logs = cli
            .run(["plugin", "logs", "greeter"])
            .await
            .and_then(testnet::client::Outcome::success);
        let logs = logs.map_err(|error| error.to_string())?;
        let told = "it refuses its changed configuration: greeting: a text is needed";
        if logs.contains(told) { Ok(()) } else { Err(logs) }
    })
    .await
    .must();
    let refused = cli.run(["plugin", "restart", "greeter"]).await.must().failure().must();
    assert!(refused.contains("greeting: a text is needed"), "{refused}");
}
