//! gRPC reflection, v1 and v1alpha, for the whole mesh: `grpcurl list` against any peer lists
//! every service that any peer offers.
//!
//! Descriptors are fetched from providers through the [`Catalog`] as questions need them. Each
//! service's descriptor set is a world of its own: two services may have different files of the
//! same name, so a conversation looks first into the sets that it has already touched.

mod answers;
mod index;

use std::{pin::Pin, sync::Arc};

use axum::Router;
use futures::{Stream, stream};
use protocol::service::ServiceName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming, service::RoutesBuilder};

use self::answers::{Answer, Conversation, Library, Question};
use crate::{
    bounds::{OWN_STREAMS_MAX, QUESTION_BYTES_MAX},
    catalog::Catalog,
    grpc::busy,
};

/// The two reflection services: their names and what answers them.
pub(crate) fn routes(catalog: Arc<dyn Catalog>) -> ([ServiceName; 2], Router) {
    let mesh = Arc::new(MeshReflection {
        library: Arc::new(Library::new(catalog)),
        streams: Arc::new(Semaphore::new(OWN_STREAMS_MAX)),
    });
    let mut routes = RoutesBuilder::default();
    routes.add_service(v1::server(Arc::clone(&mesh)));
    routes.add_service(v1alpha::server(mesh));
    let name = |text: &str| text.parse().expect("a service name");
    let names = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
    (names.map(name), routes.routes().into_axum_router())
}

struct MeshReflection {
    library: Arc<Library>,
    streams: Arc<Semaphore>,
}

/// The two versions differ in their package's name only, and so do their generated types.
macro_rules! version {
    ($version:ident) => {
        mod $version {
            use tonic_reflection::pb::$version::{
                self as pb,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
                server_reflection_server::{ServerReflection, ServerReflectionServer},
            };

            use super::*;

            /// One of the two services. (A type of its own, because both traits name their method
            /// alike.)
            pub(super) struct Service(Arc<MeshReflection>);

            pub(super) fn server(mesh: Arc<MeshReflection>) -> ServerReflectionServer<Service> {
                ServerReflectionServer::new(Service(mesh))
                    .max_decoding_message_size(QUESTION_BYTES_MAX)
            }

            /// One stream of questions, being answered in turn.
            struct Talk {
                questions: Streaming<pb::ServerReflectionRequest>,
                conversation: Conversation,
                _permit: OwnedSemaphorePermit,
            }

            #[tonic::async_trait]
            impl ServerReflection for Service {
                type ServerReflectionInfoStream = Pin<
                    Box<dyn Stream<Item = Result<pb::ServerReflectionResponse, Status>> + Send>,
                >;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<pb::ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let streams = Arc::clone(&self.0.streams);
                    let talk = Talk {
                        questions: request.into_inner(),
                        conversation: Conversation::new(Arc::clone(&self.0.library)),
                        _permit: streams.try_acquire_owned().map_err(|_| busy())?,
                    };
                    Ok(Response::new(Box::pin(stream::try_unfold(talk, next))))
                }
            }

            async fn next(
                mut talk: Talk,
            ) -> Result<Option<(pb::ServerReflectionResponse, Talk)>, Status> {
                let Some(request) = talk.questions.message().await? else { return Ok(None) };
                let answer = talk.conversation.answer(question(&request)).await;
                let response = pb::ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(response(answer)),
                };
                Ok(Some((response, talk)))
            }

            fn question(request: &pb::ServerReflectionRequest) -> Question {
                match request.message_request.clone() {
                    Some(MessageRequest::FileByFilename(name)) => Question::File(name),
                    Some(MessageRequest::FileContainingSymbol(name)) => Question::Symbol(name),
                    Some(MessageRequest::FileContainingExtension(asked)) => Question::Extension {
                        of: asked.containing_type,
                        number: asked.extension_number,
                    },
                    Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                        Question::ExtensionNumbers(name)
                    }
                    Some(MessageRequest::ListServices(_)) => Question::Services,
                    None => Question::Nothing,
                }
            }

            fn response(answer: Answer) -> MessageResponse {
                match answer {
                    Answer::Files(files) => {
                        let file_descriptor_proto =
                            files.into_iter().map(|file| file.to_vec()).collect();
                        MessageResponse::FileDescriptorResponse(pb::FileDescriptorResponse {
                            file_descriptor_proto,
                        })
                    }
                    Answer::ExtensionNumbers { of, numbers } => {
                        MessageResponse::AllExtensionNumbersResponse(pb::ExtensionNumberResponse {
                            base_type_name: of,
                            extension_number: numbers,
                        })
                    }
                    Answer::Services(names) => {
                        let service =
                            names.into_iter().map(|name| pb::ServiceResponse { name }).collect();
                        MessageResponse::ListServicesResponse(pb::ListServiceResponse { service })
                    }
                    Answer::Error { code, message } => {
                        MessageResponse::ErrorResponse(pb::ErrorResponse {
                            error_code: code,
                            error_message: message,
                        })
                    }
                }
            }
        }
    };
}

version!(v1);
version!(v1alpha);
