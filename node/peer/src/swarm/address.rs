//! What an address says about where it leads. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use multiaddr::{Multiaddr, Protocol};

use super::Transport;

/// Longest address kept or passed on, in bytes: a relayed address over IPv6 with two peer ids is
/// about 110.
pub(super) const ADDRESS_BYTES_MAX: usize = 256;

/// The IP address an address begins with; `None` for names.
pub(super) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(ip.into(), IpAddr::from)),
        _ => None,
    }
}

/// The TCP or UDP socket that listening on `address` would bind; none for a place at a relay.
pub(super) fn socket(address: &Multiaddr) -> Option<(Transport, std::net::SocketAddr)> {
    if transport(address) == Transport::Relay {
        return None;
    }
    let ip = match address.iter().next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match address.iter().nth(1)? {
        Protocol::Tcp(port) => Some((Transport::Tcp, (ip, port).into())),
        Protocol::Udp(port) => Some((Transport::Quic, (ip, port).into())),
        _ => None,
    }
}

/// What carries connections to `address`.
pub(super) fn transport(address: &Multiaddr) -> Transport {
    let mut found = Transport::Other;
    for part in address {
        match part {
            Protocol::P2pCircuit => return Transport::Relay,
            Protocol::Tcp(_) => found = Transport::Tcp,
            Protocol::QuicV1 => found = Transport::Quic,
            _ => {}
        }
    }
    found
}

/// The peer that an address names as its end.
pub(super) fn peer(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

/// The address without the peer id at its end.
pub(super) fn without_peer(mut address: Multiaddr) -> Multiaddr {
    if peer(&address).is_some() {
        address.pop();
    }
    address
}

/// Whether `address` names an IP address that is reached only on this machine.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    ip(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether `address` names an IP address of the public internet. Names are not: where they lead is
/// known only once they were dialled.
pub(super) fn is_global(address: &Multiaddr) -> bool {
    ip(address).is_some_and(is_global_ip)
}

/// Whether `address` names an IP address that is *not* of the public internet.
pub(super) fn is_private(address: &Multiaddr) -> bool {
    ip(address).is_some_and(|ip| !is_global_ip(ip))
}

/// Whether packets to `ip` leave for the public internet. Source: IANA special-purpose registries.
pub(super) fn is_global_ip(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_global_v4(ip),
            None => is_global_v6(ip),
        },
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarking = a == 198 && (b == 18 || b == 19);
    let assignments = a == 192 && b == 0 && c == 0;
    let reserved = a == 0 || a >= 240;
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || shared
        || benchmarking
        || assignments
        || reserved)
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    let documentation = ip.segments()[..2] == [0x2001, 0xdb8];
    // 2000::/3 is all that is given out today.
    ip.segments()[0] & 0xe000 == 0x2000 && !documentation
}

/// Whether a peer met at `remote` may be believed to be reachable at `claimed`: an address that
/// means something else here than there is useless at best, and at worst somebody else's.
pub(super) fn believable(claimed: &Multiaddr, remote: &Multiaddr) -> bool {
    if claimed.len() > ADDRESS_BYTES_MAX || transport(claimed) == Transport::Other {
        return false;
    }
    match ip(claimed) {
        None => true,
        Some(ip) if ip.is_unspecified() || ip.is_multicast() => false,
        Some(ip) if ip.is_loopback() => is_loopback(remote),
        Some(ip) => is_global_ip(ip) || !is_global(remote),
    }
}

/// The group of addresses that one owner can be assumed to hold whole: /24 for IPv4, /48 for IPv6.
/// `None` where quotas make no sense: private networks, names, relayed addresses.
pub(super) fn group(address: &Multiaddr) -> Option<[u8; 6]> {
    if transport(address) == Transport::Relay {
        return None;
    }
    match ip(address).filter(|ip| is_global_ip(*ip))? {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Some([4, a, b, c, 0, 0])
        }
        IpAddr::V6(ip) => ip.octets().first_chunk().copied(),
    }
}

/// `addresses` in the order they are to be tried, in stages; a stage begins when all of the one
/// before it failed.
///
/// On private networks TCP comes first: the machine of a killed process refuses TCP at once, where
/// QUIC can only time out. Elsewhere everything direct is tried together. Relays come last.
pub(super) fn stages(addresses: Vec<Multiaddr>) -> Vec<Vec<Multiaddr>> {
    let mut stages = [const { Vec::new() }; 3];
    for address in addresses {
        let stage = match transport(&address) {
            Transport::Relay => 2,
            Transport::Quic if is_private(&address) => 1,
            _ => 0,
        };
        stages[stage].push(address);
    }
    stages.into_iter().filter(|stage| !stage.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddr")
    }

    #[test]
    fn private_and_reserved_addresses_are_not_global() {
        for text in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.2.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_global_ip(text.parse().expect("an ip")), "{text}");
        }
        for text in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2a00:1450::1", "::ffff:8.8.8.8"] {
            assert!(is_global_ip(text.parse().expect("an ip")), "{text}");
        }
    }

    #[test]
    fn loopback_is_believed_only_over_loopback() {
        let claimed = addr("/ip4/127.0.0.1/tcp/4001");
        assert!(believable(&claimed, &addr("/ip4/127.0.0.1/tcp/5555")));
        assert!(!believable(&claimed, &addr("/ip4/10.0.0.9/tcp/5555")));
    }

    #[test]
    fn private_addresses_are_not_believed_from_the_internet() {
        let claimed = addr("/ip4/10.0.0.1/tcp/4001");
        assert!(!believable(&claimed, &addr("/ip4/8.8.8.8/tcp/5555")));
        assert!(believable(&claimed, &addr("/ip4/10.0.0.9/tcp/5555")));
        assert!(!believable(&addr("/ip4/0.0.0.0/tcp/1"), &addr("/ip4/10.0.0.9/tcp/5555")));
    }

    #[test]
    fn on_private_networks_tcp_is_tried_before_quic_and_relays_last() {
        let quic = addr("/ip4/127.0.0.1/udp/1/quic-v1");
        let tcp = addr("/ip4/127.0.0.1/tcp/1");
        let relayed = addr(
            "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
        );
        let staged = stages(vec![relayed.clone(), quic.clone(), tcp.clone()]);
        assert_eq!(staged, [vec![tcp], vec![quic], vec![relayed]]);
    }

    #[test]
    fn public_addresses_are_tried_together() {
        let quic = addr("/ip4/8.8.8.8/udp/1/quic-v1");
        let tcp = addr("/ip4/8.8.8.8/tcp/1");
        assert_eq!(stages(vec![quic.clone(), tcp.clone()]), [vec![quic, tcp]]);
    }

    #[test]
    fn groups_exist_only_where_addresses_are_scarce() {
        assert_eq!(group(&addr("/ip4/127.0.0.1/tcp/1")), None);
        assert_eq!(group(&addr("/dns4/example.org/tcp/1")), None);
        assert_eq!(group(&addr("/ip4/8.8.8.8/tcp/1")), group(&addr("/ip4/8.8.8.9/tcp/1")));
        assert_ne!(group(&addr("/ip4/8.8.8.8/tcp/1")), group(&addr("/ip4/8.8.9.8/tcp/1")));
    }
}
