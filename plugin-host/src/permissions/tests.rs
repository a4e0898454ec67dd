use proptest::prelude::*;

use super::*;

fn read(list: &[&str]) -> Vec<Permission> {
    list.iter().map(|text| text.parse().unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn met(asked: &[&str], allow: &[&str], deny: &[&str]) -> Granted {
    meet(&read(asked), &Policy { allow: read(allow), deny: read(deny) })
}

#[test]
fn the_tighter_side_wins() {
    for (ask, allow, granted) in [
        ("network", "network:*.example.org:443", "network:*.example.org:443"),
        ("network:a.example.org", "network:*.example.org:443", "network:a.example.org:443"),
        ("network:*.example.org:1-500", "network:*:443", "network:*.example.org:443"),
        ("network:*.b.org", "network:*.a.b.org", "network:*.a.b.org"),
        ("network:10.1.0.0/16", "network:10.0.0.0/8:5432", "network:10.1.0.0/16:5432"),
        ("network:db.corp", "network:10.0.0.0/8:5432", "network:db.corp:5432 at 10.0.0.0/8"),
        ("read:/srv/models", "read:/srv", "read:/srv/models"),
        ("read:/srv", "read:/srv/models", "read:/srv/models"),
        ("read:/srv/models", "write:/srv", "read:/srv/models"),
        ("write:/srv/data", "read:/srv", "read:/srv/data"),
        ("write:/srv/data", "write:/srv", "write:/srv/data"),
        ("call:*", "call:demo.v1.*", "call:demo.v1.*"),
        ("call:demo.v1.Counter/Get", "call:demo.*", "call:demo.v1.Counter/Get"),
        ("env:TZ", "env:TZ", "env:TZ"),
        ("device:/dev/kvm", "device:/dev/kvm", "device:/dev/kvm"),
        ("host-network", "host-network", "host-network"),
    ] {
        let words = met(&[ask], &[allow], &[]).words();
        assert_eq!(words, [granted], "{ask} and {allow}");
    }
}

#[test]
fn what_has_nothing_in_common_is_denied() {
    for (ask, allow) in [
        ("network:example.org", "network:*.example.org"),
        ("network:example.org:80", "network:example.org:443"),
        ("network:10.0.0.1", "network:example.org"),
        ("network:127.0.0.1:80", "network"),
        ("network:169.254.169.254", "network:169.254.0.0/16"),
        ("host-network", "network"),
        ("network", "host-network"),
        ("read:/srv2", "read:/srv"),
        ("call:demo.v10.Counter", "call:demo.v1.*"),
        ("env:TZ", "env:LANG"),
        ("device:/dev/kvm", "device:/dev/fuse"),
        ("read:/srv", "network"),
    ] {
        let granted = met(&[ask], &[allow], &[]);
        assert!(granted.words().is_empty(), "{ask} and {allow}: {:?}", granted.words());
        let [Denied { why: Why::NotAllowed, .. }] = granted.denied.as_slice() else {
            panic!("{ask} and {allow}: {:?}", granted.denied);
        };
    }
}

#[test]
fn a_deny_wins_and_is_named() {
    for (ask, deny) in [
        ("network:x.evil.org:443", "network:*.evil.org"),
        ("host-network", "network:10.0.0.0/8"),
        ("read:/srv/secret/a", "read:/srv/secret"),
        ("write:/srv/secret", "read:/srv"),
        ("call:demo.v1.Counter/Get", "call:demo.v1.*"),
        ("env:TZ", "env:TZ"),
        ("device:/dev/kvm", "device:/dev/kvm"),
    ] {
        let allow = ["network", "host-network", "write:/", "call:*", "env:TZ", "device:/dev/kvm"];
        let granted = met(&[ask], &allow, &[deny]);
        assert!(granted.words().is_empty(), "{ask}: {:?}", granted.words());
        let why = &granted.denied[0].why;
        assert_eq!(*why, Why::DeniedBy(deny.parse().expect(deny)), "{ask}");
    }
}

#[test]
fn a_deny_within_a_grant_stays_in_force() {
    let granted = met(
        &["network", "read:/srv", "call:*"],
        &["network", "read:/srv", "call:*"],
        &["network:*.evil.org", "read:/srv/secret", "call:admin.*"],
    );
    assert!(granted.denied.is_empty());
    assert_eq!(granted.hidden, ["/srv/secret"]);
    let method = |text: &str| text.parse::<MethodPath>().expect(text);
    assert!(granted.calls.permits(&method("demo.v1.Counter/Add")));
    assert!(!granted.calls.permits(&method("admin.v1.Users/List")));
    let address = "93.184.216.34".parse().expect("an address");
    let at = Resolved { address, own: false };
    let host = |text: &str| Host::parse(text).expect(text);
    assert!(granted.network.permits(&host("good.org"), 443, at));
    assert!(!granted.network.permits(&host("x.evil.org"), 443, at));
}

#[test]
fn what_is_granted_in_part_says_so() {
    let granted = met(&["network", "write:/srv"], &["network:a.org:443", "read:/srv/x"], &[]);
    let told: Vec<String> = granted.denied.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["network (only network:a.org:443)", "write:/srv (only read:/srv/x)"]);
}

#[test]
fn a_plugins_own_grants_replace_the_general_ones_kind_by_kind() {
    let mut policies = Policies {
        allow: read(&["call:*", "network:example.org"]),
        deny: read(&["call:admin.*"]),
        ..Policies::default()
    };
    let own = Grants { allow: read(&["call:demo.v1.Counter"]), deny: read(&["env:TZ"]) };
    policies.grants.insert("echo".into(), own);
    let policy = policies.of("echo");
    assert_eq!(policy.allow, read(&["network:example.org", "call:demo.v1.Counter"]));
    assert_eq!(policy.deny, read(&["call:admin.*", "env:TZ"]));
    assert_eq!(policies.of("other").allow, policies.allow);
}

#[test]
fn by_default_a_plugin_may_call_and_nothing_else() {
    let asked = read(&["call:*", "network", "read:/srv", "env:TZ", "device:/dev/kvm"]);
    let granted = meet(&asked, &Policies::default().of("echo"));
    assert_eq!(granted.words(), ["call:*"]);
    assert_eq!(granted.denied.len(), 4);
    assert!(granted.denied[0].explain("echo").contains("grants: { echo: [\"network\"] }"));
}

/// A small world, so that random rules meet.
fn permission() -> impl Strategy<Value = Permission> {
    const HOSTS: &[&str] = &[
        "*",
        "a.org",
        "b.a.org",
        "c.b.a.org",
        "*.a.org",
        "*.b.a.org",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3",
        "127.0.0.1",
        "127.0.0.0/8",
        "8.0.0.0/6",
        "8.8.8.8",
        "169.254.169.254",
    ];
    const PORTS: &[&str] = &["*", "80", "443", "80-500"];
    const CALLS: &[&str] = &["*", "p.*", "p.q.*", "p.q.S", "p.q.S/M", "p.T", "r.S"];
    const PATHS: &[&str] = &["/a", "/a/b", "/a/b/c", "/d", "/a2"];
    let network = (prop::sample::select(HOSTS), prop::sample::select(PORTS))
        .prop_map(|(host, port)| format!("network:{host}:{port}"));
    let path = prop::sample::select(PATHS);
    let texts = prop_oneof![
        4 => network,
        1 => Just("host-network".to_owned()),
        2 => path.clone().prop_map(|path| format!("read:{path}")),
        2 => path.prop_map(|path| format!("write:{path}")),
        2 => prop::sample::select(CALLS).prop_map(|rule| format!("call:{rule}")),
        1 => prop::sample::select(&["env:A", "env:B"][..]).prop_map(ToOwned::to_owned),
        1 => prop::sample::select(&["device:/dev/a", "device:/dev/b"][..])
            .prop_map(ToOwned::to_owned),
    ];
    texts.prop_map(|text| text.parse().expect("in the grammar"))
}

fn permissions() -> impl Strategy<Value = Vec<Permission>> {
    prop::collection::vec(permission(), 0..8)
}

/// Everything that could be tried in the small world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Connect(String, u16, std::net::IpAddr),
    HostNetwork,
    Read(String),
    Write(String),
    Call(String),
    Env(String),
    Device(String),
}

