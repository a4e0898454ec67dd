//! What methods declare of themselves in their descriptors: `option idempotency_level` of
//! `IDEMPOTENT` or `NO_SIDE_EFFECTS`, and whether they stream.
//!
//! Owns reading it once for each set of descriptors. Refuses to fetch them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use prost_types::{
    FileDescriptorSet, MethodDescriptorProto, MethodOptions, method_options::IdempotencyLevel,
};
use protocol::service::ServiceName;
use router::Declaration;

/// Services whose methods are kept. Each keeps its descriptors alive, which others keep as well.
const SERVICES_KEPT_MAX: usize = 256;

/// What was read.
#[derive(Default)]
pub struct Declarations(Mutex<HashMap<ServiceName, Read>>);

/// What the methods of one service declare, and what it was read from.
type Read = (Bytes, Arc<BTreeMap<String, Declaration>>);

impl Declarations {
    /// What `descriptors`, a `FileDescriptorSet`, say of the method.
    pub fn of(&self, service: &ServiceName, method: &str, descriptors: &Bytes) -> Declaration {
        let kept = self.0.lock().get(service).cloned();
        let methods = match kept {
            Some((from, methods)) if from == descriptors => methods,
            _ => {
                let methods = Arc::new(read(service, descriptors));
                let mut all = self.0.lock();
                if all.len() >= SERVICES_KEPT_MAX {
                    all.clear();
                }
                all.insert(service.clone(), (descriptors.clone(), Arc::clone(&methods)));
                methods
            }
        };
        methods.get(method).copied().unwrap_or_default()
    }
}

/// What each method of `service` declares; nothing where the bytes cannot be read.
fn read(service: &ServiceName, descriptors: &[u8]) -> BTreeMap<String, Declaration> {
    let Ok(set) = FileDescriptorSet::decode(descriptors) else { return BTreeMap::new() };
    let mut methods = BTreeMap::new();
    for file in set.file {
        let package = file.package.unwrap_or_default();
        for found in file.service {
            let name = found.name.unwrap_or_default();
            let full = if package.is_empty() { name } else { format!("{package}.{name}") };
            if full == service.as_str() {
                let declared = found.method.into_iter().filter_map(|method| {
                    let declaration = declaration(&method);
                    Some((method.name?, declaration))
                });
                methods.extend(declared);
            }
        }
    }
    methods
}

fn declaration(method: &MethodDescriptorProto) -> Declaration {
    use IdempotencyLevel::{IdempotencyUnknown, NoSideEffects};
    let level =
        method.options.as_ref().map_or(IdempotencyUnknown, MethodOptions::idempotency_level);
    let streams = method.client_streaming() || method.server_streaming();
    Declaration {
        may_run_twice: level != IdempotencyUnknown,
        cacheable: level == NoSideEffects && !streams,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{FileDescriptorProto, ServiceDescriptorProto};

    use super::*;

    fn method(name: &str, level: Option<IdempotencyLevel>) -> MethodDescriptorProto {
        let options = level.map(|level| MethodOptions {
            idempotency_level: Some(level.into()),
            ..MethodOptions::default()
        });
        MethodDescriptorProto { name: Some(name.into()), options, ..Default::default() }
    }

    #[test]
    fn a_method_may_do_only_what_it_declares() {
        let service = ServiceDescriptorProto {
            name: Some("Counter".into()),
            method: vec![
                method("Add", None),
                method("Get", Some(IdempotencyLevel::NoSideEffects)),
                method("Set", Some(IdempotencyLevel::Idempotent)),
                method("Odd", Some(IdempotencyLevel::IdempotencyUnknown)),
                MethodDescriptorProto {
                    server_streaming: Some(true),
                    ..method("Watch", Some(IdempotencyLevel::NoSideEffects))
                },
            ],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            package: Some("demo.v1".into()),
            service: vec![service],
            ..Default::default()
        };
        let bytes = Bytes::from(FileDescriptorSet { file: vec![file] }.encode_to_vec());
        let known = Declarations::default();
        let name: ServiceName = "demo.v1.Counter".parse().expect("a name");
        let told = ["Add", "Get", "Set", "Odd", "Watch", "None"].map(|method| {
            let Declaration { may_run_twice, cacheable } = known.of(&name, method, &bytes);
            (may_run_twice, cacheable)
        });
        let (neither, twice, both) = ((false, false), (true, false), (true, true));
        assert_eq!(told, [neither, both, twice, neither, twice, neither]);
        let other = "demo.v1.Other".parse().expect("a name");
        assert_eq!(known.of(&other, "Get", &bytes), Declaration::default());
        let nonsense = known.of(&name, "Get", &Bytes::from_static(b"nonsense"));
        assert_eq!(nonsense, Declaration::default());
        assert!(known.of(&name, "Get", &bytes).may_run_twice, "read anew");
    }
}
