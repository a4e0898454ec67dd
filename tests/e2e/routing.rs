//! Failure under load, over real nodes: what callers see of a provider that is killed, and what
//! the operator is told of a call.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use plugins::demo::{AddRequest, GetRequest};
use testnet::{Cluster, Must, packages, until};

use crate::support::{COUNTER, KNOWN_WITHIN, add, counter, spread, timed};

/// Callers at once, each with one call in flight at most.
const CALLERS: usize = 16;

/// Calls a second of all callers together. Who is late makes up for it.
const RATE: u64 = 5_000;

/// Calls that are made before and after the kill.
const CALLS_AROUND: u64 = RATE;

/// The turns of one caller.
fn turns() -> tokio::time::Interval {
    tokio::time::interval(Duration::from_secs(1) * CALLERS as u32 / RATE as u32)
}

/// Waits until `answered` counts that many.
async fn reach(answered: &AtomicU64, wanted: u64) {
    until("calls are answered", KNOWN_WITHIN, || async {
        let so_far = answered.load(Relaxed);
        if so_far >= wanted { Ok(()) } else { Err(format!("{so_far} of {wanted}")) }
    })
    .await
    .must();
}

async fn two_counters() -> Cluster {
    let cluster = Cluster::start(&["a", "b", "c"]).await.must();
    for name in ["b", "c"] {
        let plugin = packages::plugin("counter").must();
        cluster.peer(name).must().load(&plugin).await.must();
    }
    cluster.all_see(COUNTER, &["b", "c"], KNOWN_WITHIN).await.must();
    cluster
}

/// Kills one of both providers between two seconds of calls.
async fn kill_amid_calls(cluster: &Cluster, answered: &AtomicU64) {
    let begun = Instant::now();
    reach(answered, CALLS_AROUND).await;
    let before = begun.elapsed();
    cluster.peer("b").must().kill().await.must();
    reach(answered, answered.load(Relaxed) + CALLS_AROUND).await;
    println!("{CALLS_AROUND} calls in {before:?}, and with the kill in {:?}", begun.elapsed());
}

#[tokio::test]
async fn no_caller_of_a_method_that_may_run_twice_sees_its_provider_die() {
    let cluster = two_counters().await;
    let a = cluster.peer("a").must();
    let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut client, answered, over) = (counter(a), answered.clone(), over.clone());
            tokio::spawn(async move {
                let mut turns = turns();
                while !over.load(Relaxed) {
                    turns.tick().await;
                    client.get(timed(GetRequest { name: "x".into() })).await?;
                    answered.fetch_add(1, Relaxed);
                }
                Ok::<_, tonic::Status>(())
            })
        })
        .collect();
    kill_amid_calls(&cluster, &answered).await;
    over.store(true, Relaxed);
    for caller in callers {
        caller.await.must().expect("no error reaches a caller");
    }
}

#[tokio::test]
async fn of_calls_that_may_run_once_only_those_in_flight_fail_and_say_so() {
    let cluster = two_counters().await;
    let a = cluster.peer("a").must();
    let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut client, answered, over) = (counter(a), answered.clone(), over.clone());
            tokio::spawn(async move {
                let (mut failed, mut by_instance) = (Vec::new(), BTreeMap::new());
                let mut turns = turns();
                while !over.load(Relaxed) {
                    turns.tick().await;
                    let request = timed(AddRequest { name: "x".into(), amount: 1 });
                    match client.add(request).await {
                        Ok(reply) => {
                            *by_instance.entry(reply.into_inner().instance).or_insert(0) += 1;
                            answered.fetch_add(1, Relaxed);
                        }
                        Err(status) => failed.push(status),
                    }
                }
                (failed, by_instance)
            })
        })
        .collect();
    kill_amid_calls(&cluster, &answered).await;
    over.store(true, Relaxed);
    let mut answers = BTreeMap::<String, i64>::new();
    for caller in callers {
        let (failed, by_instance) = caller.await.must();
        for (instance, count) in by_instance {
            *answers.entry(instance).or_default() += count;
        }
        assert!(failed.len() <= 1, "each caller had one call in flight: {failed:?}");
        for status in failed {
            assert_eq!(
                status.metadata().get("bh-ran").expect("a trailer"),
                "unknown",
                "{status:?}"
            );
        }
    }
    let left = add(cluster.peer("c").must(), "x").await.must();
    let answered = answers.get(&left.instance).copied().unwrap_or_default();
    assert_eq!(left.value, answered + 1, "by its own count, each call ran once: {answers:?}");
}

#[tokio::test]
async fn a_backup_answers_when_all_others_are_gone_and_not_before() {
    let mut cluster = Cluster::start(&["b", "c"]).await.must();
    let regular = packages::plugin("counter").must();
    let spare = packages::variant(cluster.dir(), "spare", "counter", "").must();
    cluster.peer("b").must().load(&regular).await.must();
    cluster.peer("c").must().load(&spare).await.must();
    let setup = cluster.setup("a");
    let configuration = "routing: { services: { demo.v1.Counter: { backups: [spare] } } }";
    std::fs::create_dir_all(setup.data_dir()).must();
    std::fs::write(setup.data_dir().join("blackhole.yaml"), configuration).must();
    cluster.add(setup).await.must();
    cluster.all_see(COUNTER, &["b", "c"], KNOWN_WITHIN).await.must();

    let a = cluster.peer("a").must();
    let before = spread(a, 50).await.must();
    assert_eq!(before.len(), 1, "the backup is spared: {before:?}");
    cluster.peer("b").must().kill().await.must();
    // What was in flight to a peer that was killed may have run, and is not said again.
    let takes_over = || async { spread(a, 1).await.map_err(|error| error.to_string()) };
    let after = until("the backup answers", KNOWN_WITHIN, takes_over).await.must();
    assert_ne!(before.keys().next(), after.keys().next());
}

#[tokio::test]
async fn one_real_call_is_told_step_by_step() {
    let cluster = two_counters().await;
    let cli = cluster.peer("a").must().cli().must();
    let call = ["explain", "demo.v1.Counter/Add", "--call", "-d", "{\"amount\": \"1\"}", "--json"];
    let told = cli.run(call).await.must().json().must();
    assert_eq!(told["code"], "OK", "{told}");
    let steps = told["steps"].as_array().expect("a list");
    let kinds: Vec<_> = steps.iter().filter_map(|step| step["kind"].as_str()).collect();
    assert_eq!(kinds, ["weighed", "chosen", "sent", "answered", "ended"], "{told}");
    assert_eq!(steps[0]["candidates"].as_array().expect("a list").len(), 2, "{told}");
    assert!(steps[1]["provider"]["transport"].is_string(), "{told}");
    assert!(
        steps[3]["text"].as_str().expect("a text").contains("plugin="),
        "the peer's own legs: {told}"
    );
}
