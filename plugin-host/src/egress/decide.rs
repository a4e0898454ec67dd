//! Whether a connection is granted. Pure: what the name led to is an argument.

use std::net::{IpAddr, SocketAddr};

use protocol::manifest::{
    Permission,
    permission::{HostRule, IpNet, NetworkRule},
};

use crate::permissions::{Host, NetworkGrants, Resolved, effective, permitted, special_block};

/// A connection that is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
}

/// Why a connection is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No grant names it.
    NotGranted,
    /// The operator denies it.
    DeniedBy(NetworkRule),
    /// It leads to an address that the operator must name.
    Special {
        /// The address.
        address: IpAddr,
        /// The block it lies in, of which a rule must be a part.
        block: IpNet,
    },
}

impl Refusal {
    /// Of something that was not even looked up.
    pub(super) fn unasked(grants: &NetworkGrants, host: &Host, port: u16) -> Self {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let address = if let Host::Address(address) = host { *address } else { nowhere };
        let reason = match grants.denying(host, port, address) {
            Some(rule) => Reason::DeniedBy(rule.clone()),
            None => Reason::NotGranted,
        };
        Self { reason }
    }
}

/// The addresses of `resolved`, what `host` led to, that `grants` permits to connect to at
/// `port`; or why there is none. An address that is not in `resolved` is never in the answer.
pub fn decide(
    grants: &NetworkGrants,
    host: &Host,
    port: u16,
    resolved: &[Resolved],
) -> Result<Vec<SocketAddr>, Refusal> {
    let addresses = permitted(grants, host, port, resolved);
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let denied = resolved.iter().find_map(|at| grants.denying(host, port, at.address));
    let special = resolved.iter().find_map(|at| {
        let address = effective(at.address);
        let own = || at.own.then(|| IpNet::of(address));
        let block = special_block(address).or_else(own)?;
        Some(Reason::Special { address, block })
    });
    let reason = match (denied, special) {
        (Some(rule), _) => Reason::DeniedBy(rule.clone()),
        (None, Some(special)) if grants.may_ask(host, port) => special,
        (None, _) => Reason::NotGranted,
    };
    Err(Refusal { reason })
}

