//! gRPC-Web and Connect, for web pages and for programs that have HTTP and nothing else: the same
//! calls in other clothes.
//!
//! Owns what the three protocols do not have in common: where the status is, how messages are
//! wrapped, what a deadline is called, JSON. Refuses to know anything of routing, admission or
//! failure, which are [`Grpc`]'s for everybody: a request is made a gRPC call, and its answer is
//! put back into the clothes that it came in.
//!
//! gRPC itself is here as well, passed on as it came.
//!
//! `kind` tells what a request speaks, `get` reads what has its message in the URL, `inbound` reads
//! messages, `outbound` writes the answer, `words` has the names of errors, `json` translates,
//! `cors` decides which pages may call. `socket` makes WebSockets streams of Connect.

mod cors;
mod envelope;
mod get;
mod hold;
mod inbound;
mod json;
mod kind;
mod outbound;
mod query;
mod refusal;
mod rest;
mod socket;
mod text;
mod words;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::State};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, TE},
    request::Parts,
};
use protocol::{
    ports::{self, Call, CallHead, Caller},
    timeout::{self, GRPC_TIMEOUT},
};

pub use self::cors::{NotAnOrigin, Origins};
use self::{
    get::{Get, NotServed},
    hold::Budget,
    inbound::{Inbound, Reading},
    json::Translator,
    kind::{Form, Kind, SERVED},
    outbound::Writing,
    refusal::{No, Wrong},
    rest::Rest,
};
use crate::{
    grpc::{Grpc, Outgoing},
    rescue::{self, Refusal},
    translate,
};

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const CONNECT_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
const CONNECT_ACCEPT: HeaderName = HeaderName::from_static("connect-accept-encoding");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc+proto");

/// `POST /<package.Service>/<Method>` in gRPC, gRPC-Web and Connect, `GET` in WebSockets and where
/// it is safe: to every service that `grpc` serves, everyone there being `caller`; pages of
/// `origins` may call.
pub fn web_routes(grpc: Grpc, caller: Caller, origins: Origins) -> Router {
    let translator = Translator::new(grpc.catalog());
    let budget = Budget::default();
    let web = Web { grpc, caller, origins, translator, budget };
    Router::new().fallback(serve).with_state(Arc::new(web))
}

struct Web {
    grpc: Grpc,
    caller: Caller,
    origins: Origins,
    translator: Translator,
    budget: Budget,
}

async fn serve(State(web): State<Arc<Web>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(origin) = web.origins.judge(&parts.headers) else {
        let message = "pages of this origin may not call; the operator names those that may in \
                       api.corsOrigins";
        return rescue::refuse(&Refusal::Http { status: StatusCode::FORBIDDEN, message });
    };
    let mut response = if cors::is_preflight(&parts.method, &parts.headers) {
        cors::preflight(&parts.headers)
    } else if socket::is_asked(&parts) {
        // Its origin has been judged: browsers always tell it, and do not judge the answer.
        return socket::open(web, parts);
    } else if get::is_call(&parts) {
        web.get(parts).await
    } else if translate::says_grpc(&parts.headers) {
        let request = Request::from_parts(parts, body);
        web.grpc.clone().answer(web.caller.clone(), request).await.map(Body::new)
    } else {
        match Kind::of(&parts.headers) {
            Some(kind) if parts.method == Method::POST => web.answer(kind, parts, body).await,
            kind => unserved(&parts.method, kind),
        }
    };
    if let Some(origin) = origin {
        cors::expose(&mut response, origin);
    }
    response
}

/// The answer to what is no call.
fn unserved(method: &Method, kind: Option<Kind>) -> Response<Body> {
    let (status, message, header) = match (kind, method) {
        (None, &Method::POST) => {
            let message = "calls have one of the content types in accept-post, or \
                           application/grpc over HTTP/2";
            let served = (ACCEPT_POST, HeaderValue::from_static(SERVED));
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, message, Some(served))
        }
        (Some(_), _) => {
            let allowed = (ALLOW, HeaderValue::from_static("POST"));
            let message = "calls are made with POST, or with GET and their message in the URL";
            (StatusCode::METHOD_NOT_ALLOWED, message, Some(allowed))
        }
        (None, _) => (StatusCode::NOT_FOUND, "there is nothing here; / lists what there is", None),
    };
    let mut response = rescue::refuse(&Refusal::Http { status, message });
    response.headers_mut().extend(header);
    response
}

