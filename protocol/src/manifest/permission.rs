//! The grammar of permissions: what manifests ask for, and what operators allow or deny, in the
//! same words.
//!
//! ```text
//! network                        any host and port
//! network:HOST[:PORTS]           HOST: a name, *.NAME (every name below it), an address, a CIDR
//!                                block, or *; an IPv6 address or block in brackets
//!                                PORTS: 443, 8000-8010, or * (also when left out)
//! host-network                   the machine's own network instead of the proxy
//! read:/PATH  write:/PATH        all that lies at and below it; writing includes reading
//! call:SERVICE[/METHOD]          call:demo.v1.* is every service of a package, call:* every one
//! env:NAME                       the node's own value of this variable
//! device:/dev/NAME               this device node
//! ```
//!
//! Owns the words, their one normal form and what they match. Refuses to say who is granted what:
//! that is the plugin host's.

mod host;

use std::{fmt, str::FromStr};

pub use self::host::{HostName, HostRule, InvalidHost, IpNet, NetworkRule, PortRange};

use crate::service::{MethodPath, ServiceName};

/// Bytes of a path in a permission; source: `PATH_MAX` of Linux, without its final zero.
const PATH_BYTES_MAX: usize = 4_095;

/// Bytes of a variable's name: longer ones are a mistake, not a need.
const VARIABLE_BYTES_MAX: usize = 64;

/// Environment that the host owns, or that would load code into a plugin.
const VARIABLES_RESERVED: [&str; 4] = ["BH_", "LD_", "LISTEN_", "GLIBC_TUNABLES"];

/// Parts of names under which people keep secrets. A node's secrets are no plugin's.
const VARIABLES_SECRET: [&str; 8] =
    ["SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "PRIVATE", "KEY"];

/// Kinds that later versions bring: a manifest that names them is told so.
const FORESEEN: [&str; 2] = ["state", "event"];

/// One thing a plugin may be allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Connections through the host's proxy.
    Network(NetworkRule),
    /// The machine's own network. Nothing is checked there.
    HostNetwork,
    /// Reading at and below an absolute path in normal form.
    Read(String),
    /// Reading and writing at and below an absolute path in normal form.
    Write(String),
    /// Calling into the mesh.
    Call(CallRule),
    /// The node's own value of an environment variable.
    Env(String),
    /// A device node below `/dev`, by its path in normal form.
    Device(String),
}

/// What kind a permission is of; the word before its colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `network`
    Network,
    /// `host-network`
    HostNetwork,
    /// `read`
    Read,
    /// `write`
    Write,
    /// `call`
    Call,
    /// `env`
    Env,
    /// `device`
    Device,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Network,
        Self::HostNetwork,
        Self::Read,
        Self::Write,
        Self::Call,
        Self::Env,
        Self::Device,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::HostNetwork => "host-network",
            Self::Read => "read",
            Self::Write => "write",
            Self::Call => "call",
            Self::Env => "env",
            Self::Device => "device",
        }
    }
}

impl Permission {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Network(_) => Kind::Network,
            Self::HostNetwork => Kind::HostNetwork,
            Self::Read(_) => Kind::Read,
            Self::Write(_) => Kind::Write,
            Self::Call(_) => Kind::Call,
            Self::Env(_) => Kind::Env,
            Self::Device(_) => Kind::Device,
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(rule) => rule.fmt(f),
            Self::HostNetwork => f.write_str("host-network"),
            Self::Read(path) => write!(f, "read:{path}"),
            Self::Write(path) => write!(f, "write:{path}"),
            Self::Call(rule) => write!(f, "call:{rule}"),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Device(path) => write!(f, "device:{path}"),
        }
    }
}

impl FromStr for Permission {
    type Err = InvalidPermission;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: String| InvalidPermission { text: short(text), why };
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        let needed = |what: &str| rest.ok_or_else(|| refuse(format!("{what} must follow")));
        match kind {
            "network" => NetworkRule::parse(rest).map(Self::Network).map_err(refuse),
            "host-network" if rest.is_none() => Ok(Self::HostNetwork),
            "host-network" => Err(refuse("nothing may follow host-network".into())),
            "read" => path(needed("an absolute path")?).map(Self::Read).map_err(refuse),
            "write" => path(needed("an absolute path")?).map(Self::Write).map_err(refuse),
            "call" => {
                let rule = needed("a service, a package with .*, or *")?;
                rule.parse().map(Self::Call).map_err(refuse)
            }
            "env" => variable(needed("a variable's name")?).map(Self::Env).map_err(refuse),
            "device" => device(needed("a path below /dev")?).map(Self::Device).map_err(refuse),
            kind if FORESEEN.contains(&kind) => {
                Err(refuse(format!("{kind} permissions are foreseen, and not in this version")))
            }
            _ => Err(refuse(
                "expected network[:HOST[:PORTS]], host-network, read:/PATH, write:/PATH, \
                 call:SERVICE, env:NAME or device:/dev/NAME"
                    .into(),
            )),
        }
    }
}

