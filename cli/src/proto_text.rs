//! One service's interface in the notation of `.proto` files: its methods, and every message and
//! enum that can be reached from them. Pure.
//!
//! It is written to be read, not to be compiled: options, reserved numbers and extensions are left
//! out, and types of protobuf's own (`google.protobuf.*`) are named but not shown.

use std::{collections::BTreeSet, fmt::Write};

use prost_reflect::{
    Cardinality, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, ServiceDescriptor, Syntax,
};
use serde_json::{Value, json};

use crate::terminal::clean;

/// The interface as text.
pub fn text(service: &ServiceDescriptor) -> String {
    let mut page = Page::new(service.package_name());
    let file = service.parent_file();
    let syntax = match file.syntax() {
        Syntax::Proto2 => "proto2",
        Syntax::Proto3 => "proto3",
    };
    page.line(&format!("syntax = \"{syntax}\";"));
    if !service.package_name().is_empty() {
        page.line(&format!("package {};", service.package_name()));
    }
    page.line("");
    page.comment(&file, service.path());
    page.open(&format!("service {}", service.name()));
    for method in service.methods() {
        page.comment(&file, method.path());
        let signature = signature(&method, &page.package);
        page.line(&signature);
    }
    page.close();
    for message in reachable(service).tops {
        page.line("");
        match message {
            Top::Message(message) => page.message(&message),
            Top::Enum(kind) => page.enumeration(&kind),
        }
    }
    page.text
}

/// The interface as data.
pub fn document(service: &ServiceDescriptor) -> Value {
    let reached = reachable(service);
    let methods = service.methods().map(|method| {
        json!({
            "name": method.name(),
            "path": format!("/{}/{}", service.full_name(), method.name()),
            "input": method.input().full_name(),
            "output": method.output().full_name(),
            "client_streaming": method.is_client_streaming(),
            "server_streaming": method.is_server_streaming(),
        })
    });
    let messages = reached.messages.iter().map(|message| {
        let fields = message.fields().map(|field| {
            json!({
                "name": field.name(),
                "json_name": field.json_name(),
                "number": field.number(),
                "type": type_name(&field, ""),
                "repeated": field.is_list(),
                "optional": has_label_optional(&field),
                "oneof": real_oneof(&field),
            })
        });
        json!({"name": message.full_name(), "fields": fields.collect::<Vec<_>>()})
    });
    let enums = reached.enums.iter().map(|kind| {
        let values = kind.values().map(|v| json!({"name": v.name(), "number": v.number()}));
        json!({"name": kind.full_name(), "values": values.collect::<Vec<_>>()})
    });
    json!({
        "service": service.full_name(),
        "methods": methods.collect::<Vec<_>>(),
        "messages": messages.collect::<Vec<_>>(),
        "enums": enums.collect::<Vec<_>>(),
    })
}

/// The text written so far.
struct Page {
    text: String,
    depth: usize,
    package: String,
}

impl Page {
    fn new(package: &str) -> Self {
        Self { text: String::new(), depth: 0, package: package.into() }
    }

    fn line(&mut self, line: &str) {
        let indent = if line.is_empty() { 0 } else { 2 * self.depth };
        // Names come from another peer.
        let _ = writeln!(self.text, "{:indent$}{}", "", clean(line));
    }

    fn open(&mut self, head: &str) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    /// The comment above the element at `path`, where the descriptors carry comments.
    fn comment(&mut self, file: &FileDescriptor, path: &[i32]) {
        let Some(info) = &file.file_descriptor_proto().source_code_info else { return };
        let Some(location) = info.location.iter().find(|l| l.path == path) else { return };
        let comment = location.leading_comments().trim_end().to_owned();
        for line in comment.lines() {
            self.line(&format!("// {}", line.trim()));
        }
    }

