//! What a plugin serves: asked by server reflection (v1, then v1alpha), or read from its package;
//! and the hash by which two versions of an interface are told apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use protocol::{
    limits::DESCRIPTORS_BYTES_MAX, proto::plugin::lifecycle_server::SERVICE_NAME as LIFECYCLE,
    service::ServiceName,
};
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic_reflection::pb;

use crate::channel::{Asking, Channel};

/// Services one plugin may offer, and files that describe them: more is a program gone wrong.
const SERVICES_MAX: usize = 64;
const FILES_MAX: usize = 1_024;

/// What a plugin says it serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub(crate) services: Vec<ServiceName>,
    /// It names the `Lifecycle` contract among them.
    pub(crate) lifecycle: bool,
    /// Why services are known but not their descriptors.
    pub(crate) warning: Option<String>,
    files: BTreeMap<String, FileDescriptorProto>,
}

impl Description {
    /// Reads an encoded `FileDescriptorSet`.
    pub(crate) fn from_set(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > DESCRIPTORS_BYTES_MAX {
            return Err(format!("it has more than {DESCRIPTORS_BYTES_MAX} bytes"));
        }
        let set = FileDescriptorSet::decode(bytes)
            .map_err(|error| format!("it is not a FileDescriptorSet: {error}"))?;
        let mut description = Self::default();
        for file in set.file {
            description.add(file);
        }
        description.services =
            description.defined().filter(is_offered).take(SERVICES_MAX).collect();
        Ok(description)
    }

    fn add(&mut self, mut file: FileDescriptorProto) {
        // Comments and positions are the author's, and often most of the bytes.
        file.source_code_info = None;
        self.files.insert(file.name().to_owned(), file);
    }

    fn defined(&self) -> impl Iterator<Item = ServiceName> + '_ {
        self.files.values().flat_map(|file| {
            file.service.iter().filter_map(|service| full_name(file, service.name()))
        })
    }

    /// Everything needed to understand `services`, dependencies first.
    pub(crate) fn encode(&self, services: &[ServiceName]) -> Bytes {
        FileDescriptorSet { file: self.needed(services) }.encode_to_vec().into()
    }

    fn needed(&self, services: &[ServiceName]) -> Vec<FileDescriptorProto> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for service in services {
            if let Some(file) = self.file_of(service) {
                self.visit(file, &mut seen, &mut order);
            }
        }
        order.iter().filter_map(|name| self.files.get(*name).cloned()).collect()
    }

    /// The sha2-256 of the files that `service` needs, without what differs between compilers, or
    /// zeros where they are not known.
    pub(crate) fn schema(&self, service: &ServiceName) -> [u8; 32] {
        if self.file_of(service).is_none() {
            return [0; 32];
        }
        let needed = self.needed(std::slice::from_ref(service));
        let file = needed.into_iter().map(plain).collect();
        Sha256::digest(FileDescriptorSet { file }.encode_to_vec()).into()
    }

    fn file_of(&self, service: &ServiceName) -> Option<&str> {
        let holds = |file: &FileDescriptorProto| {
            file.service.iter().any(|found| full_name(file, found.name()).as_ref() == Some(service))
        };
        self.files.values().find(|file| holds(file)).map(FileDescriptorProto::name)
    }

    /// Depth first, dependencies in the order of their names: the same files always give the same
    /// order.
    fn visit<'a>(&'a self, file: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<&'a str>) {
        if !seen.insert(file) {
            return;
        }
        let Some(found) = self.files.get(file) else { return };
        let needs: BTreeSet<&str> = found.dependency.iter().map(String::as_str).collect();
        for need in needs {
            self.visit(need, seen, order);
        }
        order.push(file);
    }

    fn missing(&self) -> Option<String> {
        let needs = self.files.values().flat_map(|file| file.dependency.iter());
        needs.filter(|need| !self.files.contains_key(*need)).min().cloned()
    }
}

fn full_name(file: &FileDescriptorProto, service: &str) -> Option<ServiceName> {
    match file.package() {
        "" => service.parse().ok(),
        package => format!("{package}.{service}").parse().ok(),
    }
}

/// Services that belong to each program itself are not offered to the mesh.
fn is_offered(name: &ServiceName) -> bool {
    !name.is_infrastructure() && !name.as_str().starts_with("blackhole.plugin.")
}

