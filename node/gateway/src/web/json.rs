//! JSON in the place of protobuf, by the plugin's own descriptors. The one place where the node
//! looks into messages, and only into those of callers who ask in JSON (`docs/adr/0013`).
//!
//! Source: *ProtoJSON format*. Fields that the descriptors do not know are left out, as Connect's
//! servers do.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor,
    SerializeOptions,
};
use prost_types::method_options::IdempotencyLevel::NoSideEffects;
use protocol::{
    failure::{Failure, Reason},
    service::{MethodPath, ServiceName},
};

use super::refusal::No;
use crate::{
    bounds::{INDEXES_KEPT_MAX, JSON_BYTES_MAX, REFLECTION_ANSWER},
    catalog::Catalog,
    rescue::Refusal,
};

/// The one service without a plugin that JSON is of use for.
const HEALTH: &str = "grpc.health.v1.Health";

/// What is shown of an error in a message, in bytes.
const SHOWN_BYTES_MAX: usize = 300;

/// Finds the messages of methods.
pub(super) struct Translator {
    catalog: Arc<dyn Catalog>,
    /// Descriptor sets that were read, beside their bytes: a plugin's next version has others.
    pools: Mutex<HashMap<ServiceName, (Bytes, DescriptorPool)>>,
}

/// The two messages of a method.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    input: MessageDescriptor,
    output: MessageDescriptor,
}

impl Translator {
    pub(super) fn new(catalog: Arc<dyn Catalog>) -> Self {
        Self { catalog, pools: Mutex::default() }
    }

    /// The messages of the method at `path`; asked of a provider until `deadline`.
    pub(super) async fn shape(
        &self,
        path: &MethodPath,
        deadline: Option<Instant>,
    ) -> Result<Shape, No> {
        let method = self.method(path, deadline).await?;
        Ok(Shape { input: method.input(), output: method.output() })
    }

    /// Whether the method at `path` is unary and says that it has no side effects.
    pub(super) async fn is_safe(&self, path: &MethodPath) -> Result<bool, No> {
        let method = self.method(path, None).await?;
        let says = method.method_descriptor_proto().options.as_ref();
        let says = says.is_some_and(|says| says.idempotency_level() == NoSideEffects);
        Ok(says && !method.is_client_streaming() && !method.is_server_streaming())
    }

    async fn method(
        &self,
        path: &MethodPath,
        deadline: Option<Instant>,
    ) -> Result<MethodDescriptor, No> {
        let service = path.service();
        let patience = Instant::now() + REFLECTION_ANSWER;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let set = if service.as_str() == HEALTH {
            Bytes::from_static(tonic_health::pb::FILE_DESCRIPTOR_SET)
        } else {
            self.catalog.descriptors(service.clone(), until).await?
        };
        let pool = self.pool(service.clone(), set)?;
        let missing = |what: &str| {
            let message = format!("{what}: call it by POST in protobuf, or not at all");
            No::from(Refusal::Unimplemented(message))
        };
        let described = pool.get_service_by_name(service.as_str());
        let described =
            described.ok_or_else(|| missing(&format!("{service} does not describe itself")))?;
        let mut methods = described.methods();
        methods
            .find(|method| method.name() == path.method())
            .ok_or_else(|| missing(&format!("{service} describes no method {}", path.method())))
    }

    fn pool(&self, service: ServiceName, set: Bytes) -> Result<DescriptorPool, Failure> {
        if let Some((known, pool)) = self.pools.lock().get(&service)
            && *known == set
        {
            return Ok(pool.clone());
        }
        let pool = DescriptorPool::decode(set.clone()).map_err(|error| {
            let error = shown(&error.to_string());
            let message = format!("the descriptors of {service} cannot be used: {error}");
            Failure::failed(Reason::Malformed, message)
        })?;
        let mut pools = self.pools.lock();
        if pools.len() >= INDEXES_KEPT_MAX
            && !pools.contains_key(&service)
            && let Some(any) = pools.keys().next().cloned()
        {
            pools.remove(&any);
        }
        pools.insert(service, (set, pool.clone()));
        Ok(pool)
    }
}

impl Shape {
    /// A request in JSON, as the plugin reads it.
    pub(super) fn to_proto(&self, json: &[u8]) -> Result<Vec<u8>, No> {
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut reader = serde_json::Deserializer::from_slice(json);
        let read =
            DynamicMessage::deserialize_with_options(self.input.clone(), &mut reader, &options);
        let read = read.and_then(|message| reader.end().map(|()| message));
        read.map(|message| message.encode_to_vec()).map_err(|error| {
            let (name, error) = (self.input.full_name(), shown(&error.to_string()));
            No::invalid(format!("the message is not a {name} in JSON: {error}"))
        })
    }

    /// An answer of the plugin, in JSON.
    pub(super) fn to_json(&self, proto: &[u8]) -> Result<Vec<u8>, Failure> {
        let name = self.output.full_name();
        if proto.len() > JSON_BYTES_MAX {
            return Err(too_large(name));
        }
        let message = DynamicMessage::decode(self.output.clone(), proto).map_err(|error| {
            let error = shown(&error.to_string());
            let message = format!("the plugin answered with what is no {name}: {error}");
            Failure::failed(Reason::Malformed, message)
        })?;
        let mut writer = serde_json::Serializer::new(Bounded(Vec::new()));
        message
            .serialize_with_options(&mut writer, &SerializeOptions::new())
            .map(|()| writer.into_inner().0)
            .map_err(
                |error| if error.is_io() { too_large(name) } else { unspeakable(name, &error) },
            )
    }
}

fn too_large(name: &str) -> Failure {
    let message = format!(
        "the plugin answered with a {name} of more than the {JSON_BYTES_MAX} bytes that are \
         translated: ask in protobuf"
    );
    Failure::failed(Reason::TooLarge, message)
}

fn unspeakable(name: &str, error: &serde_json::Error) -> Failure {
    let error = shown(&error.to_string());
    Failure::failed(Reason::Malformed, format!("the {name} has no form in JSON: {error}"))
}

fn shown(text: &str) -> String {
    text[..text.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned()
}

/// How long a request that is needed whole may take to come.
pub(super) const WHOLE_WITHIN: Duration = Duration::from_secs(30);

/// JSON can be many times as long as what it tells: names of enum values, say.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > JSON_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Shape {
        let set = tonic_health::pb::FILE_DESCRIPTOR_SET;
        let pool = DescriptorPool::decode(set).expect("descriptors");
        let named = |name: &str| pool.get_message_by_name(name).expect("a message");
        Shape {
            input: named("grpc.health.v1.HealthCheckRequest"),
            output: named("grpc.health.v1.HealthCheckResponse"),
        }
    }

    #[test]
    fn messages_are_translated_both_ways_and_unknown_fields_are_left_out() {
        let shape = health();
        let proto = shape.to_proto(br#"{"service": "a", "new": [1]}"#).expect("a message");
        assert_eq!(proto, b"\x0a\x01a");
        assert_eq!(shape.to_json(b"\x08\x01").expect("JSON"), br#"{"status":"SERVING"}"#);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let shape = health();
        let deep = vec![b'['; 100_000];
        for bad in [b"".as_slice(), b"{", b"{} {}", br#"{"service": 1}"#, b"[]", &deep] {
            assert!(matches!(shape.to_proto(bad), Err(No::Refused(_))));
        }
        assert!(shape.to_json(b"\xff").is_err());
    }
}
