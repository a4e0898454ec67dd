//! The steps, in order.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use protocol::proto::admin::RegistryQueryRequest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Step, Story};
use crate::{
    Cluster, Node,
    client::Caller,
    foreign::{CLOCK, GREETER},
    packages, until,
};

const COUNTER: &str = "demo.v1.Counter";
const KV: &str = "demo.v1.Kv";

/// How long a change may take to be known where no promise is tighter.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);

/// An unloaded plugin is gone from every list within this.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// A service that nobody offers is refused within this.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// Calls that show whether they spread; both providers unseen by chance is one in half a million.
const CALLS: u32 = 20;

/// Everything that the README promises, and nothing more.
pub(super) const STEPS: &[Step] = &[
    Step { number: "1.1", claim: "a bootstrap node and peers A to E serve and have met", run: up },
    Step {
        number: "1.2",
        claim: "A: counter, a Rust plugin, is loaded, ready, announced",
        run: |story| counter_on(story, "a", &["a"]).boxed(),
    },
    Step {
        number: "1.3",
        claim: "B: an unmodified Python grpcio server is loaded, ready, announced",
        run: greeter,
    },
    Step {
        number: "1.4",
        claim: "C: an unmodified Go server that only knows TCP is loaded, ready, announced",
        run: clock,
    },
    Step {
        number: "2.1",
        claim: "E, told none of their addresses, finds each through the DHT",
        run: found,
    },
    Step {
        number: "2.2",
        claim: "an unmodified grpcio client at E: all four kinds of call, metadata, status, \
                trailers, deadlines, cancellation",
        run: grpcio,
    },
    Step {
        number: "2.3",
        claim: "grpcurl at E lists, describes and calls all three by name",
        run: grpcurl,
    },
    Step { number: "3.1", claim: "a second counter on D: calls spread over A and D", run: spread },
    Step {
        number: "3.2",
        claim: "kill -9 of A's plugin: restarted by its supervisor",
        run: kill_plugin,
    },
    Step {
        number: "3.3",
        claim: "kill -9 of peer A: the next call is answered by D",
        run: kill_peer,
    },
    Step {
        number: "3.4",
        claim: "A started again: same peer id, announced again by itself",
        run: restart_peer,
    },
    Step {
        number: "4.1",
        claim: "the bootstrap node killed: peers still find each other",
        run: kill_bootstrap,
    },
    Step { number: "4.2", claim: "a sixth peer joins through D and calls", run: sixth },
    Step {
        number: "5.1",
        claim: "both counters unloaded: gone from every peer's list within 5 s",
        run: unload,
    },
    Step { number: "5.2", claim: "a call is refused at once", run: refused },
    Step { number: "6.1", claim: "clean stop: no process, socket or lock left behind", run: stop },
];

fn up(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let cluster = Cluster::start(&["a", "b", "c", "d", "e"]).await?;
        let dir = cluster.dir().display().to_string();
        story.cluster = Some(cluster);
        Ok(dir)
    }
    .boxed()
}

/// Loads the counter on `peer`; afterwards everybody knows exactly `all` to offer it.
async fn counter_on(story: &mut Story, peer: &str, all: &[&str]) -> Result<String> {
    let plugin = story.peer(peer)?.load(&packages::plugin("counter")?).await?;
    story.cluster()?.all_see(COUNTER, all, KNOWN_WITHIN).await?;
    Ok(format!("pid {}, {}", plugin.pid, plugin.layers.join(" ")))
}

fn greeter(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let from = story.foreign.greeter()?;
        let plugin = story.peer("b")?.load_from(from, "greeter").await?;
        story.cluster()?.all_see(GREETER, &["b"], KNOWN_WITHIN).await?;
        Ok(format!("pid {}, {GREETER} by reflection", plugin.pid))
    }
    .boxed()
}

fn clock(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let from = story.foreign.clock()?;
        let plugin = story.peer("c")?.load_from(from, "clock").await?;
        story.cluster()?.all_see(CLOCK, &["c"], KNOWN_WITHIN).await?;
        Ok(format!("pid {}, {CLOCK} by reflection", plugin.pid))
    }
    .boxed()
}

