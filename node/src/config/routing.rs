//! The `routing` section: how calls of each service are routed.
//!
//! `default` speaks for every service, an entry under `services` for one, beginning from what
//! `default` says. Without any word the router's own defaults hold.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use protocol::{
    document::{Fields, Mistakes, Node, Value},
    ports::Locality,
    wishes::Priority,
};
use router::{CALLS_MAX, Hedging, Method, Policies, Policy, Retries, WEIGHT_MAX};

/// Bytes of any text here: names, labels, peer ids.
const TEXT_BYTES_MAX: usize = 256;
/// Entries of any list or map here.
const ENTRIES_MAX: usize = 256;
/// Waits before another attempt: longer ones belong to the caller.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);
/// How long a provider may be left alone.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);

/// Where a call may be answered; one peer is a matter of one call.
const LOCALITIES: [(&str, Locality); 3] =
    [("local", Locality::Local), ("prefer-local", Locality::PreferLocal), ("any", Locality::Any)];

/// Reads the section.
pub(super) fn read(mut fields: Fields, found: &mut Mistakes) -> Policies {
    let mut default = Policy::default();
    let section = fields.section("default", found);
    policy(section, &mut default, found);
    let mut policies = Policies::default();
    let services = fields.section("services", found);
    for (key, node) in services.into_entries() {
        let at = format!("routing.services.{}", key.text);
        let name = key.text.parse().map_err(|error| found.note(key.line, &at, format!("{error}")));
        let mut own = default.clone();
        if let Some(fields) = found.map(node, &at) {
            policy(fields, &mut own, found);
        }
        if let Ok(name) = name {
            policies.services.insert(name, Arc::new(own));
        }
    }
    policies.default = Arc::new(default);
    fields.finish(found);
    policies
}

fn policy(mut fields: Fields, policy: &mut Policy, found: &mut Mistakes) {
    whom(&mut fields, policy, found);
    what_of_failures(&mut fields, policy, found);
    if let Some((node, at)) = fields.take("limit")
        && let Some(mut fields) = found.map(node, &at)
    {
        number(&mut fields, "calls", 1..=CALLS_MAX.into(), &mut policy.limit.calls_max, found);
        if let Some((node, at)) = fields.take("adaptive") {
            set(&mut policy.limit.adaptive, found.flag(&node, &at));
        }
        fields.finish(found);
    }
    if let Some((node, at)) = fields.take("cache") {
        set(&mut policy.cache, found.flag(&node, &at));
    }
    if let Some((node, at)) = fields.take("priority") {
        set(&mut policy.priority, found.choice(&node, &at, &Priority::NAMED));
    }
    fields.finish(found);
}

/// Who is chosen.
fn whom(fields: &mut Fields, policy: &mut Policy, found: &mut Mistakes) {
    if let Some((node, at)) = fields.take("method")
        && let Some(method) = found.choice(&node, &at, &Method::NAMED)
    {
        policy.method = method;
        // Who names a method wants it to choose among all providers.
        policy.locality = Locality::Any;
    }
    if let Some((node, at)) = fields.take("locality") {
        set(&mut policy.locality, found.choice(&node, &at, &LOCALITIES));
    }
    if let Some((node, at)) = fields.take("version") {
        let version = found.parsed(&node, &at, TEXT_BYTES_MAX, |text| {
            text.parse().map_err(|_| {
                format!("`{text}` is not a version requirement; expected something like ^1.2")
            })
        });
        policy.requirement.version = version;
    }
    let labels = fields.section("labels", found);
    for (key, node) in labels.into_entries() {
        let at = format!("{}.{}", fields.path_of("labels"), key.text);
        if let Some(value) = found.text(&node, &at, TEXT_BYTES_MAX) {
            policy.requirement.labels.insert(key.text, value);
        }
    }
    if let Some(names) = texts(fields, "backups", found) {
        policy.backups = names.into_iter().collect();
    }
    if let Some((node, at)) = fields.take("weights") {
        only_with(policy, Method::Weighted, &node, &at, found);
        if let Some(weights) = found.map(node, &at) {
            for (key, node) in weights.into_entries() {
                let at = format!("{at}.{}", key.text);
                if let Some(weight) = found.integer(&node, &at, 1..=i64::from(WEIGHT_MAX)) {
                    policy.weights.insert(key.text, weight as u32);
                }
            }
        }
    }
    if let Some((node, at)) = fields.take("key") {
        only_with(policy, Method::Hash, &node, &at, found);
        if let Some(key) = found.text(&node, &at, TEXT_BYTES_MAX) {
            match http::HeaderName::try_from(key.as_str()) {
                Ok(_) => policy.key = key.to_lowercase(),
                Err(_) => found.note(node.line, &at, format!("`{key}` is not a metadata key")),
            }
        }
    }
}

