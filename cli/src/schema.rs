//! Interfaces of services unknown when this was built: descriptors in, and between JSON and the
//! bytes of messages. Pure.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
    ServiceDescriptor,
};
use prost_types::FileDescriptorSet;
use protocol::service::{MethodPath, ServiceName};
use serde_json::Value;

/// Fields named in the advice after a request that does not fit; more would hide the point.
const FIELDS_NAMED_MAX: usize = 20;

/// A set of descriptors that belong together.
#[derive(Debug)]
pub struct Schema {
    pool: DescriptorPool,
}

impl Schema {
    /// Reads an encoded `google.protobuf.FileDescriptorSet`. Imports of protobuf's own well-known
    /// types may be missing from it; they are known here.
    pub fn read(bytes: &[u8]) -> Result<Self, SchemaError> {
        let damaged = |reason: String| SchemaError::Damaged { reason };
        let mut set = FileDescriptorSet::decode(bytes).map_err(|e| damaged(e.to_string()))?;
        let missing: Vec<String> = {
            let held = |name: &String| set.file.iter().any(|file| file.name() == name);
            let imports = set.file.iter().flat_map(|file| &file.dependency);
            imports.filter(|name| !held(name)).cloned().collect()
        };
        let known = DescriptorPool::global();
        let wanted = known.files().filter(|file| missing.iter().any(|name| name == file.name()));
        set.file.extend(wanted.map(|file| file.file_descriptor_proto().clone()));
        let pool = DescriptorPool::from_file_descriptor_set(set);
        Ok(Self { pool: pool.map_err(|e| damaged(e.to_string()))? })
    }

    /// One service of the set.
    pub fn service(&self, name: &ServiceName) -> Result<ServiceDescriptor, SchemaError> {
        let found = self.pool.get_service_by_name(name.as_str());
        found.ok_or_else(|| SchemaError::NoService { service: name.clone() })
    }

    /// One method of one of its services.
    pub fn method(&self, path: &MethodPath) -> Result<MethodDescriptor, SchemaError> {
        let service = self.service(&path.service())?;
        let found = service.methods().find(|method| method.name() == path.method());
        found.ok_or_else(|| SchemaError::NoMethod {
            service: path.service(),
            method: path.method().into(),
            known: service.methods().map(|method| method.name().to_owned()).collect(),
        })
    }
}

/// A request's bytes from its canonical JSON form.
pub fn encode(kind: &MessageDescriptor, request: Value) -> Result<Bytes, RequestError> {
    let message = DynamicMessage::deserialize(kind.clone(), request).map_err(|error| {
        let mut fields: Vec<String> = kind.fields().map(|f| f.json_name().to_owned()).collect();
        if fields.len() > FIELDS_NAMED_MAX {
            fields.truncate(FIELDS_NAMED_MAX);
            fields.push("…".into());
        }
        RequestError::DoesNotFit {
            kind: kind.full_name().into(),
            reason: error.to_string(),
            fields,
        }
    })?;
    Ok(message.encode_to_vec().into())
}

/// An answer's canonical JSON form from its bytes.
pub fn decode(kind: &MessageDescriptor, answer: Bytes, form: Form) -> Result<String, AnswerError> {
    let refused = |reason: String| AnswerError { kind: kind.full_name().into(), reason };
    let message =
        DynamicMessage::decode(kind.clone(), answer).map_err(|e| refused(e.to_string()))?;
    let options = SerializeOptions::new().skip_default_fields(!form.defaults);
    let mut text = Vec::new();
    let written = if form.compact {
        message.serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
    } else {
        message.serialize_with_options(&mut serde_json::Serializer::pretty(&mut text), &options)
    };
    written.map_err(|e| refused(e.to_string()))?;
    String::from_utf8(text).map_err(|e| refused(e.to_string()))
}

/// How answers are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Form {
    /// On one line.
    pub compact: bool,
    /// With the fields that have their default value.
    pub defaults: bool,
}

/// The descriptors do not have what is asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// They cannot be read.
    #[error("the service's descriptors cannot be read: {reason}")]
    Damaged {
        /// What is wrong with them.
        reason: String,
    },
    /// The service is not among them.
    #[error("the descriptors do not contain {service}")]
    NoService {
        /// The service asked for.
        service: ServiceName,
    },
    /// The service has no such method.
    #[error("{service} has no method {method}; it has {}", .known.join(", "))]
    NoMethod {
        /// The service asked for.
        service: ServiceName,
        /// The method asked for.
        method: String,
        /// Those it has.
        known: Vec<String>,
    },
}