fn acts() -> Vec<Act> {
    let mut acts = vec![Act::HostNetwork];
    for host in ["a.org", "b.a.org", "c.b.a.org", "x.org"] {
        for address in ["10.1.2.3", "10.9.9.9", "127.0.0.1", "8.8.8.8", "169.254.169.254"] {
            for port in [80, 443, 9_000] {
                let at = address.parse().expect("an address");
                acts.push(Act::Connect(host.into(), port, at));
                acts.push(Act::Connect(address.into(), port, at));
            }
        }
    }
    for path in ["/a", "/a/x", "/a/b", "/a/b/c", "/a/b/c/d", "/d", "/a2", "/e"] {
        acts.push(Act::Read(path.into()));
        acts.push(Act::Write(path.into()));
    }
    acts.extend(["p.q.S/M", "p.q.S/N", "p.T/M", "r.S/M"].map(|method| Act::Call(method.into())));
    acts.extend(["A", "B"].map(|name| Act::Env(name.into())));
    acts.extend(["/dev/a", "/dev/b"].map(|path| Act::Device(path.into())));
    acts
}

fn may(granted: &Granted, act: &Act) -> bool {
    let below = |list: &[String], path: &str| list.iter().any(|top| within(path, top));
    match act {
        Act::Connect(host, port, address) => {
            let host = Host::parse(host).expect("a host");
            granted.network.permits(&host, *port, Resolved { address: *address, own: false })
        }
        Act::HostNetwork => granted.host_network,
        Act::Read(path) => {
            (below(&granted.reads, path) || below(&granted.writes, path))
                && !below(&granted.hidden, path)
        }
        Act::Write(path) => below(&granted.writes, path) && !below(&granted.hidden, path),
        Act::Call(method) => granted.calls.permits(&method.parse().expect("a method")),
        Act::Env(name) => granted.env.contains(name),
        Act::Device(path) => granted.devices.contains(path),
    }
}

