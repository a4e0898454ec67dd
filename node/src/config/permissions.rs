//! `plugins.allow`, `plugins.deny` and `plugins.grants`: the operator's policy.
//!
//! ```yaml
//! plugins:
//!   allow: ["call:*", "network:*.example.org:443"]
//!   deny: ["call:admin.*"]
//!   grants:
//!     weather: ["network:api.weather.example:443"]
//!     backup: { allow: ["write:/srv/backup"], deny: ["call:*"] }
//! ```

use plugin_host::permissions::{Grants, Policies};
use protocol::{
    document::{Fields, Mistakes, Node, Value},
    manifest::{Permission, PluginName},
};

/// Permissions of one list, and plugins with grants of their own.
const ENTRIES_MAX: usize = 256;

/// Bytes of one permission; a path has at most 4,095.
const PERMISSION_BYTES_MAX: usize = 4_200;

/// Takes the policy's keys out of `plugins`.
pub(super) fn policies(plugins: &mut Fields, found: &mut Mistakes) -> Policies {
    let mut policies = Policies::default();
    if let Some((node, at)) = plugins.take("allow") {
        policies.allow = list(node, &at, found);
    }
    if let Some((node, at)) = plugins.take("deny") {
        policies.deny = list(node, &at, found);
    }
    let grants = plugins.section("grants", found).into_entries();
    if let Some((key, _)) = grants.get(ENTRIES_MAX) {
        found.note(key.line, "plugins.grants", format!("at most {ENTRIES_MAX} plugins"));
    }
    for (key, node) in grants.into_iter().take(ENTRIES_MAX) {
        let at = format!("plugins.grants.{}", key.text);
        if let Err(error) = key.text.parse::<PluginName>() {
            found.note(key.line, &at, error.to_string());
            continue;
        }
        policies.grants.insert(key.text, of_one(node, &at, found));
    }
    policies
}

/// A list of what is allowed, or a map of both.
fn of_one(node: Node, at: &str, found: &mut Mistakes) -> Grants {
    if !matches!(node.value, Value::Map(_)) {
        return Grants { allow: list(node, at, found), deny: Vec::new() };
    }
    let mut grants = Grants::default();
    let Some(mut fields) = found.map(node, at) else { return grants };
    if let Some((node, at)) = fields.take("allow") {
        grants.allow = list(node, &at, found);
    }
    if let Some((node, at)) = fields.take("deny") {
        grants.deny = list(node, &at, found);
    }
    fields.finish(found);
    grants
}

fn list(node: Node, at: &str, found: &mut Mistakes) -> Vec<Permission> {
    let nodes = found.list(node, at, ENTRIES_MAX);
    let parsed = nodes.iter().enumerate().filter_map(|(index, node)| {
        found.parsed(node, &format!("{at}[{index}]"), PERMISSION_BYTES_MAX, str::parse)
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;

    #[test]
    fn the_policy_is_read_in_all_its_forms() {
        let text = "\
plugins:
  allow: [\"call:*\", \"network:*.example.org:443\"]
  deny: [\"call:admin.*\"]
  grants:
    weather: [\"network:api.weather.example:443\"]
    backup:
      allow: [\"write:/srv/backup\"]
      deny: [\"call:*\"]
";
        let policies = ConfigFile::parse(text).expect("right").permissions;
        assert_eq!(policies.allow.len(), 2);
        assert_eq!(policies.deny[0].to_string(), "call:admin.*");
        assert_eq!(policies.grants["weather"].allow.len(), 1);
        assert_eq!(policies.grants["backup"].deny.len(), 1);
        let empty = ConfigFile::parse("plugins: {allow: []}").expect("right").permissions;
        assert!(empty.allow.is_empty(), "an empty list allows nothing");
        let default = ConfigFile::parse("").expect("right").permissions;
        assert_eq!(default.allow[0].to_string(), "call:*");
    }

    #[test]
    fn mistakes_have_their_line_and_key() {
        let text = "\
plugins:
  allow:
    - network:example.org
    - read:etc
  grants:
    Weather: []
    backup: {alow: []}
";
        let told: Vec<String> =
            ConfigFile::parse(text).expect_err("wrong").iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("line 4: plugins.allow[1]: `read:etc` is not"), "{told:#?}");
        assert!(told[1].starts_with("line 6: plugins.grants.Weather:"), "{told:#?}");
        assert!(told[2].starts_with("line 7: plugins.grants.backup.alow:"), "{told:#?}");
    }
}
