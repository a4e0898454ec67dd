//! What a request speaks, as its content type tells.

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// A protocol of calls over HTTP, and the form of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// gRPC-Web; `text` where everything is in base64.
    Web {
        /// `application/grpc-web-text`.
        text: bool,
    },
    /// Connect, one message each way: the body is the message.
    Unary(Form),
    /// Connect, streams: messages in envelopes.
    Stream(Form),
}

/// The form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As plugins have them.
    Proto,
    /// Translated, by the plugin's own descriptors.
    Json,
}

impl Form {
    /// The form that Connect calls `name` in URLs.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"proto" => Some(Self::Proto),
            b"json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// All content types that are served, as `Accept-Post` tells them.
pub(super) const SERVED: &str = "application/grpc-web, application/grpc-web+proto, \
    application/grpc-web-text, application/grpc-web-text+proto, application/proto, \
    application/json, application/connect+proto, application/connect+json";

impl Kind {
    /// Every kind with each content type that names it; the first is what answers have.
    const NAMES: [(Self, &[&str]); 6] = [
        (Self::Web { text: false }, &["application/grpc-web+proto", "application/grpc-web"]),
        (
            Self::Web { text: true },
            &["application/grpc-web-text+proto", "application/grpc-web-text"],
        ),
        (Self::Unary(Form::Proto), &["application/proto"]),
        (Self::Unary(Form::Json), &["application/json"]),
        (Self::Stream(Form::Proto), &["application/connect+proto"]),
        (Self::Stream(Form::Json), &["application/connect+json"]),
    ];

    /// What a request with these headers speaks, if it is served here.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value.split(';').next().unwrap_or_default().trim();
        let named = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(essence));
        Self::NAMES.into_iter().find(|(_, names)| named(names)).map(|(kind, _)| kind)
    }

    /// The content type of answers.
    pub(super) fn content_type(self) -> HeaderValue {
        let known = Self::NAMES.into_iter().find(|(kind, _)| *kind == self);
        let name = known.and_then(|(_, names)| names.first()).copied();
        HeaderValue::from_static(name.unwrap_or("application/octet-stream"))
    }

    /// The form of its messages.
    pub(super) fn form(self) -> Form {
        match self {
            Self::Web { .. } => Form::Proto,
            Self::Unary(form) | Self::Stream(form) => form,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_tell_the_protocol_whatever_their_case_and_parameters() {
        let kind = |text: &'static str| {
            let header = (CONTENT_TYPE, HeaderValue::from_static(text));
            Kind::of(&HeaderMap::from_iter([header]))
        };
        assert_eq!(kind("application/grpc-web"), Some(Kind::Web { text: false }));
        assert_eq!(kind("Application/gRPC-Web-Text+proto"), Some(Kind::Web { text: true }));
        assert_eq!(kind("application/json; charset=utf-8"), Some(Kind::Unary(Form::Json)));
        assert_eq!(kind("application/connect+proto"), Some(Kind::Stream(Form::Proto)));
        for other in ["application/grpc", "text/plain", "application/connect+xml", ""] {
            assert_eq!(kind(other), None, "{other}");
        }
        for (kind, names) in Kind::NAMES {
            assert_eq!(kind.content_type(), names[0]);
            assert!(names.iter().all(|name| SERVED.contains(name)));
        }
    }
}
