//! What a plugin asks for and what the operator's policy allows, brought together.
//!
//! [`meet`] is pure: the tighter of both sides wins, a deny wins over every allow, and what one
//! side does not name is denied. It owns that rule and its result, [`Granted`]; carrying it out is
//! the part of the jail's plan, of the mesh door and of the egress proxy, who report what they
//! refuse to [`Access`].

mod access;
mod network;

use std::{collections::BTreeMap, fmt, path::Path};

use protocol::{
    manifest::{
        Permission,
        permission::{CallRule, NetworkRule},
    },
    service::MethodPath,
};

pub(crate) use self::network::permitted;
pub use self::{
    access::{Access, Counts},
    network::{Host, NetworkGrant, NetworkGrants, Resolved, effective, special_block},
};

/// The operator's policy for all plugins of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// What every plugin that asks may have.
    pub allow: Vec<Permission>,
    /// What no plugin may have.
    pub deny: Vec<Permission>,
    /// What holds for one plugin, by its name.
    pub grants: BTreeMap<String, Grants>,
}

/// The operator's policy for one plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// What it may have. For every kind of permission that is named here, this stands in place of
    /// the general [`Policies::allow`]; other kinds are as for everybody.
    pub allow: Vec<Permission>,
    /// What it may not have, beside the general [`Policies::deny`].
    pub deny: Vec<Permission>,
}

impl Default for Policies {
    /// A plugin that asks may call the mesh. Network, paths, environment and devices need the
    /// operator's word.
    fn default() -> Self {
        Self {
            allow: vec![Permission::Call(CallRule::All)],
            deny: Vec::new(),
            grants: BTreeMap::new(),
        }
    }
}

impl Policies {
    /// What holds for `plugin`.
    pub fn of(&self, plugin: &str) -> Policy {
        let Some(own) = self.grants.get(plugin) else {
            return Policy { allow: self.allow.clone(), deny: self.deny.clone() };
        };
        let replaced = |general: &&Permission| {
            own.allow.iter().any(|permission| permission.kind() == general.kind())
        };
        let general = self.allow.iter().filter(|general| !replaced(general));
        Policy {
            allow: general.chain(&own.allow).cloned().collect(),
            deny: self.deny.iter().chain(&own.deny).cloned().collect(),
        }
    }
}

/// The operator's policy as it holds for one plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// What it may have.
    pub allow: Vec<Permission>,
    /// What it may not have, whatever is allowed.
    pub deny: Vec<Permission>,
}

/// What a plugin has: asked for by its manifest and allowed by the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted {
    /// Connections through the egress proxy.
    pub network: NetworkGrants,
    /// The machine's own network.
    pub host_network: bool,
    /// Paths it may read, ancestors first, none within another or within a writable one.
    pub reads: Vec<String>,
    /// Paths it may read and write, ancestors first, none within another.
    pub writes: Vec<String>,
    /// Paths within those that it may not see.
    pub hidden: Vec<String>,
    /// Calls into the mesh.
    pub calls: CallGrants,
    /// Variables whose values it gets from the node.
    pub env: Vec<String>,
    /// Device nodes, by path.
    pub devices: Vec<String>,
    /// What it asked for and does not have, or not wholly, in the order of its manifest.
    pub denied: Vec<Denied>,
}

impl Granted {
    /// What is granted, in words: as few as tell it.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.network.words();
        words.extend(self.host_network.then(|| Permission::HostNetwork.to_string()));
        words.extend(self.reads.iter().map(|path| format!("read:{path}")));
        words.extend(self.writes.iter().map(|path| format!("write:{path}")));
        words.extend(self.calls.allow.iter().map(|rule| format!("call:{rule}")));
        words.extend(self.env.iter().map(|name| format!("env:{name}")));
        words.extend(self.devices.iter().map(|path| format!("device:{path}")));
        words
    }
}

/// Calls that are granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallGrants {
    /// What may be called, none within another.
    pub allow: Vec<CallRule>,
    /// What of it may not.
    pub deny: Vec<CallRule>,
}

impl CallGrants {
    /// True where `method` may be called.
    pub fn permits(&self, method: &MethodPath) -> bool {
        self.allow.iter().any(|rule| rule.matches(method))
            && !self.deny.iter().any(|rule| rule.matches(method))
    }
}

/// Something asked for that is not granted, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// As the manifest asks.
    pub permission: Permission,
    /// Why not.
    pub why: Why,
}

/// Why something is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The operator's policy does not allow it.
    NotAllowed,
    /// The operator's policy denies it, by this rule.
    DeniedBy(Permission),
    /// Only this of it is allowed.
    Only(Vec<String>),
}

