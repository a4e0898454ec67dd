use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Permission {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_form_has_one_normal_form() {
    for (text, normal) in [
        ("network", "network"),
        ("network:*", "network"),
        ("network:*:*", "network"),
        ("network:*:443", "network:*:443"),
        ("network:Example.ORG.", "network:example.org"),
        ("network:example.org:443", "network:example.org:443"),
        ("network:example.org:80-90", "network:example.org:80-90"),
        ("network:*.example.org:*", "network:*.example.org"),
        ("network:192.0.2.7:80", "network:192.0.2.7:80"),
        ("network:192.0.2.0/24:80", "network:192.0.2.0/24:80"),
        ("network:fd00::/8", "network:[fd00::/8]"),
        ("network:[::1]:80", "network:[::1]:80"),
        ("network:::1", "network:[::1]"),
        ("host-network", "host-network"),
        ("read://srv/./models/", "read:/srv/models"),
        ("write:/", "write:/"),
        ("call:*", "call:*"),
        ("call:demo.v1.*", "call:demo.v1.*"),
        ("call:demo.v1.Counter", "call:demo.v1.Counter"),
        ("call:/demo.v1.Counter/Get", "call:demo.v1.Counter/Get"),
        ("env:HTTP_TIMEOUT", "env:HTTP_TIMEOUT"),
        ("device:/dev/dri/renderD128", "device:/dev/dri/renderD128"),
    ] {
        assert_eq!(parse(text).to_string(), normal, "{text}");
    }
}

#[test]
fn mistakes_say_what_is_wrong() {
    for (text, why) in [
        ("", "expected network"),
        ("networks", "expected network"),
        ("network:", "is not a host"),
        ("network:example.org:", "is no port"),
        ("network:example.org:0", "is no port"),
        ("network:example.org:+80", "is no port"),
        ("network:example.org:90-80", "is no port"),
        ("network:example.org:65536", "is no port"),
        ("network:exa mple.org", "is not a host"),
        ("network:http://example.org", "is no port"),
        ("network:example.org/path", "is not a host"),
        ("network:*example.org", "is not a host"),
        ("network:a.*.org", "is not a host"),
        ("network:127.1", "is not a host"),
        ("network:2130706433", "is not a host"),
        ("network:0x7f000001", "is not a host"),
        ("network:192.0.2.7/24", "write 192.0.2.0/24"),
        ("network:192.0.2.0/33", "is not a host"),
        ("network:[::ffff:127.0.0.1]", "as IPv4: 127.0.0.1"),
        ("network:[::1", "without its"),
        ("network:[::1]80", "after `]`"),
        ("host-network:x", "nothing may follow"),
        ("read", "must follow"),
        ("read:srv", "absolute path"),
        ("read:/srv/../etc", "where it leads"),
        ("write:/a\nb", "control"),
        ("call:", "is not a service name"),
        ("call:demo..*", "is not a service name"),
        ("call:demo.v1.Counter/", "is not a method"),
        ("env:1A", "variable's name"),
        ("env:LD_PRELOAD", "set by the host alone"),
        ("env:BH_MESH_SOCKET", "set by the host alone"),
        ("env:AWS_SECRET_ACCESS_KEY", "holds a secret"),
        ("env:github_token", "holds a secret"),
        ("device:/etc/passwd", "below /dev"),
        ("device:/dev/../etc/passwd", "where it leads"),
        ("device:/dev", "below /dev"),
        ("state:cart", "not in this version"),
        ("event:order.*", "not in this version"),
    ] {
        let error = text.parse::<Permission>().expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn a_wildcard_takes_what_lies_below_and_not_what_merely_ends_alike() {
    let name = |text: &str| text.parse::<HostName>().expect(text);
    assert!(name("a.b.example.org").is_below(&name("example.org")));
    assert!(!name("example.org").is_below(&name("example.org")));
    assert!(!name("badexample.org").is_below(&name("example.org")));
    let rule: CallRule = "demo.v1.*".parse().expect("a rule");
    let method = |text: &str| text.parse::<MethodPath>().expect(text);
    assert!(rule.matches(&method("demo.v1.Counter/Get")));
    assert!(!rule.matches(&method("demo.v10.Counter/Get")));
}

fn host_name() -> impl Strategy<Value = String> {
    "[a-z_][a-z0-9_]{0,8}(\\.[a-z][a-z0-9-]{0,6}[a-z0-9]){0,3}"
}

fn net() -> impl Strategy<Value = IpNet> {
    use std::net::IpAddr;
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(bytes, bits)| IpNet::new(bytes.into(), bits)),
        (any::<[u8; 16]>(), 0..=128_u8)
            .prop_map(|(bytes, bits)| IpNet::new(IpAddr::from(bytes), bits))
            .prop_filter("IPv4 in IPv6's clothes is refused", |net| {
                net.to_string().parse::<IpNet>().is_ok()
            }),
    ]
}

fn network() -> impl Strategy<Value = NetworkRule> {
    let name = || host_name().prop_map(|text| text.parse::<HostName>().expect("a name"));
    let host = prop_oneof![
        Just(HostRule::Any),
        name().prop_map(HostRule::Name),
        name().prop_map(HostRule::Below),
        net().prop_map(HostRule::Net),
    ];
    let ports = prop_oneof![
        Just(PortRange::ALL),
        (1..=u16::MAX, 0..100_u16)
            .prop_map(|(first, more)| PortRange::new(first, first.saturating_add(more)))
            .prop_map(|ports| ports.expect("in order")),
    ];
    (host, ports).prop_map(|(host, ports)| NetworkRule { host, ports })
}

fn permission() -> impl Strategy<Value = Permission> {
    let path = "(/[a-zA-Z0-9_ -][a-zA-Z0-9_. -]{0,8}){1,4}";
    let service = "[a-z]{1,5}(\\.[A-Za-z_][A-Za-z0-9_]{0,5}){0,3}";
    let service = || service.prop_map(|text| text.parse::<ServiceName>().expect("a name"));
    prop_oneof![
        network().prop_map(Permission::Network),
        Just(Permission::HostNetwork),
        path.prop_map(Permission::Read),
        path.prop_map(Permission::Write),
        Just(Permission::Call(CallRule::All)),
        service().prop_map(|name| Permission::Call(CallRule::Package(name))),
        service().prop_map(|name| Permission::Call(CallRule::Service(name))),
        (service(), "[A-Z][a-z]{0,8}")
            .prop_map(|(name, method)| Permission::Call(CallRule::Method(name, method))),
        "V[A-F0-9_]{0,8}".prop_map(Permission::Env),
        path.prop_map(|path| Permission::Device(format!("/dev{path}"))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(permission in permission()) {
        let text = permission.to_string();
        let read = text.parse::<Permission>();
        prop_assert_eq!(read.as_ref(), Ok(&permission), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused_and_what_is_read_is_stable(text in ".{0,60}") {
        if let Ok(permission) = text.parse::<Permission>() {
            let normal = permission.to_string();
            prop_assert_eq!(normal.parse::<Permission>(), Ok(permission));
        }
    }

    #[test]
    fn words_near_the_grammar_are_read_or_refused(
        text in "(network|read|call|env|device):[a-z0-9:/.*\\[\\]-]{0,30}"
    ) {
        if let Ok(permission) = text.parse::<Permission>() {
            let normal = permission.to_string();
            prop_assert_eq!(normal.parse::<Permission>(), Ok(permission));
        }
    }

    #[test]
    fn a_block_within_another_has_no_address_of_its_own(
        outer in net(), inner in net(), address in any::<[u8; 4]>()
    ) {
        let address = address.into();
        if inner.is_within(&outer) && inner.contains(address) {
            prop_assert!(outer.contains(address));
        }
        let both = inner.contains(address) && outer.contains(address);
        let met = inner.meet(outer).is_some_and(|net| net.contains(address));
        prop_assert_eq!(both, met);
    }
}