/// The text is no permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a permission: {why}")]
pub struct InvalidPermission {
    text: String,
    why: String,
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// An absolute path in normal form: no `.`, `..`, doubled or final slashes.
fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("an absolute path must follow".into());
    }
    if text.len() > PATH_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("a path has at most {PATH_BYTES_MAX} bytes, none of them a control"));
    }
    let parts: Vec<&str> =
        text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err("a path with `..` could lead anywhere: write where it leads".into());
    }
    Ok(format!("/{}", parts.join("/")))
}

fn device(text: &str) -> Result<String, String> {
    let path = path(text)?;
    if path.starts_with("/dev/") { Ok(path) } else { Err("a device lies below /dev".into()) }
}

fn variable(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if !begins || text.len() > VARIABLE_BYTES_MAX || !text.bytes().all(plain) {
        return Err("a variable's name has letters, digits and _, at most 64".into());
    }
    if is_reserved_variable(text) {
        return Err("this variable is set by the host alone".into());
    }
    let upper = text.to_ascii_uppercase();
    if VARIABLES_SECRET.iter().any(|secret| upper.contains(secret)) {
        return Err("its name says that it holds a secret, and the node's secrets are no \
                    plugin's: give the plugin its own under another name"
            .into());
    }
    Ok(text.into())
}

/// True for environment that the host owns, or that would load code into a plugin.
pub(super) fn is_reserved_variable(name: &str) -> bool {
    VARIABLES_RESERVED.iter().any(|reserved| name.starts_with(reserved))
}

/// Which calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallRule {
    /// `*`: every service.
    All,
    /// `demo.v1.*`: every service whose name begins with this and a dot.
    Package(ServiceName),
    /// `demo.v1.Counter`: every method of one service.
    Service(ServiceName),
    /// `demo.v1.Counter/Get`: one method. The service, and the method's name.
    Method(ServiceName, String),
}

impl CallRule {
    /// True where the rule allows to call `method`.
    pub fn matches(&self, method: &MethodPath) -> bool {
        match self {
            Self::All => true,
            Self::Package(package) => is_in_package(method.service().as_str(), package),
            Self::Service(service) => method.service() == *service,
            Self::Method(service, name) => method.service() == *service && method.method() == name,
        }
    }

    /// True where everything that `self` matches is matched by `other`, too.
    #[allow(clippy::match_same_arms, reason = "a case each, from the widest to the narrowest")]
    pub fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::All) => true,
            (Self::All, _) => false,
            (Self::Package(inner), Self::Package(outer)) => {
                inner == outer || is_in_package(inner.as_str(), outer)
            }
            (Self::Service(service) | Self::Method(service, _), Self::Package(outer)) => {
                is_in_package(service.as_str(), outer)
            }
            (Self::Service(inner) | Self::Method(inner, _), Self::Service(outer)) => inner == outer,
            (Self::Method(..), Self::Method(..)) => self == other,
            (Self::Package(_), Self::Service(_) | Self::Method(..))
            | (Self::Service(_), Self::Method(..)) => false,
        }
    }
}

fn is_in_package(name: &str, package: &ServiceName) -> bool {
    name.strip_prefix(package.as_str()).is_some_and(|rest| rest.starts_with('.'))
}

impl fmt::Display for CallRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Package(package) => write!(f, "{package}.*"),
            Self::Service(service) => service.fmt(f),
            Self::Method(service, method) => write!(f, "{service}/{method}"),
        }
    }
}

impl FromStr for CallRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = |text: &str| text.parse::<ServiceName>().map_err(|error| error.to_string());
        if text == "*" {
            Ok(Self::All)
        } else if let Some(package) = text.strip_suffix(".*") {
            name(package).map(Self::Package)
        } else if text.contains('/') {
            let path: MethodPath = text.parse().map_err(|error| format!("{error}"))?;
            Ok(Self::Method(path.service(), path.method().into()))
        } else {
            name(text).map(Self::Service)
        }
    }
}

#[cfg(test)]
mod tests;
