//! A plugin's own part of the configuration: what its manifest says, under what the operator says.
//! Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What an operator says to plugins, by name.
pub type Parts = BTreeMap<String, Map<String, Value>>;

/// What a plugin is handed: the operator's keys, and the manifest's where the operator is silent.
/// Whole keys, not what is below them: who sets a key has said all of it. `None` where nobody says
/// anything.
pub(crate) fn whole(
    manifest: Option<&Map<String, Value>>,
    operator: Option<&Map<String, Value>>,
) -> Option<Value> {
    let said = manifest.into_iter().chain(operator);
    said.cloned()
        .reduce(|mut whole, over| {
            whole.extend(over);
            whole
        })
        .map(Value::Object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no map"),
        }
    }

    #[test]
    fn the_operators_keys_win_whole_and_the_manifests_stay_where_it_is_silent() {
        let manifest = map(serde_json::json!({"depth": 3, "limits": {"a": 1, "b": 2}}));
        let operator = map(serde_json::json!({"limits": {"a": 5}, "mode": "quick"}));
        let both = whole(Some(&manifest), Some(&operator)).expect("said");
        let wanted = serde_json::json!({"depth": 3, "limits": {"a": 5}, "mode": "quick"});
        assert_eq!(both, wanted);
        assert_eq!(whole(Some(&manifest), None), Some(Value::Object(manifest)));
        assert_eq!(whole(None, Some(&operator)), Some(Value::Object(operator)));
        assert_eq!(whole(None, None), None);
    }
}
