//! Reflection and health speak for the whole mesh.

use std::sync::Arc;

use blackhole_gateway::Grpc;
use bytes::Bytes;
use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
};
use protocol::failure::{Failure, Reason};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Streaming, service::Routes, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask,
    server_reflection_response::MessageResponse as Told,
};

use crate::support::{DRAIN, Gateway, Mesh, TestCatalog};

/// The descriptors of a service `demo.v1.<name>` with a method `Do`, whose messages are in another
/// file, `common.proto`, of package `shared.<name>`, with an extension of its `Options`.
fn descriptors(name: &str) -> Bytes {
    let package = format!("shared.{}", name.to_lowercase());
    let message = |name: &str| DescriptorProto { name: Some(name.into()), ..Default::default() };
    let extension = FieldDescriptorProto {
        name: Some("extra".into()),
        number: Some(1_001),
        extendee: Some(format!(".{package}.Options")),
        ..Default::default()
    };
    let common = FileDescriptorProto {
        name: Some("common.proto".into()),
        package: Some(package.clone()),
        message_type: vec![message("Request"), message("Response"), message("Options")],
        extension: vec![extension],
        ..Default::default()
    };
    let method = MethodDescriptorProto {
        name: Some("Do".into()),
        input_type: Some(format!(".{package}.Request")),
        output_type: Some(format!(".{package}.Response")),
        ..Default::default()
    };
    let service = ServiceDescriptorProto {
        name: Some(name.into()),
        method: vec![method],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some(format!("{}.proto", name.to_lowercase())),
        package: Some("demo.v1".into()),
        dependency: vec!["common.proto".into()],
        service: vec![service],
        ..Default::default()
    };
    FileDescriptorSet { file: vec![common, file] }.encode_to_vec().into()
}

async fn gateway(catalog: &Arc<TestCatalog>) -> Gateway {
    Gateway::start_with(Grpc::new(Arc::new(Mesh::new()), catalog.clone()), DRAIN).await
}

fn mesh() -> Arc<TestCatalog> {
    TestCatalog::new([
        ("demo.v1.Alpha", Ok(descriptors("Alpha"))),
        ("demo.v1.Beta", Ok(descriptors("Beta"))),
        ("far.v1.Away", Err(Failure::not_started(Reason::Unreachable, "its peer is asleep"))),
        ("odd.v1.Broken", Ok(Bytes::from_static(b"not a descriptor set"))),
    ])
}

/// A conversation with a reflection service.
struct Talk {
    ask: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
    told: Streaming<ServerReflectionResponse>,
}

impl Talk {
    async fn open(channel: Channel) -> Self {
        let (ask, asked) = tokio::sync::mpsc::channel(1);
        let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
        let told = ServerReflectionClient::new(channel).server_reflection_info(asked).await;
        Self { ask, told: told.expect("a conversation").into_inner() }
    }

    async fn ask(&mut self, question: Ask) -> Told {
        let request =
            ServerReflectionRequest { host: "here".into(), message_request: Some(question) };
        self.ask.send(request.clone()).await.expect("it goes on");
        let response = self.told.message().await.expect("no failure").expect("an answer");
        assert_eq!(response.valid_host, "here");
        assert_eq!(response.original_request, Some(request));
        response.message_response.expect("an answer")
    }

    /// The names of the files that answer.
    async fn files(&mut self, question: Ask) -> Vec<(String, String)> {
        match self.ask(question).await {
            Told::FileDescriptorResponse(files) => files
                .file_descriptor_proto
                .iter()
                .map(|file| {
                    let file = FileDescriptorProto::decode(file.as_slice()).expect("a file");
                    (file.name().to_owned(), file.package().to_owned())
                })
                .collect(),
            other => panic!("no files but {other:?}"),
        }
    }

    async fn error(&mut self, question: Ask) -> (i32, String) {
        match self.ask(question).await {
            Told::ErrorResponse(error) => (error.error_code, error.error_message),
            other => panic!("no error but {other:?}"),
        }
    }
}

fn file(name: &str, package: &str) -> (String, String) {
    (name.to_owned(), package.to_owned())
}

fn symbol(name: &str) -> Ask {
    Ask::FileContainingSymbol(name.into())
}

