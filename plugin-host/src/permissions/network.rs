//! What is granted of the network, and which addresses are no ordinary part of it.
//!
//! A connection is judged twice: by the name and port that were asked for, before anything is
//! looked up, and by the address that the name led to. Addresses of the machine itself, of the
//! networks around it and of the cloud's metadata services are reached only where the *operator*
//! names them by a rule that lies within their block; a plain `network` never does.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use protocol::manifest::permission::{HostName, HostRule, IpNet, NetworkRule, PortRange};

/// To whom somebody wants to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name, to be looked up.
    Name(HostName),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Reads a host as clients write it: a name, an address, an IPv6 address in brackets. `None`
    /// where it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(address) => Some(Self::Address(address)),
            Err(_) => text.parse().ok().map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// An address that a host led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The address.
    pub address: IpAddr,
    /// It is this machine's own, whatever block it lies in.
    pub own: bool,
}

/// All that is granted of the network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkGrants {
    /// What may be reached.
    pub allow: Vec<NetworkGrant>,
    /// What of it may not.
    pub deny: Vec<NetworkRule>,
}

/// One meeting of a wish and an allowance: both bound names, addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkGrant {
    names: Names,
    net: Option<IpNet>,
    ports: PortRange,
    /// The block that the operator's rule names, which alone opens blocks that are no ordinary
    /// part of the network.
    operators: Option<IpNet>,
}

/// By what a host may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Names {
    /// Any name, and addresses.
    Any,
    /// This name.
    Name(HostName),
    /// Names below this one.
    Below(HostName),
    /// Addresses only: nothing is looked up.
    Addresses,
}

impl Names {
    fn of(ask: &HostRule) -> Self {
        match ask {
            HostRule::Any => Self::Any,
            HostRule::Name(name) => Self::Name(name.clone()),
            HostRule::Below(name) => Self::Below(name.clone()),
            HostRule::Net(_) => Self::Addresses,
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) | (Self::Addresses, Host::Address(_)) => true,
            (Self::Name(name), Host::Name(host)) => name == host,
            (Self::Below(name), Host::Name(host)) => host.is_below(name),
            (Self::Name(_) | Self::Below(_), Host::Address(_))
            | (Self::Addresses, Host::Name(_)) => false,
        }
    }

    /// What of `self` the operator's `rule` leaves. A rule on addresses says nothing on names.
    fn meet(self, rule: &HostRule) -> Option<Self> {
        match (self, rule) {
            (names, HostRule::Any | HostRule::Net(_)) => Some(names),
            (Self::Any, HostRule::Name(name)) => Some(Self::Name(name.clone())),
            (Self::Any, HostRule::Below(name)) => Some(Self::Below(name.clone())),
            (Self::Name(one), HostRule::Name(other)) => (one == *other).then_some(Self::Name(one)),
            (Self::Name(one), HostRule::Below(other)) => {
                one.is_below(other).then_some(Self::Name(one))
            }
            (Self::Below(one), HostRule::Name(other)) => {
                other.is_below(&one).then(|| Self::Name(other.clone()))
            }
            (Self::Below(one), HostRule::Below(other)) => {
                if one == *other || one.is_below(other) {
                    Some(Self::Below(one))
                } else {
                    other.is_below(&one).then(|| Self::Below(other.clone()))
                }
            }
            (Self::Addresses, HostRule::Name(_) | HostRule::Below(_)) => None,
        }
    }
}

impl NetworkGrant {
    /// What a wish and an allowance have in common.
    pub fn meet(ask: &NetworkRule, allow: &NetworkRule) -> Option<Self> {
        let block = |rule: &HostRule| match rule {
            HostRule::Net(net) => Some(*net),
            _ => None,
        };
        let operators = block(&allow.host);
        let net = match (block(&ask.host), operators) {
            (Some(one), Some(other)) => Some(one.meet(other)?),
            (one, other) => one.or(other),
        };
        // A block that the operator must name, and does not: nothing of it could be reached.
        let special = net.and_then(|net| SPECIAL.into_iter().find(|block| net.is_within(block)));
        let named = |block: IpNet| operators.is_some_and(|named| named.is_within(&block));
        if special.is_some_and(|block| !named(block)) {
            return None;
        }
        Some(Self {
            names: Names::of(&ask.host).meet(&allow.host)?,
            net,
            ports: ask.ports.meet(allow.ports)?,
            operators,
        })
    }

    /// True where `host` and `port` may be looked up: some address of it may be permitted.
    fn may_ask(&self, host: &Host, port: u16) -> bool {
        self.ports.contains(port) && self.names.matches(host)
    }

    fn permits(&self, host: &Host, port: u16, at: Resolved) -> bool {
        let address = effective(at.address);
        let special = special_block(address).or_else(|| at.own.then(|| IpNet::of(address)));
        self.may_ask(host, port)
            && self.net.is_none_or(|net| net.contains(address))
            && special
                .is_none_or(|block| self.operators.is_some_and(|named| named.is_within(&block)))
    }
}