impl Web {
    async fn answer(&self, kind: Kind, parts: Parts, body: Body) -> Response<Body> {
        let (wrong, rest) = (Wrong::default(), Rest::default());
        rest.put(body);
        let (answer, shape) = match self.call(kind, parts, rest.clone(), wrong.clone()).await {
            Ok((call, shape)) => (self.grpc.clone().answer_call(call).await, shape),
            Err(no) => (no.answer().map(Outgoing::Own), None),
        };
        let budget = self.budget.clone();
        Writing { kind, shape, budget, wrong, rest }.write(answer).await
    }

    /// A call whose message is in the URL.
    async fn get(&self, mut parts: Parts) -> Response<Body> {
        if self.origins.judge_silent(&parts).is_err() {
            let message = "a call by GET is addressed to this peer by an address, or by the host \
                           of an origin in api.corsOrigins, and not from a page of another one: \
                           use POST";
            return get::refuse(StatusCode::FORBIDDEN, message);
        }
        let mut response = match Get::read(&mut parts) {
            Ok(Get { form, message }) => {
                let safe = match parts.uri.path().parse() {
                    Ok(path) => self.translator.is_safe(&path).await,
                    // Refused as any other call is.
                    Err(_) => Ok(true),
                };
                match safe {
                    Ok(true) => self.answer(Kind::Unary(form), parts, message.into()).await,
                    Ok(false) => get::only_by_post(),
                    Err(no) => self.refuse(Kind::Unary(form), &no).await,
                }
            }
            Err(NotServed::No(form, no)) => self.refuse(Kind::Unary(form), &no).await,
            Err(NotServed::Http(status, message)) => get::refuse(status, message),
        };
        get::guard(&mut response);
        response
    }

    /// The answer to what does not become a call, in the words of `kind`.
    async fn refuse(&self, kind: Kind, no: &No) -> Response<Body> {
        let (budget, wrong, rest) = (self.budget.clone(), Wrong::default(), Rest::default());
        let writing = Writing { kind, shape: None, budget, wrong, rest };
        writing.write(no.answer().map(Outgoing::Own)).await
    }

    async fn call(
        &self,
        kind: Kind,
        mut parts: Parts,
        rest: Rest,
        wrong: Wrong,
    ) -> Result<(Call, Option<json::Shape>), No> {
        undress(kind, &mut parts.headers)?;
        let head: CallHead = translate::plain_head(parts, self.caller.clone(), Instant::now())?;
        let shape = match kind.form() {
            Form::Proto => None,
            Form::Json => Some(self.translator.shape(&head.path, head.deadline).await?),
        };
        let reading = Reading {
            kind,
            metadata: &head.metadata,
            shape: shape.clone(),
            budget: &self.budget,
            deadline: head.deadline,
            wrong,
        };
        let body = Inbound::read(rest, reading).await?;
        Ok((Call { head, body: ports::Body::new(body) }, shape))
    }
}

/// Makes a request's headers those of a gRPC call.
fn undress(kind: Kind, headers: &mut HeaderMap) -> Result<(), Refusal> {
    let (encoding, accepted) = match kind {
        Kind::Web { .. } => (headers.remove(GRPC_ENCODING), headers.remove(GRPC_ACCEPT)),
        Kind::Unary(_) => (headers.remove(CONTENT_ENCODING), headers.remove(ACCEPT_ENCODING)),
        Kind::Stream(_) => (headers.remove(CONNECT_ENCODING), headers.remove(CONNECT_ACCEPT)),
    };
    let encoding = encoding.filter(|encoding| encoding != "identity");
    if !matches!(kind, Kind::Web { .. }) {
        connect(headers)?;
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let message = "a request whose messages have envelopes is not compressed as a whole";
        return Err(Refusal::Unimplemented(message.into()));
    }
    for name in [ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, GRPC_ENCODING, GRPC_ACCEPT] {
        headers.remove(name);
    }
    match kind.form() {
        // Compressed messages pass as they are.
        Form::Proto => {
            headers.extend(encoding.map(|encoding| (GRPC_ENCODING, encoding)));
            headers.extend(accepted.map(|accepted| (GRPC_ACCEPT, without_weights(&accepted))));
        }
        Form::Json if encoding.is_some() => {
            let message = "messages in JSON are not taken compressed; send them as they are";
            return Err(Refusal::Unimplemented(message.into()));
        }
        Form::Json => {}
    }
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(())
}