/// Waits until a look-up in the DHT from `from` names `provider`.
async fn in_dht(from: &Node, service: &str, provider: &Node) -> Result<Duration> {
    until(&format!("the DHT names a provider of {service}"), KNOWN_WITHIN, || async {
        let mut admin = from.admin().map_err(|error| error.to_string())?;
        let query = RegistryQueryRequest { service: service.to_owned() };
        let found = admin.registry_query(query).await.map_err(|error| error.to_string())?;
        let found = found.into_inner();
        let named = found.in_dht.iter().any(|id| id == provider.peer_id());
        if named { Ok(Duration::from_millis(found.lookup_ms)) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn found(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let e = story.peer("e")?;
        let told = &e.setup().bootstrap;
        let bootstrap = story.cluster()?.bootstrap()?.peer_id();
        ensure!(told.iter().all(|address| address.contains(bootstrap)), "E was told {told:?}");
        let mut seen = String::new();
        for (service, peer) in [(COUNTER, "a"), (GREETER, "b"), (CLOCK, "c")] {
            let took = in_dht(e, service, story.peer(peer)?).await?;
            let separator = if seen.is_empty() { "" } else { ", " };
            write!(seen, "{separator}{service} in {} ms", took.as_millis())?;
        }
        Ok(seen)
    }
    .boxed()
}

fn grpcio(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let e = story.peer("e")?;
        let checked = story.foreign.check(&e.ready().grpc, &["greeter", "clock"]).await?;
        let said = checked.success()?;
        let verdict = said.lines().last().context("the client said nothing")?;
        ensure!(verdict.ends_with(", 0 failed"), "{said}");
        Ok(format!("{verdict} of the client's own checks"))
    }
    .boxed()
}

/// Calls `method` through `node` with grpcurl; the answer as JSON.
async fn call(story: &Story, node: &Node, method: &str, message: &str) -> Result<Value> {
    let address = &node.ready().grpc;
    story.foreign.grpcurl(&["-d", message], address, &[method]).await?.json()
}

/// Adds 1 through `node`; the instance of the counter that answered.
async fn count(story: &Story, node: &Node) -> Result<String> {
    let message = r#"{"name": "demo", "amount": 1}"#;
    let answer = call(story, node, "demo.v1.Counter/Add", message).await?;
    Ok(answer["instance"].as_str().context("no instance was told")?.to_owned())
}

fn grpcurl(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let e = story.peer("e")?;
        let address = &e.ready().grpc;
        let listed = story.foreign.grpcurl(&[], address, &["list"]).await?.success()?;
        for service in [COUNTER, GREETER, CLOCK] {
            ensure!(listed.lines().any(|line| line == service), "{service} is not in:\n{listed}");
        }
        let described = story.foreign.grpcurl(&[], address, &["describe", COUNTER]).await?;
        ensure!(described.success()?.contains("AddRequest"), "counter is not described");

        let counted =
            call(story, e, "demo.v1.Counter/Add", r#"{"name": "x", "amount": 2}"#).await?;
        ensure!(counted["value"] == "2", "2 was added to nothing: {counted}");
        let greeted = call(story, e, "greeter.v1.Greeter/Hello", r#"{"name": "Ada"}"#).await?;
        ensure!(greeted["message"] == "Hello, Ada!", "{greeted}");
        let told = call(story, e, "clock.v1.Clock/Now", r#"{"zone": "Europe/London"}"#).await?;
        ensure!(told["zone"] == "Europe/London", "{told}");
        Ok(format!("{} services", listed.lines().count()))
    }
    .boxed()
}

fn spread(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        counter_on(story, "d", &["a", "d"]).await?;
        let e = story.peer("e")?;
        let mut answered: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..CALLS {
            *answered.entry(count(story, e).await?).or_default() += 1;
        }
        let mut seen = Vec::new();
        for name in ["a", "d"] {
            let instance = story.peer(name)?.plugin("counter").await?.instance;
            let calls = answered.get(&instance).copied().unwrap_or_default();
            ensure!(calls > 0, "{name} answered none of {CALLS} calls: {answered:?}");
            seen.push(format!("{} answered {calls}", name.to_uppercase()));
        }
        Ok(seen.join(", "))
    }
    .boxed()
}

fn kill_plugin(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let a = story.peer("a")?;
        let before = a.plugin("counter").await?;
        let pid = Pid::from_raw(before.pid.cast_signed()).context("it has no process")?;
        kill_process(pid, Signal::KILL).context("cannot kill it")?;
        let killed = Instant::now();
        let after = a
            .plugin_until("counter", KNOWN_WITHIN, |plugin| {
                plugin.state == "running" && plugin.pid != before.pid && plugin.announced
            })
            .await?;
        let took = killed.elapsed();
        ensure!(after.restarts == before.restarts + 1, "restarts: {}", after.restarts);
        count(story, a).await?;
        Ok(format!("pid {} became {} in {:.1} s", before.pid, after.pid, took.as_secs_f64()))
    }
    .boxed()
}

fn kill_peer(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let [a, d, e] = [story.peer("a")?, story.peer("d")?, story.peer("e")?];
        let survivor = d.plugin("counter").await?.instance;
        let children = a.kill().await?;
        let killed = Instant::now();
        let answered = count(story, e).await.context("the call after the kill")?;
        let took = killed.elapsed();
        ensure!(answered == survivor, "{answered} answered, D's is {survivor}");
        let second = Duration::from_secs(1).saturating_sub(took);
        until("no plugin of A is left after 1 s", second, || async {
            let left: Vec<_> = children.iter().filter(|child| child.still_runs()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await?;
        for _ in 0..CALLS / 2 {
            ensure!(count(story, e).await? == survivor, "not D");
        }
        Ok(format!("in {} ms, grpcurl's own start included", took.as_millis()))
    }
    .boxed()
}

fn restart_peer(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let id = story.peer("a")?.peer_id().to_owned();
        story.cluster_mut()?.peer_mut("a")?.restart().await?;
        let again = story.peer("a")?.peer_id();
        ensure!(again == id, "it was {id} and is {again}");
        story.cluster()?.all_see(COUNTER, &["a", "d"], KNOWN_WITHIN).await?;
        let e = story.peer("e")?;
        let instance = story.peer("a")?.plugin("counter").await?.instance;
        until("A answers E's calls", KNOWN_WITHIN, || async {
            let answered = count(story, e).await.map_err(|error| error.to_string())?;
            if answered == instance { Ok(()) } else { Err(format!("{answered} answered")) }
        })
        .await?;
        Ok(id)
    }
    .boxed()
}

fn kill_bootstrap(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        story.cluster()?.acquainted(KNOWN_WITHIN).await?;
        story.cluster_mut()?.kill_bootstrap().await?;
        let [b, e] = [story.peer("b")?, story.peer("e")?];
        b.load(&packages::plugin("kv")?).await?;
        let took = in_dht(e, KV, b).await?;
        e.sees(KV, &[b.peer_id()], KNOWN_WITHIN).await?;
        call(story, e, "demo.v1.Kv/Put", r#"{"key": "k", "value": "dmFsdWU="}"#).await?;
        let entry = call(story, e, "demo.v1.Kv/Get", r#"{"key": "k"}"#).await?;
        ensure!(entry["value"] == "dmFsdWU=", "{entry}");
        Ok(format!("{KV}, new on B, found by E in {} ms", took.as_millis()))
    }
    .boxed()
}

fn sixth(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let mut setup = story.cluster()?.setup("f");
        setup.bootstrap = story.peer("d")?.ready().listen.clone();
        let begun = Instant::now();
        story.cluster_mut()?.add(setup).await?;
        let joined = begun.elapsed();
        let f = story.peer("f")?;
        until("F's call is answered", KNOWN_WITHIN, || async {
            count(story, f).await.map_err(|error| error.to_string())
        })
        .await?;
        Ok(format!("joined after {} ms", joined.as_millis()))
    }
    .boxed()
}

fn unload(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let [a, d] = [story.peer("a")?, story.peer("d")?];
        try_join_all([a.unload("counter"), d.unload("counter")]).await?;
        let unloaded = Instant::now();
        story.cluster()?.all_see(COUNTER, &[], GONE_WITHIN).await?;
        Ok(format!("after {} ms", unloaded.elapsed().as_millis()))
    }
    .boxed()
}

fn refused(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let e = story.peer("e")?;
        let caller = Caller::of(&e.ready().grpc)?;
        let begun = Instant::now();
        let answer = caller.unary("/demo.v1.Counter/Add", Vec::new(), &[], KNOWN_WITHIN).await;
        let took = begun.elapsed();
        let status = answer.err().context("somebody answered")?;
        let sentence = format!("service {COUNTER} not available");
        ensure!(status.message().contains(&sentence), "`{sentence}` is not in: {status}");
        ensure!(took < REFUSED_WITHIN, "it took {took:?}");
        Ok(format!("`{sentence}` after {} ms", took.as_millis()))
    }
    .boxed()
}

fn stop(story: &mut Story) -> BoxFuture<'_, Result<String>> {
    async {
        let cluster = story.cluster()?;
        let nodes = cluster.nodes().filter(|node| node.process().ended().is_none()).count();
        let residue = cluster.stop().await?;
        ensure!(residue.is_empty(), "{residue}");
        story.cluster = None;
        Ok(format!("{nodes} nodes"))
    }
    .boxed()
}
