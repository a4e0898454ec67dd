//! WebSocket, for browsers, which can neither stream a request nor converse over HTTP: one call for
//! each socket, of any of the four kinds.
//!
//! The dialect:
//!
//! - `GET /<package.Service>/<Method>?encoding=json`, or `proto`; JSON where that is left out. What
//!   programs say in headers a page says in parameters, `header.NAME=VALUE`.
//! - A message is a frame of data: text in JSON, binary in protobuf.
//! - An empty text frame ends the messages of the side that sends it. After its own the gateway
//!   sends how the call ended, as text, in the shape of Connect's end of a stream, and closes.
//! - Who closes before that has given up: the call is cancelled.
//!
//! Here is the handshake; `session` runs a call, `listen` and `speak` are its two directions,
//! `gauge` counts what is read before a message is whole. Refuses subprotocols and compression: it
//! answers as if they had not been asked for, which the protocol allows.
//!
//! Source: RFC 6455; Connect protocol, *Error end-stream*.

mod gauge;
mod listen;
mod session;
mod speak;

use std::sync::Arc;

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_TYPE, COOKIE, HOST, ORIGIN, REFERER, SEC_WEBSOCKET_ACCEPT,
        SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
        UPGRADE,
    },
    request::Parts,
};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{CONNECT_ACCEPT, CONNECT_ENCODING, Web, kind::Form, query::Query, refusal::No};
use crate::{
    bounds::HEADER_LIST_BYTES_MAX,
    rescue::{self, Refusal},
    takeover::Takeover,
};

const WEBSOCKET: &str = "websocket";

/// What the names of parameters begin with that are headers.
const HEADER: &str = "header.";

/// Whether a request would be a WebSocket.
pub(super) fn is_asked(parts: &Parts) -> bool {
    parts.method == Method::GET && says(&parts.headers, &UPGRADE, WEBSOCKET)
}

/// Whether a list in headers has `wanted`.
fn says(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|one| one.trim().eq_ignore_ascii_case(wanted))
}

/// Opens the socket that a request asks for, for one call. What is wrong with the call is told
/// there, for browsers do not let pages see why a socket was not opened.
pub(super) fn open(web: Arc<Web>, mut parts: Parts) -> Response<Body> {
    let Shaken { accept, upgrade, takeover } = match Shaken::read(&mut parts) {
        Ok(shaken) => shaken,
        Err(unfit) => return unfit.answer(),
    };
    let asked = asked(&mut parts);
    takeover.put(session::run(upgrade, web, asked, parts));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// A handshake that is in order.
struct Shaken {
    accept: HeaderValue,
    upgrade: OnUpgrade,
    takeover: Takeover,
}

/// A handshake that is not.
#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    Version,
    Request,
}

impl Shaken {
    /// Takes the handshake out of a request.
    fn read(parts: &mut Parts) -> Result<Self, Unfit> {
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let takeover = parts.extensions.remove::<Takeover>();
        let headers = &mut parts.headers;
        let connects = says(headers, &CONNECTION, "upgrade") && parts.version == Version::HTTP_11;
        let version = headers.remove(SEC_WEBSOCKET_VERSION);
        let key = headers.remove(SEC_WEBSOCKET_KEY).filter(|_| connects);
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
        if version.is_none_or(|version| version != "13") {
            return Err(Unfit::Version);
        }
        let is_nonce =
            |key: &HeaderValue| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16);
        let key = key.filter(is_nonce).ok_or(Unfit::Request)?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
        let accept = accept.map_err(|_| Unfit::Request)?;
        let (Some(upgrade), Some(takeover)) = (upgrade, takeover) else {
            return Err(Unfit::Request);
        };
        Ok(Self { accept, upgrade, takeover })
    }
}

impl Unfit {
    fn answer(&self) -> Response<Body> {
        let (status, message) = match self {
            Self::Version => {
                (StatusCode::UPGRADE_REQUIRED, "WebSockets are spoken in version 13 here")
            }
            Self::Request => (
                StatusCode::BAD_REQUEST,
                "a WebSocket is opened over HTTP/1.1 with connection: upgrade and a key of 16 \
                 bytes in base64",
            ),
        };
        let mut response = rescue::refuse(&Refusal::Http { status, message });
        if *self == Self::Version {
            let headers = response.headers_mut();
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
        }
        response
    }
}