    fn message(&mut self, message: &MessageDescriptor) {
        let file = message.parent_file();
        self.comment(&file, message.path());
        self.open(&format!("message {}", message.name()));
        for kind in message.child_enums() {
            self.enumeration(&kind);
        }
        for child in message.child_messages().filter(|child| !child.is_map_entry()) {
            self.message(&child);
        }
        let mut in_oneof = None;
        for field in in_source_order(message) {
            let oneof = real_oneof(&field);
            if in_oneof != oneof {
                if in_oneof.is_some() {
                    self.close();
                }
                if let Some(name) = &oneof {
                    self.open(&format!("oneof {name}"));
                }
                in_oneof = oneof;
            }
            self.comment(&file, field.path());
            let line = field_line(&field, &self.package);
            self.line(&line);
        }
        if in_oneof.is_some() {
            self.close();
        }
        self.close();
    }

    fn enumeration(&mut self, kind: &EnumDescriptor) {
        let file = kind.parent_file();
        self.comment(&file, kind.path());
        self.open(&format!("enum {}", kind.name()));
        for value in kind.values() {
            self.comment(&file, value.path());
            self.line(&format!("{} = {};", value.name(), value.number()));
        }
        self.close();
    }
}

/// Fields as they were written, with those of one oneof together.
fn in_source_order(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    let mut fields: Vec<FieldDescriptor> = message.fields().collect();
    fields.sort_by_key(|field| field.path().last().copied());
    let firsts: Vec<(String, Option<i32>)> = message
        .oneofs()
        .map(|oneof| {
            let first = oneof.fields().filter_map(|field| field.path().last().copied()).min();
            (oneof.name().to_owned(), first)
        })
        .collect();
    fields.sort_by_key(|field| {
        let own = field.path().last().copied();
        let oneof = real_oneof(field);
        let first = firsts.iter().find(|(name, _)| Some(name) == oneof.as_ref());
        first.map_or(own, |(_, first)| *first)
    });
    fields
}

fn field_line(field: &FieldDescriptor, package: &str) -> String {
    let label = if field.is_list() {
        "repeated "
    } else if field.cardinality() == Cardinality::Required {
        "required "
    } else if has_label_optional(field) {
        "optional "
    } else {
        ""
    };
    format!("{label}{} {} = {};", type_name(field, package), field.name(), field.number())
}

/// Whether `optional` is written before the field.
fn has_label_optional(field: &FieldDescriptor) -> bool {
    let proto3 = field.field_descriptor_proto().proto3_optional();
    let proto2 = field.parent_file().syntax() == Syntax::Proto2
        && field.cardinality() == Cardinality::Optional
        && field.containing_oneof().is_none();
    proto3 || proto2
}

/// The oneof the field was written in; `optional` makes one of its own that was not written.
fn real_oneof(field: &FieldDescriptor) -> Option<String> {
    let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic())?;
    Some(oneof.name().to_owned())
}

