//! What an author may rely on: a plugin is ready, described and stoppable without code of theirs.

use std::{io, time::Duration};

use blackhole_sdk::{Answer, Figures, Plugin, PluginError};
use greeter::greeter_client::GreeterClient;
use greeter::greeter_server::{Greeter, GreeterServer};
use greeter::{HelloReply, HelloRequest};
use protocol::proto::plugin::{DescribeRequest, MetricsRequest, lifecycle_client::LifecycleClient};
use tokio::sync::oneshot;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

mod greeter {
    #![allow(clippy::pedantic, unused_qualifications)]
    tonic::include_proto!("greeter.v1");
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
}

struct Polite;

#[tonic::async_trait]
impl Greeter for Polite {
    async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloReply> {
        match request.into_inner().name.as_str() {
            "nobody" => Err(Status::invalid_argument("tell me a name")),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(Response::new(HelloReply { message: "at last".into() }))
            }
            "never" => std::future::pending().await,
            name => Ok(Response::new(HelloReply { message: format!("Hello, {name}!") })),
        }
    }
}

fn plugin() -> Plugin {
    Plugin::new("greeter", "1.2.3")
        .description("greets")
        .capability("computation")
        .descriptors(greeter::DESCRIPTORS)
        .service(GreeterServer::new(Polite))
}

fn hello(name: &str) -> HelloRequest {
    HelloRequest { name: name.into() }
}

#[tokio::test]
async fn a_service_is_called_and_its_errors_arrive() {
    let running = plugin().start().expect("start");
    let mut client = GreeterClient::new(running.channel());
    let reply = client.hello(hello("Ada")).await.expect("reply").into_inner();
    assert_eq!(reply.message, "Hello, Ada!");
    let refused = client.hello(hello("nobody")).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    running.stop().await.expect("stop");
}

#[tokio::test]
async fn health_is_serving_for_the_program_and_each_service() {
    let running = plugin().start().expect("start");
    let mut health = HealthClient::new(running.channel());
    for service in ["", "greeter.v1.Greeter"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.expect(service).into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test]
async fn health_is_not_serving_until_prepared() {
    let (finish, finished) = oneshot::channel::<()>();
    let running = plugin().prepare(finished).start().expect("start");
    let mut health = HealthClient::new(running.channel());
    let request = HealthCheckRequest { service: String::new() };
    let mut seen = health.watch(request).await.expect("watch").into_inner();
    let first = seen.next().await.expect("one").expect("status").status();
    assert_eq!(first, ServingStatus::NotServing);
    finish.send(()).expect("prepared");
    let second = seen.next().await.expect("two").expect("status").status();
    assert_eq!(second, ServingStatus::Serving);
    running.stop().await.expect("a watcher of health does not hold the plugin open");
}

#[tokio::test]
async fn a_failed_preparation_ends_the_plugin_with_its_sentence() {
    let failing = async { Err(io::Error::other("the cache is damaged")) };
    let running = plugin().prepare(failing).start().expect("start");
    // Nobody tells it to stop: it ends by itself, and `stop` only collects the reason.
    match running.stop().await {
        Err(PluginError::NotPrepared(reason)) => assert_eq!(reason, "the cache is damaged"),
        other => panic!("{other:?}"),
    }
}

async fn reflect(running: &blackhole_sdk::Running, ask: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(running.channel());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("reflection")
        .into_inner();
    let answer: ServerReflectionResponse = answers.next().await.expect("one").expect("answer");
    answer.message_response.expect("content")
}

#[tokio::test]
async fn reflection_lists_and_describes_exactly_what_is_offered() {
    let running = plugin().start().expect("start");
    let listed = reflect(&running, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    assert_eq!(
        names,
        ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "greeter.v1.Greeter"]
    );
    for name in names {
        let found = reflect(&running, MessageRequest::FileContainingSymbol(name.clone())).await;
        assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{name}: {found:?}");
    }
}

#[tokio::test]
async fn lifecycle_describes_the_plugin() {
    let running = plugin().start().expect("start");
    let mut lifecycle = LifecycleClient::new(running.channel());
    let described = lifecycle.describe(DescribeRequest {}).await.expect("describe").into_inner();
    assert_eq!((described.name.as_str(), described.version.as_str()), ("greeter", "1.2.3"));
    assert_eq!(described.capabilities, ["computation"]);
    assert!(!described.stateful);
}

#[tokio::test]
async fn what_it_counts_is_told_and_a_plugin_that_counts_nothing_says_so() {
    let silent = plugin().start().expect("start");
    let mut lifecycle = LifecycleClient::new(silent.channel());
    let refused = lifecycle.metrics(MetricsRequest {}).await.expect_err("none");
    assert_eq!(refused.code(), Code::Unimplemented);

    let figures = Figures::new();
    let hits = figures.counter_with("hits", &[("kind", "warm")]);
    let computed = || vec![("answer".to_owned(), 42.0)];
    let running = plugin().figures(&figures).metrics(computed).start().expect("start");
    hits.add(3);
    let mut lifecycle = LifecycleClient::new(running.channel());
    let told = lifecycle.metrics(MetricsRequest {}).await.expect("told").into_inner().metrics;
    let told: Vec<_> = told.iter().map(|it| (it.name.as_str(), it.value)).collect();
    assert_eq!(told, [("hits", 3.0), ("answer", 42.0)]);
}

#[tokio::test]
async fn stopping_finishes_calls_in_flight() {
    let running = plugin().start().expect("start");
    let mut client = GreeterClient::new(running.channel());
    // The connection is up before the slow call begins.
    client.hello(hello("Ada")).await.expect("reply");
    let slow = tokio::spawn(async move { client.hello(hello("slow")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.stop().await.expect("stop");
    let reply = slow.await.expect("task").expect("the call in flight is answered").into_inner();
    assert_eq!(reply.message, "at last");
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let deadline = Duration::from_millis(200);
    let running = plugin().drain_deadline(deadline).start().expect("start");
    let mut client = GreeterClient::new(running.channel());
    client.hello(hello("Ada")).await.expect("reply");
    let stuck = tokio::spawn(async move { client.hello(hello("never")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stopped = tokio::time::timeout(Duration::from_secs(5), running.stop()).await;
    stopped.expect("within the deadline").expect("stop");
    stuck.abort();
}

#[tokio::test]
async fn a_plugin_that_nobody_could_call_is_refused() {
    let silent = Plugin::new("silent", "1.0.0").start().expect_err("no service");
    assert!(matches!(silent, PluginError::NoService));
    let secret = Plugin::new("secret", "1.0.0").service(GreeterServer::new(Polite));
    let error = secret.start().expect_err("undescribed").to_string();
    assert!(error.contains("greeter.v1.Greeter is in none of the descriptor sets"), "{error}");
    let wrong = plugin().descriptors(b"\xff\xff").start().expect_err("descriptors");
    assert!(matches!(wrong, PluginError::Descriptors(_)));
}