#[tokio::test]
async fn reflection_lists_every_service_of_the_mesh() {
    let gateway = gateway(&mesh()).await;
    let mut talk = Talk::open(gateway.channel().await).await;
    let Told::ListServicesResponse(list) = talk.ask(Ask::ListServices("*".into())).await else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert_eq!(
        names,
        [
            "demo.v1.Alpha",
            "demo.v1.Beta",
            "far.v1.Away",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "odd.v1.Broken",
        ]
    );
}

#[tokio::test]
async fn services_methods_messages_and_files_are_found_with_what_they_need() {
    let gateway = gateway(&mesh()).await;
    let mut talk = Talk::open(gateway.channel().await).await;
    let alpha = [file("alpha.proto", "demo.v1"), file("common.proto", "shared.alpha")];
    assert_eq!(talk.files(symbol("demo.v1.Alpha")).await, alpha);
    assert_eq!(talk.files(symbol("demo.v1.Alpha.Do")).await, alpha);
    assert_eq!(talk.files(symbol(".demo.v1.Alpha")).await, alpha);
    assert_eq!(talk.files(Ask::FileByFilename("alpha.proto".into())).await, alpha);
    assert_eq!(talk.files(symbol("shared.alpha.Request")).await, alpha[1..]);
    // Not touched before: found among all services.
    let mut fresh = Talk::open(gateway.channel().await).await;
    assert_eq!(
        fresh.files(symbol("shared.beta.Request")).await,
        [file("common.proto", "shared.beta")]
    );
    // The gateway's own.
    let health = talk.files(symbol("grpc.health.v1.Health.Check")).await;
    assert_eq!(health[0].1, "grpc.health.v1");
}

#[tokio::test]
async fn files_of_one_name_are_told_apart_by_what_was_asked_before() {
    let gateway = gateway(&mesh()).await;
    let common = || Ask::FileByFilename("common.proto".into());
    for (service, package) in [("demo.v1.Alpha", "shared.alpha"), ("demo.v1.Beta", "shared.beta")] {
        let mut talk = Talk::open(gateway.channel().await).await;
        talk.files(symbol(service)).await;
        assert_eq!(talk.files(common()).await, [file("common.proto", package)]);
    }
}

#[tokio::test]
async fn extensions_are_found() {
    let gateway = gateway(&mesh()).await;
    let mut talk = Talk::open(gateway.channel().await).await;
    let told = talk.ask(Ask::AllExtensionNumbersOfType("shared.alpha.Options".into())).await;
    let Told::AllExtensionNumbersResponse(numbers) = told else { panic!("no numbers: {told:?}") };
    assert_eq!(
        (numbers.base_type_name.as_str(), numbers.extension_number.as_slice()),
        ("shared.alpha.Options", [1_001].as_slice())
    );
    let extension = |extension_number| {
        let containing_type = "shared.alpha.Options".into();
        Ask::FileContainingExtension(ExtensionRequest { containing_type, extension_number })
    };
    assert_eq!(talk.files(extension(1_001)).await, [file("common.proto", "shared.alpha")]);
    // Somebody's descriptors are out of reach, so "there is none" cannot be said for sure.
    assert_eq!(talk.error(extension(7)).await.0, Code::Unavailable as i32);
}

#[tokio::test]
async fn what_cannot_be_found_is_an_error_and_the_conversation_goes_on() {
    let catalog = mesh();
    let gateway = gateway(&catalog).await;
    let mut talk = Talk::open(gateway.channel().await).await;
    let (code, message) = talk.error(symbol("far.v1.Away")).await;
    assert_eq!(code, Code::Unavailable as i32);
    assert!(message.contains("its peer is asleep"), "{message}");
    let (code, message) = talk.error(symbol("odd.v1.Broken")).await;
    assert_eq!(code, Code::Internal as i32);
    assert!(message.contains("odd.v1.Broken"), "{message}");

    catalog.change(|catalog| {
        catalog.offers.lock().expect("not poisoned").retain(|name, _| name.starts_with("demo"));
    });
    for question in [
        symbol("no.such.Thing"),
        symbol(""),
        Ask::FileByFilename("no.proto".into()),
        Ask::AllExtensionNumbersOfType("no.such.Thing".into()),
    ] {
        let (code, message) = talk.error(question.clone()).await;
        assert_eq!(code, Code::NotFound as i32, "{question:?}: {message}");
    }
    talk.files(symbol("demo.v1.Beta")).await;
}