/// Without what differs between compilers and says nothing about the wire.
fn plain(mut file: FileDescriptorProto) -> FileDescriptorProto {
    fn strip(message: &mut DescriptorProto) {
        let fields = message.field.iter_mut().chain(&mut message.extension);
        fields.for_each(|field| field.json_name = None);
        message.nested_type.iter_mut().for_each(strip);
    }
    if file.syntax.as_deref() == Some("proto2") {
        file.syntax = None;
    }
    file.extension.iter_mut().for_each(|field| field.json_name = None);
    file.message_type.iter_mut().for_each(strip);
    file
}

/// Asks the plugin itself. `None` where it has no reflection.
pub(crate) async fn reflect(
    channel: &Arc<Channel>,
    deadline: Instant,
) -> Result<Option<Description>, String> {
    match v1::ask(channel, deadline).await {
        Err(Asked::NotThere) => {}
        Err(Asked::Failed(reason)) => return Err(reason),
        Ok(description) => return Ok(Some(description)),
    }
    match v1alpha::ask(channel, deadline).await {
        Err(Asked::NotThere) => Ok(None),
        Err(Asked::Failed(reason)) => Err(reason),
        Ok(description) => Ok(Some(description)),
    }
}

enum Asked {
    NotThere,
    Failed(String),
}

impl From<Status> for Asked {
    fn from(status: Status) -> Self {
        match status.code() {
            tonic::Code::Unimplemented => Self::NotThere,
            code => Self::Failed(format!("reflection: {code}: {}", status.message())),
        }
    }
}

fn failed(reason: impl Into<String>) -> Asked {
    Asked::Failed(reason.into())
}

/// The same conversation with the types of one version; the two differ in nothing but the name.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use super::{
                Arc, Asked, Asking, Channel, DESCRIPTORS_BYTES_MAX, Description, FILES_MAX,
                FileDescriptorProto, Instant, LIFECYCLE, Message, ReceiverStream, SERVICES_MAX,
                ServiceName, failed, is_offered,
                pb::$version::{
                    ServerReflectionRequest, ServerReflectionResponse,
                    server_reflection_client::ServerReflectionClient,
                    server_reflection_request::MessageRequest,
                    server_reflection_response::MessageResponse,
                },
            };

            struct Conversation {
                ask: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
                answers: tonic::Streaming<ServerReflectionResponse>,
                bytes: usize,
            }

            pub(super) async fn ask(
                channel: &Arc<Channel>,
                deadline: Instant,
            ) -> Result<Description, Asked> {
                let mut client = ServerReflectionClient::new(Asking::until(channel, deadline))
                    .max_decoding_message_size(DESCRIPTORS_BYTES_MAX);
                // One question at a time.
                let (ask, questions) = tokio::sync::mpsc::channel(1);
                // The first question goes before the answer's head may come.
                let first = request(MessageRequest::ListServices(String::new()));
                ask.send(first).await.map_err(|_| failed("reflection ended"))?;
                let answers = client.server_reflection_info(ReceiverStream::new(questions)).await?;
                let mut talk = Conversation { ask, answers: answers.into_inner(), bytes: 0 };
                let services = match talk.answer().await? {
                    MessageResponse::ListServicesResponse(list) => list.service,
                    MessageResponse::ErrorResponse(error) => {
                        return Err(failed(format!("reflection: {}", error.error_message)));
                    }
                    _ => return Err(failed("reflection answers another question")),
                };
                let mut description = Description::default();
                for service in services {
                    description.lifecycle |= service.name == LIFECYCLE;
                    let name = service.name.parse::<ServiceName>();
                    description.services.extend(name.ok().filter(is_offered));
                }
                description.services.sort();
                description.services.dedup();
                if description.services.len() > SERVICES_MAX {
                    return Err(failed(format!("it offers more than {SERVICES_MAX} services")));
                }
                if let Err(Asked::Failed(reason)) = talk.files(&mut description).await {
                    description.files.clear();
                    description.warning = Some(format!("its descriptors are not known: {reason}"));
                }
                Ok(description)
            }

            impl Conversation {
                async fn files(&mut self, description: &mut Description) -> Result<(), Asked> {
                    for service in description.services.clone() {
                        if description.file_of(&service).is_none() {
                            let symbol = service.as_str().to_owned();
                            self.file(MessageRequest::FileContainingSymbol(symbol), description)
                                .await?;
                        }
                    }
                    let mut unknown = std::collections::BTreeSet::new();
                    while let Some(name) = description.missing() {
                        let before = description.files.len();
                        self.file(MessageRequest::FileByFilename(name.clone()), description)
                            .await?;
                        if description.files.len() == before || !unknown.insert(name.clone()) {
                            return Err(failed(format!("reflection does not know {name}")));
                        }
                    }
                    Ok(())
                }

                async fn file(
                    &mut self,
                    question: MessageRequest,
                    description: &mut Description,
                ) -> Result<(), Asked> {
                    let asked = self.ask.send(request(question)).await;
                    asked.map_err(|_| failed("reflection ended"))?;
                    let files = match self.answer().await? {
                        MessageResponse::FileDescriptorResponse(files) => files,
                        MessageResponse::ErrorResponse(error) => {
                            return Err(failed(format!("reflection: {}", error.error_message)));
                        }
                        _ => return Err(failed("reflection answers another question")),
                    };
                    for bytes in files.file_descriptor_proto {
                        self.bytes += bytes.len();
                        let file = FileDescriptorProto::decode(bytes.as_slice());
                        description.add(file.map_err(|error| failed(error.to_string()))?);
                    }
                    if self.bytes > DESCRIPTORS_BYTES_MAX || description.files.len() > FILES_MAX {
                        return Err(failed("its descriptors are larger than allowed"));
                    }
                    Ok(())
                }

                async fn answer(&mut self) -> Result<MessageResponse, Asked> {
                    let answer = self.answers.message().await?;
                    let answer = answer.and_then(|answer| answer.message_response);
                    answer.ok_or_else(|| failed("reflection ended without an answer"))
                }
            }

            fn request(question: MessageRequest) -> ServerReflectionRequest {
                ServerReflectionRequest { host: String::new(), message_request: Some(question) }
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);

