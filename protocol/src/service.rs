//! What is called: service names, method paths, and how versions match.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits::SERVICE_NAME_BYTES_MAX;

/// A gRPC service's full name, package included: `demo.v1.Counter`.
///
/// One to [`SERVICE_NAME_BYTES_MAX`] bytes; dot-separated parts of `A-Z a-z 0-9 _`, none empty,
/// none beginning with a digit (protobuf's rule for identifiers).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The service's major version, read from the last package part of the form `v2`, `v1beta1`
    /// (`demo.v2.Counter` → 2); 0 where the name gives none.
    ///
    /// Source: the package versioning convention of the Buf and Google API style guides.
    pub fn major(&self) -> u32 {
        let mut package = self.0.rsplit('.').skip(1);
        let version = package.find_map(|part| {
            let digits = part.strip_prefix('v')?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().ok()
        });
        version.unwrap_or(0)
    }

    /// True for services that belong to each program itself and are never announced or routed by
    /// name: health and reflection.
    pub fn is_infrastructure(&self) -> bool {
        self.0.starts_with("grpc.health.") || self.0.starts_with("grpc.reflection.")
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=SERVICE_NAME_BYTES_MAX).contains(&text.len());
        if fits && text.split('.').all(is_identifier) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidServiceName(text.chars().take(80).collect()))
        }
    }
}

fn is_identifier(part: &str) -> bool {
    part.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl TryFrom<String> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

/// The text is not a service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a service name (expected something like demo.v1.Counter)")]
pub struct InvalidServiceName(String);

/// A method's full path as gRPC writes it: `/demo.v1.Counter/Add`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MethodPath {
    path: String,
    slash: usize,
}

impl MethodPath {
    /// The whole path, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The service part, `demo.v1.Counter`.
    pub fn service(&self) -> ServiceName {
        ServiceName(self.path[1..self.slash].into())
    }

    /// The method part, `Add`.
    pub fn method(&self) -> &str {
        &self.path[self.slash + 1..]
    }
}

impl fmt::Display for MethodPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

impl FromStr for MethodPath {
    type Err = InvalidMethodPath;

    /// Accepts `/service/Method` and `service/Method`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMethodPath(text.chars().take(120).collect());
        let bare = text.strip_prefix('/').unwrap_or(text);
        let (service, method) = bare.split_once('/').ok_or_else(invalid)?;
        let service: ServiceName = service.parse().map_err(|_| invalid())?;
        if !is_identifier(method) || method.len() > SERVICE_NAME_BYTES_MAX {
            return Err(invalid());
        }
        let slash = service.as_str().len() + 1;
        Ok(Self { path: format!("/{service}/{method}"), slash })
    }
}

/// The text is not a method path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a method (expected something like demo.v1.Counter/Add)")]
pub struct InvalidMethodPath(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_the_package() {
        let major = |name: &str| name.parse::<ServiceName>().expect(name).major();
        assert_eq!(major("demo.v1.Counter"), 1);
        assert_eq!(major("demo.v12beta1.Counter"), 12);
        assert_eq!(major("demo.Counter"), 0);
        assert_eq!(major("v9"), 0, "the service's own name is not a package");
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for bad in ["", ".", "a..b", "a b", "1a", "a/b", "ä", &"x".repeat(256)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_split_into_service_and_method() {
        for text in ["/demo.v1.Counter/Add", "demo.v1.Counter/Add"] {
            let path: MethodPath = text.parse().expect(text);
            assert_eq!(path.service().as_str(), "demo.v1.Counter");
            assert_eq!(path.method(), "Add");
            assert_eq!(path.as_str(), "/demo.v1.Counter/Add");
        }
        for bad in ["", "/", "a", "/a/", "//b", "/a/b/c"] {
            assert!(bad.parse::<MethodPath>().is_err(), "{bad}");
        }
    }
}