/// Takes out what belongs to Connect, and puts its deadline into gRPC's words.
fn connect(headers: &mut HeaderMap) -> Result<(), Refusal> {
    if headers.remove(VERSION).is_some_and(|version| version != "1") {
        let message = "connect-protocol-version is not 1, the only one there is";
        return Err(Refusal::InvalidArgument(message.into()));
    }
    headers.remove(GRPC_TIMEOUT);
    let Some(value) = headers.remove(TIMEOUT) else { return Ok(()) };
    let text = value.as_bytes();
    let digits = (1..=10).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let millis = value.to_str().ok().filter(|_| digits).and_then(|text| text.parse().ok());
    let Some(millis) = millis else {
        let message = "connect-timeout-ms is not one to ten digits";
        return Err(Refusal::InvalidArgument(message.into()));
    };
    headers.insert(GRPC_TIMEOUT, timeout::write(Duration::from_millis(millis)));
    Ok(())
}

/// `gzip, br;q=0.5` as gRPC has it: `gzip,br`.
fn without_weights(accepted: &HeaderValue) -> HeaderValue {
    let text = accepted.to_str().unwrap_or_default();
    let names = text.split(',').filter_map(|one| one.split(';').next()).map(str::trim);
    let names: Vec<_> = names.filter(|name| !name.is_empty() && *name != "*").collect();
    HeaderValue::from_str(&names.join(",")).unwrap_or(HeaderValue::from_static("identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undressed(
        kind: Kind,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Vec<(String, String)>, Refusal> {
        let mut headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        undress(kind, &mut headers)?;
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let mut left: Vec<_> =
            headers.iter().map(|(name, v)| (name.to_string(), text(v))).collect();
        left.sort();
        Ok(left)
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_connect_request_is_a_grpc_call() {
        let asked = [
            ("content-type", "application/proto"),
            ("connect-protocol-version", "1"),
            ("connect-timeout-ms", "2500"),
            ("content-encoding", "gzip"),
            ("accept-encoding", "gzip;q=1.0, br, *;q=0"),
            ("grpc-timeout", "1S"),
            ("x-user", "a"),
        ];
        let wanted = [
            ("content-type", "application/grpc+proto"),
            ("grpc-accept-encoding", "gzip,br"),
            ("grpc-encoding", "gzip"),
            ("grpc-timeout", "2500m"),
            ("te", "trailers"),
            ("x-user", "a"),
        ];
        assert_eq!(undressed(Kind::Unary(Form::Proto), &asked), Ok(pairs(&wanted)));
    }

    #[test]
    fn what_cannot_be_kept_is_refused_rather_than_ignored() {
        for bad in ["soon", "", "-1", "12345678901", "1.5"] {
            let asked = [("connect-timeout-ms", bad)];
            let refused = undressed(Kind::Unary(Form::Proto), &asked);
            assert!(matches!(refused, Err(Refusal::InvalidArgument(_))), "{bad}");
        }
        let version = [("connect-protocol-version", "2")];
        assert!(undressed(Kind::Stream(Form::Json), &version).is_err());
        let compressed = [("content-encoding", "gzip")];
        for kind in [Kind::Unary(Form::Json), Kind::Web { text: false }, Kind::Stream(Form::Proto)]
        {
            assert!(undressed(kind, &compressed).is_err(), "{kind:?}");
        }
    }
}
