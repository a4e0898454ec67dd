//! Requests into calls: reads what belongs to HTTP and to the mesh, leaves the rest as it came.

use std::time::{Duration, Instant};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
};
use protocol::{
    ports::{CallHead, Caller, Locality},
    timeout::{self, GRPC_TIMEOUT},
    wishes::Wishes,
};

use crate::rescue::Refusal;

const LOCALITY: HeaderName = HeaderName::from_static("bh-locality");
const PEER: HeaderName = HeaderName::from_static("bh-peer");

/// Headers that belong to the connection, not to the call.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// The request is gRPC, as far as its head tells.
pub(crate) fn admit(parts: &Parts) -> Result<(), Refusal> {
    let refuse = |status, message| Err(Refusal::Http { status, message });
    if parts.version != Version::HTTP_2 {
        return refuse(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "calls are made in gRPC over HTTP/2 without TLS here (prior knowledge); \
             plain HTTP is served on the address given by --http",
        );
    }
    if !says_grpc(&parts.headers) {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this address speaks gRPC: content-type must be application/grpc",
        );
    }
    if parts.method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "gRPC calls are made with POST");
    }
    Ok(())
}

/// Whether the content type is gRPC's.
pub(crate) fn says_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()))
}

/// `application/grpc`, alone or with a message format (`+proto`) or parameters; not
/// `application/grpc-web`, which is another protocol.
fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let (kind, rest) = content_type.split_at(content_type.len().min(GRPC.len()));
    kind.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
}

/// The call that an admitted request makes.
pub(crate) fn head(parts: Parts, caller: Caller, now: Instant) -> Result<CallHead, Refusal> {
    wishes(plain_head(parts, caller, now)?)
}

/// The same, with what its metadata wishes still in there.
pub(crate) fn plain_head(parts: Parts, caller: Caller, now: Instant) -> Result<CallHead, Refusal> {
    let path = parts.uri.path().parse().map_err(|_| {
        let shown: String = parts.uri.path().chars().take(120).collect();
        Refusal::Unimplemented(format!(
            "`{shown}` is not a method (expected /package.Service/Method)"
        ))
    })?;
    let mut metadata = parts.headers;
    let deadline = match metadata.remove(GRPC_TIMEOUT) {
        Some(value) => now.checked_add(timeout(&value)?),
        None => None,
    };
    Ok(CallHead { path, metadata, deadline, locality: Locality::default(), caller })
}

/// The call with what its metadata wishes, by whichever way it came.
pub(crate) fn wishes(mut head: CallHead) -> Result<CallHead, Refusal> {
    let metadata = &mut head.metadata;
    head.locality = locality(metadata)?;
    // Read again where somebody is chosen; refused here, in words that gRPC knows.
    Wishes::read(metadata).map_err(|unfit| Refusal::InvalidArgument(unfit.to_string()))?;
    strip_hop_by_hop(metadata);
    Ok(head)
}

/// Takes out the headers that end at this hop.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn timeout(value: &HeaderValue) -> Result<Duration, Refusal> {
    timeout::read(value.as_bytes()).ok_or_else(|| {
        let text = value.as_bytes();
        let shown = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
        Refusal::InvalidArgument(format!(
            "grpc-timeout `{shown}` is not one to eight digits and one of H M S m u n"
        ))
    })
}

/// Reads and removes the caller's wishes about where the call is answered.
fn locality(metadata: &mut HeaderMap) -> Result<Locality, Refusal> {
    let shown = |value: &[u8]| String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned();
    let wish = match metadata.remove(LOCALITY) {
        None => None,
        Some(value) => Some(match value.as_bytes() {
            b"local" => Locality::Local,
            b"prefer-local" => Locality::PreferLocal,
            b"any" => Locality::Any,
            other => {
                return Err(Refusal::InvalidArgument(format!(
                    "bh-locality `{}` is not one of local, prefer-local, any",
                    shown(other)
                )));
            }
        }),
    };
    let Some(value) = metadata.remove(PEER) else { return Ok(wish.unwrap_or_default()) };
    let peer = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Refusal::InvalidArgument(format!(
            "bh-peer `{}` is not a peer id (expected something like 12D3KooW…)",
            shown(value.as_bytes())
        ))
    })?;
    if wish.is_some() {
        let both = "bh-locality and bh-peer say different things: send one of them";
        return Err(Refusal::InvalidArgument(both.into()));
    }
    Ok(Locality::Peer(peer))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use protocol::id::NodeKey;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::post("http://mesh/demo.v1.Counter/Add").version(Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn read(headers: &[(&str, &str)]) -> Result<CallHead, Refusal> {
        head(parts(headers), Caller::Client, Instant::now())
    }

    #[test]
    fn what_belongs_to_the_call_stays_and_the_rest_goes() {
        let now = Instant::now();
        let parts = parts(&[
            ("content-type", "application/grpc+proto"),
            ("te", "trailers"),
            ("grpc-encoding", "gzip"),
            ("grpc-timeout", "250m"),
            ("bh-locality", "any"),
            ("content-length", "5"),
            ("x-user", "a"),
            ("x-user", "b"),
            ("trace-bin", "AAEC"),
        ]);
        let head = head(parts, Caller::Client, now).expect("a call");
        assert_eq!(head.path.as_str(), "/demo.v1.Counter/Add");
        assert_eq!(head.deadline, Some(now + Duration::from_millis(250)));
        assert_eq!(head.locality, Locality::Any);
        let mut names: Vec<_> = head.metadata.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "grpc-encoding", "te", "trace-bin", "x-user"]);
        assert_eq!(head.metadata.get_all("x-user").iter().count(), 2);
    }

    #[test]
    fn only_grpc_is_grpc() {
        for good in ["application/grpc", "application/grpc+proto", "Application/gRPC;x=y"] {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        for bad in ["", "application/grpc-web", "application/grpc-web+proto", "application/json"] {
            assert!(!is_grpc(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_peer_can_be_named_and_wishes_cannot_contradict_each_other() {
        let peer = NodeKey::from_seed([1; 32]).peer_id();
        let head = read(&[("bh-peer", &peer.to_string())]).expect("a call");
        assert_eq!(head.locality, Locality::Peer(peer));
        for bad in [
            vec![("bh-locality", "near")],
            vec![("bh-peer", "nobody")],
            vec![("bh-peer", &*peer.to_string()), ("bh-locality", "local")],
        ] {
            assert!(matches!(read(&bad), Err(Refusal::InvalidArgument(_))), "{bad:?}");
        }
    }
}
