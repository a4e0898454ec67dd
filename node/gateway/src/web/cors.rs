//! Which web pages may call: those of origins that the operator named.
//!
//! A browser says whose page it acts for in `Origin`, and asks first. Pages of other origins are
//! refused here as well, not only by the browser: a page whose name was made to point at this
//! machine would otherwise pass for our own.
//!
//! Source: Fetch standard, *CORS protocol*.

use std::collections::BTreeSet;

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
    },
    request::Parts,
    uri::Authority,
};

/// How a browser says whether a page asks for its own server, or for another.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The origins whose pages may call. Nobody's, unless told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    named: BTreeSet<String>,
}

/// It is not an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAnOrigin;

impl Origins {
    /// Also lets pages of `origin` call: `https://app.example`, with a port where that is not the
    /// scheme's own, or `*` for pages of everybody.
    pub fn allow(&mut self, origin: &str) -> Result<(), NotAnOrigin> {
        if origin == "*" {
            self.any = true;
            return Ok(());
        }
        let (scheme, host) = origin.split_once("://").ok_or(NotAnOrigin)?;
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
        let fine = matches!(scheme, "http" | "https")
            && !host.is_empty()
            && host.bytes().all(is_host)
            && host.bytes().all(|byte| !byte.is_ascii_uppercase());
        if !fine {
            return Err(NotAnOrigin);
        }
        self.named.insert(origin.to_owned());
        Ok(())
    }

    /// Whose page asks, if it is one's and it may: `Err` where it may not.
    pub(super) fn judge(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Stranger> {
        let mut asked = headers.get_all(ORIGIN).into_iter();
        let Some(origin) = asked.next() else { return Ok(None) };
        let known = origin.to_str().is_ok_and(|text| self.any || self.named.contains(text));
        if known && asked.next().is_none() { Ok(Some(origin.clone())) } else { Err(Stranger) }
    }

    /// The same for what a browser sends without saying whose page asks: a GET, where the page is
    /// of the same origin as the server, or only shows what it gets.
    ///
    /// The page is then of the origin that the request is addressed to. No stranger's is where that
    /// is an address; where it is a name, the name may have been made to point here.
    pub(super) fn judge_silent(&self, parts: &Parts) -> Result<(), Stranger> {
        // With an origin it was judged by that.
        if self.any || parts.headers.contains_key(ORIGIN) {
            return Ok(());
        }
        let foreign = |site: &HeaderValue| site != "none" && site != "same-origin";
        if parts.headers.get(FETCH_SITE).is_some_and(foreign) {
            return Err(Stranger);
        }
        let host = parts.headers.get(HOST).map(HeaderValue::as_bytes);
        let host = parts.uri.authority().map(|host| host.as_str().as_bytes()).or(host);
        // HTTP/1.0; no browser speaks it.
        let Some(host) = host else { return Ok(()) };
        let host: Authority = host.try_into().map_err(|_| Stranger)?;
        let origin = |scheme| format!("{scheme}://{}", host.as_str().to_ascii_lowercase());
        let named = ["http", "https"].map(origin).iter().any(|origin| self.named.contains(origin));
        if named || is_nobodys_name(host.host()) { Ok(()) } else { Err(Stranger) }
    }
}

/// What no stranger can make point here: an address, and the machine's own name for itself.
fn is_nobodys_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let local = host.eq_ignore_ascii_case("localhost");
    local || address.parse::<std::net::IpAddr>().is_ok()
}

/// A page that may not call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stranger;

/// How long a browser remembers that it may ask; Chromium takes no more than two hours.
const REMEMBERED: HeaderValue = HeaderValue::from_static("7200");

/// Whether a browser asks if it may ask.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// It may.
pub(super) fn preflight(headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let told = response.headers_mut();
    told.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    told.insert(ACCESS_CONTROL_MAX_AGE, REMEMBERED);
    // Metadata has whatever names a plugin gives it.
    if let Some(names) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        told.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

/// Lets the page of `origin` read all of `response`.
pub(super) fn expose(response: &mut Response<Body>, origin: HeaderValue) {
    let headers = response.headers_mut();
    let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(origins: &[&'static str]) -> HeaderMap {
        origins.iter().map(|origin| (ORIGIN, HeaderValue::from_static(origin))).collect()
    }

    #[test]
    fn pages_of_named_origins_may_call_and_no_others() {
        let mut origins = Origins::default();
        assert_eq!(origins.judge(&from(&[])), Ok(None), "a program, not a page");
        assert_eq!(origins.judge(&from(&["http://localhost:3000"])), Err(Stranger));
        origins.allow("http://localhost:3000").expect("an origin");
        assert!(origins.judge(&from(&["http://localhost:3000"])).is_ok());
        for other in ["http://localhost", "https://localhost:3000", "null"] {
            assert_eq!(origins.judge(&from(&[other])), Err(Stranger), "{other}");
        }
        let two = from(&["http://localhost:3000", "http://localhost:3000"]);
        assert_eq!(origins.judge(&two), Err(Stranger));
        origins.allow("*").expect("everybody");
        assert!(origins.judge(&from(&["https://anywhere.example"])).is_ok());
    }

    fn to(host: &str, more: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::get("/a.v1.B/C?message=").header(HOST, host);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_page_that_does_not_tell_its_origin_is_of_the_server_it_asks() {
        let mut origins = Origins::default();
        for host in ["127.0.0.1:8080", "[::1]:8080", "localhost", "LocalHost:8080", "10.0.0.7"] {
            assert_eq!(origins.judge_silent(&to(host, &[])), Ok(()), "{host}");
        }
        for host in ["rebound.example", "127.0.0.1.rebound.example:8080", "a b", "localhost.x"] {
            assert_eq!(origins.judge_silent(&to(host, &[])), Err(Stranger), "{host}");
        }
        for (site, may) in
            [("cross-site", false), ("same-site", false), ("same-origin", true), ("none", true)]
        {
            let asked = to("127.0.0.1", &[("sec-fetch-site", site)]);
            assert_eq!(origins.judge_silent(&asked).is_ok(), may, "{site}");
        }
        origins.allow("https://mesh.example:8443").expect("an origin");
        assert_eq!(origins.judge_silent(&to("mesh.example:8443", &[])), Ok(()));
        assert_eq!(origins.judge_silent(&to("mesh.example", &[])), Err(Stranger));
        origins.allow("*").expect("everybody");
        assert_eq!(origins.judge_silent(&to("any.example", &[])), Ok(()));
    }

    #[test]
    fn only_origins_are_origins() {
        let mut origins = Origins::default();
        for bad in ["", "localhost", "ftp://x", "https://", "https://x/", "https://X", "null"] {
            assert_eq!(origins.allow(bad), Err(NotAnOrigin), "{bad}");
        }
    }
}