/// What was given is not a request of this method.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not JSON.
    #[error("the request is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// The file or standard input cannot be read.
    #[error("the request cannot be read from {from}: {source}")]
    Unreadable {
        /// Where it was read from.
        from: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// JSON of something else.
    #[error("the request is not a {kind}: {reason}\nits fields: {}", .fields.join(", "))]
    DoesNotFit {
        /// The message type expected.
        kind: String,
        /// What does not fit.
        reason: String,
        /// Names of its fields.
        fields: Vec<String>,
    },
    /// One message expected.
    #[error("{method} takes exactly one message, and {found}")]
    NotOne {
        /// The method called.
        method: String,
        /// What was given instead.
        found: &'static str,
    },
}

/// The answer is not what the descriptors announce.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a {kind}: {reason}")]
pub struct AnswerError {
    kind: String,
    reason: String,
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A small set of descriptors as a server with reflection would give: comments included,
    /// well-known types left out. As text, because the compiler of contracts would bring features
    /// of its own into what the product is built with.
    pub fn descriptors() -> Vec<u8> {
        let kind = DescriptorPool::global()
            .get_message_by_name("google.protobuf.FileDescriptorSet")
            .expect("a well-known type");
        let mut text = serde_json::Deserializer::from_str(include_str!("demo.descriptors.json"));
        DynamicMessage::deserialize(kind, &mut text).expect("descriptors").encode_to_vec()
    }

    fn schema() -> Schema {
        Schema::read(&descriptors()).expect("readable")
    }

    fn method(name: &str) -> MethodDescriptor {
        let path = format!("demo.v1.Counter/{name}").parse().expect("a path");
        schema().method(&path).expect(name)
    }

    #[test]
    fn json_becomes_the_bytes_protobuf_defines() {
        let kind = method("Add").input();
        let bytes = encode(&kind, json!({"amount": "3"})).expect("fits");
        assert_eq!(bytes[..], [0x08, 0x03]);
        let bytes = encode(&kind, json!({"rawData": "AQI=", "colours": ["RED"]})).expect("fits");
        assert_eq!(bytes[..], [0x1a, 0x01, 0x01, 0x42, 0x02, 0x01, 0x02]);
        assert!(encode(&kind, json!({})).expect("fits").is_empty());
    }

    #[test]
    fn what_goes_in_comes_out() {
        let kind = method("Add").input();
        let request = json!({
            "amount": "-9223372036854775808",
            "note": "",
            "colours": ["RED", "COLOUR_UNSPECIFIED"],
            "parts": {"a": {"weight": 0.5, "inner": {"size": "BIG"}}},
            "fast": false,
            "at": "2024-01-15T10:30:00Z",
            "rawData": "AQI="
        });
        let bytes = encode(&kind, request.clone()).expect("fits");
        let text = decode(&kind, bytes, Form { compact: true, defaults: false }).expect("decodes");
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), request);
    }

    #[test]
    fn default_values_are_shown_when_asked_for() {
        let kind = method("Add").output();
        let form = Form { compact: true, defaults: true };
        let text = decode(&kind, Bytes::new(), form).expect("decodes");
        assert_eq!(text, r#"{"count":"0","from":""}"#);
    }

    #[test]
    fn a_request_that_does_not_fit_says_what_would() {
        let error = encode(&method("Add").input(), json!({"amout": 3})).expect_err("misspelt");
        let text = error.to_string();
        assert!(text.starts_with("the request is not a demo.v1.AddRequest: "), "{text}");
        assert!(text.contains("amout") && text.contains("its fields: amount, note"), "{text}");
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        let garbage = Bytes::from_static(&[0xff; 4]);
        let error = decode(&method("Add").output(), garbage, Form::default());
        assert!(error.expect_err("garbage").to_string().contains("not a demo.v1.AddReply"));
    }

    #[test]
    fn an_unknown_method_names_the_known_ones() {
        let path = "demo.v1.Counter/Substract".parse().expect("a path");
        let error = schema().method(&path).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "demo.v1.Counter has no method Substract; it has Add, Watch, Sum, Chat"
        );
    }

    #[test]
    fn damaged_descriptors_are_refused() {
        assert!(matches!(Schema::read(&[0xff, 0xff]), Err(SchemaError::Damaged { .. })));
        let cut = &descriptors()[..40];
        assert!(Schema::read(cut).is_err());
    }
}