#[tokio::test]
async fn a_provider_that_changes_its_interface_is_read_anew() {
    let catalog = mesh();
    let gateway = gateway(&catalog).await;
    let mut talk = Talk::open(gateway.channel().await).await;
    assert_eq!(talk.files(symbol("demo.v1.Alpha")).await.len(), 2);
    catalog.change(|catalog| {
        let mut set = FileDescriptorSet::decode(descriptors("Alpha")).expect("a set");
        set.file.remove(0);
        let set = set.encode_to_vec().into();
        catalog.offers.lock().expect("not poisoned").insert("demo.v1.Alpha".into(), Ok(set));
    });
    assert_eq!(talk.files(symbol("demo.v1.Alpha")).await, [file("alpha.proto", "demo.v1")]);
}

#[tokio::test]
async fn the_older_version_answers_too() {
    use tonic_reflection::pb::v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let gateway = gateway(&mesh()).await;
    let questions = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("demo.v1.Beta".into()),
    ]
    .map(|question| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    });
    let mut client = ServerReflectionClient::new(gateway.channel().await);
    let told = client.server_reflection_info(tokio_stream::iter(questions)).await;
    let told: Vec<_> = told.expect("a conversation").into_inner().collect().await;
    let [Ok(list), Ok(files)] = told.as_slice() else { panic!("{told:?}") };
    assert!(matches!(list.message_response, Some(MessageResponse::ListServicesResponse(_))));
    assert!(matches!(&files.message_response,
        Some(MessageResponse::FileDescriptorResponse(files))
            if files.file_descriptor_proto.len() == 2));
}

fn check(service: &str) -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest { service: service.into() })
}

#[tokio::test]
async fn health_of_this_node_and_of_every_service() {
    let catalog = mesh();
    let gateway = gateway(&catalog).await;
    let mut client = HealthClient::new(gateway.channel().await);
    for service in ["", "demo.v1.Alpha", "grpc.health.v1.Health"] {
        let status = client.check(check(service)).await.expect("known").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    for service in ["no.such.Service", "not a name"] {
        let status = client.check(check(service)).await.expect_err("unknown");
        assert_eq!(status.code(), Code::NotFound, "{service}");
    }
    catalog.change(|catalog| *catalog.serving.lock().expect("not poisoned") = false);
    let status = client.check(check("")).await.expect("known").into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);
}

#[tokio::test]
async fn a_watch_tells_every_change_and_nothing_else() {
    let catalog = mesh();
    let gateway = gateway(&catalog).await;
    let mut client = HealthClient::new(gateway.channel().await);
    let mut watch = client.watch(check("new.v1.Service")).await.expect("a watch").into_inner();
    let mut next =
        async || watch.message().await.expect("no failure").expect("it goes on").status();
    assert_eq!(next().await, ServingStatus::ServiceUnknown);
    // Changes that do not matter to it are not told.
    catalog.change(|_| {});
    catalog.change(|catalog| {
        let mut offers = catalog.offers.lock().expect("not poisoned");
        offers.insert("new.v1.Service".into(), Ok(Bytes::new()));
    });
    assert_eq!(next().await, ServingStatus::Serving);
    catalog.change(|catalog| {
        catalog.offers.lock().expect("not poisoned").remove("new.v1.Service");
    });
    assert_eq!(next().await, ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn the_node_can_answer_services_of_its_own() {
    let (reporter, server) = tonic_health::server::health_reporter();
    reporter.set_service_status("only.here", tonic_health::ServingStatus::Serving).await;
    let routes = Routes::new(server).into_axum_router();
    let name = "grpc.health.v1.Health".parse().expect("a service name");
    let grpc = Grpc::new(Arc::new(Mesh::new()), mesh()).with_routes([name], &routes);
    let gateway = Gateway::start_with(grpc, DRAIN).await;
    let mut client = HealthClient::new(gateway.channel().await);
    client.check(check("only.here")).await.expect("the added service answers");
    client.check(check("demo.v1.Alpha")).await.expect_err("in the mesh's place");
}