fn type_name(field: &FieldDescriptor, package: &str) -> String {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => format!(
            "map<{}, {}>",
            type_name(&entry.map_entry_key_field(), package),
            type_name(&entry.map_entry_value_field(), package)
        ),
        Kind::Message(message) => short(message.full_name(), package),
        Kind::Enum(kind) => short(kind.full_name(), package),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn signature(method: &MethodDescriptor, package: &str) -> String {
    let stream = |is: bool| if is { "stream " } else { "" };
    format!(
        "rpc {} ({}{}) returns ({}{});",
        method.name(),
        stream(method.is_client_streaming()),
        short(method.input().full_name(), package),
        stream(method.is_server_streaming()),
        short(method.output().full_name(), package)
    )
}

/// A type's name as it is written inside `package`.
fn short(full: &str, package: &str) -> String {
    let inside = full.strip_prefix(package).and_then(|rest| rest.strip_prefix('.'));
    inside.filter(|_| !package.is_empty()).unwrap_or(full).to_owned()
}

/// What a service's methods lead to.
#[derive(Default)]
struct Reached {
    /// Every message, in the order met.
    messages: Vec<MessageDescriptor>,
    /// Every enum, in the order met.
    enums: Vec<EnumDescriptor>,
    /// The outermost types they are written in, in the order met.
    tops: Vec<Top>,
    seen: BTreeSet<String>,
}

enum Top {
    Message(MessageDescriptor),
    Enum(EnumDescriptor),
}

fn reachable(service: &ServiceDescriptor) -> Reached {
    let mut reached = Reached::default();
    let mut waiting: Vec<MessageDescriptor> = Vec::new();
    for method in service.methods() {
        waiting.extend([method.input(), method.output()]);
    }
    waiting.reverse();
    while let Some(message) = waiting.pop() {
        if !reached.meet(message.full_name()) {
            continue;
        }
        if !message.is_map_entry() {
            reached.messages.push(message.clone());
            let mut top = message.clone();
            while let Some(parent) = top.parent_message() {
                top = parent;
            }
            reached.show(Top::Message(top));
        }
        let mut next = Vec::new();
        for field in message.fields() {
            match field.kind() {
                Kind::Message(message) => next.push(message),
                Kind::Enum(kind) => reached.enumeration(&kind),
                _ => {}
            }
        }
        waiting.extend(next.into_iter().rev());
    }
    reached
}

impl Reached {
    /// True the first time, and never for protobuf's own types.
    fn meet(&mut self, name: &str) -> bool {
        !name.starts_with("google.protobuf.") && self.seen.insert(name.to_owned())
    }

    fn enumeration(&mut self, kind: &EnumDescriptor) {
        if !self.meet(kind.full_name()) {
            return;
        }
        self.enums.push(kind.clone());
        match kind.parent_message() {
            None => self.show(Top::Enum(kind.clone())),
            Some(mut top) => {
                while let Some(parent) = top.parent_message() {
                    top = parent;
                }
                self.show(Top::Message(top));
            }
        }
    }

    fn show(&mut self, top: Top) {
        if !self.tops.iter().any(|shown| shown.name() == top.name()) {
            self.tops.push(top);
        }
    }
}

impl Top {
    fn name(&self) -> &str {
        match self {
            Self::Message(message) => message.full_name(),
            Self::Enum(kind) => kind.full_name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Schema, tests::descriptors};

    fn counter() -> ServiceDescriptor {
        let schema = Schema::read(&descriptors()).expect("readable");
        schema.service(&"demo.v1.Counter".parse().expect("a name")).expect("there")
    }

    #[test]
    fn an_interface_reads_like_its_source() {
        let expected = r#"syntax = "proto3";
package demo.v1;

// Counts.
service Counter {
  // Adds to the count
  // and tells it.
  rpc Add (AddRequest) returns (AddReply);
  rpc Watch (AddRequest) returns (stream AddReply);
  rpc Sum (stream AddRequest) returns (AddReply);
  rpc Chat (stream AddRequest) returns (stream AddReply);
}

message AddRequest {
  message Part {
    enum Size {
      SIZE_UNSPECIFIED = 0;
      BIG = 1;
    }
    double weight = 1;
    AddRequest.Part inner = 2;
    AddRequest.Part.Size size = 3;
  }
  // How much.
  int64 amount = 1;
  optional string note = 2;
  repeated Colour colours = 3;
  map<string, AddRequest.Part> parts = 4;
  oneof how {
    bool fast = 5;
    AddRequest.Part with = 6;
  }
  google.protobuf.Timestamp at = 7;
  bytes raw_data = 8;
}

enum Colour {
  COLOUR_UNSPECIFIED = 0;
  RED = 1;
}

message AddReply {
  int64 count = 1;
  string from = 2;
}
"#;
        assert_eq!(text(&counter()), expected);
    }

    #[test]
    fn the_document_has_every_reachable_type_and_no_other() {
        let document = document(&counter());
        assert_eq!(document["methods"][3]["path"], "/demo.v1.Counter/Chat");
        assert_eq!(document["methods"][3]["client_streaming"], true);
        let names = |key: &str| -> Vec<String> {
            let list = document[key].as_array().expect("a list");
            list.iter().map(|m| m["name"].as_str().expect("a name").to_owned()).collect()
        };
        let messages = ["demo.v1.AddRequest", "demo.v1.AddRequest.Part", "demo.v1.AddReply"];
        assert_eq!(names("messages"), messages);
        assert_eq!(names("enums"), ["demo.v1.Colour", "demo.v1.AddRequest.Part.Size"]);
        let fields = &document["messages"][0]["fields"];
        assert_eq!(fields[3]["type"], "map<string, demo.v1.AddRequest.Part>");
        assert_eq!(fields[4]["oneof"], "how");
        assert_eq!(fields[1]["optional"], true);
    }
}