/// What counts only with one method is a mistake with another.
fn only_with(policy: &Policy, method: Method, node: &Node, at: &str, found: &mut Mistakes) {
    if policy.method != method {
        let name =
            Method::NAMED.iter().find(|(_, one)| *one == method).map_or("", |(name, _)| name);
        found.note(node.line, at, format!("only means something with `method: {name}`"));
    }
}

/// What follows when calls fail.
fn what_of_failures(fields: &mut Fields, policy: &mut Policy, found: &mut Mistakes) {
    if let Some((node, at)) = fields.take("retries")
        && let Some(mut fields) = found.map(node, &at)
    {
        retries(&mut fields, &mut policy.retries, found);
        let Retries { backoff, backoff_max, .. } = policy.retries;
        ordered(&fields, ("backoff", backoff), ("backoff_max", backoff_max), found);
        fields.finish(found);
    }
    if let Some((node, at)) = fields.take("hedging") {
        policy.hedging = match &node.value {
            Value::Text(text) if text == "off" => None,
            Value::Text(text) if text == "p95" => Some(Hedging { after: None }),
            _ => found.duration(&node, &at, WAITS).map(|after| Hedging { after: Some(after) }),
        };
    }
    if let Some((node, at)) = fields.take("breaker") {
        policy.breaker = unless_off(node, &at, found, |fields, found| {
            let mut breaking = policy.breaker.clone().unwrap_or_default();
            number(fields, "failures", 1..=1_000, &mut breaking.failures, found);
            pause(fields, "open", &mut breaking.open, found);
            pause(fields, "open_max", &mut breaking.open_max, found);
            let (open, open_max) = (breaking.open, breaking.open_max);
            ordered(fields, ("open", open), ("open_max", open_max), found);
            breaking
        });
    }
    if let Some((node, at)) = fields.take("ejection") {
        policy.ejection = unless_off(node, &at, found, |fields, found| {
            let mut ejection = policy.ejection.clone().unwrap_or_default();
            number(fields, "failures", 1..=1_000, &mut ejection.failures, found);
            number(fields, "share_percent", 1..=99, &mut ejection.share_percent, found);
            pause(fields, "time", &mut ejection.time, found);
            pause(fields, "time_max", &mut ejection.time_max, found);
            let (time, time_max) = (ejection.time, ejection.time_max);
            ordered(fields, ("time", time), ("time_max", time_max), found);
            ejection
        });
    }
    if let Some(methods) = texts(fields, "idempotent", found) {
        policy.idempotent = methods.into_iter().collect();
    }
}

fn retries(fields: &mut Fields, retries: &mut Retries, found: &mut Mistakes) {
    number(fields, "attempts", 1..=8, &mut retries.attempts_max, found);
    number(fields, "budget_percent", 0..=100, &mut retries.budget_percent, found);
    number(fields, "budget_per_second", 0..=1_000, &mut retries.budget_per_second, found);
    for (key, wait) in
        [("backoff", &mut retries.backoff), ("backoff_max", &mut retries.backoff_max)]
    {
        if let Some((node, at)) = fields.take(key) {
            set(wait, found.duration(&node, &at, WAITS));
        }
    }
}

/// A map of settings, or the word `off`.
fn unless_off<T>(
    node: Node,
    at: &str,
    found: &mut Mistakes,
    read: impl FnOnce(&mut Fields, &mut Mistakes) -> T,
) -> Option<T> {
    match &node.value {
        Value::Text(text) if text == "off" => None,
        Value::Map(_) => {
            let mut fields = found.map(node, at)?;
            let value = read(&mut fields, found);
            fields.finish(found);
            Some(value)
        }
        _ => {
            found.expected(&node, at, "a map, or `off`");
            None
        }
    }
}