/// True where the plugin's own wishes name `host` and `port`.
pub(super) fn is_asked(asked: &[Permission], host: &Host, port: u16) -> bool {
    asked.iter().any(|permission| {
        let Permission::Network(rule) = permission else { return false };
        let host = match (&rule.host, host) {
            (HostRule::Any, _) => true,
            (HostRule::Name(name), Host::Name(host)) => name == host,
            (HostRule::Below(name), Host::Name(host)) => host.is_below(name),
            (HostRule::Net(net), Host::Address(address)) => net.contains(effective(*address)),
            _ => false,
        };
        host && rule.ports.contains(port)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::permissions::{Policy, meet};

    fn grants(asked: &[&str], allow: &[&str], deny: &[&str]) -> NetworkGrants {
        let read = |list: &[&str]| list.iter().map(|text| text.parse().expect(text)).collect();
        let asked: Vec<Permission> = read(asked);
        meet(&asked, &Policy { allow: read(allow), deny: read(deny) }).network
    }

    fn at(address: &str) -> Resolved {
        Resolved { address: address.parse().expect(address), own: false }
    }

    fn to(
        host: &str,
        port: u16,
        addresses: &[&str],
        grants: &NetworkGrants,
    ) -> Result<usize, Reason> {
        let host = Host::parse(host).expect(host);
        let resolved: Vec<Resolved> = addresses.iter().map(|address| at(address)).collect();
        let decided = decide(grants, &host, port, &resolved);
        decided.map(|addresses| addresses.len()).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn any_network_is_the_public_one() {
        let any = grants(&["network"], &["network"], &[]);
        assert_eq!(to("example.org", 443, &["93.184.216.34"], &any), Ok(1));
        assert_eq!(to("8.8.8.8", 53, &["8.8.8.8"], &any), Ok(1));
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "169.254.1.1",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
            "::ffff:169.254.169.254",
        ] {
            let refused = to("evil.example.org", 80, &[address], &any);
            assert!(matches!(refused, Err(Reason::Special { .. })), "{address}: {refused:?}");
        }
    }

    #[test]
    fn what_the_operator_names_by_address_is_reached_and_no_more() {
        let named = grants(&["network"], &["network", "network:10.0.0.0/8:5432"], &[]);
        assert_eq!(to("db.internal", 5432, &["10.1.2.3"], &named), Ok(1));
        assert!(to("db.internal", 5433, &["10.1.2.3"], &named).is_err());
        assert!(to("db.internal", 5432, &["192.168.0.1"], &named).is_err());
        // Everything at once names nothing.
        let all = grants(&["network"], &["network:0.0.0.0/0", "network:[::/0]"], &[]);
        assert_eq!(to("example.org", 443, &["93.184.216.34"], &all), Ok(1));
        assert!(to("evil.example.org", 80, &["127.0.0.1"], &all).is_err());
        // The link-local block does not name the metadata service within it.
        let link = grants(&["network"], &["network:169.254.0.0/16"], &[]);
        assert_eq!(to("169.254.7.7", 80, &["169.254.7.7"], &link), Ok(1));
        assert!(to("169.254.169.254", 80, &["169.254.169.254"], &link).is_err());
        let metadata = grants(&["network"], &["network:169.254.169.254:80"], &[]);
        assert_eq!(to("169.254.169.254", 80, &["169.254.169.254"], &metadata), Ok(1));
    }

    #[test]
    fn a_name_that_leads_to_good_and_bad_addresses_leads_to_the_good_ones() {
        let grants = grants(&["network:*.example.org:443"], &["network"], &[]);
        let mixed = ["127.0.0.1", "93.184.216.34", "169.254.169.254"];
        let host = Host::parse("a.example.org").expect("a name");
        let decided = decide(&grants, &host, 443, &mixed.map(at)).expect("one is good");
        assert_eq!(decided, ["93.184.216.34:443".parse().expect("an address")]);
    }

    #[test]
    fn this_machines_own_addresses_are_its_own_wherever_they_lie() {
        let any = grants(&["network"], &["network", "network:203.0.113.0/24"], &[]);
        let host = Host::parse("198.41.0.4").expect("an address");
        let own = Resolved { own: true, ..at("198.41.0.4") };
        assert!(decide(&any, &host, 80, &[own]).is_err());
        let named = grants(&["network"], &["network:198.41.0.4"], &[]);
        assert!(decide(&named, &host, 80, &[own]).is_ok());
    }

    #[test]
    fn a_deny_names_itself() {
        let grants = grants(&["network"], &["network"], &["network:*.evil.org", "network:1.1.1.1"]);
        let rule = |text: &str| match text.parse().expect("a rule") {
            Permission::Network(rule) => Reason::DeniedBy(rule),
            _ => unreachable!("a network rule"),
        };
        let refused = to("x.evil.org", 443, &["93.184.216.34"], &grants);
        assert_eq!(refused, Err(rule("network:*.evil.org")));
        let refused = to("one.one.org", 443, &["1.1.1.1"], &grants);
        assert_eq!(refused, Err(rule("network:1.1.1.1")));
    }

    #[test]
    fn a_wish_for_addresses_looks_nothing_up() {
        let grants = grants(&["network:10.0.0.0/8"], &["network:10.0.0.0/8"], &[]);
        assert!(!grants.may_ask(&Host::parse("secret.attacker.org").expect("a name"), 80));
        assert!(grants.may_ask(&Host::parse("10.1.1.1").expect("an address"), 80));
    }

    proptest! {
        #[test]
        fn only_what_was_judged_is_connected_to(
            addresses in prop::collection::vec(any::<[u8; 4]>(), 0..6), port in 1..=u16::MAX
        ) {
            let any = grants(&["network"], &["network", "network:10.0.0.0/8"], &[]);
            let host = Host::parse("example.org").expect("a name");
            let resolved: Vec<Resolved> = addresses
                .iter()
                .map(|bytes| Resolved { address: (*bytes).into(), own: false })
                .collect();
            for address in decide(&any, &host, port, &resolved).unwrap_or_default() {
                prop_assert!(resolved.iter().any(|at| at.address == address.ip()));
                prop_assert_eq!(address.port(), port);
                let ten: IpNet = "10.0.0.0/8".parse().expect("a block");
                let block = special_block(address.ip());
                prop_assert!(block.is_none() || block == Some(ten));
            }
        }

        #[test]
        fn no_way_of_writing_an_ipv4_address_in_ipv6_opens_it(bytes in any::<[u8; 4]>()) {
            let any = grants(&["network"], &["network"], &[]);
            let host = Host::parse("example.org").expect("a name");
            let plain = decide(&any, &host, 80, &[Resolved { address: bytes.into(), own: false }]);
            let v4 = std::net::Ipv4Addr::from(bytes);
            let nat64 = (0x64_ff9b_u128 << 96) | u128::from(v4.to_bits());
            for written in [IpAddr::V6(v4.to_ipv6_mapped()), IpAddr::from(nat64.to_be_bytes())] {
                let dressed = decide(&any, &host, 80, &[Resolved { address: written, own: false }]);
                prop_assert_eq!(plain.is_ok(), dressed.is_ok(), "{}", written);
            }
        }
    }
}
