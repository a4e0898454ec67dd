//! What most tests here need: the demo plugins as clients see them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use plugins::demo::{AddRequest, Count, counter_client::CounterClient, probe_client::ProbeClient};
use testnet::{Cluster, Node, client::Caller};
use tonic::{Request, Status, transport::Channel};

/// The names of the services used here.
pub const COUNTER: &str = "demo.v1.Counter";
/// See [`COUNTER`].
pub const ECHO: &str = "demo.v1.Echo";

/// How long any one call may take. Calls take milliseconds; this is for a machine that does
/// something else as well.
pub const CALL_WITHIN: Duration = Duration::from_secs(10);

/// How long a change may take to be known everywhere where no promise is tighter.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// Within this a call is answered "at once": no lookup, no retry, no timeout is waited for.
pub const AT_ONCE: Duration = Duration::from_secs(1);

/// A counter client pointed at `node`.
pub fn counter(node: &Node) -> CounterClient<Channel> {
    CounterClient::new(channel(node))
}

/// A client of the probe (part of the echo plugin) pointed at `node`.
pub fn probe(node: &Node) -> ProbeClient<Channel> {
    ProbeClient::new(channel(node))
}

fn channel(node: &Node) -> Channel {
    Caller::of(&node.ready().grpc).expect("an address the node printed").channel()
}

/// A request with a deadline.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_WITHIN);
    request
}

/// Adds 1 to the counter `name` through `node`.
pub async fn add(node: &Node, name: &str) -> Result<Count, Status> {
    let request = timed(AddRequest { name: name.to_owned(), amount: 1 });
    counter(node).add(request).await.map(tonic::Response::into_inner)
}

/// Which instances answer `count` calls through `node`, and how often.
pub async fn spread(node: &Node, count: u32) -> Result<BTreeMap<String, u32>> {
    let mut answered = BTreeMap::new();
    for _ in 0..count {
        *answered.entry(add(node, "spread").await?.instance).or_default() += 1;
    }
    Ok(answered)
}

/// Two peers, with the first-party plugin `plugin` on `b` and known to `a`.
pub async fn pair_with(plugin: &str, service: &str) -> Result<Cluster> {
    let cluster = Cluster::start(&["a", "b"]).await?;
    cluster.peer("b")?.load(&testnet::packages::plugin(plugin)?).await?;
    cluster.all_see(service, &["b"], KNOWN_WITHIN).await?;
    Ok(cluster)
}

/// Runs `task` and checks that it took less than `within`.
pub async fn quick<T>(within: Duration, task: impl Future<Output = T>) -> Result<T> {
    let start = Instant::now();
    let value = task.await;
    let took = start.elapsed();
    ensure!(took < within, "took {took:?}, wanted less than {within:?}");
    Ok(value)
}
