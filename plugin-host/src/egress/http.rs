//! HTTP/1.1 as proxies speak it: `CONNECT host:port`, after which bytes pass untouched, and
//! requests in absolute form (`GET http://host/path`), which are sent on.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::Scheme,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming,
    client::conn::http1 as client,
    server::conn::http1 as server,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{io::copy_bidirectional, net::TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::{Gate, HEAD_PATIENCE, NoWay, metered::Metered};
use crate::permissions::Host;

/// Bytes of a head, in either direction: cookies and tokens fit, a flood does not.
const HEAD_BYTES_MAX: usize = 64 * 1_024;

/// Header lines of a head.
const HEADERS_MAX: usize = 128;

/// Belong to one connection, not to the message (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A tunnel that was promised to the client.
struct Tunnel {
    inside: OnUpgrade,
    outside: Metered,
}

type Answer = Response<Either<Full<Bytes>, Carried>>;

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, gate: Gate) {
    let promised: Arc<Mutex<Option<Tunnel>>> = Arc::default();
    let service = service_fn(|request| {
        let (gate, promised) = (gate.clone(), Arc::clone(&promised));
        async move { Ok::<_, std::convert::Infallible>(answer(request, &gate, &promised).await) }
    });
    let connection = server::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if connection.await.is_err() {
        // Not HTTP, too slow, or gone: its connection is closed, and that is the answer.
        return;
    }
    let tunnel = promised.lock().take();
    if let Some(Tunnel { inside, mut outside }) = tunnel
        && let Ok(inside) = inside.await
    {
        let mut inside: TokioIo<Upgraded> = TokioIo::new(inside);
        // However it ends, both sides see their connection end.
        let _ = copy_bidirectional(&mut inside, &mut outside).await;
    }
}

async fn answer(
    request: Request<Incoming>,
    gate: &Gate,
    promised: &Mutex<Option<Tunnel>>,
) -> Answer {
    if request.method() == Method::CONNECT {
        return connect(request, gate, promised).await;
    }
    let uri = request.uri();
    if uri.scheme() != Some(&Scheme::HTTP) || uri.authority().is_none() {
        let text = "this is the node's egress proxy: ask for http://HOST/PATH, or use CONNECT";
        return say(StatusCode::BAD_REQUEST, text);
    }
    let Some((host, port)) = destination(uri, Some(80)) else {
        return say(StatusCode::BAD_REQUEST, "the request names no host that there could be");
    };
    match gate.connect(&host, port).await {
        Ok(outside) => forward(request, outside).await,
        Err(no_way) => no(&no_way),
    }
}

async fn connect(
    mut request: Request<Incoming>,
    gate: &Gate,
    promised: &Mutex<Option<Tunnel>>,
) -> Answer {
    let Some((host, port)) = destination(request.uri(), None) else {
        return say(StatusCode::BAD_REQUEST, "CONNECT needs a host and a port");
    };
    match gate.connect(&host, port).await {
        Ok(outside) => {
            let inside = hyper::upgrade::on(&mut request);
            *promised.lock() = Some(Tunnel { inside, outside });
            Response::new(Either::Left(Full::default()))
        }
        Err(no_way) => no(&no_way),
    }
}

fn destination(uri: &Uri, port: Option<u16>) -> Option<(Host, u16)> {
    let host = Host::parse(uri.host()?)?;
    Some((host, uri.port_u16().or(port)?))
}

/// Sends one request on, over a connection of its own.
async fn forward(request: Request<Incoming>, outside: Metered) -> Answer {
    let failed = |error: hyper::Error| say(StatusCode::BAD_GATEWAY, &error.to_string());
    let handshake = client::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(outside));
    let (mut sender, connection) = match handshake.await {
        Ok(made) => made,
        Err(error) => return failed(error),
    };
    // Lives in the answer's body, and ends with it.
    let carrier = AbortOnDropHandle::new(tokio::spawn(async move {
        // Whoever reads the answer is told what went wrong.
        let _ = connection.await;
    }));
    match sender.send_request(outgoing(request)).await {
        Ok(response) => response_of(response, carrier),
        Err(error) => failed(error),
    }
}

/// The request as the server is to see it: in origin form, without what was the proxy's.
fn outgoing(request: Request<Incoming>) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    let authority = parts.uri.authority().map(|authority| match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    });
    if let Some(Ok(host)) = authority.map(|host| HeaderValue::from_str(&host)) {
        parts.headers.insert(header::HOST, host);
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    parts.version = http::Version::HTTP_11;
    Request::from_parts(parts, body)
}

fn response_of(response: Response<Incoming>, carrier: AbortOnDropHandle<()>) -> Answer {
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    parts.version = http::Version::HTTP_11;
    Response::from_parts(parts, Either::Right(Carried { body, _carrier: carrier }))
}

/// Takes out what belongs to one connection, also what the message itself names as such.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn no(no_way: &NoWay) -> Answer {
    match no_way {
        NoWay::Refused(text) => say(StatusCode::FORBIDDEN, text),
        NoWay::Unknown(text) | NoWay::Unreachable(text) => say(StatusCode::BAD_GATEWAY, text),
    }
}

fn say(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(format!("{text}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// An answer's body, with the task that carries its connection.
struct Carried {
    body: Incoming,
    _carrier: AbortOnDropHandle<()>,
}

impl Body for Carried {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
