//! How many calls one link carries over a Unix socket, both ends in this process.
//!
//! `cargo run -p blackhole-link --example throughput [SECONDS]` prints one line per number of calls
//! in flight. Figures of a development build; compare them with each other only.

use std::{sync::Arc, time::Duration};

use blackhole_link::{LinkSettings, client, serve};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use protocol::{
    failure::Failure,
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply},
};
use tokio::{net::UnixStream, task::JoinSet, time::Instant};

/// Answers with the request's own body and a status.
struct Echo;

impl Invoke for Echo {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = call.body.with_trailers(async move { Some(Ok(trailers)) });
        let metadata = call.head.metadata;
        async move { Ok(Reply { metadata, body: Body::new(body) }) }.boxed()
    }
}

fn call(payload: &Bytes) -> Call {
    let mut metadata = HeaderMap::new();
    metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let head = CallHead {
        path: "/bench.v1.Echo/Echo".parse().expect("a path"),
        metadata,
        deadline: Some((Instant::now() + Duration::from_secs(10)).into_std()),
        locality: Locality::Any,
        caller: Caller::Client,
    };
    Call { head, body: Body::new(Full::new(payload.clone()).map_err(|never| match never {})) }
}

/// Processor time of this thread so far, in µs, where the system says; other programs on the
/// machine change it much less than they change the rate.
fn processor_micros() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).map_or(0.0, |ns| ns / 1e3)
}

async fn measure(payload_bytes: usize, in_flight: usize, time: Duration) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    let (link, driver) = client(near, LinkSettings::default());
    let driver = tokio::spawn(driver);
    let server = tokio::spawn(serve(far, LinkSettings::default(), Caller::Client, Arc::new(Echo)));
    let payload = Bytes::from(vec![7; payload_bytes]);
    let end = Instant::now() + time;
    let before = processor_micros();
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (link, payload) = (link.clone(), payload.clone());
        workers.spawn(async move {
            let mut calls = 0u64;
            while Instant::now() < end {
                let reply = link.invoke(call(&payload)).await.expect("answered");
                let body = reply.body.collect().await.expect("whole");
                assert_eq!(body.to_bytes().len(), payload.len());
                calls += 1;
            }
            calls
        });
    }
    let calls: u64 = workers.join_all().await.into_iter().sum();
    let rate = calls as f64 / time.as_secs_f64();
    println!(
        "{payload_bytes:>8} bytes, {in_flight:>3} in flight: {:>8.1} k calls/s, {:>7.1} MB/s each way, \
         {:>6.1} µs each, {:>6.2} µs of this thread",
        rate / 1e3,
        rate * payload_bytes as f64 / 1e6,
        in_flight as f64 / rate * 1e6,
        (processor_micros() - before) / calls as f64,
    );
    drop(link);
    driver.await.expect("no panic");
    server.await.expect("no panic");
}

fn main() {
    let seconds = std::env::args().nth(1).map_or(1.0, |text| text.parse().expect("seconds"));
    let time = Duration::from_secs_f64(seconds);
    let run = async {
        for (payload_bytes, in_flight) in
            [(32, 1), (32, 64), (32, 256), (1024, 256), (64 * 1024, 16), (1024 * 1024, 4)]
        {
            measure(payload_bytes, in_flight, time).await;
        }
    };
    println!("one thread:");
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime").block_on(run);
    println!("two threads:");
    let run = async {
        for (payload_bytes, in_flight) in [(32, 1), (32, 64), (32, 256)] {
            tokio::spawn(measure(payload_bytes, in_flight, time)).await.expect("no panic");
        }
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(run);
}
