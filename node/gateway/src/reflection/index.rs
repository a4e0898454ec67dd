//! One descriptor set, by file name, symbol and extension. Files stay as their bytes: decoding and
//! encoding them again would lose options that this node does not know.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

/// `google.protobuf.FileDescriptorSet`, its files left encoded.
#[derive(Clone, PartialEq, Message)]
struct EncodedSet {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// A descriptor set that can be asked.
#[derive(Debug, Default)]
pub(super) struct Index {
    files: Vec<File>,
    names: HashMap<String, usize>,
    symbols: HashMap<String, usize>,
    /// By extended type and field number.
    extensions: HashMap<(String, i32), usize>,
}

#[derive(Debug)]
struct File {
    encoded: Bytes,
    dependencies: Vec<String>,
}

impl Index {
    /// Reads an encoded `FileDescriptorSet`. Of two files or symbols of one name, the first
    /// counts.
    pub(super) fn read(set: Bytes) -> Result<Self, prost::DecodeError> {
        let mut index = Self::default();
        index.add(set)?;
        Ok(index)
    }

    /// Adds the files of another set.
    pub(super) fn add(&mut self, set: Bytes) -> Result<(), prost::DecodeError> {
        for encoded in EncodedSet::decode(set)?.file {
            let file = FileDescriptorProto::decode(encoded.clone())?;
            let number = self.files.len();
            if self.names.contains_key(file.name()) {
                continue;
            }
            self.names.insert(file.name().to_owned(), number);
            self.add_symbols(number, &file);
            self.files.push(File { encoded, dependencies: file.dependency });
        }
        Ok(())
    }

    /// The file of this name, then the files it depends on; empty where there is none.
    pub(super) fn file(&self, name: &str) -> Vec<Bytes> {
        self.names.get(name).map_or_else(Vec::new, |file| self.with_dependencies(*file))
    }

    /// The file that defines `symbol`, then those it depends on; empty where none does.
    pub(super) fn symbol(&self, symbol: &str) -> Vec<Bytes> {
        self.symbols.get(symbol).map_or_else(Vec::new, |file| self.with_dependencies(*file))
    }

    /// Whether `symbol` is defined here.
    pub(super) fn defines(&self, symbol: &str) -> bool {
        self.symbols.contains_key(symbol)
    }

    /// The file that extends `extended` with field `number`, then those it depends on.
    pub(super) fn extension(&self, extended: &str, number: i32) -> Vec<Bytes> {
        let file = self.extensions.get(&(extended.to_owned(), number));
        file.map_or_else(Vec::new, |file| self.with_dependencies(*file))
    }

    /// The field numbers with which `extended` is extended here.
    pub(super) fn extension_numbers(&self, extended: &str) -> BTreeSet<i32> {
        self.extensions.keys().filter(|(of, _)| of == extended).map(|(_, number)| *number).collect()
    }

    fn with_dependencies(&self, first: usize) -> Vec<Bytes> {
        let mut order = vec![first];
        let mut seen = HashSet::from([first]);
        let mut next = 0;
        while let Some(file) = order.get(next).map(|file| &self.files[*file]) {
            let known = file.dependencies.iter().filter_map(|name| self.names.get(name).copied());
            order.extend(known.filter(|file| seen.insert(*file)));
            next += 1;
        }
        order.into_iter().map(|file| self.files[file].encoded.clone()).collect()
    }

    fn add_symbols(&mut self, file: usize, read: &FileDescriptorProto) {
        let package = read.package();
        for message in &read.message_type {
            self.add_message(file, package, message);
        }
        for one in &read.enum_type {
            self.add_enum(file, package, one);
        }
        self.add_extensions(file, package, &read.extension);
        for service in &read.service {
            let name = self.add_symbol(file, package, service.name());
            for method in &service.method {
                self.add_symbol(file, &name, method.name());
            }
        }
    }

    /// Nesting is bounded: the decoder refuses more than a hundred levels.
    fn add_message(&mut self, file: usize, scope: &str, message: &DescriptorProto) {
        let name = self.add_symbol(file, scope, message.name());
        for field in &message.field {
            self.add_symbol(file, &name, field.name());
        }
        for oneof in &message.oneof_decl {
            self.add_symbol(file, &name, oneof.name());
        }
        for one in &message.enum_type {
            self.add_enum(file, &name, one);
        }
        for nested in &message.nested_type {
            self.add_message(file, &name, nested);
        }
        self.add_extensions(file, &name, &message.extension);
    }

    fn add_enum(&mut self, file: usize, scope: &str, one: &EnumDescriptorProto) {
        self.add_symbol(file, scope, one.name());
        // Values live beside their enum, not in it.
        for value in &one.value {
            self.add_symbol(file, scope, value.name());
        }
    }

    fn add_extensions(&mut self, file: usize, scope: &str, fields: &[FieldDescriptorProto]) {
        for field in fields {
            self.add_symbol(file, scope, field.name());
            let extended = field.extendee().trim_start_matches('.').to_owned();
            self.extensions.entry((extended, field.number())).or_insert(file);
        }
    }

    fn add_symbol(&mut self, file: usize, scope: &str, name: &str) -> String {
        let full = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        self.symbols.entry(full.clone()).or_insert(file);
        full
    }
}