fn texts(fields: &mut Fields, key: &'static str, found: &mut Mistakes) -> Option<Vec<String>> {
    let (list, at) = fields.take(key)?;
    let nodes = found.list(list, &at, ENTRIES_MAX);
    let read =
        |(index, node): (usize, &Node)| found.text(node, &format!("{at}[{index}]"), TEXT_BYTES_MAX);
    Some(nodes.iter().enumerate().filter_map(read).collect())
}

fn number(
    fields: &mut Fields,
    key: &'static str,
    range: RangeInclusive<i64>,
    to: &mut u32,
    found: &mut Mistakes,
) {
    if let Some((node, at)) = fields.take(key) {
        set(to, found.integer(&node, &at, range).map(|number| number as u32));
    }
}

fn pause(fields: &mut Fields, key: &'static str, to: &mut Duration, found: &mut Mistakes) {
    if let Some((node, at)) = fields.take(key) {
        set(to, found.duration(&node, &at, PAUSES));
    }
}

/// The first of both must not be above the second, whoever said it.
fn ordered(
    fields: &Fields,
    (lower, least): (&'static str, Duration),
    (upper, most): (&'static str, Duration),
    found: &mut Mistakes,
) {
    if least > most {
        let reason = format!("{least:?} is above `{upper}`, which is {most:?}; set both");
        found.note(0, &fields.path_of(lower), reason);
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use super::*;

    fn policies(text: &str) -> Policies {
        ConfigFile::parse(text).expect("a configuration").routing
    }

    #[test]
    fn without_a_word_the_defaults_hold() {
        assert_eq!(*policies("").default, Policy::default());
    }

    #[test]
    fn a_service_begins_from_the_default_and_has_its_own_word() {
        let policies = policies(
            "routing:
  default:
    retries: {attempts: 5, backoff: 10ms}
    breaker: off
  services:
    demo.v1.Counter:
      method: hash
      key: X-Session
      hedging: p95
      ejection: {share_percent: 30}
      backups: [counter-b]
      idempotent: [Get]
      limit: {calls: 64, adaptive: true}
      priority: high
      version: ^1.2
      labels: {region: eu}
",
        );
        let name = "demo.v1.Counter".parse().expect("a name");
        let own = policies.of(&name);
        assert_eq!((own.method, own.locality), (Method::Hash, Locality::Any));
        assert_eq!((own.key.as_str(), own.retries.attempts_max), ("x-session", 5));
        assert_eq!((&own.hedging, &own.breaker), (&Some(Hedging { after: None }), &None));
        assert_eq!(own.ejection.as_ref().map(|it| (it.share_percent, it.failures)), Some((30, 5)));
        assert!(own.limit.adaptive && own.idempotent.contains("Get"));
        let other = policies.of(&"demo.v1.Kv".parse().expect("a name"));
        assert_eq!(other.retries.backoff, Duration::from_millis(10));
        assert_eq!(other.method, Method::LeastLoaded);
    }

    #[test]
    fn mistakes_say_where_and_what_is_meant() {
        let text = "routing:
  default:
    metod: hash
    retries: {attempts: 0}
    hedging: sometimes
    breaker: 5
    ejection: {time: 1h}
    limit: {calls: 20000}
  services:
    not-a-service: {}
    demo.v1.Kv:
      key: x
      version: new
";
        let told: Vec<String> =
            ConfigFile::parse(text).expect_err("wrong").iter().map(ToString::to_string).collect();
        let expected = [
            "line 3: routing.default.metod: unknown key; did you mean `method`?",
            "line 4: routing.default.retries.attempts: must be 1 to 8, found 0",
            "line 5: routing.default.hedging: expected a duration",
            "line 6: routing.default.breaker: expected a map, or `off`, found the number 5",
            "line 8: routing.default.limit.calls: must be 1 to 16384, found 20000",
            "line 10: routing.services.not-a-service: `not-a-service` is not a service name",
            "line 12: routing.services.demo.v1.Kv.key: only means something with `method: hash`",
            "line 13: routing.services.demo.v1.Kv.version: `new` is not a version requirement",
            "routing.default.ejection.time: 3600s is above `time_max`, which is 300s; set both",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
