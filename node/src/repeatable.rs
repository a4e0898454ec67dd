//! Which methods may run twice, as their descriptors say: `option idempotency_level` of
//! `IDEMPOTENT` or `NO_SIDE_EFFECTS`.
//!
//! Owns reading it once for each set of descriptors. Refuses to fetch them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};
use protocol::service::ServiceName;

/// Services whose methods are kept. Each keeps its descriptors alive, which others keep as well.
const SERVICES_KEPT_MAX: usize = 256;

/// What was read.
#[derive(Default)]
pub struct Repeatable(Mutex<HashMap<ServiceName, Read>>);

/// The methods of one service that may run twice, and what they were read from.
type Read = (Bytes, Arc<BTreeSet<String>>);

impl Repeatable {
    /// Whether `descriptors`, a `FileDescriptorSet`, say so of the method.
    pub fn contains(&self, service: &ServiceName, method: &str, descriptors: &Bytes) -> bool {
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
        methods.contains(method)
    }
}

/// The methods of `service` that may run twice; none where the bytes cannot be read.
fn read(service: &ServiceName, descriptors: &[u8]) -> BTreeSet<String> {
    let Ok(set) = FileDescriptorSet::decode(descriptors) else { return BTreeSet::new() };
    let mut methods = BTreeSet::new();
    for file in set.file {
        let package = file.package.unwrap_or_default();
        for found in file.service {
            let name = found.name.unwrap_or_default();
            let full = if package.is_empty() { name } else { format!("{package}.{name}") };
            if full != service.as_str() {
                continue;
            }
            let repeatable = found.method.into_iter().filter(|method| {
                let level =
                    method.options.as_ref().map(prost_types::MethodOptions::idempotency_level);
                level.is_some_and(|level| level != IdempotencyLevel::IdempotencyUnknown)
            });
            methods.extend(repeatable.filter_map(|method| method.name));
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use prost_types::{
        FileDescriptorProto, MethodDescriptorProto, MethodOptions, ServiceDescriptorProto,
    };

    use super::*;

    fn method(name: &str, level: Option<IdempotencyLevel>) -> MethodDescriptorProto {
        let options = level.map(|level| MethodOptions {
            idempotency_level: Some(level.into()),
            ..MethodOptions::default()
        });
        MethodDescriptorProto { name: Some(name.into()), options, ..Default::default() }
    }

    #[test]
    fn only_what_is_declared_may_run_twice() {
        let service = ServiceDescriptorProto {
            name: Some("Counter".into()),
            method: vec![
                method("Add", None),
                method("Get", Some(IdempotencyLevel::NoSideEffects)),
                method("Set", Some(IdempotencyLevel::Idempotent)),
                method("Odd", Some(IdempotencyLevel::IdempotencyUnknown)),
            ],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            package: Some("demo.v1".into()),
            service: vec![service],
            ..Default::default()
        };
        let bytes = Bytes::from(FileDescriptorSet { file: vec![file] }.encode_to_vec());
        let known = Repeatable::default();
        let name: ServiceName = "demo.v1.Counter".parse().expect("a name");
        let told = ["Add", "Get", "Set", "Odd"].map(|it| known.contains(&name, it, &bytes));
        assert_eq!(told, [false, true, true, false]);
        let other = "demo.v1.Other".parse().expect("a name");
        assert!(!known.contains(&other, "Get", &bytes));
        assert!(!known.contains(&name, "Get", &Bytes::from_static(b"nonsense")));
        assert!(known.contains(&name, "Get", &bytes), "read anew");
    }
}