impl Denied {
    /// For the operator: what is denied to `plugin`, why, and what would change it.
    pub fn explain(&self, plugin: &str) -> String {
        let Self { permission, why } = self;
        match why {
            Why::NotAllowed => format!(
                "permission `{permission}` is not granted and it runs without: to grant it, write \
                 `plugins: {{ grants: {{ {plugin}: [\"{permission}\"] }} }}` into the node's \
                 configuration"
            ),
            Why::DeniedBy(rule) => format!(
                "permission `{permission}` is denied by `{rule}` in the node's configuration \
                 (plugins.deny, plugins.grants.{plugin}.deny) and it runs without"
            ),
            Why::Only(granted) => format!(
                "permission `{permission}` is granted in part: {}; plugins.grants.{plugin} in the \
                 node's configuration may grant more",
                granted.join(", ")
            ),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { permission, why } = self;
        match why {
            Why::NotAllowed => write!(f, "{permission} (not allowed by the operator)"),
            Why::DeniedBy(rule) => write!(f, "{permission} (denied by {rule})"),
            Why::Only(granted) => write!(f, "{permission} (only {})", granted.join(", ")),
        }
    }
}

/// Brings what is `asked` for and what the operator says together.
///
/// The result never exceeds either side. More asked or more allowed never takes anything away,
/// more denied never gives anything, and order means nothing but the order of `denied`.
pub fn meet(asked: &[Permission], policy: &Policy) -> Granted {
    let mut granted = Granted::default();
    for permission in asked {
        let before = granted.words();
        let whole = match permission {
            Permission::Network(ask) => meet_network(ask, policy, &mut granted.network),
            Permission::HostNetwork => meet_host_network(policy, &mut granted),
            Permission::Read(path) => meet_path(path, false, policy, &mut granted),
            Permission::Write(path) => meet_path(path, true, policy, &mut granted),
            Permission::Call(ask) => meet_call(ask, policy, &mut granted.calls),
            Permission::Env(name) => meet_exactly(permission, policy, name, &mut granted.env),
            Permission::Device(path) => {
                meet_exactly(permission, policy, path, &mut granted.devices)
            }
        };
        match whole {
            Outcome::Whole => {}
            Outcome::Nothing(why) => {
                granted.denied.push(Denied { permission: permission.clone(), why });
            }
            Outcome::Part => {
                let now = granted.words();
                let gained: Vec<String> =
                    now.iter().filter(|word| !before.contains(word)).cloned().collect();
                // Another wish may have brought it already.
                let why = Why::Only(if gained.is_empty() { now } else { gained });
                granted.denied.push(Denied { permission: permission.clone(), why });
            }
        }
    }
    tidy(&mut granted);
    granted
}

/// How much of one wish was granted.
enum Outcome {
    Whole,
    Part,
    Nothing(Why),
}

fn meet_network(ask: &NetworkRule, policy: &Policy, granted: &mut NetworkGrants) -> Outcome {
    let rules = |list: &[Permission]| -> Vec<NetworkRule> {
        let of = |permission: &Permission| match permission {
            Permission::Network(rule) => Some(rule.clone()),
            _ => None,
        };
        list.iter().filter_map(of).collect()
    };
    granted.deny = rules(&policy.deny);
    if let Some(rule) = granted.deny.iter().find(|rule| network::covers(rule, ask)) {
        return Outcome::Nothing(Why::DeniedBy(Permission::Network(rule.clone())));
    }
    let mut found = false;
    let mut whole = false;
    for allow in rules(&policy.allow) {
        if let Some(grant) = NetworkGrant::meet(ask, &allow) {
            found = true;
            whole |= network::covers(&allow, ask);
            if !granted.allow.contains(&grant) {
                granted.allow.push(grant);
            }
        }
    }
    match (found, whole) {
        (false, _) => Outcome::Nothing(Why::NotAllowed),
        (true, true) => Outcome::Whole,
        (true, false) => Outcome::Part,
    }
}

/// Beside the proxy nothing can be checked, so any deny of some network denies all of this.
fn meet_host_network(policy: &Policy, granted: &mut Granted) -> Outcome {
    let denies =
        |rule: &&Permission| matches!(rule, Permission::HostNetwork | Permission::Network(_));
    if let Some(rule) = policy.deny.iter().find(denies) {
        return Outcome::Nothing(Why::DeniedBy(rule.clone()));
    }
    if !policy.allow.contains(&Permission::HostNetwork) {
        return Outcome::Nothing(Why::NotAllowed);
    }
    granted.host_network = true;
    Outcome::Whole
}

fn meet_path(ask: &str, write: bool, policy: &Policy, granted: &mut Granted) -> Outcome {
    let mut outcome = Outcome::Nothing(Why::NotAllowed);
    for allow in &policy.allow {
        let (allowed, writable) = match allow {
            Permission::Read(path) => (path, false),
            Permission::Write(path) => (path, write),
            _ => continue,
        };
        let Some(met) = tighter(ask, allowed) else { continue };
        // A deny of reading is one of writing, too: what may be written can be read.
        let closed = |rule: &Permission| match rule {
            Permission::Read(path) => Some(path.clone()),
            Permission::Write(path) if writable => Some(path.clone()),
            _ => None,
        };
        let denies: Vec<String> = policy.deny.iter().filter_map(closed).collect();
        if let Some(path) = denies.iter().find(|path| within(met, path)) {
            if matches!(outcome, Outcome::Nothing(_)) {
                outcome = Outcome::Nothing(Why::DeniedBy(denying(policy, path)));
            }
            continue;
        }
        let list = if writable { &mut granted.writes } else { &mut granted.reads };
        list.push(met.to_owned());
        granted.hidden.extend(denies.iter().filter(|path| within(path, met)).cloned());
        let all = met == ask && writable == write;
        if all {
            outcome = Outcome::Whole;
        } else if matches!(outcome, Outcome::Nothing(_)) {
            outcome = Outcome::Part;
        }
    }
    outcome
}

fn denying(policy: &Policy, path: &str) -> Permission {
    let same = |rule: &&Permission| match rule {
        Permission::Read(other) | Permission::Write(other) => other == path,
        _ => false,
    };
    policy.deny.iter().find(same).cloned().unwrap_or_else(|| Permission::Read(path.into()))
}

/// The one that lies within the other.
fn tighter<'a>(one: &'a str, other: &'a str) -> Option<&'a str> {
    if within(one, other) {
        Some(one)
    } else if within(other, one) {
        Some(other)
    } else {
        None
    }
}

/// True where `path` is `ancestor` or lies below it.
pub(crate) fn within(path: &str, ancestor: &str) -> bool {
    Path::new(path).starts_with(ancestor)
}

fn meet_call(ask: &CallRule, policy: &Policy, granted: &mut CallGrants) -> Outcome {
    let rules = |list: &[Permission]| -> Vec<CallRule> {
        let of = |permission: &Permission| match permission {
            Permission::Call(rule) => Some(rule.clone()),
            _ => None,
        };
        list.iter().filter_map(of).collect()
    };
    granted.deny = rules(&policy.deny);
    if let Some(rule) = granted.deny.iter().find(|rule| ask.is_within(rule)) {
        return Outcome::Nothing(Why::DeniedBy(Permission::Call(rule.clone())));
    }
    let mut outcome = Outcome::Nothing(Why::NotAllowed);
    for allow in rules(&policy.allow) {
        if ask.is_within(&allow) {
            granted.allow.push(ask.clone());
            outcome = Outcome::Whole;
        } else if allow.is_within(ask) {
            if granted.deny.iter().any(|rule| allow.is_within(rule)) {
                continue;
            }
            granted.allow.push(allow);
            if matches!(outcome, Outcome::Nothing(_)) {
                outcome = Outcome::Part;
            }
        }
    }
    outcome
}

/// For kinds whose permissions are equal or apart.
fn meet_exactly(
    ask: &Permission,
    policy: &Policy,
    what: &str,
    granted: &mut Vec<String>,
) -> Outcome {
    if policy.deny.contains(ask) {
        Outcome::Nothing(Why::DeniedBy(ask.clone()))
    } else if policy.allow.contains(ask) {
        granted.push(what.to_owned());
        Outcome::Whole
    } else {
        Outcome::Nothing(Why::NotAllowed)
    }
}

/// Takes out what other grants cover.
fn tidy(granted: &mut Granted) {
    outermost(&mut granted.writes, |inner, outer| within(inner, outer));
    let writes = granted.writes.clone();
    granted.reads.retain(|read| !writes.iter().any(|write| within(read, write)));
    outermost(&mut granted.reads, |inner, outer| within(inner, outer));
    outermost(&mut granted.hidden, |inner, outer| within(inner, outer));
    outermost(&mut granted.calls.allow, CallRule::is_within);
    if granted.calls.allow.is_empty() {
        granted.calls.deny.clear();
    }
    for list in [&mut granted.env, &mut granted.devices] {
        list.sort();
        list.dedup();
    }
    granted.network.tidy();
}

/// Sorts, and keeps of `list` only what no other of it contains.
fn outermost<T: Ord + Clone, F: Fn(&T, &T) -> bool>(list: &mut Vec<T>, is_within: F) {
    list.sort();
    list.dedup();
    let all = list.clone();
    list.retain(|inner| !all.iter().any(|outer| outer != inner && is_within(inner, outer)));
}

#[cfg(test)]
mod tests;
