//! Hosts, blocks of addresses and ports of `network` permissions.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Which connections: `network`, `network:HOST` or `network:HOST:PORTS`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkRule {
    /// To whom.
    pub host: HostRule,
    /// To which of its ports.
    pub ports: PortRange,
}

impl NetworkRule {
    /// Any host, any port.
    pub const ANY: Self = Self { host: HostRule::Any, ports: PortRange::ALL };

    /// Reads what follows `network:`, or the lack of it.
    pub(super) fn parse(rest: Option<&str>) -> Result<Self, String> {
        let Some(rest) = rest else { return Ok(Self::ANY) };
        let (host, ports) = split(rest)?;
        let ports = match ports {
            Some(ports) => ports.parse()?,
            None => PortRange::ALL,
        };
        Ok(Self { host: host.parse()?, ports })
    }
}

impl fmt::Display for NetworkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("network")?;
        if *self == Self::ANY {
            return Ok(());
        }
        write!(f, ":{}", self.host)?;
        if self.ports == PortRange::ALL { Ok(()) } else { write!(f, ":{}", self.ports) }
    }
}

/// Host and ports. An IPv6 address has colons of its own: in brackets, or without ports.
fn split(rest: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(inner) = rest.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("a `[` without its `]`")?;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((host, Some(ports))),
            None if after.is_empty() => Ok((host, None)),
            None => Err("after `]` comes `:` and ports, or nothing".into()),
        };
    }
    match rest.split_once(':') {
        Some((_, more)) if more.contains(':') => Ok((rest, None)),
        Some((host, ports)) => Ok((host, Some(ports))),
        None => Ok((rest, None)),
    }
}

/// To whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostRule {
    /// `*`: anybody.
    Any,
    /// `example.org`: this name.
    Name(HostName),
    /// `*.example.org`: every name that ends with it, but not itself.
    Below(HostName),
    /// `192.0.2.7`, `192.0.2.0/24`: addresses, whatever name they were found by.
    Net(IpNet),
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Net(net) if net.address.is_ipv6() => write!(f, "[{net}]"),
            Self::Net(net) => net.fmt(f),
        }
    }
}

impl FromStr for HostRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = |text: &str| text.parse::<HostName>().map_err(|error| error.to_string());
        if text == "*" {
            Ok(Self::Any)
        } else if let Some(below) = text.strip_prefix("*.") {
            name(below).map(Self::Below)
        } else if text.contains(['/', ':']) || text.parse::<IpAddr>().is_ok() {
            text.parse().map(Self::Net)
        } else {
            name(text).map(Self::Name)
        }
    }
}

/// A host's name in lower case without a final dot: at most [`HostName::BYTES_MAX`] bytes, labels
/// of 1 to 63 letters, digits, `-` and `_`, the last one no number. Names beyond ASCII are written
/// as the DNS writes them (`xn--…`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// Source: RFC 1035 §2.3.4, as text and without the final dot.
    pub const BYTES_MAX: usize = 253;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True where it ends with `.` and `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_suffix(other.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidHost(text.chars().take(60).collect());
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // `127.1` and `0x7f.1` are addresses to some resolvers, and no names to anybody.
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
        if name.len() <= Self::BYTES_MAX && name.split('.').all(label) && !number {
            Ok(Self(name))
        } else {
            Err(invalid())
        }
    }
}

/// The text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host: a name such as example.org, *.example.org, an address, or a block such \
     as 192.0.2.0/24"
)]
pub struct InvalidHost(String);

/// A block of addresses. The bits that it leaves open are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNet {
    address: IpAddr,
    bits: u8,
}

impl IpNet {
    /// The block of the first `bits` bits of `address`; the others are set to zero. `bits` beyond
    /// the address's own length mean all of it.
    pub const fn new(address: IpAddr, bits: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let bits = if bits > 32 { 32 } else { bits };
                let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
                Self { address: IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask)), bits }
            }
            IpAddr::V6(v6) => {
                let bits = if bits > 128 { 128 } else { bits };
                let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
                Self { address: IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask)), bits }
            }
        }
    }

    /// One address.
    pub const fn of(address: IpAddr) -> Self {
        Self::new(address, 128)
    }

    /// True where `address` lies in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self::new(address, self.bits).address == self.address
    }

    /// True where the whole of this block lies in `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.bits >= other.bits && other.contains(self.address)
    }

    /// What both have: blocks lie within each other or apart.
    pub fn meet(self, other: Self) -> Option<Self> {
        if self.is_within(&other) {
            Some(self)
        } else if other.is_within(&self) {
            Some(other)
        } else {
            None
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = if self.address.is_ipv4() { 32 } else { 128 };
        if self.bits == all {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidHost(text.chars().take(60).collect()).to_string();
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        // An IPv4 address in IPv6's clothes: one form only, so that none is forgotten.
        if address.to_canonical() != address {
            return Err(format!("write {} as IPv4: {}", text, address.to_canonical()));
        }
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= all).ok_or_else(invalid)?,
        };
        let net = Self::new(address, bits);
        if net.address != address {
            return Err(format!("{text} has bits beyond its first {bits}: write {net}"));
        }
        Ok(net)
    }
}

/// Ports, from the first to the last, both included; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// From `first` to `last`; `None` where that is none, or 0.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// True where `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// True where `other` has all of them.
    pub fn is_within(&self, other: &Self) -> bool {
        other.first <= self.first && self.last <= other.last
    }

    /// What both have.
    pub fn meet(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            f.write_str("*")
        } else if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        // `parse` would take a sign.
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if digits { text.parse().ok() } else { None }
        };
        let range = port(first).zip(port(last)).and_then(|(first, last)| Self::new(first, last));
        range.ok_or_else(|| {
            let text: String = text.chars().take(40).collect();
            format!("`{text}` is no port: 1 to 65535, a range such as 8000-8010, or *")
        })
    }
}