#[cfg(test)]
mod tests {
    use prost_types::{
        FieldDescriptorProto, ServiceDescriptorProto, SourceCodeInfo, field_descriptor_proto::Type,
    };

    use super::*;

    fn file(name: &str, package: &str, services: &[&str], needs: &[&str]) -> FileDescriptorProto {
        FileDescriptorProto {
            name: Some(name.into()),
            package: Some(package.into()),
            dependency: needs.iter().map(ToString::to_string).collect(),
            service: services
                .iter()
                .map(|name| ServiceDescriptorProto {
                    name: Some((*name).into()),
                    ..ServiceDescriptorProto::default()
                })
                .collect(),
            ..FileDescriptorProto::default()
        }
    }

    fn description(files: Vec<FileDescriptorProto>) -> Description {
        let bytes = FileDescriptorSet { file: files }.encode_to_vec();
        Description::from_set(&bytes).expect("valid")
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect(text)
    }

    #[test]
    fn services_are_found_and_infrastructure_is_not_offered() {
        let found = description(vec![
            file("a.proto", "demo.v1", &["Counter", "Echo"], &[]),
            file("h.proto", "grpc.health.v1", &["Health"], &[]),
            file("l.proto", "blackhole.plugin.v1", &["Lifecycle"], &[]),
        ]);
        assert_eq!(found.services, [name("demo.v1.Counter"), name("demo.v1.Echo")]);
    }

    #[test]
    fn the_hash_depends_on_what_the_service_needs_and_on_nothing_else() {
        let base = || {
            vec![
                file("b.proto", "demo", &[], &[]),
                file("a.proto", "demo.v1", &["Counter"], &["b.proto"]),
                file("c.proto", "other", &["Other"], &[]),
            ]
        };
        let hash = |files| description(files).schema(&name("demo.v1.Counter"));
        let wanted = hash(base());
        assert_ne!(wanted, [0; 32]);

        let mut reordered = base();
        reordered.reverse();
        assert_eq!(hash(reordered), wanted, "order of files");

        let mut decorated = base();
        decorated[1].source_code_info = Some(SourceCodeInfo::default());
        decorated[2].package = Some("changed".into());
        assert_eq!(hash(decorated), wanted, "comments and unrelated files");

        let mut changed = base();
        changed[0].message_type.push(DescriptorProto {
            name: Some("New".into()),
            field: vec![FieldDescriptorProto {
                name: Some("x".into()),
                r#type: Some(Type::Int32.into()),
                ..FieldDescriptorProto::default()
            }],
            ..DescriptorProto::default()
        });
        assert_ne!(hash(changed), wanted, "a dependency's message");
    }

    #[test]
    fn a_service_without_descriptors_has_no_hash() {
        assert_eq!(Description::default().schema(&name("demo.v1.Counter")), [0; 32]);
    }

    #[test]
    fn dependencies_come_first_and_circles_end() {
        let found = description(vec![
            file("a.proto", "demo.v1", &["A"], &["b.proto"]),
            file("b.proto", "demo.v1", &[], &["a.proto", "gone.proto"]),
        ]);
        let set = FileDescriptorSet::decode(found.encode(&found.services)).expect("valid");
        let names: Vec<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
        assert_eq!(names, ["b.proto", "a.proto"]);
    }
}