/// The form of the messages; puts the headers that the URL has beside the others.
fn asked(parts: &mut Parts) -> Result<Form, No> {
    let query = Query::read(parts.uri.query().unwrap_or_default())?;
    query.is_version_1()?;
    let form = match query.one("encoding")? {
        None => Form::Json,
        Some(name) => {
            Form::named(name).ok_or_else(|| No::invalid("encoding is neither json nor proto"))?
        }
    };
    let headers = &mut parts.headers;
    headers.remove(CONTENT_TYPE);
    for (name, value) in query.beginning(HEADER) {
        let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(is_a_pages);
        let name = name.ok_or_else(|| {
            No::invalid("a parameter names a header that pages may not send, or none at all")
        })?;
        let value = HeaderValue::from_bytes(value)
            .map_err(|_| No::invalid(format!("the parameter for {name} is no header's value")))?;
        headers.append(name, value);
    }
    let bytes: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if bytes > HEADER_LIST_BYTES_MAX as usize {
        let message =
            format!("headers and parameters have more than {HEADER_LIST_BYTES_MAX} bytes");
        return Err(No::too_large(message));
    }
    // Frames do not say whether they are compressed.
    headers.remove(CONNECT_ACCEPT);
    if headers.remove(CONNECT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let message = "messages in a WebSocket are not taken compressed; send them as they are";
        return Err(Refusal::Unimplemented(message.into()).into());
    }
    Ok(form)
}

/// Whether a page could send it with a request of its own: a plugin may rely on it that the others
/// are the browser's.
///
/// Source: Fetch standard, *forbidden request-header*.
fn is_a_pages(name: &HeaderName) -> bool {
    let text = name.as_str();
    let browsers = text.starts_with("sec-") || text.starts_with("proxy-");
    !browsers && ![COOKIE, HOST, ORIGIN, REFERER].contains(name)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn unfit(headers: &[(&str, &str)]) -> Option<Unfit> {
        Shaken::read(&mut parts("/a.v1.B/C", headers)).err()
    }

    #[test]
    fn a_handshake_says_upgrade_version_and_key() {
        for upgrade in ["websocket", "WebSocket", "h2c, websocket"] {
            assert!(is_asked(&parts("/", &[("upgrade", upgrade)])), "{upgrade}");
        }
        assert!(!is_asked(&parts("/", &[("upgrade", "h2c")])));
        let version = ("sec-websocket-version", "13");
        assert_eq!(unfit(&[]), Some(Unfit::Version));
        assert_eq!(unfit(&[("sec-websocket-version", "8")]), Some(Unfit::Version));
        for key in ["", "AAAA", "?", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            let said = [version, ("connection", "upgrade"), ("sec-websocket-key", key)];
            assert_eq!(unfit(&said), Some(Unfit::Request), "{key}");
        }
    }

    #[test]
    fn parameters_are_headers_but_for_those_that_are_the_browsers() {
        let mut said = parts("/a.v1.B/C?header.X-A=1&header.x-a=%C3%BC&connect=v1", &[]);
        assert_eq!(asked(&mut said).expect("a call"), Form::Json);
        assert_eq!(said.headers.get_all("x-a").iter().count(), 2);
        let mut proto =
            parts("/a.v1.B/C?encoding=proto", &[("connect-content-encoding", "identity")]);
        assert_eq!(asked(&mut proto).expect("a call"), Form::Proto);
        for bad in [
            "header.origin=https://a.example",
            "header.cookie=a",
            "header.Sec-Fetch-Site=none",
            "header.=1",
            "header.a%20b=1",
            "header.a=%0d%0a",
            "header.connect-content-encoding=gzip",
            "encoding=xml",
            "encoding=json&encoding=json",
            "connect=v2",
            "%",
        ] {
            assert!(asked(&mut parts(&format!("/a.v1.B/C?{bad}"), &[])).is_err(), "{bad}");
        }
    }
}