impl fmt::Display for NetworkGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, at) = match (&self.names, self.net) {
            (Names::Any | Names::Addresses, None) => (HostRule::Any, None),
            (Names::Any | Names::Addresses, Some(net)) => (HostRule::Net(net), None),
            (Names::Name(name), net) => (HostRule::Name(name.clone()), net),
            (Names::Below(name), net) => (HostRule::Below(name.clone()), net),
            // Addresses come with a block; without one, all of them.
        };
        NetworkRule { host, ports: self.ports }.fmt(f)?;
        at.map_or(Ok(()), |net| write!(f, " at {net}"))
    }
}

impl NetworkGrants {
    /// Nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    /// True where it makes sense to look `host` up.
    pub fn may_ask(&self, host: &Host, port: u16) -> bool {
        let denied = self.deny.iter().any(|rule| match &rule.host {
            HostRule::Net(_) => false,
            _ => denies(rule, host, port, None),
        });
        !denied && self.allow.iter().any(|grant| grant.may_ask(host, port))
    }

    /// True where `host` may be reached at this address and port.
    pub fn permits(&self, host: &Host, port: u16, at: Resolved) -> bool {
        self.allow.iter().any(|grant| grant.permits(host, port, at))
            && self.denying(host, port, at.address).is_none()
    }

    /// The rule that denies it.
    pub fn denying(&self, host: &Host, port: u16, address: IpAddr) -> Option<&NetworkRule> {
        self.deny.iter().find(|rule| denies(rule, host, port, Some(effective(address))))
    }

    /// In words; a grant that the operator named by address says what others do not.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        for grant in &self.allow {
            let word = grant.to_string();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        words
    }

    pub(super) fn tidy(&mut self) {
        self.allow.sort();
        self.allow.dedup();
        if self.allow.is_empty() {
            self.deny.clear();
        }
    }
}

fn denies(rule: &NetworkRule, host: &Host, port: u16, address: Option<IpAddr>) -> bool {
    let matches = match &rule.host {
        HostRule::Net(net) => address.is_some_and(|address| net.contains(address)),
        other => match host {
            Host::Name(_) => Names::of(other).matches(host),
            Host::Address(_) => *other == HostRule::Any,
        },
    };
    matches && rule.ports.contains(port)
}

/// True where everything that `inner` says is said by `outer`.
pub(super) fn covers(outer: &NetworkRule, inner: &NetworkRule) -> bool {
    let host = match (&outer.host, &inner.host) {
        (HostRule::Any, _) => true,
        (HostRule::Net(outer), HostRule::Net(inner)) => inner.is_within(outer),
        (HostRule::Name(outer), HostRule::Name(inner)) => inner == outer,
        (HostRule::Below(outer), HostRule::Name(inner)) => inner.is_below(outer),
        (HostRule::Below(outer), HostRule::Below(inner)) => inner == outer || inner.is_below(outer),
        _ => false,
    };
    host && inner.ports.is_within(&outer.ports)
}

/// The address that packets go to: IPv4 in IPv6's clothes, and behind the well-known NAT64 prefix
/// (RFC 6052), is IPv4.
pub fn effective(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if NAT64.contains(IpAddr::V6(v6)) => {
            IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        other => other,
    }
}

const NAT64: IpNet = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// Blocks that are no ordinary part of the internet, the narrowest first. Sources: the IANA
/// special-purpose address registries (RFC 6890), and the documentation of each cloud.
const SPECIAL: [IpNet; 36] = [
    // Metadata services, each by itself: Amazon, Azure, Google and others; Amazon's container
    // credentials; Alibaba; Azure's wire server; Oracle; Amazon and Google over IPv6.
    v4([169, 254, 169, 254], 32),
    v4([169, 254, 170, 2], 32),
    v4([100, 100, 100, 200], 32),
    v4([168, 63, 129, 16], 32),
    v4([192, 0, 0, 192], 32),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
    // This host and this network, loopback, link-local.
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    // Private networks, shared address space.
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    // Protocol assignments, documentation, benchmarks.
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // Multicast, reserved, broadcast.
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    // IPv6: unspecified, loopback, compatible with IPv4.
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
    // NAT64 of one's own, whose IPv4 addresses cannot be known; discard.
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    // Teredo and other protocol assignments, documentation, 6to4.
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    // Unique local, link-local, site-local, multicast.
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4(octets: [u8; 4], bits: u8) -> IpNet {
    IpNet::new(IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])), bits)
}

const fn v6(s: [u16; 8], bits: u8) -> IpNet {
    let address = Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
    IpNet::new(IpAddr::V6(address), bits)
}

/// The block that makes an [`effective`] address no ordinary one; `None` for the public internet.
pub fn special_block(address: IpAddr) -> Option<IpNet> {
    SPECIAL.into_iter().find(|block| block.contains(address))
}

/// The addresses of `resolved` that may be connected to.
pub(crate) fn permitted(
    grants: &NetworkGrants,
    host: &Host,
    port: u16,
    resolved: &[Resolved],
) -> Vec<SocketAddr> {
    let may = resolved.iter().filter(|at| grants.permits(host, port, **at));
    may.map(|at| SocketAddr::new(at.address, port)).collect()
}
