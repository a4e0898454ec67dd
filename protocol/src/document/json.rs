//! Parts of a document that are handed on as they are, as JSON.

use serde_json::Map;

use super::{Node, Value};

impl Node {
    /// As JSON. Numbers that JSON does not know, such as `.inf`, become `null`.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.clone().into(),
            Value::List(nodes) => nodes.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.text.clone(), node.to_json()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }
}
