//! Levels `none` and `thread`: the node's own code, called like any plugin and restarted like one.

mod support;

use std::{convert::Infallible, sync::Arc, task};

use blackhole_plugin_host::{Code, Command, LoadRequest, Source, State};
use futures::future::BoxFuture;
use support::{PATIENCE, World, body, call, message, probe_program, read};
use tokio::time::timeout;
use tonic::{body::Body, server::NamedService, service::Routes};

/// Tells the name of the thread that answers, or panics.
#[derive(Clone)]
struct Teller;

impl NamedService for Teller {
    const NAME: &'static str = "inside.v1.Teller";
}

impl tower::Service<http::Request<Body>> for Teller {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let panics = request.uri().path().ends_with("/Panic");
        Box::pin(async move {
            assert!(!panics, "as it was asked to");
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            Ok(tonic::Status::aborted(thread).into_http())
        })
    }
}

fn request(name: &str, code: fn(Arc<blackhole_plugin_host::MakeRoutes>) -> Code) -> LoadRequest {
    let make = Arc::new(|| -> BoxFuture<'static, Result<Routes, String>> {
        Box::pin(std::future::ready(Ok(Routes::new(Teller))))
    });
    let argv = vec![probe_program().display().to_string()];
    let services = vec!["inside.v1.Teller".into()];
    LoadRequest {
        name: Some(name.into()),
        wait: true,
        code: Some(code(make)),
        ..LoadRequest::new(Source::Exec(Command { argv, services, ..Command::default() }))
    }
}

async fn ask(world: &World, name: &str, method: &str) -> (String, String) {
    let status = world.host.info(name).expect("loaded");
    let channel = world.reach(status.instance.expect("runs")).await.expect("ready");
    let mut call = call("See", body(message(b"")), Some(PATIENCE));
    call.head.path = format!("/inside.v1.Teller/{method}").parse().expect("a path");
    let reply = match channel.invoke(call).await {
        Ok(reply) => reply,
        // The end of the run may overtake the answer.
        Err(failure) => return ("13".into(), failure.message),
    };
    let head = reply.metadata.clone();
    let answer = read(reply).await;
    let told = |name: &str| {
        let value = answer.trailers.get(name).or_else(|| head.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    (told("grpc-status"), told("grpc-message"))
}

#[tokio::test]
async fn code_of_the_node_answers_at_its_level() {
    for (code, level) in [(Code::inline as fn(_) -> _, "none"), (Code::on_thread, "thread")] {
        let world = World::new().await;
        let status =
            timeout(PATIENCE, world.host.load(request("teller", code))).await.expect("in time");
        let status = status.expect("loads");
        assert_eq!((status.isolation.as_str(), status.pid), (level, None));
        let (_, thread) = ask(&world, "teller", "Tell").await;
        assert_eq!(thread == "plugin-teller", level == "thread", "{thread}");
        world.host.unload("teller").await.expect("unloads");
        let threads = std::fs::read_dir("/proc/self/task").expect("there").flatten();
        let mut names =
            threads.filter_map(|it| std::fs::read_to_string(it.path().join("comm")).ok());
        assert!(!names.any(|name| name.trim() == "plugin-teller"), "its thread has ended");
    }
}

#[tokio::test]
async fn a_panic_fails_its_call_and_ends_the_run_which_starts_again() {
    for code in [Code::inline as fn(_) -> _, Code::on_thread] {
        let world = World::new().await;
        timeout(PATIENCE, world.host.load(request("panicker", code)))
            .await
            .expect("in time")
            .expect("loads");
        let mut steps = world.host.transitions();
        let (status, text) = ask(&world, "panicker", "Panic").await;
        assert_eq!(status, "13", "{text}");
        let reasons = async {
            let mut crashed = String::new();
            loop {
                let step = steps.recv().await.expect("the host lives");
                match step.to {
                    State::Running => return crashed,
                    _ if step.reason.contains("panicked") => crashed = step.reason,
                    _ => {}
                }
            }
        };
        let crashed = timeout(PATIENCE, reasons).await.expect("it starts again");
        assert!(crashed.contains("panicked: as it was asked to"), "{crashed}");
        let (_, thread) = ask(&world, "panicker", "Tell").await;
        assert!(!thread.is_empty());
    }
}