fn allowed(granted: &Granted) -> Vec<Act> {
    acts().into_iter().filter(|act| may(granted, act)).collect()
}

/// What one side alone says of an act, in the plainest words there are.
fn says(side: &[Permission], act: &Act, addresses_by_name: bool) -> bool {
    use protocol::manifest::permission::HostRule;
    side.iter().any(|permission| match (permission, act) {
        (Permission::Network(rule), Act::Connect(host, port, address)) => {
            let host = match (&rule.host, Host::parse(host).expect("a host")) {
                (HostRule::Any, _) => true,
                (HostRule::Name(name), Host::Name(host)) => *name == host,
                (HostRule::Below(name), Host::Name(host)) => host.is_below(name),
                (HostRule::Net(net), Host::Address(_)) => net.contains(*address),
                (HostRule::Net(net), Host::Name(_)) => addresses_by_name && net.contains(*address),
                _ => false,
            };
            host && rule.ports.contains(*port)
        }
        (Permission::HostNetwork, Act::HostNetwork) => true,
        (Permission::Read(top), Act::Read(path))
        | (Permission::Write(top), Act::Read(path) | Act::Write(path)) => within(path, top),
        (Permission::Call(rule), Act::Call(method)) => {
            rule.matches(&method.parse().expect("a method"))
        }
        (Permission::Env(one), Act::Env(other)) | (Permission::Device(one), Act::Device(other)) => {
            one == other
        }
        _ => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_result_never_exceeds_either_side_and_never_what_is_denied(
        asked in permissions(), allow in permissions(), deny in permissions()
    ) {
        let policy = Policy { allow: allow.clone(), deny: deny.clone() };
        for act in allowed(&meet(&asked, &policy)) {
            prop_assert!(says(&asked, &act, false), "not asked: {:?}", act);
            prop_assert!(says(&allow, &act, true), "not allowed: {:?}", act);
            // What may not be read may not be written either.
            let read = match &act {
                Act::Write(path) => Act::Read(path.clone()),
                other => other.clone(),
            };
            let denies_reading: Vec<Permission> =
                deny.iter().filter(|it| !matches!(it, Permission::Write(_))).cloned().collect();
            prop_assert!(!says(&deny, &act, true) || matches!(act, Act::Read(_)), "{:?}", act);
            prop_assert!(!says(&denies_reading, &read, true), "denied: {:?}", act);
        }
    }

    #[test]
    fn more_asked_or_allowed_takes_nothing_and_more_denied_gives_nothing(
        asked in permissions(), allow in permissions(), deny in permissions(),
        more in permission()
    ) {
        let base = Policy { allow: allow.clone(), deny: deny.clone() };
        let before = allowed(&meet(&asked, &base));
        let with = |list: &[Permission]| [list, std::slice::from_ref(&more)].concat();
        let wider = [
            meet(&with(&asked), &base),
            meet(&asked, &Policy { allow: with(&allow), deny: deny.clone() }),
        ];
        for wider in wider {
            let after = allowed(&wider);
            // A wish to write brings what may not be written out of sight altogether.
            let lost: Vec<_> = before.iter().filter(|act| !after.contains(act)).collect();
            let by_write = matches!(more, Permission::Write(_));
            prop_assert!(lost.is_empty() || by_write && lost.iter().all(|it| matches!(it, Act::Read(_) | Act::Write(_))), "{:?}", lost);
        }
        let after = allowed(&meet(&asked, &Policy { allow, deny: with(&deny) }));
        prop_assert!(after.iter().all(|act| before.contains(act)));
    }

    #[test]
    fn meeting_again_changes_nothing_and_order_means_nothing(
        asked in permissions(), allow in permissions(), deny in permissions()
    ) {
        let policy = Policy { allow: allow.clone(), deny: deny.clone() };
        let once = meet(&asked, &policy);
        let twice = meet(&[&asked[..], &asked[..]].concat(), &policy);
        prop_assert_eq!(allowed(&once), allowed(&twice));
        let reversed = |list: &[Permission]| list.iter().rev().cloned().collect::<Vec<_>>();
        let policy = Policy { allow: reversed(&allow), deny: reversed(&deny) };
        let other = meet(&reversed(&asked), &policy);
        prop_assert_eq!(allowed(&once), allowed(&other));
        prop_assert_eq!(once.words(), other.words());
        // What is granted, asked for again where it can be said in words, is granted whole.
        let words: Result<Vec<Permission>, _> = once.words().iter().map(|w| w.parse()).collect();
        if let Ok(words) = words {
            let again = meet(&words, &policy);
            let gained: Vec<_> =
                allowed(&again).into_iter().filter(|act| !may(&once, act)).collect();
            prop_assert!(gained.is_empty(), "{:?}", gained);
        }
    }

    #[test]
    fn what_is_not_granted_whole_is_in_the_list_of_what_is_denied(
        asked in permissions(), allow in permissions(), deny in permissions()
    ) {
        let granted = meet(&asked, &Policy { allow, deny });
        let empty = granted.words().is_empty();
        prop_assert!(!empty || granted.denied.len() == asked.len());
        prop_assert!(granted.denied.iter().all(|denied| asked.contains(&denied.permission)));
    }
}
