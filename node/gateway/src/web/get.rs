//! Connect's calls by GET: the message is in the URL, so that caches and links can have it.
//!
//! Only for methods that say of themselves that they have no side effects, because browsers,
//! caches and crawlers repeat a GET as they like.
//!
//! Source: Connect protocol, *Unary-Get-Request*.

use axum::body::Body;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    request::Parts,
};
use tonic::{Code, Status};

use super::{kind::Form, query::Query, refusal::No, words};

const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// Of the URL's alphabet, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A message that came in a URL.
#[derive(Debug)]
pub(super) struct Get {
    pub(super) form: Form,
    pub(super) message: Bytes,
}

/// Whether it is a call rather than a look at a page: it has a parameter that only calls have.
pub(super) fn is_call(parts: &Parts) -> bool {
    let is_get = matches!(parts.method, Method::GET | Method::HEAD);
    let query = parts.uri.query().unwrap_or_default();
    let name = |parameter: &'static str| {
        move |text: &str| text.split('=').next().is_some_and(|name| name == parameter)
    };
    is_get && ["connect", "encoding", "message"].iter().any(|one| query.split('&').any(name(one)))
}

/// Why it is none, in a form if one was asked for.
#[derive(Debug)]
pub(super) enum NotServed {
    /// In HTTP's words.
    Http(StatusCode, &'static str),
    /// The call is refused as others are.
    No(Form, No),
}

impl Get {
    /// Takes the call out of a URL, and what belongs to it into the headers.
    pub(super) fn read(parts: &mut Parts) -> Result<Self, NotServed> {
        let headers = &mut parts.headers;
        headers.remove(CONTENT_TYPE);
        headers.remove(CONTENT_ENCODING);
        let query = parts.uri.query().unwrap_or_default();
        let query = Query::read(query).map_err(|no| match no {
            No::Failed(_) => NotServed::Http(StatusCode::URI_TOO_LONG, "the URL is too long"),
            no @ No::Refused(_) => NotServed::No(Form::Json, no),
        })?;
        let encoding = query.one("encoding").map_err(|no| NotServed::No(Form::Json, no))?;
        let form = encoding.and_then(Form::named).ok_or({
            let message = "a call by GET says encoding=json or encoding=proto";
            NotServed::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
        })?;
        let refuse = |no| NotServed::No(form, no);
        query.is_version_1().map_err(refuse)?;
        let message = query.one("message").map_err(refuse)?;
        let message = message.ok_or_else(|| refuse(No::invalid("the query has no message")))?;
        // Any other value of base64 means nothing, says the protocol.
        let message = match query.one("base64").map_err(refuse)? {
            Some(b"1") => BASE64.decode(message).map_err(|_| {
                refuse(No::invalid("the message is not base64 of the URL's alphabet"))
            })?,
            _ => message.to_vec(),
        };
        // Nothing is not compressed, whatever is said of it.
        let compression = query.one("compression").map_err(refuse)?;
        if let Some(compression) = compression.filter(|_| !message.is_empty()) {
            let compression = coding(compression).ok_or_else(|| {
                let message = "compression is not the name of a coding, such as gzip";
                refuse(No::Refused(crate::rescue::Refusal::Unimplemented(message.into())))
            })?;
            headers.insert(CONTENT_ENCODING, compression);
        }
        Ok(Self { form, message: message.into() })
    }
}

/// The name of a coding: letters, digits and hyphens, and not many.
fn coding(name: &[u8]) -> Option<HeaderValue> {
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let known = (1..=32).contains(&name.len()) && name.iter().all(fine);
    known.then(|| HeaderValue::from_bytes(name).ok()).flatten()
}

/// The answer to a method that may do something, or streams.
pub(super) fn only_by_post() -> Response<Body> {
    let message = "only unary methods whose descriptor says NO_SIDE_EFFECTS are called by GET: \
                   use POST";
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, message);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// An answer in HTTP's words whose body has Connect's.
pub(super) fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    let code = match status {
        StatusCode::URI_TOO_LONG => Code::ResourceExhausted,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        _ => Code::Unimplemented,
    };
    let error = words::error(&Status::new(code, message)).to_string();
    let mut response = Response::new(Body::from(error));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Tells caches and browsers how the answer to a GET may be used.
pub(super) fn guard(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("accept-encoding, origin"));
    headers.insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: Method, query: &str) -> Parts {
        let request = Request::builder().method(method).uri(format!("/a.v1.B/C{query}"));
        request.body(()).expect("a request").into_parts().0
    }

    fn read(query: &str) -> Result<(Form, Bytes, Option<String>), NotServed> {
        let mut parts = parts(Method::GET, query);
        let get = Get::read(&mut parts)?;
        let encoding = parts.headers.get(CONTENT_ENCODING);
        let encoding = encoding.map(|name| name.to_str().expect("text").to_owned());
        Ok((get.form, get.message, encoding))
    }

    #[test]
    fn only_what_has_a_calls_parameters_is_one() {
        for query in ["?encoding=json&message={}", "?x&message", "?connect=v1"] {
            assert!(is_call(&parts(Method::GET, query)), "{query}");
            assert!(is_call(&parts(Method::HEAD, query)), "{query}");
            assert!(!is_call(&parts(Method::POST, query)), "{query}");
        }
        for query in ["", "?", "?encodings=1", "?x=message"] {
            assert!(!is_call(&parts(Method::GET, query)), "{query}");
        }
    }

    #[test]
    fn messages_come_in_text_and_in_base64_with_padding_and_without() {
        for query in [
            "?encoding=proto&base64=1&message=CgN5b3U%3D",
            "?message=CgN5b3U&base64=1&encoding=proto&connect=v1&unknown=1",
            "?encoding=proto&message=%0A%03you&base64=0",
        ] {
            let (form, message, encoding) = read(query).expect("a call");
            assert_eq!((form, &message[..], encoding), (Form::Proto, &b"\x0a\x03you"[..], None));
        }
        let (_, _, encoding) = read("?encoding=proto&compression=gzip&message=x").expect("a call");
        assert_eq!(encoding.as_deref(), Some("gzip"));
        let (_, message, encoding) =
            read("?encoding=json&compression=gzip&message=").expect("a call");
        assert_eq!((message.len(), encoding), (0, None));
    }

    #[test]
    fn what_is_wrong_is_told_in_the_words_for_it() {
        for query in ["?message={}", "?encoding=xml&message=1", "?encoding=&message=1"] {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            assert!(matches!(read(query), Err(NotServed::Http(known, _)) if known == status));
        }
        for query in [
            "?encoding=proto",
            "?encoding=proto&connect=v2&message=",
            "?encoding=proto&base64=1&message=CgN5+3U",
            "?encoding=proto&base64=1&message=C",
            "?encoding=proto&message=%zz",
            "?encoding=proto&message=1&message=2",
            "?encoding=proto&compression=&message=1",
            "?encoding=proto&compression=g%20z&message=1",
        ] {
            assert!(matches!(read(query), Err(NotServed::No(_, No::Refused(_)))), "{query}");
        }
        let long = format!("?encoding=proto&message={}", "a".repeat(40_000));
        assert!(matches!(read(&long), Err(NotServed::Http(StatusCode::URI_TOO_LONG, _))));
    }
}
